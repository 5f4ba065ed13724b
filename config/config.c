/* SPDX-License-Identifier: MIT */
#include "config/config.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/read.h"

/* Is what `address` binds reachable from this machine alone? */
static bool is_local(const char *address)
{
    if (strncmp(address, "tcp://", 6) != 0) {
        return true;
    }
    const char *host = address + 6, *colon = strrchr(host, ':');
    size_t n = colon ? (size_t)(colon - host) : strlen(host);
    static const char *const names[] = {"localhost", "[::1]", "lo"};
    for (int i = 0; i < 3; i++) {
        if (n == strlen(names[i]) && strncmp(host, names[i], n) == 0) {
            return true;
        }
    }
    return strncmp(host, "127.", 4) == 0 && strspn(host, "0123456789.") == n;
}

/* Something that listens. */
struct port {
    const char *address; /* tcp://HOST:PORT, or what is_local takes for granted */
    const char *danger;  /* what whoever reaches it can do                      */
    bool zeromq;         /* curve can guard it                                  */
};

/* Beyond this machine a port is guarded by keys, or `insecure` says that it needn't be. */
static void check_reach(const struct config *config, const struct port *port, struct place at, const char *path,
                        struct config_errors *errors)
{
    bool guarded = port->zeromq && config->curve.secret[0];
    if (!is_local(port->address) && !guarded && !config->insecure) {
        errors_add(
            errors, at, path,
            "%s can be reached from other machines, and whoever does can %s. Bind 127.0.0.1, %sor write insecure: true "
            "if that is what you want",
            port->address + strlen("tcp://"), port->danger, port->zeromq ? "set curve: (see ssm keys), " : "");
    }
}

/* What listens at the top level. */
static void check_ports(const struct config *config, const struct node *root, struct config_errors *errors)
{
    char http[300] = "";
    if (config->http[0]) {
        snprintf(http, sizeof http, "tcp://%s", config->http);
    }
    const struct {
        const char *key;
        struct port port;
    } rows[] = {{"publish", {config->publish, "listen", true}},
                {"control", {config->control, "end the daemon, and carry streams away", true}},
                {"http", {http, "read how it runs", false}}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct node *node = node_find(root, rows[i].key);
        if (node) {
            check_reach(config, &rows[i].port, node->at, rows[i].key, errors);
        }
    }
}

/* The key of whom a source connects to belongs to `sub`, and needs one of our own. */
static void check_server_key(const struct config *config, const struct config_pipeline *pipeline, bool sub,
                             const struct node *source, struct config_errors *errors)
{
    const struct node *node = node_find(source, "server_key");
    char path[256];
    snprintf(path, sizeof path, "pipelines.%s.source.server_key", pipeline->name);
    if (node && !sub) {
        errors_add(errors, node->at, path, "is for a source that connects: sub");
    } else if (node && config->curve.secret[0] == '\0') {
        errors_add(errors, node->at, path, "needs a key of our own too: set curve:");
    }
}

static void check_pcm(const struct config *config, const struct config_pipeline *pipeline, const struct node *source,
                      struct config_errors *errors)
{
    const struct node *node = node_find(source, "path");
    const char *path = pipeline->source.path;
    bool pull = strncmp(path, "pull:", 5) == 0, sub = strncmp(path, "sub:", 4) == 0;
    char where[256];
    snprintf(where, sizeof where, "pipelines.%s.source.path", pipeline->name);
    if (node && !sub) {
        check_reach(config, &(struct port){path + (pull ? 5 : 0), "feed the model", pull}, node->at, where, errors);
    }
    check_server_key(config, pipeline, sub, source, errors);
}

/* An MQTT filter: + and # stand for whole levels, # for the last. */
static bool is_filter(const char *text)
{
    for (const char *at = text; *at; at++) {
        bool alone = (at == text || at[-1] == '/') && (at[1] == '/' || at[1] == '\0');
        if ((*at == '+' && !alone) || (*at == '#' && (!alone || at[1] != '\0'))) {
            return false;
        }
    }
    return text[0] != '\0';
}

/* Keys that only one transport has. */
static void check_mqtt_keys(const struct node *source, const char *pipeline, struct config_errors *errors)
{
    static const char *const keys[] = {"qos", "user", "password_file", "ca"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const struct node *node = node_find(source, keys[i]);
        char path[256];
        snprintf(path, sizeof path, "pipelines.%s.source.%s", pipeline, keys[i]);
        if (node) {
            errors_add(errors, node->at, path, "is for the transport mqtt");
        }
    }
}

/* A password is shown to who is on the way, but for TLS. */
static void check_mqtt(const struct config *config, const struct config_source *sensor, const struct node *source,
                       const char *path, struct config_errors *errors)
{
    const struct node *connect = node_find(source, "connect"), *topic = node_find(source, "topic"), *ca = node_find(source, "ca");
    const struct node *password = node_find(source, "password_file");
    bool tls = strncmp(sensor->connect, "mqtts://", 8) == 0, plain = strncmp(sensor->connect, "mqtt://", 7) == 0;
    char address[300];
    snprintf(address, sizeof address, "tcp://%s", plain ? sensor->connect + 7 : "localhost:1");
    if (!connect || (sensor->connect[0] && !tls && !plain)) {
        errors_add(errors, connect ? connect->at : source->at, path, "the transport mqtt needs connect: mqtt://HOST:PORT");
    } else if (!topic || !is_filter(sensor->topic)) {
        errors_add(errors, topic ? topic->at : source->at, path, "the transport mqtt needs a topic, such as plant/+/vibration or plant/#");
    } else if (ca && plain) {
        errors_add(errors, ca->at, path, "ca is for mqtts://");
    } else if (password && !node_find(source, "user")) {
        errors_add(errors, password->at, path, "password_file needs user");
    } else if (password && !is_local(address) && !config->insecure) {
        errors_add(errors, password->at, path,
                   "the password can be read by who is on the way to %s. Use mqtts://, or write insecure: true if that is what you want",
                   sensor->connect);
    }
}

/* A transport's address has to be there, and reachable from here alone. */
static void check_listen(const struct config *config, const struct config_source *sensor, const struct node *source,
                         const char *path, struct config_errors *errors)
{
    bool pull = sensor->transport == SENSOR_PULL, ipc = strncmp(sensor->listen, "ipc://", 6) == 0;
    const struct node *listen = node_find(source, "listen");
    struct place at = listen ? listen->at : source->at;
    char address[300];
    snprintf(address, sizeof address, "tcp://%s", sensor->listen);
    if (!listen) {
        errors_add(errors, at, path, "this transport needs listen: HOST:PORT");
    } else if (ipc && !pull) {
        errors_add(errors, at, path, "ipc:// is for the transport pull");
    } else if (sensor->listen[0] && !ipc) {
        check_reach(config, &(struct port){address, "feed the model", pull}, at, path, errors);
    }
}

static void check_sub(const struct config_source *sensor, const struct node *source, const char *path, struct config_errors *errors)
{
    const struct node *connect = node_find(source, "connect");
    if (!connect || strncmp(sensor->connect, "mqtt", 4) == 0) {
        errors_add(errors, connect ? connect->at : source->at, path, "the transport sub needs connect: tcp://HOST:PORT");
    }
}

static void check_sensor(const struct config *config, const struct config_pipeline *pipeline, const struct node *source,
                         struct config_errors *errors)
{
    const struct config_source *sensor = &pipeline->source;
    char path[256];
    snprintf(path, sizeof path, "pipelines.%s.source", pipeline->name);
    check_server_key(config, pipeline, sensor->transport == SENSOR_SUB, source, errors);
    if (sensor->transport == SENSOR_MQTT) {
        check_mqtt(config, sensor, source, path, errors);
    } else {
        check_mqtt_keys(source, pipeline->name, errors);
    }
    if (sensor->transport == SENSOR_SUB) {
        check_sub(sensor, source, path, errors);
    } else if (sensor->transport != SENSOR_STDIN && sensor->transport != SENSOR_MQTT) {
        check_listen(config, sensor, source, path, errors);
    }
    if (sensor->least > sensor->most) {
        errors_add(errors, source->at, path, "least is above most");
    }
}

/* Stands for a path; a file may have that name. */
static const char standard_input[] = "standard input";

/* A path that is read, written or listened on. */
struct use {
    const char *path;
    char *file; /* the same for every path that leads there */
    struct place at;
    const char *key; /* whose it is, such as "pipelines." and */
    const char *name;
    enum { READ, WRITTEN, HEARD } how;
};

enum { LINKS = 16 }; /* that are followed to where nothing is */

/* "folder of path/name"; NULL when memory runs out. */
static char *beside(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');
    char *file = NULL;
    return asprintf(&file, "%.*s%s", slash ? (int)(slash + 1 - path) : 0, path, name) < 0 ? NULL : file;
}

/* Of a path where nothing is: its folder without links, "." and "..", and the name; as it is where the folder isn't there either. */
static char *resolve_free(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char *above = beside(path, "."), *folder = above ? realpath(above, NULL) : NULL, *file = NULL;
    if (!folder || asprintf(&file, "%s/%s", folder, name) < 0) {
        file = strdup(path);
    }
    free(above);
    free(folder);
    return file;
}

/* What is the same (to free) for every path that leads there: of a file its number, since it may have several names; else the path
 * at which it would come to be, for a link to nothing too. NULL when memory runs out. */
static char *resolve(const char *path, int links)
{
    struct stat found;
    char target[4096], *file = NULL, *next;
    if (stat(path, &found) == 0) {
        return asprintf(&file, "%ju:%ju", (uintmax_t)found.st_dev, (uintmax_t)found.st_ino) < 0 ? NULL : file;
    }
    ssize_t n = links > 0 ? readlink(path, target, sizeof target - 1) : -1;
    if (n <= 0) {
        return resolve_free(path);
    }
    target[n] = '\0';
    next = target[0] == '/' ? strdup(target) : beside(path, target);
    file = next ? resolve(next, links - 1) : NULL;
    free(next);
    return file;
}

static int compare_uses(const void *a, const void *b)
{
    const struct use *x = a, *y = b;
    int order = strcmp(x->file, y->file);
    return order                      ? order
           : x->at.line != y->at.line ? (x->at.line > y->at.line) - (x->at.line < y->at.line)
                                      : x->at.column - y->at.column;
}

static void refuse_both(const struct use *a, const struct use *b, struct config_errors *errors)
{
    char path[256];
    snprintf(path, sizeof path, "%s%s", b->key, b->name);
    errors_add(errors, b->at, path,
               a->how == HEARD || b->how == HEARD       ? "%s is taken already; see line %d"
               : a->how == WRITTEN && b->how == WRITTEN ? "%s is written by another sink too, on line %d"
                                                        : "%s is both read and written; see line %d",
               b->path, a->at.line);
}

/* Two sinks of one path, a sink that overwrites a source, or two who listen. */
static void check_uses(struct use *uses, int n, struct config_errors *errors)
{
    for (int i = 0; i < n; i++) {
        bool path = uses[i].path != standard_input;
        if (!(uses[i].file = path ? resolve(uses[i].path, LINKS) : strdup(""))) { /* which no path becomes */
            errors_add(errors, uses[i].at, "", "out of memory");
            return;
        }
    }
    if (n > 0) {
        qsort(uses, (size_t)n, sizeof *uses, compare_uses);
    }
    for (int i = 1; i < n; i++) {
        const struct use *a = &uses[i - 1], *b = &uses[i];
        if (strcmp(a->file, b->file) == 0 && (a->how != READ || b->how != READ)) {
            refuse_both(a, b, errors);
        }
    }
}

static struct place place_of(const struct node *map, const char *key)
{
    const struct node *node = node_find(map, key);
    return node ? node->at : map->at;
}

/* Where something that listens makes its file; NULL: it makes none. */
static const char *find_socket(const char *address)
{
    bool local = strncmp(address, "ipc://", 6) == 0 && address[6] != '@' && address[6] != '*';
    return local ? address + 6 : strncmp(address, "unix:", 5) == 0 ? address + 5 : NULL;
}

const char *config_socket(const struct config_source *source)
{
    if (source->type == SOURCE_PCM) {
        bool pull = strncmp(source->path, "pull:", 5) == 0;
        return find_socket(source->path + (pull ? 5 : 0));
    }
    return source->type == SOURCE_SENSOR && source->transport == SENSOR_PULL ? find_socket(source->listen) : NULL;
}

bool config_same_address(const struct config_source *a, const struct config_source *b)
{
    bool pcm = a->type == SOURCE_PCM && strcmp(a->path, b->path) == 0 && strcmp(a->path, "-") != 0;
    bool sub = a->transport == SENSOR_SUB && strcmp(a->connect, b->connect) == 0 && strcmp(a->topic, b->topic) == 0;
    bool sensor = a->type == SOURCE_SENSOR && a->transport == b->transport &&
                  (sub || (a->listen[0] && strcmp(a->listen, b->listen) == 0));
    return a->type == b->type && (pcm || sensor);
}

bool config_reads_input(const struct config_source *source)
{
    return (source->type == SOURCE_PCM && strcmp(source->path, "-") == 0) ||
           (source->type == SOURCE_SENSOR && source->transport == SENSOR_STDIN);
}

/* What is used of files by a source, if any. */
static int list_source(const struct config_pipeline *pipeline, const struct node *node, struct use *use)
{
    const struct config_source *source = &pipeline->source;
    bool file = source->type == SOURCE_FILE;
    const char *path = file ? source->path : config_reads_input(source) ? standard_input : config_socket(source);
    struct place at = place_of(node, source->type == SOURCE_SENSOR ? "listen" : "path");
    *use = (struct use){path, NULL, at, "pipelines.", pipeline->name, file ? READ : HEARD};
    return path && path[0];
}

static int list_address(const char *address, const char *key, const struct node *root, struct use *use)
{
    const char *path = find_socket(address);
    struct place at = place_of(root, node_find(root, key) ? key : "publish");
    *use = (struct use){path, NULL, at, key, "", HEARD};
    return path && path[0];
}

/* `twin`: the pipeline has a publish sink before this one. */
static void check_publish_sink(const struct config *config, const char *pipeline, int i, const struct node *sink,
                               bool twin, struct config_errors *errors)
{
    char path[256];
    snprintf(path, sizeof path, "pipelines.%s.sinks.%d", pipeline, i);
    if (config->publish[0] == '\0') {
        errors_add(errors, sink->at, path,
                   "there is no address to publish on; add a line such as publish: tcp://127.0.0.1:5571 at the top");
    }
    if (twin) {
        errors_add(errors, sink->at, path,
                   "publishes a second time under the same topics; one publish sink serves everybody");
    }
}

static void set_place(struct config_place *place, const char *path, struct place at)
{
    errors_place(place->text, sizeof place->text, at, path);
    place->line = at.line;
    place->column = at.line > 0 ? at.column : 0;
}

/* Where a map has this key, or would; `path` is the key's. */
static void note_place(struct config_place *place, const char *path, const struct node *map, const char *key)
{
    const struct node *value = node_find(map, key);
    set_place(place, path, value ? value->at : map->at);
}

/* Where a source or a sink says what it is to open: the map, or the override that says it for it. */
static void note_opened(struct config_place *place, const char *path, const struct node *map)
{
    static const char *const keys[] = {"path", "device", "listen", "connect"};
    struct place at = map->at;
    for (size_t i = 0; i < sizeof keys / sizeof *keys && map->kind == NODE_MAP; i++) {
        const struct node *value = node_find(map, keys[i]);
        at = value && value->at.line == 0 ? value->at : at;
    }
    set_place(place, path, at);
}

static void note_sinks(struct config_pipeline *pipeline, const struct node *sinks)
{
    const struct node *child = sinks && sinks->kind == NODE_LIST ? sinks->children : NULL;
    for (int i = 0; i < pipeline->n_sinks && child; i++, child = child->next) {
        char path[96];
        snprintf(path, sizeof path, "pipelines.%s.sinks.%d", pipeline->name, i);
        note_opened(&pipeline->at.sinks[i], path, child);
    }
}

static void note_places(struct config_pipeline *pipeline, const struct node *node)
{
    const struct node *source = node_find(node, "source");
    char path[96];
    snprintf(path, sizeof path, "pipelines.%s.source", pipeline->name);
    note_opened(&pipeline->at.source, path, source ? source : node);
    snprintf(path, sizeof path, "pipelines.%s.model", pipeline->name);
    note_place(&pipeline->at.model, path, node, "model");
    snprintf(path, sizeof path, "pipelines.%s.fallback", pipeline->name);
    note_place(&pipeline->at.fallback, path, node, "fallback");
    note_sinks(pipeline, node_find(node, "sinks"));
}

/* What one pipeline's place in the tree and the others' say about it. Gives the number of uses added, sinks + 1 at
 * most. */
static int check_pipeline(const struct config *config, struct config_pipeline *pipeline, const struct node *node,
                          struct use *uses, struct config_errors *errors)
{
    const struct node *source = node_find(node, "source"), *sinks = node_find(node, "sinks");
    int n = 0;
    bool published = false;
    note_places(pipeline, node);
    if (source && source->kind == NODE_MAP && pipeline->source.type == SOURCE_SENSOR) {
        check_sensor(config, pipeline, source, errors);
    }
    if (source && source->kind == NODE_MAP && pipeline->source.type == SOURCE_PCM) {
        check_pcm(config, pipeline, source, errors);
    }
    n += source ? list_source(pipeline, source, uses) : 0;
    const struct node *child = sinks && sinks->kind == NODE_LIST ? sinks->children : NULL;
    for (int i = 0; i < pipeline->n_sinks && child; i++, child = child->next) {
        const struct config_sink *sink = &pipeline->sinks[i];
        const struct node *type = node_find(child, "type");
        bool file = sink->type == SINK_FILE || (sink->type == SINK_JSONL && strcmp(sink->path, "-") != 0);
        if (file && sink->path[0]) {
            uses[n++] = (struct use){sink->path, NULL, place_of(child, "path"), "pipelines.", pipeline->name, WRITTEN};
        } else if (sink->type == SINK_PUBLISH && type && type->kind == NODE_SCALAR &&
                   strcmp(type->text, "publish") == 0) {
            check_publish_sink(config, pipeline->name, i, child, published, errors);
            published = true;
        }
    }
    return n;
}

/* What no single key can know. */
static void check_together(struct config *config, const struct node *root, struct config_errors *errors)
{
    check_ports(config, root, errors);
    note_place(&config->curve_at, "curve", root, "curve");
    struct use *uses = calloc((size_t)config->n_pipelines * (CONFIG_SINKS + 1) + 3, sizeof *uses);
    const struct node *pipelines = node_find(root, "pipelines");
    const struct node *node = pipelines ? pipelines->children : NULL;
    char control[300];
    int n = 0;
    config_control(config, control, sizeof control);
    for (int i = 0; i < config->n_pipelines && node && uses; i++, node = node->next) {
        n += check_pipeline(config, &config->pipelines[i], node, uses + n, errors);
    }
    if (uses) {
        n += list_address(config->publish, "publish", root, uses + n);
        n += list_address(control, "control", root, uses + n);
    } else {
        errors_add(errors, root->at, "", "out of memory");
    }
    check_uses(uses, n, errors);
    for (int i = 0; i < n; i++) {
        free(uses[i].file);
    }
    free(uses);
}

static struct config *read_config(const struct node *root, struct config_errors *errors)
{
    struct config *config = calloc(1, sizeof *config);
    if (config) {
        read_map(&config_keys, root, config, errors);
        check_together(config, root, errors);
    }
    return config;
}

struct config *config_parse(const char *text, size_t size, const char *name, const char *const *overrides, int n,
                            struct config_errors *errors)
{
    *errors = (struct config_errors){0};
    struct place start = {.file = name, .line = 1, .column = 1};
    struct node *root = document_parse(text, size, name, errors);
    bool fine = root != NULL;
    for (int i = 0; i < n && root; i++) {
        fine = document_set(root, overrides[i], errors) && fine;
    }
    struct config *config = fine ? read_config(root, errors) : NULL;
    if (!config && errors->n == 0) {
        errors_add(errors, start, "", "out of memory");
    }
    document_destroy(root);
    if (errors->n > 0) {
        config_destroy(config);
        return NULL;
    }
    return config;
}

/* All of a file in memory (to free), at most a byte more than what may be parsed. NULL with errno set. */
static char *read_file(FILE *file, size_t *size)
{
    enum { MOST = (1 << 20) + 1 };
    char *text = malloc(MOST);
    *size = text ? fread(text, 1, MOST, file) : 0;
    if (text && ferror(file)) {
        free(text);
        return NULL;
    }
    return text;
}

struct config *config_load(const char *path, const char *const *overrides, int n, struct config_errors *errors)
{
    *errors = (struct config_errors){0};
    bool standard = strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    size_t size;
    char *text = file ? read_file(file, &size) : NULL;
    if (!text) {
        errors_add(errors, (struct place){path, 1, 1}, "", "can't be read: %s", strerror(errno));
    }
    if (file && !standard) {
        fclose(file);
    }
    struct config *config =
        text ? config_parse(text, size, standard ? "(standard input)" : path, overrides, n, errors) : NULL;
    free(text);
    return config;
}

void config_destroy(struct config *config)
{
    if (config) {
        free(config->pipelines);
        free(config);
    }
}

static bool same_value(const struct key *key, const struct config *a, const struct config *b)
{
    const char *x = (const char *)a + key->offset, *y = (const char *)b + key->offset;
    return key->kind == KEY_TEXT || key->kind == KEY_TEXTS ? strcmp(x, y) == 0 : memcmp(x, y, key->size) == 0;
}

const char *config_differs(const struct config *a, const struct config *b)
{
    for (int i = 0; i < config_keys.n; i++) {
        const struct key *key = &config_keys.at[i];
        if (key->kind != KEY_NAMED && !same_value(key, a, b)) {
            return key->name;
        }
    }
    return NULL;
}

void config_control(const struct config *config, char *address, size_t size)
{
    const char *publish = config->publish, *port = strrchr(publish, ':');
    bool follows = strcmp(config->control, "auto") == 0;
    snprintf(address, size, "%s", follows ? "" : config->control);
    if (follows && strncmp(publish, "ipc://", 6) == 0) {
        snprintf(address, size, "%s.control", publish);
    } else if (follows && port) {
        snprintf(address, size, "tcp://127.0.0.1:%d", atoi(port + 1) - 1);
    }
}
