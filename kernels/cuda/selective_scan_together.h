/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_TOGETHER_H
#define KERNELS_CUDA_SELECTIVE_SCAN_TOGETHER_H

/* The scan forward of a short sequence: one launch, in which the blocks of a cluster share 8 channels' steps, 32 a
 * warp.
 *
 * A warp finds what its steps hand on from zero, as scan_map does but with the lanes of its walk, and keeps B, C, delta
 * and delta u in shared memory. A thread for each state then passes that along the block's warps; blocks tell those
 * after them what they hand on; and each warp walks its steps from where they start, as scan_forward does. */

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/selective_scan_forward.h"

namespace scan
{

constexpr int TOGETHER_WARPS = 16, TOGETHER_STEPS = 32; /* a block's at most; a warp's */
constexpr int TOGETHER_ROUNDS = TOGETHER_STEPS / 4, MAX_BLOCKS = 8;

template <int N> struct together_warp {
    forward_tile<N, 1, 4, TOGETHER_ROUNDS> tile;
    float elapsed[TOGETHER_STEPS];
    float end[GROUPS * N]; /* of the steps from zero; then their begin, from zero at the block's */
    float sum[GROUPS];     /* delta over the steps; then over the block's before them */
};

template <int N> struct together_block {
    static constexpr int STATES = GROUPS * N;
    float2 passages[MAX_BLOCKS][STATES]; /* of blocks before: the power of two a state decays by, its end from zero */
    float start[STATES];                 /* of the block's steps */
    uint64_t told;                       /* the passages are there */
    together_warp<N> warps[TOGETHER_WARPS];

    /* With so many warps. */
    static size_t bytes(int warps)
    {
        return sizeof(together_block) - size_t(TOGETHER_WARPS - warps) * sizeof(together_warp<N>);
    }
};

/* What the map and the walk read, on its way. The map's comes first. */
template <typename T, int N> struct together_inputs {
    forward_inputs<T, N, 1, 4, TOGETHER_ROUNDS> steps;
    staged_bc<T, N, false, 32, 1, TOGETHER_STEPS> B, C;
    float elapsed; /* of the step that is the lane's number */

    __device__ __forceinline__ together_inputs(const params &p, const place<1> &at)
        : steps(p, at), B(p, at.batch), C(p, at.batch, 0, true)
    {
    }
    __device__ __forceinline__ void load_first(const params &p, const place<1> &at, int begin, int end)
    {
        const int lane_step = begin + int(threadIdx.x) % 32;
#pragma unroll
        for (int j = 0; j < TOGETHER_ROUNDS; j++) {
            const int t = min(begin + 4 * j + at.part, end - 1);
            steps.u[0][j] = *steps.u0.at(t, p.u_step), steps.dt[0][j] = *steps.dt0.at(t, p.dt_step);
        }
        B.load(p, begin, end);
        elapsed = lane_step < end ? steps.elapsed0[lane_step & p.elapsed_mask] : 0.0f;
    }
    __device__ __forceinline__ void load_rest(const params &p, const place<1> &at, int begin, int end)
    {
        C.load(p, begin, end);
#pragma unroll
        for (int j = 0; j < TOGETHER_ROUNDS; j++)
            steps.z[0][j] = *steps.z0.at(min(begin + 4 * j + at.part, end - 1), p.z_step);
    }
};

/* delta and delta u of the warp's steps into its tile. True: states decay so little that decay_exactly is wanted. */
template <typename T, int N>
__device__ __forceinline__ bool prepare_steps(together_warp<N> &warp, outputs<1, TOGETHER_ROUNDS> &outputs,
                                              const forward_lane<N, 1, 4> &lane, const together_inputs<T, N> &inputs,
                                              const place<1> &at)
{
    float longest = 0.0f;
#pragma unroll
    for (int j = 0; j < TOGETHER_ROUNDS; j++) {
        const float u = to_float(inputs.steps.u[0][j]);
        const float delta =
            warp.elapsed[4 * j + at.part] * softplus(fmaf(to_float(inputs.steps.dt[0][j]), LOG2E, lane.bias2[0]));
        const float2 step[1] = {make_float2(delta, delta * u)};
        put_round(warp.tile, step, at, j);
        longest = fmaxf(longest, delta);
        outputs.direct[0][j] = lane.skip[0] * u;
    }
    return __any_sync(ALL, longest * lane.slowest[0] < LONG_MEMORY);
}

/* The map of the warp's steps into end and sum: from the last step on, as scan_map walks. */
template <int N>
__device__ __forceinline__ void find_map(together_warp<N> &warp, const forward_lane<N, 1, 4> &lane, const place<1> &at)
{
    constexpr int S = N / 4;
    float h[S] = {}, away = 0.0f; /* delta summed over the steps after this one */
#pragma unroll
    for (int t = TOGETHER_STEPS - 1; t >= 0; t--) {
        const float4 pair = warp.tile.steps[t / 2][0][at.group];
        const float delta = t % 2 ? pair.z : pair.x, x = t % 2 ? pair.w : pair.y;
        float b[S];
        load<S>(b, reinterpret_cast<const float *>(warp.tile.bc[0]) + t * N + at.part * S);
#pragma unroll
        for (int s = 0; s < S; s++)
            h[s] = fmaf(ptx::exp2(away * lane.A2[0][s]), x * b[s], h[s]);
        away += delta;
    }
    store<S>(warp.end + at.group * N + at.part * S, h);
    if (at.part == 0)
        warp.sum[at.group] = away;
}

/* The thread's state from zero along the block's warps. Gives what the block does to it. */
template <int N> __device__ __forceinline__ float2 pass_along(together_block<N> &block, float A2, int warps)
{
    const int state = int(threadIdx.x);
    float sums[TOGETHER_WARPS], ends[TOGETHER_WARPS], h = 0.0f, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < TOGETHER_WARPS; w++) {
        sums[w] = w < warps ? block.warps[w].sum[state / N] : 0.0f;
        ends[w] = w < warps ? block.warps[w].end[state] : 0.0f;
    }
    __syncwarp(); /* all have read the sums */
#pragma unroll
    for (int w = 0; w < TOGETHER_WARPS; w++) {
        if (w >= warps)
            break;
        block.warps[w].end[state] = h;
        if (state % N == 0)
            block.warps[w].sum[state / N] = sum;
        h = fmaf(ptx::exp2(A2 * sums[w]), h, ends[w]);
        sum += sums[w];
    }
    return make_float2(A2 * sum, h);
}

/* To the blocks after this one. */
template <int N> __device__ __forceinline__ void tell(together_block<N> &block, float2 passage, int rank, int blocks)
{
    const uint32_t there = ptx::shared_address(&block.passages[rank][threadIdx.x]);
    const uint32_t told = ptx::shared_address(&block.told);
#pragma unroll 1
    for (uint32_t to = uint32_t(rank) + 1; to < uint32_t(blocks); to++)
        cluster::send(cluster::in_block(there, to), cluster::in_block(told, to),
                      make_uint2(__float_as_uint(passage.x), __float_as_uint(passage.y)));
}

/* The thread's state h at the cluster's begin; gives it at the block's. */
template <int N> __device__ __forceinline__ float hear(together_block<N> &block, float h, int rank)
{
    ptx::barrier_wait(&block.told, 0);
#pragma unroll 1
    for (int from = 0; from < rank; from++) {
        const float2 passage = block.passages[from][threadIdx.x];
        h = fmaf(ptx::exp2(passage.x), h, passage.y);
    }
    return h;
}

/* The states the warp's steps start from. */
template <int N>
__device__ __forceinline__ void start_walk(forward_lane<N, 1, 4> &lane, const together_block<N> &block,
                                           const together_warp<N> &warp, const place<1> &at)
{
    constexpr int S = N / 4;
    float start[S];
    load<S>(start, block.start + at.group * N + at.part * S);
    load<S>(lane.h[0], warp.end + at.group * N + at.part * S);
#pragma unroll
    for (int s = 0; s < S; s++)
        lane.h[0][s] = fmaf(ptx::exp2(lane.A2[0][s] * warp.sum[at.group]), start[s], lane.h[0][s]);
}

/* Before the cluster's blocks wait for each other. */
template <int N> __device__ __forceinline__ void open_block(together_block<N> &block)
{
    if (threadIdx.x == 0) {
        ptx::barrier_init(&block.told);
        ptx::barrier_init_done();
    }
    cluster::arrive_early();
}

/* Grid (channel groups x blocks of a cluster, batch); p.chunks: blocks of a cluster, p.chunk_steps: of a block, as many
 * as it has threads. */
template <typename T, int N> __global__ void __launch_bounds__(32 * TOGETHER_WARPS, 1) scan_together(const params p)
{
    extern __shared__ __align__(16) unsigned char shared[];
    together_block<N> &block = *reinterpret_cast<together_block<N> *>(shared);
    place<1> at(1, lanes::BRAIDED);
    together_warp<N> &warp = block.warps[at.warp];
    const int rank = int(cluster::rank()), channel0 = int(cluster::number()) * GROUPS, length = p.s.length;
    const bool passes = int(threadIdx.x) < together_block<N>::STATES;
    at.first = channel0 + at.group;
    open_block(block);
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    const int begin = rank * p.chunk_steps + at.warp * TOGETHER_STEPS;
    together_inputs<T, N> inputs(p, at);
    inputs.load_first(p, at, begin, length);
    const int n = int(threadIdx.x) % N, c = channel0 + int(threadIdx.x) / N;
    const bool there = passes && n < p.s.d_state && c < p.s.channels;
    const int64_t state = int64_t(c) * p.s.d_state + n, item = int64_t(at.batch) * p.s.channels * p.s.d_state;
    const float A2 = there ? LOG2E * p.s.A[state] : 0.0f, h0 = there && p.s.h0 ? p.s.h0[item + state] : 0.0f;
    forward_lane<N, 1, 4> lane;
    outputs<1, TOGETHER_ROUNDS> outputs;
    start_lane(lane, p, at);
    warp.elapsed[threadIdx.x % 32] = inputs.elapsed;
    inputs.B.put(warp.tile.bc[0], 0);
    __syncwarp();
    inputs.load_rest(p, at, begin, length);
    const bool exactly = prepare_steps(warp, outputs, lane, inputs, at);
    __syncwarp();
    find_map(warp, lane, at);
    inputs.C.put(warp.tile.bc[1], 0);
    cluster::wait(); /* all blocks are there to be told */
    __syncthreads();
    if (threadIdx.x == 0) /* not before: arrive_early() publishes no more than an init */
        ptx::barrier_expect(&block.told, uint32_t(rank) * uint32_t(sizeof(block.passages[0])));
    if (passes)
        tell(block, pass_along(block, A2, int(blockDim.x) / 32), rank, p.chunks);
    outputs.ends[0] = at.has(p, 0) ? length : 0;
#pragma unroll
    for (int j = 0; j < TOGETHER_ROUNDS; j++)
        outputs.gate[0][j] = inputs.steps.gate(p, j, 0);
    if (passes)
        block.start[threadIdx.x] = hear(block, h0, rank);
    __syncthreads();
    if (begin >= length)
        return;
    start_walk(lane, block, warp, at);
    keep_states(lane, p, at, begin);
    if (exactly)
        walk_exactly(warp.tile, lane, outputs, inputs.steps, p, at, begin);
    else
        walk_tile(warp.tile, lane, outputs, inputs.steps, p, at, begin, [](int) {});
    store_end<N, 1, 4>(lane.h, p, at, begin, min(length, begin + TOGETHER_STEPS));
}

} /* namespace scan */

#endif
