/* SPDX-License-Identifier: MIT */
/* RMSNorm over a row, eps 1e-5 (mamba_ssm's). Spec: width; tensor <name>.weight (width). */
#include <stdlib.h>

#include "model/layer.h"
#include "model/refuse.h"
#include "model/weights.h"

static int norm_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    int width = SPEC_REQUIRED;
    if (spec_int(spec, "width", 1, 1 << 20, &width, err) || layer_expect_width(spec, chain, width, err)) {
        return -1;
    }
    if (weights_has(chain->weights, layer->name, "bias")) {
        return refuse(err, 65, "%s: has a bias, so it is a LayerNorm; only RMSNorm is built", spec.where);
    }
    layer->in = layer->out = width;
    layer->parameters = width;
    layer->macs = 2.0 * width;
    layer->bytes = (size_t)width * sizeof(float);
    layer->self = weights_floats(chain->weights, layer->name, "weight", 1, (int64_t[]){width}, err);
    return layer->self ? 0 : -1;
}

static void norm_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    block->kernels->rms_norm(x, layer->self, 1e-5f, y, block->rows, layer->in);
}

static void norm_close(struct layer *layer)
{
    free(layer->self);
}

const struct layer_ops layer_norm = {
    .type = "norm", .named = true, .open = norm_open, .run = norm_run, .close = norm_close};
