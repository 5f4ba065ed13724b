/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_TOGETHER_H
#define KERNELS_CUDA_SELECTIVE_SCAN_TOGETHER_H

/* The scan forward of a short sequence: one launch, in which the blocks of a cluster share 8 channels' steps, 32 a
 * warp.
 *
 * A warp finds what its steps hand on from zero, as scan_map does, and keeps B, C, delta and delta u in shared memory.
 * A thread for each state then passes that along the block's warps; blocks tell those after them what they hand on; and
 * each warp walks its steps from where they start, as scan_forward does. */

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/selective_scan_forward.h"

namespace scan
{

constexpr int TOGETHER_WARPS = 16, TOGETHER_STEPS = 32; /* a block's at most; a warp's */
constexpr int TOGETHER_ROUNDS = TOGETHER_STEPS / 4, MAX_BLOCKS = 8;
constexpr int SLOTS = 4, SLOT_STEPS = TOGETHER_STEPS / SLOTS; /* lanes of a channel that find its map; their steps */

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

/* What a lane finds the map from: steps, one after another, of a channel. */
template <typename T, int N> struct together_inputs {
    T u[SLOT_STEPS], dt[SLOT_STEPS];
    float elapsed; /* of the step that is the lane's number */
    float A[N], bias2;

    __device__ __forceinline__ together_inputs(const params &p, const place<1> &at, int begin, int end)
    {
        const int c = at.channel(p, 0), lane_step = begin + int(threadIdx.x) % 32;
        const column<T> u0(p.s.u, p.s.u_row, c, p, at.batch), dt0(p.s.dt, p.s.dt_row, c, p, at.batch);
        const float *elapsed0 = p.s.elapsed ? p.s.elapsed + int64_t(at.batch) * p.s.length : &one_and_only;
        const float *row = p.s.A + int64_t(c) * p.s.d_state;
#pragma unroll
        for (int i = 0; i < SLOT_STEPS; i++) {
            const int t = min(begin + at.part * SLOT_STEPS + i, end - 1);
            u[i] = *u0.at(t, p.u_step), dt[i] = *dt0.at(t, p.dt_step);
        }
        elapsed = lane_step < end ? elapsed0[lane_step & p.elapsed_mask] : 0.0f;
        bias2 = p.s.dt_bias ? LOG2E * p.s.dt_bias[c] : 0.0f;
        if (p.s.d_state == N)
            load<N>(A, row);
        else
#pragma unroll
            for (int s = 0; s < N; s++)
                A[s] = s < p.s.d_state ? row[s] : 0.0f;
    }
};

/* delta and delta u of the warp's steps into its tile, where B is; its map into end and sum. True: states decay so
 * little that decay_exactly is wanted. */
template <typename T, int N>
__device__ __forceinline__ bool find_map(together_warp<N> &warp, const together_inputs<T, N> &inputs,
                                         const place<1> &at)
{
    constexpr int FOURS = N / 4;
    float A2[N], slowest = INFINITY, longest = 0.0f;
#pragma unroll
    for (int s = 0; s < N; s++) {
        A2[s] = LOG2E * inputs.A[s];
        if (A2[s] != 0.0f)
            slowest = fminf(slowest, fabsf(A2[s]));
    }
    float x[SLOT_STEPS], away[SLOT_STEPS], elapsed[SLOT_STEPS], mine = 0.0f, nearer;
    load<SLOT_STEPS>(elapsed, warp.elapsed + at.part * SLOT_STEPS);
#pragma unroll
    for (int i = SLOT_STEPS - 1; i >= 0; i--) {
        const int t = at.part * SLOT_STEPS + i;
        const float delta = elapsed[i] * softplus(fmaf(to_float(inputs.dt[i]), LOG2E, inputs.bias2));
        x[i] = delta * to_float(inputs.u[i]);
        away[i] = mine;
        mine += delta;
        longest = fmaxf(longest, delta);
        reinterpret_cast<float2 *>(&warp.tile.steps[t / 2][0][at.group])[t % 2] = make_float2(delta, x[i]);
    }
    const float sum = sum_slots<false, SLOTS>(mine, at.part, &nearer);
#pragma unroll
    for (int i = 0; i < SLOT_STEPS; i++)
        away[i] += nearer;
#pragma unroll
    for (int g = 0; g < FOURS; g++) {
        float h[4] = {};
        add_steps<FOURS, SLOT_STEPS>(h, A2 + 4 * g, x, away, warp.tile.bc[0] + at.part * SLOT_STEPS * FOURS + g);
        warp.end[at.group * N + 4 * g + at.part] = fold<SLOTS, GROUPS>(h, at.part);
    }
    if (at.part == 0)
        warp.sum[at.group] = sum;
    return __any_sync(ALL, longest * slowest < LONG_MEMORY);
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

/* What the walk needs but states. */
template <typename T, int N>
__device__ __forceinline__ void prepare_outputs(outputs<1, TOGETHER_ROUNDS> &outputs,
                                                const forward_inputs<T, N, 1, 4, TOGETHER_ROUNDS> &inputs,
                                                const params &p, const place<1> &at, float skip)
{
    outputs.ends[0] = at.has(p, 0) ? p.s.length : 0;
#pragma unroll
    for (int j = 0; j < TOGETHER_ROUNDS; j++) {
        outputs.direct[0][j] = skip * to_float(inputs.u[0][j]);
        outputs.gate[0][j] = p.s.z ? silu(to_float(inputs.z[0][j])) : 1.0f;
    }
}

/* Grid (channel groups x blocks of a cluster, batch); p.chunks: blocks of a cluster, p.chunk_steps: of a block, as many
 * as it has threads. */
template <typename T, int N> __global__ void __launch_bounds__(32 * TOGETHER_WARPS, 1) scan_together(const params p)
{
    extern __shared__ __align__(16) unsigned char shared[];
    together_block<N> &block = *reinterpret_cast<together_block<N> *>(shared);
    place<1> at(1, lanes::BRAIDED), early(1, lanes::APART);
    together_warp<N> &warp = block.warps[at.warp];
    const int rank = int(cluster::rank()), channel0 = int(cluster::number()) * GROUPS, length = p.s.length;
    const bool passes = int(threadIdx.x) < together_block<N>::STATES;
    at.first = channel0 + at.group, early.first = channel0 + early.group;
    open_block(block);
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    const int begin = rank * p.chunk_steps + at.warp * TOGETHER_STEPS;
    const together_inputs<T, N> first(p, early, begin, length);
    forward_inputs<T, N, 1, 4, TOGETHER_ROUNDS> inputs(p, at);
    staged_bc<T, N, false, 32, 1, TOGETHER_STEPS> B(p, at.batch), C(p, at.batch, 0, true);
    B.load(p, begin, length);
    const int n = int(threadIdx.x) % N, c = channel0 + int(threadIdx.x) / N;
    const bool there = passes && n < p.s.d_state && c < p.s.channels;
    const int64_t state = int64_t(c) * p.s.d_state + n, item = int64_t(at.batch) * p.s.channels * p.s.d_state;
    const float A2 = there ? LOG2E * p.s.A[state] : 0.0f, h0 = there && p.s.h0 ? p.s.h0[item + state] : 0.0f;
    forward_lane<N, 1, 4> lane;
    start_lane(lane, p, at);
    warp.elapsed[threadIdx.x % 32] = first.elapsed;
    B.put(warp.tile.bc[0], 0);
    __syncwarp();
    C.load(p, begin, length); /* and what else is wanted after the map: its own came first */
#pragma unroll
    for (int j = 0; j < TOGETHER_ROUNDS; j++) {
        const int t = min(begin + 4 * j + at.part, length - 1);
        inputs.u[0][j] = *inputs.u0.at(t, p.u_step), inputs.z[0][j] = *inputs.z0.at(t, p.z_step);
    }
    const bool exactly = find_map<T, N>(warp, first, early);
    C.put(warp.tile.bc[1], 0);
    cluster::wait(); /* all blocks are there to be told */
    __syncthreads();
    if (threadIdx.x == 0) /* not before: arrive_early() publishes no more than an init */
        ptx::barrier_expect(&block.told, uint32_t(rank) * uint32_t(sizeof(block.passages[0])));
    if (passes)
        tell(block, pass_along(block, A2, int(blockDim.x) / 32), rank, p.chunks);
    outputs<1, TOGETHER_ROUNDS> outputs;
    prepare_outputs<T, N>(outputs, inputs, p, at, lane.skip[0]);
    if (passes)
        block.start[threadIdx.x] = hear(block, h0, rank);
    __syncthreads();
    if (begin >= length)
        return;
    start_walk(lane, block, warp, at);
    keep_states(lane, p, at, begin);
    if (exactly)
        walk_exactly(warp.tile, lane, outputs, inputs, p, at, begin);
    else
        walk_tile(warp.tile, lane, outputs, inputs, p, at, begin, [](int) {});
    store_end<N, 1, 4>(lane.h, p, at, begin, min(length, begin + TOGETHER_STEPS));
}

} /* namespace scan */

#endif
