/* SPDX-License-Identifier: MIT */
#include "daemon/source.h"

#include "daemon/pull.h"
#include "daemon/socket.h"
#include "model/refuse.h"

int source_thread_init(struct source *source, struct ssm_error *err)
{
    sem_init(&source->go, 0, 0);
    return waker_init(&source->stop) < 0 ? refuse_memory(err) : 0;
}

int source_thread_start(struct source *source, void *(*run)(void *), const char *what, struct ssm_error *err)
{
    source->running = pthread_create(&source->thread, NULL, run, source) == 0;
    return source->running ? 0 : refuse(err, 71, "can't start a thread for %s", what);
}

void source_thread_wait(struct source *source)
{
    char none;
    while (sem_wait(&source->go) != 0) { /* a signal came */
    }
    while (source->follows && source_receive(source, &none, 0) >= 0) {
    }
}

void source_thread_finish(struct source *source)
{
    if (source->running) {
        pthread_join(source->thread, NULL);
    }
    socket_place_destroy(source->place);
    pull_close(source->pull);
    waker_finish(&source->stop);
    sem_destroy(&source->go);
}

long source_receive(struct source *source, void *bytes, size_t size)
{
    return atomic_load(&source->stopping) ? -1 : pull_receive(source->pull, bytes, size);
}

int source_listen(struct source *source, struct ssm_error *err)
{
    return source->pull ? pull_start(source->pull, err) : 0;
}

void source_begin(struct source *source)
{
    sem_post(&source->go);
}

void source_stop(struct source *source)
{
    atomic_store(&source->stopping, true);
    sem_post(&source->go);
    waker_wake(&source->stop);
}
