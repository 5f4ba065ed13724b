/* SPDX-License-Identifier: MIT */
#include "daemon/pull.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "model/refuse.h"

/* Messages that wait for us at most. */
enum { WAITING_MOST = 1000, HEARTBEAT_MS = 1000, HEARTBEAT_TIMEOUT_MS = 3000 };

struct pull {
    void *context, *socket;
};

static void set(void *socket, int option, int value)
{
    zmq_setsockopt(socket, option, &value, sizeof value);
}

static struct pull *open_socket(int type, struct ssm_error *err)
{
    struct pull *pull = calloc(1, sizeof *pull);
    int64_t most = PULL_MOST;
    bool ok = pull && (pull->context = zmq_ctx_new()) && (pull->socket = zmq_socket(pull->context, type));
    if (!ok) {
        pull_close(pull);
        refuse_memory(err);
        return NULL;
    }
    set(pull->socket, ZMQ_LINGER, 0);
    set(pull->socket, ZMQ_RCVHWM, WAITING_MOST);
    set(pull->socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS);
    set(pull->socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS);
    zmq_setsockopt(pull->socket, ZMQ_MAXMSGSIZE, &most, sizeof most);
    return pull;
}

struct pull *pull_bind(const char *endpoint, struct ssm_error *err)
{
    struct pull *pull = open_socket(ZMQ_PULL, err);
    if (pull && zmq_bind(pull->socket, endpoint) != 0) {
        refuse(err, 69, "can't listen on %s: %s", endpoint, zmq_strerror(zmq_errno()));
        pull_close(pull);
        return NULL;
    }
    return pull;
}

struct pull *pull_subscribe(const char *endpoint, const char *topic, struct ssm_error *err)
{
    struct pull *pull = open_socket(ZMQ_SUB, err);
    if (pull && (zmq_setsockopt(pull->socket, ZMQ_SUBSCRIBE, topic, strlen(topic)) != 0 ||
                 zmq_connect(pull->socket, endpoint) != 0)) {
        refuse(err, 78, "can't subscribe to %s: %s", endpoint, zmq_strerror(zmq_errno()));
        pull_close(pull);
        return NULL;
    }
    return pull;
}

void pull_close(struct pull *pull)
{
    if (pull) {
        if (pull->socket) {
            zmq_close(pull->socket);
        }
        if (pull->context) {
            zmq_ctx_term(pull->context);
        }
        free(pull);
    }
}

int pull_fd(const struct pull *pull)
{
    int fd = -1;
    size_t size = sizeof fd;
    zmq_getsockopt(pull->socket, ZMQ_FD, &fd, &size);
    return fd;
}

long pull_receive(struct pull *pull, void *bytes, size_t size)
{
    int n, more = 1;
    do {
        n = zmq_recv(pull->socket, bytes, size, ZMQ_DONTWAIT);
        size_t length = sizeof more;
        if (n < 0 || zmq_getsockopt(pull->socket, ZMQ_RCVMORE, &more, &length) != 0) {
            return -1;
        }
    } while (more);
    return n;
}
