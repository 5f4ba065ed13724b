/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_PUBLISH_H
#define DAEMON_PUBLISH_H

/* The XPUB socket and its topics (daemon/wire.h). Loop thread only, but where it says any.
 *
 * Sending never blocks. A subscriber whose queue is full misses messages, alone; the sender is told when that begins. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/wire.h"
#include "model/ssm.h"

struct gate;
struct publisher;
struct topic; /* a name and its sequence */

/* Bind. A subscriber's queue holds 1000 messages and 20 more a stream, 0.2 s of all; with what the system's own buffers hold it
 * may pause for about a second. After 3 s in which it reads nothing it is cut off, and comes again by itself. NULL with *err (69:
 * the address is taken, 78: it is no address). */
struct publisher *publisher_open(struct gate *gate, const char *address, const char *node, int streams, struct ssm_error *err);
void publisher_close(struct publisher *publisher); /* what is queued has 1 s more, in gate_close; NULL is fine */

/* channel < 0: "<kind>/<node>/". Any thread. A topic that was there before counts on. Borrowed from the publisher until it
 * is released as often as it was asked for. NULL when memory runs out. */
struct topic *publisher_topic(struct publisher *publisher, const char *kind, const char *pipeline, int channel,
                              const char *model);
void publisher_release(struct publisher *publisher, struct topic *topic); /* any thread; NULL is fine */

/* Send one message. Fills in v, seq, boot and pub, and tw and clk unless clk is set; the caller the rest. False: a subscriber's queue ran full; it
 * misses this message and the next ones until it has read some. */
bool publisher_send(struct publisher *publisher, struct topic *topic, struct wire_header *header, const void *payload,
                    size_t size);

/* Send hugz/<node>/: the last sequence number of every topic. */
void publisher_hugz(struct publisher *publisher);

/* The descriptor that becomes readable when publisher_turn may have something to do. It is edge-triggered: call
 * publisher_turn after every wake and after sending. */
int publisher_fd(const struct publisher *publisher);
/* Read what subscribers asked for. True: somebody subscribed to something since the last call. */
bool publisher_turn(struct publisher *publisher);

/* Any thread. */
uint64_t publisher_messages(const struct publisher *publisher); /* sent */
int publisher_subscribers(const struct publisher *publisher);   /* connections that subscribed to something */

#endif
