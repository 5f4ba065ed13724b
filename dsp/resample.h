/* SPDX-License-Identifier: MIT */
#ifndef DSP_RESAMPLE_H
#define DSP_RESAMPLE_H

/* Rate conversion at the edges of the engine: a sinc under a Kaiser window, of which each output takes the row of weights for its
 * place between two inputs. A model states its rate; the world has others.
 *
 * Output sample j stands for the input's time j * from / to exactly, whatever the grade: the filter is centred, nothing
 * shifts. It needs input beyond that time, though, and so output comes late by resampler_delay. Equal rates pass
 * through untouched, bit for bit, with no delay. How the input is cut into calls changes nothing in the output, but in how many
 * samples a flush of RESAMPLER_SLEWED gives. */

#include <stddef.h>

struct resampler;

/*                 flat up to    -6 dB    from half of the lower rate on   delay, in samples of the lower rate
 * RESAMPLER_LIVE  84 % of that  92 %     -80 dB                           32 to 40 (2 ms at 16 kHz)
 * RESAMPLER_BEST  90 %          95 %     -120 dB                          80 to 88; for files
 * Between rates with large terms, as 44099 and 16001 Hz, weights are interpolated: -100 dB at best.
 * RESAMPLER_SLEWED is RESAMPLER_LIVE whose ratio resampler_slew may change: equal rates go through the filter too. */
enum resampler_grade { RESAMPLER_LIVE, RESAMPLER_BEST, RESAMPLER_SLEWED };

/* One channel from `from` Hz to `to` Hz. NULL when memory runs out or the ratio is beyond 1:256. Those of one ratio and grade share
 * their weights; any thread may create and destroy. */
struct resampler *resampler_create(int from, int to, enum resampler_grade grade);
void resampler_destroy(struct resampler *resampler); /* NULL is fine */
void resampler_reset(struct resampler *resampler);

/* Convert up to n_in samples into up to n_out; gives the samples written and sets *used to the samples consumed, no more than
 * these needed. `in` and `out` must not overlap. Allocates nothing. last != 0: nothing follows this input, so what the filter
 * still holds is flushed. Call again with what was not used until less than n_out comes back; then N samples have become
 * ceil(N * to / from), and only reset goes on. */
size_t resampler_push(struct resampler *resampler, const float *in, size_t n_in, size_t *used, float *out, size_t n_out,
                      int last);

/* From the next push on, give `ratio` (near 1) times as many samples as the rates alone would make; 1,000 ppm more or less are
 * reached within 66 samples, without a step. Output sample j then stands for no exact time any more, and a flush gives the last
 * samples but not as many as it should. */
void resampler_slew(struct resampler *resampler, double ratio);

/* Samples at the output rate by which output lags input at most: after N samples in, with room for all that was ready,
 * at least N * to / from - delay came out. */
double resampler_delay(const struct resampler *resampler);

#endif
