/* SPDX-License-Identifier: MIT */
#include "model/layer.h"

#include <string.h>

#include "model/refuse.h"

static const struct layer_ops *const table[] = {
    &layer_stft,   &layer_istft, &layer_filter,  &layer_mask,    &layer_linear, &layer_norm,
    &layer_conv,   &layer_mamba, &layer_sigmoid, &layer_softmax, &layer_scale,  &layer_embedding,
    &layer_pool,   &layer_s4d,
};

const struct layer_ops *layer_at(int i)
{
    return i >= 0 && (size_t)i < sizeof table / sizeof *table ? table[i] : NULL;
}

const struct layer_ops *layer_find(const char *type)
{
    for (int i = 0; layer_at(i); i++) {
        if (!strcmp(layer_at(i)->type, type)) {
            return layer_at(i);
        }
    }
    return NULL;
}

int layer_expect_width(struct spec spec, const struct layer_chain *chain, int width, struct ssm_error *err)
{
    if (chain->width == width) {
        return 0;
    }
    return refuse(err, 65, "%s: takes %d values a hop, but the layer before gives %d", spec.where, width, chain->width);
}

void layer_share_channels(const struct layer_segments *segments, int width, int *from, int *to)
{
    int lines = (width + 15) / 16; /* of the caches, in every row */
    *from = lines * segments->member / segments->members * 16;
    *to = lines * (segments->member + 1) / segments->members * 16;
    *to = *to < width ? *to : width;
}

/* The states start in the first member's item and end in the last one's. */
static void run_shared(const struct layer *layer, const struct layer_block *block, const float *x, float *y,
                       void (*run)(const struct layer *, const struct layer_channels *))
{
    const struct layer_segments *segments = block->segments;
    size_t before = (size_t)segments->member * (size_t)block->rows, width = (size_t)layer->in;
    const float *start = segments->blocks[0]->items[0].state + layer->state_at;
    float *state = segments->blocks[segments->members - 1]->items[0].state + layer->state_at;
    int from, to;
    layer_share_channels(segments, layer->in, &from, &to);
    if (from >= to) {
        return;
    }
    for (size_t at = (size_t)from; start != state && at < layer->state; at += width) {
        memcpy(state + at, start + at, (size_t)(to - from) * sizeof *state);
    }
    struct layer_channels all = {block->kernels, segments->members * block->rows, layer->in, from, to,
                                 block->elapsed - before, x - before * width, y - before * width, state, block->scratch};
    run(layer, &all);
}

void layer_run_channels(const struct layer *layer, const struct layer_block *block, const float *x, float *y,
                        void (*run)(const struct layer *, const struct layer_channels *))
{
    if (block->segments) {
        team_barrier(block->segments->team); /* everybody's start states are there */
        run_shared(layer, block, x, y, run);
        team_barrier(block->segments->team);
        return;
    }
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        size_t at = (size_t)item->first * (size_t)layer->in;
        struct layer_channels all = {block->kernels, item->count, layer->in, 0, layer->in, block->elapsed + item->first,
                                     x + at, y + at, item->state + layer->state_at, block->scratch};
        run(layer, &all);
    }
}
