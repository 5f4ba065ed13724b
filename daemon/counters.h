/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_COUNTERS_H
#define DAEMON_COUNTERS_H

/* Every way in which a sample can be lost or spoilt, and how long hops took: counted on any thread, read on the loop. */

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum counter {
    COUNTER_RING_FULL,       /* the engine was late                    */
    COUNTER_DEVICE_OVERFLOW, /* the sound card or server lost input    */
    COUNTER_NAN_INPUT,
    COUNTER_BLOWN,
    COUNTER_DEVICE_FAULT,    /* the device that computes failed        */
    COUNTER_QUEUE_FULL,
    COUNTER_SUBSCRIBER_FULL,
    COUNTER_FILE_FULL,
    COUNTER_FILE_ERROR,
    COUNTER_EVENT_FULL,
    COUNTER_BAD_LINE,
    COUNTER_MISSING_READING,
    COUNTER_LATE_READING,
    COUNTER_PLAYBACK_DROPPED,
    COUNTER_PLAYBACK_INSERTED,
    COUNTER_DEVICE_UNDERFLOW,
    COUNTERS
};

/* A row a counter: `name` stands on the wire and in messages. */
struct counter_row {
    const char *name, *unit, *help;
};
extern const struct counter_row counter_table[COUNTERS];

/* One stream's. */
struct counters {
    _Atomic uint64_t at[COUNTERS];
};

static inline void count(struct counters *counters, enum counter counter, uint64_t n)
{
    atomic_fetch_add_explicit(&counters->at[counter], n, memory_order_relaxed);
}
static inline uint64_t counted(const struct counters *counters, enum counter counter)
{
    return atomic_load_explicit(&counters->at[counter], memory_order_relaxed);
}

/* A histogram of times from 1 us to 70 s, 16 steps an octave: a percentile is within 5 % of the true one. One thread adds, any
 * thread reads. */
enum { HISTOGRAM_STEPS = 16, HISTOGRAM_OCTAVES = 26, HISTOGRAM_BINS = HISTOGRAM_STEPS * HISTOGRAM_OCTAVES };

struct histogram {
    _Atomic uint64_t bins[HISTOGRAM_BINS];
};

void histogram_add(struct histogram *histogram, int64_t ns);
uint64_t histogram_count(const struct histogram *histogram);
/* The time in ns that a `share` (0..1) of the entries stayed below or at; 0 when empty. */
double histogram_quantile(const struct histogram *histogram, double share);

#endif
