/* SPDX-License-Identifier: MIT */
/* y = exp(x) / sum exp(x) over a row: scores that exclude each other, 1 in all. */
#include <math.h>

#include "model/layer.h"

static int softmax_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    (void)spec, (void)err;
    layer->in = layer->out = chain->width;
    layer->macs = 2.0 * layer->in;
    return 0;
}

/* The largest goes out first, so that nothing overflows and its own exponential is 1. */
static void softmax_row(const struct kernels *kernels, const float *x, float *y, int width)
{
    float most = x[0], sum = 0;
    for (int i = 1; i < width; i++) {
        most = fmaxf(most, x[i]);
    }
    for (int i = 0; i < width; i++) {
        y[i] = x[i] - most;
    }
    kernels->exp(y, y, (size_t)width);
    for (int i = 0; i < width; i++) {
        sum += y[i];
    }
    for (int i = 0; i < width; i++) {
        y[i] /= sum;
    }
}

static void softmax_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    for (int row = 0; row < block->rows; row++, x += layer->in, y += layer->in) {
        softmax_row(block->kernels, x, y, layer->in);
    }
}

const struct layer_ops layer_softmax = {.type = "softmax", .open = softmax_open, .run = softmax_run};
