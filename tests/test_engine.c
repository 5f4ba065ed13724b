/* SPDX-License-Identifier: MIT */
/* model/engine.c and backend_cpu.c: golden answers, and what a stream may expect whatever others do. */
#include "model/safetensors.h"
#include "model/ssm.h"
#include "tests/test.h"

#define TINY     "tests/data/tiny-denoise.safetensors"
#define GOLDEN   "tests/data/golden_denoise.safetensors"
#define BACKBONE "tests/data/golden_mamba.safetensors"
enum { HOP = 160, HOPS = 300 };

/* ---- counting allocations ---- */

static _Atomic long allocations;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void *malloc(size_t size)
{
    allocations++;
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size)
{
    allocations++;
    return __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size)
{
    allocations++;
    return __libc_realloc(memory, size);
}
void *aligned_alloc(size_t alignment, size_t size)
{
    allocations++;
    return __libc_memalign(alignment, size);
}
#endif

/* ---- set-up ---- */

static struct ssm_engine *open_engine(const char *model, int streams, int threads, int max_hops)
{
    struct ssm_error err;
    struct ssm_engine *engine = ssm_open(
        model, &(struct ssm_options){.device = "cpu", .streams = streams, .threads = threads, .max_hops = max_hops},
        &err);
    if (!engine) {
        fail_msg("%s", err.text);
    }
    return engine;
}

static ssm_stream open_stream(struct ssm_engine *engine)
{
    ssm_stream stream;
    assert_int_equal(ssm_stream_open(engine, &stream), SSM_OK);
    return stream;
}

static float *make_samples(size_t n, uint64_t seed)
{
    float *samples = malloc(n * sizeof *samples);
    for (size_t i = 0; i < n; i++) {
        samples[i] = 0.3f * sinf((float)i * 0.05f * (float)(1 + seed % 5)) + 0.05f * test_uniform(&seed);
    }
    return samples;
}

static void step(struct ssm_engine *engine, ssm_stream stream, const float *in, float *out, int count, float elapsed)
{
    struct ssm_hop hop = {.stream = stream, .in = in, .out = out, .count = count, .elapsed = elapsed};
    assert_int_equal(ssm_step(engine, &hop, 1), 1);
    assert_int_equal(hop.status, SSM_OK);
    assert_false(hop.blown);
}

static float *run_alone(const char *model, const float *in, int hops)
{
    struct ssm_engine *engine = open_engine(model, 1, 1, 1);
    ssm_stream stream = open_stream(engine);
    float *out = malloc((size_t)hops * HOP * sizeof *out);
    for (int i = 0; i < hops; i++) {
        step(engine, stream, in + i * HOP, out + i * HOP, 1, 1);
    }
    ssm_close(engine);
    return out;
}

static float largest(const float *a, const float *b, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmaxf(most, fabsf(a[i] - b[i]));
        assert_true(isfinite(a[i]) && isfinite(b[i]));
    }
    return most;
}

/* ---- golden ---- */

struct golden {
    struct safetensors *file;
    float *in, *out, *elapsed, *out_elapsed;
    size_t count, outputs; /* values of in and out */
};

static float *golden_floats(struct golden *golden, const char *name)
{
    const struct tensor *tensor = safetensors_find(golden->file, name);
    golden->count = tensor ? tensor->count : golden->count;
    return tensor ? safetensors_floats(golden->file, tensor, NULL) : NULL;
}

static struct golden golden_open(const char *path)
{
    struct golden golden = {.file = safetensors_open(path, NULL)};
    assert_non_null(golden.file);
    golden.elapsed = golden_floats(&golden, "elapsed");
    golden.out_elapsed = golden_floats(&golden, "out_elapsed");
    golden.out = golden_floats(&golden, "out");
    golden.outputs = golden.count;
    golden.in = golden_floats(&golden, "in");
    return golden;
}

static void golden_close(struct golden *golden)
{
    free(golden->in);
    free(golden->out);
    free(golden->elapsed);
    free(golden->out_elapsed);
    safetensors_close(golden->file);
}

/* fp32 against float64 over a few layers: 2e-5 of full scale, or of the largest value beyond it. */
static void assert_golden(const float *got, const float *want, size_t n)
{
    float scale = 1;
    for (size_t i = 0; i < n; i++) {
        scale = fmaxf(scale, fabsf(want[i]));
    }
    assert_close(largest(got, want, n), 0, 2e-5f * scale);
}

static void check_step(const char *model, const struct golden *golden, const float *elapsed, const float *want)
{
    struct ssm_engine *engine = open_engine(model, 1, 1, 7);
    size_t inputs = (size_t)ssm_describe(engine)->inputs, hops = golden->count / inputs, outputs = golden->outputs / hops;
    float *out = malloc(golden->outputs * sizeof *out);
    ssm_stream stream = open_stream(engine);
    uint64_t seed = 1;
    for (size_t at = 0, n; at < hops; at += n) {
        n = elapsed ? 1 : 1 + test_bits(&seed) % 7;
        n = n < hops - at ? n : hops - at;
        step(engine, stream, golden->in + at * inputs, out + at * outputs, (int)n, elapsed ? elapsed[at] : 1);
    }
    assert_golden(out, want, golden->outputs);
    free(out);
    ssm_close(engine);
}

static void check_scan(const char *model, const struct golden *golden, const float *elapsed, const float *want,
                       int threads)
{
    struct ssm_engine *engine = open_engine(model, 1, threads, 1);
    size_t inputs = (size_t)ssm_describe(engine)->inputs, hops = golden->count / inputs, outputs = golden->outputs / hops;
    size_t blown;
    float *out = malloc(golden->outputs * sizeof *out);
    ssm_stream stream = open_stream(engine);
    uint64_t seed = 2;
    for (size_t at = 0, n; at < hops; at += n) {
        n = test_bits(&seed) % 120;
        n = n < hops - at ? n : hops - at;
        const float *times = elapsed ? elapsed + at : NULL;
        assert_int_equal(ssm_scan(engine, stream, golden->in + at * inputs, out + at * outputs, times, n, &blown), SSM_OK);
        assert_int_equal(blown, 0);
    }
    assert_golden(out, want, golden->outputs);
    free(out);
    ssm_close(engine);
}

static void check_golden(const char *model, const char *io)
{
    struct golden golden = golden_open(io);
    check_step(model, &golden, NULL, golden.out);
    for (int threads = 1; threads <= 4; threads++) {
        check_scan(model, &golden, NULL, golden.out, threads);
    }
    if (golden.elapsed) {
        check_step(model, &golden, golden.elapsed, golden.out_elapsed);
        check_scan(model, &golden, golden.elapsed, golden.out_elapsed, 1);
        check_scan(model, &golden, golden.elapsed, golden.out_elapsed, 2);
    }
    golden_close(&golden);
}

static void a_mamba_ssm_checkpoint_loads_by_name_and_answers_as_pytorch(void **state)
{
    (void)state;
    check_golden(BACKBONE, "tests/data/golden_mamba_io.safetensors");
}

static void models_of_sensors_and_of_tokens_answer_as_pytorch(void **state)
{
    (void)state;
    check_golden("tests/data/golden_tag.safetensors", "tests/data/golden_tag_io.safetensors");
    check_golden("tests/data/golden_tokens.safetensors", "tests/data/golden_tokens_io.safetensors");
}

static void shipped_models_of_labels_answer_as_pytorch(void **state)
{
    (void)state;
    static const char *const names[] = {"digits", "key-words", "motion", "tag-audio", "vad", "vibration-tags"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char model[128], io[128];
        snprintf(model, sizeof model, "model/pretrained/%s.safetensors", names[i]);
        snprintf(io, sizeof io, "tests/data/golden_%s_io.safetensors", names[i]);
        check_golden(model, io);
    }
}

static void an_int8_denoiser_answers_as_numpy(void **state)
{
    (void)state;
    check_golden(GOLDEN, "tests/data/golden_denoise_io.safetensors");
}

/* ---- live and bulk ---- */

static void sound_passes_the_tiny_model_late_by_its_delay(void **state)
{
    (void)state;
    struct ssm_engine *engine = open_engine(TINY, 1, 1, 1);
    const struct ssm_info *info = ssm_describe(engine);
    float *in = make_samples(HOPS * HOP, 1), *out = run_alone(TINY, in, HOPS);
    assert_int_equal(info->delay, 160);
    assert_int_equal(info->latency, 320);
    assert_int_equal(info->rate, 16000);
    assert_close(largest(out + info->delay, in, (size_t)(HOPS * HOP - info->delay)), 0, 0.04);
    free(in);
    free(out);
    ssm_close(engine);
}

static void scan_gives_the_same_bits_as_step_on_one_thread(void **state)
{
    (void)state;
    float *in = make_samples(HOPS * HOP, 2), *want = run_alone(GOLDEN, in, HOPS),
          *out = calloc(HOPS * HOP, sizeof *out);
    struct ssm_engine *engine = open_engine(GOLDEN, 1, 1, 1);
    ssm_stream stream = open_stream(engine);
    static const size_t cuts[] = {0, 1, 2, 3, 40, 41, 131, HOPS};
    for (size_t i = 0; i + 1 < sizeof cuts / sizeof *cuts; i++) {
        size_t at = cuts[i] * HOP;
        assert_int_equal(ssm_scan(engine, stream, in + at, out + at, NULL, cuts[i + 1] - cuts[i], NULL), SSM_OK);
    }
    assert_memory_equal(out, want, HOPS * HOP * sizeof *out);
    free(in);
    free(want);
    free(out);
    ssm_close(engine);
}

static void scan_on_many_threads_agrees_with_step_and_leaves_the_same_state(void **state)
{
    (void)state;
    enum { LONG = 3000 };
    float *in = make_samples(LONG * HOP, 3), *want = run_alone(GOLDEN, in, LONG),
          *out = calloc(LONG * HOP, sizeof *out);
    for (int threads = 2; threads <= 5; threads++) {
        struct ssm_engine *engine = open_engine(GOLDEN, 1, threads, 1);
        ssm_stream stream = open_stream(engine);
        assert_int_equal(ssm_scan(engine, stream, in, out, NULL, LONG - 20, NULL), SSM_OK);
        for (int i = LONG - 20; i < LONG; i++) {
            step(engine, stream, in + i * HOP, out + i * HOP, 1, 1);
        }
        assert_true(largest(out, want, LONG * HOP) == 0);
        ssm_close(engine);
    }
    free(in);
    free(want);
    free(out);
}

/* ---- many streams ---- */

enum { SLOTS = 512, VOICES = 4, AT_ONCE = 3 };

/* Streams that join, leave and start afresh at random; each hears one of a few recordings, and must give what that gives
 * alone. */
struct company {
    struct ssm_engine *engine;
    float *in[VOICES], *want[VOICES], *out;
    struct member {
        ssm_stream stream, left; /* 0: none; the one before    */
        int voice, at;           /* next hop of its recording  */
    } members[SLOTS];
    long changes;
    uint64_t seed;
};

static void join(struct company *company, struct member *member)
{
    member->stream = open_stream(company->engine);
    member->voice = (int)(test_bits(&company->seed) % VOICES);
    member->at = 0;
    company->changes++;
}

static void leave(struct company *company, struct member *member)
{
    assert_int_equal(ssm_stream_close(company->engine, member->stream), SSM_OK);
    member->left = member->stream;
    member->stream = 0;
    company->changes++;
}

static void start_afresh(struct company *company, struct member *member)
{
    assert_int_equal(ssm_stream_reset(company->engine, member->stream), SSM_OK);
    member->at = 0;
    company->changes++;
}

/* Who is out stays stale, also where its slot is somebody else's now. */
static void change(struct company *company, struct member *member, unsigned chance)
{
    if (member->left && chance == 9) {
        assert_int_equal(ssm_stream_close(company->engine, member->left), SSM_STALE);
    }
    if (!member->stream && chance < 8) {
        join(company, member);
    } else if (member->stream && (chance == 0 || member->at > HOPS - AT_ONCE)) {
        leave(company, member);
    } else if (member->stream && chance == 1) {
        start_afresh(company, member);
    }
}

static void step_company(struct company *company, int slots)
{
    struct ssm_hop hops[SLOTS];
    struct member *who[SLOTS];
    int n = 0;
    for (int k = 0; k < slots; k++) {
        struct member *member = &company->members[k];
        unsigned chance = (unsigned)(test_bits(&company->seed) % 16);
        change(company, member, chance);
        if (member->stream && chance != 2) {
            who[n] = member;
            hops[n] = (struct ssm_hop){.stream = member->stream, .in = company->in[member->voice] + member->at * HOP,
                                       .out = company->out + n * AT_ONCE * HOP, .count = 1 + (int)(chance % AT_ONCE),
                                       .elapsed = 1};
            n++;
        }
    }
    assert_int_equal(ssm_step(company->engine, hops, n), n);
    for (int i = 0; i < n; i++) {
        assert_memory_equal(hops[i].out, company->want[who[i]->voice] + who[i]->at * HOP,
                            (size_t)hops[i].count * HOP * sizeof(float));
        who[i]->at += hops[i].count;
    }
}

static void check_company(int slots, int threads, long changes)
{
    struct company company = {.engine = open_engine(GOLDEN, slots, threads, AT_ONCE), .seed = 5,
                              .out = calloc((size_t)slots * AT_ONCE * HOP, sizeof(float))};
    for (int i = 0; i < VOICES; i++) {
        company.in[i] = make_samples(HOPS * HOP, 4 + (uint64_t)i);
        company.want[i] = run_alone(GOLDEN, company.in[i], HOPS);
    }
    while (company.changes < changes) {
        step_company(&company, slots);
    }
    for (int i = 0; i < VOICES; i++) {
        free(company.in[i]);
        free(company.want[i]);
    }
    free(company.out);
    ssm_close(company.engine);
}

static void a_stream_hears_the_same_bits_alone_and_in_company(void **state)
{
    (void)state;
    check_company(64, 1, 1000);
}

static void a_stream_hears_the_same_bits_on_any_number_of_threads(void **state)
{
    (void)state;
    check_company(64, 2, 1000);
    check_company(64, 5, 1000);
}

/* CHANGES=1000000 is the full run. */
static void streams_come_and_go_in_512_slots_and_nobody_hears_it(void **state)
{
    (void)state;
    const char *changes = getenv("CHANGES");
    check_company(SLOTS, 2, changes ? atol(changes) : 10000);
}

static void a_closed_stream_is_stale_and_its_slot_starts_from_zero(void **state)
{
    (void)state;
    struct ssm_engine *engine = open_engine(TINY, 2, 1, 1);
    float *in = make_samples(HOP * 4, 6), first[HOP], again[HOP];
    ssm_stream one = open_stream(engine), two = open_stream(engine), three;
    assert_int_equal(ssm_stream_open(engine, &three), SSM_FULL);
    step(engine, one, in, first, 1, 1);
    step(engine, one, in + HOP, again, 1, 1);
    assert_int_equal(ssm_stream_close(engine, one), SSM_OK);
    assert_int_equal(ssm_stream_close(engine, one), SSM_STALE);
    assert_int_equal(ssm_stream_reset(engine, one), SSM_STALE);
    assert_int_equal(ssm_scan(engine, one, in, again, NULL, 1, NULL), SSM_STALE);
    three = open_stream(engine);
    assert_true(three != one && three != two);
    struct ssm_hop hops[] = {{.stream = one, .in = in, .out = again, .count = 1},
                             {.stream = three, .in = in, .out = again, .count = 1},
                             {.stream = 0, .in = in, .out = again, .count = 1},
                             {.stream = UINT64_MAX, .in = in, .out = again, .count = 1}};
    assert_int_equal(ssm_step(engine, hops, 4), 1);
    assert_int_equal(hops[0].status, SSM_STALE);
    assert_int_equal(hops[1].status, SSM_OK);
    assert_int_equal(hops[2].status, SSM_STALE);
    assert_int_equal(hops[3].status, SSM_STALE);
    assert_memory_equal(again, first, sizeof first);
    free(in);
    ssm_close(engine);
}

static void a_hop_asked_wrongly_is_refused_alone(void **state)
{
    (void)state;
    struct ssm_engine *engine = open_engine(TINY, 3, 1, 2);
    float *in = make_samples(HOP * 4, 6), out[4][4 * HOP];
    ssm_stream a = open_stream(engine), b = open_stream(engine), c = open_stream(engine);
    struct ssm_hop hops[] = {{.stream = a, .in = in, .out = out[0], .count = 3},
                             {.stream = b, .in = in, .out = out[1], .count = 2},
                             {.stream = b, .in = in, .out = out[2], .count = 1},
                             {.stream = c, .in = in, .out = out[3], .count = 0}};
    assert_int_equal(ssm_step(engine, hops, 4), 1);
    assert_int_equal(hops[0].status, SSM_REFUSED);
    assert_int_equal(hops[1].status, SSM_OK);
    assert_int_equal(hops[2].status, SSM_REFUSED);
    assert_int_equal(hops[3].status, SSM_REFUSED);
    free(in);
    ssm_close(engine);
}

static void reset_brings_back_the_first_hop(void **state)
{
    (void)state;
    struct ssm_engine *engine = open_engine(GOLDEN, 1, 1, 1);
    float *in = make_samples(HOP * 10, 7), first[HOP], again[HOP];
    ssm_stream stream = open_stream(engine);
    step(engine, stream, in, first, 1, 1);
    step(engine, stream, in + HOP, again, 1, 1);
    assert_int_equal(ssm_stream_reset(engine, stream), SSM_OK);
    step(engine, stream, in, again, 1, 1);
    assert_memory_equal(again, first, sizeof first);
    free(in);
    ssm_close(engine);
}

/* ---- bad numbers ---- */

static void nan_in_counts_as_zero(void **state)
{
    (void)state;
    struct ssm_engine *engine = open_engine(GOLDEN, 2, 1, 1);
    ssm_stream bad = open_stream(engine), good = open_stream(engine);
    float in[2][HOP], out[2][HOP];
    uint64_t seed = 8;
    for (int i = 0; i < 20; i++) {
        test_fill(in[0], HOP, 0.5f, &seed);
        memcpy(in[1], in[0], sizeof in[0]);
        in[0][3] = NAN;
        in[0][5] = INFINITY;
        in[0][7] = -INFINITY;
        in[1][3] = in[1][5] = in[1][7] = 0;
        step(engine, bad, in[0], out[0], 1, 1);
        step(engine, good, in[1], out[1], 1, 1);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
    }
    ssm_close(engine);
}

static void a_blown_stream_gives_zeros_and_starts_afresh_and_others_never_notice(void **state)
{
    (void)state;
    struct ssm_engine *engine = open_engine(GOLDEN, 2, 2, 1);
    ssm_stream bad = open_stream(engine), good = open_stream(engine);
    float *in = make_samples(HOPS * HOP, 9), *want = run_alone(GOLDEN, in, HOPS), huge[HOP], out[2][HOP];
    for (int i = 0; i < HOP; i++) {
        huge[i] = 3e38f;
    }
    for (int i = 0; i < 40; i++) {
        bool blow = i == 20;
        struct ssm_hop hops[] = {{.stream = bad, .in = blow ? huge : in, .out = out[0], .count = 1},
                                 {.stream = good, .in = in + i * HOP, .out = out[1], .count = 1}};
        assert_int_equal(ssm_step(engine, hops, 2), 2);
        assert_int_equal(hops[0].blown, blow);
        assert_false(hops[1].blown);
        assert_memory_equal(out[1], want + i * HOP, sizeof out[1]);
        if (blow) {
            for (int j = 0; j < HOP; j++) {
                assert_true(out[0][j] == 0);
            }
        }
        if (i == 21) {
            assert_memory_equal(out[0], want, sizeof out[0]);
        }
    }
    free(in);
    free(want);
    ssm_close(engine);
}

static void a_scan_blows_hop_by_hop_as_steps_do(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        struct ssm_engine *engine = open_engine(GOLDEN, 1, threads, 1);
        ssm_stream stream = open_stream(engine);
        float *in = make_samples(HOPS * HOP, 10), *out = calloc(HOPS * HOP, sizeof *out), *want;
        want = run_alone(GOLDEN, in + 151 * HOP, HOPS - 151);
        for (int i = 0; i < HOP; i++) {
            in[150 * HOP + i] = -3e38f;
        }
        size_t blown = 0;
        assert_int_equal(ssm_scan(engine, stream, in, out, NULL, HOPS, &blown), SSM_OK);
        assert_int_equal(blown, 1);
        assert_true(out[150 * HOP] == 0 && out[151 * HOP - 1] == 0);
        assert_true(largest(out + 151 * HOP, want, (HOPS - 151) * HOP) == 0);
        free(in);
        free(out);
        free(want);
        ssm_close(engine);
    }
}

static void a_long_gap_and_silence_do_no_harm(void **state)
{
    (void)state;
    struct ssm_engine *engine = open_engine(GOLDEN, 1, 1, 1);
    ssm_stream stream = open_stream(engine);
    float *in = make_samples(HOP * 20, 11), out[HOP], zeros[HOP] = {0};
    static const float gaps[] = {1, 0, 5, 1000, 1e30f, INFINITY, NAN, -3, 1};
    for (size_t i = 0; i < sizeof gaps / sizeof *gaps; i++) {
        struct ssm_hop hop = {.stream = stream, .in = in + i * HOP, .out = out, .count = 1, .elapsed = gaps[i]};
        assert_int_equal(ssm_step(engine, &hop, 1), 1);
        for (int j = 0; j < HOP; j++) {
            assert_true(isfinite(out[j]));
        }
    }
    for (int i = 0; i < 500; i++) {
        step(engine, stream, zeros, out, 1, 1);
    }
    for (int i = 0; i < HOP; i++) {
        assert_true(out[i] == 0);
    }
    free(in);
    ssm_close(engine);
}

/* ---- the hop path ---- */

static void step_and_scan_allocate_nothing(void **state)
{
    (void)state;
    struct ssm_engine *engine = open_engine(GOLDEN, 8, 2, 1);
    float *in = make_samples(HOPS * HOP, 12), *out = calloc(HOPS * HOP, sizeof *out);
    unsigned char *saved = malloc(ssm_state_size(engine));
    ssm_stream streams[8];
    for (int i = 0; i < 8; i++) {
        streams[i] = open_stream(engine);
    }
    long before = allocations;
    for (int round = 0; round < 20; round++) {
        struct ssm_hop hops[8];
        for (int i = 0; i < 8; i++) {
            hops[i] = (struct ssm_hop){.stream = streams[i], .in = in, .out = out + i * HOP, .count = 1};
        }
        ssm_step(engine, hops, 8);
    }
    ssm_scan(engine, streams[0], in, out, NULL, HOPS, NULL);
    ssm_state_save(engine, streams[0], saved, ssm_state_size(engine));
    ssm_state_load(engine, streams[1], saved, ssm_state_size(engine), NULL);
    ssm_stream_close(engine, streams[2]);
    ssm_stream_open(engine, &streams[2]);
    assert_int_equal(allocations - before, 0);
    free(in);
    free(out);
    free(saved);
    ssm_close(engine);
}

/* The daemon and the tool ask for one thread a core. */
static void an_engine_opens_on_a_machine_of_300_cores(void **state)
{
    (void)state;
    struct ssm_error err;
    ssm_close(open_engine(GOLDEN, 1, 300, 1));
    assert_null(ssm_open(GOLDEN, &(struct ssm_options){.device = "cpu", .threads = 1025}, &err));
    assert_int_equal(err.code, 64);
}

static void a_device_that_is_not_there_fails_loudly(void **state)
{
    (void)state;
    struct ssm_error err;
    assert_null(ssm_open(TINY, &(struct ssm_options){.device = "toaster"}, &err));
    assert_int_equal(err.code, 64);
    assert_non_null(strstr(err.text, "toaster"));
    assert_null(ssm_open(TINY, &(struct ssm_options){.streams = -1}, &err));
    assert_int_equal(err.code, 64);
    struct ssm_engine *engine = ssm_open(TINY, NULL, &err);
    assert_non_null(engine);
    assert_int_equal(strncmp(ssm_describe(engine)->device, "cpu ", 4), 0);
    ssm_close(engine);
    ssm_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mamba_ssm_checkpoint_loads_by_name_and_answers_as_pytorch),
        cmocka_unit_test(models_of_sensors_and_of_tokens_answer_as_pytorch),
        cmocka_unit_test(shipped_models_of_labels_answer_as_pytorch),
        cmocka_unit_test(an_int8_denoiser_answers_as_numpy),
        cmocka_unit_test(sound_passes_the_tiny_model_late_by_its_delay),
        cmocka_unit_test(scan_gives_the_same_bits_as_step_on_one_thread),
        cmocka_unit_test(scan_on_many_threads_agrees_with_step_and_leaves_the_same_state),
        cmocka_unit_test(a_stream_hears_the_same_bits_alone_and_in_company),
        cmocka_unit_test(a_stream_hears_the_same_bits_on_any_number_of_threads),
        cmocka_unit_test(streams_come_and_go_in_512_slots_and_nobody_hears_it),
        cmocka_unit_test(a_closed_stream_is_stale_and_its_slot_starts_from_zero),
        cmocka_unit_test(a_hop_asked_wrongly_is_refused_alone),
        cmocka_unit_test(reset_brings_back_the_first_hop),
        cmocka_unit_test(nan_in_counts_as_zero),
        cmocka_unit_test(a_blown_stream_gives_zeros_and_starts_afresh_and_others_never_notice),
        cmocka_unit_test(a_scan_blows_hop_by_hop_as_steps_do),
        cmocka_unit_test(a_long_gap_and_silence_do_no_harm),
        cmocka_unit_test(step_and_scan_allocate_nothing),
        cmocka_unit_test(an_engine_opens_on_a_machine_of_300_cores),
        cmocka_unit_test(a_device_that_is_not_there_fails_loudly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
