/* SPDX-License-Identifier: MIT */
#include "daemon/worker.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "daemon/waker.h"
#include "dsp/clock.h"

struct item {
    int64_t (*serve)(void *item, int64_t now);
    void *item;
};

struct worker {
    struct waker waker;
    pthread_t thread;
    bool running;
    atomic_bool stopping;
    struct item *items;
    int n;
};

struct worker *worker_create(void)
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker && waker_init(&worker->waker) < 0) {
        free(worker);
        return NULL;
    }
    return worker;
}

int worker_add(struct worker *worker, int64_t (*serve)(void *item, int64_t now), void *item)
{
    struct item *items = realloc(worker->items, (size_t)(worker->n + 1) * sizeof *items);
    if (!items) {
        return -1;
    }
    worker->items = items;
    items[worker->n++] = (struct item){serve, item};
    return 0;
}

static int64_t serve_all(struct worker *worker)
{
    int64_t next = INT64_MAX, now = clock_now();
    for (int i = 0; i < worker->n; i++) {
        int64_t due = worker->items[i].serve(worker->items[i].item, now);
        next = due < next ? due : next;
    }
    return next;
}

static void *work(void *arg)
{
    struct worker *worker = arg;
    bool last;
    do {
        last = atomic_load(&worker->stopping);
        int64_t next = serve_all(worker);
        if (!last) {
            int64_t wait = next - clock_now();
            waker_wait(&worker->waker, next == INT64_MAX ? -1 : wait > 0 ? wait : 0);
        }
    } while (!last);
    return NULL;
}

int worker_start(struct worker *worker)
{
    worker->running = pthread_create(&worker->thread, NULL, work, worker) == 0;
    return worker->running ? 0 : -1;
}

void worker_wake(struct worker *worker)
{
    if (worker) {
        waker_wake(&worker->waker);
    }
}

void worker_stop(struct worker *worker)
{
    if (worker->running) {
        atomic_store(&worker->stopping, true);
        waker_wake(&worker->waker);
        pthread_join(worker->thread, NULL);
        worker->running = false;
    }
}

void worker_destroy(struct worker *worker)
{
    if (worker) {
        worker_stop(worker);
        waker_finish(&worker->waker);
        free(worker->items);
        free(worker);
    }
}
