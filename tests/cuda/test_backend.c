/* SPDX-License-Identifier: MIT */
/* The GPU backend against the processor's: every layer type and model, steps and recordings, whoever else is in the
 * batch, states on the move, and a GPU that fails. Needs a GPU: exits 69 with the reason when there is none. */
#include "dsp/clock.h"
#include "dsp/sound_file.h"
#include "model/backend_cuda.h"
#include "model/memory.h"
#include "model/ssm.h"
#include "tests/model_file.h"

/* -80 dBFS: what CPU and GPU may differ by (fp32). Backbones give activations, not samples: as much of their size. */
#define TWIN_TOLERANCE 1e-4
/* After gaps of 30 hops and a million, which none was trained with, models amplify what sums in another order differ by:
 * denoise-16k on the processor 1e-7 to 1e-3, between the plain C kernels and any of the others. So here it may be as much or
 * TIMES what those differ by in the same steps. */
#define GAP_TOLERANCE 1e-3
enum { TIMES = 4 };
enum { HOPS = 96 };

static const struct backend_ops *cuda;

/* Fails on a GPU as a broken kernel would, which ends the use of all GPUs; holds one up for so long, and waits for the end of
 * that (poison.cu). */
void poison(int device);
int stall(int device, int ms);
int stall_end(int device);

/* ---- models ---- */

#define CONFIG(hop, layers) "{'format':1,'rate':16000,'hop':" hop ",'layers':[" layers "]}"
#define STFT(window, hop)   "{'type':'stft','window':" window ",'hop':" hop "},"
#define ISTFT(window, hop)  "{'type':'istft','window':" window ",'hop':" hop "}"
#define MAMBA(d, n, k, r, how)                                                                                         \
    "{'type':'mamba','name':'m','d_model':" d ",'d_state':" n ",'d_conv':" k ",'expand':2,'dt_rank':" r                \
    ",'discretisation':'" how "'}"

/* A model with random weights: what tensors it needs, by name and shape. */
struct recipe {
    const char *config;
    struct {
        const char *name;
        int shape[3];
        float scale;
    } tensors[16];
};

#define MAMBA_TENSORS(D, E, N, K, R)                                                                                   \
    {"m.norm.weight", {D}, 1}, {"m.mixer.in_proj.weight", {2 * E, D}, 0.5f},                                           \
        {"m.mixer.conv1d.weight", {E, 1, K}, 0.5f}, {"m.mixer.conv1d.bias", {E}, 0.1f},                                \
        {"m.mixer.x_proj.weight", {R + 2 * N, E}, 0.3f}, {"m.mixer.dt_proj.weight", {E, R}, 0.3f},                     \
        {"m.mixer.dt_proj.bias", {E}, 2}, {"m.mixer.A_log", {E, N}, 1}, {"m.mixer.D", {E}, 1},                         \
    {                                                                                                                  \
        "m.mixer.out_proj.weight", {D, E}, 0.3f                                                                        \
    }

#define S4D(d, n, more) "{'type':'s4d','name':'s','d_model':" d ",'d_state':" n more "}"
#define S4D_TENSORS(E, N)                                                                                              \
    {"s.D", {E}, 1}, {"s.kernel.log_dt", {E}, 3}, {"s.kernel.log_A_real", {E, N}, 1}, {"s.kernel.A_imag", {E, N}, 9},     \
    {                                                                                                                  \
        "s.kernel.C", {E, N, 2}, 1                                                                                     \
    }

static const struct recipe recipes[] = {
    {CONFIG("8", STFT("16", "8") ISTFT("16", "8")), {{0}}},
    {CONFIG("12", STFT("48", "12") ISTFT("48", "12")), {{0}}},
    {CONFIG("10", "{'type':'stft','window':30,'hop':10,'compress':0.3}"), {{0}}},
    {CONFIG("8", STFT("16", "8") "{'type':'linear','name':'h','in':18,'out':54},{'type':'filter','taps':3}," ISTFT(
                     "16", "8")),
     {{"h.weight", {54, 18}, 0.3f}, {"h.bias", {54}, 0.3f}}},
    {CONFIG("8", STFT("32", "8") "{'type':'linear','name':'h','in':34,'out':170},{'type':'filter','taps':5}"),
     {{"h.weight", {170, 34}, 0.3f}}},
    {CONFIG("8", STFT("16", "8") "{'type':'linear','name':'h','in':18,'out':9},{'type':'mask','sigmoid':true}," ISTFT(
                     "16", "8")),
     {{"h.weight", {9, 18}, 0.3f}, {"h.bias", {9}, 0.3f}}},
    {CONFIG("8", STFT("16", "8") "{'type':'linear','name':'h','in':18,'out':9},{'type':'mask'}"),
     {{"h.weight", {9, 18}, 0.3f}}},
    {CONFIG("7",
            "{'type':'conv','name':'c','width':7,'taps':6,'silu':true},{'type':'conv','name':'c','width':7,'taps':6}"),
     {{"c.weight", {7, 1, 6}, 0.5f}, {"c.bias", {7}, 0.5f}}},
    {CONFIG("24", "{'type':'norm','name':'n','width':24}"), {{"n.weight", {24}, 1}}},
    {CONFIG("24", "{'type':'norm','name':'n','width':24},{'type':'linear','name':'h','in':24,'out':3}"),
     {{"n.weight", {24}, 1}, {"h.weight", {3, 24}, 0.3f}}},
    {CONFIG("16", MAMBA("16", "16", "4", "1", "euler")), {MAMBA_TENSORS(16, 32, 16, 4, 1)}},
    {CONFIG("20", MAMBA("20", "5", "3", "3", "euler") "," MAMBA("20", "5", "3", "3", "zoh")),
     {MAMBA_TENSORS(20, 40, 5, 3, 3)}},
    {CONFIG("1", MAMBA("1", "1", "1", "1", "zoh")), {MAMBA_TENSORS(1, 2, 1, 1, 1)}},
    {CONFIG("33", MAMBA("33", "64", "2", "17", "euler") ",{'type':'norm','name':'n','width':33}"),
     {MAMBA_TENSORS(33, 66, 64, 2, 17), {"n.weight", {33}, 1}}},
    {CONFIG("2,'channels':3", "{'type':'scale','mean':[0.1,0,-0.1],'std':[0.2,0.1,0.5]},{'type':'pool'},{'type':'softmax'}"), {{0}}},
    {CONFIG("35", "{'type':'pool','kind':'ema','hops':7.5},{'type':'sigmoid'},{'type':'pool','hops':20}"), {{0}}},
    {CONFIG("1", "{'type':'scale','mean':[0],'std':[0.05]},{'type':'embedding','name':'e','vocabulary':5,'width':19},"
                 "{'type':'linear','name':'e','in':19,'out':5}"), {{"e.weight", {5, 19}, 1}}},
    {CONFIG("33", S4D("33", "6", ",'norm':true,'activation':'gelu','mix':'glu','residual':true")),
     {S4D_TENSORS(33, 3), {"s.norm.weight", {33}, 1}, {"s.output_linear.weight", {66, 33}, 0.2f}, {"s.output_linear.bias", {66}, 1}}},
    {CONFIG("40", S4D("40", "64", ",'activation':'silu','residual':true") "," S4D("40", "64", ",'mix':'linear','discretisation':'bilinear'")),
     {S4D_TENSORS(40, 32), {"s.output_linear.weight", {40, 40}, 0.2f}}},
};
static const char *const shipped[] = {"tests/data/tiny-denoise.safetensors", "tests/data/golden_denoise.safetensors",
                                      "tests/data/golden_mamba.safetensors", "tests/data/golden_tag.safetensors",
                                      "tests/data/golden_tokens.safetensors",
                                      "model/pretrained/denoise-16k.safetensors"};
enum {
    RECIPES = sizeof recipes / sizeof *recipes,
    MODELS = RECIPES + sizeof shipped / sizeof *shipped,
    DENOISE = MODELS - 1
};

static void add_tensors(struct model_file *file, const struct recipe *recipe)
{
    uint64_t seed = 7;
    static float values[65536];
    for (size_t i = 0; i < 16 && recipe->tensors[i].name; i++) {
        const int *shape = recipe->tensors[i].shape;
        char text[48];
        size_t count = (size_t)shape[0] * (size_t)(shape[1] ? shape[1] : 1) * (size_t)(shape[2] ? shape[2] : 1);
        snprintf(text, sizeof text,
                 shape[2]   ? "[%d,%d,%d]"
                 : shape[1] ? "[%d,%d]"
                            : "[%d]",
                 shape[0], shape[1], shape[2]);
        test_fill(values, count, recipe->tensors[i].scale, &seed);
        model_file_add(file, recipe->tensors[i].name, text, values, count);
    }
}

static struct model *open_model(int i)
{
    struct ssm_error err;
    struct model_file *file = i < RECIPES ? model_file_create() : NULL;
    if (file) {
        add_tensors(file, &recipes[i]);
    }
    struct model *model = model_open(file ? model_file_write(file, recipes[i].config) : shipped[i - RECIPES], &err);
    if (file) {
        model_file_destroy(file);
    }
    if (!model) {
        fail_msg("%s", err.text);
    }
    return model;
}

static struct backend *open_backend(const struct backend_ops *ops, const struct model *model, int streams, int threads,
                                    const char *precision)
{
    struct ssm_error err = {0};
    struct ssm_options options = {.device = "cuda",
                                  .streams = streams,
                                  .threads = threads,
                                  .max_hops = 8,
                                  .precision = precision,
                                  .patience_s = 100}; /* under a sanitizer everything takes its time */
    struct backend *backend = ops->open(model, &options, &err);
    if (!backend) {
        fail_msg("%s", err.text);
    }
    return backend;
}

/* ---- a recording, and ways to run it ---- */

/* Noise with silences, for `hops` hops. */
static float *record(const struct model *model, size_t hops, uint64_t seed)
{
    size_t n = hops * (size_t)model->info.inputs;
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) {
        x[i] = i / (7 * (size_t)model->info.inputs) % 5 == 3 ? 0 : 0.3f * test_uniform(&seed);
    }
    return x;
}

static float *room(const struct model *model, size_t hops)
{
    float *y = malloc(hops * (size_t)model->info.outputs * sizeof *y);
    assert_non_null(y);
    for (size_t i = 0; i < hops * (size_t)model->info.outputs; i++) {
        y[i] = NAN;
    }
    return y;
}

static struct backend_hop hop_at(const struct model *model, int slot, const float *in, float *out, int at, int count,
                                 const float *elapsed)
{
    return (struct backend_hop){.slot = slot,
                                .in = in + (size_t)at * (size_t)model->info.inputs,
                                .out = out + (size_t)at * (size_t)model->info.outputs,
                                .count = count,
                                .elapsed = elapsed ? elapsed + at : NULL,
                                .elapsed_count = elapsed ? count : 0};
}

static void run_steps(struct backend *backend, const struct model *model, const float *in, float *out, int from, int to,
                      const float *elapsed)
{
    for (int i = from; i < to; i++) {
        struct backend_hop hop = hop_at(model, 0, in, out, i, 1, elapsed);
        assert_int_equal(backend->ops->step(backend, &hop, 1), 0);
    }
}

static void run_scan(struct backend *backend, const struct model *model, const float *in, float *out, int from, int to,
                     const float *elapsed)
{
    struct backend_hop hop = hop_at(model, 0, in, out, from, to - from, elapsed);
    assert_true(to - from <= backend->scan_hops);
    assert_int_equal(backend->ops->scan(backend, &hop), 0);
}

/* The largest |a - b|, of full scale or, where b is larger, of its largest value; NaN where there is one. */
static double difference(const struct model *model, const float *a, const float *b, size_t hops)
{
    double largest = 1, worst = 0;
    for (size_t i = 0; i < hops * (size_t)model->info.outputs; i++) {
        largest = fmax(largest, fabs((double)b[i]));
        double apart = fabs((double)a[i] - (double)b[i]);
        worst = apart <= worst ? worst : apart; /* a NaN sticks */
    }
    return worst / largest;
}

/* Says when they aren't. */
static bool are_twins(const struct model *model, const float *a, const float *b, size_t hops, double tolerance,
                      const char *what)
{
    double apart = difference(model, a, b, hops);
    bool twins = apart <= tolerance;
    if (!twins) {
        print_error("%s, %s: differ by %.3g, more than %.3g\n", model->info.name, what, apart, tolerance);
    }
    return twins;
}

static void assert_twins(const struct model *model, const float *a, const float *b, size_t hops, double tolerance,
                         const char *what)
{
    assert_true(are_twins(model, a, b, hops, tolerance, what));
}

static const float *gaps(void)
{
    static float elapsed[HOPS];
    for (int i = 0; i < HOPS; i++) {
        elapsed[i] = i % 11 == 5 ? 30 : i % 17 == 9 ? 1e6f : i % 7 == 2 ? 0.5f : 1;
    }
    return elapsed;
}

/* ---- cases ---- */

/* How far the plain C kernels, which are the definition, are from the processor's best in the same steps. */
static double spread(const struct model *model, const float *in, const float *best, const float *elapsed)
{
    float *plain = room(model, HOPS);
    setenv("SSM_KERNELS", "scalar", 1);
    struct backend *cpu = open_backend(&backend_cpu, model, 1, 1, NULL);
    unsetenv("SSM_KERNELS");
    run_steps(cpu, model, in, plain, 0, HOPS, elapsed);
    cpu->ops->close(cpu);
    double apart = difference(model, plain, best, HOPS);
    free(plain);
    return apart;
}

/* By step, by scan, and in pieces. */
static bool goes_as_on_the_processor(struct backend *gpu, const struct model *model, const float *in, const float *want,
                                     const float *elapsed)
{
    double tolerance = elapsed ? fmax(GAP_TOLERANCE, TIMES * spread(model, in, want, elapsed)) : TWIN_TOLERANCE;
    float *got = room(model, HOPS);
    assert_int_equal(gpu->ops->state_put(gpu, 0, NULL), 0);
    run_steps(gpu, model, in, got, 0, HOPS, elapsed);
    bool same = are_twins(model, got, want, HOPS, tolerance, "step");
    gpu->ops->state_put(gpu, 0, NULL);
    run_scan(gpu, model, in, got, 0, HOPS, elapsed);
    same &= are_twins(model, got, want, HOPS, tolerance, "scan");
    gpu->ops->state_put(gpu, 0, NULL);
    run_scan(gpu, model, in, got, 0, 1, elapsed);
    run_steps(gpu, model, in, got, 1, 20, elapsed);
    run_scan(gpu, model, in, got, 20, 57, elapsed);
    run_scan(gpu, model, in, got, 57, HOPS, elapsed);
    same &= are_twins(model, got, want, HOPS, tolerance, "pieces by scan and step");
    free(got);
    return same;
}

static void every_model_steps_and_scans_as_on_the_processor(void **state)
{
    (void)state;
    int wrong = 0;
    for (int i = 0; i < MODELS; i++) {
        struct model *model = open_model(i);
        struct backend *cpu = open_backend(&backend_cpu, model, 1, 1, NULL),
                       *gpu = open_backend(cuda, model, 1, 1, NULL);
        float *in = record(model, HOPS, 5), *want = room(model, HOPS);
        for (int gap = 0; gap < 2; gap++) {
            const float *elapsed = gap ? gaps() : NULL;
            cpu->ops->state_put(cpu, 0, NULL);
            run_steps(cpu, model, in, want, 0, HOPS, elapsed);
            if (!goes_as_on_the_processor(gpu, model, in, want, elapsed)) {
                print_error("model %d of this test, %s\n", i, gap ? "with gaps" : "without gaps");
                wrong++;
            }
        }
        assert_null(gpu->ops->fault(gpu));
        free(in);
        free(want);
        gpu->ops->close(gpu);
        cpu->ops->close(cpu);
        model_close(model);
    }
    assert_int_equal(wrong, 0);
}

/* The bundled recording again and again. On it the processor's own kernels, which differ in their order of sums, agree
 * to 3e-7 for an hour; noise that starts and stops, record()'s, the model amplifies: to 6e-4 after two minutes. */
static float *play(const struct model *model, size_t hops)
{
    struct sound_file_info info;
    struct sound_file_error err;
    struct sound_file *file = sound_file_open("tests/data/demo-noisy.flac", &info, &err);
    size_t n = hops * (size_t)model->info.inputs, length = file ? (size_t)info.length : 0;
    float *x = malloc(n * sizeof *x);
    assert_true(x && length && info.channels == 1 && info.rate == model->info.rate);
    assert_true(sound_file_read(file, x, length < n ? length : n, &err) > 0);
    for (size_t i = length; i < n; i++) {
        x[i] = x[i - length];
    }
    sound_file_close(file);
    return x;
}

/* Of an hour by default. */
static void a_long_recording_scans_as_it_steps(void **state)
{
    (void)state;
    const char *given = getenv("SSM_TEST_HOPS");
    int hops = given ? atoi(given) : 360000;
    struct model *model = open_model(DENOISE);
    struct backend *gpu = open_backend(cuda, model, 1, 1, NULL);
    float *in = play(model, (size_t)hops), *want = room(model, (size_t)hops), *got = room(model, (size_t)hops);
    run_steps(gpu, model, in, want, 0, hops, NULL);
    gpu->ops->state_put(gpu, 0, NULL);
    for (int at = 0; at < hops; at += gpu->scan_hops) {
        run_scan(gpu, model, in, got, at, hops < at + gpu->scan_hops ? hops : at + gpu->scan_hops, NULL);
    }
    assert_twins(model, got, want, (size_t)hops, TWIN_TOLERANCE, "long scan");
    free(in);
    free(want);
    free(got);
    gpu->ops->close(gpu);
    model_close(model);
}

/* Run `streams` streams, stream i in slot streams - 1 - i, `steps` steps of one hop. out (steps, streams, outputs). */
static void run_batch(struct backend *backend, const struct model *model, const float *in, float *out, int streams,
                      int steps)
{
    struct backend_hop *hops = calloc((size_t)streams, sizeof *hops);
    for (int i = 0; i < streams; i++) {
        backend->ops->state_put(backend, i, NULL);
    }
    for (int t = 0; t < steps; t++) {
        for (int i = 0; i < streams; i++) {
            int at = t * streams + i;
            hops[i] = hop_at(model, streams - 1 - i, in, out, at, 1, NULL);
        }
        assert_int_equal(backend->ops->step(backend, hops, streams), 0);
    }
    free(hops);
}

/* The same bits alone, in graphs of several sizes and in parts, over one thread and two. */
static void a_stream_is_the_same_bits_alone_and_in_any_batch(void **state)
{
    (void)state;
    static const int batches[] = {2, 7, 16, 64, 100, 500, 513, 2500, 5003};
    enum { STEPS = 12, MOST = 5003 };
    static const char *const precisions[] = {"fp32", "tf32", "bf16", "bf16-state"};
    struct model *model = open_model(DENOISE);
    size_t outputs = (size_t)model->info.outputs, hop = (size_t)model->info.inputs;
    float *in = malloc((size_t)MOST * STEPS * hop * sizeof *in), *out = room(model, (size_t)MOST * STEPS);
    float *alone_in = record(model, STEPS, 8), *alone = room(model, STEPS);
    for (int p = 0; p < 4; p++) {
        struct backend *gpu = open_backend(cuda, model, MOST, 2, precisions[p]);
        run_batch(gpu, model, alone_in, alone, 1, STEPS);
        for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
            int n = batches[b], mine = n * 2 / 3;
            uint64_t seed = 9;
            test_fill(in, (size_t)n * STEPS * hop, 0.3f, &seed);
            for (size_t t = 0; t < STEPS; t++) {
                memcpy(in + (t * (size_t)n + (size_t)mine) * hop, alone_in + t * hop, hop * sizeof *in);
            }
            run_batch(gpu, model, in, out, n, STEPS);
            for (size_t t = 0; t < STEPS; t++) {
                if (memcmp(out + (t * (size_t)n + (size_t)mine) * outputs, alone + t * outputs,
                           outputs * sizeof *out)) {
                    fail_msg("%s: step %zu of a stream in a batch of %d differs from the stream alone", precisions[p],
                             t, n);
                }
            }
        }
        gpu->ops->close(gpu);
    }
    free(in);
    free(out);
    free(alone_in);
    free(alone);
    model_close(model);
}

/* Streams' hops, one after the other at some distance from `from` on, of which the first are within the GPU's reach. */
struct layout {
    char *from;
    size_t distance, offset;
};

static float *place_of(const struct layout *layout, int i)
{
    return (float *)(void *)(layout->from + layout->offset + (size_t)i * layout->distance);
}

/* Steps of count hops each, in memory of the program's own and, those of the first so many streams, in memory that the GPU was
 * given. */
static void run_reached(struct backend *gpu, const struct model *model, const float *in, float *out, int streams, int steps,
                        int count, int reached, const struct layout *ins, const struct layout *outs, bool *blown)
{
    size_t inputs = (size_t)(count * model->info.inputs), outputs = (size_t)(count * model->info.outputs);
    struct backend_hop *hops = calloc((size_t)streams, sizeof *hops);
    for (int i = 0; i < streams; i++) {
        gpu->ops->state_put(gpu, i, NULL);
    }
    for (int t = 0; t < steps; t++) {
        for (int i = 0; i < streams; i++) {
            hops[i] = hop_at(model, streams - 1 - i, in, out, (t * streams + i) * count, count, NULL);
            hops[i].blown = &blown[i];
            if (i < reached) {
                memcpy(place_of(ins, i), hops[i].in, inputs * sizeof *in);
                memset(place_of(outs, i), 0xff, outputs * sizeof *out);
                hops[i].in = place_of(ins, i);
                hops[i].out = place_of(outs, i);
            }
        }
        assert_int_equal(gpu->ops->step(gpu, hops, streams), 0);
        for (int i = 0; i < reached; i++) {
            memcpy(out + (size_t)(t * streams + i) * outputs, place_of(outs, i), outputs * sizeof *out);
        }
    }
    free(hops);
}

/* Wherever hops lie, and on whatever border: all within reach, the first of several parts, half of one, none; one a call or
 * more; NaN in, and out. */
static void hops_within_reach_give_the_same_bits(void **state)
{
    (void)state;
    enum { STREAMS = 9003, HOPS = 6, MOST = 3, ROOM = 1408 * MOST };
    static const int reached[] = {STREAMS, 5000, 1000, 0}, counts[] = {1, 2, MOST};
    static const size_t offsets[] = {0, 4, 16};
    struct model *model = open_model(DENOISE);
    struct backend *gpu = open_backend(cuda, model, STREAMS, 2, NULL);
    size_t inputs = (size_t)model->info.inputs, outputs = (size_t)model->info.outputs;
    struct memory memory;
    assert_true(memory_take(&memory, (size_t)STREAMS * ROOM));
    assert_int_equal(gpu->ops->reach(gpu, memory.at, memory.bytes, false), 0);
    float *in = record(model, (size_t)STREAMS * HOPS, 8), *want = room(model, (size_t)STREAMS * HOPS),
          *got = room(model, (size_t)STREAMS * HOPS);
    bool *blown = calloc(STREAMS, sizeof *blown);
    for (size_t i = 0; i < (size_t)STREAMS * inputs; i += 1009) {
        in[i] = i % 3 ? NAN : -INFINITY;
    }
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        const int count = counts[c], steps = HOPS / count;
        run_reached(gpu, model, in, want, STREAMS, steps, count, 0, NULL, NULL, blown);
        for (size_t k = 0; k < sizeof reached / sizeof *reached; k++) {
            for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
                const struct layout ins = {memory.at, ROOM, offsets[o]},
                                    outs = {(char *)memory.at + (size_t)count * inputs * sizeof *in + 16, ROOM, offsets[o]};
                memset(got, 0, (size_t)STREAMS * HOPS * outputs * sizeof *got);
                run_reached(gpu, model, in, got, STREAMS, steps, count, reached[k], &ins, &outs, blown);
                for (size_t i = 0; i < (size_t)STREAMS * HOPS; i++) {
                    if (memcmp(got + i * outputs, want + i * outputs, outputs * sizeof *got)) {
                        fail_msg("%d within reach, %zu bytes on, %d hops a call: hop %zu differs", reached[k], offsets[o],
                                 count, i);
                    }
                }
            }
        }
    }
    for (int i = 0; i < STREAMS; i++) {
        assert_false(blown[i]);
    }
    float *broken = malloc((model->state + 1) * sizeof *broken);
    for (size_t i = 0; i < model->state; i++) {
        broken[i] = NAN;
    }
    const int odd = STREAMS - 1 - 6000;
    struct backend_hop *hops = calloc(STREAMS, sizeof *hops);
    for (int i = 0; i < STREAMS; i++) {
        float *at = place_of(&(struct layout){memory.at, ROOM, 0}, i);
        hops[i] = (struct backend_hop){.slot = STREAMS - 1 - i, .in = at, .out = at + inputs, .count = 1, .blown = &blown[i]};
    }
    gpu->blown = false;
    assert_int_equal(gpu->ops->state_put(gpu, odd, broken), 0);
    assert_int_equal(gpu->ops->step(gpu, hops, STREAMS), 0);
    assert_true(gpu->blown);
    for (int i = 0; i < STREAMS; i++) {
        assert_int_equal(blown[i], i == 6000);
    }
    gpu->ops->close(gpu);
    memory_give_back(&memory);
    free(hops);
    free(broken);
    free(blown);
    free(in);
    free(want);
    free(got);
    model_close(model);
}

/* The hop that the GPU hangs in is void; what it writes when it wakes up, nobody has any more. */
static void what_hangs_writes_to_nobody(void **state)
{
    (void)state;
    enum { STREAMS = 600 };
    struct ssm_error err = {0};
    struct ssm_options options = {.device = "cuda", .streams = STREAMS, .threads = 2};
    struct ssm_engine *engine = ssm_open(shipped[DENOISE - RECIPES], &options, &err);
    struct ssm_hop *hops = calloc(STREAMS, sizeof *hops);
    assert_non_null(engine);
    size_t hop = (size_t)ssm_describe(engine)->hop;
    float *memory = ssm_take_memory(engine, 2 * STREAMS * hop * sizeof *memory), *out = memory + STREAMS * hop;
    uint64_t seed = 3;
    assert_non_null(memory);
    test_fill(memory, STREAMS * hop, 0.3f, &seed);
    for (int i = 0; i < STREAMS; i++) {
        hops[i] = (struct ssm_hop){.in = memory + (size_t)i * hop, .out = out + (size_t)i * hop, .count = 1};
        assert_int_equal(ssm_stream_open(engine, &hops[i].stream), SSM_OK);
    }
    for (int t = 0; t < 5; t++) {
        assert_int_equal(ssm_step(engine, hops, STREAMS), STREAMS);
    }
    assert_int_equal(stall(0, 2500), 0);
    assert_int_equal(ssm_step(engine, hops, STREAMS), 0);
    memset(out, 0x5a, STREAMS * hop * sizeof *out);
    assert_int_equal(stall_end(0), 0); /* and what waited behind it has 100 ms */
    for (int64_t from = clock_now(); clock_now() - from < 100000000;) {
    }
    for (size_t i = 0; i < STREAMS * hop * sizeof *out; i++) {
        assert_int_equal(((const unsigned char *)out)[i], 0x5a);
    }
    assert_int_equal(ssm_step(engine, hops, STREAMS), STREAMS);
    ssm_close(engine);
    free(hops);
}

/* All there is to a call in little: graphs, parts with helpers, a recording in parts; small enough for a look by
 * compute-sanitizer's racecheck. */
static void a_small_model_goes_all_ways(void **state)
{
    (void)state;
    enum { MOST = 2100, STEPS = 2, LONG = 4100 };
    static const int batches[] = {1, 3, 40, MOST};
    struct model *model = open_model(10);
    struct backend *gpu = open_backend(cuda, model, MOST, 3, NULL), *cpu = open_backend(&backend_cpu, model, MOST, 1, NULL);
    float *in = record(model, (size_t)MOST * STEPS, 8), *a = room(model, (size_t)MOST * STEPS), *b = room(model, (size_t)MOST * STEPS);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        run_batch(gpu, model, in, a, batches[i], STEPS);
        run_batch(cpu, model, in, b, batches[i], STEPS);
        assert_twins(model, a, b, (size_t)batches[i] * STEPS, TWIN_TOLERANCE, "batch");
    }
    run_scan(gpu, model, in, a, 0, LONG, NULL);
    for (int at = 0; at < LONG; at += 64) {
        run_scan(cpu, model, in, b, at, at + 64 < LONG ? at + 64 : LONG, NULL);
    }
    assert_twins(model, a, b, LONG, TWIN_TOLERANCE, "recording");
    gpu->ops->close(gpu);
    cpu->ops->close(cpu);
    free(in);
    free(a);
    free(b);
    model_close(model);
}

/* Hops that take several passes, some streams more than others; one joins, one starts anew in between. */
static void streams_of_different_pace_keep_to_themselves(void **state)
{
    (void)state;
    enum { N = 3, TOTAL = 24 };
    struct model *model = open_model(RECIPES);
    struct backend *cpu = open_backend(&backend_cpu, model, N, 1, NULL), *gpu = open_backend(cuda, model, N, 1, NULL);
    float *in = record(model, TOTAL, 11), *want[N], *got[N];
    for (int i = 0; i < N; i++) {
        want[i] = room(model, TOTAL);
        got[i] = room(model, TOTAL);
    }
    for (int at = 0; at < TOTAL; at += 8) {
        for (int round = 0; round < 2; round++) {
            struct backend *backend = round ? gpu : cpu;
            float **out = round ? got : want;
            struct backend_hop hops[N];
            if (at == 8) {
                backend->ops->state_put(backend, 1, NULL);
            }
            hops[0] = hop_at(model, 2, in, out[0], at, 8, NULL);
            hops[1] = hop_at(model, 0, in, out[1], at / 8, 1, NULL);
            hops[2] = hop_at(model, 1, in, out[2], at / 2, 4, NULL);
            assert_int_equal(backend->ops->step(backend, hops, N), 0);
        }
    }
    assert_twins(model, got[0], want[0], TOTAL, TWIN_TOLERANCE, "8 hops a step");
    assert_twins(model, got[1], want[1], TOTAL / 8, TWIN_TOLERANCE, "1 hop a step");
    assert_twins(model, got[2], want[2], TOTAL / 2, TWIN_TOLERANCE, "4 hops a step");
    for (int i = 0; i < N; i++) {
        free(want[i]);
        free(got[i]);
    }
    free(in);
    gpu->ops->close(gpu);
    cpu->ops->close(cpu);
    model_close(model);
}

static void not_a_number_counts_as_silence(void **state)
{
    (void)state;
    struct model *model = open_model(RECIPES);
    struct backend *cpu = open_backend(&backend_cpu, model, 1, 1, NULL), *gpu = open_backend(cuda, model, 1, 1, NULL);
    float *in = record(model, HOPS, 12), *want = room(model, HOPS), *got = room(model, HOPS);
    for (int i = 0; i < HOPS * model->info.inputs; i += 97) {
        in[i] = i % 3 ? NAN : INFINITY;
    }
    run_steps(cpu, model, in, want, 0, HOPS, NULL);
    run_steps(gpu, model, in, got, 0, HOPS / 2, NULL);
    run_scan(gpu, model, in, got, HOPS / 2, HOPS, NULL);
    assert_twins(model, got, want, HOPS, TWIN_TOLERANCE, "NaN in");
    free(in);
    free(want);
    free(got);
    gpu->ops->close(gpu);
    cpu->ops->close(cpu);
    model_close(model);
}

static void move(struct backend *from, struct backend *to, const struct model *model)
{
    float *state = calloc(model->state, sizeof *state);
    assert_int_equal(from->ops->state_get(from, 0, state), 0);
    assert_int_equal(to->ops->state_put(to, 0, state), 0);
    free(state);
}

/* Processor, GPU, processor, GPU: every few hops, in the middle of everything. */
static void a_stream_moves_between_processor_and_gpu(void **state)
{
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        struct model *model = open_model(i);
        struct backend *cpu = open_backend(&backend_cpu, model, 1, 1, NULL),
                       *gpu = open_backend(cuda, model, 1, 1, NULL);
        float *in = record(model, HOPS, 13), *want = room(model, HOPS), *got = room(model, HOPS);
        run_steps(cpu, model, in, want, 0, HOPS, NULL);
        cpu->ops->state_put(cpu, 0, NULL);
        for (int at = 0; at < HOPS; at += 16) {
            run_steps(cpu, model, in, got, at, at + 7, NULL);
            move(cpu, gpu, model);
            run_steps(gpu, model, in, got, at + 7, at + 12, NULL);
            run_scan(gpu, model, in, got, at + 12, at + 16, NULL);
            move(gpu, cpu, model);
        }
        assert_twins(model, got, want, HOPS, TWIN_TOLERANCE, "moving");
        free(in);
        free(want);
        free(got);
        gpu->ops->close(gpu);
        cpu->ops->close(cpu);
        model_close(model);
    }
}

static void less_precision_stays_near(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double tolerance; /* of full scale */
    } rows[] = {{"tf32", 1e-3}, {"bf16", 3e-2}, {"bf16-state", 3e-2}};
    struct model *model = open_model(DENOISE);
    struct backend *cpu = open_backend(&backend_cpu, model, 1, 1, NULL);
    float *in = record(model, HOPS, 14), *want = room(model, HOPS), *got = room(model, HOPS);
    run_steps(cpu, model, in, want, 0, HOPS, NULL);
    for (int i = 0; i < 3; i++) {
        for (int scan = 0; scan < 2; scan++) {
            struct backend *gpu = open_backend(cuda, model, 1, 1, rows[i].name);
            (scan ? run_scan : run_steps)(gpu, model, in, got, 0, HOPS, NULL);
            double worst = 0;
            for (int k = 0; k < HOPS * model->info.outputs; k++) {
                double difference = fabs((double)got[k] - (double)want[k]);
                worst = difference <= worst ? worst : difference;
            }
            print_message("%s, %s: %.2g of full scale from the processor\n", rows[i].name, scan ? "scan" : "step",
                          worst);
            assert_true(worst <= rows[i].tolerance);
            gpu->ops->close(gpu);
        }
    }
    free(in);
    free(want);
    free(got);
    cpu->ops->close(cpu);
    model_close(model);
}

static size_t free_bytes(void)
{
    struct backend_cuda_device device;
    struct ssm_error err;
    assert_true(backend_cuda_devices(&device, 1, &err) >= 1);
    return device.bytes_free;
}

/* A set of copies to begin while the GPU is at a step. */
struct copying {
    struct backend *gpu;
    int slots[64], n, begun;
};

static void begin_copying(void *arg)
{
    struct copying *copying = arg;
    copying->begun++;
    assert_int_equal(copying->gpu->ops->copy_begin(copying->gpu, copying->slots, copying->n), 0);
}

/* Copies begun in a step of several parts hold what it leaves: of all its lanes, and behind the last of a stream's hops. */
static void copies_begun_in_a_step_are_the_states_behind_it(void **state)
{
    (void)state;
    enum { STREAMS = 9003, STEPS = 4, HOPS = 2 };
    struct model *model = open_model(DENOISE);
    struct backend *gpu = open_backend(cuda, model, STREAMS, 2, NULL);
    float *in = record(model, STREAMS + HOPS + STEPS, 22), *out = room(model, STREAMS * HOPS), *want = calloc(model->state, sizeof *want);
    struct backend_hop *hops = calloc(STREAMS, sizeof *hops);
    struct copying copying = {.gpu = gpu, .n = gpu->copies < 64 ? gpu->copies : 64};
    gpu->meanwhile = begin_copying;
    gpu->meanwhile_arg = &copying;
    for (int t = 0; t < STEPS; t++) {
        for (int i = 0; i < STREAMS; i++) {
            hops[i] = hop_at(model, i, in + (i + t) * model->info.inputs, out + i * HOPS * model->info.outputs, 0, 1 + t % HOPS, NULL);
        }
        for (int i = 0; i < copying.n; i++) {
            copying.slots[i] = (t * 911 + i * (STREAMS / copying.n)) % STREAMS;
        }
        assert_int_equal(gpu->ops->step(gpu, hops, STREAMS), 0);
        assert_int_equal(copying.begun, t + 1);
        const float *states;
        while (gpu->ops->copy_end(gpu, &states) == 0) {
        }
        for (int i = 0; i < copying.n; i++) {
            assert_int_equal(gpu->ops->state_get(gpu, copying.slots[i], want), 0);
            assert_memory_equal(states + (size_t)i * model->state, want, model->state * sizeof *want);
        }
    }
    free(hops);
    free(in);
    free(out);
    free(want);
    gpu->ops->close(gpu);
    model_close(model);
}

/* Copies begun between two steps hold what the first left, whatever the second does meanwhile; few rows and many. */
static void copies_beside_the_steps_are_the_states(void **state)
{
    (void)state;
    enum { STREAMS = 3000, STEPS = 6 };
    struct model *model = open_model(DENOISE);
    struct backend *gpu = open_backend(cuda, model, STREAMS, 2, NULL);
    float *in = record(model, STREAMS + STEPS, 21), *out = room(model, STREAMS), *want = calloc(model->state, sizeof *want);
    float *first = calloc(model->state, sizeof *first);
    static struct backend_hop hops[STREAMS];
    int slots[512];
    assert_in_range(gpu->copies, 2, 512);
    for (int t = 0; t < STEPS; t++) {
        int n = t % 2 ? STREAMS : 5, which = t * 911 % n;
        for (int i = 0; i < STREAMS; i++) {
            hops[i] = hop_at(model, i, in + t * model->info.inputs, out, i, 1, NULL);
        }
        assert_int_equal(gpu->ops->step(gpu, hops, n), 0);
        assert_int_equal(gpu->ops->state_get(gpu, which, want), 0);
        int count = gpu->copies < n ? gpu->copies : n;
        for (int i = 0; i < count; i++) {
            slots[i] = (which + i) % n;
        }
        const float *states, *before;
        int there = 0;
        assert_int_equal(gpu->ops->copy_begin(gpu, slots, count), 0);
        assert_int_equal(gpu->ops->step(gpu, hops, n), 0);
        while (there == 0) {
            there = gpu->ops->copy_end(gpu, &states);
        }
        assert_int_equal(there, 1);
        assert_memory_equal(states, want, model->state * sizeof *want);
        memcpy(first, want, model->state * sizeof *want);
        before = states;
        int last = slots[count - 1];
        assert_int_equal(gpu->ops->step(gpu, hops + last, 1), 0);
        assert_int_equal(gpu->ops->state_get(gpu, last, want), 0);
        assert_int_equal(gpu->ops->copy_begin(gpu, &last, 1), 0);
        while ((there = gpu->ops->copy_end(gpu, &states)) == 0) {
        }
        assert_memory_equal(states, want, model->state * sizeof *want);
        assert_memory_equal(before, first, model->state * sizeof *first);
    }
    free(in);
    free(out);
    free(want);
    free(first);
    gpu->ops->close(gpu);
    model_close(model);
}

static void gpu_memory_is_constant_after_open(void **state)
{
    (void)state;
    enum { STREAMS = 700, STEPS = 10000 };
    struct model *model = open_model(RECIPES);
    struct backend *gpu = open_backend(cuda, model, STREAMS, 1, NULL);
    float *in = record(model, STREAMS, 15), *out = room(model, STREAMS);
    static struct backend_hop hops[STREAMS];
    size_t before = free_bytes();
    for (int t = 0; t < STEPS; t++) {
        int n = 1 + t * 37 % STREAMS;
        for (int i = 0; i < n; i++) {
            hops[i] = hop_at(model, i, in, out, i, 1, NULL);
        }
        assert_int_equal(gpu->ops->step(gpu, hops, n), 0);
        if (t % 100 == 0) {
            run_scan(gpu, model, in, out, 0, n, NULL);
            gpu->ops->state_put(gpu, t % STREAMS, NULL);
        }
    }
    assert_int_equal(free_bytes(), before);
    free(in);
    free(out);
    gpu->ops->close(gpu);
    model_close(model);
}

static void what_cannot_be_had_is_refused_in_words(void **state)
{
    (void)state;
    static const struct {
        const char *device, *precision;
        int streams, code;
    } rows[] = {{"cuda:99", NULL, 1, 69},
                {"cuda:x", NULL, 1, 64},
                {"cuda0", NULL, 1, 64},
                {"cuda", "fp8", 1, 64},
                {"cuda", NULL, 1 << 20, 69}};
    struct model *model = open_model(DENOISE);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct ssm_error err = {0};
        struct ssm_options options = {
            .device = rows[i].device, .precision = rows[i].precision, .streams = rows[i].streams, .threads = 1};
        assert_null(cuda->open(model, &options, &err));
        print_message("%s\n", err.text);
        assert_int_equal(err.code, rows[i].code);
    }
    model_close(model);
}

/* ---- a GPU that fails: last, for the process has none afterwards ---- */

static void assert_backend_is_dead(struct backend *gpu, const struct model *model, const float *in, float *out)
{
    struct backend_hop hop = hop_at(model, 0, in, out, 4, 1, NULL);
    float *saved = calloc(model->state, sizeof *saved);
    assert_int_equal(gpu->ops->step(gpu, &hop, 1), -1);
    print_message("%s\n", gpu->ops->fault(gpu));
    assert_int_equal(gpu->ops->step(gpu, &hop, 1), -1);
    assert_int_equal(gpu->ops->scan(gpu, &hop), -1);
    assert_int_equal(gpu->ops->state_get(gpu, 0, saved), -1);
    assert_int_equal(gpu->ops->state_put(gpu, 0, NULL), -1);
    free(saved);
}

static void assert_none_opens(const struct model *model)
{
    struct ssm_error err = {0};
    struct ssm_options options = {.device = "cuda", .streams = 1, .threads = 1};
    assert_null(cuda->open(model, &options, &err));
    print_message("%s\n", err.text);
    assert_int_equal(err.code, 69);
}

/* An engine with several streams of one recording, each some hops behind the one before it. */
struct crowd {
    struct ssm_engine *engine;
    struct ssm_hop hops[48];
    float out[48][160];
};
enum { CROWD = 48, COPY_AGE = 100 }; /* hops that a copy is old at most */

static void open_crowd(struct crowd *crowd, const char *device)
{
    struct ssm_error err = {0};
    struct ssm_options options = {.device = device, .streams = CROWD, .threads = 2};
    crowd->engine = ssm_open(shipped[DENOISE - RECIPES], &options, &err);
    if (!crowd->engine) {
        fail_msg("%s", err.text);
    }
    for (int i = 0; i < CROWD; i++) {
        crowd->hops[i] = (struct ssm_hop){.out = crowd->out[i], .count = 1};
        assert_int_equal(ssm_stream_open(crowd->engine, &crowd->hops[i].stream), SSM_OK);
    }
}

static int step_crowd(struct crowd *crowd, const float *in, int t)
{
    for (int i = 0; i < CROWD; i++) {
        crowd->hops[i].in = in + (size_t)(t + 5 * i) * 160;
    }
    return ssm_step(crowd->engine, crowd->hops, CROWD);
}

static double farthest(const struct crowd *a, const struct crowd *b)
{
    double worst = 0;
    for (int k = 0; k < CROWD * 160; k++) {
        double difference = fabs((double)a->out[k / 160][k % 160] - (double)b->out[k / 160][k % 160]);
        worst = difference <= worst ? worst : difference; /* a NaN sticks */
    }
    return worst;
}

/* Over a second from hop `at` on: the most by which two crowds differ from a healthy one. */
static void compare_crowds(struct crowd *moved, struct crowd *healthy, struct crowd *missed, const float *in, int at,
                           double *by_moving, double *by_missing)
{
    for (int t = at; t < at + 100; t++) {
        assert_int_equal(step_crowd(moved, in, t), CROWD);
        assert_int_equal(step_crowd(healthy, in, t), CROWD);
        assert_int_equal(step_crowd(missed, in, t), CROWD);
        *by_moving = fmax(*by_moving, farthest(moved, healthy));
        *by_missing = fmax(*by_missing, farthest(missed, healthy));
    }
}

/* One hop of each stream is void; the next comes from the processor, in time. What follows is no further from a run
 * without a failure than the processor itself is, `gapped`, when it misses the hops since the copies: the oldest copy
 * is a second old. The model remembers a gap for seconds, so the two are compared with each other, not with zero. */
static void assert_crowd_goes_on(struct crowd *crowd, struct crowd *healthy, struct crowd *gapped, const float *in, int t)
{
    int64_t start = clock_now();
    assert_int_equal(step_crowd(crowd, in, t), 0);
    assert_int_equal(crowd->hops[CROWD / 2].status, SSM_FAULT);
    assert_int_equal(step_crowd(crowd, in, t + 1), CROWD);
    double ms = (double)(clock_now() - start) * 1e-6;
    step_crowd(healthy, in, t);
    step_crowd(healthy, in, t + 1);
    const struct ssm_health *health = ssm_health(crowd->engine);
    print_message("%s: %d streams on the processor %.1f ms later\n", health->last, (int)health->moved, ms);
    assert_true(ms < 100);
    assert_int_equal(health->faults, 1);
    assert_int_equal(health->moved, CROWD);
    assert_int_equal(health->failed_hops, CROWD);
    for (int k = 0; k < CROWD; k++) {
        gapped->hops[k].elapsed = COPY_AGE + 2;
    }
    step_crowd(gapped, in, t + 1);
    for (int k = 0; k < CROWD; k++) {
        gapped->hops[k].elapsed = 1;
    }
    static const int seconds[] = {0, 2, 5};
    for (int i = 0, at = t + 2; i < 3; i++, at += 100) {
        for (; at < t + 2 + 100 * seconds[i]; at++) {
            step_crowd(crowd, in, at);
            step_crowd(healthy, in, at);
            step_crowd(gapped, in, at);
        }
        double moved = 0, missed = 0;
        compare_crowds(crowd, healthy, gapped, in, at, &moved, &missed);
        print_message("%d s later %.2g of full scale from streams that never moved; after a gap on the processor %.2g\n",
                      seconds[i], moved, missed);
        assert_true(moved < 2 * missed + 1e-3);
    }
}

/* It is given up after a second; its streams go on with the next hop. */
static void a_gpu_that_hangs_is_given_up(void **state)
{
    (void)state;
    static struct crowd crowd;
    struct model *model = open_model(DENOISE);
    float *in = play(model, 400), *out = room(model, 400);
    open_crowd(&crowd, "cuda");
    for (int t = 0; t < 30; t++) {
        assert_int_equal(step_crowd(&crowd, in, t), CROWD);
    }
    assert_int_equal(stall(0, 2500), 0);
    int64_t start = clock_now();
    assert_int_equal(step_crowd(&crowd, in, 30), 0);
    double waited = (double)(clock_now() - start) * 1e-6;
    assert_int_equal(step_crowd(&crowd, in, 31), CROWD);
    print_message("%s; given up after %.1f ms\n", ssm_health(crowd.engine)->last, waited);
    assert_in_range(waited, 1000, 1500);
    ssm_close(crowd.engine);
    assert_true((double)(clock_now() - start) * 1e-6 < 2000); /* nobody waited for the GPU's memory */
    assert_int_equal(stall_end(0), 0);
    struct backend *gpu = open_backend(cuda, model, 1, 1, NULL);
    run_steps(gpu, model, in, out, 0, 4, NULL);
    gpu->ops->close(gpu);
    free(in);
    free(out);
    model_close(model);
}

/* Host memory that this program has, bytes. */
static size_t resident_bytes(void)
{
    size_t pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*s %zu", &pages), 1);
    fclose(file);
    return pages * 4096;
}

static bool has_two(void)
{
    struct backend_cuda_device devices[2];
    struct ssm_error err;
    return backend_cuda_devices(devices, 2, &err) >= 2;
}

static void free_bytes_of_two(size_t bytes[2])
{
    struct backend_cuda_device devices[2];
    struct ssm_error err;
    assert_true(backend_cuda_devices(devices, 2, &err) >= 2);
    bytes[0] = devices[0].bytes_free;
    bytes[1] = devices[1].bytes_free;
}

/* Of two crowds in step, those streams of the first that aren't on the processor are the same bits in the second; gives how
 * many those are. */
static int assert_same_on_gpus(const struct crowd *two, const struct crowd *one)
{
    int n = 0;
    for (int i = 0; i < CROWD; i++) {
        if (ssm_stream_device(two->engine, two->hops[i].stream) >= 0) {
            assert_memory_equal(two->out[i], one->out[i], sizeof one->out[i]);
            n++;
        }
    }
    return n;
}

/* Neither two GPUs' memory nor the program's grows by stepping; a byte a stream and step would be more than 512 KiB. */
static void assert_memory_stays(struct crowd *crowd, const float *in)
{
    size_t before[2], after[2], resident = 0;
    for (int t = 0; t < 12000; t++) {
        if (t == 1000) {
            free_bytes_of_two(before);
            resident = resident_bytes();
        }
        assert_int_equal(step_crowd(crowd, in, t % 400), CROWD);
    }
    free_bytes_of_two(after);
    print_message("in 11000 steps the program grew by %ld KiB\n", ((long)resident_bytes() - (long)resident) / 1024);
    assert_true(resident_bytes() < resident + (1 << 19));
    assert_memory_equal(before, after, sizeof before);
}

/* The second of two GPUs hangs; given up, its streams are the processor's, and the other's go on as if they were alone. */
static void assert_other_goes_on(struct crowd *two, struct crowd *one, const float *in, int from, int to)
{
    assert_int_equal(stall(1, 3000), 0);
    int gone_on = step_crowd(two, in, from);
    const struct ssm_health *health = ssm_health(two->engine);
    print_message("%s: %d of %d streams go on\n", health->last, gone_on, CROWD);
    assert_int_equal(gone_on, CROWD / 2);
    step_crowd(one, in, from);
    for (int t = from + 1; t < to; t++) {
        assert_int_equal(step_crowd(two, in, t), CROWD);
        assert_int_equal(step_crowd(one, in, t), CROWD);
        assert_int_equal(assert_same_on_gpus(two, one), CROWD / 2);
    }
    assert_int_equal(health->faults, 1);
    assert_int_equal(health->moved, CROWD / 2);
    assert_int_equal(health->failed_hops, CROWD / 2);
    assert_int_equal(stall_end(1), 0);
}

static void one_of_two_gpus_hangs_and_the_other_goes_on(void **state)
{
    (void)state;
    enum { BEFORE = 230, AFTER = 100 };
    static struct crowd two, one, filler;
    if (!has_two()) {
        print_message("needs two GPUs\n");
        skip();
    }
    struct model *model = open_model(DENOISE);
    float *in = play(model, 1000);
    open_crowd(&filler, "cuda:0,cuda:1");
    assert_memory_stays(&filler, in);
    ssm_close(filler.engine);
    open_crowd(&two, "cuda:0,cuda:1");
    open_crowd(&one, "cuda:0");
    for (int t = 0; t < BEFORE; t++) {
        assert_int_equal(step_crowd(&two, in, t), CROWD);
        assert_int_equal(step_crowd(&one, in, t), CROWD);
        assert_int_equal(assert_same_on_gpus(&two, &one), CROWD);
    }
    assert_other_goes_on(&two, &one, in, BEFORE, BEFORE + AFTER);
    ssm_close(two.engine);
    ssm_close(one.engine);
    free(in);
    model_close(model);
}

/* What a kernel does on one GPU ends all calls of the program, to the others too: everybody goes on on the processor. */
static void assert_both_fail(struct crowd *two, const float *in, int from)
{
    int64_t start = clock_now();
    step_crowd(two, in, from);
    assert_int_equal(step_crowd(two, in, from + 1), CROWD);
    double ms = (double)(clock_now() - start) * 1e-6;
    const struct ssm_health *health = ssm_health(two->engine);
    print_message("%s: %d streams on the processor %.1f ms later\n", health->last, (int)health->moved, ms);
    assert_true(ms < 100);
    assert_int_equal(health->faults, 2);
    assert_int_equal(health->moved, CROWD);
}

static void a_gpu_that_fails_says_so_and_the_engine_goes_on_without(void **state)
{
    (void)state;
    enum { BEFORE = 230 };
    static struct crowd crowd, healthy, gapped, two;
    bool with_two = has_two();
    struct model *model = open_model(DENOISE);
    struct backend *gpu = open_backend(cuda, model, 2, 1, NULL);
    float *in = play(model, 2000), *out = room(model, 2000);
    open_crowd(&crowd, "cuda");
    open_crowd(&healthy, "cpu");
    open_crowd(&gapped, "cpu");
    open_crowd(&two, with_two ? "cuda:0,cuda:1" : "cuda");
    run_steps(gpu, model, in, out, 0, 4, NULL);
    for (int t = 0; t < BEFORE; t++) {
        assert_int_equal(step_crowd(&crowd, in, t), CROWD);
        assert_int_equal(step_crowd(&two, in, t), CROWD);
        step_crowd(&healthy, in, t);
        if (t < BEFORE - COPY_AGE) {
            step_crowd(&gapped, in, t);
        }
    }
    poison(with_two);
    if (with_two) {
        assert_both_fail(&two, in, BEFORE);
    }
    assert_crowd_goes_on(&crowd, &healthy, &gapped, in, BEFORE);
    assert_backend_is_dead(gpu, model, in, out);
    assert_none_opens(model);
    ssm_close(crowd.engine);
    ssm_close(healthy.engine);
    ssm_close(gapped.engine);
    ssm_close(two.engine);
    free(in);
    free(out);
    gpu->ops->close(gpu);
    model_close(model);
}

int main(void)
{
    struct backend_cuda_device device;
    struct ssm_error err;
    if (backend_cuda_devices(&device, 1, &err) < 1 || !(cuda = backend_cuda_find(&err))) {
        fprintf(stderr, "test_backend: %s\n", err.text);
        return err.code;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_model_steps_and_scans_as_on_the_processor),
        cmocka_unit_test(a_long_recording_scans_as_it_steps),
        cmocka_unit_test(a_stream_is_the_same_bits_alone_and_in_any_batch),
        cmocka_unit_test(hops_within_reach_give_the_same_bits),
        cmocka_unit_test(a_small_model_goes_all_ways),
        cmocka_unit_test(streams_of_different_pace_keep_to_themselves),
        cmocka_unit_test(not_a_number_counts_as_silence),
        cmocka_unit_test(a_stream_moves_between_processor_and_gpu),
        cmocka_unit_test(less_precision_stays_near),
        cmocka_unit_test(copies_beside_the_steps_are_the_states),
        cmocka_unit_test(copies_begun_in_a_step_are_the_states_behind_it),
        cmocka_unit_test(gpu_memory_is_constant_after_open),
        cmocka_unit_test(what_cannot_be_had_is_refused_in_words),
        cmocka_unit_test(a_gpu_that_hangs_is_given_up),
        cmocka_unit_test(what_hangs_writes_to_nobody),
        cmocka_unit_test(one_of_two_gpus_hangs_and_the_other_goes_on),
        cmocka_unit_test(a_gpu_that_fails_says_so_and_the_engine_goes_on_without),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
