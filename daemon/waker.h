/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_WAKER_H
#define DAEMON_WAKER_H

/* One thread sleeps, others wake it: an eventfd behind a flag, so that waking an awake thread costs one atomic exchange and
 * an audio callback never makes more than one system call. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct waker {
    int fd;
    atomic_bool pending;
};

int waker_init(struct waker *waker); /* 0, or -1 with errno */
void waker_finish(struct waker *waker);

/* Any thread, an audio callback too: the sleeper's waker_wait returns, now or the next time. Never blocks. */
void waker_wake(struct waker *waker);

/* The sleeper: wait for a wake, at most `timeout_ns` (below 0: for ever). What was written before the wake is visible
 * afterwards; look at all the work there may be, since wakes are not counted. */
void waker_wait(struct waker *waker, int64_t timeout_ns);

#endif
