/* SPDX-License-Identifier: MIT */
/* A token to its row of values: the input is one value, the token's number. What is no number of a token counts as 0.
 * Spec: vocabulary, width; tensor <name>.weight (vocabulary, width). A linear layer of the same name, width in and
 * vocabulary out, is the tied head. */
#include <stdlib.h>
#include <string.h>

#include "model/layer.h"
#include "model/layers.h"
#include "model/refuse.h"
#include "model/weights.h"

static int embedding_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    struct embedding *self = layer->self = calloc(1, sizeof *self);
    if (!self) {
        return refuse_memory(err);
    }
    self->vocabulary = layer->out = SPEC_REQUIRED;
    if (spec_int(spec, "vocabulary", 1, 1 << 20, &self->vocabulary, err) ||
        spec_int(spec, "width", 1, 1 << 14, &layer->out, err) || layer_expect_width(spec, chain, 1, err)) {
        return -1;
    }
    self->weight =
        weights_floats(chain->weights, layer->name, "weight", 2, (int64_t[]){self->vocabulary, layer->out}, err);
    if (!self->weight) {
        return -1;
    }
    layer->in = 1;
    chain->width = layer->out;
    layer->parameters = (long)self->vocabulary * layer->out;
    layer->bytes = (size_t)layer->parameters * sizeof(float);
    return 0;
}

static void embedding_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    const struct embedding *self = layer->self;
    size_t width = (size_t)layer->out;
    for (size_t row = 0; row < (size_t)block->rows; row++) {
        size_t token = x[row] >= 0 && x[row] < (float)self->vocabulary ? (size_t)x[row] : 0;
        memcpy(y + row * width, self->weight + token * width, width * sizeof *y);
    }
}

static void embedding_close(struct layer *layer)
{
    struct embedding *self = layer->self;
    if (self) {
        free(self->weight);
        free(self);
    }
}

const struct layer_ops layer_embedding = {
    .type = "embedding", .named = true, .open = embedding_open, .run = embedding_run, .close = embedding_close};
