/* SPDX-License-Identifier: MIT */
#include "dsp/echo.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "tests/test.h"

/* Noise from a loudspeaker, heard 40 ms later through a room that fades within 50 ms. */
enum { RATE = 16000, DELAY = 640, ROOM = 800, SECONDS = 12 };

static uint32_t seed;

static float noise(void)
{
    seed = seed * 1664525 + 1013904223;
    return (float)((double)seed / 2147483648.0 - 1);
}

static void render(float *played, float *heard, size_t n)
{
    float room[ROOM];
    seed = 3;
    for (int i = 0; i < ROOM; i++) {
        room[i] = 0.1F * noise() * expf(-(float)i / 150);
    }
    for (size_t i = 0; i < n; i++) {
        played[i] = 0.2F * noise();
        heard[i] = 0;
        for (size_t k = 0; k < ROOM && i >= DELAY + k; k++) {
            heard[i] += room[k] * played[i - DELAY - k];
        }
    }
}

static double level_db(const float *samples, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)samples[i] * (double)samples[i];
    }
    return 10 * log10(sum / (double)n + 1e-20);
}

static void loudspeakers_are_taken_out_and_who_speaks_stays(void **state)
{
    (void)state;
    size_t n = SECONDS * RATE, hop = echo_hop(RATE), last = n - RATE;
    float *played = malloc(n * sizeof *played), *heard = malloc(n * sizeof *heard), *left = malloc(n * sizeof *left);
    render(played, heard, n);
    struct echo *echo = echo_create(RATE, 0.2);
    for (size_t i = last; i < n; i++) {
        heard[i] += 0.05F * sinf((float)(2 * M_PI * 300 / RATE) * (float)i); /* at the end somebody hums */
    }
    for (size_t at = 0; at < n; at += hop) {
        echo_cancel(echo, heard + at, played + at, left + at);
    }
    double before = level_db(heard + last - RATE, RATE), after = level_db(left + last - RATE, RATE);
    assert_true(before - after > 20);
    assert_close(level_db(left + last, RATE), 20 * log10(0.05 / sqrt(2)), 1.5);
    echo_destroy(echo);
    free(played);
    free(heard);
    free(left);
}

/* But for what lies lowest, as a constant, which the filter takes away first. */
static void nothing_played_changes_nothing(void **state)
{
    (void)state;
    enum { N = RATE };
    static float in[N], quiet[N], out[N];
    struct echo *echo = echo_create(RATE, 0.2);
    for (int i = 0; i < N; i++) {
        in[i] = 0.3F * sinf((float)(2 * M_PI * 1000 / RATE) * (float)i);
    }
    in[7] = NAN;
    for (size_t at = 0; at < N; at += echo_hop(RATE)) {
        echo_cancel(echo, in + at, quiet + at, out + at);
    }
    assert_close(level_db(out + N / 2, N / 2), level_db(in + N / 2, N / 2), 0.1);
    echo_destroy(echo);
    echo_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loudspeakers_are_taken_out_and_who_speaks_stays),
        cmocka_unit_test(nothing_played_changes_nothing),
    };
    return cmocka_run_group_tests_name("echo", tests, NULL, NULL);
}
