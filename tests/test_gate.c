/* SPDX-License-Identifier: MIT */
/* daemon/gate.c: peers that send more than anybody reads, and hang up, or go on. */
#include "daemon/gate.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "daemon/peers.h"
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

static bool is_bound(struct gate *gate, int type, const char *address)
{
    const struct gate_socket options = {.type = type, .waiting_most = WAITING_MOST, .message_most = 1000};
    void *socket = gate_socket(gate, &options);
    bool bound = gate_bind(gate, socket, address);
    assert_true(bound || errno == EADDRINUSE);
    zmq_close(socket);
    return bound;
}

/* A process that listens there until it is killed. */
static pid_t listen_as_another(const char *ipc)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int ready[2];
    char word;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", ipc + 6);
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        bool ok = bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 4) == 0;
        ok = ok && write(ready[1], "", 1) == 1;
        while (ok) {
            pause();
        }
        _exit(1);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &word, 1), 1);
    close(ready[0]);
    return child;
}

/* libzmq would remove both without a word. */
static void an_ipc_address_takes_no_file_and_nobodys_socket(void **state)
{
    (void)state;
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    const char *address = ipc_in_folder("taken");
    FILE *file = fopen(address + 6, "w");
    assert_non_null(file);
    fclose(file);
    assert_false(is_bound(gate, ZMQ_XPUB, address));
    assert_false(is_bound(gate, ZMQ_PULL, address));
    assert_int_equal(unlink(address + 6), 0);
    const struct gate_socket options = {.type = ZMQ_XPUB, .waiting_most = WAITING_MOST, .message_most = 1000};
    void *ours = gate_socket(gate, &options);
    assert_true(gate_bind(gate, ours, address));
    assert_false(is_bound(gate, ZMQ_XPUB, address));
    assert_false(is_bound(gate, ZMQ_ROUTER, address));
    assert_false(is_bound(gate, ZMQ_PULL, address));
    zmq_close(ours);
    const char *left = ipc_in_folder("left");
    pid_t another = listen_as_another(left);
    assert_false(is_bound(gate, ZMQ_PULL, left));
    assert_false(is_bound(gate, ZMQ_XPUB, left));
    kill(another, SIGKILL);
    waitpid(another, NULL, 0);
    assert_true(is_bound(gate, ZMQ_XPUB, left)); /* of who was killed */
    gate_close(gate);
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

/* A publisher, and two who subscribe: one to a single topic, the other to ever more of so many bytes. */
struct crowd {
    struct gate *gate;
    void *publisher, *context, *modest, *greedy;
    int topic_bytes, sent;
};

static void open_crowd(struct crowd *crowd, const char *bind_to, int topic_bytes)
{
    struct ssm_error err = {0};
    const struct gate_socket options = {.type = ZMQ_XPUB, .waiting_most = WAITING_MOST, .message_most = 1000};
    char address[256];
    size_t size = sizeof address;
    int all = 1, none = 0;
    *crowd = (struct crowd){.gate = gate_open(NULL, &err), .context = zmq_ctx_new(), .topic_bytes = topic_bytes};
    crowd->publisher = gate_socket(crowd->gate, &options);
    zmq_setsockopt(crowd->publisher, ZMQ_XPUB_VERBOSER, &all, sizeof all);
    assert_true(gate_bind(crowd->gate, crowd->publisher, bind_to));
    zmq_getsockopt(crowd->publisher, ZMQ_LAST_ENDPOINT, address, &size);
    crowd->modest = zmq_socket(crowd->context, ZMQ_SUB);
    crowd->greedy = zmq_socket(crowd->context, ZMQ_XSUB);
    zmq_setsockopt(crowd->greedy, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(crowd->greedy, ZMQ_RECONNECT_IVL, &(int){-1}, sizeof(int));
    zmq_setsockopt(crowd->modest, ZMQ_SUBSCRIBE, "told", 4);
    assert_int_equal(zmq_connect(crowd->modest, address) + zmq_connect(crowd->greedy, address), 0);
}

static void close_crowd(struct crowd *crowd)
{
    int none = 0;
    zmq_setsockopt(crowd->greedy, ZMQ_LINGER, &none, sizeof none);
    zmq_close(crowd->greedy);
    zmq_close(crowd->modest);
    zmq_ctx_term(crowd->context);
    zmq_close(crowd->publisher);
    gate_close(crowd->gate);
}

static void subscribe_to_another(struct crowd *crowd)
{
    char message[512];
    int n = snprintf(message, sizeof message, "%c%0*d", 1, crowd->topic_bytes, crowd->sent);
    crowd->sent += zmq_send(crowd->greedy, message, (size_t)n, ZMQ_DONTWAIT) == n;
}

static int take_subscriptions(struct crowd *crowd)
{
    zmq_msg_t message;
    int n = 0;
    zmq_msg_init(&message);
    while (zmq_msg_recv(&message, crowd->publisher, ZMQ_DONTWAIT) > 0) {
        gate_knows(crowd->gate, crowd->publisher, &message);
        gate_counts(crowd->gate, &message, *(const char *)zmq_msg_data(&message) == 1 ? 1 : -1);
        n++;
    }
    zmq_msg_close(&message);
    return n;
}

/* So many topics, and time until it's cut off, or until nothing has come for a while. */
static void be_greedy(struct crowd *crowd, int topics)
{
    while (crowd->sent < topics) {
        subscribe_to_another(crowd);
    }
    for (int quiet = 0; quiet < 1000 && gate_flooded(crowd->gate) == 0; quiet++) {
        quiet = take_subscriptions(crowd) > 0 ? 0 : quiet;
        usleep(1000);
    }
    usleep(300000); /* libzmq takes note */
    take_subscriptions(crowd);
}

static void expect_modest_hears(struct crowd *crowd)
{
    char told[8];
    int soon = 2000;
    zmq_setsockopt(crowd->modest, ZMQ_RCVTIMEO, &soon, sizeof soon);
    assert_int_equal(zmq_send(crowd->publisher, "told", 4, 0), 4);
    assert_int_equal(zmq_recv(crowd->modest, told, sizeof told, 0), 4);
}

static void who_subscribes_without_end_is_cut_off_alone(void **state)
{
    struct crowd crowd;
    (void)state;
    open_crowd(&crowd, ipc_in_folder("gate"), 12);
    be_greedy(&crowd, 2 * PEERS_SUBSCRIPTIONS);
    assert_int_equal(gate_flooded(crowd.gate), 1);
    assert_int_equal(gate_peers(crowd.gate, crowd.publisher), 1);
    expect_modest_hears(&crowd);
    close_crowd(&crowd);
}

static void who_subscribes_to_as_much_as_may_be_stays(void **state)
{
    struct crowd crowd;
    (void)state;
    open_crowd(&crowd, ipc_in_folder("gate"), 12);
    be_greedy(&crowd, PEERS_SUBSCRIPTIONS);
    assert_int_equal(gate_flooded(crowd.gate), 0);
    assert_int_equal(gate_peers(crowd.gate, crowd.publisher), 2);
    close_crowd(&crowd);
}

/* Long topics are too much sooner. */
static void who_sends_a_publisher_too_many_bytes_is_cut_off_alone(void **state)
{
    enum { TOPIC = 500, TOPICS = 2000 }; /* 1 MB */
    struct crowd crowd;
    (void)state;
    open_crowd(&crowd, "tcp://127.0.0.1:*", TOPIC);
    be_greedy(&crowd, TOPICS);
    assert_int_equal(gate_flooded(crowd.gate), 1);
    assert_int_equal(gate_peers(crowd.gate, crowd.publisher), 1);
    expect_modest_hears(&crowd);
    close_crowd(&crowd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_ipc_address_takes_no_file_and_nobodys_socket),
        cmocka_unit_test(who_asks_too_much_and_hangs_up_harms_nothing),
        cmocka_unit_test(who_feeds_too_much_and_hangs_up_harms_nothing),
        cmocka_unit_test(who_subscribes_too_often_and_hangs_up_harms_nothing),
        cmocka_unit_test(who_subscribes_without_end_is_cut_off_alone),
        cmocka_unit_test(who_subscribes_to_as_much_as_may_be_stays),
        cmocka_unit_test(who_sends_a_publisher_too_many_bytes_is_cut_off_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
