/* SPDX-License-Identifier: MIT */
/* daemon/gate.c: peers that send more than anybody reads, and hang up. */
#include "daemon/gate.h"

#include <errno.h>
#include <unistd.h>
#include <zmq.h>

#include "tests/folder.h"
#include "tests/test.h"

enum { WAITING_MOST = 64, FLOOD = 2000, HEARTBEAT_US = 1000000 };

/* A message that a socket of the type takes in: for a publisher a subscription, each to another topic. */
static void flood(void *peer, int i)
{
    unsigned char message[16] = {1};
    int n = snprintf((char *)message + 1, sizeof message - 1, "%d", i);
    while (zmq_send(peer, message, (size_t)n + 1, ZMQ_DONTWAIT) < 0 && errno == EAGAIN) {
        usleep(1000);
    }
}

/* libzmq goes on with a heartbeat over a connection that it had stopped to read for want of room and then found closed, and
 * ends the process by an assertion of its own; the socket has to be set up such that neither comes to pass. */
static void hung_up_on(int type, int peer_type)
{
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    const struct gate_socket options = {.type = type, .waiting_most = WAITING_MOST, .message_most = 1000};
    void *socket = gate_socket(gate, &options), *context = zmq_ctx_new(), *peer = zmq_socket(context, peer_type);
    const char *address = ipc_in_folder("gate");
    int none = 0;
    assert_non_null(socket);
    assert_true(gate_bind(gate, socket, address));
    zmq_setsockopt(peer, ZMQ_SNDHWM, &none, sizeof none);
    assert_int_equal(zmq_connect(peer, address), 0);
    for (int i = 0; i < FLOOD; i++) {
        flood(peer, i);
    }
    usleep(HEARTBEAT_US / 4); /* it has come as far as there is room */
    zmq_setsockopt(peer, ZMQ_LINGER, &none, sizeof none);
    zmq_close(peer);
    usleep(HEARTBEAT_US * 5 / 4);
    zmq_close(socket);
    zmq_ctx_term(context);
    gate_close(gate);
}

static void who_asks_too_much_and_hangs_up_harms_nothing(void **state)
{
    (void)state;
    hung_up_on(ZMQ_ROUTER, ZMQ_DEALER);
}

static void who_feeds_too_much_and_hangs_up_harms_nothing(void **state)
{
    (void)state;
    hung_up_on(ZMQ_PULL, ZMQ_PUSH);
}

static void who_subscribes_too_often_and_hangs_up_harms_nothing(void **state)
{
    (void)state;
    hung_up_on(ZMQ_XPUB, ZMQ_XSUB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_asks_too_much_and_hangs_up_harms_nothing),
        cmocka_unit_test(who_feeds_too_much_and_hangs_up_harms_nothing),
        cmocka_unit_test(who_subscribes_too_often_and_hangs_up_harms_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
