/* SPDX-License-Identifier: MIT */
/* daemon/ladder.c in a stream that turns, and engine_thread.c when its models take too long. */
#include "daemon/ladder.h"

#include <math.h>

#include "daemon/engine_thread.h"
#include "daemon/wire.h"
#include "dsp/clock.h"
#include "model/engine.h"
#include "tests/memory_sink.h"
#include "tests/scripted.h"

#define MAIN    "tests/data/tiny-denoise.safetensors"
#define SMALLER "tests/data/golden_denoise.safetensors"
#define TAGS    "tests/data/tiny-tag.safetensors"
#define SENSOR  "tests/data/tiny-sensor.safetensors"
enum { RATE = 16000, HOP = 160, DELAY = 160, STREAMS = 24, WARM_DOWN = 2, WARM_UP = 25 };

struct rig {
    struct ssm_engine *engines[2]; /* the model's and the smaller one's; NULL: none */
    struct engine_batch *batches[2];
    struct engine_thread *thread;
    int n;
    size_t ahead; /* samples of the hop after the one that is fed whole */
    struct stream *streams[STREAMS];
    struct feed *feeds[STREAMS];
    struct rows *rows[STREAMS]; /* of a sensor, instead */
    struct memory_sink *memories[STREAMS];
    struct sink *sinks[STREAMS];
    struct counters counters[STREAMS];
};

static void rig_open(struct rig *rig, const char *model, const char *smaller, bool scripted)
{
    struct ssm_error err = {0};
    struct ssm_options options = {.device = "cpu", .streams = STREAMS, .max_hops = STREAM_HOPS};
    const char *models[2] = {model, smaller};
    *rig = (struct rig){.thread = engine_thread_create(0)};
    for (int i = 0; i < 2 && models[i]; i++) {
        struct fleet_device device = {&scripted_ops, "cuda:0"};
        device.name[5] = (char)('0' + i);
        rig->engines[i] = scripted ? engine_open_on(models[i], &options, &device, 1, &err) : ssm_open(models[i], &options, &err);
        assert_string_equal(err.text, "");
        rig->batches[i] = engine_batch_create(rig->engines[i]);
    }
}

/* With its feed or rows. priority below 0: a patient one. */
static void rig_join(struct rig *rig, size_t size, int priority)
{
    struct ssm_error err = {0};
    int i = rig->n++;
    rig->memories[i] = memory_create(size);
    rig->sinks[i] = &rig->memories[i]->sink;
    struct stream_setup setup = {.engine = rig->engines[0], .smaller = rig->engines[1], .feed = rig->feeds[i],
                                 .rows = rig->rows[i], .rate = ssm_describe(rig->engines[0])->rate,
                                 .sinks = &rig->sinks[i], .n_sinks = 1, .counters = &rig->counters[i],
                                 .priority = priority, .patient = priority < 0, .deadline = priority < 0 ? 0 : 12000000};
    rig->streams[i] = stream_create(&setup, &err);
    for (int k = 0; k < 2 && rig->engines[k]; k++) {
        assert_int_equal(engine_join(rig->thread, rig->batches[k], rig->streams[i], &err), 0);
    }
}

static void rig_add(struct rig *rig, size_t size, int priority)
{
    rig->feeds[rig->n] = feed_create(2 * RATE);
    rig_join(rig, size, priority);
}

static void rig_add_sensor(struct rig *rig, size_t size, int priority)
{
    rig->rows[rig->n] = rows_create(3, 64);
    rig_join(rig, size, priority);
}

static void rig_close(struct rig *rig)
{
    engine_thread_destroy(rig->thread);
    for (int i = 0; i < rig->n; i++) {
        stream_destroy(rig->streams[i]);
        feed_destroy(rig->feeds[i]);
        rows_destroy(rig->rows[i]);
        memory_destroy(rig->memories[i]);
    }
    for (int i = 0; i < 2; i++) {
        engine_batch_destroy(rig->batches[i]);
        ssm_close(rig->engines[i]);
    }
}

static float *noise(size_t hops)
{
    uint64_t seed = 8;
    float *samples = calloc(hops * HOP, sizeof(float));
    test_fill(samples, hops * HOP, 0.3f, &seed);
    return samples;
}

/* Hops [from, to) of `in`, each as it comes. */
static void feed(struct rig *rig, const float *in, int from, int to)
{
    for (int k = from; k < to; k++) {
        feed_write(rig->feeds[0], in + (size_t)k * HOP + rig->ahead, 1, HOP, clock_now());
        while (engine_turn(rig->thread) > 0) {
        }
    }
}

static void feed_rest(struct rig *rig, const float *in, int from, int to)
{
    feed(rig, in, from, to);
    feed_end(rig->feeds[0]);
    while (engine_turn(rig->thread) > 0) {
    }
}

/* The definition: a model that steps on hops [from, to), but for those it is away from; behind these it is told of the time. Its
 * output for hop k is at k * HOP. */
static float *by_hand(const char *model, const float *in, int from, int away, int back, int to)
{
    struct ssm_error err = {0};
    struct ssm_engine *engine = ssm_open(model, NULL, &err);
    float *out = calloc((size_t)to * HOP, sizeof(float));
    ssm_stream stream;
    assert_int_equal(ssm_stream_open(engine, &stream), SSM_OK);
    for (int k = from; k < to; k = k + 1 == away ? back : k + 1) {
        struct ssm_hop hop = {.stream = stream, .in = in + k * HOP, .out = out + k * HOP, .count = 1,
                              .elapsed = k == back ? (float)(1 + back - away) : 1};
        assert_int_equal(ssm_step(engine, &hop, 1), 1);
    }
    ssm_close(engine);
    return out;
}

/* What came out with hops [from, to) is these hops of `expected`. */
#define assert_hops(memory, expected, from, to)                                                                                \
    assert_memory_equal((memory)->samples + (from) * HOP - DELAY, (expected) + (from) * HOP, (size_t)((to) - (from)) * HOP * 4)

static void a_smaller_model_takes_over_and_gives_back(void **state)
{
    (void)state;
    enum { DOWN = 50, LEFT = DOWN + WARM_DOWN + 1, UP = 100, RETURNED = UP + WARM_UP + 1, N = 160 };
    struct rig rig;
    float *in = noise(N), *model = by_hand(MAIN, in, 0, LEFT, UP, N), *smaller = by_hand(SMALLER, in, DOWN, -1, -1, N);
    rig_open(&rig, MAIN, SMALLER, false);
    rig_add(&rig, N * HOP, 0);
    struct memory_sink *memory = rig.memories[0];
    feed(&rig, in, 0, DOWN);
    assert_int_equal(memory->flags, 0);
    assert_true(stream_lower(rig.streams[0]));
    assert_int_equal(stream_rung(rig.streams[0]), RUNG_SMALLER);
    feed(&rig, in, DOWN, UP);
    assert_int_equal(memory->flags, WIRE_DEGRADED);
    assert_string_equal(memory->last.model->name, "golden-denoise");
    assert_true(stream_raise(rig.streams[0]));
    assert_false(stream_raise(rig.streams[0]));
    feed_rest(&rig, in, UP, N);
    assert_string_equal(memory->last.model->name, "tiny-denoise");
    assert_int_equal(memory->last.flags, 0);
    assert_int_equal(memory->given, N * HOP);
    assert_int_equal(memory->holes.n, 0);
    assert_hops(memory, model, 1, LEFT - 1);
    assert_hops(memory, smaller, LEFT, RETURNED - 1);
    assert_hops(memory, model, RETURNED, N);
    for (int i = 0; i < HOP; i++) { /* over the hop in between */
        int at = (LEFT - 1) * HOP + i;
        float share = (float)(i + 1) / HOP;
        assert_close(memory->samples[at - DELAY], share * smaller[at] + (1 - share) * model[at], 1e-6);
    }
    rig_close(&rig);
    free(in);
    free(model);
    free(smaller);
}

/* Both run for a second, then the output goes over in 50 ms; the one that was gives its slot back, and on a GPU its room, with
 * the half hop that waits there. */
static void swap_models(bool scripted)
{
    enum { SWAP = 40, WARM = RATE / HOP, FADE = RATE / HOP / 20, FADES = SWAP + WARM, OVER = FADES + FADE, SETTLED = OVER + 10, N = 200 };
    struct rig rig;
    struct ssm_error err = {0};
    float *in = noise(N + 1), *old = by_hand(MAIN, in, 0, -1, -1, N), *new = by_hand(SMALLER, in, SWAP, -1, -1, N);
    rig_open(&rig, MAIN, SMALLER, scripted);
    struct ssm_engine *smaller = rig.engines[1];
    rig.engines[1] = NULL; /* it is no rung of the ladder here */
    rig.ahead = HOP / 2;
    rig_add(&rig, N * HOP + rig.ahead, 0);
    feed_write(rig.feeds[0], in, 1, rig.ahead, clock_now());
    struct memory_sink *memory = rig.memories[0];
    struct successor *successor = successor_create(smaller);
    feed(&rig, in, 0, SWAP);
    stream_await(rig.streams[0], successor);
    assert_int_equal(engine_join(rig.thread, rig.batches[1], rig.streams[0], &err), 0);
    assert_int_equal(engine_running(rig.thread), 1);
    stream_succeed(rig.streams[0]);
    feed(&rig, in, SWAP, FADES);
    assert_string_equal(memory->last.model->name, "tiny-denoise");
    feed(&rig, in, FADES, FADES + 1);
    assert_string_equal(memory->last.model->name, "golden-denoise");
    assert_false(stream_succeeded(rig.streams[0]));
    feed(&rig, in, FADES + 1, SETTLED);
    assert_true(stream_succeeded(rig.streams[0]));
    assert_int_equal(scripts[1].inside, 0); /* until then its input lies in the other's room */
    assert_true(stream_settle(rig.streams[0], successor));
    engine_part(rig.thread, rig.batches[0], rig.streams[0]);
    stream_await_none(rig.streams[0]);
    successor_destroy(successor);
    ssm_close(rig.engines[0]);
    rig.engines[0] = smaller;
    assert_int_equal(engine_running(rig.thread), 1);
    feed_rest(&rig, in, SETTLED, N);
    assert_int_equal(memory->flags, 0);
    assert_int_equal(memory->given, N * HOP + rig.ahead);
    assert_int_equal(scripts[0].outside, 0);
    assert_int_equal(scripts[0].inside, scripted ? OVER : 0);
    assert_int_equal(scripts[1].inside, scripted ? N - SETTLED + 1 : 0); /* the last two hops in one step */
    assert_int_equal(memory->holes.n, 0);
    assert_hops(memory, old, 1, FADES);
    assert_hops(memory, new, OVER, N);
    for (int i = 0; i < FADE * HOP; i++) {
        int at = FADES * HOP + i;
        float share = (float)(i + 1) / (FADE * HOP);
        assert_close(memory->samples[at - DELAY], share * new[at] + (1 - share) * old[at], 1e-6);
    }
    rig_close(&rig);
    free(in);
    free(old);
    free(new);
}

static void another_model_takes_the_place_in_a_fade(void **state)
{
    (void)state;
    swap_models(false);
    swap_models(true);
}

static void in_bypass_no_model_runs_and_the_input_comes_out_in_its_place(void **state)
{
    (void)state;
    enum { DOWN = 50, AWAY = DOWN + 1, UP = 80, RETURNED = UP + WARM_UP + 1, N = 120 };
    struct rig rig;
    float *in = noise(N), *model = by_hand(MAIN, in, 0, AWAY, UP, N);
    rig_open(&rig, MAIN, NULL, false);
    rig_add(&rig, N * HOP, 0);
    struct memory_sink *memory = rig.memories[0];
    feed(&rig, in, 0, DOWN);
    assert_true(stream_lower(rig.streams[0]));
    assert_int_equal(stream_rung(rig.streams[0]), RUNG_BYPASS);
    feed(&rig, in, DOWN, UP);
    assert_int_equal(engine_batches(rig.thread), AWAY);
    assert_int_equal(memory->flags, WIRE_DEGRADED | WIRE_BYPASS);
    stream_raise(rig.streams[0]);
    feed_rest(&rig, in, UP, N);
    assert_int_equal(memory->given, N * HOP);
    assert_int_equal(memory->holes.n, 0);
    assert_int_equal(memory->last.flags, 0);
    assert_hops(memory, model, 1, DOWN);
    assert_hops(memory, in - DELAY, AWAY, RETURNED - 1); /* as late as the model's output */
    assert_hops(memory, model, RETURNED, N);
    rig_close(&rig);
    free(in);
    free(model);
}

/* Nothing comes out, and what is behind it is where it belongs. */
static void what_is_dropped_is_a_hole(void **state)
{
    (void)state;
    enum { DOWN = 20, DROPS = 25, UP = 60, N = 80 };
    struct rig rig;
    float *in = noise(N);
    rig_open(&rig, MAIN, NULL, false);
    rig_add(&rig, N * HOP, 0);
    struct memory_sink *memory = rig.memories[0];
    feed(&rig, in, 0, DOWN);
    stream_lower(rig.streams[0]);
    feed(&rig, in, DOWN, DROPS);
    assert_true(stream_lower(rig.streams[0]));
    assert_false(stream_lower(rig.streams[0]));
    size_t given = memory->given;
    feed(&rig, in, DROPS, UP);
    assert_int_equal(memory->given, given);
    assert_int_equal(counted(&rig.counters[0], COUNTER_OVERLOAD), (UP - DROPS) * HOP);
    stream_raise(rig.streams[0]);
    feed_rest(&rig, in, UP, N);
    assert_int_equal(memory->holes.n, 1);
    assert_int_equal(memory->hole.why, COUNTER_OVERLOAD);
    assert_int_equal(memory->hole.from, DROPS * HOP);
    assert_int_equal(memory->hole.to, UP * HOP);
    assert_int_equal(memory->length, N * HOP);
    assert_memory_equal(memory->samples + UP * HOP, in + UP * HOP, (N - UP) * HOP * sizeof(float));
    rig_close(&rig);
    free(in);
}

static void a_stream_that_ends_while_it_is_dropped_is_ended(void **state)
{
    (void)state;
    enum { DOWN = 20, N = 41 };
    struct rig rig;
    float *in = noise(N);
    rig_open(&rig, TAGS, NULL, false);
    rig_add(&rig, N * HOP, 0);
    feed(&rig, in, 0, DOWN);
    assert_true(stream_lower(rig.streams[0])); /* scores have no bypass */
    assert_int_equal(stream_rung(rig.streams[0]), RUNG_DROP);
    feed_rest(&rig, in, DOWN, N);
    struct memory_sink *memory = rig.memories[0];
    assert_true(memory->ended);
    assert_int_equal(memory->length, N * HOP);
    assert_int_equal(memory->holes.n, 1);
    assert_int_equal(memory->hole.to, N * HOP);
    assert_int_equal(engine_running(rig.thread), 0);
    rig_close(&rig);
    free(in);
}

/* ---- A sensor's. ---- */

enum { TICKS = 10000 };

static void find_values(int i, float values[3])
{
    for (int k = 0; k < 3; k++) {
        values[k] = sinf((float)(i * (k + 1)));
    }
}

static void put_reading(struct rows *rows, int i)
{
    float values[3];
    uint64_t from = (uint64_t)i * TICKS;
    const struct cadence_hop hop = {.values = values, .elapsed = 1, .from = from, .to = from + TICKS};
    find_values(i, values);
    rows_put(rows, &hop, clock_now());
}

static void put_readings(struct rig *rig, int from, int to)
{
    for (int i = from; i < to; i++) {
        put_reading(rig->rows[0], i);
        while (engine_turn(rig->thread) > 0) {
        }
    }
}

/* What a model says that steps on readings [from, to), but for [away, back): the second label's scores. */
static float *say_by_hand(int from, int away, int back, int to)
{
    struct ssm_error err = {0};
    struct ssm_engine *engine = ssm_open(SENSOR, NULL, &err);
    float *said = calloc((size_t)to, sizeof(float));
    ssm_stream stream;
    assert_int_equal(ssm_stream_open(engine, &stream), SSM_OK);
    for (int i = from; i < to; i = i + 1 == away ? back : i + 1) {
        float values[3], out[2];
        find_values(i, values);
        struct ssm_hop hop = {.stream = stream, .in = values, .out = out, .count = 1, .elapsed = i == back ? (float)(1 + back - away) : 1};
        assert_int_equal(ssm_step(engine, &hop, 1), 1);
        said[i] = out[1];
    }
    ssm_close(engine);
    return said;
}

static void assert_said(const struct memory_sink *memory, const float *said, int from, int to)
{
    for (int i = from; i < to; i++) {
        assert_memory_equal(&memory->samples[i * TICKS], &said[i], sizeof(float));
    }
}

static void a_sensor_that_is_dropped_is_told_of_the_time(void **state)
{
    (void)state;
    enum { DOWN = 30, UP = 50, N = 80 };
    struct rig rig;
    float *said = say_by_hand(0, DOWN, UP, N);
    rig_open(&rig, SENSOR, NULL, false);
    rig_add_sensor(&rig, N * TICKS, 0);
    put_readings(&rig, 0, DOWN);
    assert_true(stream_lower(rig.streams[0]));
    assert_int_equal(stream_rung(rig.streams[0]), RUNG_DROP);
    put_readings(&rig, DOWN, UP);
    assert_true(stream_raise(rig.streams[0]));
    put_readings(&rig, UP, N);
    struct memory_sink *memory = rig.memories[0];
    assert_said(memory, said, 0, DOWN);
    assert_said(memory, said, UP, N);
    assert_int_equal(memory->given, (N - UP + DOWN) * TICKS);
    assert_int_equal(memory->holes.n, 1);
    assert_int_equal(memory->hole.from, DOWN * TICKS);
    assert_int_equal(memory->hole.to, UP * TICKS);
    assert_int_equal(memory->hole.why, COUNTER_OVERLOAD);
    assert_int_equal(counted(&rig.counters[0], COUNTER_OVERLOAD), UP - DOWN);
    assert_true(stream_lower(rig.streams[0]));
    rows_end(rig.rows[0]); /* in the middle of it */
    put_readings(&rig, 0, 0);
    while (engine_turn(rig.thread) > 0) {
    }
    assert_true(memory->ended);
    rig_close(&rig);
    free(said);
}

static int copy_state(struct stream *stream)
{
    struct record record;
    size_t size = stream_state_size(stream);
    void *state = malloc(size);
    int status = stream_copy(stream, &record, state, size);
    free(state);
    return status;
}

/* The same model as its own smaller one, which begins where the stream is lowered: it says other things. */
static void a_sensors_smaller_model_takes_over_and_gives_back(void **state)
{
    (void)state;
    enum { DOWN = 30, LEFT = DOWN + WARM_DOWN + 1, UP = 60, RETURNED = UP + WARM_UP + 1, N = 100 };
    struct rig rig;
    float *model = say_by_hand(0, LEFT, UP, N), *smaller = say_by_hand(DOWN, -1, -1, N);
    rig_open(&rig, SENSOR, SENSOR, false);
    rig_add_sensor(&rig, N * TICKS, 0);
    put_readings(&rig, 0, DOWN);
    assert_true(stream_lower(rig.streams[0]));
    assert_int_equal(stream_rung(rig.streams[0]), RUNG_SMALLER);
    put_readings(&rig, DOWN, UP);
    assert_int_equal(copy_state(rig.streams[0]), SSM_REFUSED); /* the model stands still */
    assert_true(stream_raise(rig.streams[0]));
    put_readings(&rig, UP, N);
    assert_int_equal(copy_state(rig.streams[0]), SSM_OK);
    struct memory_sink *memory = rig.memories[0];
    assert_said(memory, model, 0, DOWN + WARM_DOWN);
    assert_said(memory, smaller, DOWN + WARM_DOWN, UP + WARM_UP);
    assert_said(memory, model, RETURNED, N);
    assert_int_equal(memory->holes.n, 0);
    rig_close(&rig);
    free(model);
    free(smaller);
}

/* ---- Too much to do, by a clock that only goes on where something takes time. ---- */

static const int64_t MS = 1000000;
static int64_t time_now = 1000000000;

static int64_t tell_time(void)
{
    return time_now;
}

static void pass_time(int64_t ns)
{
    time_now += ns;
}

static int set_clock(void **state)
{
    static const struct clock_world world = {.now = tell_time, .asleep = tell_time, .utc = tell_time, .pace = 1};
    clock_replace(&world);
    scripted_spend = pass_time;
    return scripted_clear(state);
}

static int reset_clock(void **state)
{
    (void)state;
    clock_replace(NULL);
    return 0;
}

/* Each stream gets a hop each 10 ms, and all turn when there is something to do. */
static void run_for(struct rig *rig, const float *in, int seconds)
{
    int64_t end = time_now + seconds * 1000 * MS, due = time_now;
    for (int at = 0; time_now < end;) {
        for (; due <= time_now; due += 10 * MS, at++) {
            for (int i = 0; i < rig->n; i++) {
                if (rig->rows[i]) {
                    put_reading(rig->rows[i], at);
                } else {
                    feed_write(rig->feeds[i], in + at * HOP % RATE, 1, HOP, due);
                }
            }
        }
        if (engine_turn(rig->thread) == 0) {
            time_now = due;
        }
    }
}

static int count_rung(const struct rig *rig, int first, int n, enum rung rung)
{
    int found = 0;
    for (int i = first; i < first + n; i++) {
        found += stream_rung(rig->streams[i]) == rung;
    }
    return found;
}

static uint64_t count_late(const struct rig *rig)
{
    uint64_t late = 0;
    for (int i = 0; i < rig->n; i++) {
        late += stream_late(rig->streams[i]);
    }
    return late;
}

static void assert_nothing_lost(const struct rig *rig)
{
    for (int i = 0; i < rig->n; i++) {
        assert_int_equal(rig->memories[i]->holes.n, 0);
        assert_int_equal(counted(&rig->counters[i], COUNTER_OVERLOAD), 0);
    }
}

/* 24 streams whose model takes 0.8 ms a hop, and the smaller one 0.05 ms: 19 ms are not to be had in 10. Those of the lower
 * priority give way, until all are in time; and come back when there is time again. */
static void who_takes_too_long_gives_way_and_comes_back(void **state)
{
    (void)state;
    enum { LOW = 18 };
    struct rig rig;
    float *in = noise(RATE / HOP + 1);
    rig_open(&rig, MAIN, SMALLER, true);
    for (int i = 0; i < STREAMS; i++) {
        rig_add(&rig, 90 * RATE, i < LOW ? 10 : 50);
    }
    scripts[0].slow_ns = 800000;
    scripts[1].slow_ns = 50000;
    run_for(&rig, in, 4);
    assert_true(count_rung(&rig, 0, LOW, RUNG_SMALLER) >= 12);
    assert_int_equal(count_rung(&rig, LOW, STREAMS - LOW, RUNG_MODEL), STREAMS - LOW);
    assert_true(engine_load(rig.thread) < 1);
    uint64_t late = count_late(&rig);
    run_for(&rig, in, 8);
    assert_int_equal(count_late(&rig), late);
    scripts[0].slow_ns = 100000;
    run_for(&rig, in, 30);
    assert_int_equal(count_rung(&rig, 0, STREAMS, RUNG_MODEL), STREAMS);
    assert_int_equal(count_late(&rig), late);
    assert_nothing_lost(&rig);
    rig_close(&rig);
    free(in);
}

/* Without one the sound goes by as it is, which takes no time. */
static void without_a_smaller_model_the_bypass_is_next(void **state)
{
    (void)state;
    struct rig rig;
    float *in = noise(RATE / HOP + 1);
    rig_open(&rig, MAIN, NULL, true);
    for (int i = 0; i < STREAMS; i++) {
        rig_add(&rig, 60 * RATE, 0);
    }
    scripts[0].slow_ns = 4000000; /* two have time */
    run_for(&rig, in, 5);
    assert_in_range(count_rung(&rig, 0, STREAMS, RUNG_MODEL), 0, 2);
    assert_int_equal(count_rung(&rig, 0, STREAMS, RUNG_DROP), 0);
    assert_nothing_lost(&rig);
    rig_close(&rig);
    free(in);
}

/* Sensors have no bypass: of 24 that take 4 ms a reading, each 10 ms, two are heard, and the others told as lost until there is time. */
static void sensors_give_way_and_come_back(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig, SENSOR, NULL, true);
    for (int i = 0; i < STREAMS; i++) {
        rig_add_sensor(&rig, 0, 0);
    }
    scripts[0].slow_ns = 4000000;
    run_for(&rig, NULL, 5);
    assert_in_range(count_rung(&rig, 0, STREAMS, RUNG_MODEL), 0, 2);
    scripts[0].slow_ns = 10000;
    run_for(&rig, NULL, 60);
    assert_int_equal(count_rung(&rig, 0, STREAMS, RUNG_MODEL), STREAMS);
    for (int i = 0; i < STREAMS; i++) {
        bool dropped = counted(&rig.counters[i], COUNTER_OVERLOAD) > 0;
        assert_true(!dropped || rig.memories[i]->hole.why == COUNTER_OVERLOAD || rig.memories[i]->hole.why == COUNTER_RING_FULL);
    }
    rig_close(&rig);
}

/* A recording that is gone through as fast as it goes is no reason for live sound to give way. */
static void who_has_time_waits_for_who_has_none(void **state)
{
    (void)state;
    enum { LIVE = 4, LONG = 60 * RATE };
    struct rig rig;
    float *in = noise(RATE / HOP + 1), *recording = noise(LONG / HOP);
    rig_open(&rig, MAIN, NULL, true);
    for (int i = 0; i < LIVE; i++) {
        rig_add(&rig, 20 * RATE, 0);
    }
    for (int i = LIVE; i < STREAMS; i++) {
        rig_add(&rig, LONG, -1);
    }
    scripts[0].slow_ns = 500000;
    rig.n = LIVE; /* that run_for feeds */
    for (int k = 0; k < 10; k++) {
        for (int i = LIVE; i < STREAMS; i++) {
            feed_write(rig.feeds[i], recording, 1, feed_room(rig.feeds[i]), time_now);
        }
        run_for(&rig, in, 1);
    }
    rig.n = STREAMS;
    assert_int_equal(count_rung(&rig, 0, LIVE, RUNG_MODEL), LIVE);
    assert_true(rig.memories[LIVE]->given > 4 * RATE);
    assert_nothing_lost(&rig);
    rig_close(&rig);
    free(in);
    free(recording);
}

/* How long after a second in which nothing turned all are in time again, ns. */
static int64_t time_to_catch_up(struct rig *rig, const float *in)
{
    for (int i = 0; i < rig->n; i++) {
        feed_write(rig->feeds[i], in, 1, RATE, time_now + 1000 * MS);
    }
    pass_time(1000 * MS);
    int64_t began = time_now, due = time_now;
    for (int behind = rig->n; behind > 0 && time_now < began + 5000 * MS;) {
        for (; due <= time_now; due += 10 * MS) {
            for (int i = 0; i < rig->n; i++) {
                feed_write(rig->feeds[i], in, 1, HOP, due);
            }
        }
        time_now += engine_turn(rig->thread) == 0 ? due - time_now : 0;
        behind = 0;
        for (int i = 0; i < rig->n; i++) {
            behind += feed_fill(rig->feeds[i]) > 2 * HOP;
        }
    }
    return time_now - began;
}

/* 24 streams that take half of the time: what waits is less each turn. Nobody gives way, and nothing is lost. */
static void who_was_stopped_for_a_second_catches_up(void **state)
{
    (void)state;
    struct rig rig;
    float *in = noise(RATE / HOP + 1);
    rig_open(&rig, MAIN, NULL, true);
    for (int i = 0; i < STREAMS; i++) {
        rig_add(&rig, 60 * RATE, 0);
    }
    scripts[0].slow_ns = 200000;
    scripts[0].scan_ns = 50000;
    for (int k = 0; k < 3; k++) {
        run_for(&rig, in, 2);
        assert_in_range(time_to_catch_up(&rig, in), 100 * MS, 800 * MS);
        assert_true(scripts[0].done[SCAN] > 0);
        assert_int_equal(count_rung(&rig, 0, STREAMS, RUNG_MODEL), STREAMS);
    }
    run_for(&rig, in, 2);
    assert_true(stream_delay(rig.streams[0]) < 10 * MS);
    assert_nothing_lost(&rig);
    rig_close(&rig);
    free(in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_smaller_model_takes_over_and_gives_back),
        cmocka_unit_test_setup_teardown(another_model_takes_the_place_in_a_fade, set_clock, reset_clock),
        cmocka_unit_test(in_bypass_no_model_runs_and_the_input_comes_out_in_its_place),
        cmocka_unit_test(what_is_dropped_is_a_hole),
        cmocka_unit_test(a_stream_that_ends_while_it_is_dropped_is_ended),
        cmocka_unit_test_setup_teardown(who_takes_too_long_gives_way_and_comes_back, set_clock, reset_clock),
        cmocka_unit_test_setup_teardown(without_a_smaller_model_the_bypass_is_next, set_clock, reset_clock),
        cmocka_unit_test(a_sensor_that_is_dropped_is_told_of_the_time),
        cmocka_unit_test(a_sensors_smaller_model_takes_over_and_gives_back),
        cmocka_unit_test_setup_teardown(sensors_give_way_and_come_back, set_clock, reset_clock),
        cmocka_unit_test_setup_teardown(who_has_time_waits_for_who_has_none, set_clock, reset_clock),
        cmocka_unit_test_setup_teardown(who_was_stopped_for_a_second_catches_up, set_clock, reset_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
