/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_FEED_H
#define DAEMON_FEED_H

/* One channel's samples on their way from one thread to another, with what a bare ring can't carry: where samples are
 * missing, to the sample, and when each block arrived.
 *
 * One writer thread, one reader thread, wait-free on both sides; nothing is allocated after feed_create. The writer notes a
 * mark (position, hole before it, arrival) before each block; the reader never reads across one. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/counters.h"

struct feed;

/* What is known about the samples a feed_read gave. */
struct feed_note {
    uint64_t hole;   /* samples missing right before the first of them            */
    enum counter why; /* what the last of those went by                           */
    uint64_t rest;   /* samples of their block still to be read                   */
    int64_t arrived; /* ns at which the last sample of their block arrived        */
};

/* Room for at least `capacity` samples. NULL when memory runs out. */
struct feed *feed_create(size_t capacity);
void feed_destroy(struct feed *feed); /* NULL is fine */

/* Writer: one channel of n interleaved samples (samples[i * step]), the last of which arrived at `arrived` ns. Gives how many
 * fitted; the rest is a hole before the next block. */
size_t feed_write(struct feed *feed, const float *samples, size_t step, size_t n, int64_t arrived);
/* Writer: n samples are missing here; feed_skip says that nobody had room for them (COUNTER_RING_FULL). */
void feed_skip(struct feed *feed, uint64_t n);
void feed_lose(struct feed *feed, uint64_t n, enum counter why);
/* Writer: samples the next feed_write surely takes. */
size_t feed_room(const struct feed *feed);
/* Writer: nothing follows. */
void feed_end(struct feed *feed);

/* Reader: up to n samples in a row. Gives 0 when nothing waits; the hole may then still be set, once, for one at the very
 * end. */
size_t feed_read(struct feed *feed, float *samples, size_t n, struct feed_note *note);
/* Reader: the writer ended and all of it was read. */
bool feed_ended(struct feed *feed);
/* Reader: samples waiting. */
size_t feed_fill(const struct feed *feed);
/* Any thread: how full it is, 0..1. */
double feed_share(const struct feed *feed);

#endif
