/* SPDX-License-Identifier: MIT */
#include <time.h>

#include "daemon/health.h"

#include "daemon/engine_thread.h"
#include "daemon/gate.h"
#include "daemon/metrics.h"
#include "daemon/running.h"
#include "daemon/source.h"
#include "dsp/clock.h"
#include "tests/test.h"

#define MODEL "tests/data/tiny-denoise.safetensors"

/* A daemon of one stream, put together by hand, so that its engine's thread can stand still. */
struct rig {
    struct daemon daemon;
    struct config config;
    struct config_pipeline named;
    struct pipeline pipeline;
    struct source source;
    struct counters counters;
    struct feed *feed;
    struct model model;
    struct stream *stream;
};

static struct rig *open_rig(const char *pipeline)
{
    struct rig *rig = calloc(1, sizeof *rig);
    struct ssm_error err = {0};
    struct ssm_options options = {.streams = 1, .threads = 1, .max_hops = STREAM_HOPS};
    snprintf(rig->config.node, sizeof rig->config.node, "here");
    snprintf(rig->named.name, sizeof rig->named.name, "%s", pipeline);
    rig->model = (struct model){.name = MODEL, .engine = ssm_open(MODEL, &options, &err), .users = 1};
    rig->feed = feed_create(16000);
    rig->source = (struct source){.ops = &source_pcm, .rate = 16000, .n_channels = 1};
    rig->pipeline = (struct pipeline){.config = &rig->named, .source = &rig->source, .model = &rig->model, .feeds = &rig->feed,
                                      .counters = &rig->counters, .n_channels = 1};
    rig->daemon = (struct daemon){.config = &rig->config, .pipelines = &rig->pipeline, .models = &rig->model, .n_streams = 1,
                                  .engine = engine_thread_create(0), .ready = true, .gate = gate_open(NULL, &err),
                                  .started = clock_now(), .progress = clock_now()};
    struct stream_setup setup = {.engine = rig->model.engine, .feed = rig->feed, .rate = 16000, .counters = &rig->counters};
    rig->stream = stream_create(&setup, &err);
    rig->pipeline.streams = &rig->stream;
    rig->model.batch = engine_batch_create(rig->model.engine);
    assert_int_equal(engine_join(rig->daemon.engine, rig->model.batch, rig->stream, &err), 0);
    return rig;
}

static void close_rig(struct rig *rig)
{
    engine_thread_destroy(rig->daemon.engine);
    stream_destroy(rig->stream);
    engine_batch_destroy(rig->model.batch);
    gate_close(rig->daemon.gate);
    ssm_close(rig->model.engine);
    feed_destroy(rig->feed);
    free(rig);
}

/* The page's text, and its status. */
static int get(struct rig *rig, const char *path, char text[8192])
{
    int i = 0;
    while (strcmp(health_pages[i].path, path) != 0) {
        i++;
    }
    FILE *file = fmemopen(text, 8192, "w");
    int status = health_pages[i].print(&rig->daemon, file);
    fclose(file);
    return status;
}

static void on_turn(void *arg)
{
    (void)arg;
}

static void only_a_thread_that_turns_is_alive(void **state)
{
    (void)state;
    char text[8192];
    struct ssm_error err;
    struct rig *rig = open_rig("p");
    assert_false(health_note(&rig->daemon)); /* no thread yet */
    assert_int_equal(get(rig, "/ready", text), 200);
    rig->daemon.progress -= 6000000000;
    assert_int_equal(get(rig, "/ready", text), 503);
    assert_string_equal(text, "the engine or the event loop has not moved for 6 s\n");
    assert_int_equal(get(rig, "/health", text), 503);
    assert_non_null(strstr(text, "\"status\": \"failing\""));
    assert_non_null(strstr(text, "\"what\": \"stalled\""));

    assert_int_equal(engine_thread_start(rig->daemon.engine, on_turn, NULL, &err), 0);
    struct timespec pause = {0, 100000000};
    for (int i = 0; i < 5; i++) { /* nothing comes in, and each wake is a turn */
        health_note(&rig->daemon);
        nanosleep(&pause, NULL);
        assert_true(health_note(&rig->daemon));
    }
    assert_int_equal(get(rig, "/ready", text), 200);
    close_rig(rig);
}

static void every_reason_is_told(void **state)
{
    (void)state;
    char text[8192];
    struct rig *rig = open_rig("mic");
    health_note(&rig->daemon);
    get(rig, "/health", text);
    assert_non_null(strstr(text, "{\"status\": \"ok\", \"node\": \"here\", "));
    for (int i = 0; i < COUNTERS; i++) {
        count(&rig->counters, (enum counter)i, 3);
    }
    health_note(&rig->daemon);
    assert_int_equal(get(rig, "/health", text), 200);
    assert_non_null(strstr(text, "\"status\": \"degraded\""));
    for (int i = 0; i < COUNTERS; i++) {
        char reason[128];
        snprintf(reason, sizeof reason, "{\"what\": \"%s\", \"pipeline\": \"mic\", \"text\": \"3 %s so far, the last 0 s ago: ",
                 counter_table[i].name, counter_table[i].unit);
        assert_non_null(strstr(text, reason));
        rig->pipeline.risen[i] -= 61000000000;
    }
    get(rig, "/health", text);
    assert_non_null(strstr(text, "\"status\": \"ok\"")); /* a minute later */

    rig->source.code = 66;
    assert_int_equal(get(rig, "/ready", text), 503);
    assert_string_equal(text, "mic: the source ended too early, with code 66\n");
    rig->source.code = 0;
    rig->daemon.ready = false;
    assert_int_equal(get(rig, "/ready", text), 503);
    assert_string_equal(text, "not everything has started yet\n");
    rig->daemon.draining = true;
    get(rig, "/health", text);
    assert_non_null(strstr(text, "\"what\": \"draining\""));
    close_rig(rig);
}

/* More reasons than there is room for hide none that fails. */
static void losses_hide_no_failure(void **state)
{
    (void)state;
    enum { PIPELINES = 100 };
    static char text[65536];
    static struct pipeline pipelines[PIPELINES];
    struct rig *rig = open_rig("p");
    struct source failed = {.ops = &source_pcm, .code = 74};
    count(&rig->counters, COUNTER_BLOWN, 1);
    for (int i = 0; i < PIPELINES; i++) {
        pipelines[i] = rig->pipeline;
        pipelines[i].next = i + 1 < PIPELINES ? &pipelines[i + 1] : NULL;
    }
    pipelines[PIPELINES - 1].source = &failed;
    rig->daemon.pipelines = pipelines;
    health_note(&rig->daemon);
    assert_int_equal(get(rig, "/ready", text), 503);
    assert_string_equal(text, "p: the source ended too early, with code 74\n");
    FILE *file = fmemopen(text, sizeof text, "w");
    assert_int_equal(health_pages[2].print(&rig->daemon, file), 503);
    fclose(file);
    int n = 0;
    for (const char *at = text; (at = strstr(at, "{\"what\"")); at++) {
        n++;
    }
    assert_int_equal(n, 64);
    close_rig(rig);
}

/* A counter without a metric, or two units in one, would not be found by who looks for losses. */
static void every_counter_has_a_metric_of_its_unit(void **state)
{
    (void)state;
    static char text[65536];
    struct rig *rig = open_rig("mic");
    for (int i = 0; i < COUNTERS; i++) {
        const struct counter_row *row = &counter_table[i];
        assert_non_null(row->metric);
        char unit[32];
        snprintf(unit, sizeof unit, "_%s_total", row->unit);
        assert_true(strcmp(row->unit, "times") == 0 || strstr(row->metric, unit));
        count(&rig->counters, (enum counter)i, (uint64_t)i + 1);
    }
    FILE *file = fmemopen(text, sizeof text, "w");
    metrics_print(&rig->daemon, file);
    fclose(file);
    for (int i = 0; i < COUNTERS; i++) {
        char line[160];
        snprintf(line, sizeof line, "\nssmd_%s{pipeline=\"mic\",cause=\"%s\"} %d\n", counter_table[i].metric,
                 counter_table[i].name, i + 1);
        assert_non_null(strstr(text, line));
    }
    close_rig(rig);
}

/* Entries lie on either side of each edge; of what is near one, a bin's width (4 %) is all that may be on the wrong side. */
static void buckets_are_the_entries_below_their_edges(void **state)
{
    (void)state;
    static struct histogram histogram;
    const double edges[] = {1e5, 1e6, 1e7};
    uint64_t below[3];
    const int64_t times[] = {-5, 0, 500, 93000, 107000, 930000, 1070000, 9300000, 10700000, INT64_MAX};
    int64_t sum = 0;
    for (int i = 0; i < 9; i++) {
        histogram_add(&histogram, times[i]);
        sum += times[i] > 0 ? times[i] : 0;
    }
    assert_int_equal(histogram_below(&histogram, edges, 3, below), 9);
    assert_int_equal(below[0], 4);
    assert_int_equal(below[1], 6);
    assert_int_equal(below[2], 8);
    assert_int_equal(histogram.sum, sum);
    histogram_add(&histogram, times[9]);
    assert_int_equal(histogram_below(&histogram, edges, 3, below), 10);
    assert_int_equal(below[2], 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_a_thread_that_turns_is_alive),
        cmocka_unit_test(every_reason_is_told),
        cmocka_unit_test(losses_hide_no_failure),
        cmocka_unit_test(every_counter_has_a_metric_of_its_unit),
        cmocka_unit_test(buckets_are_the_entries_below_their_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
