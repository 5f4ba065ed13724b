/* SPDX-License-Identifier: MIT */
/* y = W x + b. Spec: in, out; tensors <name>.weight (out, in), optional <name>.bias (out). */
#include <stdlib.h>

#include "model/layer.h"
#include "model/refuse.h"
#include "model/weights.h"

static int linear_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    layer->in = layer->out = SPEC_REQUIRED;
    struct linear *self = layer->self = calloc(1, sizeof *self);
    if (!self) {
        return refuse_memory(err);
    }
    if (spec_int(spec, "in", 1, 1 << 20, &layer->in, err) || spec_int(spec, "out", 1, 1 << 20, &layer->out, err) ||
        layer_expect_width(spec, chain, layer->in, err) ||
        weights_linear(chain->weights, layer->name, NULL, layer->in, layer->out, true, self, err)) {
        return -1;
    }
    layer->parameters = weights_linear_parameters(self);
    layer->macs = (double)layer->in * layer->out;
    layer->bytes = weights_linear_bytes(self);
    chain->width = layer->out;
    return 0;
}

static void linear_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    block->kernels->linear(layer->self, x, layer->in, y, layer->out, block->rows);
}

static void linear_close(struct layer *layer)
{
    if (layer->self) {
        linear_finish(layer->self);
        free(layer->self);
    }
}

const struct layer_ops layer_linear = {
    .type = "linear", .named = true, .open = linear_open, .run = linear_run, .close = linear_close};
