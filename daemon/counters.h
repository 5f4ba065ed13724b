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
    COUNTER_DEVICE_LOST,     /* the sound card or server was away      */
    COUNTER_CLIPPED,
    COUNTER_OFFSET,          /* DC                                     */
    COUNTER_NAN_INPUT,
    COUNTER_BLOWN,
    COUNTER_DEVICE_FAULT,    /* the device that computes failed        */
    COUNTER_OVERLOAD,        /* even the bypass was late               */
    COUNTER_RESTART,         /* the daemon did not run                 */
    COUNTER_QUEUE_FULL,
    COUNTER_SUBSCRIBER_FULL,
    COUNTER_FILE_FULL,
    COUNTER_FILE_ERROR,
    COUNTER_EVENT_FULL,
    COUNTER_SOCKET_FULL,
    COUNTER_BAD_LINE,
    COUNTER_MISSING_READING,
    COUNTER_LATE_READING,
    COUNTER_PLAYBACK_DROPPED,
    COUNTER_PLAYBACK_INSERTED,
    COUNTER_DEVICE_UNDERFLOW,
    COUNTERS
};

/* A row a counter: `name` stands on the wire and in messages; in /metrics `metric` counts it, by cause. */
struct counter_row {
    const char *name, *unit, *help, *metric;
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
/* Over the counters of n streams. */
uint64_t counted_in(const struct counters *counters, int n, enum counter counter);

/* A histogram of times from 1 us to 70 s, 16 steps an octave: a percentile is within 5 % of the true one. One thread adds, any
 * thread reads. */
enum { HISTOGRAM_STEPS = 16, HISTOGRAM_OCTAVES = 26, HISTOGRAM_BINS = HISTOGRAM_STEPS * HISTOGRAM_OCTAVES };

struct histogram {
    _Atomic uint64_t bins[HISTOGRAM_BINS];
    _Atomic uint64_t sum; /* ns */
};

void histogram_add(struct histogram *histogram, int64_t ns);
uint64_t histogram_count(const struct histogram *histogram);
/* The time in ns that a `share` (0..1) of the entries stayed below or at; 0 when empty. */
double histogram_quantile(const struct histogram *histogram, double share);
/* How many entries lie at or below each of the edges (n, ns, ascending), by the middles of their bins. Gives the count of all. */
uint64_t histogram_below(const struct histogram *histogram, const double *edges, size_t n, uint64_t *below);

/* A published hop's way: until the engine took it, until it was out of the model, until it was published; and all of that. */
enum stage { STAGE_WAIT, STAGE_STEP, STAGE_PUBLISH, STAGE_TOTAL, STAGES };
extern const char *const stage_names[STAGES];

struct stages {
    struct histogram at[STAGES];
};

/* The stamps of one hop, ns. */
void stages_add(struct stages *stages, int64_t cap, int64_t enq, int64_t inf, int64_t pub);

#endif
