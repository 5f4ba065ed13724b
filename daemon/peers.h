/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_PEERS_H
#define DAEMON_PEERS_H

/* The connections behind libzmq's sockets, by descriptor: what each one is known to be, and the end of one alone, which libzmq
 * itself can't bring about. A descriptor is soon another connection's, an inode never; where the system cuts a connection
 * (shutdown), libzmq takes note and goes on. One owner, who locks. */

#include <stdbool.h>
#include <stdint.h>

#include "daemon/cert.h"

/* A connection to a publisher may hold so many subscriptions at a time, and send so many bytes at once and a second (subscriptions
 * and, over the years, heartbeats): libzmq has no limit, and each topic that is subscribed to costs it up to 7 kB. */
enum { PEERS_SUBSCRIPTIONS = 4096, PEERS_BYTES = 512 << 10, PEERS_BYTES_PER_S = 256 };

struct peers;

struct peers *peers_open(void); /* NULL: out of memory */
void peers_close(struct peers *peers);

/* Something came in over fd at a socket; key: the sender's, NULL where nobody asked. False: out of memory. */
bool peers_note(struct peers *peers, int fd, const void *socket, const char *key);
/* Somebody came in at a publisher's port who is to be looked after, which he isn't where memory is short. now: ns. */
void peers_accept(struct peers *peers, int fd, int64_t now);
/* The connection that was accepted has ended: its bytes are not looked at any more. */
void peers_forget(struct peers *peers, int fd);
/* change: +1, a subscription, or -1, the end of one. False: too many, the connection is ended. */
bool peers_count(struct peers *peers, int fd, int change);

/* End the connections of accepted peers that sent more bytes than may be. Gives how many. TCP's alone: of others the system
 * doesn't say. */
int peers_look(struct peers *peers, int64_t now);
/* End the connections whose key isn't welcome. */
void peers_sift(struct peers *peers, bool (*is_welcome)(const void *context, const char *key), const void *context);

/* Connections there are over which something came to a socket. */
int peers_at(const struct peers *peers, const void *socket);

#endif
