/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_ENGINE_THREAD_H
#define DAEMON_ENGINE_THREAD_H

/* The one plain path: take every stream that has a hop, one batched step, deliver.
 *
 *   feed -> hole? -> resampler -> staging | ssm_step | blend with the input, align -> sinks
 *
 * engine_turn is that path and can be called without any thread or event loop. After start it allocates nothing and takes no
 * lock. A hop's time is its sample number; the clock is read twice a batch (before and after ssm_step), for the stage stamps
 * that hops carry, never per hop.
 *
 * A stream with several hops waiting runs up to ENGINE_HOPS of them in one step, so a late one catches up. Where samples are
 * missing, whole hops are skipped and the next one carries elapsed = 1 + skipped hops; what is left of a hole (less than a
 * hop, or than the smallest number of samples that is whole hops at both rates) is silence. Sample numbers run on over both.
 * Hops that a failing device did not compute are a hole too, told with the next hop; the stream goes on on the processor.
 * A sensor's stream gets its hops as they are, each with the time since the one before (daemon/rows.h); its deliveries count
 * CADENCE_TICKS a second.
 * At the end of a stream of sound the model's delay is pushed out with silence, and the output is cut to the input's length. */

#include <stdbool.h>
#include <stdint.h>

#include "daemon/counters.h"
#include "daemon/feed.h"
#include "daemon/record.h"
#include "daemon/rows.h"
#include "daemon/sink.h"
#include "daemon/waker.h"
#include "model/ssm.h"

enum { ENGINE_HOPS = 8, ENGINE_FAULTS = 16 }; /* faults: as many are kept */

struct engine_thread;

/* Room for `streams` streams. A batch waits up to deadline_s for more streams to have a hop. NULL when memory runs out. */
struct engine_thread *engine_thread_create(int streams, double deadline_s);
/* Stops. The engines, feeds and sinks stay the caller's. NULL is fine. */
void engine_thread_destroy(struct engine_thread *thread);

/* One stream; everything is borrowed until engine_thread_destroy. */
struct stream_setup {
    struct ssm_engine *engine; /* opened with max_hops = ENGINE_HOPS and a free slot; its model fits (daemon/fit.h) */
    struct feed *feed;
    struct rows *rows;         /* of a sensor, instead of a feed; else NULL          */
    int rate;                  /* of the feed, Hz; of rows the model's               */
    bool patient;              /* never loses a hop: waits for room in its sinks     */
    struct sink *const *sinks; /* (n_sinks)                                          */
    int n_sinks;
    int channel;               /* its index in the sinks                             */
    struct counters *counters;
    float share;               /* of the input itself in what comes out; only of a model that gives samples */
    bool bypass;               /* begin in bypass                                    */
};

/* Before start. Gives the stream's index, or -1 with *err. */
int engine_thread_add(struct engine_thread *thread, const struct stream_setup *setup, struct ssm_error *err);

/* Advance every stream that has a hop by one step, and end those whose last hop went out. Gives the hops stepped plus the
 * streams ended; 0: nothing was ready. */
size_t engine_turn(struct engine_thread *thread);

/* The number of streams that have not ended; 0: nothing more will come. Any thread. */
int engine_running(const struct engine_thread *thread);

/* Turn on a thread of its own until engine_thread_stop. `delivered(arg)` is called after each turn
 * that came to something, to wake whoever serves the sinks. 0, or -1 with *err. */
int engine_thread_start(struct engine_thread *thread, void (*delivered)(void *arg), void *arg, struct ssm_error *err);
void engine_thread_stop(struct engine_thread *thread); /* now, whatever is waiting; safe to repeat */

/* Something to be done on the engine's thread between two turns. It begins the caller's own struct, which stays until it is
 * answered. */
struct engine_call {
    void (*run)(struct engine_thread *thread, struct engine_call *call);
};

/* Loop thread, after start: post a call, once the one before is answered. `delivered` follows it. */
void engine_post(struct engine_thread *thread, struct engine_call *call);
bool engine_answered(const struct engine_thread *thread);

/* In a call: put a stream's model back to its zero state; sample numbers run on. Gives a status of ssm.h. */
int engine_stream_reset(struct engine_thread *thread, int stream);

/* A stream of live sound: its state is worth keeping. */
bool engine_stream_keeps(const struct engine_thread *thread, int stream);
size_t engine_stream_state_size(const struct engine_thread *thread, int stream);

/* On the engine's thread, between turns: copy where a stream is and its model's state, without what waits in front of the
 * model. Gives a status of ssm.h. */
int engine_stream_copy(struct engine_thread *thread, int stream, struct record *record, void *state, size_t size);

/* Before start: go on from a copy. The source's first sample is the stream's sample `at` (at the source's rate), or where `at`
 * is 0, the one that its time of arrival makes it. From record->out to it is a hole, which is told. -1 with *err: it is of
 * another model or rate, or damaged; the stream is as before. */
int engine_stream_resume(struct engine_thread *thread, int stream, const struct record *record, uint64_t at,
                         struct ssm_error *err);

/* A stream that moves elsewhere. */
struct engine_leave {
    struct record record; /* what is to be carried there; it points into waiting and state */
    float *waiting;       /* room for a hop                       */
    void *state;          /* room for engine_stream_state_size    */
    size_t state_size;
};

/* Loop thread, before the stream's source is stopped: when its feed is at its end, the stream ends here after the last whole
 * hop, and what is left of it is in *leave, which stays until engine_stream_ended. A stream that had ended by itself leaves
 * record.state_size at 0. False: it is in bypass and can't leave. */
bool engine_stream_leave(struct engine_thread *thread, int stream, struct engine_leave *leave);

/* In a call, into a stream that has taken nothing yet: go on with one that left elsewhere; the source's next sample is
 * record->taken. -1 with *err: 75, it has begun; 65, it is of another model, or damaged; the stream is then as before. */
int engine_stream_enter(struct engine_thread *thread, int stream, const struct record *record, struct ssm_error *err);

/* Before start: keep writing the sample up to which a stream went out. */
void engine_stream_mark(struct engine_thread *thread, int stream, _Atomic uint64_t *mark);

/* What wakes the thread: given to sources, and to sinks that made room. */
struct waker *engine_thread_waker(struct engine_thread *thread);

/* Any thread: have the input itself, as late as the model's output, go out instead of that, from the next hop on; a fade of
 * 10 ms at each switch. The model goes on beside it. False: the model gives scores, there is nothing to bypass. */
bool engine_stream_bypass(struct engine_thread *thread, int stream, bool bypass);

/* Any thread. */
uint64_t engine_stream_hops(const struct engine_thread *thread, int stream);    /* given out so far            */
uint64_t engine_stream_samples(const struct engine_thread *thread, int stream); /* taken in this run, feed's rate */
bool engine_stream_ended(const struct engine_thread *thread, int stream);
uint64_t engine_batches(const struct engine_thread *thread);
/* Turns of its own thread, idle ones too: after a wake, or with work, they go on as long as the thread is alive. */
uint64_t engine_turns(const struct engine_thread *thread);
const struct histogram *engine_step_times(const struct engine_thread *thread);
/* What the i-th device to fail said, "" past the last; of any engine, in the order in which it was seen. */
const char *engine_fault(const struct engine_thread *thread, int i);

#endif
