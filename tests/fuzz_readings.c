/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "dsp/cadence.h"
#include "dsp/lines.h"
#include "dsp/readings.h"

enum { LINE = 200, CHANNELS = 3 };

struct run {
    struct readings *readings;
    struct cadence *cadence;
    uint64_t to;
};

/* Time runs forward, values are finite, elapsed is what an engine takes. */
static void take_hops(struct run *run)
{
    for (struct cadence_hop hop; cadence_next(run->cadence, &hop); run->to = hop.to) {
        if (hop.from < run->to || hop.to < hop.from || !(hop.elapsed >= 0 && hop.elapsed <= 1e6f)) {
            abort();
        }
        for (int i = 0; i < CHANNELS; i++) {
            if (!isfinite(hop.values[i])) {
                abort();
            }
        }
    }
}

static void take_line(void *context, const char *line, size_t n)
{
    struct run *run = context;
    struct reading reading;
    enum reading_status status = readings_parse(run->readings, line, n, &reading);
    if (reading.missing != (status == READING_MISSING)) {
        abort();
    }
    if (status == READING_OK || status == READING_MISSING) {
        cadence_push(run->cadence, &reading);
        take_hops(run);
    }
}

/* The first byte chooses: CSV or JSON lines, hops of one or of four, with a window or without. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned choice = size > 0 ? data[0] : 0;
    struct readings_options format = {.format = choice & 1 ? READING_JSONL : READING_CSV, .fields = "ax,ay,az"};
    struct cadence_options options = {.channels = CHANNELS, .hop = choice & 2 ? 4 : 1, .model_rate = 100,
                                      .reorder_s = choice & 4 ? 0.1 : 0};
    struct run run = {.readings = readings_create(&format), .cadence = cadence_create(&options)};
    struct lines *lines = lines_create(LINE);
    if (size > 0) {
        lines_push(lines, (const char *)data + 1, size - 1, take_line, &run);
    }
    lines_finish(lines, take_line, &run);
    cadence_finish(run.cadence);
    take_hops(&run);
    lines_destroy(lines);
    readings_destroy(run.readings);
    cadence_destroy(run.cadence);
    return 0;
}
