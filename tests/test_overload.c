/* SPDX-License-Identifier: MIT */
#include "daemon/overload.h"
#include "tests/test.h"

enum { MS = 1000000 };

/* A thread that turns every 10 ms. */
struct run {
    struct overload overload;
    int64_t now;
    int lowered, raised;
    int64_t first_lowered, first_raised;
};

static struct run begin(void)
{
    struct run run = {.now = 1000 * (int64_t)MS};
    overload_init(&run.overload, run.now);
    return run;
}

static void forget(struct run *run)
{
    run->lowered = run->raised = 0;
    run->first_lowered = run->first_raised = 0;
}

/* `turns` of them, busy for so many ms each; what is late grows by `growth` ms with each. */
static void turn(struct run *run, int turns, double busy, double late, double growth)
{
    int64_t from = run->now;
    for (int i = 0; i < turns; i++) {
        run->now += 10 * MS;
        overload_note_busy(&run->overload, (int64_t)(busy * MS));
        overload_note_waiting(&run->overload, (int64_t)((late + growth * i) * MS));
        int verdict = overload_judge(&run->overload, run->now);
        run->first_lowered = verdict < 0 && run->lowered == 0 ? run->now - from : run->first_lowered;
        run->first_raised = verdict > 0 && run->raised == 0 ? run->now - from : run->first_raised;
        run->lowered -= verdict < 0 ? verdict : 0;
        run->raised += verdict > 0;
    }
}

static void what_is_in_time_stays(void **state)
{
    (void)state;
    struct run run = begin();
    turn(&run, 10000, 9.5, -1, 0);
    assert_int_equal(run.lowered, 0);
    assert_int_equal(run.raised, 0);
}

static void what_stays_late_is_lowered_after_100_ms_and_each_100_ms(void **state)
{
    (void)state;
    struct run run = begin();
    turn(&run, 100, 10, 5, 0);
    assert_in_range(run.first_lowered, 120 * MS, 160 * MS);
    assert_in_range(run.lowered, 5, 8);
}

static void a_stumble_of_50_ms_changes_nothing(void **state)
{
    (void)state;
    struct run run = begin();
    for (int i = 0; i < 20; i++) {
        turn(&run, 5, 10, 30, 0);
        turn(&run, 10, 8, -5, 0);
    }
    assert_int_equal(run.lowered, 0);
}

/* Ten times too much: a turn of several hops takes 0.8 s. */
static void a_long_turn_counts_for_several(void **state)
{
    (void)state;
    struct run run = begin();
    run.now += 800 * (int64_t)MS;
    turn(&run, 1, 810, 700, 0);
    assert_int_equal(run.lowered, 0);
    run.now += 800 * (int64_t)MS;
    turn(&run, 1, 810, 1400, 0);
    assert_int_equal(run.lowered, 8);
}

/* As if the process had been stopped. */
static void a_pause_of_a_second_changes_nothing(void **state)
{
    (void)state;
    struct run run = begin();
    for (int i = 0; i < 5; i++) {
        turn(&run, 100, 5, -5, 0);
        run.now += 1000 * (int64_t)MS;
        turn(&run, 100, 10, 1000, -10);
    }
    assert_int_equal(run.lowered, 0);
}

/* It isn't the work that makes it late. */
static void who_is_late_but_idle_has_nothing_to_give_up(void **state)
{
    (void)state;
    struct run run = begin();
    turn(&run, 200, 2, 100, 1);
    assert_int_equal(run.lowered, 0);
}

/* A second behind, and half as fast again as real time. */
static void who_catches_up_is_left_alone(void **state)
{
    (void)state;
    struct run run = begin();
    turn(&run, 200, 10, 1000, -5);
    assert_int_equal(run.lowered, 0);
    turn(&run, 100, 10, 1000, -2); /* five seconds, at this pace */
    assert_true(run.lowered > 3);
    forget(&run);
    turn(&run, 100, 10, 100, -0.5); /* would take two */
    assert_true(run.lowered > 3);
}

static void peace_of_5_s_raises_and_then_each_second(void **state)
{
    (void)state;
    struct run run = begin();
    turn(&run, 20, 10, 5, 1);
    assert_true(run.lowered > 0);
    forget(&run);
    turn(&run, 450, 3, -5, 0);
    assert_int_equal(run.raised, 0);
    turn(&run, 450, 3, -5, 0);
    assert_in_range(run.raised, 3, 5);
}

static void more_than_70_percent_is_no_peace(void **state)
{
    (void)state;
    struct run run = begin();
    turn(&run, 2000, 7.5, -5, 0);
    assert_int_equal(run.raised, 0);
    turn(&run, 2000, 6.5, -5, 0);
    assert_true(run.raised > 0);
}

/* Each raise is too much: 5, 10, 20, ... s until the next. */
static void who_falls_again_waits_twice_as_long(void **state)
{
    (void)state;
    struct run run = begin();
    double waits[9];
    turn(&run, 20, 10, 5, 1);
    for (int i = 0; i < 9; i++) {
        forget(&run);
        while (run.raised == 0) {
            turn(&run, 1, 3, -5, 0);
            waits[i] = (double)(run.now - run.overload.lowered) / 1e9;
        }
        turn(&run, 20, 10, 5, 1);
        assert_true(run.lowered > 0);
    }
    for (int i = 0; i < 6; i++) {
        assert_close(waits[i], 5 << i, 0.4);
    }
    assert_close(waits[7], 300, 0.4);
    assert_close(waits[8], 300, 0.4);
    turn(&run, 60000, 7.5, -5, 0); /* ten minutes later it may be another reason */
    turn(&run, 20, 10, 5, 1);
    forget(&run);
    turn(&run, 700, 3, -5, 0);
    assert_in_range(run.first_raised, 4900 * (int64_t)MS, 5500 * (int64_t)MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_in_time_stays),
        cmocka_unit_test(what_stays_late_is_lowered_after_100_ms_and_each_100_ms),
        cmocka_unit_test(a_stumble_of_50_ms_changes_nothing),
        cmocka_unit_test(a_long_turn_counts_for_several),
        cmocka_unit_test(a_pause_of_a_second_changes_nothing),
        cmocka_unit_test(who_is_late_but_idle_has_nothing_to_give_up),
        cmocka_unit_test(who_catches_up_is_left_alone),
        cmocka_unit_test(peace_of_5_s_raises_and_then_each_second),
        cmocka_unit_test(more_than_70_percent_is_no_peace),
        cmocka_unit_test(who_falls_again_waits_twice_as_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
