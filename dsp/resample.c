/* SPDX-License-Identifier: MIT */
#include "dsp/resample.h"

#include <assert.h>
#include <samplerate.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct resampler {
    SRC_STATE *state; /* NULL: equal rates */
    int from, to;
    double ratio; /* of samples out to samples in */
    double delay;
    uint64_t taken, given; /* samples since the start, the flush's zeros not among them */
};

static size_t convert(struct resampler *resampler, const float *in, size_t n_in, size_t *used, float *out, size_t n_out)
{
    SRC_DATA data = {.data_in = in, .data_out = out, .input_frames = (long)n_in, .output_frames = (long)n_out};
    data.src_ratio = resampler->ratio;
    int error = src_process(resampler->state, &data);
    assert(error == 0); /* only misuse has errors */
    (void)error;
    *used = (size_t)data.input_frames_used;
    return (size_t)data.output_frames_gen;
}

/* The filter's look-ahead is not in libsamplerate's interface: count the zeros it swallows before its first output. */
static double measure_delay(struct resampler *resampler)
{
    float zero = 0, out;
    size_t used, n = 0;
    while (convert(resampler, &zero, 1, &used, &out, 1) == 0) {
        n++;
    }
    src_reset(resampler->state);
    return (double)n * resampler->to / resampler->from;
}

struct resampler *resampler_create(int from, int to, enum resampler_grade grade)
{
    if (from < 1 || to < 1 || to / from > 256 || from / to > 256 || !src_is_valid_ratio((double)to / from)) {
        return NULL;
    }
    struct resampler *resampler = calloc(1, sizeof *resampler);
    if (!resampler) {
        return NULL;
    }
    *resampler = (struct resampler){.from = from, .to = to, .ratio = (double)to / from};
    if (from != to || grade == RESAMPLER_SLEWED) {
        int error;
        resampler->state = src_new(grade == RESAMPLER_BEST ? SRC_SINC_MEDIUM_QUALITY : SRC_SINC_FASTEST, 1, &error);
        if (!resampler->state) {
            free(resampler);
            return NULL;
        }
        resampler->delay = measure_delay(resampler);
    }
    return resampler;
}

void resampler_destroy(struct resampler *resampler)
{
    if (resampler) {
        if (resampler->state) {
            src_delete(resampler->state);
        }
        free(resampler);
    }
}

void resampler_slew(struct resampler *resampler, double ratio)
{
    resampler->ratio = ratio * resampler->to / resampler->from;
}

void resampler_reset(struct resampler *resampler)
{
    if (resampler->state) {
        src_reset(resampler->state);
    }
    resampler->taken = resampler->given = 0;
}

/* Zeros push the rest out. libsamplerate's own end_of_input isn't used: fed sample by sample, 0.2.2 drops the tail at
 * some ratios (48 kHz to 16 kHz lost 19 samples of 1600) and rounds the total either way at others. */
static size_t flush(struct resampler *resampler, float *out, size_t n_out)
{
    static const float zeros[256];
    uint64_t to = (uint64_t)resampler->to, from = (uint64_t)resampler->from;
    uint64_t rest = (resampler->taken * to + from - 1) / from - resampler->given;
    size_t wanted = rest < n_out ? (size_t)rest : n_out, n = 0, used;
    while (n < wanted) {
        n += convert(resampler, zeros, sizeof zeros / sizeof *zeros, &used, out + n, wanted - n);
    }
    return n;
}

size_t resampler_push(struct resampler *resampler, const float *in, size_t n_in, size_t *used, float *out, size_t n_out,
                      int last)
{
    if (!resampler->state) {
        size_t n = n_in < n_out ? n_in : n_out;
        if (n > 0) {
            memcpy(out, in, n * sizeof *out);
        }
        *used = n;
        return n;
    }
    *used = 0;
    size_t n = n_in > 0 && n_out > 0 ? convert(resampler, in, n_in, used, out, n_out) : 0;
    resampler->taken += *used;
    resampler->given += n;
    if (last && *used == n_in) {
        size_t more = flush(resampler, out + n, n_out - n);
        resampler->given += more;
        n += more;
    }
    return n;
}

double resampler_delay(const struct resampler *resampler)
{
    return resampler->delay;
}
