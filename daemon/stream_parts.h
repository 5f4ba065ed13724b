/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_STREAM_PARTS_H
#define DAEMON_STREAM_PARTS_H

/* The inside of a stream, for stream.c (its course and its changes), stream_in.c (from what came to whole hops) and
 * stream_out.c (from the models' hops to the sinks) alone. Engine's thread, as daemon/stream.h says. */

#include "daemon/stream.h"

#include "dsp/blend.h"
#include "dsp/clock.h"
#include "dsp/resample.h"

enum { RAW = 1024, SECOND = 1000000000 };

/* Whole hops that are left out of the stream: `samples` of them before the sample that is the `at`th to enter the model. */
struct skip {
    uint64_t at, samples;
    bool entered; /* the input is past it; the output follows `delay` samples later */
};

/* A state from another process that the stream goes on from. */
struct resume {
    bool pending;     /* until the source's first sample came                            */
    uint64_t position, out; /* as in struct record                                       */
    int64_t captured;
    uint64_t at;      /* the feed's rate: number of the source's first sample; 0: by its time */
    double time;      /* of a sensor: as in struct record                                */
    int late;         /* and its readings that were from before that                     */
};

struct stream {
    struct feed *feed; /* NULL: it has rows */
    struct rows *rows;
    struct sink *const *sinks;
    int n_sinks, channel, rate;
    bool patient;
    bool waits;  /* for room in its sinks */
    bool halts;  /* no further hop begins before its models have settled: with much to do there is always one on its way */
    bool scores; /* the model gives scores about each hop, not samples */
    struct counters *counters;
    int hop;                    /* the model's, for other threads: it stays as models change */
    const struct ssm_info *model;
    struct ladder ladder;
    int priority;
    struct resume resume;
    struct resampler *resampler;
    uint64_t unit_in, unit_out; /* the smallest hole to skip: samples of the feed, samples (whole hops) of the model */

    /* The way in: feed -> raw -> resampler -> staging. Positions count samples from the stream's start, holes among them,
     * unless they say "entered": samples that went into the model. */
    float *raw, *staging;      /* staging: own_staging, or its model's engine's room */
    float *own_staging;
    size_t raw_at, raw_n, staged;
    int64_t arrived, *staged_arrived, own_arrived[STREAM_HOPS];
    struct clock clock;        /* the feed's samples and their arrivals                                      */
    int64_t tm;                /* when the last hop out was captured                                      */
    uint64_t position;         /* the feed's rate: of the next raw sample                                   */
    uint64_t zeros;            /* the feed's rate: silence that goes in before the raw samples              */
    uint64_t skipped;          /* the feed's rate: left out so far                                          */
    uint64_t dropped;          /* the feed's rate: behind the zeros, because there was no time for them     */
    int hops;                  /* whole ones in staging that are on their way through the models            */
    uint64_t entered;          /* entered: staging[0]                                                       */
    float elapsed;             /* of the next step                                                          */
    struct row row[STREAM_HOPS]; /* of a sensor: those in staging                                           */
    uint64_t ticks;            /* of a sensor: end of the last row                                          */
    double time;               /* of a sensor: the last reading's, by its own clock; NaN: it has none       */
    double passed;             /* of a sensor: hops that were passed over in overload                       */
    struct skip skip;
    struct hole hole;          /* to be told with the next hop that goes out                                */
    bool faulted;              /* the device failed in the hop before                                       */
    bool flushed;              /* the feed ended and the resampler's tail is out                            */
    uint64_t total;            /* the input's length at the model's rate, once flushed                      */

    /* The way out. */
    struct blend *blend; /* NULL: the model gives scores */
    atomic_bool bypass;
    int64_t left;    /* entered: the sample that out[0] belongs to; below 0 while the model's delay runs in */
    uint64_t shift;  /* position = left + shift                                                             */

    int64_t least;               /* entered: nothing before it comes out                                    */
    _Atomic(struct leaving *) leave; /* where the stream goes when its feed ends; NULL: nowhere        */
    bool leaves;                 /* it does, and has no tail                                                */
    uint64_t began, began_in;    /* the first sample of this run, and the same at the feed's rate           */
    _Atomic uint64_t *mark;      /* outlives a crash: where what went out ends. NULL: nobody wants to know  */

    _Atomic uint64_t samples_in, samples_out; /* `position` and what was given to the sinks, for others to read */
    int64_t deadline;            /* ns; 0: none                                                             */
    _Atomic uint64_t late;
    _Atomic int64_t delay;
    atomic_bool ended;
};

/* Whose state is the stream's. */
static inline const struct ladder_side *main_of(const struct stream *stream)
{
    return &stream->ladder.sides[0];
}

static inline uint64_t scale_up(uint64_t n, int from, int to)
{
    return (n * (uint64_t)to + (uint64_t)from - 1) / (uint64_t)from;
}

static inline int64_t hops_time(const struct stream *stream, int hops)
{
    return (int64_t)SECOND * hops * stream->model->hop / stream->model->rate;
}

/* The delay of a sensor's model. */
static inline uint64_t delay_ticks(const struct stream *stream)
{
    return (uint64_t)stream->model->delay * CADENCE_TICKS / (uint64_t)stream->model->rate;
}

/* ---- stream_in.c ---- */

/* Stage up to `hops` hops of what waits, and say how much time the next step is told of; gives the whole ones there are. */
size_t way_in_fill(struct stream *stream, size_t hops);
/* What has come in is passed over: it is a hole once the stream goes on. */
void way_in_drop(struct stream *stream);
/* `hole` samples are missing at the feed's position. */
void way_in_note_hole(struct stream *stream, uint64_t hole, enum counter why);
int64_t way_in_backlog(const struct stream *stream); /* ns: what has come and isn't in this step */

/* ---- stream_out.c ---- */

/* The staged hops, with what their models gave between these ns, to the sinks. */
void way_out_deliver(struct stream *stream, int64_t enq, int64_t inf);
/* The staged hops are out now. Gives how much more waits behind the first than can be borne, or 1, where that was late. */
int64_t way_out_note_delay(struct stream *stream, int64_t now);
int64_t way_out_capture_time(const struct stream *stream, uint64_t sample); /* of the stream */

#endif
