/* SPDX-License-Identifier: MIT */
#include "daemon/feed.h"

#include <pthread.h>
#include <sched.h>

#include "tests/test.h"

static void feed_tells_of_a_hole_to_the_sample(void **state)
{
    (void)state;
    struct feed *feed = feed_create(64);
    float in[100], out[100];
    struct feed_note note;
    for (int i = 0; i < 100; i++) {
        in[i] = (float)i;
    }
    assert_int_equal(feed_write(feed, in, 1, 50, 1000), 50);
    assert_int_equal(feed_write(feed, in + 50, 1, 50, 2000), 14);
    assert_int_equal(feed_write(feed, in, 1, 10, 3000), 0); /* 36 + 10 are missing now */
    assert_int_equal(feed_read(feed, out, 30, &note), 30);
    assert_int_equal(note.hole, 0);
    assert_int_equal(note.rest, 20);
    assert_int_equal(note.arrived, 1000);
    assert_int_equal(feed_write(feed, in + 70, 1, 30, 4000), 30);
    assert_int_equal(feed_read(feed, out, 100, &note), 20); /* never across a block */
    assert_int_equal(feed_read(feed, out, 100, &note), 14);
    assert_int_equal(note.arrived, 2000);
    assert_int_equal(note.hole, 0);
    assert_int_equal(feed_read(feed, out, 100, &note), 30);
    assert_int_equal(note.hole, 46);
    assert_int_equal(note.arrived, 4000);
    assert_true(out[0] == 70);
    feed_destroy(feed);
}

static void feed_tells_of_a_hole_at_the_very_end_once(void **state)
{
    (void)state;
    struct feed *feed = feed_create(64);
    float samples[8] = {0};
    struct feed_note note;
    feed_write(feed, samples, 1, 8, 0);
    feed_skip(feed, 5);
    feed_end(feed);
    assert_false(feed_ended(feed));
    assert_int_equal(feed_read(feed, samples, 8, &note), 8);
    assert_false(feed_ended(feed));
    assert_int_equal(feed_read(feed, samples, 8, &note), 0);
    assert_int_equal(note.hole, 5);
    assert_true(feed_ended(feed));
    assert_int_equal(feed_read(feed, samples, 8, &note), 0);
    assert_int_equal(note.hole, 0);
    feed_destroy(feed);
}

static void feed_tells_why_samples_are_missing(void **state)
{
    (void)state;
    struct feed *feed = feed_create(64);
    float samples[8] = {0};
    struct feed_note note;
    feed_lose(feed, 100, COUNTER_DEVICE_LOST);
    feed_write(feed, samples, 1, 4, 0);
    feed_skip(feed, 7);
    feed_write(feed, samples, 1, 4, 0);
    feed_lose(feed, 9, COUNTER_DEVICE_LOST);
    feed_end(feed);
    feed_read(feed, samples, 8, &note);
    assert_int_equal(note.hole, 100);
    assert_int_equal(note.why, COUNTER_DEVICE_LOST);
    feed_read(feed, samples, 8, &note);
    assert_int_equal(note.why, COUNTER_RING_FULL);
    feed_read(feed, samples, 8, &note);
    assert_int_equal(note.hole, 9);
    assert_int_equal(note.why, COUNTER_DEVICE_LOST);
    feed_destroy(feed);
}

static void feed_takes_one_channel_of_many(void **state)
{
    (void)state;
    struct feed *feed = feed_create(64);
    float in[12], out[4];
    struct feed_note note;
    for (int i = 0; i < 12; i++) {
        in[i] = (float)i;
    }
    feed_write(feed, in + 1, 3, 4, 0);
    assert_int_equal(feed_read(feed, out, 4, &note), 4);
    assert_true(out[0] == 1 && out[1] == 4 && out[2] == 7 && out[3] == 10);
    feed_destroy(feed);
}

enum { TOTAL = 400000 };

static void *write_numbers(void *arg)
{
    uint64_t seed = 3;
    float block[200];
    for (uint32_t at = 0; at < TOTAL;) {
        size_t n = test_bits(&seed) % 200 + 1;
        for (size_t i = 0; i < n; i++) {
            block[i] = (float)(at + i);
        }
        feed_write(arg, block, 1, n, at);
        at += (uint32_t)n;
        if (at % 7 == 0) {
            sched_yield();
        }
    }
    feed_end(arg);
    return NULL;
}

/* A writer that never waits and a reader on another thread: each sample is where the holes before it say. */
static void feed_keeps_count_across_threads(void **state)
{
    (void)state;
    struct feed *feed = feed_create(1024);
    pthread_t thread;
    float samples[100];
    struct feed_note note;
    uint64_t position = 0;
    pthread_create(&thread, NULL, write_numbers, feed);
    while (!feed_ended(feed)) {
        size_t n = feed_read(feed, samples, 100, &note);
        position += note.hole;
        for (size_t i = 0; i < n; i++) {
            assert_true(samples[i] == (float)(position + i));
        }
        position += n;
    }
    pthread_join(thread, NULL);
    assert_true(position >= TOTAL);
    feed_destroy(feed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(feed_tells_of_a_hole_to_the_sample),
        cmocka_unit_test(feed_tells_of_a_hole_at_the_very_end_once),
        cmocka_unit_test(feed_tells_why_samples_are_missing),
        cmocka_unit_test(feed_takes_one_channel_of_many),
        cmocka_unit_test(feed_keeps_count_across_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
