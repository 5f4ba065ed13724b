/* SPDX-License-Identifier: MIT */
#include "daemon/engine_thread.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/overload.h"
#include "dsp/clock.h"
#include "model/refuse.h"

struct engine_batch {
    struct engine_batch *next;        /* of those with streams       */
    struct ssm_engine *engine;
    struct stream **streams, **taken; /* (n), (n) those in this step, then those that pass by it */
    struct ssm_hop *hops;             /* (n)                         */
    int stepping, passing;            /* of those taken              */
    bool waits;                       /* one of them for room        */
    int n;
    uint64_t faults;                  /* of the engine, seen so far  */
    struct rooms rooms;
    struct stream_piece piece;
    float elapsed[STREAM_PIECE];      /* of a scan: 1 but for the first */
    int behind;                       /* the stream to look at first for one that has to catch up */
};

struct engine_thread {
    struct waker waker;
    int64_t deadline;
    struct engine_batch *batches, **last;
    atomic_int running;
    _Atomic uint64_t n_steps, n_turns;
    struct histogram step_times, delays;
    struct overload overload;
    atomic_bool waits; /* some stream, for room in its sinks */
    bool held; /* live streams are late: those that wait for room anyway wait */
    _Atomic double load;
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

struct engine_thread *engine_thread_create(double deadline_s)
{
    struct engine_thread *thread = calloc(1, sizeof *thread);
    if (!thread) {
        return NULL;
    }
    thread->deadline = (int64_t)(deadline_s * 1e9);
    thread->last = &thread->batches;
    overload_init(&thread->overload, clock_now());
    if (waker_init(&thread->waker) < 0) {
        free(thread);
        return NULL;
    }
    return thread;
}

void engine_thread_destroy(struct engine_thread *thread)
{
    if (thread) {
        engine_thread_stop(thread);
        waker_finish(&thread->waker);
        free(thread);
    }
}

/* Where a GPU reads and writes hops by itself; the processor does wherever they are. */
static void make_rooms(struct engine_batch *batch, const struct ssm_info *model)
{
    size_t inputs = (size_t)model->inputs * STREAM_HOPS, outputs = (size_t)model->outputs * STREAM_HOPS;
    batch->rooms.inputs = (inputs + 3) & ~(size_t)3; /* both on borders of 16 bytes */
    batch->rooms.outputs = (outputs + 3) & ~(size_t)3;
    if (strncmp(model->device, "cpu", 3) != 0) {
        size_t room = batch->rooms.inputs + batch->rooms.outputs;
        batch->rooms.memory = ssm_take_memory(batch->engine, (size_t)model->streams * room * sizeof(float));
    }
}

struct engine_batch *engine_batch_create(struct ssm_engine *engine)
{
    struct engine_batch *batch = malloc(sizeof *batch);
    const struct ssm_info *model = ssm_describe(engine);
    size_t room = (size_t)model->streams, inputs = (size_t)model->inputs, outputs = (size_t)model->outputs;
    if (batch) {
        *batch = (struct engine_batch){.engine = engine,
                                       .streams = calloc(room, sizeof *batch->streams),
                                       .taken = calloc(room, sizeof *batch->taken),
                                       .hops = calloc(room, sizeof *batch->hops),
                                       .piece = {.staging = calloc(inputs * STREAM_PIECE, sizeof(float)),
                                                 .out = calloc(outputs * STREAM_PIECE, sizeof(float))}};
        for (int i = 0; i < STREAM_PIECE; i++) {
            batch->elapsed[i] = 1;
        }
        make_rooms(batch, model);
    }
    if (batch && !(batch->streams && batch->taken && batch->hops && batch->piece.staging && batch->piece.out)) {
        engine_batch_destroy(batch);
        return NULL;
    }
    return batch;
}

void engine_batch_destroy(struct engine_batch *batch)
{
    if (batch) {
        free(batch->streams);
        free(batch->taken);
        free(batch->hops);
        free(batch->piece.staging);
        free(batch->piece.out);
        free(batch);
    }
}

static void link_batch(struct engine_thread *thread, struct engine_batch *batch)
{
    batch->next = NULL;
    *thread->last = batch;
    thread->last = &batch->next;
}

static void unlink_batch(struct engine_thread *thread, const struct engine_batch *batch)
{
    struct engine_batch **link = &thread->batches;
    while (*link != batch) {
        link = &(*link)->next;
    }
    *link = batch->next;
    thread->last = batch->next ? thread->last : link;
}

int engine_join(struct engine_thread *thread, struct engine_batch *batch, struct stream *stream, struct ssm_error *err)
{
    if (stream_open(stream, batch->engine, err) < 0) {
        return -1;
    }
    stream_house(stream, batch->engine, &batch->rooms);
    if (batch->n == 0) {
        link_batch(thread, batch);
    }
    batch->streams[batch->n++] = stream;
    atomic_fetch_add(&thread->running, stream_is_of(stream, batch->engine) && !stream_ended(stream));
    return 0;
}

void engine_part(struct engine_thread *thread, struct engine_batch *batch, struct stream *stream)
{
    int i = batch->n - 1;
    while (batch->streams[i] != stream) {
        i--;
    }
    batch->streams[i] = batch->streams[--batch->n];
    if (batch->n == 0) {
        unlink_batch(thread, batch);
    }
    atomic_fetch_sub(&thread->running, stream_is_of(stream, batch->engine) && !stream_ended(stream));
    stream_close(stream, batch->engine);
}

/* Those that step stand in front, those that pass at the end of the room. */
static void gather(struct engine_batch *batch, bool held)
{
    batch->stepping = batch->passing = 0;
    batch->waits = false;
    for (int i = 0; i < batch->n; i++) {
        struct ssm_hop hop;
        bool waits = held && stream_is_patient(batch->streams[i]);
        enum stream_need need = waits ? STREAM_NOTHING : stream_take(batch->streams[i], batch->engine, &hop);
        batch->waits = batch->waits || need == STREAM_WAITS;
        if (need == STREAM_STEP || need == STREAM_PASS) {
            int at = need == STREAM_STEP ? batch->stepping++ : batch->n - ++batch->passing;
            batch->taken[at] = batch->streams[i];
            batch->hops[at] = hop;
        }
    }
}

/* Streams whose last hop is out tell their sinks so. */
static size_t retire(struct engine_thread *thread)
{
    int n = 0;
    for (struct engine_batch *batch = thread->batches; batch; batch = batch->next) {
        for (int i = 0; i < batch->n; i++) {
            n += stream_retire(batch->streams[i]);
        }
    }
    atomic_fetch_sub(&thread->running, n);
    return (size_t)n;
}

/* Keep what a device that failed said, for who may print it, and where its streams are now. */
static void note_health(struct engine_thread *thread, struct engine_batch *batch)
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

/* ---- Overload. ---- */

/* The streams that are next to give way, or to be put back: those of one priority on one rung. */
struct group {
    int priority, n;
    enum rung rung;
};

static bool is_before(const struct group *a, const struct group *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->rung < b->rung;
}

/* Count a stream in, if it can move and none that comes before it is there. */
static void consider(struct group *group, const struct stream *stream, bool lower)
{
    struct group its = {stream_priority(stream), 1, stream_rung(stream)};
    bool moves = stream_gives_way(stream) && its.rung != (lower ? RUNG_DROP : RUNG_MODEL);
    bool first = moves && (group->n == 0 || (lower ? is_before(&its, group) : is_before(group, &its)));
    bool same = moves && group->n > 0 && its.priority == group->priority && its.rung == group->rung;
    if (first) {
        *group = its;
    } else if (same) {
        group->n++;
    }
}

/* Lower a quarter of the streams that are next, and of the rest, so many times; or raise an eighth. */
static int share(int n, int times, bool lower)
{
    int left = n;
    for (int i = 0; i < times; i++) {
        left -= lower ? (left + 3) / 4 : (left + 7) / 8;
    }
    return n - left;
}

static void move_streams(struct engine_thread *thread, int times, bool lower)
{
    struct group group = {0};
    for (struct engine_batch *batch = thread->batches; batch; batch = batch->next) {
        for (int i = 0; i < batch->n; i++) {
            if (stream_is_of(batch->streams[i], batch->engine)) {
                consider(&group, batch->streams[i], lower);
            }
        }
    }
    int left = share(group.n, times, lower);
    for (struct engine_batch *batch = thread->batches; batch; batch = batch->next) {
        for (int i = 0; i < batch->n && left > 0; i++) {
            struct stream *stream = batch->streams[i];
            bool its = stream_priority(stream) == group.priority && stream_rung(stream) == group.rung;
            if (its && stream_is_of(stream, batch->engine) && stream_gives_way(stream)) {
                left -= lower ? stream_lower(stream) : stream_raise(stream);
            }
        }
    }
}

/* What a turn came to. */
struct turn {
    int64_t began, overdue; /* overdue: of the live stream that is worst off */
    size_t hops, live;      /* live: of those, of live streams               */
};

/* Who is patient takes the time that is left: what live streams wait for it is no overload. */
static void watch_load(struct engine_thread *thread, const struct turn *turn)
{
    int64_t now = clock_now(), busy = (int64_t)((double)(now - turn->began) * (double)turn->live / (double)turn->hops);
    overload_note_busy(&thread->overload, busy);
    if (turn->live == turn->hops) {
        overload_note_waiting(&thread->overload, turn->overdue);
    }
    int verdict = overload_judge(&thread->overload, now);
    if (verdict != 0) {
        move_streams(thread, abs(verdict), verdict < 0);
    }
    atomic_store_explicit(&thread->load, thread->overload.load, memory_order_relaxed);
}

/* ---- A turn. ---- */

/* Give what a batch's step came to. */
static void deliver(struct engine_thread *thread, struct engine_batch *batch, int first, int n, int64_t enq, int64_t inf,
                    struct turn *turn)
{
    for (int i = first; i < first + n; i++) {
        struct stream *stream = batch->taken[i];
        size_t hops = (size_t)batch->hops[i].count;
        int64_t overdue;
        if (stream_deliver(stream, &batch->hops[i], enq, inf, &overdue)) {
            histogram_add(&thread->delays, stream_delay(stream));
            turn->overdue = overdue > turn->overdue ? overdue : turn->overdue;
        }
        turn->hops += hops;
        turn->live += stream_is_patient(stream) ? 0 : hops;
    }
}

static void step(struct engine_thread *thread, struct engine_batch *batch, struct turn *turn)
{
    int64_t enq = clock_now(), inf = enq;
    if (batch->stepping > 0) {
        ssm_step(batch->engine, batch->hops, batch->stepping);
        inf = clock_now();
        histogram_add(&thread->step_times, inf - enq);
        atomic_fetch_add_explicit(&thread->n_steps, 1, memory_order_relaxed);
    }
    deliver(thread, batch, 0, batch->stepping, enq, inf, turn);
    deliver(thread, batch, batch->n - batch->passing, batch->passing, enq, inf, turn);
    note_health(thread, batch);
}

/* A piece of one stream, if it is behind, from its state through the scan. */
static bool scan(struct engine_thread *thread, struct engine_batch *batch, struct stream *stream, struct turn *turn)
{
    struct ssm_hop hop;
    if (!stream_begin_scan(stream, &batch->piece, &hop)) {
        return false;
    }
    size_t blown;
    int64_t enq = clock_now();
    batch->elapsed[0] = hop.elapsed;
    hop.status = ssm_scan(batch->engine, hop.stream, hop.in, hop.out, batch->elapsed, (size_t)hop.count, &blown);
    hop.blown = blown > 0;
    stream_end_scan(stream, &batch->piece, &hop, enq, clock_now());
    note_health(thread, batch);
    turn->hops += (size_t)hop.count;
    turn->live += (size_t)hop.count;
    return true;
}

/* Those that are in time must stay so: only for half a hop, those that are behind in turn. */
static void catch_up(struct engine_thread *thread, struct engine_batch *batch, struct turn *turn)
{
    const struct ssm_info *model = ssm_describe(batch->engine);
    int64_t until = clock_now() + 500000000 * (int64_t)model->hop / model->rate;
    for (int i = 0; i < batch->n; i++) {
        batch->behind = batch->behind + 1 < batch->n ? batch->behind + 1 : 0;
        struct stream *stream = batch->streams[batch->behind];
        bool may = stream_is_of(stream, batch->engine) && !stream_is_patient(stream);
        if (may && scan(thread, batch, stream, turn) && clock_now() > until) {
            return;
        }
    }
}

/* Gives the hops. */
static size_t step_all(struct engine_thread *thread, bool held)
{
    struct turn turn = {.began = clock_now(), .overdue = -1};
    bool waits = false;
    for (struct engine_batch *batch = thread->batches; batch; batch = batch->next) {
        gather(batch, held);
        waits = waits || batch->waits;
        if (batch->stepping + batch->passing > 0) {
            step(thread, batch, &turn);
            if (turn.overdue > 0) {
                catch_up(thread, batch, &turn);
            }
        }
    }
    if (turn.hops > 0) {
        watch_load(thread, &turn);
    }
    thread->held = turn.overdue > 0;
    atomic_store_explicit(&thread->waits, waits, memory_order_relaxed);
    return turn.hops;
}

size_t engine_turn(struct engine_thread *thread)
{
    bool held = thread->held;
    size_t hops = step_all(thread, held);
    if (hops == 0 && held) {
        hops = step_all(thread, false);
    }
    return hops + retire(thread);
}

/* ---- The thread. ---- */

/* Some streams have a hop and others, that have not ended, are still to get theirs. */
static bool some_are_late(struct engine_thread *thread)
{
    bool ready = false, late = false;
    for (const struct engine_batch *batch = thread->batches; batch; batch = batch->next) {
        for (int i = 0; i < batch->n; i++) {
            bool has = stream_has_hop(batch->streams[i]);
            ready = ready || has;
            late = late || (!has && stream_is_fed(batch->streams[i]));
        }
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
    struct engine_call *calls = atomic_exchange_explicit(&thread->posted, NULL, memory_order_acquire);
    for (struct engine_call *call = calls, *next; call; call = next) {
        next = call->next; /* once it is answered, it is gone */
        call->run(thread, call);
        atomic_store_explicit(&call->answered, true, memory_order_release);
    }
    return calls != NULL;
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
    if (thread && thread->started) {
        atomic_store(&thread->stopping, true);
        waker_wake(&thread->waker);
        pthread_join(thread->thread, NULL);
        thread->started = false;
    }
}

void engine_post(struct engine_thread *thread, struct engine_call *call)
{
    atomic_store_explicit(&call->answered, false, memory_order_relaxed);
    call->next = atomic_load_explicit(&thread->posted, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&thread->posted, &call->next, call, memory_order_release,
                                                  memory_order_relaxed)) {
    }
    waker_wake(&thread->waker);
}

bool engine_answered(const struct engine_call *call)
{
    return atomic_load_explicit(&call->answered, memory_order_acquire);
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

bool engine_waits(const struct engine_thread *thread)
{
    return atomic_load_explicit(&thread->waits, memory_order_relaxed);
}

double engine_load(const struct engine_thread *thread)
{
    return atomic_load_explicit(&thread->load, memory_order_relaxed);
}

const char *engine_fault(const struct engine_thread *thread, int i)
{
    return i < atomic_load_explicit(&thread->n_faults, memory_order_acquire) ? thread->faults[i] : "";
}
