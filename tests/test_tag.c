/* SPDX-License-Identifier: MIT */
/* `ssm tag`, with models whose answers are known (tests/data/make_tags.py). */
#include "tests/tool.h"

#include <jansson.h>

#include "model/ssm.h"
#include "tests/model_file.h"

#define MODEL " --model tests/data/tiny-tag.safetensors"

/* 3 dB below a tenth of full scale, with soft edges of 5 ms. */
static void add_tone(struct sound *sound, int channel, float hz, double from, double to)
{
    for (size_t i = 0; i < sound->n; i++) {
        double t = (double)i / sound->rate, edge = fmin(t - from, to - t) / 0.005;
        float size = (float)(edge < 0 ? 0 : edge > 1 ? 1 : edge);
        sound->samples[i * (size_t)sound->channels + (size_t)channel] +=
            0.3f * size * sinf(6.2831853f * hz * (float)t);
    }
}

static struct sound silent(int rate, int channels, double seconds)
{
    struct sound sound = {.rate = rate, .channels = channels, .n = (size_t)(seconds * rate)};
    sound.samples = calloc(sound.n * (size_t)channels + 1, sizeof(float));
    return sound;
}

/* low 1.0-2.0 in the first channel, high 1.5-3.2 in the second, low to the end there. */
static void write_tones(const char *name, int rate)
{
    struct sound sound = silent(rate, 2, 4);
    add_tone(&sound, 0, 500, 1, 2);
    add_tone(&sound, 1, 6000, 1.5, 3.2);
    add_tone(&sound, 1, 500, 3.5, 4.5);
    write_sound(name, &sound);
    free(sound.samples);
}

/* Line i of what was said, as JSON. */
static json_t *line(int i)
{
    char *at = said;
    for (; i > 0 && at; i--) {
        at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL;
    }
    json_t *json = at ? json_loads(at, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    if (!json) {
        fail_msg("no such line of JSON in:\n%s", said);
    }
    return json;
}

static int lines(void)
{
    int n = 0;
    for (const char *at = said; *at; at++) {
        n += *at == '\n';
    }
    return n;
}

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text ? text : "";
}

static double number_of(const json_t *json, const char *key)
{
    json_t *value = json_object_get(json, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* The window sees a hop of what is past, and a row speaks of a hop: 20 ms. */
static void assert_event(int i, const char *label, int channel, double t0, double t1, bool cut)
{
    json_t *json = line(i);
    assert_string_equal(text_of(json, "label"), label);
    assert_string_equal(text_of(json, "event"), "end");
    assert_string_equal(text_of(json, "model"), "tiny-tag");
    assert_string_equal(text_of(json, "mid"), strcmp(label, "low") == 0 ? "/t/low" : "");
    assert_close(number_of(json, "channel"), channel, 0);
    assert_close(number_of(json, "t0"), t0, 0.0201);
    assert_close(number_of(json, "t1"), t1, 0.0201);
    assert_true(number_of(json, "p") > 0.99 && number_of(json, "mean") > 0.9);
    assert_true(json_is_true(json_object_get(json, "cut")) == cut);
    json_decref(json);
}

static void tag_tells_when_and_where(void **state)
{
    (void)state;
    const int rates[] = {16000, 44100};
    const char *ways[] = {"", " --step"};
    for (int i = 0; i < 4; i++) {
        char arguments[256];
        write_tones("tones.wav", rates[i / 2]);
        snprintf(arguments, sizeof arguments, "tag %%/tones.wav%s" MODEL, ways[i % 2]);
        assert_says(0, arguments, "");
        assert_int_equal(lines(), 3);
        assert_event(0, "low", 0, 1, 2, false);
        assert_event(1, "high", 1, 1.5, 3.2, false);
        assert_event(2, "low", 1, 3.5, 4, true);
    }
}

/* A model that says of a hop of ten samples whether it is loud, and claims to say it 30 samples late. */
static void the_models_delay_is_taken_off(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    float weight[10], bias = -5;
    for (int i = 0; i < 10; i++) {
        weight[i] = 1;
    }
    model_file_add(file, "head.weight", "[1, 10]", weight, 10);
    model_file_add(file, "head.bias", "[1]", &bias, 1);
    const char *path = model_file_write(
        file, "{'format':1,'name':'late','task':'tag','rate':1000,'hop':10,'latency':40,'labels':['loud'],"
              "'layers':[{'type':'linear','name':'head','in':10,'out':1},{'type':'sigmoid'}]}");
    struct sound sound = silent(1000, 1, 0.507);
    for (size_t i = 200; i < 300; i++) {
        sound.samples[i] = 1;
    }
    write_sound("loud.wav", &sound);
    free(sound.samples);
    char arguments[256];
    snprintf(arguments, sizeof arguments, "tag %%/loud.wav --model %s", path);
    assert_runs(arguments);
    assert_int_equal(lines(), 1);
    json_t *json = line(0);
    assert_close(number_of(json, "t0"), 0.17, 1e-9);
    assert_close(number_of(json, "t1"), 0.27, 1e-9);
    json_decref(json);
    strcat(arguments, " --scores");
    assert_runs(arguments);
    assert_int_equal(lines(), 51); /* as many as the sound has hops, whatever the delay */
    json = line(50);
    assert_close(number_of(json, "t1"), 0.507, 1e-9);
    json_decref(json);
    model_file_destroy(file);
}

static void scores_are_a_line_a_hop(void **state)
{
    (void)state;
    struct sound sound = silent(16000, 1, 0.995);
    add_tone(&sound, 0, 6000, 0.5, 0.7);
    write_sound("short.wav", &sound);
    free(sound.samples);
    assert_runs("tag %/short.wav --scores" MODEL);
    assert_int_equal(lines(), 100);
    for (int i = 0; i < 100; i++) {
        json_t *json = line(i), *row = json_object_get(json, "scores");
        assert_close(number_of(json, "t0"), 0.01 * i, 1e-6);
        assert_close(number_of(json, "t1"), i == 99 ? 0.995 : 0.01 * (i + 1), 1e-6);
        assert_true(number_of(row, "low") < 0.1);
        assert_true((number_of(row, "high") > 0.5) == (i >= 50 && i <= 70));
        json_decref(json);
    }
}

/* The second channel: high for 1.7 s of 4, low for the last .5 s. */
static void whole_is_the_best_label_on_average(void **state)
{
    (void)state;
    write_tones("tones.wav", 16000);
    assert_runs("tag %/tones.wav --whole" MODEL);
    assert_int_equal(lines(), 2);
    json_t *json = line(1);
    assert_string_equal(text_of(json, "label"), "high");
    assert_close(number_of(json, "t0"), 0, 0);
    assert_close(number_of(json, "t1"), 4, 1e-6);
    assert_close(number_of(json, "p"), 1.7 / 4, 0.02); /* edges and silence's score */
    assert_close(number_of(json, "mean"), number_of(json, "p"), 0);
    json_decref(json);
}

/* A model whose labels exclude each other has decided by the end: here that the last sample is below 0. */
static void whole_is_the_best_label_at_the_end_where_they_exclude_each_other(void **state)
{
    (void)state;
    struct model_file *file = model_file_create();
    const float weight[2] = {9, -9}, bias[2] = {0, 0};
    model_file_add(file, "head.weight", "[2, 1]", weight, 2);
    model_file_add(file, "head.bias", "[2]", bias, 2);
    const char *path = model_file_write(
        file, "{'format':1,'name':'last','task':'tag','rate':1000,'hop':1,'latency':1,'labels':['up','down'],'exclusive':true,"
              "'layers':[{'type':'linear','name':'head','in':1,'out':2},{'type':'softmax'}]}");
    struct sound sound = silent(1000, 1, 0.1);
    for (size_t i = 0; i < sound.n; i++) {
        sound.samples[i] = i < 90 ? 1 : -1;
    }
    write_sound("last.wav", &sound);
    free(sound.samples);
    char arguments[256];
    snprintf(arguments, sizeof arguments, "tag %%/last.wav --whole --model %s", path);
    assert_runs(arguments);
    json_t *json = line(0);
    assert_string_equal(text_of(json, "label"), "down");
    assert_true(number_of(json, "p") > 0.99);
    json_decref(json);
    model_file_destroy(file);
}

static void several_files_are_tagged_one_by_one(void **state)
{
    (void)state;
    write_tones("one.wav", 16000);
    write_tones("two.wav", 16000);
    assert_says(66, "tag %/one.wav %/none.wav %/two.wav" MODEL, "none.wav: No such file");
    assert_non_null(strstr(said, "one.wav\""));
    assert_non_null(strstr(said, "two.wav\""));
    assert_int_equal(lines(), 7); /* three events each, and the complaint */
    assert_says(64, "tag %/one.wav %/two.wav --format vtt" MODEL, "of one recording");
}

static void threshold_is_for_every_label(void **state)
{
    (void)state;
    write_tones("tones.wav", 16000);
    assert_runs("tag %/tones.wav --threshold 0.001" MODEL); /* silence scores 0.0067 */
    assert_int_equal(lines(), 4);
    for (int i = 0; i < 4; i++) {
        json_t *json = line(i);
        assert_close(number_of(json, "t0"), 0, 0);
        assert_close(number_of(json, "t1"), 4, 1e-6);
        json_decref(json);
    }
}

static void audacity_takes_the_label_track(void **state)
{
    (void)state;
    write_tones("tones.wav", 16000);
    assert_runs("tag %/tones.wav --format audacity" MODEL);
    double from, to;
    int channel, end;
    assert_int_equal(sscanf(said, "%lf\t%lf\tlow (channel %d)%n", &from, &to, &channel, &end), 3);
    assert_int_equal(said[end], '\n');
    assert_close(from, 1, 0.0201);
    assert_close(to, 2, 0.0201);
}

/* Low all the time, with highs inside it that end first. */
static void webvtt_is_in_order_of_beginnings(void **state)
{
    (void)state;
    struct sound sound = silent(16000, 1, 4);
    add_tone(&sound, 0, 500, 0.5, 3.5);
    add_tone(&sound, 0, 6000, 1, 1.5);
    add_tone(&sound, 0, 6000, 2, 2.5);
    write_sound("nested.wav", &sound);
    free(sound.samples);
    assert_runs("tag %/nested.wav --format vtt" MODEL);
    assert_true(strncmp(said, "WEBVTT\n\n", 8) == 0);
    const char *starts[] = {"\n00:00:00.", "\n00:00:01.", "\n00:00:02."}, *at = said + 7;
    for (int i = 0; i < 3; i++) {
        assert_non_null(at = strstr(at, starts[i]));
        assert_non_null(at = strstr(at, i == 0 ? " --> 00:00:03.5" : " --> 00:00:0"));
        assert_non_null(at = strstr(at, i == 0 ? "low 100 %\n" : "high 100 %\n"));
    }
}

/* A writer that can't know the length says so with the largest number there is. */
static void a_wav_in_a_pipe_ends_where_it_ends(void **state)
{
    (void)state;
    struct sound sound = silent(16000, 1, 1);
    sound.format = WAV_16;
    add_tone(&sound, 0, 500, 0.2, 0.6);
    write_sound("pipe.wav", &sound);
    free(sound.samples);
    FILE *file = fopen(in_folder("pipe.wav"), "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, 40, SEEK_SET), 0);
    assert_int_equal(fwrite("\xff\xff\xff\xff", 4, 1, file), 1);
    fclose(file);
    char arguments[256];
    snprintf(arguments, sizeof arguments, "tag - " MODEL " <%s", in_folder("pipe.wav"));
    assert_says(0, arguments, "\"source\":\"-\"");
    assert_int_equal(lines(), 1);
    assert_says(65, "tag - " MODEL " </dev/null", "standard input is empty");
}

/* ---- A sensor's recording ---- */

#define SENSOR " --model tests/data/tiny-sensor.safetensors"
enum { READINGS = 40 };

/* Irregular times from 100 s on; reading 20 is left out by the writers. */
static double time_of(int i)
{
    return 100 + 0.01 * i + (i > 10 ? 0.004 * (i % 3) : 0) + (i > 30 ? 0.04 : 0);
}

static void values_of(int i, float *values)
{
    for (int k = 0; k < 3; k++) {
        values[k] = (float)rint(100 * sin(i * (k + 1))) / 100;
    }
}

static void write_sensor(const char *csv, const char *jsonl)
{
    FILE *a = fopen(in_folder(csv), "w"), *b = fopen(in_folder(jsonl), "w");
    fprintf(a, "time,note,az,ax,ay\n");
    for (int i = 0; i < READINGS; i++) {
        float v[3];
        values_of(i, v);
        if (i == 20) {
            fprintf(a, "%.3f,lost,%.2f,,%.2f\n", time_of(i), (double)v[2], (double)v[1]);
            continue;
        }
        fprintf(a, "%.3f,\"x\",%.2f,%.2f,%.2f\n", time_of(i), (double)v[2], (double)v[0], (double)v[1]);
        fprintf(b, "{\"t\": %.3f, \"ax\": %.2f, \"ay\": %.2f, \"az\": %.2f}\n", time_of(i), (double)v[0], (double)v[1],
                (double)v[2]);
    }
    fclose(a);
    fclose(b);
}

/* What the model says of each reading, told the time between them by hand. */
static void moving_by_hand(double moving[READINGS])
{
    struct ssm_error err = {0};
    struct ssm_engine *engine = ssm_open("tests/data/tiny-sensor.safetensors", &(struct ssm_options){.device = "cpu"}, &err);
    ssm_stream stream;
    assert_non_null(engine);
    assert_int_equal(ssm_stream_open(engine, &stream), SSM_OK);
    double last = time_of(0) - 0.01;
    for (int i = 0; i < READINGS; i++) {
        float in[3], out[2];
        values_of(i, in);
        struct ssm_hop hop = {.stream = stream, .in = in, .out = out, .count = 1,
                              .elapsed = (float)((time_of(i) - last) * 100)};
        if (i != 20) {
            assert_int_equal(ssm_step(engine, &hop, 1), 1);
            moving[i] = (double)out[1];
            last = time_of(i);
        }
    }
    ssm_close(engine);
}

static void a_sensors_times_reach_the_model(void **state)
{
    (void)state;
    const char *ways[] = {"tag %/s.csv --scores" SENSOR, "tag %/s.csv --scores --step" SENSOR, "tag %/s.jsonl --scores" SENSOR};
    double moving[READINGS];
    moving_by_hand(moving);
    write_sensor("s.csv", "s.jsonl");
    for (int way = 0; way < 3; way++) {
        assert_runs(ways[way]);
        double t1 = 0;
        for (int i = 0, n = 0; i < READINGS; i++) {
            if (i == 20) {
                continue;
            }
            json_t *json = line(n++);
            assert_close(number_of(json, "t0"), fmax(t1, time_of(i)), 2e-6);
            t1 = number_of(json, "t1");
            assert_close(t1, time_of(i) + 0.01, 2e-6);
            assert_close(number_of(json_object_get(json, "scores"), "moving"), moving[i], 1e-4); /* step against scan */
            json_decref(json);
        }
    }
}

static void write_text(const char *name, const char *text)
{
    FILE *file = fopen(in_folder(name), "w");
    fputs(text, file);
    fclose(file);
}

static void lines_that_can_not_be_read_are_counted_and_one_is_quoted(void **state)
{
    (void)state;
    FILE *file = fopen(in_folder("bad.csv"), "w");
    fputs("ax,ay,az\n1,2,3\n1,2\n1,two,3\n1,,3\n4,5,6\n", file);
    fclose(file);
    assert_says(0, "tag %/bad.csv --scores" SENSOR, "2 lines were not read; the first is line 3: ends after 2 of 3 columns: \"1,2\"");
    assert_non_null(strstr(said, "1 readings lack a value"));
    json_t *json = line(1);
    assert_close(number_of(json, "t0"), 0.02, 1e-6); /* the missing one's time counts, the unread lines' doesn't */
    assert_close(number_of(json, "t1"), 0.03, 1e-6);
    json_decref(json);
    file = fopen(in_folder("nul.csv"), "w");
    fwrite("ax,ay,az\n1,2,3\0004\n4,5,6\n", 1, 23, file);
    fclose(file);
    assert_says(0, "tag %/nul.csv --scores" SENSOR, "1 lines were not read; the first is line 2: a NUL, where text should be: \"1,2,3\"");
    assert_says(65, "tag %/bad.csv --fields x,y,z" SENSOR, "bad.csv:1: no header has named all of x,y,z");
    file = fopen(in_folder("lacks.csv"), "w");
    fputs("ax,ay\n1,2\n", file);
    fclose(file);
    assert_says(65, "tag %/lacks.csv" SENSOR, "lacks.csv:1: no header has named all of ax,ay,az:");
    write_text("twice.csv", "t,ax,ay,az,ay\n1,2,3,4,5\n");
    assert_says(65, "tag %/twice.csv" SENSOR, "twice.csv:1: the header names ay twice, as columns 3 and 5:");
    assert_says(64, "tag %/bad.csv --fields x,y" SENSOR, "are not 3 different names");
    assert_says(64, "tag %/bad.csv --fields ax,ay,ax" SENSOR, "are not 3 different names");
    assert_says(64, "tag %/bad.csv" MODEL, "name the columns with --fields");
    assert_says(64, "tag %/bad.csv --input text" SENSOR, "sound, csv or jsonl");
    assert_says(66, "tag %/none.csv" SENSOR, "No such file");
}

/* `n` readings, `interval` apart from `from` on, one in motion. */
static void write_readings(const char *name, const char *from, double interval, int n)
{
    FILE *file = fopen(in_folder(name), "w");
    fprintf(file, "t,ax,ay,az\n");
    for (int i = 0; i < n; i++) {
        fprintf(file, "%s%.3f,%d,0,0\n", from, interval * i, i % 2 ? 3 : -3);
    }
    fclose(file);
}

static void a_sensors_file_without_readings_is_told(void **state)
{
    (void)state;
    write_text("empty.csv", "");
    write_text("header.csv", "t,ax,ay,az\n");
    write_text("hollow.csv", "t,ax,ay,az\n1,,,\n2,,,\n");
    assert_says(65, "tag %/empty.csv" SENSOR, "empty.csv: no readings");
    assert_says(65, "tag %/header.csv" SENSOR, "header.csv: no readings");
    assert_says(65, "tag %/hollow.csv" SENSOR, "2 readings lack a value");
    assert_says(66, "tag % --input csv" SENSOR, "Is a directory"); /* "no readings" */
    assert_says(64, "tag %/header.csv", "a sensor's recording needs a sensor's model: --model motion or vibration-tags");
}

static void times_that_are_not_in_seconds_are_told(void **state)
{
    (void)state;
    write_readings("ms.csv", "", 10, 50);
    assert_says(0, "tag %/ms.csv" SENSOR, "ms.csv: readings come 10 s apart (median), and tiny-sensor takes one every 0.01 s");
    write_readings("days.csv", "", 0.0001, 50);
    assert_says(0, "tag %/days.csv" SENSOR, "are the times in seconds?");
    write_readings("s.csv", "", 0.02, 50);
    assert_runs("tag %/s.csv" SENSOR);
    assert_null(strstr(said, "apart"));
    write_text("untimed.csv", "ax,ay,az\n1,2,3\n1,2,3\n");
    assert_runs("tag %/untimed.csv" SENSOR);
    assert_null(strstr(said, "apart"));
}

static void subtitles_of_dates_begin_at_zero(void **state)
{
    (void)state;
    write_readings("dates.csv", "170000000", 0.01, 500); /* the first is 1700000000.000 */
    assert_says(0, "tag %/dates.csv --format vtt --threshold 0.001" SENSOR, "\n00:00:00.000 --> 00:00:0");
    assert_says(0, "tag %/dates.csv --format audacity --threshold 0.001" SENSOR, "0.000000\t");
    assert_null(strstr(said, "1700000"));
    assert_says(0, "tag %/dates.csv --threshold 0.001" SENSOR, "\"t0\":1700000000");
    write_readings("seconds.csv", "1", 0.01, 500); /* 10.000 */
    assert_says(0, "tag %/seconds.csv --format vtt --threshold 0.001" SENSOR, "\n00:00:10.000 --> ");
}

static void scores_are_json_and_no_summary(void **state)
{
    (void)state;
    write_tones("tones.wav", 16000);
    assert_says(64, "tag %/tones.wav --scores --whole" MODEL, "choose one");
    assert_says(64, "tag %/tones.wav --scores --format vtt" MODEL, "--scores gives lines of JSON");
    assert_says(64, "tag %/tones.wav --scores --format audacity" MODEL, "--scores gives lines of JSON");
    assert_runs("tag %/tones.wav --scores --json --format vtt" MODEL);
    assert_true(strncmp(said, "{\"t0\": 0.000000,", 16) == 0);
}

static void tag_answers_what_it_can_not_do(void **state)
{
    (void)state;
    write_tones("tones.wav", 16000);
    assert_says(65, "tag %/tones.wav --model tests/data/tiny-denoise.safetensors", "not for tag");
    assert_says(65, "tag %/tones.wav --model tests/data/tiny-sensor.safetensors", "takes 3");
    assert_says(66, "tag %/nowhere.wav" MODEL, "No such file");
    assert_says(64, "tag %/tones.wav --format txt" MODEL, "jsonl, audacity or vtt");
    assert_says(64, "tag %/tones.wav --threshold 2" MODEL, "from 0 to 1");
    struct sound nothing = silent(16000, 1, 0);
    write_sound("nothing.wav", &nothing);
    free(nothing.samples);
    assert_runs("tag %/nothing.wav --whole" MODEL);
    assert_string_equal(said, "");
    write_tones("tones.flac", 16000);
    assert_int_equal(truncate(in_folder("tones.flac"), 60000), 0);
    assert_says(65, "tag %/tones.flac" MODEL, "what is before that was tagged");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tag_tells_when_and_where),
        cmocka_unit_test(the_models_delay_is_taken_off),
        cmocka_unit_test(scores_are_a_line_a_hop),
        cmocka_unit_test(whole_is_the_best_label_on_average),
        cmocka_unit_test(whole_is_the_best_label_at_the_end_where_they_exclude_each_other),
        cmocka_unit_test(several_files_are_tagged_one_by_one),
        cmocka_unit_test(threshold_is_for_every_label),
        cmocka_unit_test(audacity_takes_the_label_track),
        cmocka_unit_test(webvtt_is_in_order_of_beginnings),
        cmocka_unit_test(a_wav_in_a_pipe_ends_where_it_ends),
        cmocka_unit_test(a_sensors_times_reach_the_model),
        cmocka_unit_test(lines_that_can_not_be_read_are_counted_and_one_is_quoted),
        cmocka_unit_test(a_sensors_file_without_readings_is_told),
        cmocka_unit_test(times_that_are_not_in_seconds_are_told),
        cmocka_unit_test(subtitles_of_dates_begin_at_zero),
        cmocka_unit_test(scores_are_json_and_no_summary),
        cmocka_unit_test(tag_answers_what_it_can_not_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
