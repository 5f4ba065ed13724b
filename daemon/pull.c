/* SPDX-License-Identifier: MIT */
#include "daemon/pull.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "daemon/gate.h"
#include "daemon/socket.h"
#include "dsp/spare.h"
#include "model/refuse.h"

/* Messages that wait for us at most, and who wait to be let in. */
enum { WAITING_MOST = 1000, COMING_MOST = 100 };

struct pull {
    struct gate *gate;
    void *socket;
    char bound[128]; /* tcp:// in figures; "": none, or not over TCP */
    struct socket_place *place; /* of ipc://; NULL: none */
    /* Until it starts to listen: */
    char *endpoint;
    int listener; /* the socket there, for libzmq; -1: none */
};

static struct pull *open_socket(struct gate *gate, int type, struct ssm_error *err)
{
    const struct gate_socket options = {.type = type, .waiting_most = WAITING_MOST, .message_most = PULL_MOST};
    struct pull *pull = calloc(1, sizeof *pull);
    if (!pull) {
        refuse_memory(err);
        return NULL;
    }
    pull->gate = gate;
    pull->listener = -1;
    if (!(pull->socket = gate_socket(gate, &options))) {
        refuse_memory(err);
        pull_close(pull);
        return NULL;
    }
    return pull;
}

/* Where that is, in figures. */
static void note_bound(struct pull *pull)
{
    size_t size = sizeof pull->bound;
    if (zmq_getsockopt(pull->socket, ZMQ_LAST_ENDPOINT, pull->bound, &size) != 0 ||
        strncmp(pull->bound, "tcp://", 6) != 0) {
        pull->bound[0] = '\0';
    }
}

static int refuse_endpoint(const char *endpoint, struct ssm_error *err)
{
    return refuse(err, spare_code(69), "can't listen on %s: %s%s", endpoint, zmq_strerror(errno),
                  errno == EADDRINUSE ? "; is another ssmd running? Stop it or set another address" : "");
}

/* Of ipc:// the socket is ours, so that another can listen at it too: libzmq's is the file's only one, and goes with it. */
static bool open_place(struct pull *pull, const char *endpoint, const struct pull *before)
{
    struct ssm_error err;
    const char *path = strncmp(endpoint, "ipc://", 6) == 0 && endpoint[6] != '*' ? endpoint + 6 : NULL;
    if (before && before->place) {
        pull->place = socket_place_share(before->place);
    } else if (path) {
        bool file = path[0] != '@';
        int fd = socket_listen_local(file ? path : path + 1, file, COMING_MOST);
        pull->place = fd >= 0 ? socket_place_create(fd, file ? path : NULL, &err) : NULL;
    }
    return pull->place || !path;
}

/* All but to listen: where another does, that one hears alone what comes until then. */
static int prepare(struct pull *pull, const char *endpoint, const struct pull *before, struct ssm_error *err)
{
    if (!open_place(pull, endpoint, before)) {
        return refuse_endpoint(endpoint, err);
    }
    bool tcp = before && before->bound[0];
    pull->listener = pull->place ? fcntl(pull->place->fd, F_DUPFD_CLOEXEC, 0) : tcp ? socket_again(before->bound) : -1;
    if (pull->listener < 0 && (pull->place || tcp)) {
        return refuse_endpoint(endpoint, err);
    }
    pull->endpoint = strdup(endpoint);
    return pull->endpoint ? 0 : refuse_memory(err);
}

struct pull *pull_bind(struct gate *gate, const char *endpoint, const struct pull *before, struct ssm_error *err)
{
    struct pull *pull = open_socket(gate, ZMQ_PULL, err);
    if (pull && (prepare(pull, endpoint, before, err) < 0 || (!before && pull_start(pull, err) < 0))) {
        pull_close(pull);
        return NULL;
    }
    return pull;
}

int pull_start(struct pull *pull, struct ssm_error *err)
{
    if (!pull->endpoint) {
        return 0;
    }
    bool ours = pull->listener >= 0; /* else libzmq finds out whether it is taken */
    if (!(ours ? gate_listen(pull->gate, pull->socket, pull->listener, pull->endpoint)
               : gate_bind(pull->gate, pull->socket, pull->endpoint))) {
        return refuse_endpoint(pull->endpoint, err);
    }
    pull->listener = -1;
    note_bound(pull);
    free(pull->endpoint);
    pull->endpoint = NULL;
    return 0;
}

struct pull *pull_subscribe(struct gate *gate, const char *endpoint, const char *server_key, const char *topic,
                            struct ssm_error *err)
{
    struct pull *pull = open_socket(gate, ZMQ_SUB, err);
    if (pull && (zmq_setsockopt(pull->socket, ZMQ_SUBSCRIBE, topic, strlen(topic)) != 0 ||
                 gate_connect(gate, pull->socket, endpoint, server_key, err) < 0)) {
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
        if (pull->listener >= 0) {
            close(pull->listener);
        }
        socket_place_destroy(pull->place);
        free(pull->endpoint);
        free(pull);
    }
}

int pull_fd(const struct pull *pull)
{
    return gate_fd(pull->socket);
}

/* The last frame of the next message. False: none waits. */
static bool receive(struct pull *pull, zmq_msg_t *frame)
{
    do {
        int n;
        while ((n = zmq_msg_recv(frame, pull->socket, ZMQ_DONTWAIT)) < 0 && errno == EINTR) {
        }
        if (n < 0) {
            return false;
        }
    } while (zmq_msg_more(frame));
    return true;
}

long pull_receive(struct pull *pull, void *bytes, size_t size)
{
    zmq_msg_t frame;
    long n = -1;
    zmq_msg_init(&frame);
    while (n < 0 && receive(pull, &frame)) {
        size_t length = zmq_msg_size(&frame);
        if (gate_knows(pull->gate, pull->socket, &frame)) {
            memcpy(bytes, zmq_msg_data(&frame), length < size ? length : size);
            n = (long)length;
        }
    }
    zmq_msg_close(&frame);
    return n;
}
