/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_ENGINE_THREAD_H
#define DAEMON_ENGINE_THREAD_H

/* The one plain path: take every stream that has a hop (daemon/stream.h), one batched step, deliver.
 *
 * engine_turn is that path and can be called without any thread or event loop. After start it allocates nothing and takes no
 * lock. A hop's time is its sample number; the clock is read twice a batch (before and after ssm_step), for the stage stamps
 * that hops carry, and twice a turn, never per hop.
 *
 * Where there is more to do than time (daemon/overload.h), patient streams wait, then live ones go down a rung
 * (daemon/ladder.h): a quarter of those of the least priority that are still the highest, each 100 ms; and up again an eighth
 * at a time, the last ones first. */

#include <stdbool.h>
#include <stdint.h>

#include "daemon/counters.h"
#include "daemon/stream.h"
#include "daemon/waker.h"
#include "model/ssm.h"

enum { ENGINE_FAULTS = 16 }; /* as many are kept */

struct engine_thread;
struct engine_batch; /* the streams of one engine, which step together */

/* A batch waits up to deadline_s for more streams to have a hop. NULL when memory runs out. */
struct engine_thread *engine_thread_create(double deadline_s);
/* Stops. Streams, batches, engines, feeds and sinks stay the caller's. NULL is fine. */
void engine_thread_destroy(struct engine_thread *thread);

/* Any thread: room for as many streams as the engine has slots. NULL when memory runs out. */
struct engine_batch *engine_batch_create(struct ssm_engine *engine);
void engine_batch_destroy(struct engine_batch *batch); /* once every stream parted, or the thread stopped; NULL is fine */

/* Before start, or in a call: a stream takes a slot of the batch's engine and turns with the others from now on; one with a
 * smaller model joins that one's batch too. -1 with *err: no slot is free. */
int engine_join(struct engine_thread *thread, struct engine_batch *batch, struct stream *stream, struct ssm_error *err);
/* The same threads: it turns no more and gives its slot back; its sinks are told nothing. */
void engine_part(struct engine_thread *thread, struct engine_batch *batch, struct stream *stream);

/* Advance every stream that has a hop by one step, and end those whose last hop went out. Gives the hops stepped plus the
 * streams ended; 0: nothing was ready. */
size_t engine_turn(struct engine_thread *thread);

/* The number of streams that have not ended; 0: nothing more will come. Any thread. */
int engine_running(const struct engine_thread *thread);

/* Turn on a thread of its own until engine_thread_stop. `delivered(arg)` is called after each turn
 * that came to something, to wake whoever serves the sinks. 0, or -1 with *err. */
int engine_thread_start(struct engine_thread *thread, void (*delivered)(void *arg), void *arg, struct ssm_error *err);
void engine_thread_stop(struct engine_thread *thread); /* now, whatever is waiting; safe to repeat; NULL is fine */

/* Something to be done on the engine's thread between two turns. It begins the caller's own struct, which stays until it is
 * answered. */
struct engine_call {
    void (*run)(struct engine_thread *thread, struct engine_call *call);
    struct engine_call *next;
    atomic_bool answered;
};

/* After start, another thread: post a call; those posted run in no particular order. `delivered` follows. */
void engine_post(struct engine_thread *thread, struct engine_call *call);
bool engine_answered(const struct engine_call *call); /* any thread */

/* What wakes the thread: given to sources, and to sinks that made room. */
struct waker *engine_thread_waker(struct engine_thread *thread);

/* Any thread. */
uint64_t engine_batches(const struct engine_thread *thread);
/* Turns of its own thread, idle ones too: after a wake, or with work, they go on as long as the thread is alive. */
uint64_t engine_turns(const struct engine_thread *thread);
const struct histogram *engine_step_times(const struct engine_thread *thread);
bool engine_waits(const struct engine_thread *thread); /* wake it when there is room in the sinks */
double engine_load(const struct engine_thread *thread); /* share of the last second or so in which it was at work for
                                                            streams that aren't patient */
const struct histogram *engine_delays(const struct engine_thread *thread); /* of each stream's first hop in a step */
/* What the i-th device to fail said, "" past the last; of any engine, in the order in which it was seen. */
const char *engine_fault(const struct engine_thread *thread, int i);

#endif
