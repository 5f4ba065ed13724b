/* SPDX-License-Identifier: MIT */
#include "clients/json.h"

#include <math.h>
#include <string.h>

#include "daemon/wire.h"

static void begin(struct json *json, const char *key)
{
    if (json->comma) {
        fputs(", ", json->file);
    }
    if (key != NULL) {
        wire_json_text(json->file, key, strlen(key));
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
    wire_json_text(json->file, text, size);
}

void json_text(struct json *json, const char *key, const char *text)
{
    json_text_n(json, key, text, strlen(text));
}

void json_number(struct json *json, const char *key, double value)
{
    if (!isfinite(value)) {
        json_nothing(json, key);
        return;
    }
    begin(json, key);
    fprintf(json->file, "%.9g", value);
}

void json_whole(struct json *json, const char *key, long long value)
{
    begin(json, key);
    fprintf(json->file, "%lld", value);
}

void json_flag(struct json *json, const char *key, bool value)
{
    begin(json, key);
    fputs(value ? "true" : "false", json->file);
}

void json_nothing(struct json *json, const char *key)
{
    begin(json, key);
    fputs("null", json->file);
}

FILE *json_raw(struct json *json, const char *key)
{
    begin(json, key);
    return json->file;
}
