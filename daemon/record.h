/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_RECORD_H
#define DAEMON_RECORD_H

/* A stream as bytes, to go on from in another process: where it is, what waits for the model, and the model's state. All
 * little-endian:
 *
 *    0  8  "SSMSTRM2"            40  8  taken, source's samples
 *    8  4  header bytes, 80      48  8  out, first sample still to come out
 *   12  4  rate of the source    56  8  bytes of state
 *   16  8  position              64  8  the source's own time, a double
 *   24  8  UTC ns of that        72  8  xxh3 of all but these 8 bytes
 *   32  8  floats that wait      80  .  waiting floats, then the state (model/state.h, which tells the model)
 *
 * Any bytes are answered. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/ssm.h"

enum { RECORD_HEADER = 80, RECORD_WAITING_MOST = 1 << 20 };

/* Sample numbers count from the stream's start, holes among them, at the model's rate unless they say otherwise; of a sensor all
 * count CADENCE_TICKS a second, which is its rate here. */
struct record {
    uint64_t position; /* the next sample to enter the model, of those waiting the first      */
    uint64_t out;      /* the first sample that has not come out                              */
    uint64_t taken;    /* at the source's rate: the next sample that its source gives         */
    int64_t captured;  /* CLOCK_MONOTONIC ns at which sample `position` was                   */
    uint32_t rate;     /* the source's                                                        */
    double time;       /* of a sensor: s, of its last reading by its own clock; NaN: it has none */
    size_t n_waiting;
    const float *waiting; /* (n_waiting)                                                      */
    const void *state;
    size_t state_size;
};

size_t record_size(size_t n_waiting, size_t state_size);

/* Write record_size bytes. utc_offset: UTC - CLOCK_MONOTONIC, ns. */
void record_encode(const struct record *record, int64_t utc_offset, uint8_t *bytes);

/* Read them; what record points to is borrowed from bytes, which are aligned to 8. -1 with *err when they are no record, cut
 * short or damaged. */
int record_decode(struct record *record, int64_t utc_offset, const uint8_t *bytes, size_t size, struct ssm_error *err);

#endif
