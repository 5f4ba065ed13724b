/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_JSON_H
#define CLIENTS_JSON_H

/* JSON written value by value, for --json. Inside an object every value has a key; inside an array, and for the outermost
 * value, key is NULL. Text is escaped; bytes that aren't UTF-8 come out as U+FFFD; NaN and inf come out as null.
 * No name here is one of jansson's, which libssm uses. */

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct json {
    FILE *file;
    bool comma; /* a value stands before the next one */
};

void json_open(struct json *json, const char *key, char bracket); /* '{' or '[' */
void json_close(struct json *json, char bracket);                 /* '}' or ']' */
void json_text(struct json *json, const char *key, const char *text);
void json_text_n(struct json *json, const char *key, const char *text, size_t size);
void json_number(struct json *json, const char *key, double value);
void json_whole(struct json *json, const char *key, long long value);
void json_flag(struct json *json, const char *key, bool value);
void json_nothing(struct json *json, const char *key);
/* Begin a value that the caller then prints itself, as JSON, to what this gives. */
FILE *json_raw(struct json *json, const char *key);

#endif
