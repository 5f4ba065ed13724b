/* SPDX-License-Identifier: MIT */
/* A spectrum (re of all bins, then im) back to samples. Spec: window, hop, as the stft's. The output lags by window -
 * hop samples. State: what earlier windows still add to later hops. */
#include <math.h>
#include <stdlib.h>

#include "dsp/stft.h"
#include "model/layer.h"
#include "model/refuse.h"

static int istft_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    int window = SPEC_REQUIRED, hop = SPEC_REQUIRED;
    if (spec_int(spec, "window", 4, 1 << 16, &window, err) || spec_int(spec, "hop", 1, 1 << 15, &hop, err)) {
        return -1;
    }
    if (!chain->bins || window != chain->window || hop != chain->hop) {
        return refuse(err, 65, "%s: window and hop must be those of an stft before it (%d and %d)", spec.where,
                      chain->window, chain->hop);
    }
    if (layer_expect_width(spec, chain, 2 * chain->bins, err)) {
        return -1;
    }
    layer->self = stft_create(window, hop);
    layer->in = chain->width;
    layer->out = chain->width = hop;
    layer->state = (size_t)(window - hop);
    layer->memory = window / hop - 1;
    layer->delay = window - hop;
    layer->macs = window * log2(window);
    if (!layer->self) {
        return refuse_memory(err);
    }
    layer->scratch_once = stft_scratch_floats(layer->self);
    return 0;
}

static void istft_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        for (size_t row = (size_t)item->first; row < (size_t)(item->first + item->count); row++) {
            stft_synthesise(layer->self, item->state + layer->state_at, x + row * (size_t)layer->in,
                            y + row * (size_t)layer->out, block->scratch);
        }
    }
}

static void istft_close(struct layer *layer)
{
    stft_destroy(layer->self);
}

const struct layer_ops layer_istft = {.type = "istft", .open = istft_open, .run = istft_run, .close = istft_close};
