/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_SINK_H
#define DAEMON_SINK_H

/* Where a pipeline's output goes. A sink is one file and one row: `const struct sink_ops`. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/config.h"
#include "daemon/counters.h"
#include "model/ssm.h"

struct card;
struct labels;
struct publisher;
struct waker;
struct worker;

/* Samples [from, to) of the stream never came; n in all since its start. */
struct hole {
    uint64_t n, from, to;
    enum counter why;
};

/* One hop out of the model, aligned: sample s0 of the output belongs to sample s0 of the input at the model's rate (the
 * model's delay is cut off). Times are CLOCK_MONOTONIC ns. */
struct delivery {
    uint64_t s0;
    uint64_t began;       /* the first sample of this run: above 0 in a stream that goes on from another's    */
    size_t n;             /* samples, at most a hop                                                       */
    const float *samples; /* (n), borrowed for the call; NULL from a model that gives scores              */
    const float *scores;  /* (outputs) about these n samples, borrowed; NULL from a model that gives samples */
    int64_t tm;           /* when sample s0 was captured                                                  */
    uint32_t tm_error;    /* ns                                                                           */
    float ppm;            /* how much faster than its nominal rate the source runs                        */
    int64_t cap, enq, inf; /* the input arrived, the engine took it, the model was through                */
    struct hole hole;     /* to > from: missing before or inside this hop                                 */
    unsigned flags;       /* enum wire_flag                                                               */
    char device[16];      /* the model ran on: "cpu", "cuda:0"                                            */
    const struct ssm_info *model; /* that it came from: the setup's, or one that stands in for it; NULL: the setup's */
    bool sourced;         /* the source told its own time: sample s0's is origin + s0 / rate              */
    double origin;        /* s, of sample 0, by the source's clock; 0 when it told none                   */
    float in_square, in_peak; /* the input hop that went with it: sum of squares, largest absolute value  */
};

/* What a sink is opened with; all of it outlives the sink. */
struct sink_setup {
    const struct config_sink *config;
    const char *node, *pipeline;
    const struct ssm_info *model;
    const struct labels *labels; /* of a model that gives scores; NULL of one that gives samples */
    const int *channels;  /* (n_channels) their numbers in the source             */
    int n_channels;
    int source_rate;      /* Hz                                                   */
    int rate;             /* of what deliveries count: samples at the model's rate, of a sensor CADENCE_TICKS */
    bool patient;         /* the source waits for room                            */
    bool late;            /* the stream runs already: what comes first is where it begins here */
    struct counters *counters; /* (n_channels)                                    */
    struct publisher *publisher;
    struct stages *stages; /* how long published hops took                        */
    struct worker *writer; /* the thread that writes files                        */
    struct waker *engine;  /* to be woken when the writer made room               */
};

struct sink {
    const struct sink_ops *ops;
    struct card *card; /* the sound device; NULL: there is none */
};

enum { SINK_TAKES_SAMPLES = 1, SINK_TAKES_SCORES = 2 };

struct sink_ops {
    const char *name;
    bool paced;     /* takes samples only as fast as they are heard: no use to wait for its room and be late */
    unsigned takes; /* SINK_TAKES_...: a pipeline whose model gives something else is refused (daemon/fit.h) */
    struct sink *(*open)(const struct sink_setup *setup, struct ssm_error *err);
    int (*start)(struct sink *sink, struct ssm_error *err); /* 0 or -1; NULL: nothing to start */
    /* Everything that was opened with it has started: what it replaces goes now, and not before. Deliveries may come earlier.
     * 0 or -1; NULL: nothing. */
    int (*begin)(struct sink *sink, struct ssm_error *err);

    /* Engine thread: never block, allocate nothing. `channel` is an index, 0 .. n_channels - 1. */
    size_t (*room)(const struct sink *sink, int channel); /* samples at the model's rate that `write` takes now */
    void (*write)(struct sink *sink, int channel, const struct delivery *hop);
    /* Nothing follows. hole: what is missing at the end. length: this run's input's, in samples at the source's rate. */
    void (*end)(struct sink *sink, int channel, const struct hole *hole, uint64_t length);

    /* Loop thread: pass on what was written; NULL: nothing to do there. */
    void (*serve)(struct sink *sink);
    /* Loop thread: a subscriber joined: publish what one has to know; NULL: nothing. */
    void (*welcome)(struct sink *sink);
    /* Any thread, after `end` of every channel or where nothing writes any more: finish what was written and free. */
    void (*close)(struct sink *sink);
};

extern const struct sink_ops sink_publish, sink_file, sink_audio, sink_jsonl;
const struct sink_ops *sink_find(enum sink_type type);

#endif
