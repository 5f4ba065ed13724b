/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_CANCELLER_H
#define DAEMON_CANCELLER_H

/* Takes what the loudspeakers play out of what a microphone captures: a second sound device, the reference, captures what they
 * play (a monitor of a sound server), and both clocks are fitted, so that each piece of the microphone gets the reference's
 * of the same time (dsp/echo.h). Where there is none, since that device is away, the input stays as it is.
 * It makes the microphone's samples up to 10 ms late; their numbers stay as they are. */

#include <stddef.h>
#include <stdint.h>

#include "model/ssm.h"

struct canceller;

struct canceller_setup {
    const char *device, *pipeline; /* the reference's; borrowed         */
    int rate;                      /* the microphone's, and so its own  */
    int n_channels;
    /* What is left of channel i, the last sample of which arrived at `arrived` ns; called in canceller_push and _flush. */
    void (*give)(void *arg, int i, const float *samples, size_t n, int64_t arrived);
    void *arg;
};

/* NULL with *err: the reference can't be opened. */
struct canceller *canceller_open(const struct canceller_setup *setup, struct ssm_error *err);
int canceller_start(struct canceller *canceller, struct ssm_error *err); /* 0 or -1 */
void canceller_close(struct canceller *canceller);                       /* NULL is fine */

/* The microphone's thread: n samples of channel i. */
void canceller_push(struct canceller *canceller, int i, const float *samples, size_t n, int64_t arrived);
/* The same: what waits for a whole piece is given as it is; then n samples are missing. */
void canceller_flush(struct canceller *canceller, uint64_t n);

#endif
