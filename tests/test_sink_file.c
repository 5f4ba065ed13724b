/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include "daemon/sink.h"
#include "daemon/waker.h"
#include "daemon/worker.h"
#include "dsp/sound_file.h"
#include "tests/folder.h"
#include "tests/test.h"

enum { RATE = 16000, HOP = 160, CHANNELS = 2 };

struct rig {
    struct config_sink config;
    struct ssm_info model;
    struct counters counters[CHANNELS];
    struct waker engine;
    struct worker *writer;
    struct sink *sink;
    uint64_t hops;
};

static void open_rig(struct rig *rig, const char *name)
{
    struct ssm_error err = {0};
    *rig = (struct rig){.config = {.type = SINK_FILE}, .model = {.rate = RATE, .hop = HOP}, .writer = worker_create()};
    snprintf(rig->config.path, sizeof rig->config.path, "%s", in_folder(name));
    assert_int_equal(waker_init(&rig->engine), 0);
    assert_int_equal(worker_start(rig->writer), 0);
    const struct sink_setup setup = {.config = &rig->config, .pipeline = "p", .model = &rig->model, .n_channels = CHANNELS,
                                     .source_rate = RATE, .rate = RATE, .counters = rig->counters, .writer = rig->writer,
                                     .engine = &rig->engine};
    rig->sink = sink_file.open(&setup, &err);
    assert_non_null(rig->sink);
}

static float sample_of(uint64_t at, int channel)
{
    return (float)((int)(at * 7 % 20011) - 10005) / 32768 * (channel ? -1 : 1);
}

/* Sound, eight times as fast as it comes. */
static void write_seconds(struct rig *rig, double seconds)
{
    for (uint64_t end = rig->hops + (uint64_t)(seconds * RATE / HOP); rig->hops < end; rig->hops++) {
        for (int k = 0; k < CHANNELS; k++) {
            float samples[HOP];
            for (int i = 0; i < HOP; i++) {
                samples[i] = sample_of(rig->hops * HOP + (uint64_t)i, k);
            }
            const struct delivery hop = {.s0 = rig->hops * HOP, .n = HOP, .samples = samples};
            sink_file.write(rig->sink, k, &hop);
        }
        if (rig->hops % 4 == 0) {
            usleep(5000);
        }
    }
}

static void close_rig(struct rig *rig)
{
    const struct hole none = {0};
    for (int k = 0; k < CHANNELS; k++) {
        sink_file.end(rig->sink, k, &none, rig->hops * HOP);
    }
    sink_file.close(rig->sink);
    worker_destroy(rig->writer);
    waker_finish(&rig->engine);
}

/* There are n samples, each as it was written. */
static void assert_written(const char *name, uint64_t n)
{
    struct sound_file_info info;
    struct sound_file_error err;
    struct sound_file *file = sound_file_open(in_folder(name), &info, &err);
    assert_non_null(file);
    assert_int_equal(info.length, n);
    float *samples = malloc(n * CHANNELS * sizeof *samples);
    assert_int_equal(sound_file_read(file, samples, n, &err), n);
    for (uint64_t i = 0; i < n; i++) {
        for (int k = 0; k < CHANNELS; k++) {
            float got = samples[i * CHANNELS + (uint64_t)k], wanted = sample_of(i, k);
            if (got != wanted) {
                fail_msg("sample %d of channel %d is %g, not %g", (int)i, k, (double)got, (double)wanted);
            }
        }
    }
    free(samples);
    sound_file_close(file);
}

/* Others took their time to start: the recording's beginning was lost. */
static void what_comes_before_it_may_begin_is_kept(void **state)
{
    (void)state;
    struct rig rig;
    struct ssm_error err;
    open_rig(&rig, "early.wav");
    write_seconds(&rig, 6);
    assert_int_not_equal(access(in_folder("early.wav.recording"), F_OK), -1);
    assert_int_equal(sink_file.begin(rig.sink, &err), 0);
    write_seconds(&rig, 2);
    close_rig(&rig);
    for (int k = 0; k < CHANNELS; k++) {
        assert_int_equal(counted(&rig.counters[k], COUNTER_FILE_FULL), 0);
    }
    assert_written("early.wav", 8 * RATE);
}

static void who_never_begins_keeps_half_a_minute_and_writes_nothing(void **state)
{
    (void)state;
    struct rig rig;
    open_rig(&rig, "never.wav");
    write_seconds(&rig, 34);
    assert_true(counted(&rig.counters[0], COUNTER_FILE_FULL) > RATE);
    assert_true(counted(&rig.counters[0], COUNTER_FILE_FULL) < 3 * RATE);
    close_rig(&rig);
    assert_int_equal(access(in_folder("never.wav"), F_OK), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_comes_before_it_may_begin_is_kept),
        cmocka_unit_test(who_never_begins_keeps_half_a_minute_and_writes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
