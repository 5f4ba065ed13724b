/* SPDX-License-Identifier: MIT */
/* model/layer_*.c: each layer alone in a model, against its definition or a closed form. */
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
        cmocka_unit_test(a_gap_of_k_hops_decays_as_k_silent_hops_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
