/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_CALLER_H
#define CLIENTS_CALLER_H

/* Ask a running ssmd something (daemon/control.h) and wait for the answer. */

#include <stddef.h>

#include "model/ssm.h"

struct caller;

/* One frame or two, borrowed; size 0: no second one. */
struct caller_message {
    const void *body, *blob;
    size_t size, blob_size;
};

/* NULL with *err (64: the address is none). It connects in the background. */
struct caller *caller_open(const char *address, struct ssm_error *err);
void caller_close(struct caller *caller); /* NULL is fine */

/* 0 and the answer, borrowed until the next call or the close; -1 with *err: 69, none came within timeout_ms. */
int caller_ask(struct caller *caller, const struct caller_message *request, struct caller_message *answer, int timeout_ms,
               struct ssm_error *err);

#endif
