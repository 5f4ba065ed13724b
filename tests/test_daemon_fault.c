/* SPDX-License-Identifier: MIT */
/* The daemon on a GPU that fails: linked so that `device: cuda` finds scripted devices (Makefile, --wrap). */
#include <pthread.h>
#include <unistd.h>
#include <zmq.h>

#include "config/config.h"
#include "daemon/daemon.h"
#include "daemon/engine_thread.h"
#include "daemon/wire.h"
#include "dsp/sound_file.h"
#include "model/backend_cuda.h"
#include "model/engine.h"
#include "tests/folder.h"
#include "tests/memory_sink.h"
#include "tests/scripted.h"

#define MODEL "tests/data/tiny-denoise.safetensors"
enum { RATE = 16000, HOP = 160, FAILS = 60 };

const struct backend_ops *__wrap_backend_cuda_find(struct ssm_error *err);
const struct backend_ops *__wrap_backend_cuda_find(struct ssm_error *err)
{
    (void)err;
    return &scripted_ops;
}

/* ---- engine_thread.c: what a hop that wasn't computed becomes. ---- */

static void a_hop_that_was_not_computed_is_a_hole(void **state)
{
    (void)state;
    struct memory_sink *memory = memory_create(RATE);
    static float in[RATE];
    uint64_t seed = 3;
    struct ssm_error err;
    struct fleet_device device = {&scripted_ops, "cuda:0"};
    struct ssm_options options = {.max_hops = STREAM_HOPS};
    struct counters counters = {0};
    scripts[0].at[STEP] = FAILS;
    test_fill(in, RATE, 0.3f, &seed);
    struct ssm_engine *engine = engine_open_on(MODEL, &options, &device, 1, &err);
    struct engine_thread *thread = engine_thread_create(0);
    struct feed *feed = feed_create(RATE);
    struct sink *sink = &memory->sink;
    struct stream_setup setup = {.engine = engine, .feed = feed, .rate = RATE, .sinks = &sink, .n_sinks = 1,
                                 .counters = &counters};
    struct engine_batch *batch = engine_batch_create(engine);
    struct stream *stream = stream_create(&setup, &err);
    assert_int_equal(engine_join(thread, batch, stream, &err), 0);
    for (int i = 0; i < RATE / HOP; i++) {
        feed_write(feed, in + i * HOP, 1, HOP, 1);
        engine_turn(thread);
    }
    feed_end(feed);
    while (engine_turn(thread) > 0) {
    }
    uint64_t from = (uint64_t)((FAILS - 1) * HOP - ssm_describe(engine)->delay);
    assert_int_equal(memory->holes.n, 1);
    assert_int_equal(memory->hole.from, from);
    assert_int_equal(memory->hole.to, from + HOP);
    assert_int_equal(memory->hole.n, HOP);
    assert_int_equal(memory->hole.why, COUNTER_DEVICE_FAULT);
    assert_int_equal(memory->hole_flags, WIRE_GAP | WIRE_DEGRADED);
    assert_int_equal(counted(&counters, COUNTER_DEVICE_FAULT), HOP);
    assert_int_equal(stream_samples(stream), RATE);
    assert_string_equal(engine_fault(thread, 0), "cuda:0: an illegal memory access was encountered");
    assert_string_equal(engine_fault(thread, 1), "");
    for (uint64_t i = from; i < from + HOP; i++) {
        assert_true(memory->samples[i] == 0);
    }
    engine_thread_destroy(thread);
    stream_destroy(stream);
    engine_batch_destroy(batch);
    feed_destroy(feed);
    memory_destroy(memory);
    ssm_close(engine);
}

/* ---- The whole daemon. ---- */

static void make_file(const char *path, size_t n)
{
    struct sound_file_info info = {.rate = RATE, .channels = 1, .length = (int64_t)n};
    struct sound_file_error err;
    float *samples = calloc(n, sizeof *samples);
    uint64_t seed = 9;
    test_fill(samples, n, 0.3f, &seed);
    struct sound_file *file = sound_file_create(path, &info, false, &err);
    assert_true(sound_file_write(file, samples, n, &err) && sound_file_commit(file, &err));
    sound_file_close(file);
    free(samples);
}

static float *read_file(const char *path, size_t n)
{
    struct sound_file_info info;
    struct sound_file_error err;
    float *samples = calloc(n, sizeof *samples);
    struct sound_file *file = sound_file_open(path, &info, &err);
    assert_non_null(file);
    assert_int_equal(info.length, n);
    assert_int_equal(sound_file_read(file, samples, n, &err), n);
    sound_file_close(file);
    return samples;
}

struct heard { /* by a subscriber to gap/, audio/ and state/ */
    void *context, *socket;
    int gaps, hops, faults;
    int on_gpu, on_cpu, gap_at; /* hops that ran there; and those before the gap */
    struct wire_header gap;
};

/* The number behind a key of state/'s map; it is small, so it is one byte. */
static int number_of(const char *key, const uint8_t *bytes, size_t size)
{
    const uint8_t *at = memmem(bytes, size, key, strlen(key));
    return at ? at[strlen(key)] : -1;
}

static void *listen_to(void *arg)
{
    struct heard *heard = arg;
    for (bool ended = false; !ended;) {
        char topic[WIRE_TOPIC_MAX] = "";
        uint8_t bytes[WIRE_HEADER_MAX], payload[65536];
        struct wire_header header;
        if (zmq_recv(heard->socket, topic, sizeof topic - 1, 0) < 0) {
            break; /* the time is up */
        }
        int size = zmq_recv(heard->socket, bytes, sizeof bytes, 0);
        int length = zmq_recv(heard->socket, payload, sizeof payload, 0);
        assert_true(size > 0 && wire_decode(&header, bytes, (size_t)size));
        if (!strncmp(topic, "gap/", 4)) {
            heard->gaps++;
            heard->gap = header;
            heard->gap_at = heard->hops;
        } else if (!strncmp(topic, "state/", 6)) {
            heard->faults = number_of("device_faults", payload, (size_t)length);
        } else {
            heard->hops += header.n > 0;
            heard->on_gpu += header.n > 0 && strcmp(header.st, "cuda:0") == 0;
            heard->on_cpu += header.n > 0 && strcmp(header.st, "cpu") == 0;
            ended = header.flags & WIRE_END;
        }
    }
    return NULL;
}

static void the_daemon_goes_on_and_tells_subscribers_why(void **state)
{
    (void)state;
    enum { N = 2 * RATE };
    char yaml[1024];
    const char *address = ipc_in_folder("publish");
    struct config_errors errors;
    struct ssm_error err = {0};
    pthread_t thread;
    make_file(in_folder("in.wav"), N);
    snprintf(yaml, sizeof yaml,
             "version: 1\ndevice: [cuda:0, cuda:1]\npublish: %s\npipelines:\n"
             "  a:\n    source: {type: file, path: %s}\n    model: %s\n    sinks: [{type: publish}]\n"
             "  b:\n    source: {type: file, path: %s}\n    model: %s\n    sinks: [{type: file, path: %s}]\n"
             "  c:\n    source: {type: file, path: %s}\n    model: %s\n    sinks: [{type: file, path: %s}]\n",
             address, in_folder("in.wav"), MODEL, in_folder("in.wav"), MODEL, in_folder("b.wav"), in_folder("in.wav"), MODEL,
             in_folder("c.wav"));
    scripts[0].at[STEP] = FAILS; /* streams a and c; b is on cuda:1 */
    scripts[0].lingers = true;       /* and its memory is taken from under it */
    struct config *config = config_parse(yaml, strlen(yaml), "test.yaml", NULL, 0, &errors);
    assert_non_null(config);
    struct daemon *daemon = daemon_open(config, &err);
    assert_string_equal(err.text, "");
    struct heard heard = {.context = zmq_ctx_new()};
    int wait_ms = 5000;
    heard.socket = zmq_socket(heard.context, ZMQ_SUB);
    zmq_setsockopt(heard.socket, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms);
    zmq_setsockopt(heard.socket, ZMQ_SUBSCRIBE, "gap/", 4);
    zmq_setsockopt(heard.socket, ZMQ_SUBSCRIBE, "audio/", 6);
    zmq_setsockopt(heard.socket, ZMQ_SUBSCRIBE, "state/", 6);
    assert_int_equal(zmq_connect(heard.socket, address), 0);
    pthread_create(&thread, NULL, listen_to, &heard);
    assert_int_equal(daemon_run(daemon, false, &err), 0);
    pthread_join(thread, NULL);
    daemon_close(daemon);
    config_destroy(config);
    zmq_close(heard.socket);
    zmq_ctx_term(heard.context);

    assert_int_equal(heard.gaps, 1);
    assert_int_equal(heard.faults, 1);
    assert_true(heard.hops > 100);
    assert_string_equal(heard.gap.lost.why, "device_fault");
    assert_in_range(heard.gap.lost.n, HOP, STREAM_HOPS * HOP);
    assert_int_equal(heard.gap.lost.to - heard.gap.lost.from, heard.gap.lost.n);
    assert_string_equal(heard.gap.st, "cuda:0");
    assert_int_equal(heard.on_gpu, heard.gap_at);
    assert_int_equal(heard.on_cpu, heard.hops - heard.gap_at);

    /* c is b but for the hops at the fault, which are silent, and what the gap left in the model. */
    float *b = read_file(in_folder("b.wav"), N), *c = read_file(in_folder("c.wav"), N);
    size_t first = 0, silent = 0;
    while (first < N && b[first] == c[first]) {
        first++;
    }
    while (first + silent < N && c[first + silent] == 0) {
        silent++;
    }
    assert_in_range(first, 20 * HOP, FAILS * STREAM_HOPS * HOP);
    assert_in_range(silent, HOP - 1, STREAM_HOPS * HOP);
    for (size_t i = N - RATE / 4; i < N; i++) {
        assert_close(b[i], c[i], 1.0 / 8192);
    }
    free(b);
    free(c);
}

static void a_gpu_that_wont_open_is_an_error_and_code_69(void **state)
{
    (void)state;
    char yaml[512];
    struct config_errors errors;
    struct ssm_error err = {0};
    make_file(in_folder("in.wav"), HOP);
    snprintf(yaml, sizeof yaml,
             "version: 1\ndevice: [cuda:0, cuda:1]\npipelines:\n"
             "  a:\n    source: {type: file, path: %s}\n    model: %s\n    sinks: [{type: file, path: %s}]\n",
             in_folder("in.wav"), MODEL, in_folder("a.wav"));
    scripts[1].wont_open = true;
    struct config *config = config_parse(yaml, strlen(yaml), "test.yaml", NULL, 0, &errors);
    assert_null(daemon_open(config, &err));
    assert_int_equal(err.code, 69);
    assert_string_equal(err.text, "test.yaml:6:12: pipelines.a.model: no such GPU");
    config_destroy(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_hop_that_was_not_computed_is_a_hole, scripted_clear),
        cmocka_unit_test_setup(the_daemon_goes_on_and_tells_subscribers_why, scripted_clear),
        cmocka_unit_test_setup(a_gpu_that_wont_open_is_an_error_and_code_69, scripted_clear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
