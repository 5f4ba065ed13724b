/* SPDX-License-Identifier: MIT */
#include "daemon/rows.h"

#include <stdlib.h>
#include <string.h>

struct rows {
    size_t values, capacity;
    struct row *queue; /* (capacity)         */
    float *floats;     /* (capacity, values) */
    /* The writer's. */
    float lost_elapsed; /* of hops lost since the last that was put */
    bool lost;          /* some were */
    _Atomic uint64_t put;
    atomic_bool ended;
    /* The reader's. */
    _Alignas(64) _Atomic uint64_t passed;
};

struct rows *rows_create(size_t values, size_t capacity)
{
    struct rows *rows = aligned_alloc(64, sizeof *rows);
    if (!rows) {
        return NULL;
    }
    *rows = (struct rows){.values = values, .capacity = capacity};
    rows->queue = calloc(capacity, sizeof *rows->queue);
    rows->floats = calloc(capacity * values, sizeof *rows->floats);
    if (!rows->queue || !rows->floats) {
        rows_destroy(rows);
        return NULL;
    }
    return rows;
}

void rows_destroy(struct rows *rows)
{
    if (rows) {
        free(rows->queue);
        free(rows->floats);
        free(rows);
    }
}

bool rows_full(const struct rows *rows)
{
    return atomic_load_explicit(&rows->put, memory_order_relaxed) -
               atomic_load_explicit(&rows->passed, memory_order_acquire) ==
           rows->capacity;
}

size_t rows_waiting(const struct rows *rows)
{
    return (size_t)(atomic_load_explicit(&rows->put, memory_order_acquire) -
                    atomic_load_explicit(&rows->passed, memory_order_relaxed));
}

bool rows_put(struct rows *rows, const struct cadence_hop *hop, int64_t arrived)
{
    if (rows_full(rows)) {
        rows->lost_elapsed += hop->elapsed;
        rows->lost = true;
        return false;
    }
    uint64_t put = atomic_load_explicit(&rows->put, memory_order_relaxed);
    float *values = rows->floats + put % rows->capacity * rows->values;
    struct row *row = &rows->queue[put % rows->capacity];
    memcpy(values, hop->values, rows->values * sizeof *values);
    *row = (struct row){.hop = *hop, .arrived = arrived,
                        .why = rows->lost ? COUNTER_RING_FULL : COUNTER_MISSING_READING};
    row->hop.values = values;
    row->hop.elapsed += rows->lost_elapsed;
    row->hop.gap = row->hop.gap || rows->lost;
    rows->lost_elapsed = 0;
    rows->lost = false;
    atomic_store_explicit(&rows->put, put + 1, memory_order_release);
    return true;
}

void rows_end(struct rows *rows)
{
    atomic_store_explicit(&rows->ended, true, memory_order_release);
}

const struct row *rows_front(const struct rows *rows)
{
    uint64_t passed = atomic_load_explicit(&rows->passed, memory_order_relaxed);
    bool empty = atomic_load_explicit(&rows->put, memory_order_acquire) == passed;
    return empty ? NULL : &rows->queue[passed % rows->capacity];
}

void rows_pass(struct rows *rows)
{
    atomic_fetch_add_explicit(&rows->passed, 1, memory_order_release);
}

bool rows_ended(const struct rows *rows)
{
    return atomic_load_explicit(&rows->ended, memory_order_acquire) && !rows_front(rows);
}
