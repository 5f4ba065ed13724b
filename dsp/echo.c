/* SPDX-License-Identifier: MIT */
#include "dsp/echo.h"

#include <math.h>
#include <speex/speex_echo.h>
#include <stdlib.h>

struct echo {
    SpeexEchoState *state;
    size_t hop;
    spx_int16_t samples[]; /* (3, hop) input, reference, out */
};

size_t echo_hop(int rate)
{
    return (size_t)(rate / 100);
}

struct echo *echo_create(int rate, double tail_s)
{
    size_t hop = echo_hop(rate);
    struct echo *echo = calloc(1, sizeof *echo + 3 * hop * sizeof *echo->samples);
    if (!echo) {
        return NULL;
    }
    echo->hop = hop;
    echo->state = speex_echo_state_init((int)hop, (int)(tail_s * rate));
    if (!echo->state) {
        free(echo);
        return NULL;
    }
    speex_echo_ctl(echo->state, SPEEX_ECHO_SET_SAMPLING_RATE, &rate);
    return echo;
}

void echo_destroy(struct echo *echo)
{
    if (echo) {
        speex_echo_state_destroy(echo->state);
        free(echo);
    }
}

static void to_16_bits(const float *samples, size_t n, spx_int16_t *out)
{
    for (size_t i = 0; i < n; i++) {
        float scaled = samples[i] * 32768;
        out[i] = (spx_int16_t)(scaled > 32767 ? 32767 : scaled >= -32768 ? lrintf(scaled) : scaled < 0 ? -32768 : 0); /* 0: NaN */
    }
}

void echo_cancel(struct echo *echo, const float *input, const float *reference, float *out)
{
    spx_int16_t *in = echo->samples, *played = in + echo->hop, *left = played + echo->hop;
    to_16_bits(input, echo->hop, in);
    to_16_bits(reference, echo->hop, played);
    speex_echo_cancellation(echo->state, in, played, left);
    for (size_t i = 0; i < echo->hop; i++) {
        out[i] = (float)left[i] / 32768;
    }
}
