/* SPDX-License-Identifier: MIT */
#include "daemon/router.h"

#include <errno.h>
#include <stdlib.h>
#include <zmq.h>

#include "daemon/gate.h"
#include "daemon/log.h"
#include "dsp/spare.h"
#include "model/refuse.h"

/* Peer, an empty frame of a REQ socket, body, blob. */
enum { FRAMES = 4, WAITING_MOST = 64, LINGER_MS = 200 };

struct router {
    struct gate *gate;
    void *socket;
    zmq_msg_t frames[FRAMES];
    int envelope; /* frames of the last request that its answer begins with */
};

struct router *router_open(struct gate *gate, const char *address, int64_t frame_most, struct ssm_error *err)
{
    const struct gate_socket options = {
        .type = ZMQ_ROUTER, .waiting_most = WAITING_MOST, .message_most = frame_most, .linger_ms = LINGER_MS};
    struct router *router = calloc(1, sizeof *router);
    if (!router) {
        refuse_memory(err);
        return NULL;
    }
    for (int i = 0; i < FRAMES; i++) {
        zmq_msg_init(&router->frames[i]);
    }
    router->gate = gate;
    router->socket = gate_socket(gate, &options);
    if (router->socket && gate_bind(gate, router->socket, address)) {
        return router;
    }
    refuse(err, errno == EINVAL || errno == EPROTONOSUPPORT ? 78 : spare_code(69), "can't answer requests on %s: %s; set control: to "
           "another address, or to \"\" for none", address, zmq_strerror(errno));
    router_close(router);
    return NULL;
}

void router_close(struct router *router)
{
    if (!router) {
        return;
    }
    for (int i = 0; i < FRAMES; i++) {
        zmq_msg_close(&router->frames[i]);
    }
    if (router->socket) {
        zmq_close(router->socket);
    }
    free(router);
}

int router_fd(const struct router *router)
{
    return gate_fd(router->socket);
}

/* One message, as far as there is room for its frames; gives how many it has, 0: none waits. */
static int receive_frames(struct router *router)
{
    int n = 0;
    zmq_msg_t beyond, *frame;
    zmq_msg_init(&beyond);
    do {
        frame = n < FRAMES ? &router->frames[n] : &beyond;
        if (zmq_msg_recv(frame, router->socket, ZMQ_DONTWAIT) < 0) {
            break;
        }
        n++;
    } while (zmq_msg_more(frame));
    zmq_msg_close(&beyond);
    return n;
}

bool router_receive(struct router *router, struct router_request *request)
{
    for (int n; (n = receive_frames(router)) > 0;) {
        router->envelope = n > 2 && zmq_msg_size(&router->frames[1]) == 0 ? 2 : 1;
        int parts = n - router->envelope;
        if (parts < 1 || parts > 2 || n > FRAMES) {
            continue;
        }
        zmq_msg_t *body = &router->frames[router->envelope], *blob = body + 1;
        gate_knows(router->gate, router->socket, body);
        const char *user = zmq_msg_gets(body, "User-Id");
        *request = (struct router_request){.body = zmq_msg_data(body),
                                           .size = zmq_msg_size(body),
                                           .allowed = gate_is_client(router->gate, user),
                                           .admin = gate_is_admin(router->gate, user)};
        if (parts == 2) {
            request->blob = zmq_msg_data(blob);
            request->blob_size = zmq_msg_size(blob);
        }
        return true;
    }
    return false;
}

void router_reply(struct router *router, const void *body, size_t size, const void *blob, size_t blob_size)
{
    bool sent = true;
    for (int i = 0; i < router->envelope; i++) {
        zmq_msg_t *frame = &router->frames[i];
        sent &= zmq_send(router->socket, zmq_msg_data(frame), zmq_msg_size(frame), ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0;
    }
    sent &= zmq_send(router->socket, body, size, ZMQ_DONTWAIT | (blob_size > 0 ? ZMQ_SNDMORE : 0)) >= 0;
    if (blob_size > 0) {
        sent &= zmq_send(router->socket, blob, blob_size, ZMQ_DONTWAIT) >= 0;
    }
    if (!sent) {
        log_line(LOG_WARNING, "control: an answer couldn't be sent: %s", zmq_strerror(zmq_errno()));
    }
}
