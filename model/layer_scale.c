/* SPDX-License-Identifier: MIT */
/* y = (x - mean) / std: brings sensors in their own units to the size a model was trained with. Spec: mean, std, lists
 * of numbers of one length that divides the width: one a channel, or one a value of the hop. */
#include <stdlib.h>

#include "model/layer.h"
#include "model/layers.h"
#include "model/refuse.h"

enum { NUMBERS_MAX = 4096 };

/* std's range keeps 1 / std a float. */
static int read_lists(struct spec spec, int width, float *mean, float *std, int *n, struct ssm_error *err)
{
    int means = 0, stds = 0, most = width < NUMBERS_MAX ? width : NUMBERS_MAX;
    if (spec_floats(spec, "mean", -1e30, 1e30, mean, most, &means, err) ||
        spec_floats(spec, "std", 1e-30, 1e30, std, most, &stds, err)) {
        return -1;
    }
    if (!means || means != stds || width % means) {
        return refuse(err, 65, "%s: \"mean\" and \"std\" must be lists as long as each other whose length divides %d, not %d "
                               "and %d numbers", spec.where, width, means, stds);
    }
    *n = means;
    return 0;
}

static int scale_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    int n = 1, width = chain->width;
    float mean[NUMBERS_MAX], std[NUMBERS_MAX];
    struct scale *self = layer->self = calloc(1, sizeof *self);
    if (!self) {
        return refuse_memory(err);
    }
    layer->in = layer->out = width;
    if (read_lists(spec, width, mean, std, &n, err)) {
        return -1;
    }
    self->mean = malloc((size_t)width * sizeof *self->mean);
    self->factor = malloc((size_t)width * sizeof *self->factor);
    if (!self->mean || !self->factor) {
        return refuse_memory(err);
    }
    for (int i = 0; i < width; i++) {
        self->mean[i] = mean[i % n];
        self->factor[i] = 1 / std[i % n];
    }
    layer->macs = width;
    layer->bytes = 2 * (size_t)width * sizeof(float);
    return 0;
}

static void scale_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    const struct scale *self = layer->self;
    const float *restrict mean = self->mean, *restrict factor = self->factor;
    for (int row = 0; row < block->rows; row++, x += layer->in, y += layer->in) {
        for (int i = 0; i < layer->in; i++) {
            y[i] = (x[i] - mean[i]) * factor[i];
        }
    }
}

static void scale_close(struct layer *layer)
{
    struct scale *self = layer->self;
    if (self) {
        free(self->mean);
        free(self->factor);
        free(self);
    }
}

const struct layer_ops layer_scale = {.type = "scale", .open = scale_open, .run = scale_run, .close = scale_close};
