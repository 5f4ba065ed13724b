/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_WORKER_H
#define DAEMON_WORKER_H

/* One thread that serves many slow things in turn: all file sources, or all file sinks. */

#include <stdint.h>

struct worker;

struct worker *worker_create(void); /* NULL when resources run out */
/* Have serve(item, now) called after every wake, and at the time it last gave (CLOCK_MONOTONIC ns; INT64_MAX: only when
 * woken). Any thread but its own; waits for what is being served. 0, or -1 when memory runs out. */
int worker_add(struct worker *worker, int64_t (*serve)(void *item, int64_t now), void *item);
/* Serve the item once more, then never again. Any thread but its own; waits for that. An item that isn't there is fine. */
void worker_remove(struct worker *worker, void *item);
int worker_start(struct worker *worker); /* 0 or -1 */
void worker_wake(struct worker *worker); /* any thread; NULL is fine */
void worker_stop(struct worker *worker); /* serve everything once more, then end the thread; safe to repeat */
void worker_destroy(struct worker *worker); /* stops; NULL is fine */

#endif
