/* SPDX-License-Identifier: MIT */
/* daemon/source.c: when a source's own thread takes what comes. */
#include "daemon/source.h"

#include <unistd.h>
#include <zmq.h>

#include "daemon/gate.h"
#include "daemon/pull.h"
#include "tests/test.h"

enum { PATIENCE_MS = 5000, LOOK_MS = 5, MOMENT_US = 50000 };

struct listener {
    struct source source;
    atomic_bool began;
    atomic_int olds, news; /* words heard */
};

/* As a source's thread does. */
static void *run(void *arg)
{
    struct listener *listener = arg;
    char word[4] = "";
    source_thread_wait(&listener->source);
    atomic_store(&listener->began, true);
    while (listener->source.pull && !atomic_load(&listener->source.stopping)) {
        while (source_receive(&listener->source, word, 3) == 3) {
            atomic_fetch_add(strcmp(word, "old") == 0 ? &listener->olds : &listener->news, 1);
        }
        waker_wait(&listener->source.stop, LOOK_MS * 1000000L);
    }
    return NULL;
}

static void start(struct listener *listener)
{
    struct ssm_error err = {0};
    assert_int_equal(source_thread_start(&listener->source, run, "words", &err), 0);
    usleep(MOMENT_US);
    assert_false(atomic_load(&listener->began));
}

static void a_source_takes_nothing_before_it_begins(void **state)
{
    (void)state;
    struct listener listener = {0};
    struct ssm_error err = {0};
    assert_int_equal(source_thread_init(&listener.source, &err), 0);
    assert_int_equal(source_listen(&listener.source, &err), 0);
    start(&listener);
    source_begin(&listener.source);
    source_thread_finish(&listener.source); /* its thread ends by itself, as one that reads a file does */
    assert_true(atomic_load(&listener.began));
}

static void a_source_that_never_begins_can_be_stopped_twice(void **state)
{
    (void)state;
    struct listener listener = {.source.follows = true};
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    assert_int_equal(source_thread_init(&listener.source, &err), 0);
    listener.source.pull = pull_bind(gate, "tcp://127.0.0.1:*", NULL, &err);
    assert_non_null(listener.source.pull);
    start(&listener);
    source_stop(&listener.source);
    source_stop(&listener.source);
    source_thread_finish(&listener.source);
    gate_close(gate);
}

static void a_source_that_has_not_started_can_be_closed(void **state)
{
    (void)state;
    struct source source = {0};
    struct ssm_error err = {0};
    assert_int_equal(source_thread_init(&source, &err), 0);
    source_thread_finish(&source);
}

/* One word waits when it begins; those after it are news. */
static void hear(bool follows, int olds)
{
    struct listener listener = {.source.follows = follows};
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    void *context = zmq_ctx_new(), *push = zmq_socket(context, ZMQ_PUSH);
    char endpoint[64];
    int linger = 0;
    zmq_setsockopt(push, ZMQ_LINGER, &linger, sizeof linger);
    snprintf(endpoint, sizeof endpoint, "ipc://@ssmd-test-source-%d", (int)getpid());
    assert_int_equal(source_thread_init(&listener.source, &err), 0);
    listener.source.pull = pull_bind(gate, endpoint, NULL, &err);
    assert_non_null(listener.source.pull);
    assert_int_equal(zmq_connect(push, endpoint), 0);
    assert_int_equal(zmq_send(push, "old", 3, 0), 3);
    usleep(4 * MOMENT_US); /* it is there */
    start(&listener);
    source_begin(&listener.source);
    for (int waited = 0; atomic_load(&listener.news) == 0 && waited < PATIENCE_MS; waited += LOOK_MS) {
        assert_int_equal(zmq_send(push, "new", 3, 0), 3);
        usleep(LOOK_MS * 1000);
    }
    source_stop(&listener.source);
    source_thread_finish(&listener.source);
    assert_true(atomic_load(&listener.news) > 0);
    assert_int_equal(atomic_load(&listener.olds), olds);
    zmq_close(push);
    zmq_ctx_term(context);
    gate_close(gate);
}

static void who_follows_one_before_passes_over_what_waits(void **state)
{
    (void)state;
    hear(true, 0);
    hear(false, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_source_takes_nothing_before_it_begins),
        cmocka_unit_test(a_source_that_never_begins_can_be_stopped_twice),
        cmocka_unit_test(a_source_that_has_not_started_can_be_closed),
        cmocka_unit_test(who_follows_one_before_passes_over_what_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
