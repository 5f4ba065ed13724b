/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_SOCKET_H
#define DAEMON_SOCKET_H

/* Sockets that sources listen on: non-blocking, closed on exec. Each gives the descriptor, or -1 with *err. */

#include <sys/types.h>

#include "model/ssm.h"

/* A stream socket that this user and group may connect to. One left behind by a daemon that was killed is replaced, one
 * somebody listens on is not. */
int socket_listen_unix(const char *path, struct ssm_error *err);
/* Which process listens on a stream socket; 0: none, a daemon that was killed left it; -1: that can't be told, or it is none. */
pid_t socket_listener(const char *path);
/* "HOST:PORT", "[::1]:PORT" */
int socket_listen_tcp(const char *address, struct ssm_error *err);
/* Who connects next, non-blocking; -1 with errno. Whoever vanishes without a word, as a machine that is switched off, is noticed
 * within 20 s, so that the next one need not wait for ever. */
int socket_accept(int listener);
/* Messages carry how many before them the system dropped (SO_RXQ_OVFL). */
int socket_bind_udp(const char *address, struct ssm_error *err);

#endif
