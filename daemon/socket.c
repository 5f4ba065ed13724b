/* SPDX-License-Identifier: MIT */
#include "daemon/socket.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "dsp/spare.h"
#include "model/refuse.h"

pid_t socket_listener(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat found;
    if (strlen(path) >= sizeof address.sun_path || stat(path, &found) != 0 || !S_ISSOCK(found.st_mode)) {
        return -1;
    }
    strcpy(address.sun_path, path);
    struct ucred peer = {.pid = -1};
    socklen_t size = sizeof peer;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool heard = connect(fd, (const struct sockaddr *)&address, sizeof address) == 0;
    bool refused = !heard && errno == ECONNREFUSED;
    bool told = heard && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0;
    close(fd);
    return refused ? 0 : told && peer.pid > 0 ? peer.pid : -1; /* 0: of another container */
}

int socket_listen_local(const char *name, bool file, int waiting)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t n = strlen(name), at = file ? 0 : 1;
    if (at + n >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path + at, name, n);
    if (file && socket_listener(name) == 0) {
        unlink(name);
    }
    socklen_t size = file ? sizeof address : (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0117);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, waiting) == 0;
    umask(mask);
    if (!ok && fd >= 0) {
        int error = errno;
        close(fd);
        errno = error;
    }
    return ok ? fd : -1;
}

int socket_listen_unix(const char *path, struct ssm_error *err)
{
    const size_t most = sizeof((struct sockaddr_un *)0)->sun_path - 1;
    if (strlen(path) > most) {
        return refuse(err, 78, "%s: a socket's path has at most %zu characters", path, most);
    }
    int fd = socket_listen_local(path, true, 4);
    if (fd < 0) {
        refuse(err, spare_code(73), "can't listen on unix:%s: %s", path, strerror(errno));
    }
    return fd;
}

/* What `text`, HOST:PORT, means: to freeaddrinfo, or NULL with *err. */
static struct addrinfo *find_address(const char *text, int type, struct ssm_error *err)
{
    char host[256];
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || (size_t)(colon - text) >= sizeof host) {
        refuse(err, 78, "%s: want HOST:PORT", text);
        return NULL;
    }
    bool brackets = text[0] == '[' && colon[-1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(colon - text) - 2 * brackets, text + brackets);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = type}, *address = NULL;
    int error = getaddrinfo(host, colon + 1, &hints, &address);
    if (error != 0) {
        refuse(err, 78, "%s: %s", text, gai_strerror(error));
    }
    return error == 0 ? address : NULL;
}

static int bind_address(const char *text, int type, struct ssm_error *err)
{
    struct addrinfo *address = find_address(text, type, err);
    if (!address) {
        return -1;
    }
    int one = 1, fd = socket(address->ai_family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool tcp = type == SOCK_STREAM;
    bool ok = fd >= 0 && (!tcp || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0) &&
              bind(fd, address->ai_addr, address->ai_addrlen) == 0 && (!tcp || listen(fd, 64) == 0);
    freeaddrinfo(address);
    if (!ok) {
        refuse(err, spare_code(69), "can't listen on %s: %s", text, strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

int socket_listen_tcp(const char *address, struct ssm_error *err)
{
    return bind_address(address, SOCK_STREAM, err);
}

/* ---- Places that are handed on. ---- */

static bool listens_at(int fd, const char *endpoint)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } bound = {0};
    char host[INET6_ADDRSTRLEN], text[INET6_ADDRSTRLEN + 32];
    int listening = 0;
    socklen_t size = sizeof bound, flag = sizeof listening;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &flag) != 0 || !listening ||
        getsockname(fd, &bound.any, &size) != 0) {
        return false;
    }
    bool v6 = bound.any.sa_family == AF_INET6;
    bool known =
        (v6 || bound.any.sa_family == AF_INET) &&
        inet_ntop(bound.any.sa_family, v6 ? (void *)&bound.v6.sin6_addr : &bound.v4.sin_addr, host, sizeof host);
    if (known) {
        snprintf(text, sizeof text, v6 ? "tcp://[%s]:%d" : "tcp://%s:%d", host,
                 ntohs(v6 ? bound.v6.sin6_port : bound.v4.sin_port));
    }
    return known && strcmp(text, endpoint) == 0;
}

/* One more that refers to it. Both are told of who connects, and whoever comes second must not wait for the next. */
static int double_listener(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
}

int socket_again(const char *endpoint)
{
    DIR *folder = opendir("/proc/self/fd");
    int again = -1, error = folder ? ENOENT : errno;
    for (struct dirent *entry; folder && again < 0 && (entry = readdir(folder));) {
        int fd = atoi(entry->d_name); /* . and .. are 0 */
        if (entry->d_name[0] != '.' && listens_at(fd, endpoint)) {
            again = double_listener(fd); /* not one that libzmq's thread closes this moment */
            error = errno;
        }
    }
    if (folder) {
        closedir(folder);
    }
    errno = error;
    return again;
}

struct socket_place *socket_place_create(int fd, const char *path, struct ssm_error *err)
{
    struct socket_place *place = fd >= 0 ? calloc(1, sizeof *place) : NULL;
    if (place) {
        place->fd = fd;
        atomic_init(&place->users, 1);
        snprintf(place->path, sizeof place->path, "%s", path ? path : "");
    } else if (fd >= 0) {
        refuse_memory(err);
        close(fd);
    }
    return place;
}

struct socket_place *socket_place_share(struct socket_place *place)
{
    atomic_fetch_add(&place->users, 1);
    return place;
}

uint32_t socket_place_dropped(struct socket_place *place, uint32_t dropped)
{
    uint32_t known = atomic_load(&place->dropped);
    while ((int32_t)(dropped - known) > 0) { /* else a later datagram has been read before this one, by another */
        if (atomic_compare_exchange_weak(&place->dropped, &known, dropped)) {
            return dropped - known;
        }
    }
    return 0;
}

void socket_place_destroy(struct socket_place *place)
{
    if (place && atomic_fetch_sub(&place->users, 1) == 1) {
        close(place->fd);
        if (place->path[0]) {
            unlink(place->path);
        }
        free(place);
    }
}

int socket_accept(int listener)
{
    static const struct {
        int level, option, value;
    } rows[] = {{SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 5}, {IPPROTO_TCP, TCP_KEEPINTVL, 5},
                {IPPROTO_TCP, TCP_KEEPCNT, 3}};
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    for (size_t i = 0; fd >= 0 && i < sizeof rows / sizeof *rows; i++) { /* a unix socket knows anyway, and takes none of them */
        setsockopt(fd, rows[i].level, rows[i].option, &rows[i].value, sizeof rows[i].value);
    }
    return fd;
}

int socket_bind_udp(const char *address, struct ssm_error *err)
{
    int one = 1, fd = bind_address(address, SOCK_DGRAM, err);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof one);
    }
    return fd;
}
