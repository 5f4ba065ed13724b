/* SPDX-License-Identifier: MIT */
#include "dsp/slew.h"

#include <math.h>
#include <stdint.h>

#include "dsp/clock.h"
#include "tests/test.h"

/* A source that gives 160 samples at a time and a player that takes 480, of 16 and 48 kHz as their own clocks have it, in virtual
 * time; each tells of it late by up to its jitter, as a busy machine does. */
enum { SOURCE = 16000, PLAYER = 48000, HOP = 160, BUFFER = 480 };

struct rig {
    double source_ppm, player_ppm, jitter_s;
    struct clock source, player;
    struct slew slew;
    double captured_s, played_s; /* true times of the next hop and the next buffer */
    uint64_t captured, frames;
    double made;                 /* samples made for the player, fractions too       */
    double least_s, most_s;      /* of what waits before a buffer is taken            */
    uint32_t seed;
};

static double random_part(struct rig *rig)
{
    rig->seed = rig->seed * 1664525 + 1013904223;
    return rig->seed / 4294967296.0;
}

static int64_t told(struct rig *rig, double time_s)
{
    return (int64_t)((1 + time_s + rig->jitter_s * random_part(rig)) * 1e9);
}

static struct rig start(double source_ppm, double player_ppm, double jitter_s)
{
    struct rig rig = {.source_ppm = source_ppm, .player_ppm = player_ppm, .jitter_s = jitter_s, .least_s = 1e9, .seed = 7,
                      .made = 0.04 * PLAYER};
    clock_init(&rig.source, SOURCE);
    clock_init(&rig.player, PLAYER);
    slew_init(&rig.slew);
    return rig;
}

static void capture(struct rig *rig)
{
    rig->captured_s += HOP / (SOURCE * (1 + rig->source_ppm * 1e-6));
    rig->captured += HOP;
    clock_observe(&rig->source, rig->captured, told(rig, rig->captured_s));
    double next = (double)clock_time(&rig->player, (uint64_t)rig->made);
    double delay_s = (next - (double)clock_time(&rig->source, rig->captured - HOP)) * 1e-9;
    const struct slew_sight sight = {delay_s, clock_ppm(&rig->source), clock_ppm(&rig->player), (double)HOP / SOURCE};
    rig->made += HOP * (double)PLAYER / SOURCE * (rig->frames > 0 ? slew_turn(&rig->slew, &sight) : 1);
}

static void play(struct rig *rig)
{
    double waits_s = (rig->made - (double)rig->frames) / PLAYER;
    rig->least_s = fmin(rig->least_s, waits_s);
    rig->most_s = fmax(rig->most_s, waits_s);
    rig->played_s += BUFFER / (PLAYER * (1 + rig->player_ppm * 1e-6));
    rig->frames += BUFFER;
    clock_observe(&rig->player, rig->frames, told(rig, rig->played_s));
}

static void run_until(struct rig *rig, double seconds)
{
    while (rig->captured_s < seconds || rig->played_s < seconds) {
        if (rig->captured_s <= rig->played_s) {
            capture(rig);
        } else {
            play(rig);
        }
    }
}

/* How far the ratio is from what the two clocks really need, 1e-6, over the next second at most. */
static double residual(struct rig *rig)
{
    double right = (1 + rig->player_ppm * 1e-6) / (1 + rig->source_ppm * 1e-6), worst = 0;
    for (double end = rig->captured_s + 1; rig->captured_s < end;) {
        run_until(rig, rig->captured_s + 0.001);
        worst = fmax(worst, fabs(rig->slew.ratio / right - 1) * 1e6);
    }
    return worst;
}

static void after_a_minute_five_ppm_are_left_at_most(void **state)
{
    (void)state;
    const double ppm[] = {-1000, 0, 1000}, jitter_s[] = {0, 5e-4};
    for (int i = 0; i < 9; i++) {
        for (int k = 0; k < 2; k++) {
            struct rig rig = start(ppm[i / 3], ppm[i % 3], jitter_s[k]);
            run_until(&rig, 60);
            assert_close(residual(&rig), 0, 5);
        }
    }
}

static void a_day_later_as_much_waits_as_at_first(void **state)
{
    (void)state;
    struct rig rig = start(1000, -1000, 5e-4);
    run_until(&rig, 60);
    rig.least_s = 1e9;
    rig.most_s = 0;
    run_until(&rig, 120);
    double least_s = rig.least_s, most_s = rig.most_s;
    run_until(&rig, 86400);
    assert_close(rig.least_s, least_s, 2e-3);
    assert_close(rig.most_s, most_s, 2e-3);
    assert_true(rig.least_s > 0.02 && rig.most_s < 0.08);
}

static void a_clock_that_wanders_is_followed(void **state)
{
    (void)state;
    struct rig rig = start(0, 50, 5e-4);
    run_until(&rig, 60);
    rig.least_s = 1e9;
    rig.most_s = 0;
    for (int minute = 1; minute < 240; minute++) { /* a room that is warmed and cools */
        rig.player_ppm = 50 + 20 * sin(minute / 20.0);
        run_until(&rig, 60 + 60 * minute);
    }
    assert_true(rig.most_s - rig.least_s < 0.02);
}

static void a_player_that_ran_dry_holds_its_new_delay(void **state)
{
    (void)state;
    struct rig rig = start(300, -300, 0);
    run_until(&rig, 30);
    double before = rig.slew.delay_s, ratio = rig.slew.ratio;
    rig.made += 0.03 * PLAYER;
    slew_release(&rig.slew);
    assert_close(rig.slew.ratio, ratio, 0);
    run_until(&rig, 90);
    assert_close(rig.slew.delay_s, before + 0.03, 1e-3);
    assert_close(residual(&rig), 0, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(after_a_minute_five_ppm_are_left_at_most),
        cmocka_unit_test(a_day_later_as_much_waits_as_at_first),
        cmocka_unit_test(a_clock_that_wanders_is_followed),
        cmocka_unit_test(a_player_that_ran_dry_holds_its_new_delay),
    };
    return cmocka_run_group_tests_name("slew", tests, NULL, NULL);
}
