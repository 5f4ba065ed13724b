/* SPDX-License-Identifier: MIT */
#include "daemon/engine_thread.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "dsp/clock.h"
#include "model/refuse.h"

/* The streams of one engine. */
struct batch {
    struct ssm_engine *engine;
    struct stream **streams, **taken; /* (n), (n) those in this step */
    struct ssm_hop *hops;             /* (n)                         */
    int n;
    uint64_t faults;                  /* of the engine, seen so far  */
};

struct engine_thread {
    struct waker waker;
    int64_t deadline;
    struct batch *batches;
    struct stream **streams; /* (n_streams) */
    int n_batches, n_streams, room;
    atomic_int running;
    _Atomic uint64_t n_steps, n_turns;
    struct histogram step_times, delays;
    char faults[ENGINE_FAULTS][sizeof((struct ssm_health *)0)->last];
    atomic_int n_faults; /* those of them that are written */

    pthread_t thread;
    bool started;
    atomic_bool stopping;
    void (*delivered)(void *arg);
    void *arg;
    _Atomic(struct engine_call *) posted;
};

/* ---- Set-up. ---- */

struct engine_thread *engine_thread_create(int streams, double deadline_s)
{
    struct engine_thread *thread = calloc(1, sizeof *thread);
    if (!thread) {
        return NULL;
    }
    size_t n = (size_t)(streams > 0 ? streams : 1);
    thread->waker.fd = -1;
    thread->room = streams;
    thread->deadline = (int64_t)(deadline_s * 1e9);
    thread->streams = calloc(n, sizeof *thread->streams);
    thread->batches = calloc(n, sizeof *thread->batches);
    if (!thread->streams || !thread->batches || waker_init(&thread->waker) < 0) {
        engine_thread_destroy(thread);
        return NULL;
    }
    return thread;
}

void engine_thread_destroy(struct engine_thread *thread)
{
    if (!thread) {
        return;
    }
    engine_thread_stop(thread);
    for (int i = 0; i < thread->n_batches; i++) {
        struct batch *batch = &thread->batches[i];
        free(batch->streams);
        free(batch->taken);
        free(batch->hops);
    }
    for (int i = 0; i < thread->n_streams; i++) {
        stream_destroy(thread->streams[i]);
    }
    waker_finish(&thread->waker);
    free(thread->streams);
    free(thread->batches);
    free(thread);
}

static struct batch *find_batch(struct engine_thread *thread, struct ssm_engine *engine)
{
    for (int i = 0; i < thread->n_batches; i++) {
        if (thread->batches[i].engine == engine) {
            return &thread->batches[i];
        }
    }
    struct batch *batch = &thread->batches[thread->n_batches];
    size_t room = (size_t)thread->room;
    *batch = (struct batch){.engine = engine,
                            .streams = calloc(room, sizeof *batch->streams),
                            .taken = calloc(room, sizeof *batch->taken),
                            .hops = calloc(room, sizeof *batch->hops)};
    thread->n_batches++;
    return batch->streams && batch->taken && batch->hops ? batch : NULL;
}

int engine_thread_add(struct engine_thread *thread, const struct stream_setup *setup, struct ssm_error *err)
{
    if (thread->n_streams == thread->room) {
        return refuse(err, 70, "more streams than the engine thread was made for");
    }
    struct batch *batch = find_batch(thread, setup->engine);
    if (!batch) {
        return refuse(err, 71, "out of memory for a batch");
    }
    struct stream *stream = stream_create(setup, err);
    if (!stream) {
        return -1;
    }
    batch->streams[batch->n++] = stream;
    atomic_fetch_add(&thread->running, 1);
    thread->streams[thread->n_streams] = stream;
    return thread->n_streams++;
}

static int gather(struct batch *batch)
{
    int n = 0;
    for (int i = 0; i < batch->n; i++) {
        if (stream_take(batch->streams[i], &batch->hops[n])) {
            batch->taken[n++] = batch->streams[i];
        }
    }
    return n;
}

/* Streams whose last hop is out tell their sinks so. */
static size_t retire(struct engine_thread *thread)
{
    int n = 0;
    for (int i = 0; i < thread->n_streams; i++) {
        n += stream_retire(thread->streams[i]);
    }
    atomic_fetch_sub(&thread->running, n);
    return (size_t)n;
}

/* Keep what a device that failed said, for who may print it, and where its streams are now. */
static void note_health(struct engine_thread *thread, struct batch *batch)
{
    const struct ssm_health *health = ssm_health(batch->engine);
    int n = atomic_load_explicit(&thread->n_faults, memory_order_relaxed);
    if (health->faults > batch->faults && n < ENGINE_FAULTS) {
        memcpy(thread->faults[n], health->last, sizeof health->last);
        atomic_store_explicit(&thread->n_faults, n + 1, memory_order_release);
    }
    for (int i = 0; health->faults > batch->faults && i < batch->n; i++) {
        stream_find_device(batch->streams[i]);
    }
    batch->faults = health->faults;
}

size_t engine_turn(struct engine_thread *thread)
{
    size_t hops = 0;
    for (int b = 0; b < thread->n_batches; b++) {
        struct batch *batch = &thread->batches[b];
        int n = gather(batch);
        if (n == 0) {
            continue;
        }
        int64_t enq = clock_now();
        ssm_step(batch->engine, batch->hops, n);
        int64_t inf = clock_now();
        for (int i = 0; i < n; i++) {
            stream_deliver(batch->taken[i], &batch->hops[i], enq, inf);
            histogram_add(&thread->delays, stream_delay(batch->taken[i]));
            hops += (size_t)batch->hops[i].count;
        }
        histogram_add(&thread->step_times, inf - enq);
        note_health(thread, batch);
        atomic_fetch_add_explicit(&thread->n_steps, 1, memory_order_relaxed);
    }
    return hops + retire(thread);
}

/* ---- The thread. ---- */

/* Some streams have a hop and others, that have not ended, are still to get theirs. */
static bool some_are_late(struct engine_thread *thread)
{
    bool ready = false, late = false;
    for (int i = 0; i < thread->n_streams; i++) {
        bool has = stream_has_hop(thread->streams[i]);
        ready = ready || has;
        late = late || (!has && stream_is_fed(thread->streams[i]));
    }
    return ready && late;
}

static void wait_for_more(struct engine_thread *thread)
{
    int64_t now = clock_now(), until = now + thread->deadline;
    while (now < until && some_are_late(thread) && !atomic_load(&thread->stopping)) {
        waker_wait(&thread->waker, until - now);
        now = clock_now();
    }
}

/* Run what was posted, if anything was. */
static bool answer(struct engine_thread *thread)
{
    struct engine_call *call = atomic_load_explicit(&thread->posted, memory_order_acquire);
    if (call) {
        call->run(thread, call);
        atomic_store_explicit(&thread->posted, NULL, memory_order_release);
    }
    return call != NULL;
}

static void *run(void *arg)
{
    struct engine_thread *thread = arg;
    while (!atomic_load(&thread->stopping)) {
        bool answered = answer(thread);
        size_t n = engine_turn(thread);
        atomic_fetch_add_explicit(&thread->n_turns, 1, memory_order_relaxed);
        if (n > 0 || answered) {
            thread->delivered(thread->arg);
        } else {
            waker_wait(&thread->waker, -1);
            if (thread->deadline > 0) {
                wait_for_more(thread);
            }
        }
    }
    return NULL;
}

int engine_thread_start(struct engine_thread *thread, void (*delivered)(void *arg), void *arg, struct ssm_error *err)
{
    thread->delivered = delivered;
    thread->arg = arg;
    if (pthread_create(&thread->thread, NULL, run, thread) != 0) {
        return refuse(err, 71, "the engine's thread can't be started: too many threads or too little memory");
    }
    thread->started = true;
    return 0;
}

void engine_thread_stop(struct engine_thread *thread)
{
    if (thread->started) {
        atomic_store(&thread->stopping, true);
        waker_wake(&thread->waker);
        pthread_join(thread->thread, NULL);
        thread->started = false;
    }
}

void engine_post(struct engine_thread *thread, struct engine_call *call)
{
    atomic_store_explicit(&thread->posted, call, memory_order_release);
    waker_wake(&thread->waker);
}

bool engine_answered(const struct engine_thread *thread)
{
    return atomic_load_explicit(&thread->posted, memory_order_acquire) == NULL;
}

struct stream *engine_stream(const struct engine_thread *thread, int stream)
{
    return thread->streams[stream];
}

int engine_running(const struct engine_thread *thread)
{
    return atomic_load(&thread->running);
}

struct waker *engine_thread_waker(struct engine_thread *thread)
{
    return &thread->waker;
}

uint64_t engine_batches(const struct engine_thread *thread)
{
    return atomic_load_explicit(&thread->n_steps, memory_order_relaxed);
}

uint64_t engine_turns(const struct engine_thread *thread)
{
    return atomic_load_explicit(&thread->n_turns, memory_order_relaxed);
}

const struct histogram *engine_step_times(const struct engine_thread *thread)
{
    return &thread->step_times;
}

const struct histogram *engine_delays(const struct engine_thread *thread)
{
    return &thread->delays;
}

const char *engine_fault(const struct engine_thread *thread, int i)
{
    return i < atomic_load_explicit(&thread->n_faults, memory_order_acquire) ? thread->faults[i] : "";
}
