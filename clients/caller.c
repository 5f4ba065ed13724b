/* SPDX-License-Identifier: MIT */
#include "clients/caller.h"

#include <errno.h>
#include <stdlib.h>
#include <sysexits.h>
#include <zmq.h>

#include "model/refuse.h"

struct caller {
    void *context, *socket;
    zmq_msg_t body, blob;
};

struct caller *caller_open(const char *address, struct ssm_error *err)
{
    struct caller *caller = calloc(1, sizeof *caller);
    const int none = 0;
    if (caller == NULL) {
        refuse_memory(err);
        return NULL;
    }
    zmq_msg_init(&caller->body);
    zmq_msg_init(&caller->blob);
    caller->context = zmq_ctx_new();
    caller->socket = caller->context != NULL ? zmq_socket(caller->context, ZMQ_DEALER) : NULL;
    if (caller->socket == NULL || zmq_setsockopt(caller->socket, ZMQ_LINGER, &none, sizeof none) != 0) {
        refuse(err, EX_OSERR, "can't make a ZeroMQ socket: %s", zmq_strerror(errno));
        goto fail;
    }
    if (zmq_connect(caller->socket, address) != 0) {
        refuse(err, EX_USAGE, "\"%s\" is no address to connect to (%s); write one like tcp://127.0.0.1:5570", address,
               zmq_strerror(errno));
        goto fail;
    }
    return caller;
fail:
    caller_close(caller);
    return NULL;
}

void caller_close(struct caller *caller)
{
    if (caller == NULL) {
        return;
    }
    zmq_msg_close(&caller->body);
    zmq_msg_close(&caller->blob);
    if (caller->socket != NULL) {
        zmq_close(caller->socket);
    }
    if (caller->context != NULL) {
        zmq_ctx_term(caller->context);
    }
    free(caller);
}

int caller_ask(struct caller *caller, const struct caller_message *request, struct caller_message *answer, int timeout_ms,
               struct ssm_error *err)
{
    zmq_pollitem_t item = {.socket = caller->socket, .events = ZMQ_POLLIN};
    *answer = (struct caller_message){0};
    zmq_send(caller->socket, request->body, request->size, request->blob_size > 0 ? ZMQ_SNDMORE : 0);
    if (request->blob_size > 0) {
        zmq_send(caller->socket, request->blob, request->blob_size, 0);
    }
    if (zmq_poll(&item, 1, timeout_ms) <= 0 || zmq_msg_recv(&caller->body, caller->socket, 0) < 0) {
        return refuse(err, EX_UNAVAILABLE, "no answer for %d s; is ssmd running, and is its control: this address?",
                      timeout_ms / 1000);
    }
    *answer = (struct caller_message){.body = zmq_msg_data(&caller->body), .size = zmq_msg_size(&caller->body)};
    if (zmq_msg_more(&caller->body) && zmq_msg_recv(&caller->blob, caller->socket, 0) >= 0) {
        answer->blob = zmq_msg_data(&caller->blob);
        answer->blob_size = zmq_msg_size(&caller->blob);
    }
    return 0;
}
