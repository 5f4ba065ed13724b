/* SPDX-License-Identifier: MIT */
#include "daemon/counters.h"

#include <math.h>

const struct counter_row counter_table[COUNTERS] = {
    [COUNTER_RING_FULL] = {"ring_full", "samples", "input dropped because the engine was late",
        .metric = "source_lost_samples_total"},
    [COUNTER_DEVICE_OVERFLOW] = {"device_overflow", "times", "the sound card or server said it lost input",
        .metric = "source_xruns_total"},
    [COUNTER_DEVICE_LOST] = {"device_lost", "samples", "went by while the sound device was away",
        .metric = "source_lost_samples_total"},
    [COUNTER_CLIPPED] = {"clipped", "samples", "as loud as the input can be told: the level before it is too high",
        .metric = "source_bad_samples_total"},
    [COUNTER_OFFSET] = {"offset", "samples", "in seconds whose mean is beyond 5 % of full scale: the device adds a constant",
        .metric = "source_bad_samples_total"},
    [COUNTER_NAN_INPUT] = {"nan_input", "samples", "NaN or inf in the input, taken as silence",
        .metric = "source_bad_samples_total"},
    [COUNTER_BLOWN] = {"blown", "hops", "the model gave NaN or inf: silence was sent and the stream reset",
        .metric = "stream_blown_hops_total"},
    [COUNTER_DEVICE_FAULT] = {"device_fault", "samples", "not computed because the device failed: the processor took over",
        .metric = "stream_lost_samples_total"},
    [COUNTER_OVERLOAD] = {"overload", "samples", "left out because there was no time even to pass them on",
        .metric = "stream_lost_samples_total"},
    [COUNTER_RESTART] = {"restart", "samples", "went by while the daemon did not run",
        .metric = "stream_lost_samples_total"},
    [COUNTER_QUEUE_FULL] = {"queue_full", "samples", "not published because the publishing loop was late",
        .metric = "pub_dropped_samples_total"},
    [COUNTER_SUBSCRIBER_FULL] = {"subscriber_full", "times", "a subscriber read too slowly: it misses messages until it has caught up",
        .metric = "pub_slow_subscribers_total"},
    [COUNTER_FILE_FULL] = {"file_full", "samples", "silence in an output file because the disk was late",
        .metric = "sink_lost_samples_total"},
    [COUNTER_FILE_ERROR] = {"file_error", "samples", "not written because the file could not take them",
        .metric = "sink_lost_samples_total"},
    [COUNTER_EVENT_FULL] = {"event_full", "events", "not written because the disk was late",
        .metric = "sink_lost_events_total"},
    [COUNTER_SOCKET_FULL] = {"socket_full", "datagrams", "dropped by the system because they were not read in time",
        .metric = "source_lost_datagrams_total"},
    [COUNTER_BAD_LINE] = {"bad_line", "lines", "not taken: not to be read, too long or a value out of range",
        .metric = "source_bad_lines_total"},
    [COUNTER_MISSING_READING] = {"missing_reading", "readings", "without a value; the model was told the time over them",
        .metric = "source_lost_readings_total"},
    [COUNTER_LATE_READING] = {"late_reading", "readings", "later than reorder allows, or twice",
        .metric = "source_lost_readings_total"},
    [COUNTER_PLAYBACK_DROPPED] = {"playback_dropped", "samples", "not played: the player was away, or could not keep up",
        .metric = "sink_slipped_samples_total"},
    [COUNTER_PLAYBACK_INSERTED] = {"playback_inserted", "samples", "silence played because nothing was there in time",
        .metric = "sink_slipped_samples_total"},
    [COUNTER_DEVICE_UNDERFLOW] = {"device_underflow", "times", "the sound card or server said it ran dry",
        .metric = "sink_xruns_total"},
};

uint64_t counted_in(const struct counters *counters, int n, enum counter counter)
{
    uint64_t total = 0;
    for (int i = 0; i < n; i++) {
        total += counted(&counters[i], counter);
    }
    return total;
}

void histogram_add(struct histogram *histogram, int64_t ns)
{
    uint64_t t = ns < 1024 ? 1024 : (uint64_t)ns;
    int octave = 63 - __builtin_clzll(t);                                              /* 10 and up */
    int bin = (octave - 10) * HISTOGRAM_STEPS + (int)(t >> (octave - 4) & (HISTOGRAM_STEPS - 1)); /* the next 4 bits */
    bin = bin < HISTOGRAM_BINS ? bin : HISTOGRAM_BINS - 1;
    atomic_fetch_add_explicit(&histogram->bins[bin], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&histogram->sum, ns > 0 ? (uint64_t)ns : 0, memory_order_relaxed);
}

uint64_t histogram_count(const struct histogram *histogram)
{
    uint64_t total = 0;
    for (int i = 0; i < HISTOGRAM_BINS; i++) {
        total += atomic_load_explicit(&histogram->bins[i], memory_order_relaxed);
    }
    return total;
}

/* The middle of bin i. */
static double bin_time(int i)
{
    return ldexp(1.0 + (i % HISTOGRAM_STEPS + 0.5) / HISTOGRAM_STEPS, 10 + i / HISTOGRAM_STEPS);
}

double histogram_quantile(const struct histogram *histogram, double share)
{
    uint64_t total = histogram_count(histogram), seen = 0;
    for (int i = 0; i < HISTOGRAM_BINS && total > 0; i++) {
        seen += atomic_load_explicit(&histogram->bins[i], memory_order_relaxed);
        if ((double)seen >= share * (double)total) {
            return bin_time(i);
        }
    }
    return 0;
}

uint64_t histogram_below(const struct histogram *histogram, const double *edges, size_t n, uint64_t *below)
{
    uint64_t seen = 0;
    size_t edge = 0;
    for (int i = 0; i < HISTOGRAM_BINS; i++) {
        for (; edge < n && bin_time(i) > edges[edge]; edge++) {
            below[edge] = seen;
        }
        seen += atomic_load_explicit(&histogram->bins[i], memory_order_relaxed);
    }
    for (; edge < n; edge++) {
        below[edge] = seen;
    }
    return seen;
}

const char *const stage_names[STAGES] = {
    [STAGE_WAIT] = "wait", [STAGE_STEP] = "step", [STAGE_PUBLISH] = "publish", [STAGE_TOTAL] = "total"};

void stages_add(struct stages *stages, int64_t cap, int64_t enq, int64_t inf, int64_t pub)
{
    histogram_add(&stages->at[STAGE_WAIT], enq - cap);
    histogram_add(&stages->at[STAGE_STEP], inf - enq);
    histogram_add(&stages->at[STAGE_PUBLISH], pub - inf);
    histogram_add(&stages->at[STAGE_TOTAL], pub - cap);
}
