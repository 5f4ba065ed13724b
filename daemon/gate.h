/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_GATE_H
#define DAEMON_GATE_H

/* How others come in over ZeroMQ: the one context of all sockets here, the options they share, and with `curve:` who may come.
 *
 * With curve every tcp:// port that is bound here speaks CURVE: peers prove that they have a key, and a thread (ZAP, RFC 27)
 * lets in those whose public key is allowed (daemon/allow.h). When the files change it ends the connections of those whose key
 * is gone, as far as something came in over them. ipc:// is for whom the file's mode (0660) lets in, with all rights, as is
 * every port without curve. The same thread ends connections to publishers that subscribe to too much (daemon/peers.h). */

#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"
#include "model/ssm.h"

struct gate;

/* Borrows curve; NULL, or without a secret: nobody is asked. NULL with *err (66, 69, 77, 78). */
struct gate *gate_open(const struct config_curve *curve, struct ssm_error *err);
/* After its sockets; what they have queued has its time to leave. NULL is fine. */
void gate_close(struct gate *gate);

struct gate_socket {
    int type;             /* ZMQ_XPUB, ...                                              */
    int waiting_most;     /* messages a peer may have waiting, in each direction       */
    int64_t message_most; /* bytes of a frame that comes in; who sends more is cut off  */
    int linger_ms;
};

/* A socket, not yet bound, for zmq_close. NULL with errno. */
void *gate_socket(struct gate *gate, const struct gate_socket *options);
/* Have the kernel find out whether the peers of a socket, not yet bound or connected, are there: one that is gone is noticed in
 * some 4 s. gate_socket's have it. False with errno. */
bool gate_keep_alive(void *socket);
/* Is an ipc:// address somebody's, or a file? */
bool gate_is_taken(const char *address);
/* False with errno, EADDRINUSE where it is taken. */
bool gate_bind(struct gate *gate, void *socket, const char *address);
/* The same at a descriptor that listens there already, which libzmq closes later on; false: it is still the caller's. -1: none. */
bool gate_listen(struct gate *gate, void *socket, int fd, const char *address);
/* server_key: Z85, a file, or "" where the peer speaks no CURVE. -1 with *err. */
int gate_connect(struct gate *gate, void *socket, const char *address, const char *server_key, struct ssm_error *err);

/* What a socket's descriptor is, readable when something may have changed. */
int gate_fd(void *socket);

/* Any thread: a message (zmq_msg_t) came in at a socket that was bound here; whose connection it was is known from now on. False:
 * the sender's key is not allowed any more. */
bool gate_knows(struct gate *gate, const void *socket, void *message);
/* Any thread: the message is a subscription (+1) or the end of one (-1). Who has too many is cut off. */
void gate_counts(struct gate *gate, void *message, int change);

/* Any thread: may who is known by `user` (a message's User-Id; NULL where nobody was asked) change things; and may he be here
 * at all: a key that was taken off the list can't do a thing with the connection it has. */
bool gate_is_admin(struct gate *gate, const char *user);
bool gate_is_client(struct gate *gate, const char *user);

/* Any thread. */
uint64_t gate_denied(const struct gate *gate);   /* connections refused for their key            */
uint64_t gate_unspoken(const struct gate *gate); /* at guarded ports, those that spoke no CURVE  */
uint64_t gate_flooded(const struct gate *gate);  /* connections ended, as they subscribed to too much */
int gate_peers(struct gate *gate, const void *socket); /* connections there are over which something came to a socket */

#endif
