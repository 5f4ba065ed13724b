/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_FORWARD_H
#define KERNELS_CUDA_SELECTIVE_SCAN_FORWARD_H

/* The scan forward.
 *
 * Mapping. Four lanes share a channel, N / 4 states each; a warp walks 8 K channels through time, a block of 2 or 4
 * warps 16 K or 32 K neighbouring channels of one sequence. A warp stages B and C for itself and waits for no other. Of
 * each four steps a lane prepares one (softplus, delta u) and finishes it (sum of y over the four lanes by a
 * transposing fold, D, gate), so that work is shared evenly. */

#include "kernels/cuda/selective_scan_walk.h"

namespace scan
{

/* How many blocks of 4 warps a multiprocessor shall hold, which limits registers; measured for N = 16: with two
 * channels a lane 3 (168 registers), with one 4. */
template <int N, int K> constexpr int BLOCKS = N != 16 ? 2 : K == 2 ? 3 : 4;

/* The power of two a state decays by in a step, below which a tile is walked by decay_exactly: a memory of 1,500 steps.
 * The usual initialisation (delta from 0.001, A from -1) stays above. */
constexpr float LONG_MEMORY = 0x1p-10f;

/* What a warp has in shared memory. */
template <int N, int K> struct forward_tile {
    float4 bc[2][TILE * N / 4];        /* B, then C */
    float4 steps[TILE / 2][K][GROUPS]; /* delta, delta u of a step, and of the next */
};

/* A tile's inputs on their way while the tile before is walked. */
template <typename T, int N, int K, bool MAP> struct forward_inputs {
    column<T> u0, dt0, z0, out0;
    const float *elapsed0;
    int second; /* from the first channel to the second */
    T u[K][QUADS], dt[K][QUADS], z[MAP ? 1 : K][QUADS];
    float elapsed[QUADS];
    staged_bc<T, N, !MAP, 32, 1> bc;

    __device__ __forceinline__ forward_inputs(const params &p, const place<K> &at)
        : u0(p.s.u, p.s.u_row, at.channel(p, 0), p, at.batch), dt0(p.s.dt, p.s.dt_row, at.channel(p, 0), p, at.batch),
          z0(p.s.z ? p.s.z : p.s.u, p.s.z ? p.s.z_row : p.s.u_row, at.channel(p, 0), p, at.batch),
          out0(p.s.out, p.s.out_row, at.channel(p, 0), p, at.batch),
          elapsed0(p.s.elapsed ? p.s.elapsed + int64_t(at.batch) * p.s.length : &one_and_only),
          second(at.channel(p, K - 1) - at.channel(p, 0)), bc(p, at.batch)
    {
    }
    __device__ __forceinline__ void load(const params &p, const place<K> &at, int t0, int end)
    {
#pragma unroll
        for (int j = 0; j < QUADS; j++) {
            const int t = min(t0 + 4 * j + at.part, end - 1);
#pragma unroll
            for (int k = 0; k < K; k++) {
                u[k][j] = u0.at(t, p.u_step)[k ? second : 0];
                dt[k][j] = dt0.at(t, p.dt_step)[k ? second : 0];
                if constexpr (!MAP)
                    z[k][j] = z0.at(t, p.z_step)[k ? second : 0];
            }
            elapsed[j] = elapsed0[t & p.elapsed_mask];
        }
        bc.load(p, t0, end);
    }
};

/* One lane: its channels' constants and states. */
template <int N, int K> struct forward_lane {
    static constexpr int S = N / 4;
    float A2[K][S], h[K][S], sum[K], bias2[K], skip[K];
    float slowest[K]; /* the least |A2| but zero */
};

/* exp(delta A) of four steps. */
template <int N, int K>
__device__ __forceinline__ void find_decays(float (&a)[K][4][N / 4], float (&x)[K][4], const forward_tile<N, K> &tile,
                                            const forward_lane<N, K> &lane, int j, int group)
{
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float4 pair = tile.steps[2 * j + i][k][group];
            x[k][2 * i] = pair.y, x[k][2 * i + 1] = pair.w;
#pragma unroll
            for (int s = 0; s < N / 4; s++) {
                a[k][2 * i][s] = ptx::exp2(pair.x * lane.A2[k][s]);
                a[k][2 * i + 1][s] = ptx::exp2(pair.z * lane.A2[k][s]);
            }
        }
    }
}

/* Four steps of the states; y <- the lane's part of <C, h>, unless MAP. */
template <int N, int K, bool MAP>
__device__ __forceinline__ void take_steps(float (&y)[K][4], forward_lane<N, K> &lane, const float (&a)[K][4][N / 4],
                                           const float (&x)[K][4], const forward_tile<N, K> &tile, int j, int part)
{
    constexpr int S = N / 4;
    const float *B = reinterpret_cast<const float *>(tile.bc[0]) + part * S;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float b[S], c[S];
        load<S>(b, B + (4 * j + i) * N);
        if constexpr (!MAP)
            load<S>(c, B + (TILE + 4 * j + i) * N);
#pragma unroll
        for (int k = 0; k < K; k++)
#pragma unroll
            for (int s = 0; s < S; s++) {
                lane.h[k][s] = fmaf(a[k][i][s], lane.h[k][s], x[k][i] * b[s]);
                if constexpr (!MAP)
                    y[k][i] = s ? fmaf(lane.h[k][s], c[s], y[k][i]) : lane.h[k][s] * c[s];
            }
    }
}

/* find_decays and take_steps for states that remember long. */
template <int N, int K, bool MAP>
__device__ __forceinline__ void take_steps_exactly(float (&y)[K][4], forward_lane<N, K> &lane,
                                                   const forward_tile<N, K> &tile, int j, const place<K> &at)
{
    constexpr int S = N / 4;
    const float *B = reinterpret_cast<const float *>(tile.bc[0]) + at.part * S;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float b[S], c[S];
        load<S>(b, B + (4 * j + i) * N);
        if constexpr (!MAP)
            load<S>(c, B + (TILE + 4 * j + i) * N);
#pragma unroll
        for (int k = 0; k < K; k++) {
            const float2 step = reinterpret_cast<const float2 *>(&tile.steps[2 * j + i / 2][k][at.group])[i % 2];
#pragma unroll
            for (int s = 0; s < S; s++) {
                lane.h[k][s] = decay_exactly(step.x * lane.A2[k][s], lane.h[k][s], step.y * b[s]);
                if constexpr (!MAP)
                    y[k][i] = s ? fmaf(lane.h[k][s], c[s], y[k][i]) : lane.h[k][s] * c[s];
            }
        }
    }
}

/* What a lane adds to and multiplies with the <C, h> of the steps it prepared, and the steps up to which it writes. */
template <int K> struct outputs {
    float direct[K][QUADS], gate[K][QUADS];
    int ends[K];
};

/* Prepare the lane's steps of the tile. True: somewhere in the warp states decay so little that decay_exactly is
 * wanted. */
template <typename T, int N, int K, bool MAP>
__device__ __forceinline__ bool stage_forward(forward_tile<N, K> &tile, forward_lane<N, K> &lane, outputs<K> &outputs,
                                              const forward_inputs<T, N, K, MAP> &inputs, const params &p,
                                              const place<K> &at, int t0, int end)
{
    bool remembers = false;
    inputs.bc.put(tile.bc[0], 0);
#pragma unroll
    for (int k = 0; k < K; k++) {
        float longest = 0.0f;
#pragma unroll
        for (int j = 0; j < QUADS; j++) {
            const float elapsed = t0 + 4 * j + at.part < end ? inputs.elapsed[j] : 0.0f, u = to_float(inputs.u[k][j]);
            const float delta = elapsed * softplus(fmaf(to_float(inputs.dt[k][j]), LOG2E, lane.bias2[k]));
            reinterpret_cast<float2 *>(&tile.steps[2 * j + at.part / 2][k][at.group])[at.part % 2] =
                make_float2(delta, delta * u);
            longest = fmaxf(longest, delta);
            if constexpr (MAP) {
                lane.sum[k] += delta;
            } else {
                outputs.direct[k][j] = lane.skip[k] * u;
                outputs.gate[k][j] = p.s.z ? silu(to_float(inputs.z[k][j])) : 1.0f;
            }
        }
        remembers = remembers || longest * lane.slowest[k] < LONG_MEMORY;
    }
    return __any_sync(ALL, remembers);
}

/* Walk the tile. */
template <typename T, int N, int K, bool MAP, bool EXACTLY>
__device__ __forceinline__ void walk_tile(const forward_tile<N, K> &tile, forward_lane<N, K> &lane,
                                          const outputs<K> &outputs, const forward_inputs<T, N, K, MAP> &inputs,
                                          const params &p, const place<K> &at, int t0)
{
    /* exponentials of a quad of steps ahead, where registers do */
    constexpr int AHEAD = N <= 16 && !EXACTLY ? 1 : 0;
    float a[1 + AHEAD][K][4][N / 4], x[1 + AHEAD][K][4];
    if constexpr (AHEAD)
        find_decays<N, K>(a[0], x[0], tile, lane, 0, at.group);
#pragma unroll
    for (int j = 0; j < QUADS; j++) {
        float y[K][4];
        if constexpr (EXACTLY) {
            take_steps_exactly<N, K, MAP>(y, lane, tile, j, at);
        } else {
            const int now = AHEAD ? j % 2 : 0, next = AHEAD ? 1 - now : 0;
            if (j + AHEAD < QUADS)
                find_decays<N, K>(a[next], x[next], tile, lane, j + AHEAD, at.group);
            take_steps<N, K, MAP>(y, lane, a[now], x[now], tile, j, at.part);
        }
        if constexpr (!MAP) {
            const int t = t0 + 4 * j + at.part;
#pragma unroll
            for (int k = 0; k < K; k++) {
                const float out = (fold4<1>(y[k], at.part) + outputs.direct[k][j]) * outputs.gate[k][j];
                if (t < outputs.ends[k])
                    put(const_cast<T *>(inputs.out0.at(t, p.out_step)) + (k ? inputs.second : 0), out);
            }
        }
    }
}

/* Walk steps begin..end. MAP: only the state from zero, and the sum of delta of the steps the lane prepared. */
template <typename T, int N, int K, bool MAP>
__device__ __forceinline__ void walk_forward(forward_tile<N, K> &tile, forward_lane<N, K> &lane, const params &p,
                                             const place<K> &at, int begin, int end)
{
    if (begin >= end)
        return;
    forward_inputs<T, N, K, MAP> inputs(p, at);
    inputs.load(p, at, begin, end);
    outputs<K> outputs;
#pragma unroll
    for (int k = 0; k < K; k++)
        outputs.ends[k] = at.has(p, k) ? end : 0;
#pragma unroll 1
    for (int t0 = begin; t0 < end; t0 += TILE) {
        const bool exactly = stage_forward<T, N, K, MAP>(tile, lane, outputs, inputs, p, at, t0, end);
        if constexpr (!MAP)
            if (p.s.states)
                store_states<N, K>(checkpoint(p, at, t0), lane.h, p, at);
        __syncwarp();
        if (t0 + TILE < end)
            inputs.load(p, at, t0 + TILE, end);
        if (exactly)
            walk_tile<T, N, K, MAP, true>(tile, lane, outputs, inputs, p, at, t0);
        else
            walk_tile<T, N, K, MAP, false>(tile, lane, outputs, inputs, p, at, t0);
        __syncwarp(); /* all have read the tile */
    }
}

/* h <- the state after the maps of `count` chunks; get(chunk, k, local, sum) reads one. */
template <int N, int K, typename Get>
__device__ __forceinline__ void follow_maps(float (&h)[K][N / 4], const float (&A2)[K][N / 4], int first, int count,
                                            Get get)
{
#pragma unroll 8
    for (int chunk = first; chunk < count; chunk++) {
#pragma unroll
        for (int k = 0; k < K; k++) {
            float local[N / 4], sum;
            get(chunk, k, local, sum);
#pragma unroll
            for (int s = 0; s < N / 4; s++)
                h[k][s] = decay_exactly(sum * A2[k][s], h[k][s], local[s]);
        }
    }
}

template <int N, int K>
__device__ __forceinline__ void start_lane(forward_lane<N, K> &lane, const params &p, const place<K> &at)
{
    load_states<N, K>(lane.A2, p.s.A, p, at, p.s.d_state);
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int c = at.channel(p, k);
        lane.bias2[k] = p.s.dt_bias ? LOG2E * p.s.dt_bias[c] : 0.0f;
        lane.skip[k] = p.s.D ? p.s.D[c] : 0.0f;
        lane.slowest[k] = INFINITY;
#pragma unroll
        for (int s = 0; s < N / 4; s++) {
            lane.A2[k][s] *= LOG2E;
            if (lane.A2[k][s] != 0.0f)
                lane.slowest[k] = fminf(lane.slowest[k], fabsf(lane.A2[k][s]));
        }
    }
}

template <int N, int K> __device__ __forceinline__ void clear(forward_lane<N, K> &lane)
{
#pragma unroll
    for (int k = 0; k < K; k++) {
        lane.sum[k] = 0.0f;
#pragma unroll
        for (int s = 0; s < N / 4; s++)
            lane.h[k][s] = 0.0f;
    }
}

template <int N, int K>
__device__ __forceinline__ void load_start(float (&h)[K][N / 4], const params &p, const place<K> &at)
{
    load_states<N, K>(h, p.s.h0 ? p.s.h0 + int64_t(at.batch) * p.s.channels * p.s.d_state : nullptr, p, at,
                      p.s.d_state);
}

template <int N, int K>
__device__ __forceinline__ void store_end(const float (&h)[K][N / 4], const params &p, const place<K> &at, int begin,
                                          int end)
{
    if (p.s.h_end && end == p.s.length && begin < end)
        store_states<N, K>(p.s.h_end + int64_t(at.batch) * p.s.channels * p.s.d_state, h, p, at);
}

/* Phase 1 of a long scan: what chunk does to a state. Grid (channel groups x (chunks - 1), batch). */
template <typename T, int N, int K> __global__ void __launch_bounds__(32 * WARPS, BLOCKS<N, K>) scan_map(const params p)
{
    extern __shared__ __align__(16) unsigned char shared[];
    forward_tile<N, K> &tile = reinterpret_cast<forward_tile<N, K> *>(shared)[threadIdx.x / 32];
    const place<K> at(p.chunks - 1);
    forward_lane<N, K> lane;
    ptx::let_next_launch_start();
    start_lane(lane, p, at);
    clear(lane);
    walk_forward<T, N, K, true>(tile, lane, p, at, at.chunk * p.chunk_steps, (at.chunk + 1) * p.chunk_steps);
    store_states<N, K>(chunk_map<N>(p, at.batch, at.chunk), lane.h, p, at, N);
#pragma unroll
    for (int k = 0; k < K; k++) {
        const float sum = sum4<1>(lane.sum[k]);
        if (at.part == 0 && at.has(p, k))
            p.sums[(int64_t(at.batch) * p.chunks + at.chunk) * p.s.channels + at.channel(p, k)] = sum;
    }
}

/* The scan of a chunk, or of all there is. Grid (channel groups x chunks, batch). */
template <typename T, int N, int K>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS<N, K>) scan_forward(const params p)
{
    extern __shared__ __align__(16) unsigned char shared[];
    forward_tile<N, K> &tile = reinterpret_cast<forward_tile<N, K> *>(shared)[threadIdx.x / 32];
    const place<K> at(p.chunks);
    forward_lane<N, K> lane;
    start_lane(lane, p, at);
    load_start<N, K>(lane.h, p, at);
    ptx::wait_for_launch_before();
    follow_maps<N, K>(lane.h, lane.A2, 0, at.chunk, [&](int chunk, int k, float(&local)[N / 4], float &sum) {
        const int c = at.channel(p, k);
        load<N / 4>(local, chunk_map<N>(p, at.batch, chunk) + int64_t(c) * N + at.part * (N / 4));
        sum = p.sums[(int64_t(at.batch) * p.chunks + chunk) * p.s.channels + c];
    });
    const int begin = at.chunk * p.chunk_steps, end = min(p.s.length, begin + p.chunk_steps);
    walk_forward<T, N, K, false>(tile, lane, p, at, begin, end);
    store_end<N, K>(lane.h, p, at, begin, end);
}

} /* namespace scan */

#endif
