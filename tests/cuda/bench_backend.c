/* SPDX-License-Identifier: MIT */
/* bench_backend [--model FILE] [--precision P] [--threads N] [--steps N] [--hops N] [--json FILE] [STREAMS...]: a whole
 * model on the GPU, host memory to host memory: how fast a recording of so many hops goes through (0: leave it out),
 * and the latency of a step at several numbers of streams. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dsp/clock.h"
#include "model/backend_cuda.h"

enum { WARM_UP = 1 }; /* seconds of steps before those that count */

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
    const char *path;
    size_t hops; /* of the recording */
    int steps;   /* 0: enough for a p99.9 */
    FILE *json;  /* a line a result, or NULL */
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

/* Every state read and written once, at the 3.03 TB/s that copying reaches on an H100. */
static double floor_us(const struct run *run, int streams)
{
    bool half = !strcmp(run->options.precision, "bf16-state");
    return (half ? 1 : 2) * (double)run->model->state * sizeof(float) * streams / 3.03e6;
}

static int bench_steps(const struct run *run, int streams)
{
    struct backend *backend = open_backend(run, streams);
    size_t hop = (size_t)run->model->info.hop, outputs = (size_t)run->model->info.outputs, n = (size_t)streams;
    int steps = run->steps ? run->steps : streams > 2000 ? 1000 : 3000;
    float *in = make_sound(n * hop), *out = calloc(n * outputs, sizeof *out);
    struct backend_hop *hops = calloc(n, sizeof *hops);
    double *us = calloc((size_t)steps, sizeof *us);
    int failed = !backend || !in || !out || !hops || !us;
    for (size_t i = 0; !failed && i < n; i++) {
        hops[i] = (struct backend_hop){.slot = (int)i, .in = in + i * hop, .out = out + i * outputs, .count = 1};
    }
    for (double warm = clock_seconds(); !failed && clock_seconds() - warm < WARM_UP;) {
        failed = backend->ops->step(backend, hops, streams);
    }
    for (int k = 0; !failed && k < steps; k++) {
        double start = clock_seconds();
        failed = backend->ops->step(backend, hops, streams);
        us[k] = (clock_seconds() - start) * 1e6;
    }
    if (!failed) {
        qsort(us, (size_t)steps, sizeof *us, by_size);
        printf("  %6d streams  min %8.1f  p50 %8.1f  p99 %8.1f  p99.9 %8.1f  max %8.1f us   %6.1f ns a stream  %6.0f "
               "MiB\n",
               streams, us[0], us[steps / 2], us[steps * 99L / 100], us[steps * 999L / 1000], us[steps - 1],
               us[steps / 2] * 1e3 / streams, (double)backend->bytes / (1 << 20));
        fflush(stdout);
        if (run->json) {
            fprintf(run->json,
                    "{\"name\": \"step of %s, %s\", \"sizes\": \"%d streams\", \"median_us\": %.1f, \"p99_us\": %.1f, "
                    "\"p999_us\": %.1f, \"floor_us\": %.2f, \"peer_us\": null, \"peer\": null, \"bytes\": %zu}\n",
                    run->model->info.name, run->options.precision, streams, us[steps / 2], us[steps * 99L / 100],
                    us[steps * 999L / 1000], floor_us(run, streams), backend->bytes);
        }
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
    double start = clock_seconds();
    struct backend *backend = open_backend(run, 1);
    double opened = clock_seconds();
    size_t hop = (size_t)run->model->info.hop, outputs = (size_t)run->model->info.outputs;
    float *in = make_sound(run->hops * hop), *out = calloc(run->hops * outputs, sizeof *out);
    int failed = !backend || !in || !out;
    for (int round = 0; !failed && round < 3; round++) {
        double begin = clock_seconds();
        for (int at = 0; !failed && at < (int)run->hops; at += backend->scan_hops) {
            int left = (int)run->hops - at, count = left < backend->scan_hops ? left : backend->scan_hops;
            struct backend_hop piece = {.in = in + (size_t)at * hop, .out = out + (size_t)at * outputs, .count = count};
            failed = backend->ops->scan(backend, &piece);
        }
        double seconds = clock_seconds() - begin, audio = (double)run->hops * (double)hop / run->model->info.rate;
        printf("  scan of %.0f s: %.1f ms, %.0f times real time (open %.1f ms, %.0f MiB)\n", audio, seconds * 1e3,
               audio / seconds, (opened - start) * 1e3, (double)backend->bytes / (1 << 20));
        fflush(stdout);
        if (run->json && round == 1) {
            fprintf(
                run->json,
                "{\"name\": \"scan by %s, %s\", \"sizes\": \"%.0f s of audio\", \"median_us\": %.0f, \"p99_us\": null, "
                "\"floor_us\": null, \"peer_us\": null, \"peer\": null, \"open_us\": %.0f, \"bytes\": %zu}\n",
                run->model->info.name, run->options.precision, audio, seconds * 1e6, (opened - start) * 1e6,
                backend->bytes);
        }
    }
    free(in);
    free(out);
    run->ops->close(backend);
    return failed;
}

/* Read one option; false when it is none. */
static bool read_option(struct run *run, const char *word, const char *value)
{
    if (!strcmp(word, "--model")) {
        run->path = value;
    } else if (!strcmp(word, "--precision")) {
        run->options.precision = value;
    } else if (!strcmp(word, "--threads")) {
        run->options.threads = atoi(value);
    } else if (!strcmp(word, "--steps")) {
        run->steps = atoi(value);
    } else if (!strcmp(word, "--hops")) {
        run->hops = (size_t)atol(value);
    } else if (!strcmp(word, "--json")) {
        run->json = fopen(value, "a");
    } else {
        return false;
    }
    return true;
}

static int bench_all(const struct run *run, char **streams, int n)
{
    static char *usual[] = {"1", "4", "8", "16", "64", "256", "512", "1024", "4096", "16384", "20000", "32768"};
    int failed = run->hops ? bench_scan(run) : 0;
    if (!n) {
        streams = usual;
        n = sizeof usual / sizeof *usual;
    }
    for (int i = 0; !failed && i < n; i++) {
        failed = bench_steps(run, atoi(streams[i]));
    }
    return failed ? 70 : 0;
}

int main(int argc, char **argv)
{
    struct ssm_error err = {0};
    struct run run = {.ops = backend_cuda_find(&err),
                      .options = {.device = "cuda", .precision = "auto", .threads = 1, .max_hops = 1},
                      .path = "model/pretrained/denoise-16k.safetensors",
                      .hops = 360000};
    int at = 1;
    while (at + 1 < argc && argv[at][0] == '-') {
        if (!read_option(&run, argv[at], argv[at + 1])) {
            fprintf(stderr, "bench_backend: no option %s\n", argv[at]);
            return 64;
        }
        at += 2;
    }
    struct model *model = run.ops ? model_open(run.path, &err) : NULL;
    if (!model) {
        fprintf(stderr, "bench_backend: %s\n", err.text);
        return err.code;
    }
    run.model = model;
    printf("%s, precision %s, %d thread%s\n", model->info.name, run.options.precision, run.options.threads,
           run.options.threads > 1 ? "s" : "");
    int failed = bench_all(&run, argv + at, argc - at);
    model_close(model);
    return failed;
}
