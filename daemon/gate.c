/* SPDX-License-Identifier: MIT */
#include "daemon/gate.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "daemon/allow.h"
#include "daemon/cert.h"
#include "daemon/log.h"
#include "daemon/peers.h"
#include "daemon/socket.h"
#include "dsp/clock.h"
#include "dsp/spare.h"
#include "model/refuse.h"

/* SOCKETS: two for each of a configuration's pipelines, and two more for each that is watched, of which there are DOORS at
 * most. REFRESH: between two looks at the files. LOOK: between two at who came in to publishers. */
enum { DOORS = 256, SOCKETS = 2 * CONFIG_PIPELINES + 2 * DOORS, PROBE_S = 1, TIMEOUT_S = 3, HANDSHAKE_MS = 5000,
       REFRESH_MS = 1000, LOOK_MS = 200 };

/* A socket that is bound and guarded, or a publisher's, and what libzmq tells of it. */
struct door {
    struct door *next;
    void *told; /* its events; the thread's, while there is one */
    bool closed;
};

struct gate {
    void *context;
    struct cert cert;    /* ours; "" without curve */
    void *asked;         /* ZAP: where libzmq asks, with curve; tells the thread when the context ends */
    pthread_t thread;
    bool running;
    pthread_mutex_t lock; /* of all below */
    struct allow *allow;
    struct door *doors;
    int n_doors;
    struct peers *peers;
    int64_t refresh_at;
    _Atomic uint64_t denied, unspoken, flooded;
};

/* ---- Sockets. ---- */

static bool set(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

/* Not heartbeats: libzmq 4.3.4 also sends them over a connection that it stopped reading for want of room and then found closed,
 * and ends the process by an assertion. The kernel finds out who is dead, and with MAXRT who has taken nothing for so long. */
bool gate_keep_alive(void *socket)
{
    return set(socket, ZMQ_TCP_KEEPALIVE, 1) && set(socket, ZMQ_TCP_KEEPALIVE_IDLE, PROBE_S) &&
           set(socket, ZMQ_TCP_KEEPALIVE_INTVL, PROBE_S) && set(socket, ZMQ_TCP_KEEPALIVE_CNT, TIMEOUT_S / PROBE_S) &&
           set(socket, ZMQ_TCP_MAXRT, 1000 * TIMEOUT_S);
}

void *gate_socket(struct gate *gate, const struct gate_socket *options)
{
    void *socket = zmq_socket(gate->context, options->type);
    bool ok = socket && gate_keep_alive(socket) && set(socket, ZMQ_RCVHWM, options->waiting_most) &&
              set(socket, ZMQ_SNDHWM, options->waiting_most) && set(socket, ZMQ_LINGER, options->linger_ms) &&
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

static void *run(void *gate);

/* The thread that looks who comes in. */
static bool start(struct gate *gate)
{
    gate->running = gate->running || pthread_create(&gate->thread, NULL, run, gate) == 0;
    return gate->running;
}

static bool is_full(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    bool full = gate->n_doors >= DOORS;
    pthread_mutex_unlock(&gate->lock);
    return full;
}

/* Have the thread hear of the events of a socket; it sees the door at its next look. Nobody watches those beyond DOORS. */
static bool watch(struct gate *gate, void *socket, int events)
{
    char address[64];
    if (is_full(gate)) {
        return true;
    }
    struct door *door = calloc(1, sizeof *door);
    snprintf(address, sizeof address, "inproc://door.%p", (void *)door);
    bool ok = door && zmq_socket_monitor(socket, address, events | ZMQ_EVENT_MONITOR_STOPPED) == 0 &&
              (door->told = zmq_socket(gate->context, ZMQ_PAIR)) && set(door->told, ZMQ_LINGER, 0) &&
              zmq_connect(door->told, address) == 0;
    if (!ok) {
        int error = errno;
        if (door && door->told) {
            zmq_close(door->told);
        }
        free(door);
        errno = error;
        return false;
    }
    pthread_mutex_lock(&gate->lock);
    door->next = gate->doors;
    gate->doors = door;
    gate->n_doors++;
    pthread_mutex_unlock(&gate->lock);
    return start(gate);
}

static bool is_publisher(void *socket)
{
    int type = -1;
    size_t size = sizeof type;
    return zmq_getsockopt(socket, ZMQ_TYPE, &type, &size) == 0 && type == ZMQ_XPUB;
}

/* libzmq puts its socket into the place of whatever is there: of a file, or of another's socket, who then hears nothing. Names in no
 * folder (@) and of libzmq's choice (*) are nobody's. */
bool gate_is_taken(const char *address)
{
    const char *path = address + sizeof "ipc://" - 1;
    struct stat found;
    if (strncmp(address, "ipc://", 6) != 0 || *path == '@' || *path == '*' || stat(path, &found) != 0) {
        return false;
    }
    return socket_listener(path) != 0;
}

bool gate_listen(struct gate *gate, void *socket, int fd, const char *address)
{
    if (!spare_descriptors() || (fd >= 0 && !set(socket, ZMQ_USE_FD, fd))) {
        return false;
    }
    bool guarded = gate->allow && strncmp(address, "tcp://", 6) == 0;
    int events = (guarded ? ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL : 0) |
                 (is_publisher(socket) ? ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED : 0);
    if (guarded && !guard(gate, socket)) {
        return false;
    }
    if (events && !watch(gate, socket, events)) {
        return false;
    }
    mode_t mask = umask(0117); /* ipc:// files: 0660 */
    bool ok = zmq_bind(socket, address) == 0;
    umask(mask);
    return ok;
}

bool gate_bind(struct gate *gate, void *socket, const char *address)
{
    if (gate_is_taken(address)) {
        errno = EADDRINUSE;
        return false;
    }
    return gate_listen(gate, socket, -1, address);
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

/* ---- Who is in. ---- */

bool gate_knows(struct gate *gate, const void *socket, void *message)
{
    const char *key = zmq_msg_gets(message, "User-Id");
    pthread_mutex_lock(&gate->lock);
    bool allowed = !key || !gate->allow || allow_find(gate->allow, key) != ALLOW_NOBODY;
    bool known = peers_note(gate->peers, zmq_msg_get(message, ZMQ_SRCFD), socket, key);
    pthread_mutex_unlock(&gate->lock);
    if (!known && key) {
        log_line(LOG_WARNING, "curve: out of memory: a connection won't end when its key goes: \"%s\"", key);
    }
    return allowed;
}

void gate_counts(struct gate *gate, void *message, int change)
{
    pthread_mutex_lock(&gate->lock);
    if (!peers_count(gate->peers, zmq_msg_get(message, ZMQ_SRCFD), change)) {
        atomic_fetch_add(&gate->flooded, 1);
    }
    pthread_mutex_unlock(&gate->lock);
}

int gate_peers(struct gate *gate, const void *socket)
{
    pthread_mutex_lock(&gate->lock);
    int n = peers_at(gate->peers, socket);
    pthread_mutex_unlock(&gate->lock);
    return n;
}

static bool is_allowed(const void *allow, const char *key)
{
    return allow_find(allow, key) != ALLOW_NOBODY;
}

/* The files at most once a second, however many knock. */
static void look(struct gate *gate)
{
    int64_t now = clock_now();
    pthread_mutex_lock(&gate->lock);
    if (gate->allow && now >= gate->refresh_at) {
        gate->refresh_at = now + REFRESH_MS * INT64_C(1000000);
        if (allow_refresh(gate->allow)) {
            peers_sift(gate->peers, is_allowed, gate->allow);
        }
    }
    atomic_fetch_add(&gate->flooded, (uint64_t)peers_look(gate->peers, now));
    pthread_mutex_unlock(&gate->lock);
}

/* ---- What libzmq tells. ---- */

static void hear_one(struct gate *gate, struct door *door, int number, int value, const char *where)
{
    if (number == ZMQ_EVENT_MONITOR_STOPPED) {
        door->closed = true;
    } else if (number == ZMQ_EVENT_ACCEPTED || number == ZMQ_EVENT_DISCONNECTED) {
        pthread_mutex_lock(&gate->lock);
        if (number == ZMQ_EVENT_ACCEPTED) {
            peers_accept(gate->peers, value, clock_now());
        } else {
            peers_forget(gate->peers, value);
        }
        pthread_mutex_unlock(&gate->lock);
    } else {
        atomic_fetch_add(&gate->unspoken, 1);
        log_line(LOG_WARNING, "curve: somebody was refused at %s who doesn't speak it", where);
    }
}

/* An event is its number (16 bits) and a value (32), and a frame with the address. */
static void hear(struct gate *gate, struct door *door)
{
    uint8_t event[6];
    char where[256] = "";
    while (zmq_recv(door->told, event, sizeof event, ZMQ_DONTWAIT) == sizeof event) {
        int32_t value;
        int got = zmq_recv(door->told, where, sizeof where - 1, ZMQ_DONTWAIT);
        where[got < 0 ? 0 : got < (int)sizeof where ? got : (int)sizeof where - 1] = '\0';
        memcpy(&value, event + 2, sizeof value);
        hear_one(gate, door, event[0] | event[1] << 8, value, where);
    }
}

static void remove_door(struct gate *gate, struct door **link)
{
    struct door *door = *link;
    *link = door->next;
    gate->n_doors--;
    zmq_close(door->told);
    free(door);
}

static void close_doors(struct gate *gate, bool all)
{
    pthread_mutex_lock(&gate->lock);
    for (struct door **link = &gate->doors; *link;) {
        if (all || (*link)->closed) {
            remove_door(gate, link);
        } else {
            link = &(*link)->next;
        }
    }
    pthread_mutex_unlock(&gate->lock);
}

/* ---- Who asks to come in. ---- */

/* A request has the frames version, id, domain, address, identity, mechanism and, with CURVE, the key's 32 bytes. */
enum { ZAP_ID = 1, ZAP_ADDRESS = 3, ZAP_MECHANISM = 5, ZAP_KEY = 6, ZAP_FRAMES = 7, ZAP_BYTES = 256 };

struct question {
    char frames[ZAP_FRAMES][ZAP_BYTES]; /* texts, or bytes with a 0 behind them */
    int sizes[ZAP_FRAMES], n;
};

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

static bool send_text(void *socket, const char *text, int more)
{
    return zmq_send(socket, text, strlen(text), more) >= 0;
}

/* All frames, whatever becomes of one: what is cut short is refused, but a REP that has not answered hears nothing more. */
static bool answer(void *socket, const struct question *question, bool allowed, const char *key)
{
    bool sent = send_text(socket, "1.0", ZMQ_SNDMORE);
    sent &= zmq_send(socket, question->frames[ZAP_ID], (size_t)question->sizes[ZAP_ID], ZMQ_SNDMORE) >= 0;
    sent &= send_text(socket, allowed ? "200" : "300", ZMQ_SNDMORE); /* 300: come again; after 400 libzmq never does */
    sent &= send_text(socket, allowed ? "" : "this key is not allowed", ZMQ_SNDMORE);
    sent &= send_text(socket, allowed ? key : "", ZMQ_SNDMORE);
    sent &= send_text(socket, "", 0);
    return sent;
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
    if (!answer(gate->asked, question, allowed, key)) {
        log_line(LOG_WARNING, "curve: %s got no answer: %s", question->frames[ZAP_ADDRESS], zmq_strerror(errno));
    }
}

/* What to wait for: questions, and what the doors tell. Gives how many. */
static int list_items(struct gate *gate, zmq_pollitem_t *items, struct door **doors)
{
    int n = 0;
    items[n++] = (zmq_pollitem_t){.socket = gate->asked, .events = ZMQ_POLLIN};
    pthread_mutex_lock(&gate->lock);
    for (struct door *door = gate->doors; door && n <= DOORS; door = door->next) {
        doors[n] = door;
        items[n++] = (zmq_pollitem_t){.socket = door->told, .events = ZMQ_POLLIN};
    }
    pthread_mutex_unlock(&gate->lock);
    return n;
}

/* False: libzmq is being closed. */
static bool turn(struct gate *gate)
{
    zmq_pollitem_t items[DOORS + 1];
    struct door *doors[DOORS + 1];
    struct question question;
    int n = list_items(gate, items, doors);
    if (zmq_poll(items, n, LOOK_MS) < 0 && errno != EINTR) {
        return false;
    }
    look(gate);
    for (int i = 1; i < n; i++) {
        if (items[i].revents) {
            hear(gate, doors[i]);
        }
    }
    close_doors(gate, false);
    if (items[0].revents && receive_question(gate->asked, &question)) {
        judge(gate, &question);
    }
    return true;
}

static void *run(void *arg)
{
    while (turn(arg)) {
    }
    return NULL; /* ZAP's socket stays: where nobody answers nobody comes in, where none is bound everybody does */
}

/* ---- The whole. ---- */

static int start_asking(struct gate *gate, const struct config_curve *curve, struct ssm_error *err)
{
    if (cert_read(&gate->cert, curve->secret, err) < 0 || !(gate->allow = allow_open(curve->clients, curve->admins, err))) {
        return -1;
    }
    if (zmq_bind(gate->asked, "inproc://zeromq.zap.01") != 0) {
        return refuse(err, spare_code(69), "can't ask who comes in (ZAP): %s", zmq_strerror(errno));
    }
    return start(gate) ? 0 : refuse(err, 71, "can't start the thread that looks who comes in");
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
    gate->peers = peers_open();
    gate->asked = spare_descriptors() ? zmq_socket(gate->context, ZMQ_REP) : NULL;
    if (!gate->peers || !gate->asked) {
        refuse_memory(err);
    } else if (!curve || !curve->secret[0] || start_asking(gate, curve, err) == 0) {
        return gate;
    }
    gate_close(gate);
    return NULL;
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
    close_doors(gate, true);
    if (gate->asked) {
        zmq_close(gate->asked);
    }
    zmq_ctx_term(gate->context);
    allow_close(gate->allow);
    peers_close(gate->peers);
    pthread_mutex_destroy(&gate->lock);
    free(gate);
}

uint64_t gate_denied(const struct gate *gate)
{
    return atomic_load(&gate->denied);
}

uint64_t gate_unspoken(const struct gate *gate)
{
    return atomic_load(&gate->unspoken);
}

uint64_t gate_flooded(const struct gate *gate)
{
    return atomic_load(&gate->flooded);
}
