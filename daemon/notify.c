/* SPDX-License-Identifier: MIT */
#include "daemon/notify.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "dsp/clock.h"

enum { LOADING_S = 30 };

/* '@' is how an abstract socket's name is written. */
static socklen_t find_socket(struct sockaddr_un *address)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t n = path ? strlen(path) : 0;
    if (n < 2 || n >= sizeof address->sun_path || (path[0] != '/' && path[0] != '@')) {
        return 0;
    }
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path, path, n);
    if (path[0] == '@') {
        address->sun_path[0] = '\0';
    }
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
}

static void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void tell(const char *format, ...)
{
    struct sockaddr_un address;
    socklen_t size = find_socket(&address);
    int fd = size > 0 ? socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;
    if (fd < 0) {
        return;
    }
    char text[1024];
    va_list values;
    va_start(values, format);
    int n = vsnprintf(text, sizeof text, format, values);
    va_end(values);
    sendto(fd, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1, MSG_NOSIGNAL, (struct sockaddr *)&address, size);
    close(fd);
}

void notify_loading(const char *what)
{
    tell("EXTEND_TIMEOUT_USEC=%d000000\nSTATUS=loading %s", LOADING_S, what);
}

void notify_ready(const char *status)
{
    tell("READY=1\nSTATUS=%s", status);
}

void notify_reloading(void)
{
    tell("RELOADING=1\nMONOTONIC_USEC=%lld\nSTATUS=reloading", (long long)(clock_now() / 1000));
}

void notify_stopping(double seconds)
{
    tell("STOPPING=1\nEXTEND_TIMEOUT_USEC=%.0f\nSTATUS=draining", 1e6 * (seconds + 1));
}

void notify_alive(void)
{
    const char *pid = getenv("WATCHDOG_PID");
    if (getenv("WATCHDOG_USEC") && (!pid || strtol(pid, NULL, 10) == getpid())) {
        tell("WATCHDOG=1");
    }
}
