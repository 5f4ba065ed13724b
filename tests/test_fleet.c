/* SPDX-License-Identifier: MIT */
/* model/backend_fleet.c over scripted devices. */
#include "model/backend_fleet.h"

#include <unistd.h>

#include "dsp/clock.h"
#include "model/engine.h"
#include "tests/scripted.h"

#define TINY "tests/data/tiny-denoise.safetensors"
enum { HOP = 160, HOPS = 400, STREAMS = 7, SLOTS = SCRIPTED_SLOTS, DEVICES = SCRIPTED_DEVICES, CARRIED_US = 200 };

/* ---- set-up ---- */

static struct ssm_engine *open_on(int devices, int streams, float copy_s, struct ssm_error *err)
{
    struct fleet_device list[DEVICES];
    for (int i = 0; i < devices; i++) {
        list[i].ops = &scripted_ops;
        snprintf(list[i].name, sizeof list[i].name, "cuda:%d", i);
    }
    struct ssm_options options = {.streams = streams, .max_hops = 8, .copy_s = copy_s};
    return engine_open_on(TINY, &options, list, devices, err);
}

static struct ssm_engine *open_fleet(int devices, int streams, float copy_s)
{
    struct ssm_error err;
    struct ssm_engine *engine = open_on(devices, streams, copy_s, &err);
    if (!engine) {
        fail_msg("%s", err.text);
    }
    return engine;
}

static struct ssm_engine *open_cpu(int streams)
{
    struct ssm_error err;
    struct ssm_engine *engine =
        ssm_open(TINY, &(struct ssm_options){.device = "cpu", .streams = streams, .max_hops = 8}, &err);
    assert_non_null(engine);
    return engine;
}

static float *make_samples(size_t n, uint64_t seed)
{
    float *samples = malloc(n * sizeof *samples);
    for (size_t i = 0; i < n; i++) {
        samples[i] = 0.3f * sinf((float)i * 0.05f * (float)(1 + seed % 5)) + 0.05f * test_uniform(&seed);
    }
    return samples;
}

/* Many streams side by side, each with its own sound. */
struct crowd {
    struct ssm_engine *engine;
    ssm_stream streams[SLOTS];
    float *in[SLOTS], *out[SLOTS];
    struct ssm_hop hops[SLOTS];
    int n, at;
};

static struct crowd crowd_open(struct ssm_engine *engine, int n)
{
    struct crowd crowd = {.engine = engine, .n = n};
    for (int i = 0; i < n; i++) {
        assert_int_equal(ssm_stream_open(engine, &crowd.streams[i]), SSM_OK);
        crowd.in[i] = make_samples((size_t)HOPS * HOP, (uint64_t)i + 3);
        crowd.out[i] = calloc((size_t)HOPS * HOP, sizeof(float));
    }
    return crowd;
}

/* One hop of every stream; gives how many came back SSM_OK. */
static int crowd_step(struct crowd *crowd)
{
    size_t at = (size_t)crowd->at++ * HOP;
    for (int i = 0; i < crowd->n; i++) {
        crowd->hops[i] = (struct ssm_hop){
            .stream = crowd->streams[i], .in = crowd->in[i] + at, .out = crowd->out[i] + at, .count = 1, .elapsed = 1};
    }
    int good = ssm_step(crowd->engine, crowd->hops, crowd->n);
    for (int i = 0; i < crowd->n; i++) {
        assert_true(crowd->hops[i].status == SSM_OK || crowd->hops[i].status == SSM_FAULT);
        good -= crowd->hops[i].status == SSM_OK;
        for (int k = 0; crowd->hops[i].status == SSM_FAULT && k < HOP; k++) {
            assert_true(crowd->hops[i].out[k] == 0);
        }
    }
    assert_int_equal(good, 0);
    int faults = 0;
    for (int i = 0; i < crowd->n; i++) {
        faults += crowd->hops[i].status == SSM_FAULT;
    }
    return crowd->n - faults;
}

static void crowd_close(struct crowd *crowd)
{
    for (int i = 0; i < crowd->n; i++) {
        free(crowd->in[i]);
        free(crowd->out[i]);
    }
    ssm_close(crowd->engine);
}

static struct crowd run_on_cpu(int n)
{
    struct crowd crowd = crowd_open(open_cpu(n), n);
    while (crowd.at < HOPS) {
        assert_int_equal(crowd_step(&crowd), n);
    }
    return crowd;
}

static bool same(const struct crowd *a, const struct crowd *b, int stream, int from, int to)
{
    return !memcmp(a->out[stream] + from * HOP, b->out[stream] + from * HOP, (size_t)(to - from) * HOP * sizeof(float));
}

static float largest(const struct crowd *a, const struct crowd *b, int stream, int from, int to)
{
    float most = 0;
    for (int i = from * HOP; i < to * HOP; i++) {
        most = fmaxf(most, fabsf(a->out[stream][i] - b->out[stream][i]));
    }
    return most;
}

static void assert_no_call_after_the_fault(void)
{
    for (int i = 0; i < DEVICES; i++) {
        assert_int_equal(scripts[i].after, 0);
    }
}

/* ---- memory ---- */

/* The crowd's hops go where the engine's devices reach them. */
static void move_in(struct crowd *crowd)
{
    size_t bytes = (size_t)HOPS * HOP * sizeof(float);
    char *in = ssm_take_memory(crowd->engine, (size_t)crowd->n * bytes), *out = ssm_take_memory(crowd->engine, (size_t)crowd->n * bytes);
    assert_non_null(in);
    assert_non_null(out);
    for (int i = 0; i < crowd->n; i++) {
        memcpy(in + (size_t)i * bytes, crowd->in[i], bytes);
        free(crowd->in[i]);
        free(crowd->out[i]);
        crowd->in[i] = (float *)(void *)(in + (size_t)i * bytes);
        crowd->out[i] = (float *)(void *)(out + (size_t)i * bytes);
    }
}

static void move_out(struct crowd *crowd)
{
    for (int i = 0; i < crowd->n; i++) {
        crowd->in[i] = crowd->out[i] = NULL;
    }
    crowd_close(crowd);
}

static void memory_is_every_devices_and_pinned_once(void **context)
{
    (void)context;
    struct ssm_engine *engine = open_fleet(2, STREAMS, 0);
    for (int i = 0; i < 8; i++) {
        char *memory = ssm_take_memory(engine, 100);
        assert_non_null(memory);
        memory[99] = 1;
    }
    assert_null(ssm_take_memory(engine, 100));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(scripts[i].reaches, 8);
        assert_int_equal(scripts[i].pinned, i * 8);
        assert_int_equal(scripts[i].let_go, 0);
    }
    ssm_close(engine);
    engine = open_cpu(STREAMS);
    assert_non_null(ssm_take_memory(engine, 1));
    assert_null(ssm_take_memory(engine, 0));
    ssm_close(engine);
}

/* What was in it stays, what the step gave elsewhere too, and nobody has the old pages. */
static void who_hangs_lets_go_of_memory(void **context)
{
    (void)context;
    for (int lingers = 0; lingers < 2; lingers++) {
        scripted_clear(NULL);
        struct crowd crowd = crowd_open(open_fleet(2, STREAMS, 0), STREAMS), best = run_on_cpu(STREAMS);
        move_in(&crowd);
        scripts[0].at[STEP] = 20;
        scripts[0].lingers = lingers;
        while (crowd.at < HOPS) {
            int good = crowd_step(&crowd);
            assert_int_equal(good, crowd.at == 20 ? STREAMS / 2 : STREAMS);
        }
        for (int i = 0; i < 2; i++) {
            assert_int_equal(scripts[i].reaches, 2);
            assert_int_equal(scripts[i].let_go, i * lingers); /* who is lost isn't asked */
        }
        for (int i = 0; i < STREAMS; i++) {
            assert_true(same(&crowd, &best, i, 0, i % 2 ? HOPS : 19));
        }
        assert_non_null(ssm_take_memory(crowd.engine, 1));
        assert_int_equal(scripts[0].reaches, 2);
        assert_int_equal(scripts[1].reaches, lingers ? 2 : 3);
        assert_no_call_after_the_fault();
        move_out(&crowd);
        crowd_close(&best);
    }
}

/* ---- a step ---- */

static void gives_the_same_bits_on_any_number_of_devices(void **context)
{
    (void)context;
    struct crowd want = run_on_cpu(STREAMS);
    for (int devices = 1; devices <= DEVICES; devices++) {
        struct crowd crowd = crowd_open(open_fleet(devices, STREAMS, 0), STREAMS);
        while (crowd.at < HOPS) {
            assert_int_equal(crowd_step(&crowd), STREAMS);
        }
        for (int i = 0; i < STREAMS; i++) {
            assert_true(same(&crowd, &want, i, 0, HOPS));
        }
        assert_int_equal(ssm_health(crowd.engine)->faults, 0);
        crowd_close(&crowd);
    }
    crowd_close(&want);
}

static void goes_on_after_a_fault_as_after_a_gap_since_the_copy(void **context)
{
    (void)context;
    enum { COPIED = 16, FAILS = 20 }; /* copy_s 0.1 s: due after 16 hops, the least */
    scripts[0].at[STEP] = FAILS;
    struct crowd crowd = crowd_open(open_fleet(1, 1, 0.1f), 1), want = crowd_open(open_cpu(1), 1);
    while (crowd.at < HOPS) {
        int expected = crowd.at == FAILS - 1 ? 0 : 1;
        assert_int_equal(crowd_step(&crowd), expected);
    }
    while (want.at < COPIED) {
        crowd_step(&want);
    }
    assert_true(same(&crowd, &want, 0, 0, COPIED));
    want.at = FAILS;
    struct ssm_hop hop = {.stream = want.streams[0], .in = want.in[0] + FAILS * HOP, .out = want.out[0] + FAILS * HOP,
                          .count = 1, .elapsed = 1 + FAILS - COPIED};
    assert_int_equal(ssm_step(want.engine, &hop, 1), 1);
    want.at++;
    while (want.at < HOPS) {
        crowd_step(&want);
    }
    assert_true(same(&crowd, &want, 0, FAILS, HOPS));
    assert_no_call_after_the_fault();
    crowd_close(&crowd);
    crowd_close(&want);
}

static void tells_what_happened(void **context)
{
    (void)context;
    scripts[0].at[STEP] = 30;
    struct crowd crowd = crowd_open(open_fleet(1, STREAMS, 0), STREAMS);
    struct ssm_device_info info;
    const struct ssm_health *health = ssm_health(crowd.engine);
    while (crowd.at < 40) {
        crowd_step(&crowd);
    }
    assert_int_equal(health->faults, 1);
    assert_int_equal(health->failed_hops, STREAMS);
    assert_int_equal(health->moved, STREAMS);
    assert_string_equal(health->last, "cuda:0: an illegal memory access was encountered");
    assert_true(ssm_describe_device(crowd.engine, 0, &info));
    assert_true(info.lost);
    assert_string_equal(info.name, "cuda:0 scripted");
    assert_false(ssm_describe_device(crowd.engine, 1, &info));
    crowd_close(&crowd);
}

/* Streams of the failed device, and only those, miss that hop; an hour later nobody can tell. */
static void leaves_the_other_devices_streams_alone(void **context)
{
    (void)context;
    enum { FAILS = 50 };
    scripts[1].at[STEP] = FAILS;
    struct crowd want = run_on_cpu(STREAMS), crowd = crowd_open(open_fleet(2, STREAMS, 0.2f), STREAMS);
    while (crowd.at < HOPS) {
        int expected = crowd.at == FAILS - 1 ? STREAMS - STREAMS / 2 : STREAMS;
        assert_int_equal(crowd_step(&crowd), expected);
    }
    for (int i = 0; i < STREAMS; i++) {
        bool other = i % 2 == 0;
        assert_true(same(&crowd, &want, i, 0, other ? HOPS : FAILS - 1));
        assert_close(largest(&crowd, &want, i, HOPS - 100, HOPS), 0, 1e-4); /* of full scale */
    }
    assert_int_equal(ssm_health(crowd.engine)->moved, STREAMS / 2);
    assert_no_call_after_the_fault();
    crowd_close(&crowd);
    crowd_close(&want);
}

static void survives_the_loss_of_every_device(void **context)
{
    (void)context;
    scripts[0].at[STEP] = 80;
    scripts[1].at[STEP] = 50;
    scripts[2].at[STEP] = 80;
    struct crowd want = run_on_cpu(STREAMS), crowd = crowd_open(open_fleet(3, STREAMS, 0.2f), STREAMS);
    int failed = 0;
    while (crowd.at < HOPS) {
        failed += STREAMS - crowd_step(&crowd);
    }
    assert_int_equal(failed, STREAMS);
    for (int i = 0; i < STREAMS; i++) {
        assert_close(largest(&crowd, &want, i, HOPS - 100, HOPS), 0, 1e-4);
    }
    assert_int_equal(ssm_health(crowd.engine)->faults, 3);
    assert_int_equal(ssm_health(crowd.engine)->moved, STREAMS);
    assert_no_call_after_the_fault();
    crowd_close(&crowd);
    crowd_close(&want);
}

static void devices_that_fail_at_once_are_all_told(void **context)
{
    (void)context;
    scripts[0].at[STEP] = scripts[2].at[STEP] = 3;
    struct crowd crowd = crowd_open(open_fleet(3, STREAMS, 0), STREAMS);
    while (crowd.at < 4) {
        crowd_step(&crowd);
    }
    assert_int_equal(ssm_health(crowd.engine)->faults, 2);
    assert_string_equal(ssm_health(crowd.engine)->last, "cuda:0: an illegal memory access was encountered; "
                                                        "cuda:2: an illegal memory access was encountered");
    for (int i = 0; i < STREAMS; i++) {
        assert_int_equal(ssm_stream_device(crowd.engine, crowd.streams[i]), i % 3 == 1 ? 1 : -1);
    }
    crowd_close(&crowd);
}

static void misses_one_hop_and_a_hundred_milliseconds_at_most(void **context)
{
    (void)context;
    scripts[0].at[STEP] = 120;
    struct crowd crowd = crowd_open(open_fleet(1, 16, 0), 16);
    while (crowd.at < 119) {
        crowd_step(&crowd);
    }
    int64_t start = clock_now();
    assert_int_equal(crowd_step(&crowd), 0);
    assert_int_equal(crowd_step(&crowd), 16);
    assert_true(clock_now() - start < 100000000);
    crowd_close(&crowd);
}

static void steps_of_several_hops_are_void_as_a_whole(void **context)
{
    (void)context;
    scripts[0].at[STEP] = 2;
    struct ssm_engine *engine = open_fleet(1, 1, 0);
    float *in = make_samples(HOPS * HOP, 1), *out = calloc(HOPS * HOP, sizeof *out);
    struct ssm_hop hop = {.in = in, .out = out, .count = 8};
    assert_int_equal(ssm_stream_open(engine, &hop.stream), SSM_OK);
    assert_int_equal(ssm_step(engine, &hop, 1), 1);
    assert_int_equal(ssm_step(engine, &hop, 1), 0);
    assert_int_equal(hop.status, SSM_FAULT);
    assert_int_equal(ssm_health(engine)->failed_hops, 8);
    assert_int_equal(ssm_step(engine, &hop, 1), 1);
    ssm_close(engine);
    free(in);
    free(out);
}

/* ---- copies ---- */

static void copies_each_stream_once_a_second_of_its_hops(void **context)
{
    (void)context;
    enum { MANY = 200 };
    struct crowd crowd = crowd_open(open_fleet(2, MANY, 0), MANY);
    while (crowd.at < HOPS) {
        crowd_step(&crowd);
    }
    assert_in_range(scripts[0].oldest, 50, 100);
    assert_in_range(scripts[1].oldest, 50, 100);
    assert_in_range(scripts[0].done[GET], MANY / 2 * HOPS / 100, MANY / 2 * HOPS / 50);
    crowd_close(&crowd);
}

static void streams_that_come_seldom_are_copied_too(void **context)
{
    (void)context;
    struct crowd crowd = crowd_open(open_fleet(1, SLOTS, 0), SLOTS);
    for (uint64_t seed = 1; crowd.at < HOPS - 1; crowd.at++) {
        struct ssm_hop hops[SLOTS];
        int n = 0;
        for (int i = 0; i < SLOTS; i++) {
            if (test_bits(&seed) % 3 == 0) { /* a third of them, others each time */
                hops[n++] = (struct ssm_hop){
                    .stream = crowd.streams[i], .in = crowd.in[i] + crowd.at * HOP, .out = crowd.out[i], .count = 1};
            }
        }
        assert_int_equal(ssm_step(crowd.engine, hops, n), n);
    }
    assert_in_range(scripts[0].oldest, 50, 100);
    crowd_close(&crowd);
}

static void a_copy_that_fails_voids_nothing(void **context)
{
    (void)context;
    scripts[0].at[GET] = 2;
    struct crowd want = run_on_cpu(STREAMS), crowd = crowd_open(open_fleet(1, STREAMS, 0.2f), STREAMS);
    while (crowd.at < HOPS) {
        assert_int_equal(crowd_step(&crowd), STREAMS);
    }
    for (int i = 0; i < STREAMS; i++) {
        assert_close(largest(&crowd, &want, i, HOPS - 100, HOPS), 0, 1e-4);
    }
    assert_int_equal(ssm_health(crowd.engine)->faults, 1);
    assert_int_equal(ssm_health(crowd.engine)->failed_hops, 0);
    assert_no_call_after_the_fault();
    crowd_close(&crowd);
    crowd_close(&want);
}

static void copies_beside_the_steps_come_as_often(void **context)
{
    (void)context;
    enum { MANY = 200 };
    scripts[0].beside = scripts[1].beside = 16;
    struct crowd crowd = crowd_open(open_fleet(2, MANY, 0), MANY);
    while (crowd.at < HOPS) {
        crowd_step(&crowd);
    }
    assert_in_range(scripts[0].oldest, 50, 100);
    assert_in_range(scripts[1].oldest, 50, 100);
    crowd_close(&crowd);
}

/* Streams begin anew while copies of them are under way, and the device fails: they go on from the new beginning. */
static void a_copy_under_way_never_replaces_a_newer_state(void **context)
{
    (void)context;
    for (int fails = 30; fails < 36; fails++) {
        scripted_clear(NULL);
        scripts[0].beside = 3;
        scripts[0].at[STEP] = fails;
        struct crowd want = crowd_open(open_cpu(STREAMS), STREAMS);
        struct crowd crowd = crowd_open(open_fleet(1, STREAMS, 0.1f), STREAMS);
        while (crowd.at < fails - 1) {
            assert_int_equal(crowd_step(&crowd), STREAMS);
        }
        for (int i = 0; i < STREAMS; i++) {
            assert_int_equal(ssm_stream_reset(crowd.engine, crowd.streams[i]), SSM_OK);
        }
        assert_int_equal(crowd_step(&crowd), 0);
        want.at = crowd.at;
        assert_int_equal(crowd_step(&crowd), STREAMS);
        for (int i = 0; i < STREAMS; i++) {
            struct ssm_hop hop = {.stream = want.streams[i], .in = want.in[i] + fails * HOP,
                                  .out = want.out[i] + fails * HOP, .count = 1, .elapsed = 2};
            assert_int_equal(ssm_step(want.engine, &hop, 1), 1);
            assert_true(same(&crowd, &want, i, fails, fails + 1));
        }
        assert_no_call_after_the_fault();
        crowd_close(&crowd);
        crowd_close(&want);
    }
}

/* In the hop behind the one that failed: how often a stream went on to the bit as after a gap since a moment of its past. */
static int count_moments(const struct crowd *crowd, int fails)
{
    struct crowd want = crowd_open(open_cpu(STREAMS + 1), STREAMS);
    size_t size = ssm_state_size(want.engine);
    void *state = malloc(size);
    ssm_stream again;
    assert_int_equal(ssm_stream_open(want.engine, &again), SSM_OK);
    int found = 0;
    while (want.at < fails) { /* from 0: there may have been no time for copies */
        for (int i = 0; i < STREAMS; i++) {
            struct ssm_hop hop = {.stream = again,
                                  .in = want.in[i] + fails * HOP,
                                  .out = want.out[i] + fails * HOP,
                                  .count = 1,
                                  .elapsed = (float)(1 + fails - want.at)};
            assert_int_equal(ssm_state_save(want.engine, want.streams[i], state, size), size);
            assert_int_equal(ssm_state_load(want.engine, again, state, size, NULL), SSM_OK);
            assert_int_equal(ssm_step(want.engine, &hop, 1), 1);
            found += same(crowd, &want, i, fails, fails + 1);
        }
        crowd_step(&want);
    }
    free(state);
    crowd_close(&want);
    return found;
}

/* Each stream from a moment of its own, of which the time that has passed since is told: that of the step in progress too, in which
 * every second time copies are begun. */
static void goes_on_from_copies_made_beside_the_steps(void **context)
{
    (void)context;
    enum { FAILS = 90, TURNS = 4 };
    struct crowd untouched = run_on_cpu(STREAMS);
    for (int fails = FAILS; fails < FAILS + TURNS; fails++) {
        scripted_clear(NULL);
        scripts[0].beside = 2;
        scripts[0].at[STEP] = fails;
        struct crowd crowd = crowd_open(open_fleet(1, STREAMS, 0.1f), STREAMS);
        while (crowd.at < fails - 1) {
            assert_int_equal(crowd_step(&crowd), STREAMS);
            usleep(CARRIED_US);
        }
        assert_int_equal(crowd_step(&crowd), 0);
        assert_int_equal(crowd_step(&crowd), STREAMS);
        assert_int_equal(count_moments(&crowd, fails), STREAMS);
        while (crowd.at < HOPS) {
            assert_int_equal(crowd_step(&crowd), STREAMS);
        }
        for (int i = 0; i < STREAMS; i++) {
            assert_close(largest(&crowd, &untouched, i, HOPS - 100, HOPS), 0, 1e-4);
        }
        assert_int_equal(ssm_health(crowd.engine)->moved, STREAMS);
        assert_no_call_after_the_fault();
        crowd_close(&crowd);
    }
    crowd_close(&untouched);
}

/* ---- a scan ---- */

/* Each blown hop ends what was scanned behind it; few hops are scanned in vain, and what is good is as it would be without. */
static void many_blown_hops_are_not_scanned_over_and_over(void **context)
{
    (void)context;
    enum { FIRST = 90, LAST = 290, AFTER = HOPS - LAST };
    float *in = make_samples(HOPS * HOP, 5), *out = calloc(HOPS * HOP, sizeof *out), *want = calloc(AFTER * HOP, sizeof *want);
    size_t blown;
    ssm_stream stream;
    struct ssm_engine *cpu = open_cpu(1), *engine = open_fleet(1, 1, 0);
    for (int i = FIRST * HOP; i < LAST * HOP; i++) {
        in[i] = 3e38f;
    }
    ssm_stream_open(cpu, &stream);
    assert_int_equal(ssm_scan(cpu, stream, in + LAST * HOP, want, NULL, AFTER, &blown), SSM_OK);
    ssm_stream_open(engine, &stream);
    assert_int_equal(ssm_scan(engine, stream, in, out, NULL, HOPS, &blown), SSM_OK);
    assert_in_range(blown, LAST - FIRST, LAST - FIRST + 1); /* the one behind them overlaps the last */
    assert_in_range(scripts[0].scanned, HOPS, HOPS + 64);
    assert_memory_equal(out + (LAST + 1) * HOP, want + HOP, (AFTER - 1) * HOP * sizeof *out);
    ssm_close(engine);
    ssm_close(cpu);
    free(in);
    free(out);
    free(want);
}

/* The device likes 64 hops at once, so 400 are seven calls of scan. */
static void a_scan_repeats_what_failed_and_gives_the_same_bits(void **context)
{
    (void)context;
    float *in = make_samples(HOPS * HOP, 5), *out = calloc(HOPS * HOP, sizeof *out), *want = calloc(HOPS * HOP, sizeof *want);
    size_t blown;
    ssm_stream stream;
    struct ssm_engine *cpu = open_cpu(1);
    ssm_stream_open(cpu, &stream);
    assert_int_equal(ssm_scan(cpu, stream, in, want, NULL, HOPS, &blown), SSM_OK);
    ssm_close(cpu);
    for (enum call call = SCAN; call <= GET; call++) {
        for (int at = 1; at <= 7; at += 3) {
            scripted_clear(NULL);
            scripts[0].at[call] = at;
            struct ssm_engine *engine = open_fleet(1, 1, 0);
            ssm_stream_open(engine, &stream);
            assert_int_equal(ssm_scan(engine, stream, in, out, NULL, HOPS, &blown), SSM_OK);
            assert_memory_equal(out, want, HOPS * HOP * sizeof *out);
            assert_int_equal(ssm_health(engine)->faults, 1);
            assert_int_equal(ssm_health(engine)->failed_hops, 0);
            assert_no_call_after_the_fault();
            ssm_close(engine);
        }
    }
    free(in);
    free(out);
    free(want);
}

static void a_scan_goes_on_from_steps(void **context)
{
    (void)context;
    enum { STEPS = 10 };
    struct crowd want = run_on_cpu(1);
    for (int lost = 0; lost < 2; lost++) {
        scripted_clear(NULL);
        scripts[0].at[SCAN] = lost;
        struct crowd crowd = crowd_open(open_fleet(1, 1, 0), 1);
        while (crowd.at < STEPS) {
            crowd_step(&crowd);
        }
        assert_int_equal(ssm_scan(crowd.engine, crowd.streams[0], crowd.in[0] + STEPS * HOP, crowd.out[0] + STEPS * HOP,
                                  NULL, HOPS - STEPS, NULL),
                         SSM_OK);
        assert_close(largest(&crowd, &want, 0, 0, HOPS), 0, 1e-4);
        crowd_close(&crowd);
    }
    crowd_close(&want);
}

static void a_scan_after_the_loss_bridges_the_time_since_the_copy(void **context)
{
    (void)context;
    enum { STEPS = 10 };
    scripts[0].at[STEP] = STEPS;
    struct crowd want = run_on_cpu(1), crowd = crowd_open(open_fleet(1, 1, 0), 1);
    while (crowd.at < STEPS) {
        crowd_step(&crowd);
    }
    float elapsed[HOPS];
    for (int i = 0; i < HOPS; i++) {
        elapsed[i] = 1;
    }
    assert_int_equal(ssm_scan(crowd.engine, crowd.streams[0], crowd.in[0] + STEPS * HOP, crowd.out[0] + STEPS * HOP, elapsed,
                              HOPS - STEPS, NULL),
                     SSM_OK);
    assert_close(largest(&crowd, &want, 0, HOPS - 100, HOPS), 0, 1e-4);
    crowd_close(&crowd);
    crowd_close(&want);
}

/* ---- states ---- */

static void a_state_that_cant_be_got_is_a_fault_once(void **context)
{
    (void)context;
    scripts[0].at[GET] = 1;
    struct crowd crowd = crowd_open(open_fleet(1, 1, 0), 1);
    size_t size = ssm_state_size(crowd.engine);
    void *state = malloc(size);
    crowd_step(&crowd);
    assert_int_equal(ssm_state_save(crowd.engine, crowd.streams[0], state, size), SSM_FAULT);
    assert_int_equal(ssm_state_save(crowd.engine, crowd.streams[0], state, size), (int)size);
    assert_int_equal(crowd_step(&crowd), 1);
    free(state);
    crowd_close(&crowd);
}

static void a_state_that_cant_be_put_is_on_the_standby(void **context)
{
    (void)context;
    struct crowd want = run_on_cpu(2), crowd = crowd_open(open_cpu(2), 2);
    size_t size = ssm_state_size(crowd.engine);
    void *state = malloc(size);
    while (crowd.at < 100) {
        crowd_step(&crowd);
    }
    assert_int_equal(ssm_state_save(crowd.engine, crowd.streams[0], state, size), (int)size);
    ssm_close(crowd.engine);

    scripts[0].at[PUT] = 2;
    struct ssm_error err;
    crowd.engine = open_fleet(1, 2, 0);
    assert_int_equal(ssm_stream_open(crowd.engine, &crowd.streams[0]), SSM_OK);
    assert_int_equal(ssm_state_load(crowd.engine, crowd.streams[0], state, size, &err), SSM_OK);
    crowd.n = 1;
    while (crowd.at < HOPS) {
        assert_int_equal(crowd_step(&crowd), 1);
    }
    assert_true(same(&crowd, &want, 0, 0, HOPS));
    assert_int_equal(ssm_stream_open(crowd.engine, &crowd.streams[1]), SSM_OK); /* a device is lost, the slot is not */
    assert_no_call_after_the_fault();
    free(state);
    crowd.n = 2;
    crowd_close(&crowd);
    crowd_close(&want);
}

static void without_copies_a_lost_device_ends_its_streams(void **context)
{
    (void)context;
    scripts[1].at[STEP] = 3;
    struct crowd crowd = crowd_open(open_fleet(2, 4, -1), 4);
    while (crowd.at < 10) {
        int expected = crowd.at < 2 ? 4 : 2;
        assert_int_equal(crowd_step(&crowd), expected);
    }
    float out[HOP];
    assert_int_equal(ssm_scan(crowd.engine, crowd.streams[1], crowd.in[1], out, NULL, 1, NULL), SSM_FAULT);
    assert_int_equal(ssm_scan(crowd.engine, crowd.streams[0], crowd.in[0], out, NULL, 1, NULL), SSM_OK);
    assert_int_equal(ssm_stream_reset(crowd.engine, crowd.streams[1]), SSM_FAULT);
    assert_int_equal(scripts[0].done[GET], 0);
    assert_int_equal(ssm_health(crowd.engine)->failed_hops, 2 * 8 + 1);
    assert_no_call_after_the_fault();
    crowd_close(&crowd);
}

/* ---- opening ---- */

static void a_device_that_wont_open_is_an_error(void **context)
{
    (void)context;
    struct ssm_error err = {0};
    scripts[1].wont_open = true;
    assert_null(open_on(2, 4, 0, &err));
    assert_int_equal(err.code, 69);
    assert_string_equal(err.text, "no such GPU");
}

static void devices_and_precisions_that_arent(void **context)
{
    (void)context;
    static const struct {
        const char *device, *precision;
    } wrong[] = {{"gpu", NULL},         {"cuda:", NULL},          {"cuda:x", NULL},       {"cuda:0,", NULL}, {",cuda:0", NULL},
                 {"cuda:12345", NULL}, {"auto,cuda:0", NULL}, {"cuda:0,cpu", NULL}, {"", NULL},        {"cpu", "fp8"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct ssm_error err = {0};
        struct ssm_options options = {.device = wrong[i].device, .precision = wrong[i].precision};
        setenv("SSM_CUDA_LIBRARY", "/nowhere.so", 1);
        assert_null(ssm_open(TINY, &options, &err));
        /* what precedes a wrong entry is looked for first */
        assert_int_equal(err.code, strncmp(wrong[i].device, "cuda:0", 6) ? 64 : 69);
        unsetenv("SSM_CUDA_LIBRARY");
    }
}

static void auto_takes_the_processor_and_says_why(void **context)
{
    (void)context;
    struct ssm_error err = {0};
    setenv("SSM_CUDA_LIBRARY", "/nowhere.so", 1);
    struct ssm_engine *engine = ssm_open(TINY, NULL, &err);
    unsetenv("SSM_CUDA_LIBRARY");
    assert_non_null(engine);
    assert_string_equal(ssm_describe(engine)->device_why,
                        "auto: no GPU: there is no /nowhere.so, which SSM_CUDA_LIBRARY names");
    assert_int_equal(ssm_health(engine)->faults, 0);
    struct ssm_device_info info;
    assert_true(ssm_describe_device(engine, 0, &info));
    assert_string_equal(info.name, ssm_describe(engine)->device);
    ssm_close(engine);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup(name, scripted_clear)
    const struct CMUnitTest tests[] = {
        CASE(memory_is_every_devices_and_pinned_once),
        CASE(who_hangs_lets_go_of_memory),
        CASE(gives_the_same_bits_on_any_number_of_devices),
        CASE(goes_on_after_a_fault_as_after_a_gap_since_the_copy),
        CASE(tells_what_happened),
        CASE(leaves_the_other_devices_streams_alone),
        CASE(survives_the_loss_of_every_device),
        CASE(devices_that_fail_at_once_are_all_told),
        CASE(misses_one_hop_and_a_hundred_milliseconds_at_most),
        CASE(steps_of_several_hops_are_void_as_a_whole),
        CASE(copies_each_stream_once_a_second_of_its_hops),
        CASE(streams_that_come_seldom_are_copied_too),
        CASE(a_copy_that_fails_voids_nothing),
        CASE(copies_beside_the_steps_come_as_often),
        CASE(a_copy_under_way_never_replaces_a_newer_state),
        CASE(goes_on_from_copies_made_beside_the_steps),
        CASE(a_scan_repeats_what_failed_and_gives_the_same_bits),
        CASE(many_blown_hops_are_not_scanned_over_and_over),
        CASE(a_scan_goes_on_from_steps),
        CASE(a_scan_after_the_loss_bridges_the_time_since_the_copy),
        CASE(a_state_that_cant_be_got_is_a_fault_once),
        CASE(a_state_that_cant_be_put_is_on_the_standby),
        CASE(without_copies_a_lost_device_ends_its_streams),
        CASE(a_device_that_wont_open_is_an_error),
        CASE(devices_and_precisions_that_arent),
        CASE(auto_takes_the_processor_and_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
