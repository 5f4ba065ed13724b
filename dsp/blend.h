/* SPDX-License-Identifier: MIT */
#ifndef DSP_BLEND_H
#define DSP_BLEND_H

/* What went into a denoiser mixed with what came out, sample by sample the same moment: a limit to how much is taken away,
 * and a bypass that is switched without a click.
 *
 *   out = share * dry + (1 - share) * wet      10^(-12 / 20) lets 12 dB be taken at most; 1 in bypass, over 10 ms
 *
 * With a share of 1 it is the dry signal to the bit, with 0 the wet one. Nothing is allocated after blend_create; one
 * thread. */

#include <stdbool.h>
#include <stddef.h>

struct blend;

/* delay: samples by which wet lags dry. share: 0..1, outside of the bypass. bypass: how it begins. NULL when memory runs
 * out. */
struct blend *blend_create(int delay, int rate, float share, bool bypass);
void blend_destroy(struct blend *blend); /* NULL is fine */

/* Another share outside of the bypass, to be reached in 10 ms at most. */
void blend_limit(struct blend *blend, float share);

/* The next n samples: dry (n) as they went in, wet (n) as came out with them, which becomes the mixture. bypass: where to
 * go from here. Gives whether any of them is of the bypass or on the way into or out of it. */
bool blend_push(struct blend *blend, const float *dry, float *wet, size_t n, bool bypass);
/* Nothing of the wet signal is in what comes out. */
bool blend_is_dry(const struct blend *blend);

#endif
