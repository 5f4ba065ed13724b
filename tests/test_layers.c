/* SPDX-License-Identifier: MIT */
/* model/layer_*.c: each layer alone in a model, against its definition or a closed form. */
#include <complex.h>

#include "model/layer.h"
#include "model/ssm.h"
#include "tests/model_file.h"

#define STFT                     "{'type':'stft','window':16,'hop':8},"
#define ISTFT                    "{'type':'istft','window':16,'hop':8}"
#define CONFIG(rate_hop, layers) "{'format':1,'rate':100," rate_hop ",'layers':[" layers "]}"
enum { HOP = 8, BINS = 9 };

static struct ssm_engine *open_model(struct model_file *file, const char *config)
{
    struct ssm_error err;
    struct ssm_engine *engine = ssm_open(model_file_write(file, config), NULL, &err);
    if (!engine) {
        fail_msg("%s", err.text);
    }
    return engine;
}

/* Run hops from the zero state. */
static void run(struct ssm_engine *engine, const float *in, float *out, const float *elapsed, size_t hops)
{
    ssm_stream stream;
    assert_int_equal(ssm_stream_open(engine, &stream), SSM_OK);
    assert_int_equal(ssm_scan(engine, stream, in, out, elapsed, hops, NULL), SSM_OK);
    ssm_stream_close(engine, stream);
}

static void every_type_is_found_by_its_name_and_no_other(void **state)
{
    (void)state;
    for (int i = 0; layer_at(i); i++) {
        assert_ptr_equal(layer_find(layer_at(i)->type), layer_at(i));
        assert_non_null(layer_at(i)->open);
        assert_non_null(layer_at(i)->run);
    }
    assert_null(layer_find("attention"));
}

static void stft_then_istft_gives_the_samples_back_one_hop_late(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine = open_model(file, CONFIG("'hop':8", STFT ISTFT));
    float in[20 * HOP], out[20 * HOP];
    uint64_t seed = 1;
    test_fill(in, 20 * HOP, 1, &seed);
    run(engine, in, out, NULL, 20);
    assert_int_equal(ssm_describe(engine)->delay, HOP);
    for (int i = HOP; i < 20 * HOP; i++) {
        assert_close(out[i], in[i - HOP], 1e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

static void compressed_features_are_magnitude_and_scaled_parts(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *plain = open_model(file, CONFIG("'hop':8", "{'type':'stft','window':16,'hop':8}"));
    unlink(file->path);
    struct ssm_engine *engine =
        open_model(file, CONFIG("'hop':8", "{'type':'stft','window':16,'hop':8,'compress':0.3}"));
    float in[HOP], spectrum[2 * BINS], features[3 * BINS];
    uint64_t seed = 2;
    test_fill(in, HOP, 1, &seed);
    run(plain, in, spectrum, NULL, 1);
    run(engine, in, features, NULL, 1);
    for (int f = 0; f < BINS; f++) {
        double re = spectrum[f], im = spectrum[BINS + f], size = sqrt(re * re + im * im + 1e-12);
        assert_close(features[f], pow(size, 0.3), 1e-5);
        assert_close(features[BINS + f], re * pow(size, -0.7), 1e-5);
        assert_close(features[2 * BINS + f], im * pow(size, -0.7), 1e-5);
    }
    ssm_close(plain);
    ssm_close(engine);
    model_file_destroy(file);
}

/* A head that gives the same values whatever comes in. */
static void add_constant(struct model_file *file, const float *bias, int width)
{
    char shape[32];
    snprintf(shape, sizeof shape, "[%d,%d]", width, 2 * BINS);
    model_file_add(file, "head.weight", shape, NULL, (size_t)width * 2 * BINS);
    snprintf(shape, sizeof shape, "[%d]", width);
    model_file_add(file, "head.bias", shape, bias, (size_t)width);
}

static void a_filter_that_takes_the_spectrum_before_delays_by_a_hop(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    float bias[3 * 2 * BINS] = {0}, in[20 * HOP], out[20 * HOP];
    for (int f = 0; f < BINS; f++) {
        bias[2 * 2 * BINS + f] = -0.5f; /* tap 2, real part */
    }
    add_constant(file, bias, 3 * 2 * BINS);
    struct ssm_engine *engine =
        open_model(file, CONFIG("'hop':8", STFT
                                "{'type':'linear','name':'head','in':18,'out':54},{'type':'filter','taps':3}," ISTFT));
    uint64_t seed = 3;
    test_fill(in, 20 * HOP, 1, &seed);
    run(engine, in, out, NULL, 20);
    for (int i = 0; i < 20 * HOP; i++) {
        assert_close(out[i], i < 3 * HOP ? 0 : -0.5f * in[i - 3 * HOP], 1e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

static void a_mask_scales_by_its_gains_and_by_their_sigmoid(void **state)
{
    (void)state;
    float bias[BINS], in[20 * HOP], out[20 * HOP];
    uint64_t seed = 4;
    test_fill(in, 20 * HOP, 1, &seed);
    for (int f = 0; f < BINS; f++) {
        bias[f] = 0.25f;
    }
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        struct model_file *file = model_file_create();
        add_constant(file, bias, BINS);
        struct ssm_engine *engine = open_model(
            file,
            sigmoid ? CONFIG("'hop':8", STFT "{'type':'linear','name':'head','in':18,'out':9},"
                                             "{'type':'mask','sigmoid':true}," ISTFT)
                    : CONFIG("'hop':8", STFT "{'type':'linear','name':'head','in':18,'out':9},{'type':'mask'}," ISTFT));
        run(engine, in, out, NULL, 20);
        double gain = sigmoid ? 1 / (1 + exp(-0.25)) : 0.25;
        for (int i = HOP; i < 20 * HOP; i++) {
            assert_close(out[i], gain * in[i - HOP], 1e-6);
        }
        ssm_close(engine);
        model_file_destroy(file);
    }
}

static void conv_is_a_causal_filter_of_each_channel(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    static const float weight[] = {1, 2, 3, -1, 0, 0.5f}, bias[] = {10, 20};
    static const float in[] = {1, 1, 0, 2, 0, 4, 2, 0}, want[] = {13, 20.5f, 12, 21, 11, 21, 16, 18};
    float out[8];
    model_file_add(file, "c.weight", "[2,1,3]", weight, 6);
    model_file_add(file, "c.bias", "[2]", bias, 2);
    struct ssm_engine *engine = open_model(file, CONFIG("'hop':2", "{'type':'conv','name':'c','width':2,'taps':3}"));
    run(engine, in, out, NULL, 4);
    for (int i = 0; i < 8; i++) {
        assert_close(out[i], want[i], 1e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

static void norm_brings_a_row_to_unit_size(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    static const float weight[] = {1, 2, 1, 1}, in[] = {3, -3, 3, 3};
    float out[4];
    model_file_add(file, "n.weight", "[4]", weight, 4);
    struct ssm_engine *engine = open_model(file, CONFIG("'hop':4", "{'type':'norm','name':'n','width':4}"));
    run(engine, in, out, NULL, 1);
    assert_close(out[0], 1, 1e-5);
    assert_close(out[1], -2, 1e-5);
    ssm_close(engine);
    model_file_destroy(file);
}

static void sigmoid_squashes_each_value(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine = open_model(file, CONFIG("'hop':3", "{'type':'sigmoid'}"));
    static const float in[] = {0, 2, -30};
    float out[3];
    run(engine, in, out, NULL, 1);
    for (int i = 0; i < 3; i++) {
        assert_close(out[i], 1 / (1 + exp(-(double)in[i])), 1e-7);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

static void softmax_shares_out_one_however_large_the_scores(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine = open_model(file, CONFIG("'hop':3", "{'type':'softmax'}"));
    static const float in[] = {1, 2, 0.5f, 1e4f, 1e4f, -3e38f};
    float out[6];
    run(engine, in, out, NULL, 2);
    double sum = exp(1) + exp(2) + exp(0.5);
    for (int i = 0; i < 3; i++) {
        assert_close(out[i], exp((double)in[i]) / sum, 1e-7);
    }
    assert_close(out[3], 0.5, 1e-7);
    assert_close(out[4], 0.5, 1e-7);
    assert_true(out[5] == 0);
    ssm_close(engine);
    model_file_destroy(file);
}

static void scale_brings_each_channel_to_mean_0_and_std_1(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine =
        open_model(file, CONFIG("'hop':2,'channels':3", "{'type':'scale','mean':[1,-2,0],'std':[2,0.5,10]}"));
    static const float in[] = {1, 2, 3, -4, -5, -6}, want[] = {0, 8, 0.3f, -2.5f, -6, -0.6f};
    float out[6];
    run(engine, in, out, NULL, 1);
    for (int i = 0; i < 6; i++) {
        assert_close(out[i], want[i], 1e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

static void an_embedding_gives_a_tokens_row_and_row_0_for_what_is_none(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    static const float rows[] = {10, 11, 20, 21, 30, 31}, in[] = {1, 2, 0, 3, -1, NAN, INFINITY, 1e9f, 1};
    static const int want[] = {1, 2, 0, 0, 0, 0, 0, 0, 1};
    float out[18];
    model_file_add(file, "e.weight", "[3,2]", rows, 6);
    struct ssm_engine *engine =
        open_model(file, CONFIG("'hop':1", "{'type':'embedding','name':'e','vocabulary':3,'width':2}"));
    run(engine, in, out, NULL, 9);
    for (int i = 0; i < 18; i++) {
        assert_true(out[i] == rows[2 * want[i / 2] + i % 2]);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

static void a_mean_weighs_each_value_by_the_time_it_stands_for(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine = open_model(file, CONFIG("'hop':1,'channels':2", "{'type':'pool','kind':'mean'}"));
    static const float in[] = {1, -1, 4, 0, 7, 1, 0, 3}, elapsed[] = {1, 0.5f, 2, 100};
    float out[8];
    double sum[2] = {0}, time = 0;
    run(engine, in, out, elapsed, 4);
    for (int i = 0; i < 8; i++) {
        time += i % 2 ? 0 : elapsed[i / 2];
        sum[i % 2] += elapsed[i / 2] * in[i];
        assert_close(out[i], sum[i % 2] / time, 1e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

static void a_mean_over_so_many_hops_forgets_from_there_on(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine = open_model(file, CONFIG("'hop':1", "{'type':'pool','kind':'mean','hops':4}"));
    static const float elapsed[] = {1, 1, 1, 1, 1, 2, 40};
    float in[] = {8, 0, 0, 0, 0, 4, 5}, out[7];
    run(engine, in, out, elapsed, 7);
    static const double want[] = {8, 4, 8 / 3.0, 2, 1.5, 2.75, 5};
    for (int i = 0; i < 7; i++) {
        assert_close(out[i], want[i], 1e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

static void an_ema_follows_a_step_as_the_exponential(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine = open_model(file, CONFIG("'hop':1", "{'type':'pool','kind':'ema','hops':20}"));
    float in[30], out[30], elapsed[30];
    double time = 0;
    for (int i = 0; i < 30; i++) {
        in[i] = 3;
        elapsed[i] = i % 7 == 3 ? 5.5f : 1;
    }
    run(engine, in, out, elapsed, 30);
    for (int i = 0; i < 30; i++) {
        time += elapsed[i];
        assert_close(out[i], 3 * -expm1(-time / 20), 2e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

/* A Mamba layer with constant delta, B, C and one state: input u = silu(x) goes in once, then h decays by exp(-delta a)
 * a hop, and the output is h times silu(z), on top of the residual. */
static struct ssm_engine *open_decay(struct model_file *file, float a)
{
    static const float one[] = {1}, x_and_z[] = {1, 1}, x_proj[] = {0, 1, 1}, zero[] = {0};
    float log_a = logf(a);
    model_file_add(file, "m.norm.weight", "[1]", one, 1);
    model_file_add(file, "m.mixer.in_proj.weight", "[2,1]", x_and_z, 2);
    model_file_add(file, "m.mixer.conv1d.weight", "[1,1,1]", one, 1);
    model_file_add(file, "m.mixer.x_proj.weight", "[3,1]", x_proj, 3);
    model_file_add(file, "m.mixer.dt_proj.weight", "[1,1]", zero, 1);
    model_file_add(file, "m.mixer.dt_proj.bias", "[1]", zero, 1); /* delta = softplus(0) = ln 2 */
    model_file_add(file, "m.mixer.A_log", "[1,1]", &log_a, 1);
    model_file_add(file, "m.mixer.D", "[1]", zero, 1);
    model_file_add(file, "m.mixer.out_proj.weight", "[1,1]", one, 1);
    return open_model(file,
                      CONFIG("'hop':1", "{'type':'mamba','name':'m','d_model':1,'d_state':1,'d_conv':1,'expand':1,"
                                        "'dt_rank':1,'discretisation':'zoh'}"));
}

static float saved_state(struct ssm_engine *engine, ssm_stream stream)
{
    unsigned char bytes[256];
    float h;
    int size = ssm_state_save(engine, stream, bytes, sizeof bytes);
    assert_int_equal(size, 52);
    memcpy(&h, bytes + 48, sizeof h);
    return h;
}

static void a_gap_of_k_hops_decays_as_k_silent_hops_do(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine = open_decay(file, 0.3f);
    ssm_stream stream;
    float in = 0.5f, zero = 0, out;
    for (int gap = 1; gap <= 1000; gap *= 10) {
        ssm_stream_open(engine, &stream);
        struct ssm_hop hop = {.stream = stream, .in = &in, .out = &out, .count = 1, .elapsed = 1};
        ssm_step(engine, &hop, 1);
        float start = saved_state(engine, stream);
        assert_true(start > 0.05f);
        hop.in = &zero;
        hop.elapsed = (float)gap;
        ssm_step(engine, &hop, 1);
        assert_close(saved_state(engine, stream), start * exp(-0.3 * log(2) * gap), 1e-6);
        ssm_stream_close(engine, stream);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

/* ---- s4d ---- */

#define S4D(more) "{'type':'s4d','name':'s','d_model':3,'d_state':4" more "}"
enum { S4D_WIDTH = 3, S4D_PAIRS = 2 };

/* The layer's parameters, as the paper's code has them. */
static const float log_dt[] = {-3, -1, -5}, skip[] = {0.5f, -1, 0}, log_A_real[] = {-0.7f, 0, -0.7f, 0.5f, -2, -4},
                   A_imag[] = {0, 3, 1, 6, 0.5f, 40},
                   C[] = {1, 0.5f, -0.3f, 2, 0.7f, 0.7f, 1, -1, 0.2f, 0, -1, 0.4f};

static struct ssm_engine *open_s4d(struct model_file *file, const char *config)
{
    model_file_add(file, "s.kernel.log_dt", "[3]", log_dt, 3);
    model_file_add(file, "s.kernel.log_A_real", "[3,2]", log_A_real, 6);
    model_file_add(file, "s.kernel.A_imag", "[3,2]", A_imag, 6);
    model_file_add(file, "s.kernel.C", "[3,2,2]", C, 12);
    model_file_add(file, "s.D", "[3]", skip, 3);
    return open_model(file, config);
}

/* What channel e's impulse response 2 Re<C, A-bar^t B-bar> is at t, in double complex arithmetic. */
static double s4d_response(int e, int t, bool bilinear)
{
    double complex sum = 0;
    double dt = exp((double)log_dt[e]);
    for (int n = e * S4D_PAIRS; n < (e + 1) * S4D_PAIRS; n++) {
        double complex A = -exp((double)log_A_real[n]) + I * (double)A_imag[n];
        double complex A_bar = bilinear ? (1 + dt * A / 2) / (1 - dt * A / 2) : cexp(dt * A);
        double complex B_bar = bilinear ? dt / (1 - dt * A / 2) : (cexp(dt * A) - 1) / A;
        sum += ((double)C[2 * n] + I * (double)C[2 * n + 1]) * cpow(A_bar, t) * B_bar;
    }
    return 2 * creal(sum);
}

static void s4d_is_the_convolution_with_its_kernel(void **state)
{
    (void)state;
    enum { T = 700 };
    static float in[T * S4D_WIDTH], out[T * S4D_WIDTH];
    static double kernel[T * S4D_WIDTH], want[T * S4D_WIDTH];
    uint64_t seed = 12;
    test_fill(in, T * S4D_WIDTH, 1, &seed);
    for (int bilinear = 0; bilinear < 2; bilinear++) {
        struct model_file *file = model_file_create();
        struct ssm_engine *engine = open_s4d(file, bilinear ? CONFIG("'hop':3", S4D(",'discretisation':'bilinear'"))
                                                            : CONFIG("'hop':3", S4D("")));
        run(engine, in, out, NULL, T);
        for (int i = 0; i < T * S4D_WIDTH; i++) {
            kernel[i] = s4d_response(i % S4D_WIDTH, i / S4D_WIDTH, bilinear);
            want[i] = (double)skip[i % S4D_WIDTH] * (double)in[i];
            for (int ago = 0; ago <= i / S4D_WIDTH; ago++) {
                want[i] += kernel[i % S4D_WIDTH + ago * S4D_WIDTH] * (double)in[i - ago * S4D_WIDTH];
            }
        }
        assert_near(out, want, T * S4D_WIDTH, 2e-6);
        ssm_close(engine);
        model_file_destroy(file);
    }
}

/* With zero-order hold, one hop of `elapsed` with an input is as many hops with that input held, fractions too. */
static void s4d_over_a_gap_is_as_many_hops_of_a_held_input(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_engine *engine = open_s4d(file, CONFIG("'hop':3", S4D("")));
    enum { HOPS = 12 };
    static const float elapsed[] = {5, 7}, halves[] = {0.5f, 0.5f, 1, 0.25f, 0.25f, 0.5f, 1, 1, 1, 1, 1, 4};
    float in[HOPS * S4D_WIDTH], each[HOPS * S4D_WIDTH], once[2 * S4D_WIDTH], fractions[HOPS * S4D_WIDTH];
    for (int i = 0; i < HOPS * S4D_WIDTH; i++) {
        in[i] = (float)(1 + i % S4D_WIDTH) * (i / S4D_WIDTH < 5 ? 1 : -0.5f);
    }
    float two[] = {in[0], in[1], in[2], in[15], in[16], in[17]};
    run(engine, in, each, NULL, HOPS);
    run(engine, two, once, elapsed, 2);
    for (int e = 0; e < S4D_WIDTH; e++) {
        assert_close(once[e], each[4 * S4D_WIDTH + e], 1e-6);
        assert_close(once[S4D_WIDTH + e], each[11 * S4D_WIDTH + e], 1e-6);
    }
    for (int i = 0; i < HOPS * S4D_WIDTH; i++) {
        in[i] = (float)(1 + i % S4D_WIDTH) * (i / S4D_WIDTH < 8 ? 1 : -0.5f); /* 0.5 + ... + 1 = 5 of them */
    }
    run(engine, in, fractions, halves, HOPS);
    for (int e = 0; e < S4D_WIDTH; e++) {
        assert_close(fractions[7 * S4D_WIDTH + e], each[4 * S4D_WIDTH + e], 1e-6);
        assert_close(fractions[11 * S4D_WIDTH + e], each[11 * S4D_WIDTH + e], 1e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

/* out = x + GLU(W gelu(s4d(norm(x))) + b), from the bare layer's output. */
static void s4d_has_a_norm_an_activation_a_mix_and_a_residual_around_it(void **state)
{
    (void)state;
    enum { T = 40, N = T * S4D_WIDTH };
    float in[N], normed[N], bare[N], out[N], W[6 * S4D_WIDTH], bias[6], weight[] = {1, 2, -1};
    uint64_t seed = 14;
    test_fill(in, N, 1, &seed);
    test_fill(W, 6 * S4D_WIDTH, 1, &seed);
    test_fill(bias, 6, 1, &seed);
    kernels_scalar.rms_norm(in, weight, 1e-5f, normed, T, S4D_WIDTH);
    struct model_file *file = model_file_create();
    model_file_add(file, "s.norm.weight", "[3]", weight, 3);
    model_file_add(file, "s.output_linear.weight", "[6,3]", W, 6 * S4D_WIDTH);
    model_file_add(file, "s.output_linear.bias", "[6]", bias, 6);
    struct ssm_engine *engine = open_s4d(file, CONFIG("'hop':3", S4D("")));
    unlink(file->path);
    run(engine, normed, bare, NULL, T);
    ssm_close(engine);
    engine = open_model(file, CONFIG("'hop':3", S4D(",'norm':true,'activation':'gelu','mix':'glu','residual':true")));
    run(engine, in, out, NULL, T);
    for (int i = 0; i < N; i++) {
        double first = (double)bias[i % 3], second = (double)bias[3 + i % 3];
        for (int j = 0; j < S4D_WIDTH; j++) {
            double y = (double)bare[i / 3 * 3 + j], gelu = y * 0.5 * erfc(-y / sqrt(2));
            first += (double)W[i % 3 * 3 + j] * gelu;
            second += (double)W[(3 + i % 3) * 3 + j] * gelu;
        }
        assert_close(out[i], (double)in[i] + first / (1 + exp(-second)), 3e-6);
    }
    ssm_close(engine);
    model_file_destroy(file);
}

/* ---- every layer, live and in bulk ---- */

#define MAMBA(sizes) "{'type':'mamba','name':'m'," sizes "}"
enum { ROWS = 200 };

/* A model and its tensors: name, shape (0: no more), scale. */
struct sample {
    const char *config;
    struct {
        const char *name;
        int shape[3];
        float scale;
    } tensors[12];
};

static const struct sample samples[] = {
    {CONFIG("'hop':8", STFT ISTFT), {{0}}},
    {CONFIG("'hop':8", "{'type':'stft','window':32,'hop':8,'compress':0.5}"), {{0}}},
    {CONFIG("'hop':8", STFT "{'type':'linear','name':'h','in':18,'out':72},{'type':'filter','taps':4}"), {{"h.weight", {72, 18}, 0.3f}}},
    {CONFIG("'hop':8", STFT "{'type':'linear','name':'h','in':18,'out':9},{'type':'mask','sigmoid':true}," ISTFT),
     {{"h.weight", {9, 18}, 0.3f}}},
    {CONFIG("'hop':20", "{'type':'conv','name':'c','width':20,'taps':6,'silu':true}"), {{"c.weight", {20, 1, 6}, 0.5f}}},
    {CONFIG("'hop':2,'channels':9", "{'type':'norm','name':'n','width':18},{'type':'softmax'}"), {{"n.weight", {18}, 2}}},
    {CONFIG("'hop':1,'channels':3", "{'type':'scale','mean':[0.1,0,-1],'std':[2,1,0.5]},{'type':'sigmoid'}"), {{0}}},
    {CONFIG("'hop':1", "{'type':'embedding','name':'e','vocabulary':2,'width':24},{'type':'linear','name':'e','in':24,'out':2}"),
     {{"e.weight", {2, 24}, 1}}},
    {CONFIG("'hop':35", "{'type':'pool'}"), {{0}}},
    {CONFIG("'hop':5", "{'type':'pool','hops':10}"), {{0}}},
    {CONFIG("'hop':35", "{'type':'pool','kind':'ema','hops':10}"), {{0}}},
    {CONFIG("'hop':35", "{'type':'s4d','name':'s','d_model':35,'d_state':6,'norm':true,'activation':'silu','mix':'linear',"
                        "'residual':true}"),
     {{"s.norm.weight", {35}, 1}, {"s.D", {35}, 1}, {"s.kernel.log_dt", {35}, 3}, {"s.kernel.log_A_real", {35, 3}, 1},
      {"s.kernel.A_imag", {35, 3}, 9}, {"s.kernel.C", {35, 3, 2}, 1}, {"s.output_linear.weight", {35, 35}, 0.2f}}},
    {CONFIG("'hop':3", "{'type':'s4d','name':'s','d_model':3,'d_state':10,'activation':'gelu','mix':'glu'}"),
     {{"s.D", {3}, 1}, {"s.kernel.log_dt", {3}, 3}, {"s.kernel.log_A_real", {3, 5}, 1}, {"s.kernel.A_imag", {3, 5}, 9},
      {"s.kernel.C", {3, 5, 2}, 1}, {"s.output_linear.weight", {6, 3}, 1}, {"s.output_linear.bias", {6}, 1}}},
    {CONFIG("'hop':5", MAMBA("'d_model':5,'d_state':3,'d_conv':3,'expand':3,'dt_rank':2,'discretisation':'zoh'")),
     {{"m.norm.weight", {5}, 1}, {"m.mixer.in_proj.weight", {30, 5}, 0.5f}, {"m.mixer.conv1d.weight", {15, 1, 3}, 0.5f},
      {"m.mixer.x_proj.weight", {8, 15}, 0.3f}, {"m.mixer.dt_proj.weight", {15, 2}, 0.3f}, {"m.mixer.dt_proj.bias", {15}, 2},
      {"m.mixer.A_log", {15, 3}, 1}, {"m.mixer.D", {15}, 1}, {"m.mixer.out_proj.weight", {5, 15}, 0.3f}}},
};

static void add_tensors(struct model_file *file, const struct sample *sample)
{
    uint64_t seed = 7;
    static float values[4096];
    for (size_t i = 0; i < 12 && sample->tensors[i].name; i++) {
        const int *shape = sample->tensors[i].shape;
        char text[48];
        size_t count = (size_t)shape[0] * (size_t)(shape[1] ? shape[1] : 1) * (size_t)(shape[2] ? shape[2] : 1);
        snprintf(text, sizeof text, shape[2] ? "[%d,%d,%d]" : shape[1] ? "[%d,%d]" : "[%d]", shape[0], shape[1], shape[2]);
        test_fill(values, count, sample->tensors[i].scale, &seed);
        model_file_add(file, sample->tensors[i].name, text, values, count);
    }
}

/* Hop by hop, and the stream's state behind them. */
static void run_steps(struct ssm_engine *engine, const float *in, float *out, const float *elapsed, unsigned char *saved)
{
    const struct ssm_info *info = ssm_describe(engine);
    ssm_stream stream;
    ssm_stream_open(engine, &stream);
    for (int t = 0; t < ROWS; t++) {
        struct ssm_hop hop = {.stream = stream, .in = in + t * info->inputs, .out = out + t * info->outputs, .count = 1,
                              .elapsed = elapsed[t]};
        assert_int_equal(ssm_step(engine, &hop, 1), 1);
    }
    assert_true(ssm_state_save(engine, stream, saved, ssm_state_size(engine)) > 0);
    ssm_stream_close(engine, stream);
}

/* On one thread the same bits as hop by hop; on several, where rows meet other rows in the caches but never in a sum, too. */
static void every_layer_gives_the_same_in_bulk_on_any_number_of_threads(void **state)
{
    (void)state;
    static float in[ROWS * 35], want[ROWS * 100], got[ROWS * 100], elapsed[ROWS];
    static unsigned char saved[2][65536];
    uint64_t seed = 6;
    test_fill(in, ROWS * 35, 1.9f, &seed);
    for (int i = 0; i < ROWS; i++) {
        elapsed[i] = i % 13 == 4 ? 6.5f : i % 29 == 8 ? 0.5f : 1;
    }
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        struct model_file *file = model_file_create();
        add_tensors(file, &samples[i]);
        for (int threads = 1; threads <= 4; threads++) {
            struct ssm_error err;
            struct ssm_engine *engine = ssm_open(threads == 1 ? model_file_write(file, samples[i].config) : file->path,
                                                 &(struct ssm_options){.device = "cpu", .threads = threads}, &err);
            if (!engine) {
                fail_msg("%s", err.text);
            }
            ssm_stream stream;
            size_t values = (size_t)ssm_describe(engine)->outputs * ROWS;
            run_steps(engine, in, want, elapsed, saved[0]);
            ssm_stream_open(engine, &stream);
            assert_int_equal(ssm_scan(engine, stream, in, got, elapsed, ROWS, NULL), SSM_OK);
            assert_memory_equal(got, want, values * sizeof *got);
            ssm_state_save(engine, stream, saved[1], ssm_state_size(engine));
            assert_memory_equal(saved[1], saved[0], ssm_state_size(engine));
            ssm_close(engine);
        }
        model_file_destroy(file);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_found_by_its_name_and_no_other),
        cmocka_unit_test(stft_then_istft_gives_the_samples_back_one_hop_late),
        cmocka_unit_test(compressed_features_are_magnitude_and_scaled_parts),
        cmocka_unit_test(a_filter_that_takes_the_spectrum_before_delays_by_a_hop),
        cmocka_unit_test(a_mask_scales_by_its_gains_and_by_their_sigmoid),
        cmocka_unit_test(conv_is_a_causal_filter_of_each_channel),
        cmocka_unit_test(norm_brings_a_row_to_unit_size),
        cmocka_unit_test(sigmoid_squashes_each_value),
        cmocka_unit_test(softmax_shares_out_one_however_large_the_scores),
        cmocka_unit_test(scale_brings_each_channel_to_mean_0_and_std_1),
        cmocka_unit_test(an_embedding_gives_a_tokens_row_and_row_0_for_what_is_none),
        cmocka_unit_test(a_mean_weighs_each_value_by_the_time_it_stands_for),
        cmocka_unit_test(a_mean_over_so_many_hops_forgets_from_there_on),
        cmocka_unit_test(an_ema_follows_a_step_as_the_exponential),
        cmocka_unit_test(a_gap_of_k_hops_decays_as_k_silent_hops_do),
        cmocka_unit_test(s4d_is_the_convolution_with_its_kernel),
        cmocka_unit_test(s4d_over_a_gap_is_as_many_hops_of_a_held_input),
        cmocka_unit_test(s4d_has_a_norm_an_activation_a_mix_and_a_residual_around_it),
        cmocka_unit_test(every_layer_gives_the_same_in_bulk_on_any_number_of_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
