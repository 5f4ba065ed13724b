/* SPDX-License-Identifier: MIT */
#include "clients/subscriber.h"

#include <jansson.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "clients/connection.h"
#include "dsp/text.h"
#include "model/refuse.h"

/* hugz/ of the largest daemon is a tenth of MESSAGE_MOST. */
enum { PARTS = 3, MESSAGE_MOST = 4 << 20 };

struct subscriber {
    struct connection connection;
    char topic[WIRE_TOPIC_MAX];
    zmq_msg_t parts[PARTS];
    void *seen; /* tsearch tree of struct seen, by topic */
    subscriber_lost *lost;
    void *lost_context;
};

/* What is known of a topic. */
struct seen {
    char topic[WIRE_TOPIC_MAX];
    uint8_t boot[16];
    uint64_t next; /* the sequence number that should come now */
};

struct subscriber *subscriber_open(const char *address, const char *topic, subscriber_lost *lost, void *lost_context,
                                   struct ssm_error *err)
{
    struct subscriber *s = calloc(1, sizeof *s);
    if (s == NULL) {
        refuse_memory(err);
        return NULL;
    }
    s->lost = lost;
    s->lost_context = lost_context;
    for (int i = 0; i < PARTS; i++) {
        zmq_msg_init(&s->parts[i]);
    }
    snprintf(s->topic, sizeof s->topic, "%s", topic);
    if (connection_open(&s->connection, ZMQ_SUB, address, MESSAGE_MOST, err) < 0) {
        subscriber_close(s);
        return NULL;
    }
    zmq_setsockopt(s->connection.socket, ZMQ_SUBSCRIBE, topic, strlen(topic));
    zmq_setsockopt(s->connection.socket, ZMQ_SUBSCRIBE, "hugz/", 5);
    return s;
}

void subscriber_close(struct subscriber *s)
{
    if (s == NULL) {
        return;
    }
    for (int i = 0; i < PARTS; i++) {
        zmq_msg_close(&s->parts[i]);
    }
    connection_close(&s->connection);
    tdestroy(s->seen, free);
    free(s);
}

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct seen *)a)->topic, ((const struct seen *)b)->topic);
}

/* The topic's entry, a new one if there is none; NULL when memory runs out. *fresh: nothing is known of this boot yet. */
static struct seen *find_seen(struct subscriber *s, const char *topic, const uint8_t boot[16], bool *fresh)
{
    struct seen *entry = calloc(1, sizeof *entry), **node;
    if (entry == NULL) {
        return NULL;
    }
    snprintf(entry->topic, sizeof entry->topic, "%s", topic);
    node = tsearch(entry, &s->seen, compare);
    if (node == NULL || *node != entry) {
        free(entry);
    }
    if (node == NULL) {
        return NULL;
    }
    *fresh = *node == entry || memcmp((*node)->boot, boot, sizeof(*node)->boot) != 0;
    memcpy((*node)->boot, boot, sizeof(*node)->boot);
    return *node;
}

/* Messages up to `end` have been published, and from `first` on they came here: what was due before that is lost. The first
 * sight of a topic is where counting starts. */
static void settle(struct subscriber *s, const char *topic, const uint8_t boot[16], uint64_t first, uint64_t end)
{
    bool fresh;
    struct seen *entry = find_seen(s, topic, boot, &fresh);
    if (entry == NULL) {
        return;
    }
    if (!fresh && entry->next < first) {
        s->lost(s->lost_context, topic, entry->next, first);
    }
    if (fresh || entry->next < end) {
        entry->next = end;
    }
}

static bool is_wanted(const struct subscriber *s, const char *topic)
{
    return strncmp(topic, s->topic, strlen(s->topic)) == 0;
}

char *subscriber_json(const uint8_t *bytes, size_t size, size_t *length)
{
    char *text = NULL;
    FILE *file = open_memstream(&text, length);
    bool whole = file != NULL && wire_json(file, bytes, size);
    if (file == NULL || fclose(file) != 0 || !whole) {
        free(text);
        text = NULL;
    }
    return text;
}

/* hugz/ came on the same connection after everything it counts, so what is missing now is lost. */
static void settle_hugz(struct subscriber *s, const struct subscriber_message *message)
{
    size_t size;
    char *text = subscriber_json(message->payload, message->payload_size, &size);
    json_t *map = text != NULL ? json_loadb(text, size, 0, NULL) : NULL, *seq;
    const char *topic;
    json_object_foreach(map, topic, seq)
    {
        if (is_wanted(s, topic) && strcmp(topic, message->topic) != 0 && json_is_integer(seq)) {
            uint64_t end = (uint64_t)json_integer_value(seq) + 1;
            settle(s, topic, message->header.boot, end, end);
        }
    }
    json_decref(map);
    free(text);
}

/* The three frames into s->parts. Gives 1, 0 for none, -1 when there are more or fewer. */
static int receive_parts(struct subscriber *s)
{
    int n = 0, more = 1;
    while (more) {
        zmq_msg_t *part = &s->parts[n < PARTS ? n : PARTS - 1];
        if (zmq_msg_recv(part, s->connection.socket, ZMQ_DONTWAIT) < 0) {
            return 0;
        }
        more = zmq_msg_more(part);
        n++;
    }
    return n == PARTS ? 1 : -1;
}

static bool decode(struct subscriber *s, struct subscriber_message *message)
{
    size_t n = zmq_msg_size(&s->parts[0]);
    if (n >= sizeof message->topic) {
        return false;
    }
    memcpy(message->topic, zmq_msg_data(&s->parts[0]), n);
    message->topic[n] = '\0';
    message->header_bytes = zmq_msg_data(&s->parts[1]);
    message->header_size = zmq_msg_size(&s->parts[1]);
    message->payload = zmq_msg_data(&s->parts[2]);
    message->payload_size = zmq_msg_size(&s->parts[2]);
    return text_is_plain(message->topic) && wire_decode(&message->header, message->header_bytes, message->header_size);
}

int subscriber_receive(struct subscriber *s, struct subscriber_message *message, int timeout_ms)
{
    zmq_pollitem_t item = {.socket = s->connection.socket, .events = ZMQ_POLLIN};
    if (zmq_poll(&item, 1, timeout_ms) <= 0) {
        return 0;
    }
    int status = receive_parts(s);
    if (status != 1) {
        return status;
    }
    if (!decode(s, message)) {
        return -1;
    }
    bool hugz = strncmp(message->topic, "hugz/", 5) == 0;
    message->wanted = is_wanted(s, message->topic) && (!hugz || strncmp(s->topic, "hugz", 4) == 0);
    if (!hugz || message->wanted) {
        settle(s, message->topic, message->header.boot, message->header.seq, message->header.seq + 1);
    }
    if (hugz) {
        settle_hugz(s, message);
    }
    return 1;
}
