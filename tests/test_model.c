/* SPDX-License-Identifier: MIT */
/* model/model.c and find.c: what a model says of itself, and one sentence for each file that is not a model. */
#include "model/ssm.h"
#include "tests/model_file.h"

#define TINY           "tests/data/tiny-denoise.safetensors"
#define CONFIG(layers) "{'format':1,'rate':100,'hop':4,'layers':[" layers "]}"
#define STFT           "{'type':'stft','window':8,'hop':4},"

static void add_mamba(struct model_file *file)
{
    model_file_add(file, "m.norm.weight", "[4]", NULL, 4);
    model_file_add(file, "m.mixer.in_proj.weight", "[16,4]", NULL, 64);
    model_file_add(file, "m.mixer.conv1d.weight", "[8,1,4]", NULL, 32);
    model_file_add(file, "m.mixer.x_proj.weight", "[33,8]", NULL, 264);
    model_file_add(file, "m.mixer.dt_proj.weight", "[8,1]", NULL, 8);
    model_file_add(file, "m.mixer.dt_proj.bias", "[8]", NULL, 8);
    model_file_add(file, "m.mixer.A_log", "[8,16]", NULL, 128);
    model_file_add(file, "m.mixer.D", "[8]", NULL, 8);
    model_file_add(file, "m.mixer.out_proj.weight", "[4,8]", NULL, 32);
}

static void each_bad_configuration_has_its_sentence(void **state)
{
    (void)state;
    static const struct {
        const char *config, *words;
    } cases[] = {
        {NULL, "has neither an ssm.config nor the tensors of a Mamba backbone"},
        {"[1]", "ssm.config is not a JSON object"},
        {"{'a':1,'a':2}", "ssm.config is not a JSON object: duplicate"},
        {"{}", "\"format\" must be a whole number 1..1"},
        {"{'format':2}", "\"format\" must be a whole number 1..1"},
        {"{'format':1,'rate':0,'hop':4}", "\"rate\" must be a whole number"},
        {"{'format':1,'rate':100,'hop':0}", "\"hop\" must be a whole number"},
        {"{'format':1,'rate':100,'hop':4,'channels':2}", "\"channels\" must be a whole number 1..1"},
        {"{'format':1,'rate':100,'hop':4}", "needs a list of 1..1024 layers"},
        {CONFIG("7"), "layer 0 (?): there is no layer type \"\""},
        {CONFIG("{'type':'attention'}"), "layer 0 (attention): there is no layer type \"attention\""},
        {CONFIG("{'type':'linear','in':4,'out':4}"), "layer 0 (linear): needs a \"name\""},
        {CONFIG("{'type':'linear','name':'w','out':4}"), "\"in\" must be a whole number"},
        {CONFIG("{'type':'linear','name':'w','in':3,'out':4}"), "takes 3 values a hop, but the layer before gives 4"},
        {CONFIG("{'type':'linear','name':'w','in':4,'out':5}"),
         "tensor \"w.weight\" has shape [4, 4], the model needs [5, 4]"},
        {CONFIG("{'type':'linear','name':'v','in':4,'out':4}"), "tensor \"v.weight\" [4, 4] is missing"},
        {CONFIG("{'type':'linear','name':'w','in':4,'out':4},{'type':'norm','name':'n','width':5}"),
         "layer 1 (norm): takes 5"},
        {CONFIG("{'type':'norm','name':'n','width':4}"), "tensor \"n.weight\" [4] is missing"},
        {CONFIG("{'type':'conv','name':'w','width':4,'taps':0}"), "\"taps\" must be a whole number 1..64"},
        {CONFIG("{'type':'conv','name':'w','width':4,'taps':2,'silu':1}"), "\"silu\" must be true or false"},
        {CONFIG("{'type':'stft','window':7,'hop':4}"), "window must be even and a multiple of hop"},
        {CONFIG("{'type':'stft','window':8,'hop':2}"), "takes 2 values a hop"},
        {CONFIG("{'type':'stft','window':8,'hop':4,'compress':2}"), "\"compress\" must be a number 0.05..1"},
        {CONFIG(STFT "{'type':'stft','window':8,'hop':4}"), "only one stft"},
        {CONFIG("{'type':'istft','window':8,'hop':4}"), "must be those of an stft before it"},
        {CONFIG(STFT "{'type':'istft','window':16,'hop':4}"), "must be those of an stft before it (8 and 4)"},
        {CONFIG("{'type':'filter','taps':3}"), "needs an stft before it"},
        {CONFIG(STFT "{'type':'filter','taps':3}"), "takes 30 values a hop, but the layer before gives 10"},
        {CONFIG("{'type':'mask'}"), "needs an stft before it"},
        {CONFIG(STFT "{'type':'mask'}"), "takes 5 values a hop, but the layer before gives 10"},
        {CONFIG("{'type':'mamba','name':'m','d_model':5}"), "takes 5 values"},
        {CONFIG("{'type':'mamba','name':'m','d_model':4,'d_state':1000}"), "\"d_state\" must be a whole number"},
        {CONFIG("{'type':'mamba','name':'m','d_model':4,'d_state':8}"),
         "tensor \"m.mixer.x_proj.weight\" has shape [33, 8]"},
        {CONFIG("{'type':'mamba','name':'m','d_model':4,'discretisation':'exact'}"), "must be one of: euler, zoh"},
        {CONFIG("{'type':'mamba','name':'x','d_model':4}"), "tensor \"x.mixer.in_proj.weight\" [16, 4] is missing"},
        {"{'format':1,'rate':100,'hop':4,'latency':7,'layers':[" STFT "{'type':'istft','window':8,'hop':4}]}",
         "\"latency\" must be a whole number 8.."},
        {"{'format':1,'rate':100,'hop':4,'task':'denoise','layers':[{'type':'stft','window':8,'hop':4}]}",
         "a denoiser gives a hop of 4 samples, but its last layer gives 10 values"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_file *file = model_file_create();
        struct ssm_error err = {0};
        add_mamba(file);
        model_file_add(file, "w.weight", "[4,4]", NULL, 16);
        assert_null(ssm_open(model_file_write(file, cases[i].config), NULL, &err));
        assert_int_equal(err.code, 65);
        if (!strstr(err.text, cases[i].words) || !strstr(err.text, file->path)) {
            fail_msg("\"%s\" does not say \"%s\"", err.text, cases[i].words);
        }
        model_file_destroy(file);
    }
}

static void a_layer_norm_is_not_taken_for_an_rms_norm(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_error err;
    add_mamba(file);
    model_file_add(file, "m.norm.bias", "[4]", NULL, 4);
    assert_null(ssm_open(model_file_write(file, CONFIG("{'type':'mamba','name':'m','d_model':4}")), NULL, &err));
    assert_non_null(strstr(err.text, "LayerNorm"));
    model_file_destroy(file);
}

static void sizes_left_out_are_mambas_own(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_error err;
    add_mamba(file);
    struct ssm_engine *engine =
        ssm_open(model_file_write(file, CONFIG("{'type':'mamba','name':'m','d_model':4}")), NULL, &err);
    assert_non_null(engine);
    assert_int_equal(ssm_describe(engine)->parameters, 4 + 64 + 32 + 264 + 8 + 8 + 128 + 8 + 32);
    assert_int_equal(ssm_describe(engine)->state_bytes, (3 * 8 + 16 * 8 + 8) * 4); /* padded to a cache line */
    ssm_close(engine);
    model_file_destroy(file);
}

static void a_checkpoint_without_config_gets_its_sizes_from_its_shapes(void **state)
{
    (void)state;
    struct ssm_error err;
    struct ssm_layer_info layer;
    struct ssm_engine *engine = ssm_open("tests/data/golden_mamba.safetensors", NULL, &err);
    assert_non_null(engine);
    const struct ssm_info *info = ssm_describe(engine);
    assert_string_equal(info->task, "backbone");
    assert_int_equal(info->hop, 24);
    assert_int_equal(info->outputs, 24);
    assert_int_equal(info->layers, 3);
    assert_int_equal(info->delay, 0);
    assert_true(ssm_describe_layer(engine, 1, &layer));
    assert_string_equal(layer.type, "mamba");
    assert_string_equal(layer.name, "backbone.layers.1");
    assert_int_equal(layer.state_bytes, (3 * 48 + 8 * 48) * 4);
    assert_true(ssm_describe_layer(engine, 2, &layer));
    assert_string_equal(layer.name, "backbone.norm_f");
    assert_false(ssm_describe_layer(engine, 3, &layer));
    assert_false(ssm_describe_layer(engine, -1, &layer));
    ssm_close(engine);
}

static void a_model_tells_its_facts(void **state)
{
    (void)state;
    struct ssm_error err;
    struct ssm_engine *engine = ssm_open(TINY, &(struct ssm_options){.streams = 2}, &err);
    assert_non_null(engine);
    const struct ssm_info *info = ssm_describe(engine);
    assert_string_equal(info->name, "tiny-denoise");
    assert_string_equal(info->version, "1");
    assert_string_equal(info->task, "denoise");
    assert_string_equal(info->licence, "MIT");
    assert_int_equal(strlen(info->digest), 16);
    assert_true(info->device_why[0] != 0);
    assert_true(info->engine_bytes > 2 * info->state_bytes);
    ssm_close(engine);
}

static void a_name_is_looked_up_in_the_model_path_first(void **state)
{
    (void)state;
    struct ssm_error err;
    char path[256];
    setenv("SSM_MODEL_PATH", "/nonexistent::tests/data", 1);
    assert_string_equal(ssm_model_folder(0), "/nonexistent");
    assert_string_equal(ssm_model_folder(1), "tests/data");
    assert_int_equal(ssm_model_find("tiny-denoise", path, sizeof path, &err), 0);
    assert_string_equal(path, TINY);
    assert_int_equal(ssm_model_find("tiny-denoise", path, 8, &err), -1);
    setenv("SSM_MODEL_PATH", "/nonexistent", 1);
    assert_int_equal(ssm_model_find("no-such-model", path, sizeof path, &err), -1);
    assert_int_equal(err.code, 66);
    assert_non_null(strstr(err.text, "no model \"no-such-model\""));
    assert_non_null(strstr(err.text, "/nonexistent, "));
    unsetenv("SSM_MODEL_PATH");
    assert_int_equal(ssm_model_find("./x.safetensors", path, sizeof path, &err), -1);
    assert_int_equal(err.code, 66);
    assert_null(ssm_open("x.safetensors", NULL, &err));
    assert_int_equal(err.code, 66);
    int folders = 0;
    while (ssm_model_folder(folders)) {
        folders++;
    }
    assert_int_equal(folders, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_bad_configuration_has_its_sentence),
        cmocka_unit_test(a_layer_norm_is_not_taken_for_an_rms_norm),
        cmocka_unit_test(sizes_left_out_are_mambas_own),
        cmocka_unit_test(a_checkpoint_without_config_gets_its_sizes_from_its_shapes),
        cmocka_unit_test(a_model_tells_its_facts),
        cmocka_unit_test(a_name_is_looked_up_in_the_model_path_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
