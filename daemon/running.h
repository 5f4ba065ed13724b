/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_RUNNING_H
#define DAEMON_RUNNING_H

/* What runs, as daemon.c keeps it and its other files tell of it. Nothing is opened or closed between daemon_open and
 * daemon_close; what changes in between is atomic or belongs to the loop's thread. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"
#include "daemon/counters.h"
#include "daemon/wire.h"

struct checkpoint;
struct control;
struct engine_batch;
struct engine_thread;
struct feed;
struct http;
struct kept;
struct labels;
struct loop;
struct publisher;
struct rows;
struct sink;
struct source;
struct ssm_engine;
struct stream;
struct topic;
struct worker;

/* One distinct model of the configuration. */
struct model {
    const char *name; /* as the configuration says it */
    struct ssm_engine *engine;
    struct engine_batch *batch;
    struct labels *labels; /* of a tag model, else NULL */
    int streams;
};

struct pipeline {
    const struct config_pipeline *config;
    struct source *source;
    struct model *model;
    struct stream **streams;   /* (channels) */
    struct feed **feeds;       /* (channels) */
    struct kept **kept;        /* (channels) of each whose state is kept, else NULL */
    struct rows *rows;         /* of a sensor */
    struct counters *counters; /* (channels) */
    struct sink *sinks[CONFIG_SINKS];
    int n_sinks, n_channels;
    uint64_t seen[COUNTERS];         /* a second ago, over its channels */
    _Atomic int64_t risen[COUNTERS]; /* when they last rose; 0: never   */
};

struct daemon {
    const struct config *config;
    struct pipeline *pipelines;
    struct model *models;
    int n_pipelines, n_models, n_streams;
    struct worker *reader, *writer;
    struct engine_thread *engine;
    struct publisher *publisher;
    struct control *control;
    struct checkpoint *checkpoint; /* NULL: no states are kept */
    struct topic *state_topic;
    uint8_t *state_bytes;
    size_t state_room;
    struct loop *loop;
    struct http *http;
    struct stages stages;
    atomic_bool ready, draining; /* all has started; told to stop */
    bool patient, stay, forced, sources_started;
    int64_t started, drain_until;
    double started_utc;          /* s since 1970 */
    int faults_told;
    uint64_t turns;              /* of the engine, a second ago */
    _Atomic int64_t progress;    /* when the loop last saw the engine turn, or have nothing left to turn for */
};

/* Loop thread: what state/ says, and its list of streams alone, into daemon_state_room bytes. */
size_t daemon_state_room(const struct daemon *daemon);
void daemon_put_state(const struct daemon *daemon, struct wire_bytes *bytes);
void daemon_put_streams(const struct daemon *daemon, struct wire_bytes *bytes);

/* Loop thread: stop every source, let what waits go through, then end. A second time: end at once. */
void daemon_drain(struct daemon *daemon);

#endif
