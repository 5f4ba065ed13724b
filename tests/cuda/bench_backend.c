/* SPDX-License-Identifier: MIT */
/* bench_backend [MODEL [PRECISION [THREADS]]]: a whole model on the GPU, host memory to host memory: the latency of a
 * step at several numbers of streams, and how fast a recording goes through. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "model/backend_cuda.h"

enum { RECORDING_HOPS = 360000 }; /* an hour at 100 hops a second */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Samples that differ from hop to hop. */
static float *make_sound(size_t n)
{
    float *x = malloc(n * sizeof *x);
    uint32_t seed = 1;
    for (size_t i = 0; x && i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = 0.3f * sinf(0.05f * (float)(i % 100003)) + 0.05f * ((float)(seed >> 8) * 0x1p-23f - 1);
    }
    return x;
}

struct run {
    const struct backend_ops *ops;
    const struct model *model;
    struct ssm_options options;
};

static struct backend *open_backend(const struct run *run, int streams)
{
    struct ssm_error err = {0};
    struct ssm_options options = run->options;
    options.streams = streams;
    struct backend *backend = run->ops->open(run->model, &options, &err);
    if (!backend) {
        fprintf(stderr, "bench_backend: %s\n", err.text);
    }
    return backend;
}

static int bench_steps(const struct run *run, int streams)
{
    struct backend *backend = open_backend(run, streams);
    size_t hop = (size_t)run->model->info.hop, outputs = (size_t)run->model->info.outputs, n = (size_t)streams;
    int steps = 3000000 / streams < 300 ? 300 : 3000000 / streams > 3000 ? 3000 : 3000000 / streams;
    float *in = make_sound(n * hop), *out = calloc(n * outputs, sizeof *out);
    struct backend_hop *hops = calloc(n, sizeof *hops);
    double *us = calloc((size_t)steps, sizeof *us);
    int failed = !backend || !in || !out || !hops || !us;
    for (size_t i = 0; !failed && i < n; i++) {
        hops[i] = (struct backend_hop){.slot = (int)i, .in = in + i * hop, .out = out + i * outputs, .count = 1};
    }
    for (int k = -20; !failed && k < steps; k++) {
        double start = now();
        failed = backend->ops->step(backend, hops, streams);
        us[k < 0 ? 0 : k] = (now() - start) * 1e6;
    }
    if (!failed) {
        qsort(us, (size_t)steps, sizeof *us, by_size);
        printf("  %6d streams  min %8.1f  p50 %8.1f  p99 %8.1f  p99.9 %8.1f  max %8.1f us   %6.1f ns a stream  %6.0f MiB\n",
               streams, us[0], us[steps / 2], us[steps * 99L / 100], us[steps * 999L / 1000], us[steps - 1],
               us[steps / 2] * 1e3 / streams, (double)backend->bytes / (1 << 20));
        fflush(stdout);
    } else if (backend) {
        fprintf(stderr, "bench_backend: %s\n", backend->ops->fault(backend));
    }
    free(in);
    free(out);
    free(hops);
    free(us);
    run->ops->close(backend);
    return failed;
}

static int bench_scan(const struct run *run)
{
    double start = now();
    struct backend *backend = open_backend(run, 1);
    double opened = now();
    size_t hop = (size_t)run->model->info.hop, outputs = (size_t)run->model->info.outputs;
    float *in = make_sound(RECORDING_HOPS * hop), *out = calloc(RECORDING_HOPS * outputs, sizeof *out);
    int failed = !backend || !in || !out;
    for (int round = 0; !failed && round < 3; round++) {
        double begin = now();
        for (int at = 0; !failed && at < RECORDING_HOPS; at += backend->scan_hops) {
            int left = RECORDING_HOPS - at, count = left < backend->scan_hops ? left : backend->scan_hops;
            struct backend_hop piece = {
                .in = in + (size_t)at * hop, .out = out + (size_t)at * outputs, .count = count};
            failed = backend->ops->scan(backend, &piece);
        }
        double seconds = now() - begin, audio = RECORDING_HOPS * (double)hop / run->model->info.rate;
        printf("  scan of %.0f s: %.1f ms, %.0f times real time (open %.1f ms, %.0f MiB)\n", audio, seconds * 1e3,
               audio / seconds, (opened - start) * 1e3, (double)backend->bytes / (1 << 20));
        fflush(stdout);
    }
    free(in);
    free(out);
    run->ops->close(backend);
    return failed;
}

int main(int argc, char **argv)
{
    static const int streams[] = {1, 4, 8, 16, 64, 256, 1024, 4096, 16384, 20000, 32768};
    struct ssm_error err = {0};
    struct run run = {.ops = backend_cuda_find(&err)};
    run.options = (struct ssm_options){.device = "cuda", .max_hops = 1, .precision = argc > 2 ? argv[2] : NULL,
                                       .threads = argc > 3 ? atoi(argv[3]) : 1};
    struct model *model = run.ops ? model_open(argc > 1 ? argv[1] : "model/pretrained/denoise-16k.safetensors", &err) : NULL;
    if (!model) {
        fprintf(stderr, "bench_backend: %s\n", err.text);
        return err.code;
    }
    run.model = model;
    printf("%s, precision %s, %d threads\n", model->info.name, argc > 2 ? argv[2] : "auto", run.options.threads);
    int failed = bench_scan(&run);
    for (size_t i = 0; !failed && i < sizeof streams / sizeof *streams; i++) {
        failed = bench_steps(&run, streams[i]);
    }
    model_close(model);
    return failed ? 70 : 0;
}
