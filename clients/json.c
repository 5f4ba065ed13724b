/* SPDX-License-Identifier: MIT */
#include "clients/json.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The bytes of the UTF-8 character at text, 0 if it is none. */
static size_t utf8_length(const unsigned char *text, size_t left)
{
    size_t n = text[0] < 0x80 ? 1 : text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : text[0] >= 0xc2 ? 2 : 0;
    if (n == 0 || n > left || text[0] > 0xf4) {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return n;
}

static void print_quoted(FILE *file, const char *text, size_t size)
{
    fputc('"', file);
    for (size_t i = 0; i < size;) {
        const unsigned char *at = (const unsigned char *)text + i;
        size_t n = utf8_length(at, size - i);
        if (n == 0) {
            fputs("\\ufffd", file);
            n = 1;
        } else if (*at == '"' || *at == '\\') {
            fprintf(file, "\\%c", *at);
        } else if (*at < 0x20) {
            fprintf(file, "\\u%04x", *at);
        } else {
            fwrite(at, 1, n, file);
        }
        i += n;
    }
    fputc('"', file);
}

static void begin(struct json *json, const char *key)
{
    if (json->comma) {
        fputs(", ", json->file);
    }
    if (key != NULL) {
        print_quoted(json->file, key, strlen(key));
        fputs(": ", json->file);
    }
    json->comma = true;
}

void json_open(struct json *json, const char *key, char bracket)
{
    begin(json, key);
    fputc(bracket, json->file);
    json->comma = false;
}

void json_close(struct json *json, char bracket)
{
    fputc(bracket, json->file);
    json->comma = true;
}

void json_text_n(struct json *json, const char *key, const char *text, size_t size)
{
    begin(json, key);
    print_quoted(json->file, text, size);
}

void json_text(struct json *json, const char *key, const char *text)
{
    json_text_n(json, key, text, strlen(text));
}

void json_number(struct json *json, const char *key, double value)
{
    if (!isfinite(value)) {
        json_null(json, key);
        return;
    }
    begin(json, key);
    fprintf(json->file, "%.9g", value);
}

void json_integer(struct json *json, const char *key, long long value)
{
    begin(json, key);
    fprintf(json->file, "%lld", value);
}

void json_flag(struct json *json, const char *key, bool value)
{
    begin(json, key);
    fputs(value ? "true" : "false", json->file);
}

void json_null(struct json *json, const char *key)
{
    begin(json, key);
    fputs("null", json->file);
}

FILE *json_raw(struct json *json, const char *key)
{
    begin(json, key);
    return json->file;
}
