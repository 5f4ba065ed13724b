/* SPDX-License-Identifier: MIT */
#include "daemon/publish.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <zmq.h>

#include "daemon/gate.h"
#include "daemon/log.h"
#include "dsp/clock.h"
#include "dsp/spare.h"
#include "dsp/wall.h"
#include "model/refuse.h"

/* SUBSCRIPTION_MOST: a CURVE handshake's longest command is some 550 bytes. TOPICS_IDLE: of topics that nobody publishes on any
 * more so many are remembered, with how far they had counted. */
enum { QUEUE_MIN = 1000, QUEUE_PER_STREAM = 20, LINGER_MS = 1000, SUBSCRIPTION_MOST = 1024, TOPICS_IDLE = 256,
       TOPIC_BYTES = WIRE_TOPIC_MAX + 16, BUCKETS = 1024 };

struct topic {
    struct topic *next; /* of those with the same hash */
    struct topic *older, *newer; /* idle ones, by when they were released */
    int users;
    uint64_t seq; /* of the next message */
    int64_t tm, tw; /* the latest that was told */
    size_t length;
    char name[WIRE_TOPIC_MAX];
};

struct publisher {
    struct gate *gate;
    void *socket;
    char node[64];
    uint8_t boot[16];
    pthread_mutex_t lock; /* of all topics and the room for them */
    struct topic *topics[BUCKETS]; /* by their names' hash */
    struct topic *oldest, *newest; /* idle ones */
    int idle;
    struct topic *hugz;
    uint8_t *bytes; /* hugz's payload: room for every topic */
    size_t n_topics, room;
    _Atomic uint64_t messages;
    struct wall wall; /* looked at with each hugz */
};

static bool set(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

/* Subscribers send subscriptions, no more. XPUB_NODROP: a full queue is told (EAGAIN) rather than passed over in silence. */
static bool bind_socket(struct publisher *publisher, struct gate *gate, const char *address, int streams)
{
    const struct gate_socket options = {.type = ZMQ_XPUB,
                                        .waiting_most = QUEUE_MIN + QUEUE_PER_STREAM * streams,
                                        .message_most = SUBSCRIPTION_MOST,
                                        .linger_ms = LINGER_MS};
    void *socket = publisher->socket = gate_socket(gate, &options);
    return socket && set(socket, ZMQ_XPUB_VERBOSER, 1) && set(socket, ZMQ_XPUB_NODROP, 1) && gate_bind(gate, socket, address);
}

struct publisher *publisher_open(struct gate *gate, const char *address, const char *node, int streams, struct ssm_error *err)
{
    struct publisher *publisher = calloc(1, sizeof *publisher);
    if (!publisher) {
        goto fail;
    }
    pthread_mutex_init(&publisher->lock, NULL);
    publisher->gate = gate;
    wall_look(&publisher->wall);
    snprintf(publisher->node, sizeof publisher->node, "%s", node);
    if (getrandom(publisher->boot, sizeof publisher->boot, 0) != sizeof publisher->boot ||
        !bind_socket(publisher, gate, address, streams)) {
        goto fail;
    }
    publisher->hugz = publisher_topic(publisher, "hugz", NULL, -1, NULL);
    if (!publisher->hugz) {
        goto fail;
    }
    return publisher;
fail:
    refuse(err, errno == EINVAL || errno == EPROTONOSUPPORT ? 78 : spare_code(69), "can't publish on %s: %s%s", address,
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
    for (int i = 0; i < BUCKETS; i++) {
        for (struct topic *topic = publisher->topics[i], *next; topic; topic = next) {
            next = topic->next;
            free(topic);
        }
    }
    pthread_mutex_destroy(&publisher->lock);
    free(publisher->bytes);
    free(publisher);
}

/* Where a topic of that name is, or would be put. */
static struct topic **find_topic(struct publisher *publisher, const char *name)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *at = name; *at; at++) {
        hash = (hash ^ (unsigned char)*at) * 16777619u;
    }
    struct topic **link = &publisher->topics[hash % BUCKETS];
    while (*link && strcmp((*link)->name, name) != 0) {
        link = &(*link)->next;
    }
    return link;
}

static void add_idle(struct publisher *publisher, struct topic *topic)
{
    topic->older = publisher->newest;
    topic->newer = NULL;
    *(publisher->newest ? &publisher->newest->newer : &publisher->oldest) = topic;
    publisher->newest = topic;
    publisher->idle++;
}

static void take_out_idle(struct publisher *publisher, struct topic *topic)
{
    *(topic->older ? &topic->older->newer : &publisher->oldest) = topic->newer;
    *(topic->newer ? &topic->newer->older : &publisher->newest) = topic->older;
    publisher->idle--;
}

static bool make_room(struct publisher *publisher)
{
    size_t room = (publisher->n_topics + 1) * TOPIC_BYTES;
    uint8_t *bytes = room > publisher->room ? realloc(publisher->bytes, 2 * room) : publisher->bytes;
    if (bytes && room > publisher->room) {
        publisher->bytes = bytes;
        publisher->room = 2 * room;
    }
    return bytes != NULL;
}

static struct topic *add_topic(struct publisher *publisher, struct topic **link, const char *name, size_t length)
{
    struct topic *topic = make_room(publisher) ? calloc(1, sizeof *topic) : NULL;
    if (topic) {
        memcpy(topic->name, name, length);
        topic->length = length;
        publisher->n_topics++;
        *link = topic;
    }
    return topic;
}

struct topic *publisher_topic(struct publisher *publisher, const char *kind, const char *pipeline, int channel,
                              const char *model)
{
    char name[WIRE_TOPIC_MAX] = "";
    size_t length = wire_topic(name, kind, publisher->node, pipeline, channel, model);
    pthread_mutex_lock(&publisher->lock);
    struct topic **link = find_topic(publisher, name), *topic = *link;
    if (topic && topic->users == 0) {
        take_out_idle(publisher, topic);
    }
    topic = topic ? topic : add_topic(publisher, link, name, length);
    if (topic) {
        topic->users++;
    }
    pthread_mutex_unlock(&publisher->lock);
    return topic;
}

static void forget_oldest_idle(struct publisher *publisher)
{
    struct topic *topic = publisher->oldest;
    *find_topic(publisher, topic->name) = topic->next;
    take_out_idle(publisher, topic);
    publisher->n_topics--;
    free(topic);
}

void publisher_release(struct publisher *publisher, struct topic *topic)
{
    if (!topic) {
        return;
    }
    pthread_mutex_lock(&publisher->lock);
    if (--topic->users == 0) {
        add_idle(publisher, topic);
    }
    if (publisher->idle > TOPICS_IDLE) {
        forget_oldest_idle(publisher);
    }
    pthread_mutex_unlock(&publisher->lock);
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

/* What a fit tells may be ahead of the time, and what waited long behind it: where tm doesn't go back this doesn't, whatever the
 * wall clock did meanwhile. (An event's tm is its begin.) */
static int64_t tell_utc(const struct publisher *publisher, struct topic *topic, int64_t tm)
{
    int64_t tw = wall_utc(&publisher->wall, tm);
    if (tm >= topic->tm) {
        bool back = tw < topic->tw && topic->tw - tw < WALL_BEARABLE;
        topic->tw = back ? topic->tw : tw;
        topic->tm = tm;
        return topic->tw;
    }
    return tw;
}

bool publisher_send(struct publisher *publisher, struct topic *topic, struct wire_header *header, const void *payload,
                    size_t size)
{
    uint8_t bytes[WIRE_HEADER_MAX];
    header->version = WIRE_VERSION;
    header->seq = topic->seq++;
    memcpy(header->boot, publisher->boot, sizeof header->boot);
    if (header->clk[0] == '\0') {
        header->tw = tell_utc(publisher, topic, header->tm);
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

/* Every topic that has sent something, and its last number. */
static size_t put_topics(struct publisher *publisher)
{
    struct wire_bytes bytes = {.at = publisher->bytes, .room = publisher->room};
    const struct topic *topic;
    size_t n = 0;
    for (int i = 0; i < BUCKETS; i++) {
        for (topic = publisher->topics[i]; topic; topic = topic->next) {
            n += topic->seq > 0;
        }
    }
    wire_put_map(&bytes, n);
    for (int i = 0; i < BUCKETS; i++) {
        for (topic = publisher->topics[i]; topic; topic = topic->next) {
            if (topic->seq > 0) {
                wire_put_text(&bytes, topic->name);
                wire_put_uint(&bytes, topic->seq - 1);
            }
        }
    }
    return bytes.n;
}

void publisher_hugz(struct publisher *publisher)
{
    if (!wall_look(&publisher->wall)) {
        log_line(LOG_WARNING, "the wall clock was set back by more than two hours: tw goes back with it");
    }
    pthread_mutex_lock(&publisher->lock);
    size_t n = put_topics(publisher);
    struct wire_header header = {.tm = clock_now(), .dt = "msgpack"};
    publisher_send(publisher, publisher->hugz, &header, publisher->bytes, n);
    pthread_mutex_unlock(&publisher->lock);
}

int publisher_fd(const struct publisher *publisher)
{
    return gate_fd(publisher->socket);
}

bool publisher_turn(struct publisher *publisher)
{
    bool subscribed = false;
    zmq_msg_t message;
    int events = 0;
    size_t size = sizeof events;
    zmq_msg_init(&message);
    while (zmq_getsockopt(publisher->socket, ZMQ_EVENTS, &events, &size) == 0 && (events & ZMQ_POLLIN) &&
           zmq_msg_recv(&message, publisher->socket, ZMQ_DONTWAIT) >= 0) {
        bool is_new = zmq_msg_size(&message) > 0 && *(const uint8_t *)zmq_msg_data(&message) == 1;
        gate_knows(publisher->gate, publisher->socket, &message);
        gate_counts(publisher->gate, &message, is_new ? 1 : -1);
        subscribed = subscribed || is_new;
    }
    zmq_msg_close(&message);
    return subscribed;
}

int publisher_subscribers(const struct publisher *publisher)
{
    return gate_peers(publisher->gate, publisher->socket);
}

uint64_t publisher_messages(const struct publisher *publisher)
{
    return atomic_load_explicit(&publisher->messages, memory_order_relaxed);
}
