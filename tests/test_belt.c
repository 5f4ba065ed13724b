/* SPDX-License-Identifier: MIT */
#include "clients/belt.h"

#include <pthread.h>
#include <time.h>

#include "tests/test.h"

enum { BLOCKS = 3, VALUES = 64, MANY = 20000 };

static void *put_many(void *arg)
{
    struct belt *belt = arg;
    uint64_t seed = 1;
    float next = 0;
    for (int i = 0; i < MANY; i++) {
        float *room = belt_room(belt);
        size_t n = test_bits(&seed) % (VALUES + 1);
        for (size_t k = 0; k < n; k++) {
            room[k] = next;
            next = next < 1e6f ? next + 1 : 0;
        }
        belt_put(belt, n);
    }
    belt_stop(belt);
    return NULL;
}

static void what_is_put_is_taken_in_order_and_whole(void **state)
{
    (void)state;
    struct belt *belt = belt_create(BLOCKS, VALUES);
    pthread_t thread;
    size_t n;
    int blocks = 0;
    float next = 0;
    pthread_create(&thread, NULL, put_many, belt);
    for (const float *samples; (samples = belt_take(belt, &n)); belt_give_back(belt), blocks++) {
        for (size_t k = 0; k < n; k++) {
            assert_true(samples[k] == next);
            next = next < 1e6f ? next + 1 : 0;
        }
    }
    pthread_join(thread, NULL);
    assert_int_equal(blocks, MANY);
    belt_destroy(belt);
}

static void what_was_put_before_the_stop_is_still_taken(void **state)
{
    (void)state;
    struct belt *belt = belt_create(BLOCKS, VALUES);
    size_t n;
    for (size_t i = 1; i <= 2; i++) {
        *belt_room(belt) = (float)i;
        belt_put(belt, i);
    }
    belt_stop(belt);
    belt_stop(belt);
    assert_null(belt_room(belt));
    for (size_t i = 1; i <= 2; i++) {
        assert_true(*belt_take(belt, &n) == (float)i);
        assert_int_equal(n, i);
        belt_give_back(belt);
    }
    assert_null(belt_take(belt, &n));
    assert_int_equal(n, 0);
    belt_destroy(belt);
}

static void *stop_soon(void *belt)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    belt_stop(belt);
    return NULL;
}

static void a_stop_frees_who_waits(void **state)
{
    (void)state;
    for (int full = 0; full < 2; full++) {
        struct belt *belt = belt_create(BLOCKS, VALUES);
        pthread_t thread;
        size_t n;
        for (int i = 0; full && i < BLOCKS; i++) {
            belt_room(belt);
            belt_put(belt, 0);
        }
        pthread_create(&thread, NULL, stop_soon, belt);
        assert_null(full ? belt_room(belt) : belt_take(belt, &n));
        pthread_join(thread, NULL);
        belt_destroy(belt);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_put_is_taken_in_order_and_whole),
        cmocka_unit_test(what_was_put_before_the_stop_is_still_taken),
        cmocka_unit_test(a_stop_frees_who_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
