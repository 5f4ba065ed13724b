/* SPDX-License-Identifier: MIT */
#include "daemon/peers.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "daemon/log.h"

struct peer {
    ino_t inode;          /* 0: none */
    const void *socket;   /* NULL: nothing came yet */
    char key[CERT_KEY];   /* "": it wasn't asked for one */
    int64_t accepted;     /* ns; 0: not a publisher's */
    int subscriptions;
    bool ended;           /* by us; libzmq hasn't closed it yet */
};

struct peers {
    struct peer *at; /* (n) by descriptor */
    int n;
};

struct peers *peers_open(void)
{
    return calloc(1, sizeof(struct peers));
}

void peers_close(struct peers *peers)
{
    if (peers) {
        free(peers->at);
    }
    free(peers);
}

/* What is behind a descriptor; 0: no socket. */
static ino_t find_inode(int fd)
{
    struct stat found;
    return fd >= 0 && fstat(fd, &found) == 0 && S_ISSOCK(found.st_mode) ? found.st_ino : 0;
}

static bool is_there(const struct peers *peers, int fd)
{
    return fd >= 0 && fd < peers->n && peers->at[fd].inode && !peers->at[fd].ended && peers->at[fd].inode == find_inode(fd);
}

static bool make_room(struct peers *peers, int fd)
{
    int n = fd < peers->n ? peers->n : 2 * fd + 16;
    struct peer *at = n > peers->n ? realloc(peers->at, (size_t)n * sizeof *at) : peers->at;
    if (at) {
        memset(at + peers->n, 0, (size_t)(n - peers->n) * sizeof *at);
        peers->at = at;
        peers->n = n;
    }
    return at != NULL;
}

/* The descriptor's connection, a new one if what was known was another. NULL with *room: there is none; else out of memory. */
static struct peer *find(struct peers *peers, int fd, bool *room)
{
    ino_t inode = find_inode(fd);
    *room = !inode || make_room(peers, fd);
    if (!inode || !*room) {
        return NULL;
    }
    struct peer *peer = &peers->at[fd];
    if (peer->inode != inode) {
        *peer = (struct peer){.inode = inode};
    }
    return peer;
}

bool peers_note(struct peers *peers, int fd, const void *socket, const char *key)
{
    bool room;
    struct peer *peer = find(peers, fd, &room);
    if (peer) {
        peer->socket = socket;
        snprintf(peer->key, sizeof peer->key, "%s", key ? key : "");
    }
    return room;
}

void peers_accept(struct peers *peers, int fd, int64_t now)
{
    bool room;
    struct peer *peer = find(peers, fd, &room);
    if (peer) {
        peer->accepted = now;
    }
}

void peers_forget(struct peers *peers, int fd)
{
    if (fd >= 0 && fd < peers->n) {
        peers->at[fd].accepted = 0; /* no more: the next connection may already be known here */
    }
}

static void end_connection(struct peers *peers, int fd, const char *why)
{
    struct peer *peer = &peers->at[fd];
    peer->ended = true;
    if (shutdown(fd, SHUT_RDWR) == 0) {
        const char *quote = peer->key[0] ? "\"" : "";
        log_line(LOG_WARNING, "a connection is ended: it %s%s%s%s%s", why, peer->key[0] ? ": " : "", quote, peer->key, quote);
    }
}

bool peers_count(struct peers *peers, int fd, int change)
{
    if (!is_there(peers, fd)) {
        return true;
    }
    struct peer *peer = &peers->at[fd];
    peer->subscriptions += change;
    if (peer->subscriptions <= PEERS_SUBSCRIPTIONS) {
        return true;
    }
    end_connection(peers, fd, "subscribed to too much");
    return false;
}

/* Bytes that came in over a connection, or -1. */
static int64_t find_received(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    bool told = getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
                size >= offsetof(struct tcp_info, tcpi_bytes_received) + sizeof info.tcpi_bytes_received;
    return told ? (int64_t)info.tcpi_bytes_received : -1;
}

int peers_look(struct peers *peers, int64_t now)
{
    int ended = 0;
    for (int fd = 0; fd < peers->n; fd++) {
        int64_t age_s = (now - peers->at[fd].accepted) / 1000000000;
        if (peers->at[fd].accepted && is_there(peers, fd) && find_received(fd) > PEERS_BYTES + PEERS_BYTES_PER_S * age_s) {
            end_connection(peers, fd, "sent too much to a publisher");
            ended++;
        }
    }
    return ended;
}

void peers_sift(struct peers *peers, bool (*is_welcome)(const void *context, const char *key), const void *context)
{
    for (int fd = 0; fd < peers->n; fd++) {
        const struct peer *peer = &peers->at[fd];
        if (peer->key[0] && is_there(peers, fd) && !is_welcome(context, peer->key)) {
            end_connection(peers, fd, "has a key that is not allowed any more");
        }
    }
}

int peers_at(const struct peers *peers, const void *socket)
{
    int n = 0;
    for (int fd = 0; fd < peers->n; fd++) {
        n += peers->at[fd].socket == socket && is_there(peers, fd);
    }
    return n;
}
