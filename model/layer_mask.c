/* SPDX-License-Identifier: MIT */
/* A gain for every bin: Y(f) = m(f) X(f). Spec: sigmoid (false): m = 1 / (1 + exp(-x)). Input a row: (bins); output
 * (re|im, bins). */
#include "model/layer.h"
#include "model/layers.h"
#include "model/refuse.h"

static int mask_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    static const struct mask plain = {false}, squashed = {true};
    bool sigmoid = false;
    if (spec_bool(spec, "sigmoid", &sigmoid, err)) {
        return -1;
    }
    if (!chain->bins) {
        return refuse(err, 65, "%s: needs an stft before it", spec.where);
    }
    if (layer_expect_width(spec, chain, chain->bins, err)) {
        return -1;
    }
    layer->self = (void *)(sigmoid ? &squashed : &plain);
    layer->in = chain->bins;
    layer->out = chain->width = 2 * chain->bins;
    layer->macs = layer->out;
    return 0;
}

static void mask_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    const struct mask *self = layer->self;
    int bins = layer->in;
    for (int row = 0; row < block->rows; row++, x += bins, y += 2 * bins) {
        const float *spectrum = block->spectrum + (size_t)row * 2 * (size_t)bins, *gain = x;
        if (self->sigmoid) {
            block->kernels->sigmoid(x, y, (size_t)bins);
            gain = y;
        }
        for (int f = 0; f < bins; f++) {
            float m = gain[f];
            y[f] = m * spectrum[f];
            y[bins + f] = m * spectrum[bins + f];
        }
    }
}

const struct layer_ops layer_mask = {.type = "mask", .open = mask_open, .run = mask_run};
