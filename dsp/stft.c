/* SPDX-License-Identifier: MIT */
#include "dsp/stft.h"

#include <kissfft/kiss_fft.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* kiss_fftr keeps a work buffer in its tables, so two threads can't share them. kiss_fft's own tables are constant when
 * input and output differ: the real transform of `window` samples is made here from a complex one of half the length.
 */
struct stft {
    int window, hop, half; /* half = window / 2: the length of the complex transform */
    kiss_fft_cfg forward, backward;
    float *analysis, *synthesis; /* (window) */
    kiss_fft_cpx *turn;          /* (half + 1)  exp(-2 pi i k / window) */
};

static int has_small_factors(int n)
{
    const int factors[] = {2, 3, 5};
    for (int i = 0; i < 3; i++) {
        while (n % factors[i] == 0) {
            n /= factors[i];
        }
    }
    return n == 1;
}

static void fill_tables(struct stft *stft)
{
    int window = stft->window;
    double scale = 2.0 * stft->hop / window / window; /* the overlap's sum, and the inverse transform's 1/window */
    for (int i = 0; i < window; i++) {
        double root = sin(M_PI * i / window); /* the square root of (1 - cos(2 pi i / window)) / 2 */
        stft->analysis[i] = (float)root;
        stft->synthesis[i] = (float)(root * scale);
    }
    for (int k = 0; k <= stft->half; k++) {
        double angle = -2 * M_PI * k / window;
        stft->turn[k] = (kiss_fft_cpx){.r = (float)cos(angle), .i = (float)sin(angle)};
    }
}

struct stft *stft_create(int window, int hop)
{
    if (window < 2 || hop < 1 || window % 2 || window % hop || window < 2 * hop || !has_small_factors(window)) {
        return NULL;
    }
    struct stft *stft = calloc(1, sizeof *stft);
    if (!stft) {
        return NULL;
    }
    *stft = (struct stft){.window = window, .hop = hop, .half = window / 2};
    stft->forward = kiss_fft_alloc(stft->half, 0, NULL, NULL);
    stft->backward = kiss_fft_alloc(stft->half, 1, NULL, NULL);
    stft->analysis = calloc((size_t)window, sizeof *stft->analysis);
    stft->synthesis = calloc((size_t)window, sizeof *stft->synthesis);
    stft->turn = calloc((size_t)stft->half + 1, sizeof *stft->turn);
    if (!stft->forward || !stft->backward || !stft->analysis || !stft->synthesis || !stft->turn) {
        stft_destroy(stft);
        return NULL;
    }
    fill_tables(stft);
    return stft;
}

void stft_destroy(struct stft *stft)
{
    if (stft) {
        kiss_fft_free(stft->forward);
        kiss_fft_free(stft->backward);
        free(stft->analysis);
        free(stft->synthesis);
        free(stft->turn);
        free(stft);
    }
}

int stft_bins(const struct stft *stft)
{
    return stft->half + 1;
}

size_t stft_scratch_floats(const struct stft *stft)
{
    return 2 * (size_t)stft->window; /* the complex transform's input and output */
}

/* The half-length transform z of samples (even, odd) as real and imaginary parts -> the real transform. With E and O
 * the transforms of the even and the odd samples, z[k] = E[k] + i O[k], and x[k] = E[k] + turn[k] O[k]. */
static void split(const struct stft *stft, const kiss_fft_cpx *z, float *re, float *im)
{
    int half = stft->half;
    for (int k = 0; k <= half; k++) {
        kiss_fft_cpx a = z[k % half], b = z[(half - k) % half], turn = stft->turn[k];
        float even_re = 0.5f * (a.r + b.r), even_im = 0.5f * (a.i - b.i);
        float odd_re = 0.5f * (a.i + b.i), odd_im = 0.5f * (b.r - a.r);
        re[k] = even_re + (turn.r * odd_re - turn.i * odd_im);
        im[k] = even_im + (turn.r * odd_im + turn.i * odd_re);
    }
}

/* The way back: z[k] = E[k] + i O[k] with 2 E[k] = x[k] + conj(x[half - k]), 2 O[k] = (x[k] - conj(x[half - k])) /
 * turn[k]. The twos stay in: they make the half-length inverse transform as large as the whole one. */
static void join(const struct stft *stft, const float *re, const float *im, kiss_fft_cpx *z)
{
    int half = stft->half;
    for (int k = 0; k < half; k++) {
        int m = half - k;
        float a_im = k == 0 ? 0 : im[k], b_im = k == 0 ? 0 : im[m];
        float diff_re = re[k] - re[m], diff_im = a_im + b_im;
        kiss_fft_cpx turn = stft->turn[k];
        float odd_re = turn.r * diff_re + turn.i * diff_im, odd_im = turn.r * diff_im - turn.i * diff_re;
        z[k].r = re[k] + re[m] - odd_im;
        z[k].i = a_im - b_im + odd_re;
    }
}

void stft_analyse(const struct stft *stft, float *history, const float *hop, float *spectrum, float *scratch)
{
    size_t window = (size_t)stft->window, step = (size_t)stft->hop, kept = window - step;
    for (size_t i = 0; i < kept; i++) {
        scratch[i] = history[i] * stft->analysis[i];
    }
    for (size_t i = 0; i < step; i++) {
        scratch[kept + i] = hop[i] * stft->analysis[kept + i];
    }
    memmove(history, history + step, (kept - step) * sizeof *history);
    memcpy(history + kept - step, hop, step * sizeof *history);

    kiss_fft_cpx *z = (kiss_fft_cpx *)(scratch + window);
    kiss_fft(stft->forward, (const kiss_fft_cpx *)scratch, z);
    split(stft, z, spectrum, spectrum + stft->half + 1);
}

void stft_synthesise(const struct stft *stft, float *overlap, const float *spectrum, float *hop, float *scratch)
{
    size_t window = (size_t)stft->window, step = (size_t)stft->hop, kept = window - step;
    kiss_fft_cpx *z = (kiss_fft_cpx *)(scratch + window);
    join(stft, spectrum, spectrum + stft->half + 1, z);
    kiss_fft(stft->backward, z, (kiss_fft_cpx *)scratch);

    for (size_t i = 0; i < step; i++) {
        hop[i] = overlap[i] + scratch[i] * stft->synthesis[i];
    }
    for (size_t i = 0; i + step < kept; i++) {
        overlap[i] = overlap[i + step] + scratch[i + step] * stft->synthesis[i + step];
    }
    for (size_t i = kept - step; i < kept; i++) {
        overlap[i] = scratch[i + step] * stft->synthesis[i + step];
    }
}
