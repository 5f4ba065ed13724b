/* SPDX-License-Identifier: MIT */

/* bench_layers [--json] [rows...]: the layers of kernels/cuda/layers.h at denoise-16k's sizes against the bytes they
 * must move, with the copy ceiling of the same run. A case is captured in a graph, REPEATS times over; the times are of
 * a graph's replay over REPEATS, median and p99. Few rows show the latency of a launch behind another one. */

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/cuda/layers.h"

enum { REPEATS = 16, REPLAYS = 60, WINDOW = 320, HOP = 160, BINS = 161, TAPS = 3, E = 512, D = 256, N = 16 };
enum { ROWS_MAX = 32768, FILTER_AT = 640, ISTFT_AT = FILTER_AT + 2576, CONV_AT = ISTFT_AT + 640, STRIDE = 65536 };

static bool json;
static double ceiling; /* bytes a second, read and written */
static cudaStream_t stream;

static void must(int error)
{
    if (error) {
        fprintf(stderr, "bench_layers: error %d (%s)\n", error,
                error > 0 ? cudaGetErrorString(cudaError_t(error)) : "sizes");
        exit(error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ? 69 : 1);
    }
}

static float *fresh(size_t n)
{
    std::vector<float> v(n);
    uint32_t seed = 1;
    for (float &x : v) {
        seed = seed * 1664525u + 1013904223u;
        x = float(int32_t(seed)) * 1e-10f;
    }
    float *p;
    must(cudaMalloc(&p, n * sizeof(float)));
    must(cudaMemcpy(p, v.data(), n * sizeof(float), cudaMemcpyHostToDevice));
    return p;
}

/* Median and p99 of a call, in microseconds. */
static std::pair<double, double> time_of(const std::function<void()> &call, int repeats)
{
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cudaEvent_t begin, end;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < repeats; i++)
        call();
    must(cudaStreamEndCapture(stream, &graph));
    must(cudaGraphInstantiate(&ready, graph, 0));
    must(cudaEventCreate(&begin));
    must(cudaEventCreate(&end));
    std::vector<double> times;
    for (int i = 0; i < REPLAYS; i++) {
        float ms;
        must(cudaEventRecord(begin, stream));
        must(cudaGraphLaunch(ready, stream));
        must(cudaEventRecord(end, stream));
        must(cudaEventSynchronize(end));
        must(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 5)
            times.push_back(1e3 * ms / repeats);
    }
    std::sort(times.begin(), times.end());
    must(cudaGraphExecDestroy(ready));
    must(cudaGraphDestroy(graph));
    return {times[times.size() / 2], times[times.size() * 99 / 100]};
}

static void report(const char *name, int rows, double bytes_a_row, const std::function<void()> &call)
{
    const auto us = time_of(call, rows > 1000 ? REPEATS / 4 : REPEATS);
    const double floor = 1e6 * rows * bytes_a_row / ceiling;
    if (json)
        printf("{\"case\": \"%s\", \"rows\": %d, \"us\": %.3f, \"p99_us\": %.3f, \"floor_us\": %.3f}\n", name, rows,
               us.first, us.second, floor);
    else
        printf("%-26s %6d %9.2f %9.2f %9.2f %6.2f\n", name, rows, us.first, us.second, floor, us.first / floor);
}

static void measure_ceiling()
{
    const size_t bytes = size_t(1) << 29;
    char *from, *to;
    must(cudaMalloc(&from, bytes));
    must(cudaMalloc(&to, bytes));
    must(cudaMemset(from, 1, bytes));
    const auto us = time_of([&] { must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream)); }, 4);
    ceiling = 2.0 * double(bytes) / us.first * 1e6;
    must(cudaFree(from));
    must(cudaFree(to));
    if (json)
        printf("{\"case\": \"copy\", \"bytes_a_second\": %.4g}\n", ceiling);
    else
        printf("copy: %.2f TB/s\n%-26s %6s %9s %9s %9s %6s\n", ceiling * 1e-12, "", "rows", "us", "p99", "floor", "x");
}

int main(int argc, char **argv)
{
    json = argc > 1 && strcmp(argv[1], "--json") == 0;
    std::vector<int> counts;
    for (int i = 1 + json; i < argc; i++)
        counts.push_back(std::min(std::max(atoi(argv[i]), 1), int(ROWS_MAX)));
    if (counts.empty())
        counts = {1, 16, 256, 1024, 4096, 20000, 32768};
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    measure_ceiling();

    std::vector<float> tables(stft_cuda_table_floats(WINDOW));
    stft_cuda_fill(WINDOW, HOP, tables.data());
    float *table = fresh(tables.size());
    must(cudaMemcpy(table, tables.data(), tables.size() * sizeof(float), cudaMemcpyHostToDevice));
    std::vector<int32_t> order(ROWS_MAX);
    for (int i = 0; i < ROWS_MAX; i++)
        order[size_t(i)] = int32_t(uint32_t(i) * 20011u % ROWS_MAX);
    int32_t *slots = reinterpret_cast<int32_t *>(fresh(ROWS_MAX));
    must(cudaMemcpy(slots, order.data(), order.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    uint32_t *phase = reinterpret_cast<uint32_t *>(fresh(ROWS_MAX));
    must(cudaMemset(phase, 0, ROWS_MAX * sizeof(uint32_t)));
    float *x = fresh(size_t(ROWS_MAX) * HOP);
    float *in = fresh(size_t(ROWS_MAX) * 2 * TAPS * BINS), *spectrum = fresh(size_t(ROWS_MAX) * 2 * BINS);
    float *features = fresh(size_t(ROWS_MAX) * 3 * BINS), *out = fresh(size_t(ROWS_MAX) * HOP);
    float *xz = fresh(size_t(ROWS_MAX) * 2 * E), *u = fresh(size_t(ROWS_MAX) * E), *weight = fresh(5 * E);
    void *states;
    must(cudaMalloc(&states, size_t(STRIDE) * ROWS_MAX));
    must(cudaMemset(states, 0x3c, size_t(STRIDE) * ROWS_MAX)); /* 0.0115 everywhere */
    uint8_t *blown = reinterpret_cast<uint8_t *>(fresh(ROWS_MAX));

    const struct stft_cuda stft = {WINDOW, HOP, table};
    const struct spectral_cuda filter = {SPECTRAL_FILTER, BINS, TAPS, FILTER_AT}, plain = {SPECTRAL_PLAIN, BINS, 1, 0};
    const struct conv_cuda conv = {E, 4, 1, 0, weight, weight + 4 * E, CONV_AT};
    const struct finish_cuda finish = {blown, 6};
    for (int rows : counts) {
        const rows_cuda step = {rows, 0, slots, phase, states, STRIDE};
        report("stft, features", rows, 4.0 * (3 * HOP + 5 * BINS),
               [&] { must(stft_cuda(&step, &stft, 0, 0.3f, x, spectrum, features, stream)); });
        report("filter, istft, finish", rows, 4.0 * (4 * TAPS * BINS + 2 * BINS + 3 * HOP), [&] {
            must(istft_cuda(&step, &stft, ISTFT_AT, &filter, in, 2 * TAPS * BINS, spectrum, out, &finish, stream));
        });
        report("istft", rows, 4.0 * (2 * BINS + 3 * HOP),
               [&] { must(istft_cuda(&step, &stft, ISTFT_AT, &plain, in, 2 * BINS, nullptr, out, nullptr, stream)); });
        report("norm", rows, 8.0 * D, [&] { must(norm_cuda(weight, xz, D, u, D, rows, D, stream)); });
        report("conv, silu", rows, 24.0 * E, [&] { must(conv_cuda(&step, &conv, xz, 2 * E, u, E, stream)); });
    }
    for (int rows : counts) {
        const rows_cuda sequence = {rows, 1, slots, phase, states, STRIDE};
        report("sequence: stft, features", rows, 4.0 * (HOP + 5 * BINS),
               [&] { must(stft_cuda(&sequence, &stft, 0, 0.3f, x, spectrum, features, stream)); });
        report("sequence: filter, istft", rows, 4.0 * (2 * TAPS * BINS + 2 * BINS + HOP), [&] {
            must(istft_cuda(&sequence, &stft, ISTFT_AT, &filter, in, 2 * TAPS * BINS, spectrum, out, &finish, stream));
        });
        report("sequence: conv, silu", rows, 8.0 * E,
               [&] { must(conv_cuda(&sequence, &conv, xz, 2 * E, u, E, stream)); });
    }
    const rows_cuda one = {1, 1, slots, phase, states, STRIDE};
    report("state to scan and back", 1, 16.0 * N * E, [&] {
        must(state_cuda_to_scan(&one, 0, 0, N, E, u, stream));
        must(state_cuda_from_scan(&one, 0, 0, N, E, u, stream));
    });
    return 0;
}
