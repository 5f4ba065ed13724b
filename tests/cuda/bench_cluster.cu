/* SPDX-License-Identifier: MIT */

/* The one-launch step of few streams on the GPU: is it right, and how fast. A program of its own:
 *
 *   nvcc -O3 -std=c++17 -arch=sm_90 -I. tests/cuda/bench_cluster.cu kernels/cuda/mamba_cluster.cu
 *        kernels/cuda/mamba_step.cu kernels/cuda/linear.cu
 *   bench_cluster [--check | --time] [--json FILE]
 *
 * Checks that streams and their states are the same bits as from mamba_cuda_step, which bench_step compares with double,
 * step after step, whatever the number of streams in all and in a cluster. Times a stack of layers (d_model 256, expand
 * 2, d_state 16, d_conv 4) by replay of graphs, beside mamba_cuda_step in the same run:
 *   chained  16 steps one after the other, each fetching its weights while the one before ends
 *   spaced   the same with an empty kernel between, which keeps them apart; less what those take alone
 *   waited   wall clock of a launch and a synchronisation */

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "kernels/cuda/mamba_cluster.h"
#include "tests/cuda/random.cuh"

namespace {

constexpr int D = 256, E = 512, N = 16, K = 4, R = 16;

/* ---- a stack of random layers --------------------------------------------------------------------------------- */

struct linear_cuda random_matrix(int in, int out, bool int8, int pieces, const floats &bias = {})
{
    const double bound = 1 / sqrt(double(in));
    floats weight = random_floats(size_t(in) * size_t(out), -bound, bound), scale;
    if (int8) {
        for (float &w : weight)
            w = float(rint(127 * double(w) / bound));
        scale = random_floats(size_t(out), 0.8 * bound / 127, 1.2 * bound / 127);
    }
    std::vector<unsigned char> packed(linear_cuda_bytes(in, out, pieces));
    linear_cuda_pack(packed.data(), in, out, pieces, weight.data(), int8 ? scale.data() : nullptr,
                     bias.empty() ? nullptr : bias.data());
    return linear_cuda_at(device_copy(packed), in, out, pieces);
}

/* As a trained layer's numbers lie: dt from 0.001 to 0.1, A about -1 ... -16. */
mamba_cuda random_layer(bool int8, int pieces, bool zoh, int64_t state_at)
{
    floats dt_bias, A;
    for (int e = 0; e < E; e++)
        dt_bias.push_back(float(log(expm1(exp(uniform(log(1e-3), log(0.1)))))));
    for (int i = 0; i < N * E; i++)
        A.push_back(float(-(i / E + 1) * uniform(0.5, 1.5)));
    return {D, E, N, K, R, zoh, random_matrix(D, 2 * E, int8, pieces, random_floats(2 * E, -0.1, 0.1)),
            random_matrix(E, R + 2 * N, int8, pieces), random_matrix(R, E, int8, pieces, dt_bias),
            random_matrix(E, D, int8, pieces), device_copy(random_floats(D, 0.5, 1.5)),
            device_copy(random_floats(K * E, -0.6, 0.6)), zoh ? nullptr : device_copy(random_floats(E, -0.2, 0.2)),
            device_copy(A), device_copy(random_floats(E, 0.5, 1.5)), state_at};
}

struct kind {
    const char *name;
    int precision;
    bool int8, state_bf16;
};

const kind kinds[] = {
    {"bf16", PRECISION_BF16, false, false},         {"bf16, bf16 states", PRECISION_BF16, false, true},
    {"bf16, int8 weights", PRECISION_BF16, true, false}, {"tf32", PRECISION_TF32, false, false},
    {"tf32, int8 weights", PRECISION_TF32, true, false}, {"fp32", PRECISION_FP32, false, false},
    {"fp32, int8 weights", PRECISION_FP32, true, false},
};

/* A stack with room for `rows` streams and a few more, and a batch of them in shuffled slots. */
struct stack {
    kind how;
    int rows, slots;
    std::vector<mamba_cuda> layers;
    int64_t stride;
    size_t state_bytes;
    void *states, *workspace;
    std::vector<uint32_t> phases;
    uint32_t *phase;
    int32_t *slot;
    float *elapsed, *x;
};

stack make_stack(const kind &how, int layers, int rows)
{
    stack m = {};
    m.how = how, m.rows = rows, m.slots = rows + 3;
    for (int i = 0; i < layers; i++) {
        m.layers.push_back(random_layer(how.int8, how.int8 ? 1 : how.precision, i % 2 == 1, m.stride));
        m.stride += int64_t(mamba_cuda_state(&m.layers.back()));
    }
    const floats states = random_floats(size_t(m.stride * m.slots), -1, 1);
    std::vector<__nv_bfloat16> half(states.size());
    for (size_t i = 0; i < states.size(); i++)
        half[i] = __float2bfloat16(states[i]);
    m.state_bytes = states.size() * (how.state_bf16 ? 2 : 4);
    m.states = how.state_bf16 ? static_cast<void *>(device_copy(half)) : device_copy(states);
    must(cudaMalloc(reinterpret_cast<char **>(&m.workspace), mamba_cuda_workspace_bytes(&m.layers[0], rows)), "cudaMalloc");
    std::vector<int32_t> slot;
    for (int i = 0; i < m.slots; i++) {
        m.phases.push_back(uint32_t(uniform(0, MAMBA_CUDA_PHASES)));
        slot.insert(slot.begin() + int(uniform(0, i + 1)), i);
    }
    m.phase = device_copy(m.phases), m.slot = device_copy(slot);
    m.elapsed = device_copy(random_floats(size_t(rows), 0.5, 3));
    m.x = device_copy(random_floats(size_t(rows * D), -1, 1));
    return m;
}

void free_stack(stack &m)
{
    std::vector<const void *> held = {m.states, m.workspace, m.phase, m.slot, m.elapsed, m.x};
    for (const mamba_cuda &l : m.layers)
        held.insert(held.end(), {l.in_proj.tiles, l.x_proj.tiles, l.dt_proj.tiles, l.out_proj.tiles, l.norm, l.conv_weight,
                                 l.conv_bias, l.A, l.skip});
    for (const void *p : held)
        must(cudaFree(const_cast<void *>(p)), "cudaFree");
}

step_cuda step_of(const stack &m, int rows)
{
    return {rows, m.how.precision, m.how.state_bf16, 0, 0, m.slot, m.phase, m.elapsed, m.states, m.stride, m.workspace, nullptr};
}

int cluster_step(const stack &m, int rows, int together, cudaStream_t stream)
{
    const step_cuda step = step_of(m, rows);
    return mamba_cluster_step(m.layers.data(), int(m.layers.size()), &step, m.x, together, stream);
}

void twin_step(const stack &m, int rows, cudaStream_t stream)
{
    const step_cuda step = step_of(m, rows);
    must(mamba_cuda_step(m.layers.data(), int(m.layers.size()), &step, m.x, stream), "mamba_cuda_step");
}

/* ---- checks --------------------------------------------------------------------------------------------------- */

bool failed = false;

/* What the streams and all slots are after some steps from the same start. */
struct outcome {
    floats x;
    std::vector<char> states;
    bool operator==(const outcome &other) const
    {
        return !memcmp(x.data(), other.x.data(), x.size() * 4) && states == other.states;
    }
};

template <class F> outcome after_steps(stack &m, const outcome &start, F step)
{
    must(cudaMemcpy(m.x, start.x.data(), start.x.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
    must(cudaMemcpy(m.states, start.states.data(), m.state_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    for (uint32_t t = 0; t < 4; t++) {
        std::vector<uint32_t> phases = m.phases;
        for (uint32_t &phase : phases)
            phase = (phase + t) % MAMBA_CUDA_PHASES;
        must(cudaMemcpy(m.phase, phases.data(), phases.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
        step();
        must(cudaDeviceSynchronize(), "step");
    }
    return {host_copy(m.x, start.x.size()), host_copy(static_cast<char *>(m.states), m.state_bytes)};
}

void check(const kind &how, int layers, int rows)
{
    stack m = make_stack(how, layers, rows);
    const outcome start = {host_copy(m.x, size_t(rows * D)), host_copy(static_cast<char *>(m.states), m.state_bytes)};
    const outcome twin = after_steps(m, start, [&] { twin_step(m, rows, nullptr); });
    bool finite = true;
    for (float x : twin.x)
        finite &= isfinite(x) != 0;
    printf("%-20s %d layers %4d streams, together:", how.name, layers, rows);
    for (int together : {1, 2, 4, 8, 0}) {
        if (cluster_step(m, 0, together, nullptr) != 0) {
            printf("  %d: -", together);
            continue;
        }
        const outcome ours =
            after_steps(m, start, [&] { must(cluster_step(m, rows, together, nullptr), "mamba_cluster_step"); });
        const bool same = finite && ours == twin;
        printf("  %d: %s", together, same ? "ok" : "DIFFERS");
        failed |= !same;
    }
    printf("\n");
    free_stack(m);
}

void check_all()
{
    for (const kind &how : kinds)
        for (int rows : {1, 3, 8, 37, 200})
            check(how, rows == 3 ? 1 : rows == 37 ? 6 : 4, rows);
}

/* ---- times ---------------------------------------------------------------------------------------------------- */

struct times {
    double median, p99;
};

times summary(std::vector<double> &us)
{
    std::sort(us.begin(), us.end());
    return {us[us.size() / 2], us[us.size() * 99 / 100]};
}

__global__ void nothing() {}

constexpr int REPEATS = 16;

/* us of one graph of REPEATS times `enqueue_one`, divided by that. */
template <class F> times timed(cudaStream_t stream, F enqueue_one)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < REPEATS; i++)
        enqueue_one();
    must(cudaStreamEndCapture(stream, &graph), "capture");
    must(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin), "cudaEventCreate");
    must(cudaEventCreate(&end), "cudaEventCreate");
    std::vector<double> us;
    for (int i = -5; i < 100; i++) {
        float ms = 0;
        must(cudaEventRecord(begin, stream), "cudaEventRecord");
        must(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
        must(cudaEventRecord(end, stream), "cudaEventRecord");
        must(cudaStreamSynchronize(stream), "replay");
        must(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
        if (i >= 0)
            us.push_back(1e3 * double(ms) / REPEATS);
    }
    cudaEventDestroy(begin), cudaEventDestroy(end);
    cudaGraphExecDestroy(exec), cudaGraphDestroy(graph);
    return summary(us);
}

/* us from before the launch until its end is known here. */
template <class F> times waited(cudaStream_t stream, F enqueue_one)
{
    std::vector<double> us;
    for (int i = -20; i < 500; i++) {
        const auto begin = std::chrono::steady_clock::now();
        enqueue_one();
        must(cudaStreamSynchronize(stream), "step");
        const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
        if (i >= 0)
            us.push_back(took.count());
    }
    return summary(us);
}

/* The median between two steps that an empty kernel keeps apart, without that kernel's own time. */
template <class F> double spaced(cudaStream_t stream, F enqueue_one)
{
    const times empty = timed(stream, [&] { nothing<<<1, 32, 0, stream>>>(); });
    const times both = timed(stream, [&] {
        enqueue_one();
        nothing<<<1, 32, 0, stream>>>();
    });
    return both.median - empty.median;
}

void time_stack(const kind &how, int layers, const std::vector<int> &batches, cudaStream_t stream, FILE *json)
{
    seed = 7;
    stack m = make_stack(how, layers, batches.back());
    for (int rows : batches) {
        const times twin = timed(stream, [&] { twin_step(m, rows, stream); });
        printf("%-20s %d layers %4d streams: mamba_cuda_step %6.1f", how.name, layers, rows, twin.median);
        for (int together : {1, 2, 4, 8}) {
            /* not more than eight clusters would need: those only take turns */
            if (cluster_step(m, 0, together, stream) != 0 || together / 2 >= rows || together * 16 < rows)
                continue;
            const auto one = [&] { must(cluster_step(m, rows, together, stream), "mamba_cluster_step"); };
            const times chained = timed(stream, one), alone = waited(stream, one);
            const double apart = spaced(stream, one);
            printf(" | %d: %.1f (p99 %.1f) spaced %.1f waited %.1f (p99 %.1f)", together, chained.median, chained.p99, apart,
                   alone.median, alone.p99);
            if (json)
                fprintf(json,
                        "  {\"kind\": \"%s\", \"layers\": %d, \"rows\": %d, \"together\": %d, \"us\": %.2f, \"p99_us\": %.2f, "
                        "\"spaced_us\": %.2f, \"waited_us\": %.2f, \"waited_p99_us\": %.2f, \"mamba_cuda_step_us\": %.2f},\n",
                        how.name, layers, rows, together, chained.median, chained.p99, apart, alone.median, alone.p99,
                        twin.median);
        }
        printf("\n");
    }
    free_stack(m);
}

void time_all(FILE *json)
{
    cudaStream_t stream;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    if (json)
        fprintf(json, "[\n");
    printf("us a step, graph replay:\n");
    time_stack(kinds[0], 4, {1, 2, 4, 8, 16, 32, 64, 128, 256}, stream, json);
    for (const kind &how : kinds)
        time_stack(how, &how == kinds ? 6 : 4, {1, 8, 64}, stream, json);
    time_stack(kinds[6], 6, {1, 8, 64}, stream, json);
    if (json)
        fprintf(json, "  {}\n]\n");
    cudaStreamDestroy(stream);
}

} /* namespace */

int main(int argc, char **argv)
{
    bool check = true, time = true;
    FILE *json = nullptr;
    for (int i = 1; i < argc; i++) {
        const std::string word = argv[i];
        if (word == "--check")
            time = false;
        else if (word == "--time")
            check = false;
        else if (word == "--json" && i + 1 < argc)
            json = fopen(argv[++i], "w");
        else
            return fprintf(stderr, "usage: bench_cluster [--check | --time] [--json FILE]\n"), 64;
    }
    if (json)
        setvbuf(json, nullptr, _IOLBF, 0); /* what there is stays when the run is cut short */
    const stack m = make_stack(kinds[0], 4, 1);
    const int room = mamba_cluster_streams(m.layers.data(), 4, PRECISION_BF16, 0);
    printf("streams at once: %d\n", room);
    if (room == 0)
        return 69;
    if (check)
        check_all();
    if (time && !failed)
        time_all(json);
    if (json)
        fclose(json);
    return failed;
}
