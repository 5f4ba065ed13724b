/* SPDX-License-Identifier: MIT */
/* Causal depthwise convolution over time. Spec: width, taps, silu (false); tensors <name>.weight (width, 1, taps),
 * optional <name>.bias (width). State: the last taps - 1 inputs, oldest first. */
#include <stdlib.h>

#include "model/layer.h"
#include "model/layers.h"
#include "model/refuse.h"
#include "model/weights.h"

static int load(struct conv *self, const struct layer *layer, const struct layer_chain *chain, struct ssm_error *err)
{
    int taps = self->taps, width = layer->in;
    float *weight = weights_floats(chain->weights, layer->name, "weight", 3, (int64_t[]){width, 1, taps}, err);
    if (!weight) {
        return -1;
    }
    self->weight = malloc((size_t)(taps * width) * sizeof(float));
    for (int i = 0; self->weight && i < taps * width; i++) {
        self->weight[i] = weight[i % width * taps + i / width];
    }
    free(weight);
    if (!self->weight) {
        return refuse_memory(err);
    }
    if (weights_has(chain->weights, layer->name, "bias")) {
        self->bias = weights_floats(chain->weights, layer->name, "bias", 1, (int64_t[]){width}, err);
        return self->bias ? 0 : -1;
    }
    return 0;
}

static int conv_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    int width = SPEC_REQUIRED;
    struct conv *self = layer->self = calloc(1, sizeof *self);
    if (!self) {
        return refuse_memory(err);
    }
    self->taps = SPEC_REQUIRED;
    if (spec_int(spec, "width", 1, 1 << 20, &width, err) || spec_int(spec, "taps", 1, 64, &self->taps, err) ||
        spec_bool(spec, "silu", &self->silu, err) || layer_expect_width(spec, chain, width, err)) {
        return -1;
    }
    layer->in = layer->out = width;
    layer->memory = self->taps - 1;
    layer->state = (size_t)(self->taps - 1) * (size_t)width;
    if (load(self, layer, chain, err)) {
        return -1;
    }
    layer->parameters = (long)width * (self->taps + (self->bias ? 1 : 0));
    layer->macs = (double)width * self->taps;
    layer->bytes = (size_t)layer->parameters * sizeof(float);
    return 0;
}

static void conv_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    const struct conv *self = layer->self;
    int width = layer->in;
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        size_t at = (size_t)item->first * (size_t)width;
        block->kernels->conv1d(self->weight, self->bias, self->taps, item->state + layer->state_at, x + at, width,
                               y + at, width, item->count, width, self->silu);
    }
}

static void conv_close(struct layer *layer)
{
    struct conv *self = layer->self;
    if (self) {
        free(self->weight);
        free(self->bias);
        free(self);
    }
}

const struct layer_ops layer_conv = {
    .type = "conv", .named = true, .open = conv_open, .run = conv_run, .close = conv_close};
