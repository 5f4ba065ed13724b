/* SPDX-License-Identifier: MIT */
#include "daemon/condition.h"

#include <math.h>
#include <string.h>

#include "tests/test.h"

/* A device in virtual time: a look each 50 ms, a call in each of them while it runs. */
static const int64_t ms = 1000000;

struct rig {
    struct tending tending;
    struct sight sight;
    bool there, calling; /* can be opened, calls */
    int opens, closes;
};

static struct rig start(int64_t most_ms)
{
    struct rig rig = {.sight = {.now = 1000 * ms, .opening = OPENING_DONE}, .there = true, .calling = true};
    tending_init(&rig.tending, &rig.sight, most_ms * ms);
    return rig;
}

static void step(struct rig *rig)
{
    struct sight *sight = &rig->sight;
    sight->now += 50 * ms;
    sight->calls += rig->calling && sight->opening == OPENING_DONE;
    enum order order = tending_turn(&rig->tending, sight);
    sight->nudged = false;
    if (order == ORDER_CLOSE) {
        sight->opening = OPENING_NONE;
        rig->closes++;
    } else if (order == ORDER_OPEN) {
        sight->opening = rig->there ? OPENING_DONE : OPENING_FAILED;
        rig->opens++;
    }
}

static void run(struct rig *rig, int64_t milliseconds)
{
    for (int64_t i = 0; i < milliseconds; i += 50) {
        step(rig);
    }
}

static void a_device_that_calls_is_well_after_a_moment(void **state)
{
    (void)state;
    struct rig rig = start(500);
    assert_int_equal(rig.tending.condition, CONDITION_RECOVERING);
    run(&rig, 300);
    assert_int_equal(rig.tending.condition, CONDITION_OK);
    run(&rig, 3600000);
    assert_int_equal(rig.opens + rig.closes, 0);
}

static void a_lost_device_is_tried_until_it_is_there(void **state)
{
    (void)state;
    struct rig rig = start(500);
    run(&rig, 10000);
    rig.there = false;
    rig.sight.opening = OPENING_FAILED;
    step(&rig);
    assert_int_equal(rig.tending.condition, CONDITION_LOST);
    run(&rig, 60000);
    assert_int_equal(rig.tending.condition, CONDITION_LOST);
    assert_true(rig.opens > 60 && rig.opens < 130); /* each 500 ms */
    int opens = rig.opens;
    run(&rig, 3600000);
    assert_in_range(rig.opens - opens, 1500, 1800); /* each 2 s at last */
    rig.there = true;
    run(&rig, 2400);
    assert_int_equal(rig.tending.condition, CONDITION_OK);
}

static void news_of_a_device_wake_a_long_wait(void **state)
{
    (void)state;
    struct rig rig = start(60000);
    run(&rig, 10000);
    rig.there = false;
    rig.sight.opening = OPENING_FAILED;
    run(&rig, 200000);
    int opens = rig.opens;
    rig.there = rig.sight.nudged = true;
    step(&rig);
    assert_int_equal(rig.opens, opens + 1);
    run(&rig, 300);
    assert_int_equal(rig.tending.condition, CONDITION_OK);
}

static void a_stall_is_seen_and_forgiven_once_calls_go_on(void **state)
{
    (void)state;
    struct rig rig = start(500);
    run(&rig, 1000);
    rig.calling = false;
    run(&rig, 500);
    assert_int_equal(rig.tending.condition, CONDITION_STALLED);
    rig.calling = true;
    step(&rig); /* one call is not enough */
    assert_int_equal(rig.tending.condition, CONDITION_STALLED);
    run(&rig, 250);
    assert_int_equal(rig.tending.condition, CONDITION_OK);
    assert_int_equal(rig.closes, 0);
}

static void calls_that_come_in_bursts_stall_once_at_most(void **state)
{
    (void)state;
    struct rig rig = start(500);
    int stalls = 0;
    for (int i = 0; i < 100; i++) { /* 2 s of sound at a time */
        enum condition before = rig.tending.condition;
        rig.calling = false;
        run(&rig, 1950);
        stalls += rig.tending.condition == CONDITION_STALLED && before != CONDITION_STALLED;
        rig.calling = true;
        step(&rig);
    }
    assert_int_equal(stalls, 1);
    assert_int_equal(rig.tending.condition, CONDITION_OK);
    assert_int_equal(rig.closes, 0);
    run(&rig, 60000);
    rig.calling = false;
    run(&rig, 500); /* and one that calls often again is watched as closely */
    assert_int_equal(rig.tending.condition, CONDITION_STALLED);
}

static void a_stall_that_lasts_is_opened_anew(void **state)
{
    (void)state;
    struct rig rig = start(500);
    run(&rig, 1000);
    rig.calling = false;
    run(&rig, 5200);
    assert_int_equal(rig.closes, 1);
    assert_non_null(rig.tending.why);
    rig.calling = true;
    run(&rig, 1000);
    assert_int_equal(rig.tending.condition, CONDITION_OK);
    assert_int_equal(rig.opens, 1);
}

static void a_device_that_opens_and_dies_is_not_opened_in_a_storm(void **state)
{
    (void)state;
    struct rig rig = start(500);
    for (int i = 0; i < 1200; i++) { /* a minute */
        step(&rig);
        if (rig.sight.opening == OPENING_DONE) {
            rig.sight.opening = OPENING_FAILED;
        }
    }
    assert_true(rig.opens < 130);
}

static void after_suspend_it_is_opened_anew_at_once(void **state)
{
    (void)state;
    struct rig rig = start(500);
    run(&rig, 1000);
    rig.sight.asleep += 3600000 * ms;
    step(&rig);
    assert_int_equal(rig.closes, 1);
    assert_string_equal(rig.tending.why, "the machine was suspended");
    run(&rig, 400);
    assert_int_equal(rig.tending.condition, CONDITION_OK);
    assert_int_equal(rig.opens, 1);
}

/* ---- Ears. ---- */

enum { RATE = 16000, BLOCK = 160 };

static struct heard hear(struct ear *ear, double seconds, float amplitude, float mean)
{
    struct heard all = {0};
    for (int i = 0; i < (int)(seconds * RATE / BLOCK); i++) {
        float block[BLOCK];
        for (int k = 0; k < BLOCK; k++) {
            block[k] = mean + amplitude * (k % 2 ? 1 : -1);
        }
        struct heard heard = ear_hear(ear, block, BLOCK);
        all.clipped += heard.clipped;
        all.offset += heard.offset;
    }
    return all;
}

static void silence_is_told_after_its_time_and_no_click_ends_it(void **state)
{
    (void)state;
    struct ear ear;
    ear_init(&ear, -100, 10, RATE);
    hear(&ear, 1, 1e-4F, 0);
    hear(&ear, 9.9, 0, 0);
    assert_false(ear.silent);
    hear(&ear, 0.2, 0, 0);
    assert_true(ear.silent);
    hear(&ear, 0.02, 0.5F, 0);
    assert_true(ear.silent);
    hear(&ear, 60, 1.5e-5F, 0); /* beyond the floor, by less than twice */
    assert_true(ear.silent);
    assert_close(ear.silence_s, 70.12, 0.05);
    hear(&ear, 0.1, 1e-4F, 0);
    assert_false(ear.silent);
    assert_close(ear.silence_s, 0, 0);
}

static void a_patience_of_nothing_never_tells(void **state)
{
    (void)state;
    struct ear ear;
    ear_init(&ear, -100, 0, RATE);
    hear(&ear, 1000, 0, 0);
    assert_false(ear.silent);
}

static void clipping_and_a_constant_are_counted(void **state)
{
    (void)state;
    struct ear ear;
    ear_init(&ear, -100, 10, RATE);
    struct heard heard = hear(&ear, 3, 0.5F, 0.04F);
    assert_int_equal(heard.clipped + heard.offset, 0);
    heard = hear(&ear, 3, 0.5F, 0.06F);
    assert_int_equal(heard.offset, 3 * RATE);
    heard = hear(&ear, 1, 1, 0);
    assert_int_equal(heard.clipped, RATE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_calls_is_well_after_a_moment),
        cmocka_unit_test(a_lost_device_is_tried_until_it_is_there),
        cmocka_unit_test(news_of_a_device_wake_a_long_wait),
        cmocka_unit_test(a_stall_is_seen_and_forgiven_once_calls_go_on),
        cmocka_unit_test(calls_that_come_in_bursts_stall_once_at_most),
        cmocka_unit_test(a_stall_that_lasts_is_opened_anew),
        cmocka_unit_test(a_device_that_opens_and_dies_is_not_opened_in_a_storm),
        cmocka_unit_test(after_suspend_it_is_opened_anew_at_once),
        cmocka_unit_test(silence_is_told_after_its_time_and_no_click_ends_it),
        cmocka_unit_test(a_patience_of_nothing_never_tells),
        cmocka_unit_test(clipping_and_a_constant_are_counted),
    };
    return cmocka_run_group_tests_name("condition", tests, NULL, NULL);
}
