/* SPDX-License-Identifier: MIT */
#include "clients/caller.h"

#include <stdlib.h>
#include <sysexits.h>
#include <zmq.h>

#include "clients/connection.h"
#include "model/refuse.h"

struct caller {
    struct connection connection;
    zmq_msg_t body, blob;
};

struct caller *caller_open(const char *address, struct ssm_error *err)
{
    struct caller *caller = calloc(1, sizeof *caller);
    if (caller == NULL) {
        refuse_memory(err);
        return NULL;
    }
    zmq_msg_init(&caller->body);
    zmq_msg_init(&caller->blob);
    if (connection_open(&caller->connection, ZMQ_DEALER, address, -1, err) < 0) {
        caller_close(caller);
        return NULL;
    }
    return caller;
}

void caller_close(struct caller *caller)
{
    if (caller == NULL) {
        return;
    }
    zmq_msg_close(&caller->body);
    zmq_msg_close(&caller->blob);
    connection_close(&caller->connection);
    free(caller);
}

int caller_ask(struct caller *caller, const struct caller_message *request, struct caller_message *answer, int timeout_ms,
               struct ssm_error *err)
{
    zmq_pollitem_t item = {.socket = caller->connection.socket, .events = ZMQ_POLLIN};
    *answer = (struct caller_message){0};
    zmq_send(caller->connection.socket, request->body, request->size, request->blob_size > 0 ? ZMQ_SNDMORE : 0);
    if (request->blob_size > 0) {
        zmq_send(caller->connection.socket, request->blob, request->blob_size, 0);
    }
    if (zmq_poll(&item, 1, timeout_ms) <= 0 || zmq_msg_recv(&caller->body, caller->connection.socket, 0) < 0) {
        return refuse(err, EX_UNAVAILABLE, "no answer for %d s; is ssmd running, is its control: this address, and %s?",
                      timeout_ms / 1000, connection_server_key ? "your key allowed there" : "does it want no keys (--server-key)");
    }
    *answer = (struct caller_message){.body = zmq_msg_data(&caller->body), .size = zmq_msg_size(&caller->body)};
    if (zmq_msg_more(&caller->body) && zmq_msg_recv(&caller->blob, caller->connection.socket, 0) >= 0) {
        answer->blob = zmq_msg_data(&caller->blob);
        answer->blob_size = zmq_msg_size(&caller->blob);
    }
    return 0;
}
