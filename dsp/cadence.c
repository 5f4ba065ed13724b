/* SPDX-License-Identifier: MIT */
#include "dsp/cadence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HELD = 1024, LATE_MOST = 16 };

/* How fast the count of a model of longer hops follows the source's clock, a reading: jitter averages out, drift doesn't
 * add up. */
static const double FOLLOW = 0.01;
static const float ELAPSED_MOST = 1e6f;

struct cadence {
    struct cadence_options options;
    double rate; /* of the model, readings a second */

    /* Held back for order, oldest first. */
    struct reading *held; /* (HELD) */
    int n;
    bool finishing;

    /* In order from here on; times are since the start, by the source's clock. */
    bool begun;
    double origin;  /* of these times, by the source's clock                */
    double passed;  /* the last reading's time, by the source's clock       */
    double clock;   /* of the next reading without a time                   */
    int late;       /* in a row                                             */
    bool set_back;  /* the clock was, since the last hop                    */

    float *values;  /* (hop, channels)                                      */
    uint64_t index; /* of the next reading, from 0: those missing count     */
    bool spoilt;    /* the hop begun lacks a reading                        */
    double given;   /* end of the last hop given, in readings; below 0: none */
    uint64_t given_ticks;
};

struct cadence *cadence_create(const struct cadence_options *options)
{
    struct cadence *c = calloc(1, sizeof *c);
    if (!c) {
        return NULL;
    }
    c->options = *options;
    c->rate = options->model_rate;
    c->options.rate = options->rate > 0 ? options->rate : c->rate;
    double five = 5 * options->hop / c->rate;
    c->options.gap_s = options->gap_s > 0 ? options->gap_s : five > 1 ? five : 1;
    c->given = -1;
    c->held = calloc(HELD, sizeof *c->held);
    c->values = calloc((size_t)options->hop * (size_t)options->channels, sizeof *c->values);
    if (!c->held || !c->values) {
        cadence_destroy(c);
        return NULL;
    }
    return c;
}

void cadence_destroy(struct cadence *c)
{
    if (c) {
        free(c->held);
        free(c->values);
        free(c);
    }
}

/* The source's clock was set back to just before `time`: go on from where it was. */
static void set_back(struct cadence *c, double time)
{
    c->origin += time - 1 / c->rate - c->passed;
    c->passed = time - 1 / c->rate;
    c->set_back = true;
    c->late = 0;
    c->n = 0;
}

/* Behind what has passed already, or the same again? */
static bool is_late(const struct cadence *c, double time)
{
    return c->begun && (time < c->passed || (c->options.hop == 1 && time == c->passed));
}

/* Where among those held; below 0: it is there already. */
static int find_place(const struct cadence *c, double time)
{
    int i = c->n;
    while (i > 0 && c->held[i - 1].time > time) {
        i--;
    }
    return i > 0 && c->options.hop == 1 && c->held[i - 1].time == time ? -1 : i;
}

bool cadence_push(struct cadence *c, const struct reading *reading)
{
    struct reading copy = *reading;
    if (!copy.timed) {
        copy.time = c->clock;
        c->clock += 1 / c->options.rate;
    }
    bool late = is_late(c, copy.time);
    c->late = late ? c->late + 1 : 0;
    if (c->late == LATE_MOST) {
        set_back(c, copy.time);
        late = false;
    }
    int i = late || c->n == HELD ? -1 : find_place(c, copy.time);
    if (i < 0) {
        return false;
    }
    memmove(c->held + i + 1, c->held + i, (size_t)(c->n - i) * sizeof *c->held);
    c->held[i] = copy;
    c->n++;
    return true;
}

void cadence_finish(struct cadence *c)
{
    c->finishing = true;
}

/* The oldest reading held, once nothing may come before it. */
static bool take(struct cadence *c, struct reading *reading)
{
    bool due = c->n > 0 && (c->finishing || !c->held[0].timed || c->n == HELD ||
                            c->held[c->n - 1].time - c->held[0].time >= c->options.reorder_s);
    if (due) {
        *reading = c->held[0];
        memmove(c->held, c->held + 1, (size_t)--c->n * sizeof *c->held);
    }
    return due;
}

/* A hop that ends at `end`, in readings of the model's rate since the origin. */
static void give(struct cadence *c, double end, const struct reading *last, struct cadence_hop *hop)
{
    double length = c->options.hop, readings = c->given >= 0 && end > c->given ? end - c->given : length;
    bool gap = c->given >= 0 && (c->set_back || readings / c->rate > c->options.gap_s);
    double ticks = CADENCE_TICKS / c->rate, from = fmax(end - length, 0);
    float elapsed = (float)(readings / length);
    *hop = (struct cadence_hop){.values = c->values, .elapsed = elapsed < ELAPSED_MOST ? elapsed : ELAPSED_MOST, .gap = gap,
                                .from = (uint64_t)llround(from * ticks), .to = (uint64_t)llround(end * ticks),
                                .timed = last->timed, .time = last->time};
    hop->from = hop->from > c->given_ticks ? hop->from : c->given_ticks;
    hop->to = hop->to > hop->from ? hop->to : hop->from;
    c->given_ticks = hop->to;
    c->given = end;
    c->set_back = false;
}

static void store(struct cadence *c, const struct reading *reading, size_t place)
{
    size_t channels = (size_t)c->options.channels;
    memcpy(c->values + place * channels, reading->values, channels * sizeof(float));
}

/* Count the readings that are missing before one at `since`, where the hop is longer than one. */
static void skip_missing(struct cadence *c, double since)
{
    uint64_t hop = (uint64_t)c->options.hop;
    double ahead = since * c->rate - (double)c->index;
    if (ahead >= (double)hop / 2) {
        c->index += (uint64_t)llround(ahead);
        c->spoilt = c->index % hop != 0;
    } else {
        c->origin += FOLLOW * ahead / c->rate;
    }
}

/* Into the hop begun. True: that is complete. */
static bool fill(struct cadence *c, const struct reading *reading, double since)
{
    uint64_t hop = (uint64_t)c->options.hop;
    skip_missing(c, since);
    size_t place = (size_t)(c->index++ % hop);
    c->spoilt = (place > 0 && c->spoilt) || reading->missing;
    if (!c->spoilt) {
        store(c, reading, place);
    }
    return place + 1 == hop && !c->spoilt;
}

bool cadence_next(struct cadence *c, struct cadence_hop *hop)
{
    struct reading reading;
    while (take(c, &reading)) {
        if (!c->begun) {
            c->begun = true;
            c->origin = reading.time;
        }
        double since = reading.time - c->origin;
        c->passed = reading.time;
        if (c->options.hop == 1 && !reading.missing) {
            store(c, &reading, 0);
            give(c, since * c->rate + 1, &reading, hop);
            return true;
        }
        if (c->options.hop > 1 && fill(c, &reading, since)) {
            give(c, (double)c->index, &reading, hop);
            return true;
        }
    }
    return false;
}
