/* SPDX-License-Identifier: MIT */
#ifndef TESTS_MEMORY_SINK_H
#define TESTS_MEMORY_SINK_H

/* A sink that keeps what it gets. */

#include <assert.h>

#include "daemon/sink.h"
#include "tests/test.h"

struct memory_sink {
    struct sink sink;
    float *samples; /* at their position; of scores the second label's */
    unsigned flags, hole_flags; /* of all hops together; of the last that told a hole */
    struct delivery last;
    size_t size, n_hops, given, room;
    struct hole hole, holes; /* the last; `holes.n`: how many were told */
    bool ended;
    uint64_t length;
    void (*seen)(const struct memory_sink *memory); /* called after each hop and the end; NULL: nobody asks */
};

static inline size_t memory_room(const struct sink *sink, int channel)
{
    (void)channel;
    return ((const struct memory_sink *)sink)->room;
}

static inline void memory_keep_hole(struct memory_sink *memory, const struct hole *hole)
{
    if (hole->to > hole->from) {
        memory->hole = *hole;
        memory->holes.n++;
    }
}

static inline void memory_tell(const struct memory_sink *memory)
{
    if (memory->seen) {
        memory->seen(memory);
    }
}

static inline void memory_write(struct sink *sink, int channel, const struct delivery *hop)
{
    (void)channel;
    struct memory_sink *memory = (struct memory_sink *)sink;
    assert(memory->size == 0 || hop->s0 + hop->n <= memory->size);
    for (size_t i = 0; memory->size > 0 && i < hop->n; i++) {
        memory->samples[hop->s0 + i] = hop->samples ? hop->samples[i] : hop->scores[1];
    }
    memory->flags |= hop->flags;
    memory->hole_flags = hop->hole.to > hop->hole.from ? hop->flags : memory->hole_flags;
    memory->last = *hop;
    memory->given += hop->n;
    memory->room -= hop->n < memory->room ? hop->n : memory->room;
    memory->n_hops++;
    memory_keep_hole(memory, &hop->hole);
    memory_tell(memory);
}

static inline void memory_end(struct sink *sink, int channel, const struct hole *hole, uint64_t length)
{
    (void)channel;
    struct memory_sink *memory = (struct memory_sink *)sink;
    memory->ended = true;
    memory->length = length;
    memory_keep_hole(memory, hole);
    memory_tell(memory);
}

static const struct sink_ops memory_ops = {.name = "memory", .room = memory_room, .write = memory_write, .end = memory_end};

/* size 0: what comes is counted, and not kept. */
static inline struct memory_sink *memory_create(size_t size)
{
    struct memory_sink *memory = calloc(1, sizeof *memory);
    memory->sink.ops = &memory_ops;
    memory->samples = calloc(size + 1, sizeof(float));
    memory->size = size;
    memory->room = SIZE_MAX / 2;
    return memory;
}

static inline void memory_destroy(struct memory_sink *memory)
{
    free(memory->samples);
    free(memory);
}

#endif
