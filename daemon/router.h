/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_ROUTER_H
#define DAEMON_ROUTER_H

/* The ROUTER socket that requests come in on: one or two frames each, from REQ or DEALER sockets, answered in turn. Loop thread
 * only; nothing blocks, and who doesn't read its answers loses them. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/ssm.h"

struct gate;
struct router;

struct router_request {
    const uint8_t *body, *blob; /* borrowed until the next receive; blob: the second frame, or empty */
    size_t size, blob_size;
    bool allowed, admin; /* who asks may be answered; and may change things */
};

/* Bind. Who sends a frame larger than frame_most is cut off. NULL with *err (69: the address is taken, 78: it is none). */
struct router *router_open(struct gate *gate, const char *address, int64_t frame_most, struct ssm_error *err);
void router_close(struct router *router); /* NULL is fine */

/* Becomes readable when there may be a request; edge-triggered: receive until there is none. */
int router_fd(const struct router *router);

/* The next request; false: none waits. Messages of too many frames are dropped. */
bool router_receive(struct router *router, struct router_request *request);

/* Answer the request that was received last; no second frame where blob_size is 0. */
void router_reply(struct router *router, const void *body, size_t size, const void *blob, size_t blob_size);

#endif
