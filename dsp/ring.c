/* SPDX-License-Identifier: MIT */
#include "dsp/ring.h"

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { CACHE_LINE = 64, HOLES = 32 };

/* `lost` samples in all are missing before sample `at`. */
struct hole {
    uint64_t at, lost;
};

/* A hole's fields need no atomics: the writer changes a hole only while `written` still equals its `at`, the reader
 * looks at it only once it has taken sample `at`, and taking that sample acquired a `written` beyond it. */
struct ring {
    alignas(CACHE_LINE) _Atomic uint64_t written; /* the writer's line */
    _Atomic uint64_t lost;
    _Atomic uint64_t holes_written;
    uint64_t lost_told;                         /* how much of `lost` stands in a hole */
    alignas(CACHE_LINE) _Atomic uint64_t taken; /* the reader's line */
    _Atomic uint64_t holes_taken;
    uint64_t lost_passed;
    struct hole holes[HOLES];
    alignas(CACHE_LINE) size_t mask; /* constant */
    alignas(CACHE_LINE) float samples[];
};

/* The power of two at or above `capacity`; 0: there is none that fits into memory. */
static size_t size_for(size_t capacity)
{
    size_t size = 1;
    while (size > 0 && size < capacity) {
        size = size > SIZE_MAX / sizeof(float) / 4 ? 0 : 2 * size;
    }
    return size;
}

size_t ring_bytes(size_t capacity)
{
    size_t size = size_for(capacity);
    size_t samples = (size * sizeof(float) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return size > 0 ? sizeof(struct ring) + samples : 0;
}

struct ring *ring_place(void *memory, size_t capacity)
{
    struct ring *ring = memory;
    memset(ring, 0, sizeof *ring);
    ring->mask = size_for(capacity) - 1;
    return ring;
}

struct ring *ring_create(size_t capacity)
{
    size_t bytes = ring_bytes(capacity);
    void *memory = bytes > 0 ? aligned_alloc(CACHE_LINE, bytes) : NULL;
    return memory ? ring_place(memory, capacity) : NULL;
}

void ring_destroy(struct ring *ring)
{
    free(ring);
}

size_t ring_size(const struct ring *ring)
{
    return ring->mask + 1;
}

size_t ring_fill(const struct ring *ring)
{
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_acquire);
    return (size_t)(written - atomic_load_explicit(&ring->taken, memory_order_relaxed));
}

size_t ring_room(const struct ring *ring)
{
    uint64_t taken = atomic_load_explicit(&ring->taken, memory_order_acquire);
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_relaxed);
    return ring->mask + 1 - (size_t)(written - taken);
}

uint64_t ring_end(const struct ring *ring)
{
    return atomic_load_explicit(&ring->written, memory_order_relaxed) + ring_lost(ring);
}

/* Tell the reader what is missing before sample `at`, the next one to be written. */
static void note_hole(struct ring *ring, uint64_t at)
{
    uint64_t lost = atomic_load_explicit(&ring->lost, memory_order_relaxed);
    if (ring->lost_told == lost) {
        return;
    }
    uint64_t n = atomic_load_explicit(&ring->holes_written, memory_order_relaxed);
    struct hole *last = &ring->holes[(n - 1) % HOLES];
    if (n > 0 && last->at == at) {
        last->lost = lost;
    } else if (n - atomic_load_explicit(&ring->holes_taken, memory_order_acquire) < HOLES) {
        ring->holes[n % HOLES] = (struct hole){.at = at, .lost = lost};
        atomic_store_explicit(&ring->holes_written, n + 1, memory_order_release);
    } else {
        return; /* no room to say so now: the next write tries again */
    }
    ring->lost_told = lost;
}

size_t ring_write_strided(struct ring *ring, const float *samples, size_t step, size_t n)
{
    size_t room = ring_room(ring);
    size_t fits = n < room ? n : room;
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_relaxed);
    for (size_t i = 0; i < fits; i++) {
        ring->samples[(written + i) & ring->mask] = samples[i * step];
    }
    atomic_store_explicit(&ring->written, written + fits, memory_order_release);
    if (fits < n) {
        atomic_fetch_add_explicit(&ring->lost, n - fits, memory_order_relaxed);
    }
    note_hole(ring, written + fits);
    return fits;
}

size_t ring_write(struct ring *ring, const float *samples, size_t n)
{
    return ring_write_strided(ring, samples, 1, n);
}

/* Leave n waiting samples behind. */
static void take(struct ring *ring, size_t n)
{
    uint64_t taken = atomic_load_explicit(&ring->taken, memory_order_relaxed);
    atomic_store_explicit(&ring->taken, taken + n, memory_order_release);
}

size_t ring_read(struct ring *ring, float *samples, size_t n)
{
    if (ring_fill(ring) < n) {
        return 0;
    }
    size_t start = (size_t)atomic_load_explicit(&ring->taken, memory_order_relaxed) & ring->mask;
    size_t first = ring->mask + 1 - start;
    first = first < n ? first : n;
    memcpy(samples, ring->samples + start, first * sizeof *samples);
    memcpy(samples + first, ring->samples, (n - first) * sizeof *samples);
    take(ring, n);
    return n;
}

size_t ring_skip(struct ring *ring, size_t n)
{
    size_t fill = ring_fill(ring);
    n = n < fill ? n : fill;
    take(ring, n);
    return n;
}

uint64_t ring_position(struct ring *ring)
{
    uint64_t taken = atomic_load_explicit(&ring->taken, memory_order_relaxed);
    uint64_t passed = atomic_load_explicit(&ring->holes_taken, memory_order_relaxed);
    uint64_t n = atomic_load_explicit(&ring->holes_written, memory_order_acquire);
    while (passed < n && ring->holes[passed % HOLES].at < taken) {
        ring->lost_passed = ring->holes[passed % HOLES].lost;
        passed++;
    }
    atomic_store_explicit(&ring->holes_taken, passed, memory_order_release);
    return taken + ring->lost_passed;
}

uint64_t ring_lost(const struct ring *ring)
{
    return atomic_load_explicit(&ring->lost, memory_order_relaxed);
}
