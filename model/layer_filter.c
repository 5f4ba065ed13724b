/* SPDX-License-Identifier: MIT */
/* Deep filter: each bin of the output is a complex filter over that bin's last `taps` spectra,
 *   Y_t(f) = sum_k W_k(t, f) X_{t-k}(f)     (Mack & Habets 2019, arXiv 1904.08369).
 * Spec: taps. Input a row: W as (taps, re|im, bins); output Y as (re|im, bins). State: the last taps - 1 spectra,
 * oldest first. */
#include <string.h>

#include "model/layer.h"
#include "model/refuse.h"

static int filter_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    int taps = SPEC_REQUIRED;
    if (spec_int(spec, "taps", 1, 16, &taps, err)) {
        return -1;
    }
    if (!chain->bins) {
        return refuse(err, 65, "%s: needs an stft before it", spec.where);
    }
    if (layer_expect_width(spec, chain, 2 * taps * chain->bins, err)) {
        return -1;
    }
    layer->in = chain->width;
    layer->out = chain->width = 2 * chain->bins;
    layer->memory = taps - 1;
    layer->state = (size_t)(taps - 1) * (size_t)layer->out;
    layer->macs = 4.0 * taps * chain->bins;
    return 0;
}

/* y += w x over complex bins. */
static void multiply_add(const float *restrict w, const float *restrict x, float *restrict y, int bins)
{
    for (int f = 0; f < bins; f++) {
        y[f] += w[f] * x[f] - w[bins + f] * x[bins + f];
        y[bins + f] += w[f] * x[bins + f] + w[bins + f] * x[f];
    }
}

/* The last `past` of the spectra (history, then count new ones) become the history. */
static void move_on(float *history, const float *spectra, int past, int count, size_t width)
{
    int kept = past > count ? past - count : 0, fresh = past - kept;
    memmove(history, history + (size_t)(past - kept) * width, (size_t)kept * width * sizeof *history);
    memcpy(history + (size_t)kept * width, spectra + (size_t)(count - fresh) * width,
           (size_t)fresh * width * sizeof *history);
}

static void filter_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    size_t width = (size_t)layer->out;
    int past = layer->memory;
    memset(y, 0, (size_t)block->rows * width * sizeof *y);
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        const float *spectra = block->spectrum + (size_t)item->first * width;
        float *history = item->state + layer->state_at;
        for (int t = 0; t < item->count; t++) {
            const float *w = x + (size_t)(item->first + t) * (size_t)layer->in;
            for (int k = 0; k <= past; k++) {
                const float *then =
                    k <= t ? spectra + (size_t)(t - k) * width : history + (size_t)(past + t - k) * width;
                multiply_add(w + (size_t)k * width, then, y + (size_t)(item->first + t) * width, layer->out / 2);
            }
        }
        move_on(history, spectra, past, item->count, width);
    }
}

const struct layer_ops layer_filter = {.type = "filter", .open = filter_open, .run = filter_run};
