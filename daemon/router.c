/* SPDX-License-Identifier: MIT */
#include "daemon/router.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <zmq.h>

#include "model/refuse.h"

/* Peer, an empty frame of a REQ socket, body, blob. */
enum { FRAMES = 4, WAITING_MOST = 64, LINGER_MS = 200 };

struct router {
    void *context, *socket;
    zmq_msg_t frames[FRAMES];
    int envelope; /* frames of the last request that its answer begins with */
};

static bool set(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

static bool bind_socket(void *socket, const char *address, int64_t frame_most)
{
    bool ok = set(socket, ZMQ_RCVHWM, WAITING_MOST) && set(socket, ZMQ_SNDHWM, WAITING_MOST) &&
              set(socket, ZMQ_LINGER, LINGER_MS) && set(socket, ZMQ_HEARTBEAT_IVL, 1000) &&
              set(socket, ZMQ_HEARTBEAT_TIMEOUT, 3000) && set(socket, ZMQ_HEARTBEAT_TTL, 3000) &&
              zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &frame_most, sizeof frame_most) == 0;
    mode_t mask = umask(0117); /* ipc:// files: 0660 */
    ok = ok && zmq_bind(socket, address) == 0;
    umask(mask);
    return ok;
}

struct router *router_open(const char *address, int64_t frame_most, struct ssm_error *err)
{
    struct router *router = calloc(1, sizeof *router);
    if (!router) {
        refuse_memory(err);
        return NULL;
    }
    for (int i = 0; i < FRAMES; i++) {
        zmq_msg_init(&router->frames[i]);
    }
    router->context = zmq_ctx_new();
    router->socket = router->context ? zmq_socket(router->context, ZMQ_ROUTER) : NULL;
    if (router->socket && bind_socket(router->socket, address, frame_most)) {
        return router;
    }
    refuse(err, errno == EINVAL || errno == EPROTONOSUPPORT ? 78 : 69, "can't answer requests on %s: %s; set control: to "
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
    if (router->context) {
        zmq_ctx_term(router->context);
    }
    free(router);
}

int router_fd(const struct router *router)
{
    int fd = -1;
    size_t size = sizeof fd;
    zmq_getsockopt(router->socket, ZMQ_FD, &fd, &size);
    return fd;
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
        *request = (struct router_request){.body = zmq_msg_data(body), .size = zmq_msg_size(body)};
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
    for (int i = 0; i < router->envelope; i++) {
        zmq_msg_t *frame = &router->frames[i];
        zmq_send(router->socket, zmq_msg_data(frame), zmq_msg_size(frame), ZMQ_SNDMORE | ZMQ_DONTWAIT);
    }
    zmq_send(router->socket, body, size, ZMQ_DONTWAIT | (blob_size > 0 ? ZMQ_SNDMORE : 0));
    if (blob_size > 0) {
        zmq_send(router->socket, blob, blob_size, ZMQ_DONTWAIT);
    }
}
