/* SPDX-License-Identifier: MIT */
#include "clients/belt.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

struct belt {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int blocks;
    size_t size;          /* values in a block             */
    uint64_t put, taken;  /* blocks since the start        */
    bool stopped;
    float *samples;       /* (blocks, size)                */
    size_t *values;       /* (blocks)  how full each one is */
};

struct belt *belt_create(int blocks, size_t values)
{
    struct belt *belt = calloc(1, sizeof *belt);
    if (!belt) {
        return NULL;
    }
    pthread_mutex_init(&belt->mutex, NULL);
    pthread_cond_init(&belt->changed, NULL);
    belt->blocks = blocks;
    belt->size = values;
    belt->samples = malloc((size_t)blocks * values * sizeof *belt->samples);
    belt->values = calloc((size_t)blocks, sizeof *belt->values);
    if (!belt->samples || !belt->values) {
        belt_destroy(belt);
        return NULL;
    }
    return belt;
}

void belt_destroy(struct belt *belt)
{
    if (belt) {
        pthread_mutex_destroy(&belt->mutex);
        pthread_cond_destroy(&belt->changed);
        free(belt->samples);
        free(belt->values);
        free(belt);
    }
}

static size_t place(const struct belt *belt, uint64_t block)
{
    return (size_t)(block % (uint64_t)belt->blocks);
}

float *belt_room(struct belt *belt)
{
    pthread_mutex_lock(&belt->mutex);
    while (!belt->stopped && belt->put - belt->taken == (uint64_t)belt->blocks) {
        pthread_cond_wait(&belt->changed, &belt->mutex);
    }
    float *room = belt->stopped ? NULL : belt->samples + place(belt, belt->put) * belt->size;
    pthread_mutex_unlock(&belt->mutex);
    return room;
}

void belt_put(struct belt *belt, size_t values)
{
    pthread_mutex_lock(&belt->mutex);
    belt->values[place(belt, belt->put++)] = values;
    pthread_cond_broadcast(&belt->changed);
    pthread_mutex_unlock(&belt->mutex);
}

float *belt_take(struct belt *belt, size_t *values)
{
    pthread_mutex_lock(&belt->mutex);
    while (!belt->stopped && belt->put == belt->taken) {
        pthread_cond_wait(&belt->changed, &belt->mutex);
    }
    size_t at = place(belt, belt->taken);
    float *samples = belt->put == belt->taken ? NULL : belt->samples + at * belt->size;
    *values = samples ? belt->values[at] : 0;
    pthread_mutex_unlock(&belt->mutex);
    return samples;
}

void belt_give_back(struct belt *belt)
{
    pthread_mutex_lock(&belt->mutex);
    belt->taken++;
    pthread_cond_broadcast(&belt->changed);
    pthread_mutex_unlock(&belt->mutex);
}

void belt_stop(struct belt *belt)
{
    pthread_mutex_lock(&belt->mutex);
    belt->stopped = true;
    pthread_cond_broadcast(&belt->changed);
    pthread_mutex_unlock(&belt->mutex);
}
