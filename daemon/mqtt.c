/* SPDX-License-Identifier: MIT */
#include "daemon/mqtt.h"

#include <errno.h>
#include <mosquitto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/log.h"
#include "dsp/clock.h"
#include "model/refuse.h"

/* KEEPALIVE: a broker that says nothing for one and a half times that is gone. */
enum { KEEPALIVE_S = 10, TURN_MS = 1000, MILLISECOND = 1000000 };
static const int64_t retry_least = INT64_C(500) * MILLISECOND, retry_most = INT64_C(30000) * MILLISECOND;

struct mqtt {
    struct mosquitto *client;
    const struct config_source *config;
    const char *pipeline;
    mqtt_take *take;
    void *context;
    char host[256];
    int port;
    int64_t retry_at, pause; /* ns: when to connect again, and how long to wait when that fails, or doesn't last */
    int64_t since;           /* ns: subscribed           */
    bool subscribed, told;   /* told: that it isn't      */
};

/* ---- What libmosquitto tells. ---- */

static const char *describe(int status)
{
    return status != MOSQ_ERR_ERRNO ? mosquitto_strerror(status)
           : errno                  ? strerror(errno)
                                    : "the connection was closed";
}

/* The connection, or the try, came to nothing: told once until it is connected again. */
static void note_lost(struct mqtt *mqtt, const char *why)
{
    if (!mqtt->told) {
        log_line(LOG_WARNING, "pipeline %s: %s gives nothing: %s; it is tried again and again", mqtt->pipeline,
                 mqtt->config->connect, why);
    }
    int64_t now = clock_now();
    bool lasted = mqtt->subscribed && now - mqtt->since > retry_most;
    mqtt->told = true;
    mqtt->subscribed = false;
    mqtt->pause = lasted ? retry_least : mqtt->pause;
    mqtt->retry_at = now + mqtt->pause;
    mqtt->pause = 2 * mqtt->pause < retry_most ? 2 * mqtt->pause : retry_most;
}

/* A connection that gives nothing is none. */
static void leave(struct mqtt *mqtt, const char *why)
{
    note_lost(mqtt, why);
    mosquitto_disconnect(mqtt->client);
}

static void on_connect(struct mosquitto *client, void *context, int code)
{
    struct mqtt *mqtt = context;
    if (code != 0) {
        leave(mqtt, mosquitto_connack_string(code));
        return;
    }
    int status = mosquitto_subscribe(client, NULL, mqtt->config->topic, mqtt->config->qos);
    if (status != MOSQ_ERR_SUCCESS) {
        leave(mqtt, describe(status));
    }
}

static void on_subscribe(struct mosquitto *client, void *context, int id, int n, const int *granted)
{
    (void)client, (void)id;
    struct mqtt *mqtt = context;
    if (n < 1 || granted[0] > 2) {
        leave(mqtt, "the broker refuses the topic");
        return;
    }
    log_line(LOG_INFO, "pipeline %s: %s gives %s, qos %d", mqtt->pipeline, mqtt->config->connect, mqtt->config->topic, granted[0]);
    mqtt->since = clock_now();
    mqtt->subscribed = true;
    mqtt->told = false;
}

static void on_message(struct mosquitto *client, void *context, const struct mosquitto_message *message)
{
    (void)client;
    struct mqtt *mqtt = context;
    if (!message->retain) {
        mqtt->take(mqtt->context, message->payload, (size_t)message->payloadlen);
    }
}

/* ---- Set-up. ---- */

static void init_library(void)
{
    mosquitto_lib_init();
}

/* mqtt://HOST:PORT */
static int find_broker(struct mqtt *mqtt, struct ssm_error *err)
{
    const char *address = mqtt->config->connect, *host = strstr(address, "://"), *colon = strrchr(address, ':');
    if (!host || colon <= host + 3) {
        return refuse(err, 78, "%s: want mqtt://HOST:PORT", address);
    }
    bool brackets = host[3] == '[' && colon[-1] == ']';
    snprintf(mqtt->host, sizeof mqtt->host, "%.*s", (int)(colon - host - 3) - 2 * brackets, host + 3 + brackets);
    mqtt->port = atoi(colon + 1);
    return 0;
}

/* The first line of a file. */
static int read_password(const char *path, char *password, int size, struct ssm_error *err)
{
    FILE *file = fopen(path, "r");
    bool ok = file && fgets(password, size, file);
    if (file) {
        fclose(file);
    }
    password[ok ? strcspn(password, "\r\n") : 0] = '\0';
    return ok ? 0 : refuse(err, 66, "%s: no password can be read there", path);
}

static int set_user(struct mqtt *mqtt, struct ssm_error *err)
{
    const struct config_source *config = mqtt->config;
    char password[1024] = "";
    if (config->password_file[0] && read_password(config->password_file, password, sizeof password, err) < 0) {
        return -1;
    }
    bool ok = mosquitto_username_pw_set(mqtt->client, config->user, config->password_file[0] ? password : NULL) == MOSQ_ERR_SUCCESS;
    explicit_bzero(password, sizeof password);
    return ok ? 0 : refuse_memory(err);
}

/* mqtts://: whose certificate is signed by `ca`, a file or a folder, or by whom the system trusts. */
static int set_tls(struct mqtt *mqtt, struct ssm_error *err)
{
    const char *ca = mqtt->config->ca;
    struct stat found;
    bool folder = ca[0] && stat(ca, &found) == 0 && S_ISDIR(found.st_mode);
    int status = ca[0] ? mosquitto_tls_set(mqtt->client, folder ? NULL : ca, folder ? ca : NULL, NULL, NULL, NULL)
                       : mosquitto_int_option(mqtt->client, MOSQ_OPT_TLS_USE_OS_CERTS, 1);
    return status == MOSQ_ERR_SUCCESS ? 0 : refuse(err, 66, "ca: %s can't be used: %s", ca, mosquitto_strerror(status));
}

struct mqtt *mqtt_open(const struct config_source *config, const char *pipeline, mqtt_take *take, void *context,
                       struct ssm_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_library);
    struct mqtt *mqtt = calloc(1, sizeof *mqtt);
    if (!mqtt || !(mqtt->client = mosquitto_new(NULL, true, mqtt))) {
        free(mqtt);
        refuse_memory(err);
        return NULL;
    }
    mqtt->config = config;
    mqtt->pipeline = pipeline;
    mqtt->take = take;
    mqtt->context = context;
    mqtt->pause = retry_least;
    mosquitto_connect_callback_set(mqtt->client, on_connect);
    mosquitto_subscribe_callback_set(mqtt->client, on_subscribe);
    mosquitto_message_callback_set(mqtt->client, on_message);
    bool tls = strncmp(config->connect, "mqtts:", 6) == 0;
    if (find_broker(mqtt, err) < 0 || (config->user[0] && set_user(mqtt, err) < 0) || (tls && set_tls(mqtt, err) < 0)) {
        mqtt_close(mqtt);
        return NULL;
    }
    return mqtt;
}

void mqtt_close(struct mqtt *mqtt)
{
    if (mqtt) {
        mosquitto_disconnect(mqtt->client);
        mosquitto_destroy(mqtt->client);
        free(mqtt);
    }
}

/* ---- Running. ---- */

int mqtt_wait(const struct mqtt *mqtt, struct pollfd *fd)
{
    int64_t left = (mqtt->retry_at - clock_now()) / MILLISECOND + 1;
    fd->fd = mosquitto_socket(mqtt->client);
    fd->events = (short)(POLLIN | (fd->fd >= 0 && mosquitto_want_write(mqtt->client) ? POLLOUT : 0));
    return fd->fd >= 0 || left > TURN_MS ? TURN_MS : left > 0 ? (int)left : 0;
}

void mqtt_turn(struct mqtt *mqtt, short events)
{
    int status = MOSQ_ERR_SUCCESS;
    if (mosquitto_socket(mqtt->client) >= 0) {
        status = events & (POLLIN | POLLHUP | POLLERR) ? mosquitto_loop_read(mqtt->client, 1) : MOSQ_ERR_SUCCESS;
        status = status == MOSQ_ERR_SUCCESS && (events & POLLOUT) ? mosquitto_loop_write(mqtt->client, 1) : status;
        status = status == MOSQ_ERR_SUCCESS ? mosquitto_loop_misc(mqtt->client) : status;
    } else if (clock_now() >= mqtt->retry_at) {
        status = mosquitto_connect_async(mqtt->client, mqtt->host, mqtt->port, KEEPALIVE_S);
    }
    if (status != MOSQ_ERR_SUCCESS) {
        note_lost(mqtt, describe(status));
    }
}

bool mqtt_is_subscribed(const struct mqtt *mqtt)
{
    return mqtt->subscribed;
}
