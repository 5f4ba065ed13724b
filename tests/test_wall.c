/* SPDX-License-Identifier: MIT */
#include "dsp/wall.h"

#include "dsp/clock.h"
#include "tests/test.h"

static const int64_t second = 1000000000, hour = INT64_C(3600) * 1000000000, epoch = INT64_C(1700000000) * 1000000000;
static int64_t now, set_by;

static int64_t tell_now(void)
{
    return now;
}

static int64_t tell_utc(void)
{
    return now + epoch + set_by;
}

static int set_clock(void **state)
{
    (void)state;
    static const struct clock_world world = {.now = tell_now, .asleep = tell_now, .utc = tell_utc, .pace = 1};
    clock_replace(&world);
    now = 100 * second;
    set_by = 0;
    return 0;
}

static int reset_clock(void **state)
{
    (void)state;
    clock_replace(NULL);
    return 0;
}

/* So many seconds, with a look each; moments that are told up to half a minute late never go back. */
static void run_for(struct wall *wall, int64_t seconds, bool late)
{
    int64_t last = wall_utc(wall, now - 30 * second);
    for (int64_t end = now + seconds * second; now < end; now += second) {
        assert_true(wall_look(wall));
        for (int64_t at = now - (late ? 30 : 0) * second; at < now - (late ? 29 : -1) * second; at += second / 10) {
            int64_t utc = wall_utc(wall, at);
            assert_true(utc >= last);
            last = utc;
        }
    }
}

static void it_is_what_the_host_says(void **state)
{
    (void)state;
    struct wall wall = {0};
    assert_true(wall_look(&wall));
    assert_int_equal(wall_utc(&wall, now + 5), now + 5 + epoch);
    assert_int_equal(wall_utc(&wall, now - hour), now - hour + epoch);
}

static void it_goes_ahead_at_once_from_then_on(void **state)
{
    (void)state;
    struct wall wall = {0};
    run_for(&wall, 100, false);
    int64_t seen = now;
    set_by = hour;
    run_for(&wall, 10, false);
    assert_int_equal(wall_utc(&wall, now), now + epoch + hour);
    assert_int_equal(wall_utc(&wall, seen - second), seen - second + epoch);
}

static void an_hour_back_is_caught_up_with_in_two(void **state)
{
    (void)state;
    for (int late = 0; late < 2; late++) {
        struct wall wall = {0};
        set_by = 0;
        run_for(&wall, 100, late);
        int64_t seen = now;
        set_by = -hour;
        run_for(&wall, 3600, late);
        assert_close((double)(wall_utc(&wall, now) - epoch), (double)(seen + (now - seen) / 2), 2e9);
        set_by -= 60 * second; /* and again, on the way */
        run_for(&wall, 3800, late);
        assert_int_equal(wall_utc(&wall, now), now + epoch - hour - 60 * second);
    }
}

static void what_was_never_right_is_left_at_once(void **state)
{
    (void)state;
    struct wall wall = {0};
    run_for(&wall, 10, false);
    set_by = -24 * hour;
    assert_false(wall_look(&wall));
    assert_int_equal(wall_utc(&wall, now), now + epoch - 24 * hour);
    assert_true(wall_look(&wall));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_is_what_the_host_says, set_clock, reset_clock),
        cmocka_unit_test_setup_teardown(it_goes_ahead_at_once_from_then_on, set_clock, reset_clock),
        cmocka_unit_test_setup_teardown(an_hour_back_is_caught_up_with_in_two, set_clock, reset_clock),
        cmocka_unit_test_setup_teardown(what_was_never_right_is_left_at_once, set_clock, reset_clock),
    };
    return cmocka_run_group_tests_name("wall", tests, NULL, NULL);
}
