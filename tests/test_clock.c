/* SPDX-License-Identifier: MIT */
#include "dsp/clock.h"

#include <time.h>

#include "tests/test.h"

enum { RATE = 48000, BLOCK = 480 };

/* A source of known truth: `ppm` fast, its blocks arriving late by up to `jitter_ns` (mean taken off), now and then by
 * more. */
struct source {
    double ppm, jitter_ns, stall_ns;
    int64_t offset;
    uint64_t counter, seed;
};

static int64_t truth(const struct source *source, uint64_t counter)
{
    return source->offset + (int64_t)((double)counter * 1e9 / (RATE * (1 + source->ppm * 1e-6)));
}

static void run(struct source *source, struct clock *clock, int blocks)
{
    for (int i = 0; i < blocks; i++) {
        source->counter += BLOCK;
        double late = (double)test_uniform(&source->seed) * source->jitter_ns;
        if (test_bits(&source->seed) % 500 == 0) {
            late += source->stall_ns;
        }
        clock_observe(clock, source->counter, truth(source, source->counter) + (int64_t)late);
    }
}

static double off_by(const struct source *source, const struct clock *clock)
{
    return (double)(clock_time(clock, source->counter) - truth(source, source->counter));
}

static void a_steady_source_is_followed_exactly(void **state)
{
    (void)state;
    struct source source = {.offset = INT64_C(9000000000000)};
    struct clock clock;
    clock_init(&clock, RATE);
    assert_int_equal(clock_time(&clock, 5), 0);
    run(&source, &clock, 1000);
    assert_close(off_by(&source, &clock), 0, 2);
    assert_close(clock_ppm(&clock), 0, 0.01);
    assert_int_equal(clock_time(&clock, source.counter + RATE) - clock_time(&clock, source.counter), 1000000000);
}

static void rate_errors_of_a_thousand_ppm_are_found_through_jitter(void **state)
{
    (void)state;
    const double ppm[] = {-1000, -50, 0, 1.5, 1000};
    for (int i = 0; i < 5; i++) {
        struct source source = {.ppm = ppm[i], .jitter_ns = 3e6, .offset = 1000, .seed = (uint64_t)i};
        struct clock clock;
        clock_init(&clock, RATE);
        run(&source, &clock, 12000); /* two minutes */
        assert_close(clock_ppm(&clock), ppm[i], 10);
        assert_close(off_by(&source, &clock), 0, 0.5e6); /* a sixth of one arrival's error at most */
    }
}

static void the_estimated_error_holds_what_it_says(void **state)
{
    (void)state;
    const double jitter[] = {1e3, 1e5, 2e6};
    for (int j = 0; j < 3; j++) {
        struct source source = {.ppm = 200, .jitter_ns = jitter[j], .seed = 3};
        struct clock clock;
        clock_init(&clock, RATE);
        run(&source, &clock, 6000);
        double square = 0;
        for (int i = 0; i < 1000; i++) {
            run(&source, &clock, 10);
            square += off_by(&source, &clock) * off_by(&source, &clock) / 1000;
        }
        double ratio = sqrt(square) / clock_error_ns(&clock);
        assert_true(ratio > 0.3 && ratio < 2);
    }
}

static void stalls_of_one_block_hardly_move_it(void **state)
{
    (void)state;
    struct source source = {.ppm = 100, .jitter_ns = 2e5, .stall_ns = 3e8, .seed = 1};
    struct clock clock;
    clock_init(&clock, RATE);
    run(&source, &clock, 500);
    for (int i = 0; i < 10000; i++) {
        run(&source, &clock, 1);
        assert_close(off_by(&source, &clock), 0, 4e5);
    }
    assert_int_equal(clock_jumps(&clock), 0);
}

static void lost_samples_that_are_counted_disturb_nothing(void **state)
{
    (void)state;
    struct source source = {.ppm = -300, .jitter_ns = 1e5, .seed = 1};
    struct clock clock;
    clock_init(&clock, RATE);
    run(&source, &clock, 3000);
    for (int i = 0; i < 20; i++) {
        source.counter += (uint64_t)i * 10 * RATE; /* up to three minutes of silence */
        run(&source, &clock, 500);
        assert_close(off_by(&source, &clock), 0, 4e5); /* 2 ppm of rate error over three minutes */
    }
    assert_close(clock_ppm(&clock), -300, 5);
    assert_int_equal(clock_jumps(&clock), 0);
}

static void time_that_ran_on_without_samples_is_a_jump(void **state)
{
    (void)state;
    struct source source = {.ppm = 40, .jitter_ns = 1e5, .seed = 1};
    struct clock clock;
    clock_init(&clock, RATE);
    run(&source, &clock, 6000);
    source.offset += INT64_C(3600000000000); /* an hour of suspend */
    run(&source, &clock, 8);
    assert_int_equal(clock_jumps(&clock), 1);
    assert_close(off_by(&source, &clock), 0, 2e5);
    assert_close(clock_ppm(&clock), 40, 5);
    run(&source, &clock, 1000);
    assert_close(off_by(&source, &clock), 0, 1e5);
    assert_int_equal(clock_jumps(&clock), 1);
}

static void a_time_is_told_as_a_sample_too(void **state)
{
    (void)state;
    struct source source = {.ppm = 700, .jitter_ns = 1e5, .seed = 1};
    struct clock clock;
    clock_init(&clock, RATE);
    assert_int_equal(clock_count(&clock, 1000), 0);
    run(&source, &clock, 6000);
    for (uint64_t n = source.counter - RATE; n < source.counter + 100 * RATE; n += 12345) {
        assert_int_equal(clock_count(&clock, clock_time(&clock, n)), n);
    }
}

static void pairs_that_do_not_rise_are_ignored(void **state)
{
    (void)state;
    struct clock clock;
    clock_init(&clock, RATE);
    clock_observe(&clock, 480, 10000000);
    clock_observe(&clock, 480, 99000000);
    clock_observe(&clock, 100, 99000000);
    assert_int_equal(clock_time(&clock, 480), 10000000);
    assert_int_equal(clock_time(&clock, 0), 0);
}

static void a_year_of_samples_keeps_nanoseconds(void **state)
{
    (void)state;
    struct source source = {.counter = (uint64_t)RATE * 86400 * 365};
    source.offset = -truth(&source, source.counter);
    struct clock clock;
    clock_init(&clock, RATE);
    run(&source, &clock, 100);
    int64_t one = clock_time(&clock, source.counter) - clock_time(&clock, source.counter - 48);
    assert_int_equal(one, 1000000);
}

static void utc_is_the_monotonic_time_plus_the_offset(void **state)
{
    (void)state;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double utc = (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
    assert_close((double)(clock_now() + clock_utc_offset()), utc, 1e9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_steady_source_is_followed_exactly),
        cmocka_unit_test(rate_errors_of_a_thousand_ppm_are_found_through_jitter),
        cmocka_unit_test(the_estimated_error_holds_what_it_says),
        cmocka_unit_test(stalls_of_one_block_hardly_move_it),
        cmocka_unit_test(lost_samples_that_are_counted_disturb_nothing),
        cmocka_unit_test(time_that_ran_on_without_samples_is_a_jump),
        cmocka_unit_test(a_time_is_told_as_a_sample_too),
        cmocka_unit_test(pairs_that_do_not_rise_are_ignored),
        cmocka_unit_test(a_year_of_samples_keeps_nanoseconds),
        cmocka_unit_test(utc_is_the_monotonic_time_plus_the_offset),
    };
    return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
