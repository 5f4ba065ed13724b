/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_CONNECTION_H
#define CLIENTS_CONNECTION_H

/* A ZeroMQ socket connected to a running ssmd, with CURVE where --server-key is given. One thread. */

#include "clients/verb.h"
#include "model/ssm.h"

extern const char *connection_key, *connection_server_key;

/* The rows for them, in the options of each verb that connects. */
#define CONNECTION_OPTIONS                                                                                                     \
    {"server-key", "KEY", OPTION_TEXT, &connection_server_key, 0, 0, "the daemon's public key, or a file of it: speak CURVE"}, \
    {"key", "FILE", OPTION_TEXT, &connection_key, 0, 0, "our own key pair, NAME_secret as ssm keys makes it (one for this once)"}

struct connection {
    void *context, *socket;
};

/* A socket of `type` (ZMQ_SUB, ZMQ_DEALER), connected in the background. message_most: bytes of a frame, -1 for no limit. -1 with
 * *err: 64 the address is none, 66 a key is not to be read, 77, 78 it is none. */
int connection_open(struct connection *connection, int type, const char *address, long message_most, struct ssm_error *err);
void connection_close(struct connection *connection); /* also of one that could not be opened */

#endif
