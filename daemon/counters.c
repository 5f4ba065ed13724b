/* SPDX-License-Identifier: MIT */
#include "daemon/counters.h"

#include <math.h>

const struct counter_row counter_table[COUNTERS] = {
    [COUNTER_RING_FULL] = {"ring_full", "samples", "input dropped because the engine was late"},
    [COUNTER_DEVICE_OVERFLOW] = {"device_overflow", "times", "the sound card or server said it lost input"},
    [COUNTER_NAN_INPUT] = {"nan_input", "samples", "NaN or inf in the input, taken as silence"},
    [COUNTER_BLOWN] = {"blown", "hops", "the model gave NaN or inf: silence was sent and the stream reset"},
    [COUNTER_DEVICE_FAULT] = {"device_fault", "samples", "not computed because the device failed: the processor took over"},
    [COUNTER_QUEUE_FULL] = {"queue_full", "samples", "not published because the publishing loop was late"},
    [COUNTER_SUBSCRIBER_FULL] = {"subscriber_full", "times", "a subscriber read too slowly: it misses messages until it has caught up"},
    [COUNTER_FILE_FULL] = {"file_full", "samples", "silence in an output file because the disk was late"},
    [COUNTER_FILE_ERROR] = {"file_error", "samples", "not written because the file could not take them"},
    [COUNTER_EVENT_FULL] = {"event_full", "events", "not written because the disk was late"},
    [COUNTER_BAD_LINE] = {"bad_line", "lines", "not taken: not to be read, too long or a value out of range"},
    [COUNTER_MISSING_READING] = {"missing_reading", "readings", "without a value; the model was told the time over them"},
    [COUNTER_LATE_READING] = {"late_reading", "readings", "later than reorder allows, or twice"},
    [COUNTER_PLAYBACK_DROPPED] = {"playback_dropped", "samples", "not played because the player's clock is slower"},
    [COUNTER_PLAYBACK_INSERTED] = {"playback_inserted", "samples", "silence played because nothing was there in time"},
    [COUNTER_DEVICE_UNDERFLOW] = {"device_underflow", "times", "the sound card or server said it ran dry"},
};

void histogram_add(struct histogram *histogram, int64_t ns)
{
    uint64_t t = ns < 1024 ? 1024 : (uint64_t)ns;
    int octave = 63 - __builtin_clzll(t);                                              /* 10 and up */
    int bin = (octave - 10) * HISTOGRAM_STEPS + (int)(t >> (octave - 4) & (HISTOGRAM_STEPS - 1)); /* the next 4 bits */
    bin = bin < HISTOGRAM_BINS ? bin : HISTOGRAM_BINS - 1;
    atomic_fetch_add_explicit(&histogram->bins[bin], 1, memory_order_relaxed);
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
