/* SPDX-License-Identifier: MIT */
#ifndef DSP_STFT_H
#define DSP_STFT_H

/* Short-time Fourier transform, hop in and hop out, with perfect reconstruction.
 *
 * The window is the square root of the periodic Hann window, once in analysis and once in synthesis; with
 * window = 2 hop the two overlap-add to one, with more overlap synthesis divides by what they add to, window / (2 hop).
 * Hop k is analysed in the window over samples [(k + 1) hop - window, (k + 1) hop); synthesis gives it back window -
 * hop samples later. The transform is kissfft's, unnormalised forward, 1/window backward. A spectrum is (2, bins): all
 * real parts, then all imaginary ones; bins = window / 2 + 1. */

#include <stddef.h>

struct stft; /* tables only: constant after creation, so one may serve many streams and threads */

/* window even, with no prime factor above 5 (kissfft allocates in its butterfly for others); hop dividing window, at
 * least twice. NULL when memory runs out or the sizes don't fit. */
struct stft *stft_create(int window, int hop);
void stft_destroy(struct stft *stft); /* NULL is fine */
int stft_bins(const struct stft *stft);
size_t stft_scratch_floats(const struct stft *stft); /* floats of scratch memory a call needs; one scratch a thread */

/* Take in one hop.
 *   history   inout (window - hop)  the samples before this hop, oldest first
 *   hop       in    (hop)
 *   spectrum  out   (2, bins) */
void stft_analyse(const struct stft *stft, float *history, const float *hop, float *spectrum, float *scratch);

/* Give out one hop.
 *   overlap   inout (window - hop)  what earlier windows still add to later hops
 *   spectrum  in    (2, bins)       the imaginary parts of the first and last bin count as 0
 *   hop       out   (hop) */
void stft_synthesise(const struct stft *stft, float *overlap, const float *spectrum, float *hop, float *scratch);

#endif
