/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_SUBSCRIBER_H
#define CLIENTS_SUBSCRIBER_H

/* Receive what ssmd publishes, and know what did not arrive.
 *
 * Besides the topics asked for, hugz/ is subscribed to: each second it tells the last sequence number of every topic, so
 * that a loss is seen even on a topic that went quiet. One thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/wire.h"
#include "model/ssm.h"

struct subscriber;

struct subscriber_message {
    char topic[WIRE_TOPIC_MAX];
    bool wanted; /* the topic was asked for; false for hugz/ that came along                                */
    struct wire_header header;
    const uint8_t *header_bytes, *payload; /* borrowed until the next receive */
    size_t header_size, payload_size;
};

/* Messages [from, to) of a topic that were published and never came here. */
typedef void subscriber_lost(void *context, const char *topic, uint64_t from, uint64_t to);

/* topic: a prefix, "" for all. Gives the subscriber, or NULL with *err (64: the address is none). It connects in the
 * background and again after a loss, so a daemon that isn't there yet is no error. */
struct subscriber *subscriber_open(const char *address, const char *topic, subscriber_lost *lost, void *context,
                                   struct ssm_error *err);
void subscriber_close(struct subscriber *subscriber); /* NULL is fine */

/* Wait up to timeout_ms for a message. Gives 1 and *message, 0 when none came or a signal did, -1 for one that is not of this
 * wire: it was passed over. Calls lost, maybe several times, before it gives the message that showed the loss. */
int subscriber_receive(struct subscriber *subscriber, struct subscriber_message *message, int timeout_ms);

/* A message's MessagePack as JSON, to free; NULL when it is damaged, or memory runs out. */
char *subscriber_json(const uint8_t *bytes, size_t size, size_t *length);

#endif
