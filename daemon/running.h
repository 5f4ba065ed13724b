/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_RUNNING_H
#define DAEMON_RUNNING_H

/* What runs, as daemon.c keeps it, reload.c changes it, and control.c, health.c and metrics.c tell of it. What changes between
 * daemon_open and daemon_close is atomic or belongs to the loop's thread; that thread changes the lists of pipelines and models
 * under the lock. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"
#include "daemon/admission.h"
#include "daemon/counters.h"
#include "daemon/pipeline.h"
#include "daemon/wire.h"

struct checkpoint;
struct control;
struct engine_thread;
struct gate;
struct http;
struct loop;
struct publisher;
struct reload;
struct topic;
struct worker;

/* How often the configuration was read again. */
struct reloads {
    bool readable;    /* it can be */
    uint64_t good, bad;
    bool last_good;   /* or none yet                                    */
    double good_utc;  /* s since 1970, of the last good one or the start */
};

struct daemon {
    const struct config *config;
    pthread_mutex_t lock; /* for who isn't on the loop's thread and reads the two lists */
    struct pipeline *pipelines;
    struct model *models;
    struct reloads reloads;               /* under the lock as well                                              */
    struct pipeline *leaving, *changing;  /* the loop's: not on the list: on their way out, and changing what runs */
    bool stream_held;                     /* the loop's: a request about a stream waits for its answer: none may be freed */
    struct reload *reload;
    int n_streams;
    struct worker *reader, *writer;
    struct engine_thread *engine;
    struct admission admission;
    struct gate *gate;
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
    atomic_bool patient; /* some source waits for room */
    bool stay, forced;
    bool stuck; /* a reload is: what it may touch stays until the process ends */
    int64_t started, drain_until;
    double started_utc;          /* s since 1970 */
    uint64_t past[COUNTERS], past_in, past_out; /* of pipelines that are gone: counted, hops in and out */
    int faults_told;
    uint64_t card_changes;       /* of all sound devices, told so far */
    uint64_t turns;              /* of the engine, a second ago */
    _Atomic int64_t progress;    /* when the loop last saw the engine turn, or have nothing left to turn for */
};

/* Loop thread: what state/ says, and its list of streams alone, into running_state_room bytes. */
size_t running_state_room(const struct daemon *daemon);
void running_put_state(const struct daemon *daemon, struct wire_bytes *bytes);
void running_put_streams(const struct daemon *daemon, struct wire_bytes *bytes);

/* Loop thread. When pipelines have come or gone: how many streams there are, and room to tell of them. */
void running_count(struct daemon *daemon);
/* What was counted since the start, of pipelines that are gone as well. */
uint64_t running_counted(const struct daemon *daemon, enum counter counter);
/* Pass on what waits in the sinks of all pipelines, those that leave first. */
void running_serve_sinks(struct daemon *daemon);
/* Tell systemd that it runs, and what. */
void running_tell_ready(const struct daemon *daemon);

#endif
