/* SPDX-License-Identifier: MIT */
#include "daemon/gate.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zmq.h>

#include "daemon/allow.h"
#include "daemon/cert.h"
#include "daemon/log.h"
#include "dsp/clock.h"
#include "model/refuse.h"

/* SOCKETS: two for each of a configuration's pipelines. REFRESH: between two looks at the files. */
enum { SOCKETS = 2 * CONFIG_PIPELINES, HEARTBEAT_MS = 1000, TIMEOUT_MS = 3000, HANDSHAKE_MS = 5000, REFRESH_MS = 1000 };

struct gate {
    void *context;
    struct cert cert;    /* ours; "" without curve */
    void *asked;         /* ZAP: where libzmq asks; the thread's */
    pthread_t thread;
    bool running;
    pthread_mutex_t lock; /* of allow */
    struct allow *allow;
    int64_t refresh_at;
    _Atomic uint64_t denied;
};

/* ---- Sockets. ---- */

static bool set(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

/* Heartbeats tell a dead peer from a quiet one; they have to be set before the bind or connect. */
void *gate_socket(struct gate *gate, const struct gate_socket *options)
{
    void *socket = zmq_socket(gate->context, options->type);
    bool ok = socket && set(socket, ZMQ_SNDHWM, options->waiting_most) && set(socket, ZMQ_RCVHWM, options->waiting_most) &&
              set(socket, ZMQ_LINGER, options->linger_ms) && set(socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS) &&
              set(socket, ZMQ_HEARTBEAT_TIMEOUT, TIMEOUT_MS) && set(socket, ZMQ_HEARTBEAT_TTL, TIMEOUT_MS) &&
              set(socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS) &&
              zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &options->message_most, sizeof options->message_most) == 0;
    if (socket && !ok) {
        zmq_close(socket);
    }
    return ok ? socket : NULL;
}

static bool guard(struct gate *gate, void *socket)
{
    return set(socket, ZMQ_CURVE_SERVER, 1) && zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, "ssmd", 4) == 0 &&
           zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, gate->cert.secret_key, CERT_KEY) == 0;
}

bool gate_bind(struct gate *gate, void *socket, const char *address)
{
    if (gate->allow && strncmp(address, "tcp://", 6) == 0 && !guard(gate, socket)) {
        return false;
    }
    mode_t mask = umask(0117); /* ipc:// files: 0660 */
    bool ok = zmq_bind(socket, address) == 0;
    umask(mask);
    return ok;
}

static int meet_server(struct gate *gate, void *socket, const char *server_key, struct ssm_error *err)
{
    char key[CERT_KEY];
    if (cert_public(server_key, key, err) < 0) {
        return -1;
    }
    bool ok = zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, key, CERT_KEY) == 0 &&
              zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, gate->cert.public_key, CERT_KEY) == 0 &&
              zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, gate->cert.secret_key, CERT_KEY) == 0;
    return ok ? 0 : refuse(err, 78, "the key %s can't be used: %s", server_key, zmq_strerror(errno));
}

int gate_connect(struct gate *gate, void *socket, const char *address, const char *server_key, struct ssm_error *err)
{
    if (server_key[0] && meet_server(gate, socket, server_key, err) < 0) {
        return -1;
    }
    return zmq_connect(socket, address) == 0 ? 0 : refuse(err, 78, "can't connect to %s: %s", address, zmq_strerror(errno));
}

int gate_fd(void *socket)
{
    int fd = -1;
    size_t size = sizeof fd;
    zmq_getsockopt(socket, ZMQ_FD, &fd, &size);
    return fd;
}

/* ---- Who may come in. ---- */

static enum allow_role find_role(struct gate *gate, const char *key)
{
    pthread_mutex_lock(&gate->lock);
    enum allow_role role = allow_find(gate->allow, key);
    pthread_mutex_unlock(&gate->lock);
    return role;
}

bool gate_is_admin(struct gate *gate, const char *user)
{
    return !user || find_role(gate, user) == ALLOW_ADMIN;
}

bool gate_is_client(struct gate *gate, const char *user)
{
    return !user || find_role(gate, user) != ALLOW_NOBODY;
}

/* At most once a second, however many knock. */
static void refresh(struct gate *gate)
{
    int64_t now = clock_now();
    if (now >= gate->refresh_at) {
        gate->refresh_at = now + REFRESH_MS * INT64_C(1000000);
        pthread_mutex_lock(&gate->lock);
        allow_refresh(gate->allow);
        pthread_mutex_unlock(&gate->lock);
    }
}

/* A request has the frames version, id, domain, address, identity, mechanism and, with CURVE, the key's 32 bytes. */
enum { ZAP_ID = 1, ZAP_ADDRESS = 3, ZAP_MECHANISM = 5, ZAP_KEY = 6, ZAP_FRAMES = 7, ZAP_BYTES = 256 };

struct question {
    char frames[ZAP_FRAMES][ZAP_BYTES]; /* texts, or bytes with a 0 behind them */
    int sizes[ZAP_FRAMES], n;
};

/* False: libzmq is being closed. */
static bool receive_question(void *socket, struct question *question)
{
    int more = 1;
    question->n = 0;
    while (more) {
        int i = question->n < ZAP_FRAMES ? question->n : ZAP_FRAMES - 1;
        int got = zmq_recv(socket, question->frames[i], ZAP_BYTES - 1, 0);
        size_t size = sizeof more;
        if (got < 0 || zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) != 0) {
            return false;
        }
        question->sizes[i] = got < ZAP_BYTES ? got : ZAP_BYTES - 1;
        question->frames[i][question->sizes[i]] = '\0';
        question->n++;
    }
    return true;
}

static void send_text(void *socket, const char *text, int more)
{
    zmq_send(socket, text, strlen(text), more);
}

static void answer(void *socket, const struct question *question, bool allowed, const char *key)
{
    send_text(socket, "1.0", ZMQ_SNDMORE);
    zmq_send(socket, question->frames[ZAP_ID], (size_t)question->sizes[ZAP_ID], ZMQ_SNDMORE);
    send_text(socket, allowed ? "200" : "300", ZMQ_SNDMORE); /* 300: come again; after 400 libzmq never does */
    send_text(socket, allowed ? "" : "this key is not allowed", ZMQ_SNDMORE);
    send_text(socket, allowed ? key : "", ZMQ_SNDMORE);
    send_text(socket, "", 0);
}

static void judge(struct gate *gate, const struct question *question)
{
    char key[CERT_KEY] = "";
    bool curve = question->n == ZAP_FRAMES && strcmp(question->frames[ZAP_MECHANISM], "CURVE") == 0 &&
                 question->sizes[ZAP_KEY] == 32 && zmq_z85_encode(key, (const uint8_t *)question->frames[ZAP_KEY], 32);
    bool allowed = curve && find_role(gate, key) != ALLOW_NOBODY;
    if (!allowed) {
        atomic_fetch_add(&gate->denied, 1);
        log_line(LOG_WARNING, "curve: %s was refused: its key is not allowed: \"%s\"", question->frames[ZAP_ADDRESS], key);
    }
    answer(gate->asked, question, allowed, key);
}

static void *run(void *arg)
{
    struct gate *gate = arg;
    struct question question;
    zmq_pollitem_t item = {.socket = gate->asked, .events = ZMQ_POLLIN};
    for (int n; (n = zmq_poll(&item, 1, REFRESH_MS)) >= 0 || errno == EINTR;) {
        refresh(gate);
        if (n > 0 && !receive_question(gate->asked, &question)) {
            break;
        }
        if (n > 0) {
            judge(gate, &question);
        }
    }
    return NULL; /* the socket stays: where nobody answers nobody comes in, where none is bound everybody does */
}

/* ---- The whole. ---- */

static int start_asking(struct gate *gate, const struct config_curve *curve, struct ssm_error *err)
{
    if (cert_read(&gate->cert, curve->secret, err) < 0 || !(gate->allow = allow_open(curve->clients, curve->admins, err))) {
        return -1;
    }
    gate->asked = zmq_socket(gate->context, ZMQ_REP);
    if (!gate->asked || !set(gate->asked, ZMQ_LINGER, 0) || zmq_bind(gate->asked, "inproc://zeromq.zap.01") != 0) {
        return refuse(err, 69, "can't ask who comes in (ZAP): %s", zmq_strerror(errno));
    }
    gate->running = pthread_create(&gate->thread, NULL, run, gate) == 0;
    return gate->running ? 0 : refuse(err, 71, "can't start the thread that asks who comes in");
}

struct gate *gate_open(const struct config_curve *curve, struct ssm_error *err)
{
    struct gate *gate = calloc(1, sizeof *gate);
    if (!gate || !(gate->context = zmq_ctx_new())) {
        free(gate);
        refuse_memory(err);
        return NULL;
    }
    pthread_mutex_init(&gate->lock, NULL);
    zmq_ctx_set(gate->context, ZMQ_MAX_SOCKETS, SOCKETS);
    if (curve && curve->secret[0] && start_asking(gate, curve, err) < 0) {
        gate_close(gate);
        return NULL;
    }
    return gate;
}

void gate_close(struct gate *gate)
{
    if (!gate) {
        return;
    }
    if (gate->running) {
        zmq_ctx_shutdown(gate->context);
        pthread_join(gate->thread, NULL);
    }
    if (gate->asked) {
        zmq_close(gate->asked);
    }
    zmq_ctx_term(gate->context);
    allow_close(gate->allow);
    pthread_mutex_destroy(&gate->lock);
    free(gate);
}

uint64_t gate_denied(const struct gate *gate)
{
    return atomic_load(&gate->denied);
}
