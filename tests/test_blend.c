/* SPDX-License-Identifier: MIT */
#include "dsp/blend.h"

#include "tests/test.h"

enum { RATE = 1000, DELAY = 7, N = 400 };

/* Noise, and a "model" that gives its input DELAY samples late, times gain. */
struct signal {
    float dry[N], wet[N];
};

static struct signal make_signal(float gain)
{
    struct signal signal = {.dry = {0}};
    uint64_t seed = 2;
    test_fill(signal.dry, N, 1, &seed);
    for (int i = DELAY; i < N; i++) {
        signal.wet[i] = gain * signal.dry[i - DELAY];
    }
    return signal;
}

/* In uneven pieces; bypass from sample `on` to `off`. */
static void push_all(struct blend *blend, const float *dry, float *wet, size_t on, size_t off)
{
    for (size_t at = 0, n; at < N; at += n) {
        size_t borders[] = {on, off, at + 1 + at % 13, N};
        n = N - at;
        for (int i = 0; i < 4; i++) {
            n = borders[i] > at && borders[i] - at < n ? borders[i] - at : n;
        }
        blend_push(blend, dry + at, wet + at, n, at >= on && at < off);
    }
}

static void bypass_is_the_delayed_input_to_the_bit(void **state)
{
    (void)state;
    struct signal signal = make_signal(-3), copy = make_signal(1);
    struct blend *blend = blend_create(DELAY, RATE, 0.25f, true);
    push_all(blend, signal.dry, signal.wet, 0, N);
    assert_memory_equal(signal.wet, copy.wet, sizeof copy.wet);
    blend_destroy(blend);
}

static void without_a_limit_nothing_changes(void **state)
{
    (void)state;
    struct signal signal = make_signal(-3), copy = signal;
    struct blend *blend = blend_create(DELAY, RATE, 0, false);
    push_all(blend, signal.dry, signal.wet, N, N);
    assert_memory_equal(signal.wet, copy.wet, sizeof copy.wet);
    blend_destroy(blend);
}

/* A model that takes everything away leaves exactly the strength. */
static void strength_bounds_the_attenuation(void **state)
{
    (void)state;
    const float strengths[] = {0, 3, 12, 40};
    for (int k = 0; k < 4; k++) {
        struct signal signal = make_signal(0), dry = make_signal(1);
        struct blend *blend = blend_create(DELAY, RATE, powf(10, -strengths[k] / 20), false);
        push_all(blend, signal.dry, signal.wet, N, N);
        for (int i = DELAY; i < N; i++) {
            assert_close(20 * log10(fabs((double)dry.wet[i] / (double)signal.wet[i])), strengths[k], 1e-4);
        }
        blend_destroy(blend);
    }
}

/* On, off, and back before the fade was through: a model that turns the sign makes every step visible. */
static void switching_fades_over_10_ms(void **state)
{
    (void)state;
    struct signal signal = {.dry = {0}};
    for (int i = 0; i < N; i++) {
        signal.dry[i] = 1;
        signal.wet[i] = -1;
    }
    struct blend *blend = blend_create(0, RATE, 0, false);
    push_all(blend, signal.dry, signal.wet, 100, 105);
    for (int i = 1; i < N; i++) {
        float jump = fabsf(signal.wet[i] - signal.wet[i - 1]);
        assert_true(jump <= 2.0f / 10 + 1e-6f);
        assert_true((jump > 0) == (i >= 100 && i < 110));
    }
    assert_close(signal.wet[104], 0, 1e-6);
    blend_destroy(blend);
}

static void who_is_bypassed_is_told(void **state)
{
    (void)state;
    struct signal signal = make_signal(1);
    struct blend *blend = blend_create(DELAY, RATE, 0.25f, false);
    assert_false(blend_push(blend, signal.dry, signal.wet, 10, false));
    assert_true(blend_push(blend, signal.dry, signal.wet, 10, true));
    assert_true(blend_push(blend, signal.dry, signal.wet, 10, false)); /* on its way back */
    assert_false(blend_push(blend, signal.dry, signal.wet, 10, false));
    blend_destroy(blend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bypass_is_the_delayed_input_to_the_bit),
        cmocka_unit_test(without_a_limit_nothing_changes),
        cmocka_unit_test(strength_bounds_the_attenuation),
        cmocka_unit_test(switching_fades_over_10_ms),
        cmocka_unit_test(who_is_bypassed_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
