/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_PIPELINE_H
#define DAEMON_PIPELINE_H

/* A pipeline as it runs, and the models that pipelines share: opened beside what turns already, joined to it, parted, closed.
 *
 *   pipeline_create -> pipelines_open_inputs -> pipelines_open_outputs -> pipelines_join -> pipelines_start
 *   pipelines_stop  -> (every stream ended)  -> pipelines_part         -> pipelines_close
 *
 * Functions take a list of pipelines, linked by `next`. Opening and closing may take long; they are for any one thread at a
 * time but the engine's. Whatever failed half way is closed by pipelines_close and models_close. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "config/config.h"
#include "daemon/admission.h"
#include "daemon/counters.h"
#include "model/ssm.h"

struct card;
struct daemon;
struct engine_batch;
struct feed;
struct kept;
struct labels;
struct rows;
struct sink;
struct source;
struct stream;
struct successor;

/* A model and an engine with some slots; once they are taken, the same model gets another engine. */
struct model {
    struct model *next;
    const char *name; /* as the configuration says it */
    const struct config_place *asked; /* where it did first; until it is open */
    struct ssm_engine *engine;
    struct engine_batch *batch;
    struct labels *labels; /* of a tag model, else NULL */
    struct admission *admission;  /* NULL until it is open */
    struct admission_cost cost;   /* of a stream           */
    int users;             /* slots that are taken, or soon will be */
    struct {
        dev_t device;
        ino_t inode;
        off_t size;
        struct timespec changed;
    } file;                /* as it was when it was opened */
    bool stale;            /* the file is another by now: who opens the model opens that one */
};

/* A pipeline's configuration, held by everything that was opened with it. */
struct settings {
    struct config_pipeline config;
    int users;
};

struct pipeline {
    struct pipeline *next;
    const struct config_pipeline *config;
    struct settings *settings; /* config's */
    struct source *source;
    struct settings *source_settings;
    struct model *model, *fallback; /* fallback: NULL for none */
    struct stream **streams;   /* (channels) */
    struct feed **feeds;       /* (channels) */
    struct kept **kept;        /* (channels) of each whose state is kept, else NULL */
    struct rows *rows;         /* of a sensor */
    struct counters *counters; /* (channels) */
    struct sink *sinks[CONFIG_SINKS];
    struct settings *sink_settings[CONFIG_SINKS];
    const struct config_sink *sink_configs[CONFIG_SINKS];
    int n_sinks, n_channels;
    bool started;                    /* its source */
    struct pipeline *before;         /* the running one it takes the place of; NULL: none */
    bool kept_sinks[CONFIG_SINKS];   /* they are the other's still */
    struct successor **successors;   /* (channels) where its model takes the place of that one's; else NULL */
    int n_awaited;                   /* streams that have theirs at hand */
    bool settled;                    /* they have their places           */
    bool goes;                       /* its place is taken, or it goes */
    bool lends;                      /* where its source listens one does that is opened */
    uint64_t generation;             /* above 0: opened by a request, not by the configuration */
    bool held;                       /* nothing is published of it before that one's end */
    uint64_t seen[COUNTERS];         /* a second ago, over its channels */
    _Atomic int64_t risen[COUNTERS]; /* when they last rose; 0: never   */
    int lowered;                     /* streams that had given way a second ago */
};

/* Under the lock: of its sinks' sound devices the first that isn't well, else the first; NULL: it has none. */
struct card *pipeline_player(const struct pipeline *pipeline);

/* With a copy of its configuration. NULL when memory runs out. */
struct pipeline *pipeline_create(const struct config_pipeline *config);

/* One that is to take over the source and the streams of one that runs, with other settings or sinks; sinks whose settings are the
 * same are that one's. It is on no list of the daemon's until pipeline_take_over has moved to it what it shares; before that
 * pipeline_abandon closes what it doesn't.
 *
 * With another model, which pipeline_choose_model chose, each stream runs both for a second and fades over 50 ms; model and
 * sinks change when that is through. */
int pipeline_alter(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err); /* -1 with *err */
int pipeline_start_sinks(struct pipeline *pipeline, struct ssm_error *err); /* those that aren't the other's */
void pipeline_take_over(struct pipeline *pipeline); /* loop thread: what the other still has is to be closed */
void pipeline_abandon(struct pipeline *pipeline);

/* Engine's thread, one after the other. */
int pipeline_await(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err); /* -1 with *err: as before */
void pipeline_await_none(struct daemon *daemon, struct pipeline *pipeline);
void pipeline_change(struct daemon *daemon, struct pipeline *pipeline); /* begin to change the model, or change at once */
bool pipeline_settle(struct daemon *daemon, struct pipeline *pipeline); /* false: not now */
bool pipeline_changed(const struct pipeline *pipeline); /* any thread: it may be settled; where it has to be, it can be before */

/* One with free slots for its streams, of the daemon's or of *models, or a new one there that pipelines_open_inputs opens. */
int pipeline_choose_model(struct daemon *daemon, struct pipeline *pipeline, struct model **models, struct ssm_error *err);
/* Two models give sound from sound in the same hops, equally late. */
bool models_alike(const struct model *a, const struct model *b);
void models_find_stale(struct model *list);

/* Their sources; then their models, from what the daemon has where slots are free, and else put into *models. -1 with *err. */
int pipelines_open_inputs(struct daemon *daemon, struct pipeline *list, struct model **models, struct ssm_error *err);
/* Their sinks, streams and kept states. -1 with *err. */
int pipelines_open_outputs(struct daemon *daemon, struct pipeline *list, struct ssm_error *err);

/* Engine's thread, or before it is started. -1 with *err: none has joined. */
int pipelines_join(struct daemon *daemon, struct pipeline *list, struct ssm_error *err);
/* Streams that have not ended end here. */
void pipelines_part(struct daemon *daemon, struct pipeline *list);
bool pipeline_ended(const struct pipeline *pipeline); /* any thread; these too */
uint64_t pipeline_hops_in(const struct pipeline *pipeline);
uint64_t pipeline_hops_out(const struct pipeline *pipeline);

/* Their sinks, then their sources. -1 with *err; pipelines_stop is then still to be called. */
int pipelines_start(struct pipeline *list, struct ssm_error *err);
/* After all of that: those of their sinks that aren't another's replace what they replace; then their sources take what comes. -1
 * with *err, likewise; what others replaced before one failed stays replaced. */
int pipelines_begin(struct pipeline *list, struct ssm_error *err);
void pipelines_stop(struct pipeline *list); /* loop thread: end the feeds soon; safe to repeat */

void pipeline_leave_models(struct pipeline *pipeline); /* parted: its slots are free; safe to repeat */
void pipelines_close_sinks(struct pipeline *list); /* what was written is finished, and its failures counted */
void pipelines_close(struct pipeline *list);
void models_close(struct model *list);

#endif
