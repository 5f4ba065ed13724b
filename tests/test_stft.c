/* SPDX-License-Identifier: MIT */
#include "dsp/stft.h"

#include <complex.h>
#include <pthread.h>

#include "tests/test.h"

/* kissfft in float loses about log2(window) roundings. */
#define FFT_TOL 1e-6

static const int sizes[][2] = {{320, 160}, {512, 128}, {640, 160}, {2, 1}, {4, 1}, {30, 5}, {960, 480}, {1024, 512}};
enum { SIZES = sizeof sizes / sizeof *sizes, HOPS = 20 };

static float *zeros(size_t n)
{
    float *x = calloc(n ? n : 1, sizeof *x);
    assert_non_null(x);
    return x;
}

static void analysis_is_the_windowed_dft_by_definition(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (int s = 0; s < SIZES; s++) {
        int window = sizes[s][0], hop = sizes[s][1], bins = window / 2 + 1;
        struct stft *stft = stft_create(window, hop);
        assert_non_null(stft);
        assert_int_equal(stft_bins(stft), bins);
        float *x = zeros((size_t)window), *history = zeros((size_t)(window - hop));
        float *spectrum = zeros(2 * (size_t)bins), *scratch = zeros(stft_scratch_floats(stft));
        double *expected = calloc(2 * (size_t)bins, sizeof *expected);
        test_fill(x, (size_t)window, 1, &seed);
        for (int k = 0; k < window / hop; k++) {
            stft_analyse(stft, history, x + k * hop, spectrum, scratch);
        }
        for (int k = 0; k < bins; k++) {
            double complex sum = 0;
            for (int i = 0; i < window; i++) {
                double hann = 0.5 - 0.5 * cos(2 * M_PI * i / window);
                sum += sqrt(hann) * (double)x[i] * cexp(-2 * M_PI * I * i * k / window);
            }
            expected[k] = creal(sum);
            expected[bins + k] = cimag(sum);
        }
        assert_near(spectrum, expected, 2 * (size_t)bins, FFT_TOL);
        assert_memory_equal(history, x + hop, (size_t)(window - hop) * sizeof *x);
        stft_destroy(stft);
        free(x), free(history), free(spectrum), free(scratch), free(expected);
    }
}

/* Analyse and synthesise n hops of x; y[i] is to be x[i - (window - hop)]. */
static void round_trip(const struct stft *stft, int window, int hop, const float *x, float *y, int n)
{
    float *history = zeros((size_t)(window - hop)), *overlap = zeros((size_t)(window - hop));
    float *spectrum = zeros((size_t)window + 2), *scratch = zeros(stft_scratch_floats(stft));
    for (int k = 0; k < n; k++) {
        stft_analyse(stft, history, x + k * hop, spectrum, scratch);
        stft_synthesise(stft, overlap, spectrum, y + k * hop, scratch);
    }
    free(history), free(overlap), free(spectrum), free(scratch);
}

static void synthesis_gives_back_the_samples_one_overlap_later(void **state)
{
    (void)state;
    uint64_t seed = 2;
    for (int s = 0; s < SIZES; s++) {
        int window = sizes[s][0], hop = sizes[s][1], delay = window - hop;
        size_t n = (size_t)(HOPS * hop);
        struct stft *stft = stft_create(window, hop);
        float *x = zeros(n), *y = zeros(n);
        test_fill(x, n, 1, &seed);
        round_trip(stft, window, hop, x, y, HOPS);
        for (int i = 0; i < HOPS * hop; i++) {
            assert_close(y[i], i < delay ? 0 : x[i - delay], 1e-6);
        }
        stft_destroy(stft);
        free(x), free(y);
    }
}

static void edge_bins_have_no_imaginary_part_whatever_a_mask_left_there(void **state)
{
    (void)state;
    struct stft *stft = stft_create(8, 4);
    float overlap[2][4] = {{0}}, hop[2][4], scratch[16], spectrum[10] = {1, 2, 3, 4, 5, 0, 1, 2, 3, 0};
    stft_synthesise(stft, overlap[0], spectrum, hop[0], scratch);
    spectrum[5] = 7;
    spectrum[9] = -7;
    stft_synthesise(stft, overlap[1], spectrum, hop[1], scratch);
    assert_memory_equal(hop[0], hop[1], sizeof hop[0]);
    assert_memory_equal(overlap[0], overlap[1], sizeof overlap[0]);
    stft_destroy(stft);
}

struct job {
    const struct stft *stft;
    const float *x;
    float y[HOPS * 160];
};

static void *run_job(void *arg)
{
    struct job *job = arg;
    for (int i = 0; i < 50; i++) {
        round_trip(job->stft, 320, 160, job->x, job->y, HOPS);
    }
    return NULL;
}

static void one_table_serves_two_threads_with_the_same_bits(void **state)
{
    (void)state;
    static float x[HOPS * 160];
    static struct job jobs[2];
    uint64_t seed = 3;
    test_fill(x, HOPS * 160, 1, &seed);
    struct stft *stft = stft_create(320, 160);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        jobs[i] = (struct job){.stft = stft, .x = x};
        pthread_create(&threads[i], NULL, run_job, &jobs[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_memory_equal(jobs[0].y, jobs[1].y, sizeof jobs[0].y);
    stft_destroy(stft);
}

static void sizes_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    const int wrong[][2] = {{0, 0}, {321, 107}, {320, 150}, {320, 320}, {320, 0}, {-4, -2}, {14, 7}, {22, 11}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_null(stft_create(wrong[i][0], wrong[i][1]));
    }
    stft_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(analysis_is_the_windowed_dft_by_definition),
        cmocka_unit_test(synthesis_gives_back_the_samples_one_overlap_later),
        cmocka_unit_test(edge_bins_have_no_imaginary_part_whatever_a_mask_left_there),
        cmocka_unit_test(one_table_serves_two_threads_with_the_same_bits),
        cmocka_unit_test(sizes_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests_name("stft", tests, NULL, NULL);
}
