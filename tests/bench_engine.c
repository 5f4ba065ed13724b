/* SPDX-License-Identifier: MIT */
/* bench_engine [MODEL]: a step of one stream and of many, and the scan, against real time and the arithmetic's floor.
 *
 * A model of the shipped denoiser's size without its training:
 *   tests/data/make_model.py big.safetensors --d-model 256 --layers 4 --weights i8 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dsp/clock.h"
#include "model/ssm.h"

enum { STREAMS = 64, STEPS = 2000, SCAN = 4096 };

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One line: microseconds a hop at three quantiles, and what part of real time the median is. */
static void print_line(const char *what, double *us, int n, const struct ssm_info *info)
{
    qsort(us, (size_t)n, sizeof *us, by_size);
    double median = us[n / 2], hop_us = 1e6 * info->hop / info->rate;
    printf("  %-28s min %7.1f  p50 %7.1f  p99 %7.1f us a hop, %.4f of real time, %5.1f G multiply-adds/s\n", what,
           us[0], median, us[n * 99 / 100], median / hop_us, info->macs_per_hop / median * 1e-3);
}

static void bench_step(struct ssm_engine *engine, int streams, const float *in, float *out)
{
    const struct ssm_info *info = ssm_describe(engine);
    static struct ssm_hop hops[STREAMS];
    static double us[STEPS];
    int steps = STEPS / streams > 50 ? STEPS / streams : 50;
    char what[64];
    for (int i = 0; i < streams; i++) {
        hops[i] = (struct ssm_hop){.in = in, .out = out + (size_t)i * (size_t)info->outputs, .count = 1};
        ssm_stream_open(engine, &hops[i].stream);
    }
    for (int k = 0; k < steps; k++) {
        double start = clock_seconds();
        ssm_step(engine, hops, streams);
        us[k] = (clock_seconds() - start) * 1e6 / streams;
    }
    for (int i = 0; i < streams; i++) {
        ssm_stream_close(engine, hops[i].stream);
    }
    snprintf(what, sizeof what, "step, %d stream%s", streams, streams > 1 ? "s" : "");
    print_line(what, us, steps, info);
}

static void bench_scan(struct ssm_engine *engine, int threads, const float *in, float *out)
{
    double us[9];
    ssm_stream stream;
    char what[64];
    ssm_stream_open(engine, &stream);
    for (int k = 0; k < 9; k++) {
        double start = clock_seconds();
        ssm_scan(engine, stream, in, out, NULL, SCAN, NULL);
        us[k] = (clock_seconds() - start) * 1e6 / SCAN;
    }
    ssm_stream_close(engine, stream);
    snprintf(what, sizeof what, "scan, %d thread%s", threads, threads > 1 ? "s" : "");
    print_line(what, us, 9, ssm_describe(engine));
}

static int bench(const char *model, int threads)
{
    struct ssm_error err;
    struct ssm_engine *engine = ssm_open(model, &(struct ssm_options){.streams = STREAMS, .threads = threads}, &err);
    if (!engine) {
        fprintf(stderr, "bench_engine: %s\n", err.text);
        return err.code;
    }
    const struct ssm_info *info = ssm_describe(engine);
    size_t samples = (size_t)info->inputs * SCAN;
    float *in = malloc(samples * sizeof *in), *out = malloc((size_t)info->outputs * SCAN * sizeof *out);
    for (size_t i = 0; i < samples; i++) {
        in[i] = 0.3f * sinf(0.05f * (float)i) + 0.1f * sinf(0.37f * (float)(i % 4001));
    }
    printf("%s on %s, %d thread%s: %.2f M multiply-adds a hop\n", info->name, info->device, threads,
           threads > 1 ? "s" : "", info->macs_per_hop * 1e-6);
    for (int streams = 1; streams <= STREAMS; streams *= 8) {
        bench_step(engine, streams, in, out);
    }
    bench_scan(engine, threads, in, out);
    free(in);
    free(out);
    ssm_close(engine);
    return 0;
}

int main(int argc, char **argv)
{
    const char *model = argc > 1 ? argv[1] : "tests/data/tiny-denoise.safetensors";
    int failed = bench(model, 1);
    return failed ? failed : bench(model, 2);
}
