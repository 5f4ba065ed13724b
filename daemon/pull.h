/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_PULL_H
#define DAEMON_PULL_H

/* Messages from other processes over ZeroMQ: a PULL socket that they connect to, or a SUB socket connected to theirs. One
 * thread. */

#include <stddef.h>

#include "model/ssm.h"

enum { PULL_MOST = 1 << 20 }; /* bytes of a message; who sends more is cut off */

struct gate;
struct pull;

/* Bind a PULL socket, or connect a SUB socket that takes what begins with `topic`, from a daemon of the given key (gate_connect).
 * NULL with *err. before: another's that is bound there; this one listens from pull_start on then, at the same socket, and until
 * then that one hears alone what comes, as it does again when this one is closed; NULL: none. */
struct pull *pull_bind(struct gate *gate, const char *endpoint, const struct pull *before, struct ssm_error *err);
struct pull *pull_subscribe(struct gate *gate, const char *endpoint, const char *server_key, const char *topic,
                            struct ssm_error *err);
int pull_start(struct pull *pull, struct ssm_error *err); /* 0, or -1 with *err */
void pull_close(struct pull *pull);                       /* NULL is fine      */

/* Becomes readable when pull_receive may have something; edge-triggered: receive until there is nothing. */
int pull_fd(const struct pull *pull);

/* The last frame of the next message (of SUB: behind the topic): its first `size` bytes, and its whole length; -1 when none
 * waits. What comes from a key that is not allowed any more is passed over. */
long pull_receive(struct pull *pull, void *bytes, size_t size);

#endif
