/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_SOCKET_H
#define DAEMON_SOCKET_H

/* Sockets that sources listen on: non-blocking, closed on exec. Each gives the descriptor, or -1 with *err. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "model/ssm.h"

/* A stream socket that this user and group may connect to. One left behind by a daemon that was killed is replaced, one
 * somebody listens on is not. */
int socket_listen_unix(const char *path, struct ssm_error *err);
/* The same where so many may wait to be let in, or one without a file, that only has a name. -1 with errno. */
int socket_listen_local(const char *name, bool file, int waiting);
/* Which process listens on a stream socket; 0: none, a daemon that was killed left it; -1: that can't be told, or it is none. */
pid_t socket_listener(const char *path);
/* "HOST:PORT", "[::1]:PORT" */
int socket_listen_tcp(const char *address, struct ssm_error *err);
/* Who connects next, non-blocking; -1 with errno. Whoever vanishes without a word, as a machine that is switched off, is noticed
 * within 20 s, so that the next one need not wait for ever. */
int socket_accept(int listener);
/* A descriptor more of the socket of this process that listens at "tcp://ADDRESS:PORT", in figures; non-blocking from now on, both.
 * -1 with errno: there is none, or no descriptor to be had. */
int socket_again(const char *endpoint);

/* A descriptor that a source and the one that takes its place both listen at: who connects, or sends, meets either. */
struct socket_place {
    int fd;
    atomic_int users;
    _Atomic uint32_t dropped; /* datagrams, by the system, that were counted */
    char path[108];           /* of a unix socket; "": none */
};
/* Takes fd, -1 with *err too, and has one user; path: NULL or a unix socket's. NULL with *err. */
struct socket_place *socket_place_create(int fd, const char *path, struct ssm_error *err);
struct socket_place *socket_place_share(struct socket_place *place); /* one user more */
/* A datagram's word: so many the system has dropped since the socket is there. Gives those of them that no datagram told of before,
 * whoever read it. Any thread. */
uint32_t socket_place_dropped(struct socket_place *place, uint32_t dropped);
/* One user less; the last one's end closes it. NULL is fine. */
void socket_place_destroy(struct socket_place *place);

/* Messages carry how many before them the system dropped (SO_RXQ_OVFL). */
int socket_bind_udp(const char *address, struct ssm_error *err);

#endif
