/* SPDX-License-Identifier: MIT */
#ifndef DSP_CADENCE_H
#define DSP_CADENCE_H

/* A sensor's readings -> hops for a model, each with the time since the one before: what is missing, late or irregular
 * becomes elapsed time, never a made-up value.
 *
 * Readings may come out of order by up to reorder_s; what comes later than that is dropped. A model whose hop is one reading
 * gets each of them, with elapsed the source's time between them in readings at the model's rate: any number above 0. A
 * model of longer hops gets those that are complete: a hop with a missing reading is left out whole, and the next one's
 * elapsed counts it. There, readings are missing where the time is ahead of their count by half a hop. Readings without a
 * time are `rate` a second. Nothing is allocated after cadence_create; one thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dsp/readings.h"

enum { CADENCE_TICKS = 1000000 }; /* a second */

struct cadence_options {
    int channels, hop, model_rate; /* what the model takes                                          */
    double rate;      /* of readings without a time; 0 = model_rate                                 */
    double reorder_s; /* at most 1024 readings                                                      */
    double gap_s;     /* a longer pause is a gap: see below; 0 = 1 s, or five hops if that is more  */
};

struct cadence_hop {
    const float *values; /* (hop, channels), borrowed until the next call                           */
    float elapsed;       /* hops since the one before; 1 for the first                              */
    uint64_t from, to;   /* ticks since the first reading: from the hop's first on, for as long as the hop lasts at the
                            model's rate; `from` not before the last `to`                           */
    bool gap;            /* before it, longer than gap_s                                            */
    bool timed;          /* its last reading had a time                                             */
    double time;         /* s, of that, by the source's clock; since the start where there is none  */
};

struct cadence;

struct cadence *cadence_create(const struct cadence_options *options); /* NULL when memory runs out */
void cadence_destroy(struct cadence *cadence);                         /* NULL is fine */

/* One reading, or one that is missing. False: it came too late, or again, and is dropped; after 16 in a row, though, the
 * source's clock was set back, and goes on from there behind a gap. After each call cadence_next until it gives false. */
bool cadence_push(struct cadence *cadence, const struct reading *reading);
/* Nothing follows: give what is still held back for order. */
void cadence_finish(struct cadence *cadence);

bool cadence_next(struct cadence *cadence, struct cadence_hop *hop);

/* When tick 0 was, in s by the source's clock: the hop's last reading began a reading's length before its end. */
static inline double cadence_origin(const struct cadence_hop *hop, int model_rate)
{
    return hop->time - ((double)hop->to / CADENCE_TICKS - 1.0 / model_rate);
}

#endif
