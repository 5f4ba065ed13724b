/* SPDX-License-Identifier: MIT */
#include "daemon/rows.h"

#include <pthread.h>

#include "tests/test.h"

enum { VALUES = 3, ROOM = 8 };

/* The i-th of hops of 10 ticks each. */
static bool put(struct rows *rows, int i)
{
    const float values[VALUES] = {(float)i, (float)-i, 1};
    struct cadence_hop hop = {.values = values, .elapsed = 1, .from = (uint64_t)i * 10, .to = (uint64_t)i * 10 + 10};
    return rows_put(rows, &hop, 1000 + i);
}

static void rows_come_out_as_they_went_in(void **state)
{
    (void)state;
    struct rows *rows = rows_create(VALUES, ROOM);
    for (int i = 0; i < 5 * ROOM; i++) {
        assert_null(rows_front(rows));
        assert_true(put(rows, i));
        const struct row *row = rows_front(rows);
        assert_int_equal(row->arrived, 1000 + i);
        assert_int_equal(row->hop.from, 10 * i);
        assert_close(row->hop.values[1], -i, 0);
        assert_false(row->hop.gap);
        rows_pass(rows);
    }
    assert_false(rows_ended(rows));
    rows_end(rows);
    assert_true(rows_ended(rows));
    rows_destroy(rows);
}

static void what_finds_no_room_becomes_elapsed_time(void **state)
{
    (void)state;
    struct rows *rows = rows_create(VALUES, ROOM);
    for (int i = 0; i < ROOM + 5; i++) {
        assert_int_equal(put(rows, i), i < ROOM);
    }
    assert_true(rows_full(rows));
    rows_pass(rows);
    assert_true(put(rows, ROOM + 5));
    for (int i = 1; i < ROOM; i++) {
        assert_close(rows_front(rows)->hop.elapsed, 1, 0);
        rows_pass(rows);
    }
    const struct row *row = rows_front(rows);
    assert_close(row->hop.elapsed, 6, 0);
    assert_int_equal(row->why, COUNTER_RING_FULL);
    assert_true(row->hop.gap);
    assert_int_equal(row->hop.from, 10 * (ROOM + 5));
    rows_pass(rows);
    assert_true(put(rows, ROOM + 6));
    assert_close(rows_front(rows)->hop.elapsed, 1, 0); /* told once */
    assert_false(rows_front(rows)->hop.gap);
    rows_destroy(rows);
}

enum { MANY = 200000 };

static void *write_many(void *arg)
{
    for (int i = 0; i < MANY; i++) {
        put(arg, i);
    }
    rows_end(arg);
    return NULL;
}

/* Two threads: whatever is lost, time adds up. */
static void no_time_is_lost_between_threads(void **state)
{
    (void)state;
    struct rows *rows = rows_create(VALUES, ROOM);
    pthread_t writer;
    assert_int_equal(pthread_create(&writer, NULL, write_many, rows), 0);
    double elapsed = 0;
    uint64_t to = 0;
    while (!rows_ended(rows)) {
        const struct row *row = rows_front(rows);
        if (row) {
            elapsed += (double)row->hop.elapsed;
            assert_close(row->hop.elapsed, (double)(row->hop.to - to) / 10, 0);
            assert_int_equal(row->hop.gap, row->hop.from > to);
            assert_close(row->hop.values[0], (float)(row->hop.from / 10), 0);
            to = row->hop.to;
            rows_pass(rows);
        }
    }
    pthread_join(writer, NULL);
    assert_close(elapsed, (double)to / 10, 0);
    rows_destroy(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_come_out_as_they_went_in),
        cmocka_unit_test(what_finds_no_room_becomes_elapsed_time),
        cmocka_unit_test(no_time_is_lost_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
