/* SPDX-License-Identifier: MIT */
#include "daemon/publish.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <zmq.h>

#include "dsp/clock.h"
#include "model/refuse.h"

enum { QUEUE_MIN = 1000, QUEUE_PER_STREAM = 200, LINGER_MS = 1000 };

struct topic {
    struct topic *next;
    uint64_t seq; /* of the next message */
    size_t length;
    char name[WIRE_TOPIC_MAX];
};

struct publisher {
    void *context, *socket;
    char node[64];
    uint8_t boot[16];
    struct topic *topics, **last;
    struct topic *hugz;
    uint8_t *bytes; /* hugz's payload: room for every topic */
    size_t room;
    _Atomic uint64_t messages;
    int64_t utc_offset; /* looked up with each hugz */
};

static bool set(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

static bool bind_socket(struct publisher *publisher, const char *address, int streams)
{
    void *socket = publisher->socket;
    const int64_t message_max = 4096; /* of what subscribers send: subscriptions */
    int queue = QUEUE_MIN + QUEUE_PER_STREAM * streams;
    /* XPUB_NODROP: a full queue is told (EAGAIN) rather than passed over in silence. Heartbeats must be set before bind. */
    bool ok = set(socket, ZMQ_XPUB_VERBOSE, 1) && set(socket, ZMQ_XPUB_NODROP, 1) && set(socket, ZMQ_SNDHWM, queue) &&
              set(socket, ZMQ_LINGER, LINGER_MS) && set(socket, ZMQ_HEARTBEAT_IVL, 1000) &&
              set(socket, ZMQ_HEARTBEAT_TIMEOUT, 3000) && set(socket, ZMQ_HEARTBEAT_TTL, 3000) &&
              zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &message_max, sizeof message_max) == 0;
    mode_t mask = umask(0117); /* ipc:// files: 0660 */
    ok = ok && zmq_bind(socket, address) == 0;
    umask(mask);
    return ok;
}

struct publisher *publisher_open(const char *address, const char *node, int streams, struct ssm_error *err)
{
    struct publisher *publisher = calloc(1, sizeof *publisher);
    if (!publisher) {
        goto fail;
    }
    publisher->last = &publisher->topics;
    publisher->utc_offset = clock_utc_offset();
    snprintf(publisher->node, sizeof publisher->node, "%s", node);
    publisher->context = zmq_ctx_new();
    publisher->socket = publisher->context ? zmq_socket(publisher->context, ZMQ_XPUB) : NULL;
    if (!publisher->socket || getrandom(publisher->boot, sizeof publisher->boot, 0) != sizeof publisher->boot ||
        !bind_socket(publisher, address, streams)) {
        goto fail;
    }
    publisher->hugz = publisher_topic(publisher, "hugz", NULL, -1, NULL);
    if (!publisher->hugz) {
        goto fail;
    }
    return publisher;
fail:
    refuse(err, errno == EINVAL || errno == EPROTONOSUPPORT ? 78 : 69, "can't publish on %s: %s%s", address,
           zmq_strerror(errno), errno == EADDRINUSE ? "; is another ssmd running? Stop it or set another address" : "");
    publisher_close(publisher);
    return NULL;
}

void publisher_close(struct publisher *publisher)
{
    if (!publisher) {
        return;
    }
    if (publisher->socket) {
        zmq_close(publisher->socket);
    }
    if (publisher->context) {
        zmq_ctx_term(publisher->context);
    }
    while (publisher->topics) {
        struct topic *next = publisher->topics->next;
        free(publisher->topics);
        publisher->topics = next;
    }
    free(publisher->bytes);
    free(publisher);
}

struct topic *publisher_topic(struct publisher *publisher, const char *kind, const char *pipeline, int channel,
                              const char *model)
{
    struct topic *topic = calloc(1, sizeof *topic);
    uint8_t *bytes = realloc(publisher->bytes, publisher->room + WIRE_TOPIC_MAX + 16);
    if (!topic || !bytes) {
        free(topic);
        publisher->bytes = bytes ? bytes : publisher->bytes;
        return NULL;
    }
    publisher->bytes = bytes;
    publisher->room += WIRE_TOPIC_MAX + 16;
    topic->length = wire_topic(topic->name, kind, publisher->node, pipeline, channel, model);
    *publisher->last = topic;
    publisher->last = &topic->next;
    return topic;
}

/* The first frame finds out whether every subscriber has room. If not, the message goes to those who have: without NODROP
 * the socket leaves the others out, this time and without a further word until they have read some. */
static bool send_topic(struct publisher *publisher, const struct topic *topic)
{
    if (zmq_send(publisher->socket, topic->name, topic->length, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0) {
        return true;
    }
    set(publisher->socket, ZMQ_XPUB_NODROP, 0);
    zmq_send(publisher->socket, topic->name, topic->length, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    set(publisher->socket, ZMQ_XPUB_NODROP, 1);
    return false;
}

bool publisher_send(struct publisher *publisher, struct topic *topic, struct wire_header *header, const void *payload,
                    size_t size)
{
    uint8_t bytes[WIRE_HEADER_MAX];
    header->version = WIRE_VERSION;
    header->seq = topic->seq++;
    memcpy(header->boot, publisher->boot, sizeof header->boot);
    if (header->clk[0] == '\0') {
        header->tw = header->tm + publisher->utc_offset;
        snprintf(header->clk, sizeof header->clk, "sys");
    }
    header->pub = clock_now() - header->tm;
    size_t n = wire_encode(header, bytes, sizeof bytes);
    bool all = send_topic(publisher, topic);
    zmq_send(publisher->socket, bytes, n, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(publisher->socket, payload, size, ZMQ_DONTWAIT);
    atomic_fetch_add_explicit(&publisher->messages, 1, memory_order_relaxed);
    return all;
}

void publisher_hugz(struct publisher *publisher)
{
    struct wire_bytes bytes = {.at = publisher->bytes, .room = publisher->room};
    size_t n = 0;
    publisher->utc_offset = clock_utc_offset();
    for (const struct topic *topic = publisher->topics; topic; topic = topic->next) {
        n += topic->seq > 0;
    }
    wire_put_map(&bytes, n);
    for (const struct topic *topic = publisher->topics; topic; topic = topic->next) {
        if (topic->seq > 0) {
            wire_put_text(&bytes, topic->name);
            wire_put_uint(&bytes, topic->seq - 1);
        }
    }
    struct wire_header header = {.tm = clock_now(), .dt = "msgpack"};
    publisher_send(publisher, publisher->hugz, &header, bytes.at, bytes.n);
}

int publisher_fd(const struct publisher *publisher)
{
    int fd = -1;
    size_t size = sizeof fd;
    zmq_getsockopt(publisher->socket, ZMQ_FD, &fd, &size);
    return fd;
}

bool publisher_turn(struct publisher *publisher)
{
    bool subscribed = false;
    uint8_t message[WIRE_TOPIC_MAX + 1];
    int events = 0;
    size_t size = sizeof events;
    while (zmq_getsockopt(publisher->socket, ZMQ_EVENTS, &events, &size) == 0 && (events & ZMQ_POLLIN)) {
        int n = zmq_recv(publisher->socket, message, sizeof message, ZMQ_DONTWAIT);
        subscribed = subscribed || (n > 0 && message[0] == 1);
    }
    return subscribed;
}

uint64_t publisher_messages(const struct publisher *publisher)
{
    return atomic_load_explicit(&publisher->messages, memory_order_relaxed);
}
