/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_FORWARD_H
#define KERNELS_CUDA_SELECTIVE_SCAN_FORWARD_H

/* The scan forward.
 *
 * Mapping. P lanes share a channel, N / P states each; a warp walks 32 / P K channels through time, a block of four
 * warps neighbouring channels of one sequence. A warp stages B and C for itself and waits for no other. Of each P
 * steps a lane prepares one (softplus, delta u) and finishes it (sum of y over the P lanes by a transposing fold, D,
 * gate), so that work is shared evenly. What a lane reads of B and C serves its K channels: of the cycles a
 * multiprocessor's shared memory is busy with reads for a step of 32 channels, K = 1 and P = 4 takes 20, K = 2 takes
 * 12, and with P = 2 takes 10; exponentials take 38. */

#include "kernels/cuda/selective_scan_chunks.h"

namespace scan
{

/* The power of two a state decays by in a step, below which a tile is walked by decay_exactly: a memory of 1,500 steps.
 * The usual initialisation (delta from 0.001, A from -1) stays above. */
constexpr float LONG_MEMORY = 0x1p-10f;

/* Blocks of 4 warps on a multiprocessor, which limits registers. */
constexpr int forward_blocks(int N, int K, int P)
{
    return N > 16 || P == 2 ? 2 : K == 2 ? 3 : 4;
}

/* Steps whose exponentials are found at once, ahead of the steps that use them. */
template <int N, int P> constexpr int UNIT = N > 16 || P == 2 ? 2 : 4;

/* Steps a lane prepares of a tile of R P steps, where a tile is not longer. */
constexpr int ROUNDS = 4;

/* What a warp has in shared memory. */
template <int N, int K, int P, int R = ROUNDS> struct forward_tile {
    static constexpr int STEPS = R * P;
    float4 bc[2][STEPS * N / 4];        /* B, then C */
    float4 steps[STEPS / 2][K][32 / P]; /* delta, delta u of a step, and of the next */
};

/* A tile's inputs on their way while the tile before is walked. */
template <typename T, int N, int K, int P, int R = ROUNDS> struct forward_inputs {
    column<T> u0, dt0, z0, out0;
    const float *elapsed0;
    int second; /* from the first channel to the second */
    T u[K][R], dt[K][R], z[K][R];
    float elapsed[R];
    staged_bc<T, N, true, 32, 1, R * P> bc;

    __device__ __forceinline__ forward_inputs(const params &p, const place<K, P> &at)
        : u0(p.s.u, p.s.u_row, at.channel(p, 0), p, at.batch), dt0(p.s.dt, p.s.dt_row, at.channel(p, 0), p, at.batch),
          z0(p.s.z ? p.s.z : p.s.u, p.s.z ? p.s.z_row : p.s.u_row, at.channel(p, 0), p, at.batch),
          out0(p.s.out, p.s.out_row, at.channel(p, 0), p, at.batch),
          elapsed0(p.s.elapsed ? p.s.elapsed + int64_t(at.batch) * p.s.length : &one_and_only),
          second(at.channel(p, K - 1) - at.channel(p, 0)), bc(p, at.batch)
    {
    }
    __device__ __forceinline__ void load(const params &p, const place<K, P> &at, int t0, int end)
    {
#pragma unroll
        for (int j = 0; j < R; j++) {
            const int t = min(t0 + P * j + at.part, end - 1);
#pragma unroll
            for (int k = 0; k < K; k++) {
                u[k][j] = u0.at(t, p.u_step)[k ? second : 0];
                dt[k][j] = dt0.at(t, p.dt_step)[k ? second : 0];
                z[k][j] = z0.at(t, p.z_step)[k ? second : 0];
            }
            elapsed[j] = elapsed0[t & p.elapsed_mask];
        }
        bc.load(p, t0, end);
    }
    __device__ __forceinline__ float u_at(int j, int k) const
    {
        return to_float(u[k][j]);
    }
    __device__ __forceinline__ float dt_at(int j, int k) const
    {
        return to_float(dt[k][j]);
    }
    __device__ __forceinline__ float gate(const params &p, int j, int k) const
    {
        return p.s.z ? silu(to_float(z[k][j])) : 1.0f;
    }
    /* The step's delta; there: it is before the end. */
    __device__ __forceinline__ float lasting(float delta, int j, bool there) const
    {
        return (there ? elapsed[j] : 0.0f) * delta;
    }
    /* Of channels that have step t. */
    __device__ __forceinline__ void write(const float (&out)[K], const int (&ends)[K], int t, const params &p) const
    {
#pragma unroll
        for (int k = 0; k < K; k++)
            if (t < ends[k])
                put(const_cast<T *>(out0.at(t, p.out_step)) + (k ? second : 0), out[k]);
    }
};

/* One lane: its channels' constants and states. */
template <int N, int K, int P> struct forward_lane {
    static constexpr int S = N / P;
    float A2[K][S], h[K][S], bias2[K], skip[K];
    float slowest[K]; /* the least |A2| but zero */
};

/* exp(delta A) and delta u of UNIT steps. */
template <int N, int K, int P> struct decays {
    static constexpr int UNIT = scan::UNIT<N, P>;
    float a[UNIT][K][N / P], x[UNIT][K];

    template <typename Tile>
    __device__ __forceinline__ void find(const Tile &tile, const forward_lane<N, K, P> &lane, int t, int group)
    {
#pragma unroll
        for (int i = 0; i < UNIT; i += 2)
#pragma unroll
            for (int k = 0; k < K; k++) {
                const float4 pair = tile.steps[(t + i) / 2][k][group];
                x[i][k] = pair.y, x[i + 1][k] = pair.w;
#pragma unroll
                for (int s = 0; s < N / P; s++) {
                    a[i][k][s] = ptx::exp2(pair.x * lane.A2[k][s]);
                    a[i + 1][k][s] = ptx::exp2(pair.z * lane.A2[k][s]);
                }
            }
    }
};

/* Step t of the tile; advance(k, s, b) is the new state. y[k][t % P] <- the lane's part of <C, h>. */
template <typename Tile, int N, int K, int P, typename Advance>
__device__ __forceinline__ void take_step(float (&y)[K][P], forward_lane<N, K, P> &lane, const Tile &tile, int t,
                                          int part, Advance advance)
{
    constexpr int S = N / P;
    float b[S], c[S];
    load<S>(b, reinterpret_cast<const float *>(tile.bc[0]) + t * N + part * S);
    load<S>(c, reinterpret_cast<const float *>(tile.bc[1]) + t * N + part * S);
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int s = 0; s < S; s++) {
            lane.h[k][s] = advance(k, s, b[s]);
            y[k][t % P] = s ? fmaf(lane.h[k][s], c[s], y[k][t % P]) : lane.h[k][s] * c[s];
        }
}

/* What a lane adds to and multiplies with the <C, h> of the steps it prepared, and the steps up to which it writes. */
template <int K, int R = ROUNDS> struct outputs {
    float direct[K][R], gate[K][R];
    int ends[K];
};

/* Prepare the lane's step of round j: what the tile gets of it. longest: delta, of the rounds so far. */
template <typename Inputs, int N, int K, int P, int R>
__device__ __forceinline__ void prepare_round(float2 (&steps)[K], float (&longest)[K], outputs<K, R> &outputs,
                                              const forward_lane<N, K, P> &lane, const Inputs &inputs, const params &p,
                                              const place<K, P> &at, int t0, int end, int j)
{
    const bool there = t0 + P * j + at.part < end;
#pragma unroll
    for (int k = 0; k < K; k++) {
        const float u = inputs.u_at(j, k);
        const float delta = inputs.lasting(softplus(fmaf(inputs.dt_at(j, k), LOG2E, lane.bias2[k])), j, there);
        steps[k] = make_float2(delta, delta * u);
        longest[k] = j ? fmaxf(longest[k], delta) : delta;
        outputs.direct[k][j] = lane.skip[k] * u;
        outputs.gate[k][j] = inputs.gate(p, j, k);
    }
}

template <typename Tile, int K, int P>
__device__ __forceinline__ void put_round(Tile &tile, const float2 (&steps)[K], const place<K, P> &at, int j)
{
#pragma unroll
    for (int k = 0; k < K; k++)
        reinterpret_cast<float2 *>(&tile.steps[P * j / 2 + at.part / 2][k][at.group])[at.part % 2] = steps[k];
}

/* Somewhere in the warp states decay so little that decay_exactly is wanted. */
template <int N, int K, int P>
__device__ __forceinline__ bool remembers_long(const forward_lane<N, K, P> &lane, const float (&longest)[K])
{
    bool remembers = false;
#pragma unroll
    for (int k = 0; k < K; k++)
        remembers = remembers || longest[k] * lane.slowest[k] < LONG_MEMORY;
    return __any_sync(ALL, remembers);
}

/* Write the step of round j that the lane prepared. */
template <typename Inputs, int K, int P, int R>
__device__ __forceinline__ void write_outputs(const float (&y)[K][P], const outputs<K, R> &outputs,
                                              const Inputs &inputs, const params &p, const place<K, P> &at, int t0,
                                              int j)
{
    const int t = t0 + P * j + at.part;
    float out[K];
#pragma unroll
    for (int k = 0; k < K; k++)
        out[k] = (fold<P, 1, BRAIDED_FAR>(y[k], at.part) + outputs.direct[k][j]) * outputs.gate[k][j];
    inputs.write(out, outputs.ends, t, p);
}

/* Before step t. */
template <int N, int K, int P>
__device__ __forceinline__ void keep_states(const forward_lane<N, K, P> &lane, const params &p, const place<K, P> &at,
                                            int t)
{
    if (p.s.states && t % TILE == 0 && t < p.s.length)
        store_states<N, K, P>(checkpoint(p, at, t), lane.h, p, at);
}

/* Walk the tile; the exponentials of UNIT steps ahead of those that use them. after(j): round j is written. */
template <typename Tile, typename Inputs, int N, int K, int P, int R, typename After>
__device__ __forceinline__ void walk_tile(const Tile &tile, forward_lane<N, K, P> &lane, const outputs<K, R> &outputs,
                                          const Inputs &inputs, const params &p, const place<K, P> &at, int t0,
                                          After after)
{
    constexpr int STEPS = R * P, UNIT = scan::UNIT<N, P>;
    decays<N, K, P> decays[2];
    float y[K][P];
    decays[0].find(tile, lane, 0, at.group);
#pragma unroll
    for (int t = 0; t < STEPS; t++) {
        if (t > 0 && t % TILE == 0)
            keep_states(lane, p, at, t0 + t);
        if (t % UNIT == 0 && t + UNIT < STEPS)
            decays[(t / UNIT + 1) % 2].find(tile, lane, t + UNIT, at.group);
        const auto &now = decays[t / UNIT % 2];
        take_step(y, lane, tile, t, at.part, [&](int k, int s, float b) {
            return fmaf(now.a[t % UNIT][k][s], lane.h[k][s], now.x[t % UNIT][k] * b);
        });
        if (t % P == P - 1) {
            write_outputs(y, outputs, inputs, p, at, t0, t / P);
            after(t / P);
        }
    }
}

/* The same for states that remember long. */
template <typename Tile, typename Inputs, int N, int K, int P, int R>
__device__ __forceinline__ void walk_exactly(const Tile &tile, forward_lane<N, K, P> &lane,
                                             const outputs<K, R> &outputs, const Inputs &inputs, const params &p,
                                             const place<K, P> &at, int t0)
{
    float y[K][P];
#pragma unroll
    for (int t = 0; t < R * P; t++) {
        float2 step[K];
        if (t > 0 && t % TILE == 0)
            keep_states(lane, p, at, t0 + t);
#pragma unroll
        for (int k = 0; k < K; k++)
            step[k] = reinterpret_cast<const float2 *>(&tile.steps[t / 2][k][at.group])[t % 2];
        take_step(y, lane, tile, t, at.part, [&](int k, int s, float b) {
            return decay_exactly(step[k].x * lane.A2[k][s], lane.h[k][s], step[k].y * b);
        });
        if (t % P == P - 1)
            write_outputs(y, outputs, inputs, p, at, t0, t / P);
    }
}

/* Walk steps begin..end, begin a multiple of TILE. */
template <typename T, int N, int K, int P>
__device__ __forceinline__ void walk_forward(forward_tile<N, K, P> &tile, forward_lane<N, K, P> &lane, const params &p,
                                             const place<K, P> &at, int begin, int end)
{
    constexpr int STEPS = ROUNDS * P;
    if (begin >= end)
        return;
    forward_inputs<T, N, K, P> inputs(p, at);
    inputs.load(p, at, begin, end);
    outputs<K> outputs;
#pragma unroll
    for (int k = 0; k < K; k++)
        outputs.ends[k] = at.has(p, k) ? end : 0;
#pragma unroll 1
    for (int t0 = begin; t0 < end; t0 += STEPS) {
        float longest[K];
        inputs.bc.put(tile.bc[0], 0);
#pragma unroll
        for (int j = 0; j < ROUNDS; j++) {
            float2 steps[K];
            prepare_round(steps, longest, outputs, lane, inputs, p, at, t0, end, j);
            put_round(tile, steps, at, j);
        }
        const bool exactly = remembers_long(lane, longest);
        keep_states(lane, p, at, t0);
        __syncwarp();
        if (t0 + STEPS < end)
            inputs.load(p, at, t0 + STEPS, end);
        if (exactly)
            walk_exactly(tile, lane, outputs, inputs, p, at, t0);
        else
            walk_tile(tile, lane, outputs, inputs, p, at, t0, [](int) {});
        __syncwarp(); /* all have read the tile */
    }
}

template <int N, int K, int P>
__device__ __forceinline__ void start_lane(forward_lane<N, K, P> &lane, const params &p, const place<K, P> &at)
{
    load_states<N, K, P>(lane.A2, p.s.A, p, at, p.s.d_state);
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int c = at.channel(p, k);
        lane.bias2[k] = p.s.dt_bias ? LOG2E * p.s.dt_bias[c] : 0.0f;
        lane.skip[k] = p.s.D ? p.s.D[c] : 0.0f;
        lane.slowest[k] = INFINITY;
#pragma unroll
        for (int s = 0; s < N / P; s++) {
            lane.A2[k][s] *= LOG2E;
            if (lane.A2[k][s] != 0.0f)
                lane.slowest[k] = fminf(lane.slowest[k], fabsf(lane.A2[k][s]));
        }
    }
}

template <int N, int K, int P>
__device__ __forceinline__ void store_end(const float (&h)[K][N / P], const params &p, const place<K, P> &at, int begin,
                                          int end)
{
    if (p.s.h_end && end == p.s.length && begin < end)
        store_states<N, K, P>(p.s.h_end + int64_t(at.batch) * p.s.channels * p.s.d_state, h, p, at);
}

/* The scan of a chunk, or of all there is. Grid (channel groups x chunks, batch). */
template <typename T, int N, int K, int P>
__global__ void __launch_bounds__(32 * WARPS, forward_blocks(N, K, P)) scan_forward(const params p)
{
    extern __shared__ __align__(16) unsigned char shared[];
    forward_tile<N, K, P> &tile = reinterpret_cast<forward_tile<N, K, P> *>(shared)[threadIdx.x / 32];
    const place<K, P> at(p.chunks, lanes::BRAIDED);
    forward_lane<N, K, P> lane;
    start_lane(lane, p, at);
    ptx::wait_for_kernels();
    follow_maps<T, N, K, P>(lane.h, lane.A2, p, at, -1, p.s.h0);
    const int begin = at.chunk * p.chunk_steps, end = min(p.s.length, begin + p.chunk_steps);
    walk_forward<T>(tile, lane, p, at, begin, end);
    store_end<N, K, P>(lane.h, p, at, begin, end);
}

} /* namespace scan */

#endif
