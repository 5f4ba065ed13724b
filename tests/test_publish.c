/* SPDX-License-Identifier: MIT */
/* daemon/publish.c: what becomes of a subscriber that stops reading, and of the others. */
#include "daemon/publish.h"

#include <unistd.h>
#include <zmq.h>

#include "daemon/gate.h"
#include "dsp/clock.h"
#include "tests/folder.h"
#include "tests/test.h"

enum { MESSAGES = 4000, SIZE = 1024 };

static void *subscribe(void *context, int queue)
{
    void *socket = zmq_socket(context, ZMQ_SUB);
    int timeout = 5000;
    zmq_setsockopt(socket, ZMQ_RCVHWM, &queue, sizeof queue);
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "audio/", 6);
    assert_int_equal(zmq_connect(socket, ipc_in_folder("publish")), 0);
    return socket;
}

static void wait_for_subscription(struct publisher *publisher)
{
    for (int i = 0; i < 1000 && !publisher_turn(publisher); i++) {
        usleep(5000);
    }
}

/* The sequence number of the next message, or -1 when none comes. */
static int64_t receive(void *socket)
{
    uint8_t bytes[WIRE_HEADER_MAX], payload[SIZE];
    char topic[WIRE_TOPIC_MAX];
    struct wire_header header;
    if (zmq_recv(socket, topic, sizeof topic, 0) < 0) {
        return -1;
    }
    int n = zmq_recv(socket, bytes, sizeof bytes, 0);
    assert_int_equal(zmq_recv(socket, payload, sizeof payload, 0), SIZE);
    assert_true(wire_decode(&header, bytes, (size_t)n));
    return (int64_t)header.seq;
}

static bool send(struct publisher *publisher, struct topic *topic)
{
    static const uint8_t payload[SIZE];
    struct wire_header header = {.dt = "f32le"};
    return publisher_send(publisher, topic, &header, payload, sizeof payload);
}

static void who_stops_reading_misses_alone_and_it_is_told(void **state)
{
    (void)state;
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    struct publisher *publisher = publisher_open(gate, ipc_in_folder("publish"), "test", 0, &err);
    assert_non_null(publisher);
    struct topic *topic = publisher_topic(publisher, "audio", "p", 0, "m");
    void *context = zmq_ctx_new(), *reads = subscribe(context, 0);
    wait_for_subscription(publisher);
    void *stops = subscribe(context, 1);
    wait_for_subscription(publisher);

    int told = 0;
    for (int i = 0; i < MESSAGES; i++) {
        told += !send(publisher, topic);
        assert_int_equal(receive(reads), i);
    }
    assert_in_range(told, 1, MESSAGES / 2);

    int64_t last = -1, before = -1;
    while (last < MESSAGES) { /* it comes back: what it has is in order and whole, and after the hole it is served again */
        send(publisher, topic);
        assert_true(receive(reads) >= MESSAGES);
        before = last;
        last = receive(stops);
        assert_true(last > before);
    }
    assert_true(before < MESSAGES - 1);
    zmq_close(reads);
    zmq_close(stops);
    zmq_ctx_term(context);
    publisher_close(publisher);
    gate_close(gate);
}

static void a_topic_that_comes_back_counts_on_and_the_oldest_are_forgotten(void **state)
{
    (void)state;
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    struct publisher *publisher = publisher_open(gate, ipc_in_folder("publish"), "test", 0, &err);
    assert_non_null(publisher);
    void *context = zmq_ctx_new(), *reads = subscribe(context, 0);
    wait_for_subscription(publisher);
    for (int i = 0; i < 5; i++) {
        struct topic *topic = publisher_topic(publisher, "audio", "p", 0, "m"), *same = publisher_topic(publisher, "audio", "p", 0, "m");
        assert_ptr_equal(topic, same);
        send(publisher, topic);
        assert_int_equal(receive(reads), i);
        publisher_release(publisher, topic);
        publisher_release(publisher, same);
    }
    struct topic *held = publisher_topic(publisher, "audio", "held", 0, "m");
    send(publisher, held);
    assert_int_equal(receive(reads), 0);
    for (int i = 0; i < 1000; i++) {
        publisher_release(publisher, publisher_topic(publisher, "audio", "q", i, "m"));
    }
    send(publisher, held);
    assert_int_equal(receive(reads), 1);
    send(publisher, publisher_topic(publisher, "audio", "p", 0, "m"));
    assert_int_equal(receive(reads), 0);
    publisher_hugz(publisher);
    zmq_close(reads);
    zmq_ctx_term(context);
    publisher_close(publisher);
    gate_close(gate);
}

/* As many as 25,000 streams have, all released as the daemon ends: each release looked at all that there were. */
static void many_topics_are_released_at_once(void **state)
{
    (void)state;
    enum { TOPICS = 100000 };
    static struct topic *topics[TOPICS];
    struct ssm_error err = {0};
    struct gate *gate = gate_open(NULL, &err);
    struct publisher *publisher = publisher_open(gate, ipc_in_folder("publish"), "test", 0, &err);
    assert_non_null(publisher);
    for (int i = 0; i < TOPICS; i++) {
        topics[i] = publisher_topic(publisher, "audio", "p", i, "m");
    }
    double start = clock_seconds();
    for (int i = 0; i < TOPICS; i++) {
        publisher_release(publisher, topics[i]);
    }
    assert_in_range((uint64_t)(1e3 * (clock_seconds() - start)), 0, 5000); /* ms: it takes some 100, and took minutes */
    publisher_close(publisher);
    gate_close(gate);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_stops_reading_misses_alone_and_it_is_told),
        cmocka_unit_test(a_topic_that_comes_back_counts_on_and_the_oldest_are_forgotten),
        cmocka_unit_test(many_topics_are_released_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
