/* SPDX-License-Identifier: MIT */
#include "dsp/cadence.h"

#include "tests/test.h"

enum { RATE = 100, ROOM = 256, MS = CADENCE_TICKS / 1000 };

struct heard {
    struct cadence_hop at[ROOM];
    float first[ROOM], last[ROOM]; /* values of each hop */
    int n, late;
};

static void take_all(struct cadence *cadence, int hop, struct heard *heard)
{
    for (struct cadence_hop next; cadence_next(cadence, &next);) {
        assert_true(heard->n < ROOM);
        heard->first[heard->n] = next.values[0];
        heard->last[heard->n] = next.values[hop - 1];
        heard->at[heard->n++] = next;
    }
}

/* Readings of one channel whose values count them; a time below 0: missing (0: no time at all). */
static struct heard run(struct cadence_options options, const double *times, int n)
{
    struct heard heard = {.n = 0};
    options.channels = 1;
    options.model_rate = RATE;
    struct cadence *cadence = cadence_create(&options);
    for (int i = 0; i < n; i++) {
        struct reading reading = {.timed = times[i] != 0, .time = fabs(times[i]), .missing = times[i] < 0,
                                  .values = {(float)i}};
        heard.late += !cadence_push(cadence, &reading);
        take_all(cadence, options.hop, &heard);
    }
    cadence_finish(cadence);
    take_all(cadence, options.hop, &heard);
    cadence_destroy(cadence);
    return heard;
}

/* Half the rate, twice the rate, one lost, irregular: the model is told the time between. */
static void elapsed_is_the_time_between_readings(void **state)
{
    (void)state;
    const double times[] = {50, 50.01, 50.03, 50.05, 50.055, 50.06, -50.07, 50.09, 50.0933};
    const double elapsed[] = {1, 1, 2, 2, 0.5, 0.5, 3, 0.33};
    struct heard heard = run((struct cadence_options){.hop = 1}, times, 9);
    assert_int_equal(heard.n, 8);
    assert_int_equal(heard.late, 0);
    const uint64_t from[] = {0, 10, 30, 50, 60, 65, 90, 100}, to[] = {10, 20, 40, 60, 65, 70, 100, 103};
    for (int i = 0; i < 8; i++) {
        assert_close(heard.at[i].elapsed, elapsed[i], 1e-4);
        assert_int_equal(heard.at[i].from, from[i] * MS);
        assert_int_equal(heard.at[i].to / MS, to[i]);
        assert_false(heard.at[i].gap);
    }
    assert_close(heard.at[7].time, 50.0933, 1e-9);
    assert_close(heard.first[6], 7, 0); /* the missing one is nowhere */
}

static void without_times_the_rate_says_it(void **state)
{
    (void)state;
    const double times[5] = {0};
    struct heard heard = run((struct cadence_options){.hop = 1, .rate = 50}, times, 5);
    assert_int_equal(heard.n, 5);
    assert_close(heard.at[0].elapsed, 1, 0);
    for (int i = 1; i < 5; i++) {
        assert_close(heard.at[i].elapsed, 2, 1e-6);
    }
}

static void a_long_pause_is_a_gap(void **state)
{
    (void)state;
    const double times[] = {5, 5.01, 7, 7.01};
    struct heard heard = run((struct cadence_options){.hop = 1, .gap_s = 1.5}, times, 4);
    assert_int_equal(heard.n, 4);
    assert_close(heard.at[2].elapsed, 199, 1e-3);
    assert_true(heard.at[2].gap && !heard.at[1].gap && !heard.at[3].gap);
    assert_int_equal(heard.at[2].from, 2000 * MS);
    assert_int_equal(heard.at[2].to, 2010 * MS);
    assert_int_equal(run((struct cadence_options){.hop = 1, .gap_s = 2}, times, 4).at[2].gap, false);
}

static void readings_are_put_in_order_within_the_window(void **state)
{
    (void)state;
    const double times[] = {1, 1.02, 1.01, 1.05, 1.03, 1.04, 1.04, 1.2, 1.1};
    struct heard heard = run((struct cadence_options){.hop = 1, .reorder_s = 0.05}, times, 9);
    assert_int_equal(heard.late, 1); /* 1.04 again; 1.1 comes within the window of 1.2 */
    const float order[] = {0, 2, 1, 4, 5, 3, 8, 7};
    assert_int_equal(heard.n, 8);
    for (int i = 0; i < 8; i++) {
        assert_close(heard.first[i], order[i], 0);
    }
    heard = run((struct cadence_options){.hop = 1}, times, 9);
    assert_int_equal(heard.late, 5); /* no window: 1.01, 1.03, 1.04 twice, 1.1 */
    assert_int_equal(heard.n, 4);
}

static void a_clock_set_back_goes_on_behind_a_gap(void **state)
{
    (void)state;
    double times[60];
    for (int i = 0; i < 60; i++) {
        times[i] = i < 30 ? 1000 + 0.01 * i : 5 + 0.01 * i;
    }
    struct heard heard = run((struct cadence_options){.hop = 1}, times, 60);
    assert_int_equal(heard.late, 15);
    assert_int_equal(heard.n, 45);
    assert_true(heard.at[30].gap);
    for (int i = 1; i < 45; i++) {
        assert_true(heard.at[i].from >= heard.at[i - 1].to);
        assert_close(heard.at[i].elapsed, 1, 1e-4);
        assert_int_equal(heard.at[i].gap, i == 30);
    }
}

/* Hops of four; the second lacks a reading, told as missing; then six are lost by time. */
static void a_hop_that_lacks_a_reading_is_left_out_whole(void **state)
{
    (void)state;
    double times[20];
    for (int i = 0; i < 20; i++) {
        times[i] = (i == 5 ? -1 : 1) * (3 + 0.01 * (i < 13 ? i : i + 6));
    }
    struct heard heard = run((struct cadence_options){.hop = 4}, times, 20);
    /* 0..3 | 4 x 6 7 | 8..11 | 12 . . . | . . . 13 | 14..17 | 18 19 */
    assert_int_equal(heard.n, 3);
    assert_close(heard.first[1], 8, 0);
    assert_close(heard.last[1], 11, 0);
    assert_close(heard.at[1].elapsed, 2, 1e-6);
    assert_close(heard.first[2], 14, 0);
    assert_close(heard.last[2], 17, 0);
    assert_close(heard.at[2].elapsed, 3, 1e-6);
    assert_int_equal(heard.at[2].from, 200 * MS);
    assert_int_equal(heard.at[2].to, 240 * MS);
}

/* Times rounded to 40 ms where readings are 10 ms apart, from a source 0.5 % too fast: nothing is taken for lost. */
static void coarse_times_and_drift_lose_no_hop(void **state)
{
    (void)state;
    enum { N = 1000 };
    static double times[N];
    for (int i = 0; i < N; i++) {
        times[i] = 7 + floor(0.01 / 1.005 * i / 0.04) * 0.04;
    }
    struct heard heard = run((struct cadence_options){.hop = 16}, times, N);
    assert_int_equal(heard.n, N / 16);
    for (int i = 0; i < heard.n; i++) {
        assert_close(heard.at[i].elapsed, 1, 0);
    }
}

static void whatever_the_times_they_only_go_forward(void **state)
{
    (void)state;
    uint64_t seed = 9;
    for (int round = 0; round < 300; round++) {
        double times[100];
        for (int i = 0; i < 100; i++) {
            uint64_t bits = test_bits(&seed);
            double size = bits % 7 == 0 ? 1e11 : bits % 7 < 3 ? 1 : 100;
            times[i] = bits % 5 == 0 ? 0 : (double)test_uniform(&seed) * size;
        }
        struct cadence_options options = {.hop = round % 3 ? 1 : 4, .reorder_s = round % 2 ? 0.1 : 0};
        struct heard heard = run(options, times, 100);
        for (int i = 0; i < heard.n; i++) {
            assert_true(heard.at[i].elapsed > 0 && heard.at[i].elapsed <= 1e6f);
            assert_true(heard.at[i].to >= heard.at[i].from);
            assert_true(i == 0 || heard.at[i].from >= heard.at[i - 1].to);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elapsed_is_the_time_between_readings),
        cmocka_unit_test(without_times_the_rate_says_it),
        cmocka_unit_test(a_long_pause_is_a_gap),
        cmocka_unit_test(readings_are_put_in_order_within_the_window),
        cmocka_unit_test(a_clock_set_back_goes_on_behind_a_gap),
        cmocka_unit_test(a_hop_that_lacks_a_reading_is_left_out_whole),
        cmocka_unit_test(coarse_times_and_drift_lose_no_hop),
        cmocka_unit_test(whatever_the_times_they_only_go_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
