/* SPDX-License-Identifier: MIT */
#ifndef CONFIG_KEYS_H
#define CONFIG_KEYS_H

/* The one table: every key a configuration may hold. It drives reading, `ssm check`, the schema and the messages; a new
 * key is a new row in keys.c and a field in config.h. */

#include <stdbool.h>
#include <stddef.h>

enum key_kind {
    KEY_TEXT,    /* char[]                                             */
    KEY_BOOL,    /* bool                                               */
    KEY_INT,     /* int                                                */
    KEY_REAL,    /* double                                             */
    KEY_SECONDS, /* double, from "20ms", "1.5s", "2min", "1h"          */
    KEY_WORD,    /* an enum's value: one of `words`                    */
    KEY_TEXTS,   /* char[], from one text or a list of them: "a,b"     */
    KEY_INTS,    /* int[] and a count                                  */
    KEY_MAP,     /* a struct, by `items`                               */
    KEY_LIST,    /* struct[] and a count, by `items`                   */
    KEY_NAMED,   /* a map of the user's names: struct * and a count; each struct begins with its name, char[64] */
};

struct keys;

struct key {
    const char *name, *about;
    enum key_kind kind;
    size_t offset, size; /* of the field, in bytes */
    size_t count_offset; /* INTS, LIST, NAMED: of the int that counts */
    size_t item_size;    /* LIST, NAMED: of one struct */
    double least, most;  /* INT, REAL, INTS: of a value; SECONDS: of seconds; TEXTS, LIST, NAMED: of entries */
    int types;           /* bits of the types that have this key; 0: all */
    bool required;
    const char *standard;                   /* the default, as it would stand in the file; NULL: none, the field is 0 */
    const char *const *words;               /* WORD: its values in the enum's order, NULL at the end */
    const char *pattern;                    /* TEXT, TEXTS: for the schema; `check` is the judge */
    const char *(*check)(const char *text); /* TEXT, TEXTS, NAMED's names: what is wrong with it, or NULL */
    const struct keys *items;               /* MAP, LIST, NAMED */
};

/* The keys of one kind of map. Where `types` is set, its key `type` is one of these and picks the other keys. */
struct keys {
    const char *what; /* "source" */
    const char *const *types;
    const struct key *at;
    int n;
};

extern const struct keys config_keys;

/* True if maps of type `type` have this key; type -1: not known, any may be. */
static inline bool key_has_type(const struct key *key, int type)
{
    return type < 0 || key->types == 0 || (key->types >> type & 1);
}

#endif
