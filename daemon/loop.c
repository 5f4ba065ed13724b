/* SPDX-License-Identifier: MIT */
#include "daemon/loop.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include "dsp/clock.h"
#include "dsp/spare.h"

enum { ROOM = 8 };

struct watch {
    union {
        uv_handle_t handle;
        uv_signal_t signal;
        uv_poll_t poll;
        uv_async_t async;
    };
    void (*call)(void *arg);
    void *arg;
    int timer; /* its descriptor; -1: none */
};

struct loop {
    uv_loop_t uv;
    struct watch watches[2 * ROOM + 2];
    int n;
    struct watch *wake;
    atomic_bool woken;
};

static void call(uv_handle_t *handle)
{
    struct watch *watch = handle->data;
    watch->call(watch->arg);
}
static void on_signal(uv_signal_t *signal, int number)
{
    (void)number;
    call((uv_handle_t *)signal);
}
static void on_poll(uv_poll_t *poll, int status, int events)
{
    (void)status, (void)events;
    call((uv_handle_t *)poll);
}
/* However often it has come due. */
static void on_timer(uv_poll_t *poll, int status, int events)
{
    uint64_t times;
    struct watch *watch = poll->data;
    if (read(watch->timer, &times, sizeof times) > 0) {
        on_poll(poll, status, events);
    }
}
static void on_async(uv_async_t *async)
{
    struct loop *loop = (struct loop *)async->loop; /* uv is its first member */
    atomic_exchange(&loop->woken, false);
    call((uv_handle_t *)async);
}

struct loop *loop_create(void)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (loop && (!spare_descriptors() || uv_loop_init(&loop->uv) != 0)) {
        free(loop);
        return NULL;
    }
    return loop;
}

void loop_destroy(struct loop *loop)
{
    if (!loop) {
        return;
    }
    for (int i = 0; i < loop->n; i++) {
        uv_close(&loop->watches[i].handle, NULL);
    }
    uv_run(&loop->uv, UV_RUN_DEFAULT); /* let the closes happen */
    uv_loop_close(&loop->uv);
    for (int i = 0; i < loop->n; i++) {
        if (loop->watches[i].timer >= 0) {
            close(loop->watches[i].timer);
        }
    }
    free(loop);
}

static struct watch *next_watch(struct loop *loop, void (*call)(void *arg), void *arg)
{
    if (loop->n == (int)(sizeof loop->watches / sizeof *loop->watches)) {
        return NULL;
    }
    struct watch *watch = &loop->watches[loop->n];
    watch->call = call;
    watch->arg = arg;
    watch->timer = -1;
    return watch;
}

/* `error` is libuv's answer to the handle's init: only an initialised handle may be closed, so only then it counts. */
static bool keep(struct loop *loop, struct watch *watch, int error)
{
    if (error == 0) {
        watch->handle.data = watch;
        loop->n++;
    }
    return error == 0;
}

int loop_every(struct loop *loop, uint64_t period_ms, void (*call)(void *arg), void *arg)
{
    struct watch *watch = next_watch(loop, call, arg);
    int64_t period = clock_span((int64_t)period_ms * 1000000);
    const struct timespec each = {period / 1000000000, period % 1000000000};
    if (!watch || (watch->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0) {
        return -1;
    }
    if (!keep(loop, watch, uv_poll_init(&loop->uv, &watch->poll, watch->timer))) {
        close(watch->timer);
        return -1;
    }
    bool ok = timerfd_settime(watch->timer, 0, &(struct itimerspec){each, each}, NULL) == 0 &&
              uv_poll_start(&watch->poll, UV_READABLE, on_timer) == 0;
    return ok ? 0 : -1;
}

int loop_signal(struct loop *loop, int number, void (*call)(void *arg), void *arg)
{
    struct watch *watch = next_watch(loop, call, arg);
    bool ok = watch && keep(loop, watch, uv_signal_init(&loop->uv, &watch->signal)) &&
              uv_signal_start(&watch->signal, on_signal, number) == 0;
    return ok ? 0 : -1;
}

int loop_readable(struct loop *loop, int fd, void (*call)(void *arg), void *arg)
{
    struct watch *watch = next_watch(loop, call, arg);
    bool ok = watch && keep(loop, watch, uv_poll_init(&loop->uv, &watch->poll, fd)) &&
              uv_poll_start(&watch->poll, UV_READABLE, on_poll) == 0;
    return ok ? 0 : -1;
}

int loop_on_wake(struct loop *loop, void (*call)(void *arg), void *arg)
{
    struct watch *watch = next_watch(loop, call, arg);
    bool ok = watch && keep(loop, watch, uv_async_init(&loop->uv, &watch->async, on_async));
    loop->wake = ok ? watch : NULL;
    return ok ? 0 : -1;
}

/* Before 1.53 uv_async_send looks at its pending flag without ordering what the caller wrote before, so work could be missed
 * until the next wake. Both sides exchange `woken` first: either on_async reads ours and sees the work, or we read its value
 * and so see the flag it had cleared. */
void loop_wake(struct loop *loop)
{
    if (!atomic_exchange(&loop->woken, true)) {
        uv_async_send(&loop->wake->async);
    }
}

void loop_run(struct loop *loop)
{
    uv_run(&loop->uv, UV_RUN_DEFAULT);
}

void loop_stop(struct loop *loop)
{
    uv_stop(&loop->uv);
}
