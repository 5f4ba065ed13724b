/* SPDX-License-Identifier: MIT */
/* Samples to spectral features, one hop a row. Spec: window, hop, compress (1).
 *
 * X is the spectrum of the window that ends with the hop (dsp/stft.h). Features with compress = c < 1 are, bin by bin,
 * |X|^c, then re |X|^(c-1), then im |X|^(c-1), with |X| = sqrt(re^2 + im^2 + 1e-12): 3 bins values. With c = 1 they are
 * re, then im. X itself goes beside the rows, for filter and mask. State: the window - hop samples before the hop. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dsp/stft.h"
#include "model/layer.h"
#include "model/layers.h"
#include "model/refuse.h"

static int open_sizes(struct layer_chain *chain, struct spec spec, struct ssm_error *err)
{
    chain->window = chain->hop = SPEC_REQUIRED;
    if (spec_int(spec, "window", 4, 1 << 16, &chain->window, err) ||
        spec_int(spec, "hop", 1, 1 << 15, &chain->hop, err) || layer_expect_width(spec, chain, chain->hop, err)) {
        return -1;
    }
    if (chain->window % 2 || chain->window % chain->hop || chain->window == chain->hop) {
        return refuse(err, 65, "%s: window must be even and a multiple of hop, at least twice", spec.where);
    }
    chain->bins = chain->window / 2 + 1;
    return 0;
}

static int stft_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    double compress = 1;
    if (chain->bins) {
        return refuse(err, 65, "%s: a model can have only one stft", spec.where);
    }
    if (open_sizes(chain, spec, err) || spec_float(spec, "compress", 0.05, 1, &compress, err)) {
        return -1;
    }
    struct analysis *self = layer->self = calloc(1, sizeof *self);
    if (!self || !(self->stft = stft_create(chain->window, chain->hop))) {
        return refuse_memory(err);
    }
    self->bins = chain->bins;
    self->compress = (float)compress;
    layer->in = chain->hop;
    layer->out = chain->width = (self->compress < 1 ? 3 : 2) * chain->bins;
    layer->state = (size_t)(chain->window - chain->hop);
    layer->memory = chain->window / chain->hop - 1;
    layer->scratch_once = stft_scratch_floats(self->stft);
    layer->macs = chain->window * log2(chain->window);
    return 0;
}

static void compress(const struct analysis *self, const struct kernels *kernels, const float *spectrum, float *features)
{
    size_t bins = (size_t)self->bins;
    const float *re = spectrum, *im = spectrum + bins;
    float *magnitude = features, *gain = features + 2 * bins; /* the latter until im's place is needed */
    for (size_t f = 0; f < bins; f++) {
        magnitude[f] = re[f] * re[f] + im[f] * im[f] + 1e-12f;
    }
    kernels->power(magnitude, 0.5f * (self->compress - 1), gain, bins); /* of |X|^2 */
    kernels->power(magnitude, 0.5f * self->compress, magnitude, bins);
    for (size_t f = 0; f < bins; f++) {
        features[bins + f] = re[f] * gain[f];
        features[2 * bins + f] = im[f] * gain[f];
    }
}

static void stft_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    const struct analysis *self = layer->self;
    size_t width = 2 * (size_t)self->bins;
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        for (size_t row = (size_t)item->first; row < (size_t)(item->first + item->count); row++) {
            float *spectrum = block->new_spectrum + row * width, *features = y + row * (size_t)layer->out;
            stft_analyse(self->stft, item->state + layer->state_at, x + row * (size_t)layer->in, spectrum,
                         block->scratch);
            if (self->compress < 1) {
                compress(self, block->kernels, spectrum, features);
            } else {
                memcpy(features, spectrum, width * sizeof *features);
            }
        }
    }
}

static void stft_close(struct layer *layer)
{
    struct analysis *self = layer->self;
    if (self) {
        stft_destroy(self->stft);
        free(self);
    }
}

const struct layer_ops layer_stft = {.type = "stft", .open = stft_open, .run = stft_run, .close = stft_close};
