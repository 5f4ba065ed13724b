/* SPDX-License-Identifier: MIT */
#include "clients/connection.h"

#include <errno.h>
#include <stdint.h>
#include <sysexits.h>
#include <zmq.h>

#include "daemon/cert.h"
#include "daemon/gate.h"
#include "dsp/spare.h"
#include "model/refuse.h"

const char *connection_key, *connection_server_key;

static int set(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value);
}

static bool configure(void *socket, int64_t message_most)
{
    return zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &message_most, sizeof message_most) == 0 &&
           gate_keep_alive(socket) && set(socket, ZMQ_RECONNECT_IVL, 100) == 0 &&
           set(socket, ZMQ_RECONNECT_IVL_MAX, 5000) == 0 && set(socket, ZMQ_RCVHWM, 10000) == 0 &&
           set(socket, ZMQ_LINGER, 0) == 0;
}

static int speak_curve(void *socket, struct ssm_error *err)
{
    struct cert own;
    char server[CERT_KEY];
    if (cert_public(connection_server_key, server, err) < 0 ||
        (connection_key ? cert_read(&own, connection_key, err) : cert_make(&own, err)) < 0) {
        return -1;
    }
    bool ok = zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server, CERT_KEY) == 0 &&
              zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, own.public_key, CERT_KEY) == 0 &&
              zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, own.secret_key, CERT_KEY) == 0;
    return ok ? 0 : refuse(err, EX_CONFIG, "these keys can't be used: %s", zmq_strerror(errno));
}

int connection_open(struct connection *connection, int type, const char *address, long message_most, struct ssm_error *err)
{
    *connection = (struct connection){0};
    if (connection_key && !connection_server_key) {
        return refuse(err, EX_USAGE, "--key needs --server-key: whom to be known to");
    }
    connection->context = spare_descriptors() ? zmq_ctx_new() : NULL;
    connection->socket = connection->context ? zmq_socket(connection->context, type) : NULL;
    if (!connection->socket || !configure(connection->socket, message_most)) {
        return refuse_memory(err);
    }
    if (connection_server_key && speak_curve(connection->socket, err) < 0) {
        return -1;
    }
    if (zmq_connect(connection->socket, address) != 0) {
        return refuse(err, EX_USAGE, "\"%s\" is no address to connect to (%s); write one like tcp://127.0.0.1:5571", address,
                      zmq_strerror(errno));
    }
    return 0;
}

void connection_close(struct connection *connection)
{
    if (connection->socket) {
        zmq_close(connection->socket);
    }
    if (connection->context) {
        zmq_ctx_term(connection->context);
    }
}
