/* SPDX-License-Identifier: MIT */
#include "daemon/canceller.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/helper_device.h"
#include "tests/test.h"

/* The loudspeakers play forty tones, as a function of time. Their monitor is this program as a helper, whose clock runs
 * 300 ppm too fast; the microphone hears them 60 and 83 ms later. */
enum { RATE = 16000, HOP = 160, TONES = 40, SECONDS = 14 };
static const double ppm = 300;
static const int64_t patience_ns =
    400000000; /* with a monitor that is late on a busy machine: times are told as they should be */

static double playing(double t)
{
    double sum = 0;
    for (int i = 0; i < TONES; i++) {
        sum += sin(2 * M_PI * (150 + 71.3 * i) * t + i * i);
    }
    return 0.02 * sum;
}

static double seconds(int64_t ns)
{
    return 1e-9 * (double)(ns % INT64_C(3600000000000));
}

static void helper_main(int memory, int socket)
{
    struct link *link = helper_map(memory);
    helper_begin(link, socket, "monitor", RATE);
    int64_t zero = clock_now();
    for (uint64_t at = 0;; at += HOP) {
        float samples[HOP];
        for (int i = 0; i < HOP; i++) {
            samples[i] = (float)playing(seconds(zero) + (double)(at + (uint64_t)i) / (RATE * (1 + ppm * 1e-6)));
        }
        int64_t end = zero + (int64_t)((double)(at + HOP) * 1e9 / (RATE * (1 + ppm * 1e-6)));
        sleep_until(end);
        link_capture(link, socket, samples, HOP, false, end);
    }
}

struct left {
    uint64_t n;
    double sum, least; /* of squares in this second; the least of any second so far */
};

static void give(void *arg, int i, const float *samples, size_t n, int64_t arrived)
{
    (void)i, (void)arrived;
    struct left *left = arg;
    for (size_t k = 0; k < n; k++) {
        left->sum += (double)samples[k] * (double)samples[k];
        if (++left->n % RATE == 0) {
            left->least = left->sum < left->least ? left->sum : left->least;
            left->sum = 0;
        }
    }
}

static void a_monitor_with_another_clock_is_taken_out(void **state)
{
    (void)state;
    struct left left = {.least = 1e9};
    struct ssm_error err = {0};
    const struct canceller_setup setup = {
        .device = "monitor", .pipeline = "p", .rate = RATE, .n_channels = 1, .give = give, .arg = &left};
    struct canceller *canceller = canceller_open(&setup, &err);
    assert_non_null(canceller);
    assert_int_equal(canceller_start(canceller, &err), 0);
    int64_t zero = clock_now();
    double heard = 0;
    for (uint64_t at = 0; at < SECONDS * RATE; at += 100) { /* buffers that are no whole pieces */
        float samples[100];
        for (int i = 0; i < 100; i++) {
            double t = seconds(zero) + (double)(at + (uint64_t)i) / RATE;
            samples[i] = (float)(0.5 * playing(t - 0.06) + 0.25 * playing(t - 0.083));
            heard += (double)samples[i] * (double)samples[i] / SECONDS;
        }
        int64_t end = zero + (int64_t)(at + 100) * 1000000000 / RATE;
        sleep_until(end + patience_ns);
        canceller_push(canceller, 0, samples, 100, end);
    }
    assert_int_equal(left.n, SECONDS * RATE);
    canceller_push(canceller, 0, (float[30]){0}, 30, clock_now());
    canceller_flush(canceller, 500);
    assert_int_equal(left.n, SECONDS * RATE + 30);
    canceller_close(canceller);
    printf("%.1f dB less\n", 10 * log10(heard / left.least));
    assert_true(heard / left.least > 30); /* 15 dB */
}

int main(int argc, char **argv)
{
    int memory, socket;
    if (link_is_helper(argc, argv, &memory, &socket)) {
        helper_main(memory, socket);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_monitor_with_another_clock_is_taken_out),
    };
    return cmocka_run_group_tests_name("canceller", tests, NULL, NULL);
}
