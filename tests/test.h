/* SPDX-License-Identifier: MIT */
#ifndef TESTS_TEST_H
#define TESTS_TEST_H

/* What every test file starts from: cmocka, and comparisons that a NaN cannot pass. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* CMOCKA_TEST_FILTER picks cases by name: make test T=ring F='*full*'. */
__attribute__((constructor)) static void test_filter(void)
{
    const char *pattern = getenv("CMOCKA_TEST_FILTER");
    if (pattern && *pattern) {
        cmocka_set_test_filter(pattern);
    }
}

/* |a - b| <= tol; false for NaN, unlike cmocka 1.1.5's assert_float_equal. */
#define assert_close(a, b, tol) test_assert_close((double)(a), (double)(b), (double)(tol), __FILE__, __LINE__)
static inline void test_assert_close(double a, double b, double tol, const char *file, int line)
{
    if (!(fabs(a - b) <= tol)) {
        print_error("%.9g and %.9g differ by %.3g, more than %.3g\n", a, b, fabs(a - b), tol);
        _fail(file, line);
    }
}

/* ||a - b|| <= tol ||b|| over n values. */
#define assert_near(a, b, n, tol) test_assert_near(a, b, n, tol, __FILE__, __LINE__)
static inline void test_assert_near(const float *a, const double *b, size_t n, double tol, const char *file, int line)
{
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += b[i] * b[i];
    }
    if (!(sqrt(difference) <= tol * sqrt(size))) {
        print_error("relative difference %.3g, more than %.3g\n", sqrt(difference / size), tol);
        _fail(file, line);
    }
}

/* A seeded stream of numbers, the same on every machine (splitmix64). */
static inline uint64_t test_bits(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
/* Uniform in [-1, 1). */
static inline float test_uniform(uint64_t *seed)
{
    return (float)(test_bits(seed) >> 40) * 0x1p-23f - 1.0f;
}
static inline void test_fill(float *x, size_t n, float scale, uint64_t *seed)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = scale * test_uniform(seed);
    }
}

#endif
