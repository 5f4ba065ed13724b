/* SPDX-License-Identifier: MIT */
#include "daemon/waker.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "dsp/clock.h"

enum { SECOND = 1000000000 };

int waker_init(struct waker *waker)
{
    atomic_init(&waker->pending, false);
    waker->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return waker->fd < 0 ? -1 : 0;
}

void waker_finish(struct waker *waker)
{
    if (waker->fd >= 0) {
        close(waker->fd);
    }
    waker->fd = -1;
}

void waker_wake(struct waker *waker)
{
    if (!atomic_exchange(&waker->pending, true)) {
        uint64_t one = 1;
        if (write(waker->fd, &one, sizeof one) < 0 && write(waker->fd, &one, sizeof one) < 0) {
            atomic_store(&waker->pending, false); /* nobody was woken: the next one tries again */
        }
    }
}

void waker_wait(struct waker *waker, int64_t timeout_ns)
{
    struct pollfd fd = {.fd = waker->fd, .events = POLLIN};
    int64_t span = clock_span(timeout_ns);
    struct timespec timeout = {span / SECOND, span % SECOND};
    ppoll(&fd, 1, timeout_ns < 0 ? NULL : &timeout, NULL);
    uint64_t count;
    ssize_t n = read(waker->fd, &count, sizeof count);
    (void)n;
    /* An exchange, not a store: a waker that found `pending` true wrote nothing to the eventfd, and reading its value here
     * is what makes its work visible. */
    atomic_exchange(&waker->pending, false);
}
