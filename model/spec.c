/* SPDX-License-Identifier: MIT */
#include "model/spec.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "model/refuse.h"

struct spec spec_parse(const char *text, const char *where, struct ssm_error *err)
{
    json_error_t place;
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, &place);
    if (!json_is_object(json)) {
        refuse(err, 65, "%s: ssm.config is not a JSON object: %.120s", where, json ? "" : place.text);
        json_decref(json);
        json = NULL;
    }
    return (struct spec){json, where};
}

void spec_free(struct spec root)
{
    json_decref((json_t *)root.json);
}

int spec_int(struct spec spec, const char *key, int min, int max, int *value, struct ssm_error *err)
{
    const json_t *json = json_object_get(spec.json, key);
    if (!json && *value != SPEC_REQUIRED) {
        return 0;
    }
    json_int_t number = json_integer_value(json);
    if (!json_is_integer(json) || number < min || number > max) {
        return refuse(err, 65, "%s: \"%s\" must be a whole number %d..%d", spec.where, key, min, max);
    }
    *value = (int)number;
    return 0;
}

int spec_float(struct spec spec, const char *key, double min, double max, double *value, struct ssm_error *err)
{
    const json_t *json = json_object_get(spec.json, key);
    if (!json) {
        return 0;
    }
    double number = json_number_value(json);
    if (!json_is_number(json) || !(number >= min && number <= max)) {
        return refuse(err, 65, "%s: \"%s\" must be a number %g..%g", spec.where, key, min, max);
    }
    *value = number;
    return 0;
}

int spec_floats(struct spec spec, const char *key, double min, double max, float *values, int most, int *n,
                struct ssm_error *err)
{
    const json_t *json = json_object_get(spec.json, key);
    size_t count = json_array_size(json), good = 0;
    if (!json) {
        return 0;
    }
    for (; good < count && count <= (size_t)most; good++) {
        const json_t *number = json_array_get(json, good);
        if (!json_is_number(number) || !(json_number_value(number) >= min && json_number_value(number) <= max)) {
            break;
        }
        values[good] = (float)json_number_value(number);
    }
    if (!count || good < count) {
        return refuse(err, 65, "%s: \"%s\" must be a list of 1..%d numbers %g..%g", spec.where, key, most, min, max);
    }
    *n = (int)count;
    return 0;
}

int spec_bool(struct spec spec, const char *key, bool *value, struct ssm_error *err)
{
    const json_t *json = json_object_get(spec.json, key);
    if (json && !json_is_boolean(json)) {
        return refuse(err, 65, "%s: \"%s\" must be true or false", spec.where, key);
    }
    *value = json ? json_is_true(json) : *value;
    return 0;
}

int spec_word(struct spec spec, const char *key, const char *const *words, int *value, struct ssm_error *err)
{
    const json_t *json = json_object_get(spec.json, key);
    if (!json && *value != SPEC_REQUIRED) {
        return 0;
    }
    char choice[160] = "";
    size_t at = 0;
    for (int i = 0; words[i]; i++) {
        if (json_is_string(json) && !strcmp(json_string_value(json), words[i])) {
            *value = i;
            return 0;
        }
        if (at < sizeof choice) {
            at += (size_t)snprintf(choice + at, sizeof choice - at, "%s%s", i ? ", " : "", words[i]);
        }
    }
    return refuse(err, 65, "%s: \"%s\" must be one of: %s", spec.where, key, choice);
}

const char *spec_text(struct spec spec, const char *key)
{
    return json_string_value(json_object_get(spec.json, key));
}

int spec_count(struct spec spec, const char *key)
{
    return (int)json_array_size(json_object_get(spec.json, key));
}

struct spec spec_at(struct spec spec, const char *key, int i)
{
    const json_t *json = json_array_get(json_object_get(spec.json, key), (size_t)i);
    return (struct spec){json_is_object(json) ? json : NULL, spec.where};
}

const char *spec_text_at(struct spec spec, const char *key, int i)
{
    return json_string_value(json_array_get(json_object_get(spec.json, key), (size_t)i));
}
