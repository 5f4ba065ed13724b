/* SPDX-License-Identifier: MIT */
#ifndef DSP_ECHO_H
#define DSP_ECHO_H

/* What a microphone hears of the loudspeakers, taken out: SpeexDSP's adaptive filter, one channel. Only dsp/echo.c includes its
 * header. Samples go through 16 bits in there: what is softer than -96 dB, or louder than full scale, is not kept. */

#include <stddef.h>

struct echo;

/* Pieces of echo_hop(rate) samples; what comes back later than `tail_s` after the reference isn't found. NULL when memory runs
 * out. */
struct echo *echo_create(int rate, double tail_s);
void echo_destroy(struct echo *echo); /* NULL is fine */
size_t echo_hop(int rate);            /* 10 ms */

/* A piece of the microphone, and what the loudspeakers played, no later than it is heard: gives what is left. out may be input.
 * Allocates nothing. */
void echo_cancel(struct echo *echo, const float *input, const float *reference, float *out);

#endif
