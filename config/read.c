/* SPDX-License-Identifier: MIT */
#include "config/read.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "dsp/nearest.h"

struct reader {
    struct config_errors *errors;
    char path[256]; /* of the value being read: pipelines.mic.source.type */
};

/* Lengthen the path by ".name" (cut where it's full); gives what to hand to path_leave. */
static size_t path_enter(struct reader *reader, const char *name)
{
    size_t n = strlen(reader->path);
    snprintf(reader->path + n, sizeof reader->path - n, "%s%s", n > 0 ? "." : "", name);
    return n;
}

static void path_leave(struct reader *reader, size_t n)
{
    reader->path[n] = '\0';
}

#define REFUSE(reader, at, ...) errors_add((reader)->errors, at, (reader)->path, __VA_ARGS__)

const struct key *read_nearest(const struct keys *keys, int type, const char *name)
{
    const struct key *nearest = NULL;
    int least = 1 + nearest_slips(name);
    for (int i = 0; i < keys->n; i++) {
        int d = key_has_type(&keys->at[i], type) ? nearest_distance(name, keys->at[i].name) : least;
        if (d < least) {
            least = d;
            nearest = &keys->at[i];
        }
    }
    return nearest;
}

/* What a plain scalar is for YAML 1.1 besides text, or NULL. */
static const char *other_meaning(const char *text)
{
    static const char *const words[] = {"yes",  "Yes",  "YES",  "on",    "On",    "ON",    "no", "No",
                                        "NO",   "off",  "Off",  "OFF",   "y",     "Y",     "n",  "N",
                                        "true", "True", "TRUE", "false", "False", "FALSE", NULL};
    for (int i = 0; words[i]; i++) {
        if (strcmp(text, words[i]) == 0) {
            return "true or false";
        }
    }
    if (strcmp(text, "~") == 0 || strcasecmp(text, "null") == 0) {
        return "nothing";
    }
    bool dots = strchr(text, '.') != strrchr(text, '.'); /* 127.0.0.1:9000 is text in every version */
    return !dots && text[strspn(text, "+-0123456789_.:")] == '\0' && strpbrk(text, "0123456789") ? "a number" : NULL;
}

static void read_text(struct reader *reader, const struct key *key, const struct node *node, char *field)
{
    const char *other = node->plain ? other_meaning(node->text) : NULL;
    const char *wrong = key->check ? key->check(node->text) : NULL;
    if (other && strcmp(node->text, "-") != 0) {
        REFUSE(reader, node->at, "%s without quotes may be read as %s; write \"%s\"", node->text, other, node->text);
    } else if (strlen(node->text) >= key->size) {
        REFUSE(reader, node->at, "longer than %zu bytes", key->size - 1);
    } else if (wrong) {
        REFUSE(reader, node->at, "%s; got \"%.128s\"", wrong, node->text);
    } else {
        memcpy(field, node->text, strlen(node->text) + 1);
    }
}

/* A list of texts, joined by commas: each is checked where it stands, all of them together at the list. */
static void read_texts(struct reader *reader, const struct key *key, const struct node *node, char *field)
{
    char joined[2048] = ""; /* no field is longer */
    size_t n = 0;
    if (node->n < key->least || node->n > key->most) {
        REFUSE(reader, node->at, "must have %.0f to %.0f entries, got %d", key->least, key->most, node->n);
        return;
    }
    for (const struct node *child = node->children; child; child = child->next) {
        const char *wrong = child->kind == NODE_SCALAR ? key->check(child->text) : "must be a list of single values";
        if (wrong) {
            REFUSE(reader, child->at, "%s; got \"%.64s\"", wrong, child->kind == NODE_SCALAR ? child->text : "");
            return;
        }
        n += (size_t)snprintf(joined + n, sizeof joined - n, "%s%s", n > 0 ? "," : "", child->text);
        if (n >= key->size) {
            REFUSE(reader, node->at, "longer than %zu bytes", key->size - 1);
            return;
        }
    }
    struct node whole = {.kind = NODE_SCALAR, .at = node->at, .text = joined};
    read_text(reader, key, &whole, field);
}

static void read_bool(struct reader *reader, const struct node *node, bool *field)
{
    bool yes = strcmp(node->text, "true") == 0;
    const char *other = other_meaning(node->text);
    if (yes || strcmp(node->text, "false") == 0) {
        if (node->plain) {
            *field = yes;
        } else {
            REFUSE(reader, node->at, "must be %s without quotes; in quotes it is text", node->text);
        }
    } else if (node->plain && other && strcmp(other, "true or false") == 0) {
        bool means = strchr("yYoO", node->text[0]) && strcasecmp(node->text, "off") != 0;
        const char *word = strcasecmp(node->text, "true") == 0 || means ? "true" : "false";
        REFUSE(reader, node->at, "%s is a truth value in YAML 1.1 and text in 1.2; write %s", node->text, word);
    } else {
        REFUSE(reader, node->at, "must be true or false, got \"%.64s\"", node->text);
    }
}

/* The minutes-and-seconds number that YAML 1.1 makes of 1:30. */
static long base_sixty(const char *text)
{
    long value = 0;
    for (char *end; *text; text = *end ? end + 1 : end) {
        value = value * 60 + strtol(text, &end, 10);
    }
    return value;
}

static void refuse_int(struct reader *reader, const struct node *node)
{
    const char *text = node->text, *digits = text + (text[0] == '-' || text[0] == '+');
    size_t n = strspn(digits, "0123456789");
    bool number = n > 0 && digits[n] == '\0' && n < 10;
    if (!node->plain && number) {
        REFUSE(reader, node->at, "must be %s without quotes; in quotes it is text", text);
    } else if (number && digits[0] == '0' && strspn(digits, "01234567") == n) {
        REFUSE(reader, node->at, "%s is %ld (octal) in YAML 1.1 and %ld in 1.2; write it without the leading 0", text,
               strtol(text, NULL, 8), strtol(text, NULL, 10));
    } else if (number) {
        REFUSE(reader, node->at, "write it as plain digits: %ld", strtol(text, NULL, 10));
    } else if (n > 0 && n < 6 && digits[n] == ':' && strlen(digits) < 9 &&
               digits[strspn(digits, "0123456789:")] == '\0' && digits[strlen(digits) - 1] != ':' &&
               !strstr(digits, "::")) {
        REFUSE(reader, node->at, "%s is %ld (base 60) in YAML 1.1; write %ld", text, base_sixty(digits),
               base_sixty(digits));
    } else {
        REFUSE(reader, node->at, "must be a whole number in plain digits, got \"%.64s\"", text);
    }
}

/* -?(0|[1-9][0-9]*), of at most nine digits. */
static bool is_plain_int(const struct node *node)
{
    const char *digits = node->text + (node->text[0] == '-');
    size_t n = strspn(digits, "0123456789");
    return node->plain && n > 0 && n < 10 && digits[n] == '\0' &&
           (digits[0] != '0' || (n == 1 && digits == node->text));
}

static bool read_int(struct reader *reader, const struct key *key, const struct node *node, int *field)
{
    if (!is_plain_int(node)) {
        refuse_int(reader, node);
        return false;
    }
    int value = atoi(node->text);
    if (value < key->least || value > key->most) {
        if (key->least == key->most) {
            REFUSE(reader, node->at, "must be %.0f, got %d", key->least, value);
        } else {
            REFUSE(reader, node->at, "must be %.0f to %.0f, got %d", key->least, key->most, value);
        }
        return false;
    }
    *field = value;
    return true;
}

/* Digits with a point and an exponent perhaps: what every YAML takes for a number. */
static void read_real(struct reader *reader, const struct key *key, const struct node *node, double *field)
{
    char *end;
    double value = strtod(node->text, &end);
    bool number = node->plain && *end == '\0' && end > node->text &&
                  node->text[strspn(node->text, "+-.0123456789eE")] == '\0';
    if (!number) {
        REFUSE(reader, node->at, "must be a number, got \"%.64s\"", node->text);
    } else if (!(value >= key->least && value <= key->most)) {
        REFUSE(reader, node->at, "must be %g to %g, got %.64s", key->least, key->most, node->text);
    } else {
        *field = value;
    }
}

static const struct unit {
    const char *name;
    double seconds;
} units[] = {{"us", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"min", 60}, {"h", 3600}};

/* Digits, perhaps a point and digits, a unit. False: not that. */
static bool parse_seconds(const char *text, double *seconds)
{
    size_t n = strspn(text, "0123456789");
    size_t more = text[n] == '.' ? 1 + strspn(text + n + 1, "0123456789") : 0;
    if (n == 0 || more == 1 || n > 9 || more > 9) {
        return false;
    }
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(text + n + more, units[i].name) == 0) {
            *seconds = strtod(text, NULL) * units[i].seconds;
            return true;
        }
    }
    return false;
}

static void read_seconds(struct reader *reader, const struct key *key, const struct node *node, double *field)
{
    double seconds;
    if (!parse_seconds(node->text, &seconds)) {
        REFUSE(reader, node->at, "must be a number and a unit, as 20ms, 1.5s, 2min or 1h; got \"%.64s\"", node->text);
    } else if (!(seconds >= key->least && seconds <= key->most)) {
        REFUSE(reader, node->at, "must be %gs to %gs, got %s", key->least, key->most, node->text);
    } else {
        *field = seconds;
    }
}

/* "a, b or c" */
static void list_words(const char *const *words, char *text, size_t size)
{
    size_t at = 0;
    for (int i = 0; words[i] && at < size; i++) {
        const char *between = i == 0 ? "" : words[i + 1] ? ", " : " or ";
        at += (size_t)snprintf(text + at, size - at, "%s%s", between, words[i]);
    }
}

static int find_word(const char *const *words, const char *text)
{
    for (int i = 0; words[i]; i++) {
        if (strcmp(words[i], text) == 0) {
            return i;
        }
    }
    return -1;
}

static void read_word(struct reader *reader, const struct key *key, const struct node *node, int *field)
{
    int i = find_word(key->words, node->text);
    if (i >= 0) {
        *field = i;
        return;
    }
    char words[128];
    list_words(key->words, words, sizeof words);
    REFUSE(reader, node->at, "must be %s, got \"%.64s\"", words, node->text);
}

static void read_ints(struct reader *reader, const struct key *key, const struct node *node, char *base)
{
    int *field = (int *)(void *)(base + key->offset), *count = (int *)(void *)(base + key->count_offset);
    int most = (int)(key->size / sizeof *field);
    if (node->n < 1 || node->n > most) {
        REFUSE(reader, node->at, "must hold 1 to %d numbers, got %d", most, node->n);
        return;
    }
    for (const struct node *child = node->children; child; child = child->next) {
        int value;
        if (child->kind != NODE_SCALAR) {
            REFUSE(reader, child->at, "must be a list of whole numbers");
        } else if (read_int(reader, key, child, &value)) {
            for (int i = 0; i < *count; i++) {
                if (field[i] == value) {
                    REFUSE(reader, child->at, "holds %d twice", value);
                }
            }
            field[(*count)++] = value;
        }
    }
}

static void read_fields(struct reader *reader, const struct keys *keys, const struct node *map, char *base);

static void read_list(struct reader *reader, const struct key *key, const struct node *node, char *base)
{
    int *count = (int *)(void *)(base + key->count_offset);
    if (node->n < key->least || node->n > key->most) {
        REFUSE(reader, node->at, "must have %.0f to %.0f entries, got %d", key->least, key->most, node->n);
    }
    for (const struct node *child = node->children; child && *count < key->most; child = child->next) {
        char name[16];
        snprintf(name, sizeof name, "%d", *count);
        size_t end = path_enter(reader, name);
        read_fields(reader, key->items, child, base + key->offset + (size_t)*count * key->item_size);
        path_leave(reader, end);
        ++*count;
    }
}

static void read_named(struct reader *reader, const struct key *key, const struct node *node, char *base)
{
    int *count = (int *)(void *)(base + key->count_offset);
    if (node->n < key->least || node->n > key->most) {
        REFUSE(reader, node->at, "must have %.0f to %.0f entries, got %d", key->least, key->most, node->n);
        return;
    }
    char *items = calloc((size_t)node->n, key->item_size);
    memcpy(base + key->offset, &items, sizeof items);
    if (!items) {
        REFUSE(reader, node->at, "out of memory");
        return;
    }
    for (const struct node *child = node->children; child; child = child->next) {
        char *item = items + (size_t)(*count)++ * key->item_size;
        size_t end = path_enter(reader, child->key);
        const char *wrong = key->check(child->key);
        if (wrong) {
            REFUSE(reader, child->key_at, "%s", wrong);
        }
        snprintf(item, 64, "%s", child->key);
        read_fields(reader, key->items, child, item);
        path_leave(reader, end);
    }
}

static void read_scalar(struct reader *reader, const struct key *key, const struct node *node, void *field)
{
    if (key->kind == KEY_TEXT || key->kind == KEY_TEXTS) {
        read_text(reader, key, node, field);
    } else if (key->kind == KEY_BOOL) {
        read_bool(reader, node, field);
    } else if (key->kind == KEY_INT) {
        read_int(reader, key, node, field);
    } else if (key->kind == KEY_REAL) {
        read_real(reader, key, node, field);
    } else if (key->kind == KEY_SECONDS) {
        read_seconds(reader, key, node, field);
    } else {
        read_word(reader, key, node, field);
    }
}

static enum node_kind kind_of_node(const struct key *key)
{
    return key->kind == KEY_MAP || key->kind == KEY_NAMED   ? NODE_MAP
           : key->kind == KEY_LIST || key->kind == KEY_INTS ? NODE_LIST
                                                            : NODE_SCALAR;
}

static void read_value(struct reader *reader, const struct key *key, const struct node *node, char *base)
{
    static const char *const shapes[] = {[NODE_SCALAR] = "a single value",
                                         [NODE_MAP] = "a map of keys (key: value)",
                                         [NODE_LIST] = "a list ([a, b], or lines that begin with -)"};
    bool texts = key->kind == KEY_TEXTS && node->kind == NODE_LIST;
    enum node_kind wanted = texts ? NODE_LIST : kind_of_node(key);
    if (node->kind == NODE_SCALAR && node->plain && node->text[0] == '\0') {
        REFUSE(reader, node->key_at, "has no value; give one or leave the key out");
    } else if (node->kind != wanted) {
        REFUSE(reader, node->at, "must be %s, got %s", shapes[wanted], shapes[node->kind]);
    } else if (texts) {
        read_texts(reader, key, node, base + key->offset);
    } else if (key->kind == KEY_MAP) {
        read_fields(reader, key->items, node, base + key->offset);
    } else if (key->kind == KEY_LIST) {
        read_list(reader, key, node, base);
    } else if (key->kind == KEY_NAMED) {
        read_named(reader, key, node, base);
    } else if (key->kind == KEY_INTS) {
        read_ints(reader, key, node, base);
    } else {
        read_scalar(reader, key, node, base + key->offset);
    }
}

static const struct key *find_key(const struct keys *keys, int type, const char *name)
{
    for (int i = 0; i < keys->n; i++) {
        if (key_has_type(&keys->at[i], type) && strcmp(keys->at[i].name, name) == 0) {
            return &keys->at[i];
        }
    }
    return NULL;
}

/* "file or pcm": the types that have this key. */
static void list_types(const struct keys *keys, const char *name, char *text, size_t size)
{
    const char *having[33];
    int n = 0;
    for (int type = 0; keys->types[type] && n < 32; type++) {
        if (find_key(keys, type, name)) {
            having[n++] = keys->types[type];
        }
    }
    having[n] = NULL;
    list_words(having, text, size);
}

static void refuse_key(struct reader *reader, const struct keys *keys, int type, const struct node *node)
{
    const struct key *nearest = read_nearest(keys, type, node->key);
    if (find_key(keys, -1, node->key)) {
        char types[128];
        list_types(keys, node->key, types, sizeof types);
        REFUSE(reader, node->key_at, "is a key of type %s; this %s is of type %s", types, keys->what,
               keys->types[type]);
    } else if (nearest) {
        REFUSE(reader, node->key_at, "no such key; did you mean %s?", nearest->name);
    } else {
        const char *names[33];
        int n = 0;
        for (int i = 0; i < keys->n && n < 32; i++) {
            if (key_has_type(&keys->at[i], type) && find_key(keys, type, keys->at[i].name) == &keys->at[i]) {
                names[n++] = keys->at[i].name;
            }
        }
        names[n] = NULL;
        char words[256];
        list_words(names, words, sizeof words);
        REFUSE(reader, node->key_at, "no such key; a %s has %s", keys->what, words);
    }
}

/* Which type a map says it's of; -1: none or an unknown one, which is told when the key is read. */
static int type_of(const struct keys *keys, const struct node *map)
{
    const struct node *type = keys->types ? node_find(map, "type") : NULL;
    return type && type->kind == NODE_SCALAR ? find_word(keys->types, type->text) : -1;
}

/* A key that isn't there: its default, or an error if it must be. */
static void read_absent(struct reader *reader, const struct key *key, const struct node *map, char *base)
{
    if (key->required) {
        REFUSE(reader, map->at, "the key %s is missing: %s", key->name, key->about);
    } else if (key->standard) {
        char text[64];
        snprintf(text, sizeof text, "%s", key->standard);
        struct node standard = {.kind = NODE_SCALAR, .at = map->at, .text = text, .plain = true};
        read_scalar(reader, key, &standard, base + key->offset);
    }
}

static void read_fields(struct reader *reader, const struct keys *keys, const struct node *map, char *base)
{
    if (map->kind != NODE_MAP) {
        REFUSE(reader, map->at, "must be a map of keys (key: value)");
        return;
    }
    int type = type_of(keys, map);
    for (const struct node *child = map->children; child; child = child->next) {
        const struct key *key = find_key(keys, type, child->key);
        size_t end = path_enter(reader, child->key);
        if (key) {
            read_value(reader, key, child, base);
        } else {
            refuse_key(reader, keys, type, child);
        }
        path_leave(reader, end);
    }
    for (int i = 0; i < keys->n; i++) {
        const struct key *key = &keys->at[i];
        bool wanted = type >= 0 || !keys->types || key->types == 0;
        if (wanted && key_has_type(key, type) && !node_find(map, key->name)) {
            read_absent(reader, key, map, base);
        }
    }
}

void read_map(const struct keys *keys, const struct node *map, void *base, struct config_errors *errors)
{
    struct reader reader = {.errors = errors};
    read_fields(&reader, keys, map, base);
}
