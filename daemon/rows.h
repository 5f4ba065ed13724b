/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_ROWS_H
#define DAEMON_ROWS_H

/* A sensor's hops on their way from its source to the engine thread, each with its time: what a feed is to sound.
 *
 * One writer thread, one reader thread, wait-free on both sides; nothing is allocated after rows_create. Where there is no
 * room a hop is lost, and the next that finds some carries its time and says so. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/counters.h"
#include "dsp/cadence.h"

struct rows;

struct row {
    struct cadence_hop hop; /* its values are in the queue                       */
    int64_t arrived;        /* CLOCK_MONOTONIC ns at which its last reading came */
    enum counter why;       /* of the gap before it, if there is one             */
};

/* Room for `capacity` hops of `values` floats. NULL when memory runs out. */
struct rows *rows_create(size_t values, size_t capacity);
void rows_destroy(struct rows *rows); /* NULL is fine */

/* Writer: copy a hop in; false where it is lost. */
bool rows_put(struct rows *rows, const struct cadence_hop *hop, int64_t arrived);
bool rows_full(const struct rows *rows);
void rows_end(struct rows *rows); /* nothing follows */

/* Reader: the oldest hop, or NULL; it stays until rows_pass. */
const struct row *rows_front(const struct rows *rows);
void rows_pass(struct rows *rows);
size_t rows_waiting(const struct rows *rows); /* how many there are */
bool rows_ended(const struct rows *rows); /* the writer ended and all of it was passed */

#endif
