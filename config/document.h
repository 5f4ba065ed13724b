/* SPDX-License-Identifier: MIT */
#ifndef CONFIG_DOCUMENT_H
#define CONFIG_DOCUMENT_H

/* YAML -> a small bounded tree that remembers where everything stood. The only file that knows libyaml.
 *
 * Refused, each with its place: more than 1 MiB, 32 levels, 100,000 events or 4,160 entries of one map or list;
 * anchors, aliases and tags; a key twice; text that isn't UTF-8; a second document. */

#include "config/errors.h"

enum node_kind { NODE_SCALAR, NODE_MAP, NODE_LIST };

struct node {
    enum node_kind kind;
    struct place at;     /* of the value */
    struct place key_at; /* of the key; in a list that of the value */
    unsigned hash;       /* of the key */
    char *key;           /* in a map; else NULL */
    char *text;          /* of a scalar */
    bool plain;          /* a scalar without quotes */
    int n;               /* children */
    struct node *children, *last, *next;
};

/* Gives the root, always a map, or NULL with an error added. `name` must outlive it. */
struct node *document_parse(const char *text, size_t size, const char *name, struct config_errors *errors);

/* Put in "a.b.0.c=value", value in YAML, as if it had stood there: replaces, or makes what is missing; a list grows by
 * its next index. False with an error added. `override` must outlive the tree. */
bool document_set(struct node *root, const char *override, struct config_errors *errors);

void document_destroy(struct node *node); /* NULL is fine */

struct node *node_find(const struct node *map, const char *key); /* NULL: not there, or no map */

#endif
