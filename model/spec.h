/* SPDX-License-Identifier: MIT */
#ifndef MODEL_SPEC_H
#define MODEL_SPEC_H

/* The model's configuration (`ssm.config` in a weights file): JSON read key by key, each with its range, so that what a
 * layer gets is a number it can use. The only file besides the safetensors reader that knows the JSON library. */

#include <limits.h>
#include <stdbool.h>

#include "model/ssm.h"

/* One object of the configuration; copied freely, borrowed from the root. */
struct spec {
    const void *json;
    const char *where; /* how errors name it: "denoise.safetensors: layer 3 (mamba)" */
};

/* Gives the root, or {NULL} and an error. `where` must outlive it. spec_free takes the root. */
struct spec spec_parse(const char *text, const char *where, struct ssm_error *err);
void spec_free(struct spec root);

/* The spec_* readers below leave the value as it is when the key is absent, so set the default before; a required
 * number starts as SPEC_REQUIRED. 0, or -1 and an error naming the key and its range. */
enum { SPEC_REQUIRED = INT_MIN };
int spec_int(struct spec spec, const char *key, int min, int max, int *value, struct ssm_error *err);
int spec_float(struct spec spec, const char *key, double min, double max, double *value, struct ssm_error *err);
int spec_bool(struct spec spec, const char *key, bool *value, struct ssm_error *err);
/* A list of 1..most numbers: how many it has in *n, which stays as it is when the key is absent. */
int spec_floats(struct spec spec, const char *key, double min, double max, float *values, int most, int *n,
                struct ssm_error *err);
/* The index of the word in `words` (NULL at the end). */
int spec_word(struct spec spec, const char *key, const char *const *words, int *value, struct ssm_error *err);

/* A string, or NULL when absent or something else. Borrowed from the root. */
const char *spec_text(struct spec spec, const char *key);
/* Elements of an array, and the i-th one when it is an object ({NULL} otherwise). */
int spec_count(struct spec spec, const char *key);
struct spec spec_at(struct spec spec, const char *key, int i);
/* The i-th string of an array, or NULL. */
const char *spec_text_at(struct spec spec, const char *key, int i);

#endif
