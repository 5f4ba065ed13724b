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

/* What another thread asks of a running worker; on that thread's stack until it is done. */
struct change {
    struct change *next;
    struct item item; /* serve NULL: to be removed */
    bool done, failed;
};

struct worker {
    struct waker waker;
    pthread_t thread;
    bool running;
    atomic_bool stopping;
    struct item *items; /* the thread's while it runs */
    int n;
    pthread_mutex_t lock; /* of changes, and of whether the thread runs; never held while something is served */
    pthread_cond_t changed;
    struct change *changes;
};

struct worker *worker_create(void)
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker && waker_init(&worker->waker) < 0) {
        free(worker);
        return NULL;
    }
    if (worker) {
        pthread_mutex_init(&worker->lock, NULL);
        pthread_cond_init(&worker->changed, NULL);
    }
    return worker;
}

static int add(struct worker *worker, struct item item)
{
    struct item *items = realloc(worker->items, (size_t)(worker->n + 1) * sizeof *items);
    if (!items) {
        return -1;
    }
    worker->items = items;
    items[worker->n++] = item;
    return 0;
}

static int drop(struct worker *worker, const void *item)
{
    for (int i = 0; i < worker->n; i++) {
        if (worker->items[i].item == item) {
            worker->items[i].serve(worker->items[i].item, clock_now());
            worker->items[i] = worker->items[--worker->n];
            break;
        }
    }
    return 0;
}

static void apply(struct worker *worker, struct change *change)
{
    change->failed = (change->item.serve ? add(worker, change->item) : drop(worker, change->item.item)) < 0;
    change->done = true;
}

/* Between two rounds. */
static void apply_changes(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    struct change *changes = worker->changes;
    worker->changes = NULL;
    pthread_mutex_unlock(&worker->lock);
    for (struct change *change = changes, *next; change; change = next) {
        next = change->next; /* once done, it is gone */
        struct change applied = *change;
        apply(worker, &applied);
        pthread_mutex_lock(&worker->lock);
        *change = applied;
        pthread_cond_broadcast(&worker->changed);
        pthread_mutex_unlock(&worker->lock);
    }
}

static int ask(struct worker *worker, struct item item)
{
    struct change change = {.item = item};
    pthread_mutex_lock(&worker->lock);
    if (!worker->running) {
        apply(worker, &change);
    } else {
        change.next = worker->changes;
        worker->changes = &change;
        waker_wake(&worker->waker);
    }
    while (!change.done) {
        pthread_cond_wait(&worker->changed, &worker->lock);
    }
    pthread_mutex_unlock(&worker->lock);
    return change.failed ? -1 : 0;
}

int worker_add(struct worker *worker, int64_t (*serve)(void *item, int64_t now), void *item)
{
    return ask(worker, (struct item){serve, item});
}

void worker_remove(struct worker *worker, void *item)
{
    ask(worker, (struct item){.item = item});
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
        apply_changes(worker);
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
    worker->running = true;
    if (pthread_create(&worker->thread, NULL, work, worker) != 0) {
        worker->running = false;
        return -1;
    }
    return 0;
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
        pthread_mutex_lock(&worker->lock);
        worker->running = false;
        pthread_mutex_unlock(&worker->lock);
        apply_changes(worker); /* asked for after its last look */
    }
}

void worker_destroy(struct worker *worker)
{
    if (worker) {
        worker_stop(worker);
        waker_finish(&worker->waker);
        pthread_mutex_destroy(&worker->lock);
        pthread_cond_destroy(&worker->changed);
        free(worker->items);
        free(worker);
    }
}
