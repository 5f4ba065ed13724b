/* SPDX-License-Identifier: MIT */
#include "daemon/feed.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "dsp/ring.h"

/* One mark a block: blocks of at least 32 samples never run out of marks before samples. */
enum { MARK_SAMPLES = 32, MARKS_MIN = 64 };

struct mark {
    uint64_t at;     /* samples written before the block */
    uint64_t end;    /* ... and after it */
    uint64_t hole;   /* samples missing right before it */
    enum counter why;
    int64_t arrived;
};

struct feed {
    struct ring *ring;
    struct mark *marks;
    size_t marks_mask;
    /* The writer's. */
    uint64_t position;
    uint64_t hole; /* missing since the last mark */
    enum counter why;
    _Atomic uint64_t marked;
    /* The reader's. */
    _Alignas(64) _Atomic uint64_t passed;
    uint64_t taken;
    struct mark block; /* the one being read */
    /* Written before `ended` is set, read after it was seen. */
    uint64_t last_hole;
    atomic_bool ended;
};

struct feed *feed_create(size_t capacity)
{
    struct feed *feed = aligned_alloc(64, sizeof *feed);
    if (!feed) {
        return NULL;
    }
    *feed = (struct feed){.ring = ring_create(capacity)};
    size_t marks = MARKS_MIN;
    while (marks < capacity / MARK_SAMPLES) {
        marks *= 2;
    }
    feed->marks = calloc(marks, sizeof *feed->marks);
    feed->marks_mask = marks - 1;
    if (!feed->ring || !feed->marks) {
        feed_destroy(feed);
        return NULL;
    }
    return feed;
}

void feed_destroy(struct feed *feed)
{
    if (feed) {
        ring_destroy(feed->ring);
        free(feed->marks);
        free(feed);
    }
}

size_t feed_room(const struct feed *feed)
{
    uint64_t marked = atomic_load_explicit(&feed->marked, memory_order_relaxed);
    uint64_t passed = atomic_load_explicit(&feed->passed, memory_order_acquire);
    return marked - passed > feed->marks_mask ? 0 : ring_room(feed->ring);
}

size_t feed_write(struct feed *feed, const float *samples, size_t step, size_t n, int64_t arrived)
{
    size_t room = feed_room(feed);
    size_t fits = n < room ? n : room;
    if (fits > 0) {
        /* The mark first: samples the reader can see always have theirs. */
        uint64_t marked = atomic_load_explicit(&feed->marked, memory_order_relaxed);
        feed->marks[marked & feed->marks_mask] =
            (struct mark){feed->position, feed->position + fits, feed->hole, feed->why, arrived};
        atomic_store_explicit(&feed->marked, marked + 1, memory_order_release);
        feed->hole = 0;
        ring_write_strided(feed->ring, samples, step, fits);
        feed->position += fits;
    }
    feed_skip(feed, n - fits);
    return fits;
}

void feed_lose(struct feed *feed, uint64_t n, enum counter why)
{
    feed->hole += n;
    feed->why = n > 0 ? why : feed->why;
}

void feed_skip(struct feed *feed, uint64_t n)
{
    feed_lose(feed, n, COUNTER_RING_FULL);
}

void feed_end(struct feed *feed)
{
    feed->last_hole = feed->hole;
    atomic_store_explicit(&feed->ended, true, memory_order_release);
}

/* Pass the marks the reader has come to; gives the hole before the next sample. */
static uint64_t pass_marks(struct feed *feed, uint64_t marked)
{
    uint64_t hole = 0, passed = atomic_load_explicit(&feed->passed, memory_order_relaxed);
    while (passed < marked && feed->marks[passed & feed->marks_mask].at <= feed->taken) {
        feed->block = feed->marks[passed++ & feed->marks_mask];
        hole += feed->block.hole;
    }
    atomic_store_explicit(&feed->passed, passed, memory_order_release);
    return hole;
}

size_t feed_read(struct feed *feed, float *samples, size_t n, struct feed_note *note)
{
    bool ended = atomic_load_explicit(&feed->ended, memory_order_acquire);
    size_t fill = ring_fill(feed->ring); /* before the marks: each of these samples has its mark by now */
    uint64_t marked = atomic_load_explicit(&feed->marked, memory_order_acquire);
    n = n < fill ? n : fill;
    *note = (struct feed_note){0};
    if (n > 0) {
        note->hole = pass_marks(feed, marked);
        note->why = feed->block.why;
        uint64_t block = feed->block.end - feed->taken;
        n = n < block ? n : (size_t)block;
        ring_read(feed->ring, samples, n);
        feed->taken += n;
        note->rest = block - n;
    } else if (ended && fill == 0) {
        note->hole = feed->last_hole;
        note->why = feed->why;
        feed->last_hole = 0;
    }
    note->arrived = feed->block.arrived;
    return n;
}

bool feed_ended(struct feed *feed)
{
    return atomic_load_explicit(&feed->ended, memory_order_acquire) && ring_fill(feed->ring) == 0 && feed->last_hole == 0;
}

size_t feed_fill(const struct feed *feed)
{
    return ring_fill(feed->ring);
}

double feed_share(const struct feed *feed)
{
    size_t fill = ring_fill(feed->ring), size = ring_size(feed->ring);
    return fill <= size ? (double)fill / (double)size : 0; /* the reader went on between the two positions: as good as empty */
}
