/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_CONTROL_H
#define DAEMON_CONTROL_H

/* Requests to the running daemon, and its answers, over ZeroMQ (ROUTER; clients are REQ or DEALER).
 *
 *   request  {op, id?, args?}                     args: a map; id: text or a number from 0, given back with the answer
 *   answer   {id?, ok: true, result}              result: a map
 *            {id?, ok: false, err {code, msg, path}}
 *
 * MessagePack, or JSON where the first byte is '{'; the answer is written as the request was. Bytes (a stream's state) go as a
 * second frame, both ways. One table in control.c has a row an operation; `describe` lists it. Requests are answered one after
 * the other, in the order in which they came. What concerns a stream is done by the engine's thread between two turns, and
 * the loop goes on meanwhile.
 *
 * With curve: who asks is known by a key, and operations that change something are for admins (daemon/gate.h).
 *
 * code: bad_request (what it is stands in path), unknown_op, denied, not_found, busy (try again), refused, internal. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/ssm.h"

struct control;
struct daemon;
struct router_request;

enum { CONTROL_REQUEST_MOST = 65536 }; /* bytes, without the second frame */

/* Bind and answer about `daemon`, which is borrowed. address "": no socket, for control_answer alone. NULL with *err. */
struct control *control_open(const char *address, struct daemon *daemon, struct ssm_error *err);
void control_close(struct control *control); /* NULL is fine */

/* Becomes readable when control_turn may have something to do; edge-triggered. */
int control_fd(const struct control *control);

/* Loop thread, when the descriptor is readable, after each turn of the engine and now and then: answer what came, at most a
 * few requests. True: told to drain. NULL is fine. */
bool control_turn(struct control *control);

/* Answer one request. Gives the answer's bytes, borrowed until the next call, and *size; NULL: the engine's thread has to be
 * waited for. */
const void *control_answer(struct control *control, const struct router_request *request, size_t *size);

#endif
