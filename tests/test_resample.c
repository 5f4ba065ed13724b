/* SPDX-License-Identifier: MIT */
#include "dsp/resample.h"

#include <malloc.h>

#include "tests/test.h"

static const int rates[][2] = {{48000, 16000}, {16000, 48000}, {44100, 16000}, {16000, 44100},
                               {8000, 16000},  {16000, 8000},  {48000, 44100}, {192000, 16000},
                               {16000, 15999}, {256, 1},       {1, 256}};
enum { RATES = sizeof rates / sizeof *rates };

/* Push all of x in pieces of at most `piece` samples (0: at random), taking at most `room` at once; gives the samples
 * out. */
static size_t push_all(struct resampler *resampler, const float *x, size_t n, float *y, size_t piece, size_t room)
{
    uint64_t seed = 5;
    size_t given = 0, got;
    for (size_t at = 0; at < n;) {
        size_t size = piece ? piece : 1 + (size_t)(test_bits(&seed) % 700), used;
        size = size < n - at ? size : n - at;
        given += resampler_push(resampler, x + at, size, &used, y + given, room, 0);
        at += used;
    }
    size_t used;
    while ((got = resampler_push(resampler, x, 0, &used, y + given, room, 1)) == room) {
        given += got;
    }
    return given + got;
}

static void equal_rates_pass_through_untouched(void **state)
{
    (void)state;
    struct resampler *resampler = resampler_create(44100, 44100, RESAMPLER_LIVE);
    const float in[4] = {0.1f, NAN, -3.0f, 0x1p-149f};
    float out[4];
    size_t used;
    assert_int_equal(resampler_push(resampler, in, 4, &used, out, 3, 0), 3);
    assert_int_equal(used, 3);
    assert_int_equal(resampler_push(resampler, in + 3, 1, &used, out + 3, 1, 1), 1);
    assert_memory_equal(in, out, sizeof in);
    assert_close(resampler_delay(resampler), 0, 0);
    resampler_destroy(resampler);
}

/* dB that a tone of this share of the lower rate has behind the filter: its root mean square, as what is no tone counts, too. */
static double level_of(int from, int to, enum resampler_grade grade, double share)
{
    size_t n = (size_t)from, most = (size_t)to + 1000;
    double step = 2 * M_PI * share * (from < to ? from : to) / from, sum = 0;
    float *x = calloc(n, sizeof *x), *y = calloc(most, sizeof *y);
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)sin(step * (double)i);
    }
    struct resampler *resampler = resampler_create(from, to, grade);
    size_t got = push_all(resampler, x, n, y, n, most), j = got / 4, m = got / 2;
    for (size_t i = j; i < j + m; i++) {
        sum += 2 * (double)y[i] * (double)y[i];
    }
    resampler_destroy(resampler);
    free(x), free(y);
    return 10 * log10(sum / (double)m + 1e-20);
}

/* What the header says: flat up to there, quiet from half of the lower rate on, and what is in between. */
static void the_band_ends_where_the_header_says(void **state)
{
    (void)state;
    const int down[][2] = {{48000, 16000}, {44100, 16000}, {44099, 16001}, {767999, 16000}, {4095999, 16000}};
    for (int r = 0; r < 5; r++) {
        assert_close(level_of(down[r][0], down[r][1], RESAMPLER_LIVE, 0.42), 0, 0.01);
        assert_close(level_of(down[r][0], down[r][1], RESAMPLER_LIVE, 0.46), -5.5, 2);
        assert_true(level_of(down[r][0], down[r][1], RESAMPLER_LIVE, 0.5001) < -79);
        assert_true(level_of(down[r][0], down[r][1], RESAMPLER_LIVE, 0.8) < -79);
        assert_close(level_of(down[r][0], down[r][1], RESAMPLER_BEST, 0.45), 0, 0.01);
        assert_true(level_of(down[r][0], down[r][1], RESAMPLER_BEST, 0.5001) < (down[r][0] < 48001 && r < 2 ? -117 : -100));
    }
    assert_close(level_of(16000, 48000, RESAMPLER_LIVE, 0.42), 0, 0.01);
    assert_close(level_of(16000, 16000, RESAMPLER_SLEWED, 0.42), 0, 0.01);
    assert_true(level_of(48000, 16000, RESAMPLER_SLEWED, 0.5001) < -79);
}

/* A tone well inside both bands comes out as the same tone at the new rate: same phase from sample 0, to -80 dB. */
static void output_is_the_same_signal_in_time_and_level(void **state)
{
    (void)state;
    for (int grade = RESAMPLER_LIVE; grade <= RESAMPLER_BEST; grade++) {
        for (int r = 0; r < 9; r++) {
            int from = rates[r][0], to = rates[r][1];
            size_t n = (size_t)from / 4, most = (size_t)to / 4 + 1000;
            double step = 2 * M_PI * 0.1 * (from < to ? from : to);
            float *x = calloc(n, sizeof *x), *y = calloc(most, sizeof *y);
            for (size_t i = 0; i < n; i++) {
                x[i] = (float)sin(step * (double)i / from);
            }
            struct resampler *resampler = resampler_create(from, to, (enum resampler_grade)grade);
            size_t got = push_all(resampler, x, n, y, n, most);
            for (size_t j = got / 4; j < got * 3 / 4; j++) {
                assert_close(y[j], sin(step * (double)j / to), 1e-4);
            }
            resampler_destroy(resampler);
            free(x), free(y);
        }
    }
}

static void n_samples_become_exactly_the_rounded_up_share_however_cut(void **state)
{
    (void)state;
    const size_t lengths[] = {0, 1, 2, 19, 160, 4801};
    for (int r = 0; r < RATES; r++) {
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            size_t n = lengths[l], from = (size_t)rates[r][0], to = (size_t)rates[r][1];
            size_t expected = (n * to + from - 1) / from;
            float *x = calloc(n + 1, sizeof *x), *y = calloc(expected + 2000, sizeof *y);
            float *whole = calloc(expected + 2000, sizeof *whole);
            uint64_t seed = 1;
            test_fill(x, n, 1, &seed);
            struct resampler *resampler = resampler_create((int)from, (int)to, RESAMPLER_LIVE);
            assert_int_equal(push_all(resampler, x, n, whole, n, expected + 1), expected);
            const size_t pieces[] = {1, 160, 0}, rooms[] = {1000, 7, 1};
            for (int p = 0; p < 3; p++) {
                resampler_reset(resampler);
                assert_int_equal(push_all(resampler, x, n, y, pieces[p], rooms[p]), expected);
                assert_memory_equal(y, whole, expected * sizeof *y);
            }
            resampler_destroy(resampler);
            free(x), free(y), free(whole);
        }
    }
}

static void output_never_lags_by_more_than_the_delay(void **state)
{
    (void)state;
    for (int grade = RESAMPLER_LIVE; grade <= RESAMPLER_BEST; grade++) {
        for (int r = 0; r < RATES; r++) {
            struct resampler *resampler = resampler_create(rates[r][0], rates[r][1], (enum resampler_grade)grade);
            double ratio = (double)rates[r][1] / rates[r][0], delay = resampler_delay(resampler), worst = 0;
            float in = 0, out[2000];
            size_t given = 0, used;
            for (int i = 1; i <= 40000; i++) {
                given += resampler_push(resampler, &in, 1, &used, out, 2000, 0);
                assert_int_equal(used, 1);
                worst = fmax(worst, i * ratio - (double)given);
            }
            assert_close(worst, delay, 1e-6);
            double lower = delay / fmax(1, ratio); /* in samples of the lower rate: what the header says */
            assert_true(lower <= (grade == RESAMPLER_LIVE ? 40 : 88));
            resampler_destroy(resampler);
        }
    }
}

/* A sine fits y[n-1] + y[n+1] = 2 cos(w) y[n]; what a step of the ratio would break. */
static void a_slewed_ratio_bends_a_sine_and_breaks_nothing(void **state)
{
    (void)state;
    struct resampler *resampler = resampler_create(16000, 16000, RESAMPLER_SLEWED);
    enum { HOPS = 1000, HOP = 160 };
    double w = 2 * M_PI * 440 / 16000, worst = 0, total = 0;
    float x[HOP], y[2 * HOP], last[2] = {0};
    for (int hop = 0; hop < HOPS; hop++) {
        size_t used;
        for (int i = 0; i < HOP; i++) {
            x[i] = (float)sin(w * (hop * HOP + i));
        }
        resampler_slew(resampler, hop % 100 < 50 ? 1.001 : 0.999 + 0.002 * (hop >= HOPS / 2));
        size_t n = resampler_push(resampler, x, HOP, &used, y, 2 * HOP, 0);
        assert_int_equal(used, HOP);
        for (size_t i = 0; i < n; i++) {
            double bent = (double)last[0] + (double)y[i] - 2 * cos(w) * (double)last[1];
            worst = hop > 1 ? fmax(worst, fabs(bent)) : 0;
            last[0] = last[1];
            last[1] = y[i];
        }
        total += (double)n;
    }
    assert_close(worst, 0, 2e-4);                         /* the filter's noise, and w itself being 0.1 % off */
    /* Half of the time even, then ahead; less the delay, and twenty times some 66 samples on the way to .2 % more or less. */
    assert_close(total, HOPS * HOP * 1.0005 - resampler_delay(resampler), 2);
    resampler_destroy(resampler);
}

static void pushing_allocates_nothing(void **state)
{
    (void)state;
    struct resampler *resampler = resampler_create(48000, 16000, RESAMPLER_BEST);
    static float x[4800], y[4800];
    size_t used, before = mallinfo2().uordblks;
    for (int i = 0; i < 100; i++) {
        resampler_push(resampler, x, 480, &used, y, 4800, i == 99);
    }
    assert_int_equal(mallinfo2().uordblks, before);
    resampler_destroy(resampler);
}

static void impossible_ratios_are_refused(void **state)
{
    (void)state;
    const int wrong[][2] = {{0, 16000}, {16000, 0}, {-1, 1}, {257, 1}, {1, 257}, {513, 2}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_null(resampler_create(wrong[i][0], wrong[i][1], RESAMPLER_LIVE));
    }
    resampler_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_rates_pass_through_untouched),
        cmocka_unit_test(the_band_ends_where_the_header_says),
        cmocka_unit_test(output_is_the_same_signal_in_time_and_level),
        cmocka_unit_test(n_samples_become_exactly_the_rounded_up_share_however_cut),
        cmocka_unit_test(output_never_lags_by_more_than_the_delay),
        cmocka_unit_test(a_slewed_ratio_bends_a_sine_and_breaks_nothing),
        cmocka_unit_test(pushing_allocates_nothing),
        cmocka_unit_test(impossible_ratios_are_refused),
    };
    return cmocka_run_group_tests_name("resample", tests, NULL, NULL);
}
