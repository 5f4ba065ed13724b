/* SPDX-License-Identifier: MIT */
#include "config/document.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { BYTES = 1 << 20, DEPTH = 32, EVENTS = 100000, ENTRIES = CONFIG_PIPELINES + 64 };

struct builder {
    yaml_parser_t parser;
    struct place origin; /* line 0: everything stands in this override */
    struct config_errors *errors;
    const char *text;
    int events, depth;
};

static struct place place_of(const struct builder *builder, yaml_mark_t mark)
{
    struct place at = builder->origin;
    if (at.line > 0) {
        at.line = (int)mark.line + 1;
        at.column = (int)mark.column + 1;
    }
    return at;
}

/* An error of the reader (not UTF-8) has an offset instead of a mark. */
static yaml_mark_t mark_of_offset(const char *text, size_t offset)
{
    yaml_mark_t mark = {0};
    for (size_t i = 0; i < offset; i++) {
        mark.column++;
        if (text[i] == '\n') {
            mark.line++;
            mark.column = 0;
        }
    }
    return mark;
}

static void refuse_syntax(struct builder *builder)
{
    const yaml_parser_t *parser = &builder->parser;
    bool reader = parser->error == YAML_READER_ERROR;
    yaml_mark_t mark = reader ? mark_of_offset(builder->text, parser->problem_offset) : parser->problem_mark;
    const char *problem = parser->problem ? parser->problem : "out of memory";
    errors_add(builder->errors, place_of(builder, mark), "", reader ? "not UTF-8 text: %s" : "not YAML: %s", problem);
}

static const char *forbidden(const yaml_event_t *event)
{
    const yaml_char_t *anchor = NULL, *tag = NULL;
    switch (event->type) {
    case YAML_ALIAS_EVENT:
        return "aliases (*name) are not allowed here; write the value out";
    case YAML_SCALAR_EVENT:
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
        break;
    default:
        break;
    }
    return anchor ? "anchors (&name) are not allowed here; write the value out"
           : tag  ? "tags (!name) are not allowed here; the key says the type"
                  : NULL;
}

/* The next event, within the limits. On true it's the caller's to delete. */
static bool next_event(struct builder *builder, yaml_event_t *event)
{
    if (!yaml_parser_parse(&builder->parser, event)) {
        refuse_syntax(builder);
        return false;
    }
    const char *why = forbidden(event);
    if (!why && ++builder->events > EVENTS) {
        why = "the file is too long: more than 100000 YAML events";
    }
    if (why) {
        errors_add(builder->errors, place_of(builder, event->start_mark), "", "%s", why);
        yaml_event_delete(event);
        return false;
    }
    return true;
}

static struct node *create_node(enum node_kind kind, struct place at)
{
    struct node *node = calloc(1, sizeof *node);
    if (node) {
        node->kind = kind;
        node->at = node->key_at = at;
    }
    return node;
}

void document_destroy(struct node *node)
{
    if (node) {
        for (struct node *child = node->children, *next; child; child = next) {
            next = child->next;
            document_destroy(child);
        }
        free(node->key);
        free(node->text);
        free(node);
    }
}

/* FNV-1a: thousands of keys are compared with each other when looking for twins. */
static unsigned hash_of(const char *key)
{
    unsigned hash = 2166136261u;
    for (; *key; key++) {
        hash = (hash ^ (unsigned char)*key) * 16777619u;
    }
    return hash;
}

/* Takes key. */
static void name_node(struct node *node, char *key)
{
    node->key = key;
    node->hash = hash_of(key);
}

struct node *node_find(const struct node *map, const char *key)
{
    unsigned hash = hash_of(key);
    for (struct node *child = map && map->kind == NODE_MAP ? map->children : NULL; child; child = child->next) {
        if (child->hash == hash && strcmp(child->key, key) == 0) {
            return child;
        }
    }
    return NULL;
}

static void append(struct node *parent, struct node *child)
{
    if (parent->last) {
        parent->last->next = child;
    } else {
        parent->children = child;
    }
    parent->last = child;
    parent->n++;
}

static struct node *build_scalar(struct builder *builder, const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    struct place at = place_of(builder, event->start_mark);
    if (strlen(text) != event->data.scalar.length) {
        errors_add(builder->errors, at, "", "text must not hold a zero byte (\\0)");
        return NULL;
    }
    struct node *node = create_node(NODE_SCALAR, at);
    if (node) {
        node->text = strdup(text);
        node->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    }
    if (node && !node->text) {
        document_destroy(node);
        return NULL;
    }
    return node;
}

static struct node *build(struct builder *builder, yaml_event_t *event);

/* One entry of a map: the key's event is `event`, the value's comes next. */
static bool build_entry(struct builder *builder, struct node *map, yaml_event_t *event)
{
    struct place at = place_of(builder, event->start_mark);
    if (event->type != YAML_SCALAR_EVENT) {
        errors_add(builder->errors, at, "", "a key must be a word");
        return false;
    }
    const char *name = (const char *)event->data.scalar.value;
    struct node *twin = node_find(map, name);
    if (twin) {
        errors_add(builder->errors, at, "", "the key %.64s stands here twice; the first is on line %d", name,
                   twin->key_at.line);
        return false;
    }
    char *key = strlen(name) == event->data.scalar.length ? strdup(name) : NULL;
    yaml_event_t value;
    if (!key || !next_event(builder, &value)) {
        free(key);
        return false;
    }
    struct node *child = build(builder, &value);
    yaml_event_delete(&value);
    if (!child) {
        free(key);
        return false;
    }
    name_node(child, key);
    child->key_at = at;
    append(map, child);
    return true;
}

static bool build_item(struct builder *builder, struct node *list, yaml_event_t *event)
{
    struct node *child = build(builder, event);
    if (child) {
        append(list, child);
    }
    return child != NULL;
}

static bool build_children(struct builder *builder, struct node *parent)
{
    yaml_event_type_t end = parent->kind == NODE_MAP ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT;
    for (;;) {
        yaml_event_t event;
        if (!next_event(builder, &event)) {
            return false;
        }
        bool ended = event.type == end, fine = !ended && parent->n < ENTRIES;
        if (!ended && !fine) {
            errors_add(builder->errors, place_of(builder, event.start_mark), "", "more than %d entries", ENTRIES);
        }
        fine = fine && (parent->kind == NODE_MAP ? build_entry : build_item)(builder, parent, &event);
        yaml_event_delete(&event);
        if (!fine) {
            return ended;
        }
    }
}

/* The node that begins with `event`; NULL with an error added. */
static struct node *build(struct builder *builder, yaml_event_t *event)
{
    if (event->type == YAML_SCALAR_EVENT) {
        return build_scalar(builder, event);
    }
    struct place at = place_of(builder, event->start_mark);
    if (builder->depth == DEPTH) {
        errors_add(builder->errors, at, "", "nested deeper than %d levels", DEPTH);
        return NULL;
    }
    struct node *node = create_node(event->type == YAML_MAPPING_START_EVENT ? NODE_MAP : NODE_LIST, at);
    builder->depth++;
    if (node && !build_children(builder, node)) {
        document_destroy(node);
        node = NULL;
    }
    builder->depth--;
    return node;
}

/* Skip to the first event inside the document: of the value, or the stream's end when there is none. */
static bool first_event(struct builder *builder, yaml_event_t *event)
{
    for (;;) {
        if (!next_event(builder, event)) {
            return false;
        }
        if (event->type != YAML_STREAM_START_EVENT && event->type != YAML_DOCUMENT_START_EVENT) {
            return true;
        }
        yaml_event_delete(event);
    }
}

/* Nothing but the end may follow. */
static bool is_last_document(struct builder *builder)
{
    for (;;) {
        yaml_event_t event;
        if (!next_event(builder, &event)) {
            return false;
        }
        yaml_event_type_t type = event.type;
        struct place at = place_of(builder, event.start_mark);
        yaml_event_delete(&event);
        if (type == YAML_STREAM_END_EVENT) {
            return true;
        }
        if (type == YAML_DOCUMENT_START_EVENT) {
            errors_add(builder->errors, at, "", "a second document begins here; the file must hold one");
            return false;
        }
    }
}

static struct node *parse_value(const char *text, size_t size, struct place origin, struct config_errors *errors)
{
    struct builder builder = {.origin = origin, .errors = errors, .text = text};
    if (!yaml_parser_initialize(&builder.parser)) {
        errors_add(errors, origin, "", "out of memory");
        return NULL;
    }
    yaml_parser_set_encoding(&builder.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&builder.parser, (const unsigned char *)text, size);
    struct node *node = NULL;
    yaml_event_t event;
    if (first_event(&builder, &event)) {
        if (event.type == YAML_STREAM_END_EVENT) {
            node = create_node(NODE_MAP, origin);
        } else {
            node = build(&builder, &event);
            if (node && !is_last_document(&builder)) {
                document_destroy(node);
                node = NULL;
            }
        }
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&builder.parser);
    return node;
}

struct node *document_parse(const char *text, size_t size, const char *name, struct config_errors *errors)
{
    struct place start = {.file = name, .line = 1, .column = 1};
    if (size > BYTES) {
        errors_add(errors, start, "", "larger than 1 MiB");
        return NULL;
    }
    struct node *root = parse_value(text, size, start, errors);
    if (root && root->kind != NODE_MAP) {
        errors_add(errors, root->at, "", "the file must be a map of keys, beginning with \"version: 1\"");
        document_destroy(root);
        return NULL;
    }
    return root;
}

/* The child of a map or a list named by n bytes of a path; made when it's missing, as a map. */
static struct node *step_into(struct node *parent, const char *name, size_t n, struct place at)
{
    char *key = strndup(name, n);
    struct node *child = NULL;
    if (key && parent->kind == NODE_MAP) {
        child = node_find(parent, key);
        if (!child && (child = create_node(NODE_MAP, at))) {
            name_node(child, key);
            append(parent, child);
            return child;
        }
    } else if (key && parent->kind == NODE_LIST && n > 0 && strspn(key, "0123456789") == n) {
        long index = strtol(key, NULL, 10);
        child = index <= parent->n ? parent->children : NULL;
        for (long i = 0; i < index && child; i++) {
            child = child->next;
        }
        if (!child && index == parent->n && (child = create_node(NODE_MAP, at))) {
            append(parent, child);
        }
    }
    free(key);
    return child;
}

/* Make `target` be `value`, keeping its key and its place among its siblings. Takes value. */
static void replace(struct node *target, struct node *value)
{
    struct node old = *target;
    *target = *value;
    target->key = old.key;
    target->hash = old.hash;
    target->key_at = value->at;
    target->next = old.next;
    *value = old;
    value->key = NULL;
    value->next = NULL;
    document_destroy(value);
}

bool document_set(struct node *root, const char *override, struct config_errors *errors)
{
    struct place at = {.file = override};
    const char *equals = strchr(override, '=');
    if (!equals || equals == override || strlen(override) > BYTES) {
        errors_add(errors, at, "", "an override is written key.key=value");
        return false;
    }
    struct node *target = root;
    for (const char *name = override; target && name <= equals;) {
        size_t n = strcspn(name, ".=");
        target = step_into(target, name, n, at);
        name += n + 1;
    }
    if (!target) {
        errors_add(errors, at, "", "there is no such place in the file");
        return false;
    }
    struct node *value = equals[1] ? parse_value(equals + 1, strlen(equals + 1), at, errors) : NULL;
    if (!equals[1] && (value = create_node(NODE_SCALAR, at))) {
        value->text = strdup(""); /* "key=" means no text, not YAML's null */
    }
    if (!value || (value->kind == NODE_SCALAR && !value->text)) {
        document_destroy(value);
        return false;
    }
    replace(target, value);
    return true;
}
