/* SPDX-License-Identifier: MIT */
/* y = 1 / (1 + exp(-x)), value by value: scores that don't exclude each other. */
#include "model/layer.h"

static int sigmoid_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    (void)spec, (void)err;
    layer->in = layer->out = chain->width;
    layer->macs = layer->in;
    return 0;
}

static void sigmoid_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    block->kernels->sigmoid(x, y, (size_t)block->rows * (size_t)layer->in);
}

const struct layer_ops layer_sigmoid = {.type = "sigmoid", .open = sigmoid_open, .run = sigmoid_run};
