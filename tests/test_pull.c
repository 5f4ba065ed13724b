/* SPDX-License-Identifier: MIT */
/* daemon/pull.c: two that listen at one address, as a source and the one that takes its place do. */
#include "daemon/pull.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "daemon/gate.h"
#include "tests/entries.h"
#include "tests/test.h"

enum { PATIENCE_US = 5000000, LOOK_US = 5000, CLIENTS = 8, RELOADS = 200 };

/* "tcp://127.0.0.1:PORT" of one that was free just now. */
static void free_endpoint(char text[64])
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    close(fd);
    snprintf(text, 64, "tcp://127.0.0.1:%d", ntohs(at.sin_port));
}

static struct pull *opened(struct gate *gate, const char *endpoint, const struct pull *before)
{
    struct ssm_error err = {0};
    struct pull *pull = pull_bind(gate, endpoint, before, &err);
    assert_string_equal(err.text, "");
    assert_non_null(pull);
    return pull;
}

static struct pull *bound(struct gate *gate, const char *endpoint, const struct pull *before)
{
    struct ssm_error err = {0};
    struct pull *pull = opened(gate, endpoint, before);
    assert_int_equal(pull_start(pull, &err), 0);
    return pull;
}

/* Who connects and says a word. */
static void *say(void *context, const char *endpoint)
{
    void *push = zmq_socket(context, ZMQ_PUSH);
    int linger = 1000;
    zmq_setsockopt(push, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(zmq_connect(push, endpoint), 0);
    assert_int_equal(zmq_send(push, "word", 4, 0), 4);
    return push;
}

/* Words that come to either in time, at most n. */
static int hear(struct pull *a, struct pull *b, int n)
{
    int heard = 0;
    char word[8];
    for (int waited = 0; heard < n && waited < PATIENCE_US; waited += LOOK_US) {
        heard += pull_receive(a, word, sizeof word) == 4;
        heard += b && pull_receive(b, word, sizeof word) == 4;
        usleep(LOOK_US);
    }
    return heard;
}

/* Both are told of who connects. libzmq's thread would wait in accept for another, and with it all other sockets of the daemon. */
static void who_connects_while_two_listen_holds_up_nobody(void **state)
{
    (void)state;
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    void *context = zmq_ctx_new(), *clients[CLIENTS + 1];
    char endpoint[64], other[64];
    free_endpoint(endpoint);
    struct pull *one = bound(gate, endpoint, NULL), *two = bound(gate, endpoint, one);
    free_endpoint(other);
    struct pull *third = bound(gate, other, NULL);
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = say(context, endpoint);
        assert_int_equal(hear(one, two, 1), 1);
    }
    clients[CLIENTS] = say(context, other);
    assert_int_equal(hear(third, NULL, 1), 1);
    for (int i = 0; i <= CLIENTS; i++) {
        zmq_close(clients[i]);
    }
    pull_close(one);
    pull_close(two);
    pull_close(third);
    zmq_ctx_term(context);
    gate_close(gate);
}

static int descriptors(void)
{
    return count_entries("/proc/self/fd");
}

/* Those of a socket that was closed are libzmq's thread's to close. */
static bool are_down_to(int n)
{
    for (int waited = 0; descriptors() > n && waited < PATIENCE_US; waited += LOOK_US) {
        usleep(LOOK_US);
    }
    return descriptors() <= n;
}

static void a_socket_that_is_handed_on_often_keeps_no_descriptors(void **state)
{
    (void)state;
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    void *context = zmq_ctx_new();
    char endpoint[64];
    free_endpoint(endpoint);
    struct pull *pull = bound(gate, endpoint, NULL);
    int before = descriptors();
    for (int i = 0; i < RELOADS; i++) {
        struct pull *next = bound(gate, endpoint, pull);
        pull_close(opened(gate, endpoint, pull)); /* as of a reload that fails */
        pull_close(bound(gate, endpoint, pull));  /* and of one that fails late */
        pull_close(pull);
        pull = next;
    }
    assert_true(are_down_to(before));
    zmq_close(say(context, endpoint));
    assert_int_equal(hear(pull, NULL, 1), 1);
    pull_close(pull);
    zmq_ctx_term(context);
    gate_close(gate);
}

/* Of a reload that fails nobody is to notice anything: who connects meanwhile is heard by the one before, and later, too. */
static void who_has_not_started_hears_nothing_and_leaves_nothing(void **state)
{
    (void)state;
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    void *context = zmq_ctx_new();
    char folder[] = "/tmp/ssmd-pull-XXXXXX", endpoints[3][64];
    assert_non_null(mkdtemp(folder));
    snprintf(endpoints[0], sizeof endpoints[0], "ipc://%s/in", folder);
    free_endpoint(endpoints[1]);
    snprintf(endpoints[2], sizeof endpoints[2], "ipc://@ssmd-pull-%d", (int)getpid());
    for (int i = 0; i < 3; i++) {
        const char *endpoint = endpoints[i];
        struct pull *one = bound(gate, endpoint, NULL), *two = opened(gate, endpoint, one);
        char word[8];
        void *meanwhile = say(context, endpoint);
        assert_int_equal(hear(one, NULL, 1), 1);
        assert_int_equal(pull_receive(two, word, sizeof word), -1);
        pull_close(two);
        void *after = say(context, endpoint);
        assert_int_equal(hear(one, NULL, 1), 1);
        pull_close(bound(gate, endpoint, one)); /* as where what comes behind it in the same reload fails */
        usleep(10 * LOOK_US); /* for libzmq's thread to close it: who comes in that moment may still be its */
        void *again = say(context, endpoint);
        assert_int_equal(hear(one, NULL, 1), 1);
        struct pull *three = bound(gate, endpoint, one);
        pull_close(one);
        usleep(10 * LOOK_US);
        void *last = say(context, endpoint);
        assert_int_equal(hear(three, NULL, 1), 1);
        zmq_close(meanwhile);
        zmq_close(after);
        zmq_close(again);
        zmq_close(last);
        pull_close(three);
    }
    assert_int_equal(rmdir(folder), 0); /* its file went with it */
    zmq_ctx_term(context);
    gate_close(gate);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_connects_while_two_listen_holds_up_nobody),
        cmocka_unit_test(who_has_not_started_hears_nothing_and_leaves_nothing),
        cmocka_unit_test(a_socket_that_is_handed_on_often_keeps_no_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
