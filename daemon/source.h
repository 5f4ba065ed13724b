/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_SOURCE_H
#define DAEMON_SOURCE_H

/* Where a pipeline's samples come from. A source is one file and one row: `const struct source_ops`. */

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "config/config.h"
#include "daemon/admission.h"
#include "daemon/condition.h"
#include "daemon/counters.h"
#include "daemon/feed.h"
#include "daemon/waker.h"
#include "model/ssm.h"

struct card;
struct gate;
struct pull;
struct rows;
struct socket_place;
struct worker;

/* The part every source begins with. `open` fills in the first block; the pipeline the second, before `start`. */
struct source {
    const struct source_ops *ops;
    int rate;                          /* Hz                                                       */
    int channels[CONFIG_CHANNELS];     /* (n_channels) the chosen ones' numbers                    */
    int n_channels;
    bool patient;                      /* waits for room in the feeds: never loses a sample        */
    bool endless;                      /* does not end by itself                                   */
    bool sensor;                       /* one stream of rows, instead of a feed a channel          */
    struct card *card;                 /* the sound device; NULL: there is none                    */

    struct feed *feeds[CONFIG_CHANNELS]; /* (n_channels) the source is their only writer           */
    struct rows *rows;                 /* of a sensor: the same                                    */
    struct counters *counters;         /* (n_channels)                                             */
    struct waker *engine;              /* woken when there is something in the feeds               */
    bool invites;                      /* asks for each connection itself whether there is room    */
    struct admission_pass pass;        /* of all its streams                                       */
    atomic_int code;                   /* sysexits code of what ended it too early; 0              */
    atomic_bool lost;                  /* a sensor's broker isn't connected                        */

    /* Of one that reads with a thread of its own: `open` may set the first three, which are the source's. */
    struct socket_place *place; /* where it listens; NULL: nowhere                */
    struct pull *pull;          /* where its messages come from; NULL: nowhere    */
    bool follows;               /* one before that its pull subscribes beside     */
    struct waker stop;          /* the thread sleeps with it, or polls its `fd`   */
    atomic_bool stopping;       /* the thread is to end                           */
    sem_t go;                   /* the thread waits for it                        */
    pthread_t thread;
    bool running;
};

struct source_setup {
    const struct config_source *config;
    const char *pipeline;
    struct worker *reader; /* the thread that reads files */
    struct gate *gate;     /* of what comes over ZeroMQ    */
    /* Of the same kind, it listens where this one is to, and goes: they share that. Or it subscribes to the same, and both hear what
     * comes. NULL: none. */
    const struct source *before;
};

struct source_ops {
    const char *name;
    struct source *(*open)(const struct source_setup *setup, struct ssm_error *err);
    /* Of a sensor, before start: the model, which fits (daemon/fit.h). 0 or -1. */
    int (*meet)(struct source *source, const struct ssm_engine *engine, struct ssm_error *err);
    /* Before start, of a source that runs on while nobody listens: begin with its sample `at`. False: it can't be. NULL: its
     * samples come when they come. */
    bool (*seek)(struct source *source, uint64_t at);
    int (*start)(struct source *source, struct ssm_error *err); /* 0 or -1 */
    /* Everything that was opened with it has started: listen where one before did alone until now. 0 or -1; NULL: nothing to do. */
    int (*listen)(struct source *source, struct ssm_error *err);
    /* The sinks have begun, and nothing can fail any more: take what comes, until now that one's. NULL: what it takes is nobody
     * else's, and start did. */
    void (*begin)(struct source *source);
    /* Loop thread: end the feeds soon. May be called again, and on a source that ended by itself. */
    void (*stop)(struct source *source);
    /* After stop: wait until nothing writes to the feeds any more, and free. */
    void (*close)(struct source *source);
};

extern const struct source_ops source_file, source_audio, source_pcm, source_sensor;
const struct source_ops *source_find(enum source_type type);

/* The start and the end of a source's own thread. Init comes before all that may fail, 0 or -1 with *err; finish either way: it
 * waits for the thread, after stop. `what` the thread reads is for *err. */
int source_thread_init(struct source *source, struct ssm_error *err);
int source_thread_start(struct source *source, void *(*run)(void *source), const char *what, struct ssm_error *err);
void source_thread_finish(struct source *source);
/* The thread, first: wait until begin or stop. Who follows one before passes over what came until then: that one heard it. */
void source_thread_wait(struct source *source);
long source_receive(struct source *source, void *bytes, size_t size); /* pull_receive; -1 also when told to stop */
/* Its listen, begin and stop. */
int source_listen(struct source *source, struct ssm_error *err);
void source_begin(struct source *source);
void source_stop(struct source *source);

/* Any thread: how its i-th channel is. */
enum condition source_condition(const struct source *source, int i);

#endif
