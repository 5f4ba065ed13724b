/* SPDX-License-Identifier: MIT */
/* The mean of what came in so far, each hop weighted by the time it stands for. Spec: kind, hops.
 *
 *   mean  over all of the stream: m <- m + elapsed / total (x - m), total <- total + elapsed; with hops, total stays at so
 *         many, which forgets as ema does once it is reached
 *   ema   m <- m + (1 - exp(-elapsed / hops)) (x - m), from m = 0
 *
 * The output is m. State: m (width), and for mean the total (width; each channel keeps it, so that it can be a thread of
 * its own). In floats a total stops growing at 2^24 hops: from there on it forgets too. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/layer.h"
#include "model/layers.h"
#include "model/refuse.h"

static int pool_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    static const char *const kinds[] = {[POOL_MEAN] = "mean", [POOL_EMA] = "ema", NULL};
    struct pool *self = layer->self = calloc(1, sizeof *self);
    if (!self) {
        return refuse_memory(err);
    }
    int kind = POOL_MEAN;
    double hops = 0;
    if (spec_word(spec, "kind", kinds, &kind, err) || spec_float(spec, "hops", 1e-3, 1e9, &hops, err)) {
        return -1;
    }
    if (kind == POOL_EMA && hops == 0) {
        return refuse(err, 65, "%s: \"hops\" must say after how many hops an ema forgets", spec.where);
    }
    self->kind = (enum pool_kind)kind;
    self->hops = hops > 0 ? (float)hops : INFINITY;
    layer->in = layer->out = chain->width;
    layer->state = (kind == POOL_MEAN ? 2 : 1) * (size_t)layer->in;
    layer->macs = layer->in;
    return 0;
}

static void run_mean(float most, float elapsed, int width, const float *restrict x, float *restrict mean,
                     float *restrict total)
{
    for (int i = 0; i < width; i++) {
        float next = total[i] + elapsed;
        total[i] = next < most ? next : most;
        float weight = elapsed / total[i];
        mean[i] += (weight < 1 ? weight : 1) * (x[i] - mean[i]);
    }
}

static void run_ema(float weight, int width, const float *restrict x, float *restrict mean)
{
    for (int i = 0; i < width; i++) {
        mean[i] += weight * (x[i] - mean[i]);
    }
}

static void run_channels(const struct layer *layer, const struct layer_channels *c)
{
    const struct pool *self = layer->self;
    int width = c->to - c->from;
    float *mean = c->state + c->from;
    for (int t = 0; t < c->T; t++) {
        size_t at = (size_t)t * (size_t)c->width + (size_t)c->from;
        if (self->kind == POOL_EMA) {
            run_ema(-expm1f(-c->elapsed[t] / self->hops), width, c->x + at, mean);
        } else {
            run_mean(self->hops, c->elapsed[t], width, c->x + at, mean, mean + c->width);
        }
        memcpy(c->y + at, mean, (size_t)width * sizeof *mean);
    }
}

static void pool_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    layer_run_channels(layer, block, x, y, run_channels);
}

static void pool_close(struct layer *layer)
{
    free(layer->self);
}

const struct layer_ops layer_pool = {.type = "pool", .open = pool_open, .run = pool_run, .close = pool_close};
