/* SPDX-License-Identifier: MIT */
/* model/model.c and find.c: what a model says of itself, and one sentence for each file that is not a model. */
#include "model/ssm.h"
#include "tests/model_file.h"

#define TINY           "tests/data/tiny-denoise.safetensors"
#define CONFIG(layers) "{'format':1,'rate':100,'hop':4,'layers':[" layers "]}"
#define STFT           "{'type':'stft','window':8,'hop':4},"
#define TAG(labels)    "{'format':1,'rate':100,'hop':2,'task':'tag','layers':[{'type':'sigmoid'}],'labels':[" labels "]}"

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
        {"{'format':1,'rate':100,'hop':4,'channels':65}", "\"channels\" must be a whole number 1..64"},
        {"{'format':1,'rate':100,'hop':4,'task':'paint'}", "\"task\" must be one of: backbone, denoise, tag, regress, tokens"},
        {"{'format':1,'rate':100,'hop':4,'channels':2,'fields':['x']}", "\"fields\" must be a list of 2 strings"},
        {"{'format':1,'rate':100,'hop':4,'channels':2,'units':['g',7]}", "\"units\" must be a list of 2 strings"},
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
         "gives a hop of 4 samples, but this one takes 1, and its last layer gives 10 values"},
        {"{'format':1,'rate':100,'hop':2,'channels':2,'task':'denoise','layers':[{'type':'sigmoid'}]}", "takes 2, and its"},
        {"{'format':1,'rate':1,'hop':1,'task':'tokens','vocabulary':3,'layers':[{'type':'sigmoid'}]}",
         "a score for each of its \"vocabulary\" (3), but this one takes 1 and its last layer gives 1"},
        {CONFIG("{'type':'scale','mean':[0]}"), "must be lists as long as each other whose length divides 4, not 1 and 0"},
        {CONFIG("{'type':'scale','mean':[0,0,0],'std':[1,1,1]}"), "whose length divides 4, not 3 and 3"},
        {CONFIG("{'type':'scale','mean':[0],'std':[0]}"), "\"std\" must be a list of 1..4 numbers"},
        {CONFIG("{'type':'scale','mean':[0,0,0,0,0],'std':[1]}"), "\"mean\" must be a list of 1..4 numbers"},
        {CONFIG("{'type':'embedding','name':'w','vocabulary':4,'width':4}"), "takes 1 values a hop"},
        {CONFIG("{'type':'pool','kind':'median'}"), "must be one of: mean, ema"},
        {CONFIG("{'type':'pool','kind':'ema'}"), "after how many hops an ema forgets"},
        {CONFIG("{'type':'s4d','name':'s','d_model':4,'d_state':3}"), "\"d_state\" must be even"},
        {CONFIG("{'type':'s4d','name':'s','d_model':4,'discretisation':'euler'}"), "must be one of: zoh, bilinear"},
        {CONFIG("{'type':'s4d','name':'s','d_model':4,'d_state':6}"), "tensor \"s.kernel.log_A_real\" [4, 3] is missing"},
        {TAG(""), "\"labels\" names 0 outputs, but the last layer gives 2"},
        {TAG("'a','b','c'"), "\"labels\" names 3 outputs, but the last layer gives 2"},
        {TAG("'a',7"), "label 1 needs a name of 1..63 letters"},
        {TAG("'a',{'mid':'/m/1'}"), "label 1 needs a name"},
        {TAG("'a','b\\\\u001b[2J'"), "label 1 needs a name of 1..63 letters, none a control character"},
        {TAG("'a',{'name':'b\\\\nc'}"), "none a control character"},
        {TAG("'a','b\\\\u009b2J'"), "none a control character"},
        {TAG("'a',{'name':'b','on':1.5}"), "\"on\" must be a number 0..1"},
        {TAG("'a',{'name':'b','on':0.4,'off':0.5}"), "\"off\" must be a number 0..0.4"},
        {TAG("'a',{'name':'b','hold_s':-1}"), "\"hold_s\" must be a number 0..3600"},
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

/* Who subscribes refuses a header with half a character in it. */
static void a_long_name_is_cut_between_characters(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_error err;
    char config[512] = "{'format':1,'rate':100,'hop':4,'name':'", letter[] = "\xc3\xa9";
    for (int i = 0; i < 40; i++) {
        strcat(config, letter);
    }
    strcat(config, "','layers':[{'type':'mamba','name':'m','d_model':4}]}");
    add_mamba(file);
    struct ssm_engine *engine = ssm_open(model_file_write(file, config), NULL, &err);
    assert_non_null(engine);
    const char *name = ssm_describe(engine)->name;
    assert_int_equal(strlen(name), 62); /* 31 of them; 63 bytes and half a letter */
    assert_string_equal(name + 60, letter);
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

static struct ssm_engine *open_config(struct model_file *file, const char *config)
{
    struct ssm_error err;
    struct ssm_engine *engine = ssm_open(model_file_write(file, config), NULL, &err);
    if (!engine) {
        fail_msg("%s", err.text);
    }
    return engine;
}

static void a_tag_model_names_its_outputs_and_when_they_are_events(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_label label;
    struct ssm_engine *engine = open_config(
        file, TAG("'hum',{'name':'speech','mid':'/m/09x0r','on':0.3,'min_s':0.25,'hold_s':1.5}"));
    assert_string_equal(ssm_describe(engine)->task, "tag");
    assert_false(ssm_describe(engine)->exclusive);
    assert_true(ssm_describe_label(engine, 0, &label));
    assert_string_equal(label.name, "hum");
    assert_string_equal(label.mid, "");
    assert_true(label.on == 0.5f && label.off == 0.35f && label.min_s == 0 && label.hold_s == 0);
    assert_true(ssm_describe_label(engine, 1, &label));
    assert_string_equal(label.name, "speech");
    assert_string_equal(label.mid, "/m/09x0r");
    assert_true(label.on == 0.3f && label.off == 0.3f && label.min_s == 0.25f && label.hold_s == 1.5f);
    assert_false(ssm_describe_label(engine, 2, &label));
    assert_false(ssm_describe_label(engine, -1, &label));
    ssm_close(engine);
    model_file_destroy(file);
}

static void a_model_of_sensors_takes_the_channels_sample_by_sample(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    struct ssm_channel channel;
    /* Two samples of three channels, to (x of the first, z of the second). */
    static const float pick[] = {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, in[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    float stepped[2], scanned[4];
    model_file_add(file, "pick.weight", "[2,6]", pick, 12);
    struct ssm_engine *engine = open_config(
        file, "{'format':1,'rate':100,'hop':2,'channels':3,'task':'regress','fields':['x','y','z'],'units':['g','g','m/s'],"
              "'layers':[{'type':'linear','name':'pick','in':6,'out':2}]}");
    assert_int_equal(ssm_describe(engine)->channels, 3);
    assert_int_equal(ssm_describe(engine)->inputs, 6);
    assert_true(ssm_describe_channel(engine, 2, &channel));
    assert_string_equal(channel.field, "z");
    assert_string_equal(channel.unit, "m/s");
    assert_false(ssm_describe_channel(engine, 3, &channel));
    ssm_stream stream;
    ssm_stream_open(engine, &stream);
    assert_int_equal(ssm_step(engine, &(struct ssm_hop){.stream = stream, .in = in, .out = stepped, .count = 1}, 1), 1);
    assert_true(stepped[0] == 1 && stepped[1] == 6);
    assert_int_equal(ssm_scan(engine, stream, in, scanned, NULL, 2, NULL), SSM_OK);
    assert_true(scanned[0] == 1 && scanned[1] == 6 && scanned[2] == 7 && scanned[3] == 12);
    ssm_close(engine);
    model_file_destroy(file);
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
    assert_null(strstr(err.text, "did you mean"));
    const char *const meant[][2] = {{"denoise16k", "denoise-16k"}, {"denois", "denoise-16k"}, {"denoise-16k-lo", "denoise-16k-low"},
                                    {"tag_audio", "tag-audio"}, {"Vad", "vad"}};
    for (size_t i = 0; i < sizeof meant / sizeof *meant; i++) {
        char wanted[80];
        snprintf(wanted, sizeof wanted, "\"; did you mean %s? (", meant[i][1]);
        assert_int_equal(ssm_model_find(meant[i][0], path, sizeof path, &err), -1);
        assert_non_null(strstr(err.text, wanted));
    }
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
        cmocka_unit_test(a_long_name_is_cut_between_characters),
        cmocka_unit_test(a_checkpoint_without_config_gets_its_sizes_from_its_shapes),
        cmocka_unit_test(a_model_tells_its_facts),
        cmocka_unit_test(a_tag_model_names_its_outputs_and_when_they_are_events),
        cmocka_unit_test(a_model_of_sensors_takes_the_channels_sample_by_sample),
        cmocka_unit_test(a_name_is_looked_up_in_the_model_path_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
