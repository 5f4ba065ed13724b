/* SPDX-License-Identifier: MIT */
/* bench_steps [MODEL [STEPS]]: what a stream's step costs in each decade of its life; flat, for a state of constant
 * size. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "model/ssm.h"

enum { STEPS = 100000 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float noise(void)
{
    static uint32_t seed = 1;
    seed = seed * 1664525 + 1013904223;
    return (float)(int32_t)seed * 0x1p-34f;
}

/* Steps `first` to `last` of the stream's life, and their line. */
static void bench_decade(struct ssm_engine *engine, struct ssm_hop *hop, float *in, float *us, long first, long last)
{
    const long n = last - first;
    for (long k = 0; k < n; k++) {
        for (int i = 0; i < ssm_describe(engine)->hop; i++) {
            in[i] = noise();
        }
        const double start = now();
        ssm_step(engine, hop, 1);
        us[k] = (float)((now() - start) * 1e6);
    }
    qsort(us, (size_t)n, sizeof *us, by_size);
    printf("  steps %7ld to %7ld: min %7.1f  p50 %7.1f  p99 %7.1f us\n", first + 1, last, (double)us[0],
           (double)us[n / 2], (double)us[n * 99 / 100]);
}

int main(int argc, char **argv)
{
    struct ssm_error err;
    struct ssm_engine *engine = ssm_open(argc > 1 ? argv[1] : "denoise-16k", NULL, &err);
    if (!engine) {
        fprintf(stderr, "bench_steps: %s\n", err.text);
        return err.code;
    }
    const struct ssm_info *info = ssm_describe(engine);
    const long steps = argc > 2 ? atol(argv[2]) : STEPS;
    float *in = calloc((size_t)info->hop, sizeof *in), *out = calloc((size_t)info->outputs, sizeof *out);
    float *us = calloc((size_t)steps + 1, sizeof *us);
    struct ssm_hop hop = {.in = in, .out = out, .count = 1};
    if (!in || !out || !us || ssm_stream_open(engine, &hop.stream) != SSM_OK) {
        fprintf(stderr, "bench_steps: no memory\n");
        return 71;
    }
    printf("%s on %s: one stream, step by step\n", info->name, info->device);
    for (long first = 0, last = 10; first < steps; first = last, last *= 10) {
        bench_decade(engine, &hop, in, us, first, last < steps ? last : steps);
    }
    free(in), free(out), free(us);
    ssm_close(engine);
    return 0;
}
