/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_LOOP_H
#define DAEMON_LOOP_H

/* The event loop: timers, signals, one descriptor, and a wake from other threads. Only daemon/loop.c includes uv.h.
 * Everything but loop_wake belongs to the thread that runs the loop. */

#include <stdint.h>

struct loop;

/* Room for a few timers and signals (8 each). NULL when resources run out. */
struct loop *loop_create(void);
void loop_destroy(struct loop *loop); /* NULL is fine */

/* Each gives 0, or -1 when resources run out. */
int loop_every(struct loop *loop, uint64_t period_ms, void (*call)(void *arg), void *arg);
int loop_signal(struct loop *loop, int number, void (*call)(void *arg), void *arg);
int loop_readable(struct loop *loop, int fd, void (*call)(void *arg), void *arg);
/* What loop_wake has called. */
int loop_on_wake(struct loop *loop, void (*call)(void *arg), void *arg);

/* Any thread, also before loop_run: the on_wake call happens soon, once for any number of wakes; what was written before
 * is visible to it. Never blocks. */
void loop_wake(struct loop *loop);

void loop_run(struct loop *loop); /* until loop_stop */
void loop_stop(struct loop *loop);

#endif
