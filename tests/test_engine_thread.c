/* SPDX-License-Identifier: MIT */
#include "daemon/engine_thread.h"
#include "daemon/gate.h"

#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include "daemon/labels.h"
#include "daemon/publish.h"
#include "daemon/worker.h"
#include "dsp/clock.h"
#include "tests/folder.h"
#include "tests/memory_sink.h"

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED 1 /* the sanitizer's own allocator is in the way of ours */
#else
#define SANITIZED 0
#endif

static const char model_path[] = "tests/data/tiny-denoise.safetensors", tag_path[] = "tests/data/tiny-tag.safetensors",
                  sensor_path[] = "tests/data/tiny-sensor.safetensors";
enum { RATE = 16000, HOP = 160 };

/* ---- What a watched thread takes from the allocator, and which locks. ---- */

static _Thread_local bool watched;
static atomic_int allocations, locks;

#if !SANITIZED
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

void *malloc(size_t n)
{
    allocations += watched;
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size)
{
    allocations += watched;
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n)
{
    allocations += watched;
    return __libc_realloc(p, n);
}
void free(void *p)
{
    allocations += watched;
    __libc_free(p);
}
int pthread_mutex_lock(pthread_mutex_t *mutex)
{
    static int (*real)(pthread_mutex_t *);
    if (!real) {
        real = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_lock");
    }
    locks += watched;
    return real(mutex);
}
#endif

/* Once a stream is under way, until it ends. */
static void watch(const struct memory_sink *memory)
{
    watched = memory->n_hops > 20 && !memory->ended;
}

/* ---- One rig: an engine, a thread object, streams with a feed and a memory sink each. ---- */

enum { STREAMS = 64 };

struct rig {
    struct ssm_engine *engine;
    struct engine_thread *thread;
    struct engine_batch *batch;
    struct stream *streams[STREAMS];
    struct feed *feeds[STREAMS];
    struct memory_sink *memories[STREAMS];
    struct sink *sinks[STREAMS][2];
    struct counters counters[STREAMS];
    int n;
};

static void rig_open_model(struct rig *rig, const char *model, int streams, int threads)
{
    struct ssm_error err = {0};
    struct ssm_options options = {.streams = streams, .threads = threads, .max_hops = STREAM_HOPS};
    *rig = (struct rig){.engine = ssm_open(model, &options, &err), .thread = engine_thread_create(0)};
    assert_string_equal(err.text, "");
    assert_non_null(rig->engine);
    rig->batch = engine_batch_create(rig->engine);
}

static void rig_open(struct rig *rig, int streams, int threads)
{
    rig_open_model(rig, model_path, streams, threads);
}

static void rig_join(struct rig *rig, int i, const struct stream_setup *setup)
{
    struct ssm_error err = {0};
    rig->streams[i] = stream_create(setup, &err);
    assert_non_null(rig->streams[i]);
    assert_int_equal(engine_join(rig->thread, rig->batch, rig->streams[i], &err), 0);
}

/* `extra`: share, bypass, deadline. */
static int rig_add_with(struct rig *rig, int rate, size_t feed, size_t size, bool patient, const struct stream_setup *extra)
{
    int i = rig->n++;
    rig->feeds[i] = feed_create(feed);
    rig->memories[i] = memory_create(size);
    rig->sinks[i][0] = &rig->memories[i]->sink;
    struct stream_setup setup = {.engine = rig->engine, .feed = rig->feeds[i], .rate = rate, .patient = patient,
                                 .sinks = rig->sinks[i], .n_sinks = 1, .counters = &rig->counters[i], .share = extra->share, .bypass = extra->bypass,
                                 .deadline = extra->deadline};
    rig_join(rig, i, &setup);
    return i;
}

static int rig_add(struct rig *rig, int rate, size_t feed, size_t size, bool patient)
{
    return rig_add_with(rig, rate, feed, size, patient, &(struct stream_setup){0});
}

static void rig_close(struct rig *rig)
{
    engine_thread_destroy(rig->thread);
    engine_batch_destroy(rig->batch);
    for (int i = 0; i < rig->n; i++) {
        stream_destroy(rig->streams[i]);
        feed_destroy(rig->feeds[i]);
        memory_destroy(rig->memories[i]);
    }
    ssm_close(rig->engine);
}

static void run_dry(struct rig *rig)
{
    while (engine_turn(rig->thread) > 0) {
    }
}

/* The definition: the same samples through ssm_step one hop at a time; hop `jump` is told `elapsed`. */
static float *by_hand(const float *in, size_t n, size_t jump, float elapsed, size_t *n_out)
{
    struct ssm_error err = {0};
    struct ssm_engine *engine = ssm_open(model_path, NULL, &err);
    size_t delay = (size_t)ssm_describe(engine)->delay, hops = (n + delay + HOP - 1) / HOP;
    float *padded = calloc(hops * HOP + 1, sizeof(float)), *out = calloc(hops * HOP + 1, sizeof(float));
    memcpy(padded, in, n * sizeof(float));
    ssm_stream stream;
    assert_int_equal(ssm_stream_open(engine, &stream), SSM_OK);
    for (size_t k = 0; k < hops; k++) {
        struct ssm_hop hop = {.stream = stream, .in = padded + k * HOP, .out = out + k * HOP, .count = 1,
                              .elapsed = k == jump ? elapsed : 1};
        assert_int_equal(ssm_step(engine, &hop, 1), 1);
    }
    memmove(out, out + delay, n * sizeof(float));
    free(padded);
    ssm_close(engine);
    *n_out = n;
    return out;
}

static float *noise(size_t n, uint64_t seed)
{
    float *samples = calloc(n + 1, sizeof(float));
    test_fill(samples, n, 0.3f, &seed);
    return samples;
}

/* ---- The cases. ---- */

static void engine_gives_what_ssm_step_gives_by_hand(void **state)
{
    (void)state;
    enum { N = 5 * RATE + 37 };
    struct rig rig;
    size_t n;
    float *in = noise(N, 1), *expected = by_hand(in, N, SIZE_MAX, 1, &n);
    rig_open(&rig, 1, 1);
    rig_add(&rig, RATE, N, N, false);
    feed_write(rig.feeds[0], in, 1, N, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    assert_int_equal(rig.memories[0]->given, N);
    assert_int_equal(rig.memories[0]->length, N);
    assert_true(rig.memories[0]->ended);
    assert_int_equal(engine_running(rig.thread), 0);
    assert_memory_equal(rig.memories[0]->samples, expected, N * sizeof(float));
    rig_close(&rig);
    free(in);
    free(expected);
}

/* Blocks of any size at any time, so that streams meet in batches of every shape. */
static void engine_keeps_64_streams_as_if_each_were_alone(void **state)
{
    (void)state;
    enum { N = RATE };
    struct rig rig;
    float *in[STREAMS];
    size_t at[STREAMS] = {0}, n;
    uint64_t seed = 5;
    rig_open(&rig, STREAMS, 2);
    for (int i = 0; i < STREAMS; i++) {
        in[i] = noise(N, (uint64_t)(100 + i));
        rig_add(&rig, RATE, N, N, false);
    }
    for (int running = STREAMS; running > 0;) {
        for (int i = 0; i < STREAMS; i++) {
            size_t block = test_bits(&seed) % 700;
            block = block < N - at[i] ? block : N - at[i];
            feed_write(rig.feeds[i], in[i] + at[i], 1, block, 1);
            at[i] += block;
            if (at[i] == N && block > 0) {
                feed_end(rig.feeds[i]);
            }
        }
        engine_turn(rig.thread);
        running = engine_running(rig.thread);
    }
    for (int i = 0; i < STREAMS; i++) {
        float *expected = by_hand(in[i], N, SIZE_MAX, 1, &n);
        assert_int_equal(rig.memories[i]->given, N);
        assert_memory_equal(rig.memories[i]->samples, expected, N * sizeof(float));
        free(expected);
        free(in[i]);
    }
    rig_close(&rig);
}

struct change {
    struct engine_call call;
    struct rig *rig;
    struct stream *joins, *parts;
};

static void apply_change(struct engine_thread *thread, struct engine_call *call)
{
    struct change *change = (struct change *)call;
    if (change->parts) {
        engine_part(thread, change->rig->batch, change->parts);
    }
    if (change->joins) {
        assert_int_equal(engine_join(thread, change->rig->batch, change->joins, &(struct ssm_error){0}), 0);
    }
}

static void nothing(void *arg)
{
    (void)arg;
}

static void call_and_wait(struct rig *rig, struct change *change)
{
    engine_post(rig->thread, &change->call);
    while (!engine_answered(&change->call)) {
    }
}

/* One stays, on an engine of two slots, while a thousand others come for some hops and go. */
static void a_stream_does_not_notice_others_that_come_and_go(void **state)
{
    (void)state;
    enum { TIMES = 1000, N = 1000 * HOP, BRIEF = 3 * HOP };
    struct rig rig;
    size_t n;
    float *in = noise(N, 9), *expected = by_hand(in, N, SIZE_MAX, 1, &n), *brief = by_hand(in, BRIEF, SIZE_MAX, 1, &n);
    rig_open(&rig, 2, 1);
    rig_add(&rig, RATE, N, N, false);
    struct ssm_error err = {0};
    assert_int_equal(engine_thread_start(rig.thread, nothing, NULL, &err), 0);
    for (int i = 0; i < TIMES; i++) {
        struct feed *feed = feed_create(BRIEF);
        struct memory_sink *memory = memory_create(N);
        struct sink *sink = &memory->sink;
        const struct stream_setup setup = {.engine = rig.engine, .feed = feed, .rate = RATE, .sinks = &sink, .n_sinks = 1,
                                           .counters = &rig.counters[1]};
        struct change change = {.call.run = apply_change, .rig = &rig, .joins = stream_create(&setup, &err)};
        feed_write(feed, in, 1, BRIEF, 1);
        feed_write(rig.feeds[0], in + i * HOP, 1, HOP, 1);
        call_and_wait(&rig, &change);
        if (i % 2) { /* it ends first */
            feed_end(feed);
            waker_wake(engine_thread_waker(rig.thread));
            while (!stream_ended(change.joins)) {
            }
            assert_memory_equal(memory->samples, brief, BRIEF * sizeof(float));
        }
        change.parts = change.joins;
        change.joins = NULL;
        call_and_wait(&rig, &change);
        assert_int_equal(engine_running(rig.thread), 1);
        stream_destroy(change.parts);
        feed_destroy(feed);
        memory_destroy(memory);
    }
    feed_end(rig.feeds[0]);
    waker_wake(engine_thread_waker(rig.thread));
    while (engine_running(rig.thread) > 0) {
    }
    assert_memory_equal(rig.memories[0]->samples, expected, N * sizeof(float));
    struct change last = {.call.run = apply_change, .rig = &rig, .parts = rig.streams[0]};
    call_and_wait(&rig, &last);
    assert_int_equal(engine_running(rig.thread), 0);
    rig_close(&rig);
    free(in);
    free(expected);
    free(brief);
}

/* A hole of whole hops on a hop's border: the next hop's elapsed is 1 + hops lost, and time runs on over the hole. */
static void engine_tells_the_model_of_lost_hops(void **state)
{
    (void)state;
    enum { BEFORE = 10 * HOP, LOST = 7 * HOP, AFTER = 12 * HOP, N = BEFORE + AFTER };
    struct rig rig;
    size_t n;
    float *in = noise(N, 2), *expected = by_hand(in, N, BEFORE / HOP, 1 + LOST / HOP, &n);
    rig_open(&rig, 1, 1);
    rig_add(&rig, RATE, N, N + LOST, false);
    feed_write(rig.feeds[0], in, 1, BEFORE, 1);
    run_dry(&rig);
    feed_skip(rig.feeds[0], LOST);
    feed_write(rig.feeds[0], in + BEFORE, 1, AFTER, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    struct memory_sink *memory = rig.memories[0];
    assert_int_equal(memory->given, N);
    assert_int_equal(memory->length, N + LOST);
    assert_int_equal(memory->holes.n, 1);
    assert_int_equal(memory->hole.from, BEFORE);
    assert_int_equal(memory->hole.to, BEFORE + LOST);
    assert_int_equal(memory->hole.n, LOST);
    assert_memory_equal(memory->samples, expected, BEFORE * sizeof(float));
    assert_memory_equal(memory->samples + BEFORE + LOST, expected + BEFORE, AFTER * sizeof(float));
    rig_close(&rig);
    free(in);
    free(expected);
}

/* A ring that is too small, in the middle of a hop. Lost: 1650..2650. Silence up to the border at 1760, 5 hops skipped (to
 * 2560), silence up to 2650. */
static void engine_is_exact_to_the_sample_in_overload(void **state)
{
    (void)state;
    enum { RING = 1024, BEFORE = 1650, LOST = 1000, AFTER = 1000, SILENCE = 200, SKIPPED = 5 * HOP };
    enum { ENTERED = BEFORE + SILENCE + AFTER, BORDER = 1760 };
    struct rig rig;
    size_t n;
    float *in = noise(BEFORE + LOST + AFTER, 3), *entered = calloc(ENTERED, sizeof(float));
    memcpy(entered, in, BEFORE * sizeof(float));
    memcpy(entered + BEFORE + SILENCE, in + BEFORE + LOST, AFTER * sizeof(float));
    float *expected = by_hand(entered, ENTERED, BORDER / HOP, 1 + SKIPPED / HOP, &n);
    rig_open(&rig, 1, 1);
    rig_add(&rig, RATE, RING, BEFORE + LOST + AFTER, false);
    feed_write(rig.feeds[0], in, 1, BEFORE - RING, 1);
    run_dry(&rig); /* less than a hop stays in staging */
    assert_int_equal(feed_write(rig.feeds[0], in + BEFORE - RING, 1, RING + LOST, 1), RING);
    run_dry(&rig);
    feed_write(rig.feeds[0], in + BEFORE + LOST, 1, AFTER, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    struct memory_sink *memory = rig.memories[0];
    assert_int_equal(memory->hole.from, BEFORE);
    assert_int_equal(memory->hole.to, BEFORE + LOST);
    assert_int_equal(memory->hole.n, LOST);
    assert_int_equal(memory->length, BEFORE + LOST + AFTER);
    assert_int_equal(memory->given, ENTERED);
    assert_memory_equal(memory->samples, expected, BORDER * sizeof(float));
    assert_memory_equal(memory->samples + BORDER + SKIPPED, expected + BORDER, (ENTERED - BORDER) * sizeof(float));
    rig_close(&rig);
    free(in);
    free(entered);
    free(expected);
}

/* Aligned like the model's output, holes and all. */
static void bypass_gives_the_input_to_the_bit(void **state)
{
    (void)state;
    enum { BEFORE = 10 * HOP + 7, LOST = 5 * HOP, AFTER = 9 * HOP + 3 };
    struct rig rig;
    float *in = noise(BEFORE + AFTER, 6);
    rig_open(&rig, 1, 1);
    rig_add_with(&rig, RATE, BEFORE + AFTER, BEFORE + LOST + AFTER, false, &(struct stream_setup){.bypass = true});
    feed_write(rig.feeds[0], in, 1, BEFORE, 1);
    feed_skip(rig.feeds[0], LOST);
    feed_write(rig.feeds[0], in + BEFORE, 1, AFTER, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    assert_memory_equal(rig.memories[0]->samples, in, BEFORE * sizeof(float));
    assert_memory_equal(rig.memories[0]->samples + BEFORE + LOST, in + BEFORE, AFTER * sizeof(float));
    assert_true(rig.memories[0]->flags & WIRE_BYPASS);
    rig_close(&rig);
    free(in);
}

static void strength_leaves_its_share_of_the_input_in(void **state)
{
    (void)state;
    enum { N = RATE };
    struct rig rig;
    size_t n;
    float *in = noise(N, 7), *expected = by_hand(in, N, SIZE_MAX, 1, &n);
    rig_open(&rig, 1, 1);
    rig_add_with(&rig, RATE, N, N, false, &(struct stream_setup){.share = 0.25f});
    feed_write(rig.feeds[0], in, 1, N, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    for (size_t i = 0; i < N; i++) {
        assert_close(rig.memories[0]->samples[i], 0.25f * in[i] + 0.75f * expected[i], 1e-6); /* one rounding more */
    }
    assert_int_equal(rig.memories[0]->flags, 0);
    rig_close(&rig);
    free(in);
    free(expected);
}

static void bypass_is_switched_while_it_runs(void **state)
{
    (void)state;
    enum { N = 30 * HOP, ON = 10 * HOP, OFF = 20 * HOP, FADE = RATE / 100, DELAY = HOP };
    struct rig rig;
    size_t n;
    float *in = noise(N, 8), *expected = by_hand(in, N, SIZE_MAX, 1, &n);
    rig_open(&rig, 1, 1);
    rig_add(&rig, RATE, N, N, false);
    for (size_t at = 0; at < N; at += HOP) {
        stream_bypass(rig.streams[0], at >= ON && at < OFF);
        feed_write(rig.feeds[0], in + at, 1, HOP, 1);
        run_dry(&rig);
    }
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    const float *out = rig.memories[0]->samples; /* sample i went out in the hop in which i + DELAY came in */
    assert_memory_equal(out, expected, (ON - DELAY) * sizeof(float));
    assert_memory_equal(out + ON - DELAY + FADE, in + ON - DELAY + FADE, (OFF - ON - FADE) * sizeof(float));
    assert_memory_equal(out + OFF - DELAY + FADE, expected + OFF - DELAY + FADE, (N - OFF + DELAY - FADE) * sizeof(float));
    rig_close(&rig);
    free(in);
    free(expected);
}

/* A tag model's scores, each about its hop; a tone from hop 20 to 30, and after hop 40 a hole of ten hops. */
static void scores_come_out_in_their_place(void **state)
{
    (void)state;
    enum { N = 60 * HOP, HOLE = 40 * HOP, LOST = 10 * HOP };
    struct rig rig;
    float *in = calloc(N, sizeof(float));
    for (int i = 0; i < N; i++) {
        bool on = (i >= 20 * HOP && i < 30 * HOP) || i >= 50 * HOP;
        in[i] = on ? 0.3f * sinf(6.2831853f * 6000 / RATE * (float)i) : 0;
    }
    rig_open_model(&rig, tag_path, 1, 1);
    rig_add(&rig, RATE, N, N + LOST, false);
    feed_write(rig.feeds[0], in, 1, HOLE, 1);
    feed_skip(rig.feeds[0], LOST);
    feed_write(rig.feeds[0], in + HOLE, 1, N - HOLE, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    const struct memory_sink *memory = rig.memories[0];
    assert_int_equal(memory->given, N);
    assert_int_equal(memory->hole.from, HOLE);
    for (size_t hop = 0; hop < (N + LOST) / HOP; hop++) {
        bool on = (hop >= 20 && hop <= 30) || hop >= 60; /* the window reaches one hop back */
        for (size_t i = hop * HOP; i < (hop + 1) * HOP; i++) {
            assert_true((memory->samples[i] > 0.5f) == on);
        }
    }
    rig_close(&rig);
    free(in);
}

/* The i-th of a sensor's hops: irregular, and in the middle a pause that is told as a gap. */
static struct cadence_hop sensor_hop(int i, float values[3])
{
    uint64_t from = (uint64_t)i * 10000 + (i >= 20 ? 2000000 : 0);
    for (int k = 0; k < 3; k++) {
        values[k] = sinf((float)(i * (k + 1)));
    }
    return (struct cadence_hop){.values = values, .elapsed = i == 20 ? 201 : i % 7 == 0 ? 1.5f : 1, .from = from,
                                .to = from + 10000, .gap = i == 20, .timed = true, .time = (double)from / 1e6};
}

/* Each row comes out where it belongs, and says what ssm_step says that is told the same times; neither memory nor a lock is
 * taken on the way, events and all. */
static void a_sensors_rows_reach_the_model_with_their_time(void **state)
{
    (void)state;
    enum { N = 300, WHERE = 200 };
    struct rig rig;
    struct ssm_error err = {0};
    struct stages stages = {0};
    struct worker *writer = worker_create();
    struct gate *gate = gate_open(NULL, &err);
    struct publisher *publisher = publisher_open(gate, "inproc://rows", "test", 1, &err);
    rig_open_model(&rig, sensor_path, 1, 1);
    struct ssm_engine *alone = ssm_open(sensor_path, NULL, &err);
    struct labels *labels = labels_create(rig.engine);
    const struct config_sink jsonl_config = {.type = SINK_JSONL, .path = "/dev/null"}, publish_config = {0};
    struct memory_sink *memory = rig.memories[rig.n++] = memory_create((N + WHERE) * 10000);
    struct sink_setup setup = {.config = &jsonl_config, .node = "test", .pipeline = "p", .model = ssm_describe(rig.engine),
                               .labels = labels, .channels = (int[]){0}, .n_channels = 1, .rate = CADENCE_TICKS,
                               .counters = rig.counters, .publisher = publisher, .stages = &stages, .writer = writer,
                               .engine = engine_thread_waker(rig.thread)};
    struct sink *sinks[3] = {&memory->sink, sink_jsonl.open(&setup, &err), NULL};
    setup.config = &publish_config;
    sinks[2] = sink_publish.open(&setup, &err);
    struct rows *rows = rows_create(3, N);
    struct stream_setup stream = {.engine = rig.engine, .rows = rows, .rate = 100, .sinks = sinks, .n_sinks = 3,
                                  .counters = rig.counters};
    rig_join(&rig, 0, &stream);
    ssm_stream slot;
    assert_int_equal(ssm_stream_open(alone, &slot), SSM_OK);

    float expected[N];
    for (int i = 0; i < N; i++) {
        float values[3], out[2];
        struct cadence_hop hop = sensor_hop(i, values);
        struct ssm_hop step = {.stream = slot, .in = values, .out = out, .count = 1, .elapsed = hop.elapsed};
        assert_int_equal(ssm_step(alone, &step, 1), 1);
        expected[i] = out[1];
        assert_true(rows_put(rows, &hop, 5));
    }
    rows_end(rows);
    allocations = locks = 0;
    memory->seen = watch;
    run_dry(&rig);
    assert_int_equal(allocations, 0);
    assert_int_equal(locks, 0);
    assert_true(memory->ended);
    assert_int_equal(memory->given, N * 10000);
    for (int i = 0; i < N; i++) {
        float values[3];
        assert_memory_equal(&memory->samples[sensor_hop(i, values).from], &expected[i], sizeof(float));
    }
    assert_int_equal(memory->holes.n, 1);
    assert_int_equal(memory->hole.from, 200000);
    assert_int_equal(memory->hole.to, 2200000);
    assert_int_equal(stream_hops(rig.streams[0]), N);
    for (int i = 1; i < 3; i++) {
        sinks[i]->ops->close(sinks[i]);
    }
    rig_close(&rig);
    rows_destroy(rows);
    free(labels);
    ssm_close(alone);
    worker_destroy(writer);
    publisher_close(publisher);
    gate_close(gate);
}

/* ---- A sensor's stream behind a restart. ---- */

enum { TICKS = 10000, COPIED = 60, KILLED = 70, LIFE = 120 };

/* The i-th reading of the sensor's life, in a run whose first one is reading `first`; told of what lies between it and the one
 * before. */
static void put_reading(struct rows *rows, int i, int before, int first, bool timed)
{
    float values[3] = {sinf((float)i), sinf((float)(2 * i)), sinf((float)(3 * i))};
    uint64_t from = (uint64_t)(i - first) * TICKS;
    const struct cadence_hop hop = {.values = values, .elapsed = (float)(i - before), .from = from, .to = from + TICKS,
                                    .timed = timed, .time = timed ? 5000 + 0.01 * i : 0.01 * (i - first)};
    assert_true(rows_put(rows, &hop, INT64_C(1000000000) + INT64_C(10000000) * i));
}

struct sensor_life {
    struct rig rig;
    struct rows *rows;
};

static void live(struct sensor_life *life)
{
    rig_open_model(&life->rig, sensor_path, 1, 1);
    life->rows = rows_create(3, LIFE);
    life->rig.n = 1;
    life->rig.memories[0] = memory_create((size_t)2 * LIFE * TICKS);
    life->rig.sinks[0][0] = &life->rig.memories[0]->sink;
    const struct stream_setup setup = {.engine = life->rig.engine, .rows = life->rows, .rate = 100, .sinks = life->rig.sinks[0],
                                       .n_sinks = 1, .counters = life->rig.counters};
    rig_join(&life->rig, 0, &setup);
}

static void die(struct sensor_life *life)
{
    rig_close(&life->rig);
    rows_destroy(life->rows);
}

/* A life up to reading KILLED, of which a state after COPIED is left, and how far it came out. Gives the record, encoded. */
static uint8_t *live_and_leave(bool timed)
{
    struct sensor_life life;
    struct record record;
    _Atomic uint64_t mark = 0;
    live(&life);
    stream_mark(life.rig.streams[0], &mark);
    for (int i = 0; i < COPIED; i++) {
        put_reading(life.rows, i, i - 1, 0, timed);
    }
    run_dry(&life.rig);
    size_t size = stream_state_size(life.rig.streams[0]);
    uint8_t *bytes = malloc(record_size(0, size));
    assert_int_equal(stream_copy(life.rig.streams[0], &record, bytes + RECORD_HEADER, size), SSM_OK);
    for (int i = COPIED; i < KILLED; i++) {
        put_reading(life.rows, i, i - 1, 0, timed);
    }
    run_dry(&life.rig);
    assert_int_equal(mark, KILLED * TICKS);
    record_encode(&record, 7, bytes);
    die(&life);
    return bytes;
}

/* What the model says of readings [0, from), then [to, LIFE): the second label's score, by reading. */
static void tell_alone(int from, int to, float expected[LIFE])
{
    struct ssm_error err = {0};
    struct ssm_engine *engine = ssm_open(sensor_path, NULL, &err);
    ssm_stream slot;
    assert_int_equal(ssm_stream_open(engine, &slot), SSM_OK);
    for (int i = 0; i < LIFE; i = i + 1 == from ? to : i + 1) {
        float values[3] = {sinf((float)i), sinf((float)(2 * i)), sinf((float)(3 * i))}, out[2];
        struct ssm_hop step = {.stream = slot, .in = values, .out = out, .count = 1, .elapsed = i == to ? (float)(1 + to - from) : 1};
        assert_int_equal(ssm_step(engine, &step, 1), 1);
        expected[i] = out[1];
    }
    ssm_close(engine);
}

/* A new life from that state, whose source gives readings [first, LIFE). */
static void go_on(struct sensor_life *life, uint8_t *bytes, int first, bool timed)
{
    struct record record;
    struct ssm_error err = {0};
    live(life);
    assert_int_equal(record_decode(&record, 7, bytes, record_size(0, stream_state_size(life->rig.streams[0])), &err), 0);
    record.out = KILLED * TICKS;
    assert_int_equal(stream_resume(life->rig.streams[0], &record, 0, &err), 0);
    for (int i = first; i < LIFE; i++) {
        put_reading(life->rows, i, i - 1, first, timed);
    }
    rows_end(life->rows);
    run_dry(&life->rig);
    free(bytes);
}

/* As far from what the state has seen as its time says; the samples in between are told as lost. */
static void a_sensor_goes_on_from_a_copy_with_the_time_between(void **state)
{
    (void)state;
    float expected[LIFE];
    tell_alone(COPIED, 90, expected);
    for (int timed = 0; timed < 2; timed++) {
        struct sensor_life life;
        go_on(&life, live_and_leave(timed), 90, timed);
        const struct memory_sink *memory = life.rig.memories[0];
        assert_int_equal(memory->given, (LIFE - 90) * TICKS);
        for (int i = 90; i < LIFE; i++) {
            assert_memory_equal(&memory->samples[i * TICKS], &expected[i], sizeof(float));
        }
        assert_int_equal(memory->holes.n, 1);
        assert_int_equal(memory->hole.from, KILLED * TICKS);
        assert_int_equal(memory->hole.to, 90 * TICKS);
        assert_int_equal(memory->hole.why, COUNTER_RESTART);
        assert_int_equal(counted(&life.rig.counters[0], COUNTER_RESTART), 90 - KILLED);
        die(&life);
    }
}

/* A source that gives its last readings again loses none: those the state has seen are late, those it hasn't go in, and none
 * comes out twice. */
static void a_sensor_that_repeats_itself_after_a_restart_loses_nothing(void **state)
{
    (void)state;
    float expected[LIFE];
    struct sensor_life life;
    tell_alone(LIFE, LIFE, expected);
    go_on(&life, live_and_leave(true), COPIED - 10, true);
    const struct memory_sink *memory = life.rig.memories[0];
    assert_int_equal(counted(&life.rig.counters[0], COUNTER_LATE_READING), 10);
    assert_int_equal(memory->given, (LIFE - KILLED) * TICKS);
    assert_int_equal(memory->samples[(KILLED - 1) * TICKS], 0);
    for (int i = KILLED; i < LIFE; i++) {
        assert_memory_equal(&memory->samples[i * TICKS], &expected[i], sizeof(float));
    }
    assert_int_equal(memory->holes.n, 0);
    die(&life);
}

static void a_sensor_whose_clock_was_set_back_goes_on_all_the_same(void **state)
{
    (void)state;
    struct sensor_life life;
    go_on(&life, live_and_leave(true), 20, true);
    assert_int_equal(counted(&life.rig.counters[0], COUNTER_LATE_READING), 16);
    assert_true(life.rig.memories[0]->given > 0 && life.rig.memories[0]->ended);
    die(&life);
}

static void engine_tells_of_a_hole_at_the_end(void **state)
{
    (void)state;
    struct rig rig;
    float *in = noise(1000, 4);
    rig_open(&rig, 1, 1);
    rig_add(&rig, RATE, 1024, 20000, false);
    feed_write(rig.feeds[0], in, 1, 1000, 1);
    feed_skip(rig.feeds[0], 9000);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    assert_int_equal(rig.memories[0]->hole.from, 1000);
    assert_int_equal(rig.memories[0]->hole.to, 10000);
    assert_int_equal(rig.memories[0]->length, 10000);
    rig_close(&rig);
    free(in);
}

/* Output as long as input, whatever the rate and however little there is. */
static void engine_gives_as_much_as_it_takes(void **state)
{
    (void)state;
    static const int rates[] = {8000, 11025, 16000, 22050, 44100, 48000, 96000};
    static const size_t lengths[] = {0, 1, 159, 160, 161, 441, 1600, 5003};
    for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
            struct rig rig;
            size_t n = lengths[k], out = (n * RATE + (size_t)rates[r] - 1) / (size_t)rates[r];
            float *in = noise(n, 6);
            rig_open(&rig, 1, 1);
            rig_add(&rig, rates[r], 8192, out, false);
            feed_write(rig.feeds[0], in, 1, n, 1);
            feed_end(rig.feeds[0]);
            run_dry(&rig);
            assert_int_equal(rig.memories[0]->given, out);
            assert_int_equal(rig.memories[0]->length, n);
            assert_true(rig.memories[0]->ended);
            rig_close(&rig);
            free(in);
        }
    }
}

/* 48 kHz: a hole of 1 s and 7 samples. Time after it is right: the click comes out where it went in. */
static void engine_keeps_time_over_a_hole_at_another_rate(void **state)
{
    (void)state;
    enum { R = 48000, BEFORE = R + 11, LOST = R + 7, AFTER = R, CLICK = 30000 };
    struct rig rig;
    float *in = calloc(AFTER, sizeof(float));
    rig_open(&rig, 1, 1);
    rig_add(&rig, R, 2 * R, 3 * RATE + 100, false);
    feed_write(rig.feeds[0], in, 1, BEFORE - CLICK, 1);
    in[CLICK] = 1;
    feed_write(rig.feeds[0], in, 1, CLICK, 1);
    run_dry(&rig);
    feed_skip(rig.feeds[0], LOST);
    feed_write(rig.feeds[0], in, 1, AFTER, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    struct memory_sink *memory = rig.memories[0];
    assert_int_equal(memory->hole.from, (BEFORE + 2) / 3);
    assert_int_equal(memory->hole.to, (BEFORE + LOST + 2) / 3);
    size_t loudest = 0;
    for (size_t i = 0; i < memory->size; i++) {
        loudest = fabsf(memory->samples[i]) > fabsf(memory->samples[loudest]) ? i : loudest;
    }
    assert_int_equal(loudest, (BEFORE + LOST + CLICK) / 3);
    rig_close(&rig);
    free(in);
}

static void engine_waits_for_room_when_the_source_is_patient(void **state)
{
    (void)state;
    enum { N = 20 * HOP };
    struct rig rig;
    float *in = noise(N, 8);
    rig_open(&rig, 1, 1);
    rig_add(&rig, RATE, N, N, true);
    rig.memories[0]->room = 0;
    feed_write(rig.feeds[0], in, 1, N, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    assert_int_equal(rig.memories[0]->given, 0);
    while (!rig.memories[0]->ended) {
        rig.memories[0]->room += HOP + 1;
        run_dry(&rig);
        assert_true(rig.memories[0]->room <= N);
    }
    assert_int_equal(rig.memories[0]->given, N);
    rig_close(&rig);
    free(in);
}

/* Its feed holds 51 hops: it waits until 25 do, then gives all the same, to be counted as lost where there is no room. */
static void a_live_stream_waits_for_room_until_half_its_feed_is_full(void **state)
{
    (void)state;
    enum { FEED = 8192, N = 40 * HOP };
    struct rig rig;
    float *in = noise(N, 8);
    rig_open(&rig, 1, 1);
    rig_add(&rig, RATE, FEED, N, false);
    struct memory_sink *memory = rig.memories[0];
    memory->room = 0;
    feed_write(rig.feeds[0], in, 1, 20 * HOP, 1);
    run_dry(&rig);
    assert_int_equal(memory->given, 0);
    assert_true(engine_waits(rig.thread));
    memory->room = 10 * HOP;
    run_dry(&rig);
    assert_int_equal(memory->given, 10 * HOP);
    feed_write(rig.feeds[0], in + 20 * HOP, 1, N - 20 * HOP, 1);
    memory->room = SIZE_MAX / 2;
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    assert_int_equal(memory->given, N);
    assert_false(engine_waits(rig.thread));

    struct rig other;
    rig_open(&other, 1, 1);
    rig_add(&other, RATE, FEED, N, false);
    other.memories[0]->room = 0;
    feed_write(other.feeds[0], in, 1, N, 1);
    run_dry(&other);
    assert_in_range(other.memories[0]->given, 6 * HOP, 16 * HOP);
    rig_close(&other);
    rig_close(&rig);
    free(in);
}

static void engine_takes_nan_for_silence_and_counts_it(void **state)
{
    (void)state;
    enum { N = 20 * HOP };
    struct rig rig;
    float *in = noise(N, 9);
    size_t n;
    in[100] = NAN;
    in[333] = INFINITY;
    rig_open(&rig, 1, 1);
    rig_add(&rig, RATE, N, N, false);
    feed_write(rig.feeds[0], in, 1, N, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    in[100] = in[333] = 0;
    float *expected = by_hand(in, N, SIZE_MAX, 1, &n);
    assert_memory_equal(rig.memories[0]->samples, expected, N * sizeof(float));
    assert_int_equal(counted(&rig.counters[0], COUNTER_NAN_INPUT), 2);
    rig_close(&rig);
    free(in);
    free(expected);
}

static void *feed_slowly(void *arg)
{
    struct rig *rig = arg;
    float *in = noise(HOP, 11);
    for (int k = 0; k < 300; k++) {
        for (int i = 0; i < rig->n; i++) {
            feed_write(rig->feeds[i], in, 1, HOP, clock_now());
        }
        waker_wake(engine_thread_waker(rig->thread));
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    for (int i = 0; i < rig->n; i++) {
        feed_end(rig->feeds[i]);
    }
    waker_wake(engine_thread_waker(rig->thread));
    free(in);
    return NULL;
}

/* Of three hops that came a second ago, at once, and one that came now, three are late. */
static void engine_counts_hops_that_are_out_too_late(void **state)
{
    (void)state;
    struct rig rig;
    float *in = noise(4 * HOP, 11);
    rig_open(&rig, 2, 1);
    rig_add_with(&rig, RATE, RATE, RATE, false, &(struct stream_setup){.deadline = 900000000});
    rig_add(&rig, RATE, RATE, RATE, false); /* has no deadline */
    struct stream *timed = rig.streams[0], *patient = rig.streams[1];
    for (int i = 0; i < 2; i++) {
        feed_write(rig.feeds[i], in, 1, 3 * HOP, clock_now() - 1000000000);
    }
    run_dry(&rig);
    assert_int_equal(stream_late(timed), 3);
    assert_int_equal(stream_late(patient), 0);
    assert_in_range(stream_delay(timed), 1000000000, 1900000000);
    assert_in_range(stream_delay(patient), 1000000000, 1900000000);
    feed_write(rig.feeds[0], in + 3 * HOP, 1, HOP, clock_now());
    run_dry(&rig);
    assert_int_equal(stream_late(timed), 3);
    assert_in_range(stream_delay(timed), 1, 900000000);
    assert_int_equal(histogram_count(engine_delays(rig.thread)), 3);
    rig_close(&rig);
    free(in);
}

/* Two seconds that wait, and a hole of 7 hops in them: the scan gives the steps' samples, and is told of the time. */
static void engine_catches_up_through_the_scan(void **state)
{
    (void)state;
    enum { BEFORE = 90 * HOP, LOST = 7 * HOP, AFTER = 110 * HOP, N = BEFORE + AFTER };
    struct rig rig;
    size_t n;
    float *in = noise(N, 12), *expected = by_hand(in, N, BEFORE / HOP, 1 + LOST / HOP, &n);
    rig_open(&rig, 1, 2);
    rig_add_with(&rig, RATE, 2 * N, N + LOST, false, &(struct stream_setup){.deadline = 1});
    feed_write(rig.feeds[0], in, 1, BEFORE, 1);
    feed_skip(rig.feeds[0], LOST);
    feed_write(rig.feeds[0], in + BEFORE, 1, AFTER, 1);
    feed_end(rig.feeds[0]);
    run_dry(&rig);
    struct memory_sink *memory = rig.memories[0];
    assert_true(engine_batches(rig.thread) < 10); /* 25 without */
    assert_int_equal(memory->given, N);
    assert_int_equal(memory->hole.from, BEFORE);
    assert_int_equal(memory->hole.to, BEFORE + LOST);
    assert_memory_equal(memory->samples, expected, BEFORE * sizeof(float));
    assert_memory_equal(memory->samples + BEFORE + LOST, expected + BEFORE, AFTER * sizeof(float));
    rig_close(&rig);
    free(in);
    free(expected);
}

/* The real thread with real sinks, at 48 kHz and 16 kHz: after start it takes no memory and no lock. */
static void hop_path_takes_no_memory_and_no_lock(void **state)
{
    (void)state;
    if (SANITIZED) {
        skip();
    }
    enum { N = 4 };
    struct rig rig;
    struct ssm_error err = {0};
    struct stages stages = {0};
    struct worker *writer = worker_create();
    struct gate *gate = gate_open(NULL, &err);
    struct publisher *publisher = publisher_open(gate, "inproc://hops", "test", N, &err);
    assert_non_null(publisher);
    rig_open(&rig, N, 2);
    for (int i = 0; i < N; i++) {
        rig_add(&rig, i % 2 ? RATE : 3 * RATE, 3 * RATE, RATE * 10, false);
        rig.memories[i]->seen = watch;
    }
    engine_thread_destroy(rig.thread); /* once more, with the first stream's three sinks, which wake it */
    rig.thread = engine_thread_create(0.001);
    for (int i = 0; i < N; i++) {
        stream_destroy(rig.streams[i]);
    }
    engine_batch_destroy(rig.batch);
    rig.batch = engine_batch_create(rig.engine);
    struct config_sink file_config = {.type = SINK_FILE}, publish_config = {0};
    snprintf(file_config.path, sizeof file_config.path, "%s", in_folder("hops.wav"));
    struct sink *others[2];
    static const int channels[1] = {0};
    struct counters counters = {0};
    struct sink_setup setup = {.config = &file_config, .node = "test", .pipeline = "p",
                               .model = ssm_describe(rig.engine), .channels = channels, .n_channels = 1,
                               .source_rate = RATE, .rate = RATE, .counters = &counters, .publisher = publisher,
                               .stages = &stages, .writer = writer, .engine = engine_thread_waker(rig.thread)};
    others[0] = sink_file.open(&setup, &err);
    setup.config = &publish_config;
    others[1] = sink_publish.open(&setup, &err);
    assert_non_null(others[0]);
    assert_non_null(others[1]);
    assert_int_equal(sink_file.begin(others[0], &err), 0);
    struct sink *all[3] = {&rig.memories[0]->sink, others[0], others[1]};
    for (int i = 0; i < N; i++) {
        struct stream_setup stream = {.engine = rig.engine, .feed = rig.feeds[i], .rate = i % 2 ? RATE : 3 * RATE,
                                      .sinks = i == 0 ? all : rig.sinks[i], .n_sinks = i == 0 ? 3 : 1,
                                      .counters = &rig.counters[i]};
        rig_join(&rig, i, &stream);
    }
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    watched = true; /* the count counts */
    void *volatile taken = malloc((size_t)rig.n);
    free(taken);
    pthread_mutex_lock(&mutex);
    watched = false;
    pthread_mutex_unlock(&mutex);
    assert_int_equal(allocations, 2);
    assert_int_equal(locks, 1);
    allocations = locks = 0;
    assert_int_equal(worker_start(writer), 0);
    assert_int_equal(engine_thread_start(rig.thread, nothing, NULL, &err), 0);
    pthread_t feeder;
    pthread_create(&feeder, NULL, feed_slowly, &rig);
    while (engine_running(rig.thread) > 0) {
        sink_publish.serve(others[1]);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    pthread_join(feeder, NULL);
    engine_thread_stop(rig.thread);
    assert_true(rig.memories[1]->n_hops >= 300);
    assert_int_equal(allocations, 0);
    assert_int_equal(locks, 0);
    worker_stop(writer);
    sink_file.close(others[0]);
    sink_publish.close(others[1]);
    worker_destroy(writer);
    publisher_close(publisher);
    gate_close(gate);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(engine_gives_what_ssm_step_gives_by_hand),
        cmocka_unit_test(engine_keeps_64_streams_as_if_each_were_alone),
        cmocka_unit_test(a_stream_does_not_notice_others_that_come_and_go),
        cmocka_unit_test(engine_tells_the_model_of_lost_hops),
        cmocka_unit_test(engine_is_exact_to_the_sample_in_overload),
        cmocka_unit_test(bypass_gives_the_input_to_the_bit),
        cmocka_unit_test(strength_leaves_its_share_of_the_input_in),
        cmocka_unit_test(bypass_is_switched_while_it_runs),
        cmocka_unit_test(scores_come_out_in_their_place),
        cmocka_unit_test(a_sensors_rows_reach_the_model_with_their_time),
        cmocka_unit_test(a_sensor_goes_on_from_a_copy_with_the_time_between),
        cmocka_unit_test(a_sensor_that_repeats_itself_after_a_restart_loses_nothing),
        cmocka_unit_test(a_sensor_whose_clock_was_set_back_goes_on_all_the_same),
        cmocka_unit_test(engine_tells_of_a_hole_at_the_end),
        cmocka_unit_test(engine_gives_as_much_as_it_takes),
        cmocka_unit_test(engine_keeps_time_over_a_hole_at_another_rate),
        cmocka_unit_test(engine_waits_for_room_when_the_source_is_patient),
        cmocka_unit_test(a_live_stream_waits_for_room_until_half_its_feed_is_full),
        cmocka_unit_test(engine_takes_nan_for_silence_and_counts_it),
        cmocka_unit_test(engine_catches_up_through_the_scan),
        cmocka_unit_test(engine_counts_hops_that_are_out_too_late),
        cmocka_unit_test(hop_path_takes_no_memory_and_no_lock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
