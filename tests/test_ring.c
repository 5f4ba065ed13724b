/* SPDX-License-Identifier: MIT */
#include "dsp/ring.h"

#include <pthread.h>
#include <sched.h>

#include "tests/test.h"

/* Sample number i of every test's source: exact in a float. */
static float sample(uint64_t i)
{
    return (float)(i & 0xffffff);
}

static void fill(float *x, uint64_t first, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = sample(first + i);
    }
}

static void ring_gives_back_what_was_written_across_the_seam(void **state)
{
    (void)state;
    struct ring *ring = ring_create(100);
    assert_int_equal(ring_room(ring), 128);
    float in[90], out[90];
    for (int i = 0; i < 50; i++) {
        fill(in, (uint64_t)i * 90, 90);
        assert_int_equal(ring_write(ring, in, 90), 90);
        assert_int_equal(ring_fill(ring), 90);
        assert_int_equal(ring_read(ring, out, 90), 90);
        assert_memory_equal(in, out, sizeof in);
    }
    assert_int_equal(ring_position(ring), 50 * 90);
    assert_int_equal(ring_lost(ring), 0);
    ring_destroy(ring);
}

static void ring_reads_all_or_nothing_and_skips_what_there_is(void **state)
{
    (void)state;
    struct ring *ring = ring_create(8);
    float in[5] = {1, 2, 3, 4, 5}, out[5] = {0};
    ring_write(ring, in, 5);
    assert_int_equal(ring_read(ring, out, 6), 0);
    assert_int_equal(ring_skip(ring, 3), 3);
    assert_int_equal(ring_read(ring, out, 2), 2);
    assert_close(out[0], 4, 0);
    assert_int_equal(ring_skip(ring, 3), 0);
    ring_destroy(ring);
}

static void ring_takes_one_channel_of_interleaved_samples(void **state)
{
    (void)state;
    struct ring *ring = ring_create(4);
    const float in[6] = {0, 10, 1, 11, 2, 12};
    float out[3];
    assert_int_equal(ring_write_strided(ring, in + 1, 2, 3), 3);
    assert_int_equal(ring_read(ring, out, 3), 3);
    assert_close(out[2], 12, 0);
    ring_destroy(ring);
}

static void ring_drops_and_counts_when_full_and_says_where(void **state)
{
    (void)state;
    struct ring *ring = ring_create(8);
    float in[6], out[8];
    fill(in, 0, 6);
    assert_int_equal(ring_write(ring, in, 6), 6);
    fill(in, 6, 6);
    assert_int_equal(ring_write(ring, in, 6), 2); /* 8..11 are lost */
    fill(in, 12, 3);
    assert_int_equal(ring_write(ring, in, 3), 0); /* and 12..14 at the same place */
    assert_int_equal(ring_lost(ring), 7);

    assert_int_equal(ring_read(ring, out, 8), 8);
    assert_int_equal(ring_position(ring), 8); /* the hole lies after these */
    fill(in, 15, 3);
    ring_write(ring, in, 3);
    assert_int_equal(ring_read(ring, out, 3), 3);
    assert_close(out[0], 15, 0);
    assert_int_equal(ring_position(ring), 18);
    ring_destroy(ring);
}

static void ring_tells_more_holes_than_it_can_note_late_but_tells_them(void **state)
{
    (void)state;
    struct ring *ring = ring_create(256);
    float x[257], in = 0;
    memset(x, 0, sizeof x);
    ring_write(ring, x, 256);
    uint64_t written = 256;
    for (int i = 0; i < 100; i++) { /* a hole after every sample, none of them passed by ring_position */
        ring_write(ring, &in, 1);
        assert_int_equal(ring_skip(ring, 1), 1);
        written += ring_write(ring, &in, 1);
    }
    assert_int_equal(ring_lost(ring), 100);
    assert_int_equal(ring_skip(ring, 256), 256);
    assert_true(ring_position(ring) <= written + 100);
    ring_write(ring, &in, 1);
    ring_write(ring, &in, 1);
    assert_int_equal(ring_skip(ring, 2), 2);
    assert_int_equal(ring_position(ring), written + 2 + 100);
    ring_destroy(ring);
}

enum { TOTAL = 2000000, LARGEST = 300 };

/* A device that doesn't wait: what doesn't fit is gone. */
static void *write_all(void *arg)
{
    struct ring *ring = arg;
    uint64_t seed = 7;
    float x[LARGEST];
    for (uint64_t i = 0; i < TOTAL;) {
        size_t n = 1 + (size_t)(test_bits(&seed) % LARGEST);
        n = n < TOTAL - i ? n : (size_t)(TOTAL - i);
        fill(x, i, n);
        ring_write(ring, x, n);
        i += n;
        if (test_bits(&seed) % 8 == 0) {
            sched_yield();
        }
    }
    float last = -1; /* the end, when there is room for it */
    while (ring_room(ring) == 0) {
        sched_yield();
    }
    ring_write(ring, &last, 1);
    return NULL;
}

/* Every sample read is the one its position says; samples read, told missing and counted lost add up. */
static void ring_keeps_order_and_count_between_two_threads(void **state)
{
    (void)state;
    struct ring *ring = ring_create(1024);
    pthread_t writer;
    assert_int_equal(pthread_create(&writer, NULL, write_all, ring), 0);
    uint64_t taken = 0, seed = 9;
    for (float x[LARGEST];;) {
        size_t n = 1 + (size_t)(test_bits(&seed) % LARGEST);
        size_t fill = ring_fill(ring);
        n = fill == 0 ? 1 : n < fill ? n : fill;
        if (ring_read(ring, x, n) == 0) {
            sched_yield();
            continue;
        }
        taken += n;
        if (x[n - 1] < 0) {
            break;
        }
        assert_close(x[n - 1], sample(ring_position(ring) - 1), 0);
    }
    pthread_join(writer, NULL);
    assert_int_equal(ring_position(ring), TOTAL + 1);
    assert_int_equal(taken + ring_lost(ring), TOTAL + 1);
    ring_destroy(ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ring_gives_back_what_was_written_across_the_seam),
        cmocka_unit_test(ring_reads_all_or_nothing_and_skips_what_there_is),
        cmocka_unit_test(ring_takes_one_channel_of_interleaved_samples),
        cmocka_unit_test(ring_drops_and_counts_when_full_and_says_where),
        cmocka_unit_test(ring_tells_more_holes_than_it_can_note_late_but_tells_them),
        cmocka_unit_test(ring_keeps_order_and_count_between_two_threads),
    };
    return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
