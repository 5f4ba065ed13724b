/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_CHUNKS_H
#define KERNELS_CUDA_SELECTIVE_SCAN_CHUNKS_H

/* What a cut in time costs: a first launch finds what each chunk hands on to the next (forward: the state at its end
 * from zero at its begin; backward: the gradient at its begin from zero at its end), and delta summed, by which it
 * decays what it is handed. A chunk then starts with a sum over the chunks before it. Both sums are over independent
 * terms, exp(A delta summed to the edge) times what a step feeds: no chain of states, and no rounding of one step is
 * repeated in the next. So lanes share a tile's steps, and steps are walked away from the edge, by fewer and fewer
 * states, until what is beyond is forgotten: most of a long chunk is never read. */

#include "kernels/cuda/selective_scan_walk.h"

namespace scan
{

constexpr int SLOTS = 4; /* lanes of a channel; each has STEPS of a tile's steps */

/* Of two to the power of minus this is left of a state that is forgotten: what fp32 rounds away. */
constexpr float FORGOTTEN = 24.0f;

/* States of a channel that one lane of scan_map takes. */
template <int N> constexpr int SPAN = N < 16 ? N : 16;

template <int N, int STEPS> struct map_tile {
    float4 bc[SLOTS * STEPS * SPAN<N> / 4]; /* B, or C backward */
    float4 elapsed[SLOTS * STEPS / 4];
};

/* A lane's inputs of a tile, on their way while the tile before is walked: u, or backward dout and z. */
template <typename T, int N, bool BACK, int STEPS> struct map_inputs {
    column<T> u0, dt0, z0;
    const float *elapsed0;
    T u[STEPS], dt[STEPS], z[BACK ? STEPS : 1];
    float elapsed;
    staged_bc<T, SPAN<N>, false, 32, 1, SLOTS * STEPS> bc;

    __device__ __forceinline__ map_inputs(const params &p, const place<1> &at, int from)
        : u0(BACK ? p.s.dout : p.s.u, BACK ? p.s.dout_row : p.s.u_row, at.channel(p, 0), p, at.batch),
          dt0(p.s.dt, p.s.dt_row, at.channel(p, 0), p, at.batch),
          z0(p.s.z ? p.s.z : p.s.u, p.s.z ? p.s.z_row : p.s.u_row, at.channel(p, 0), p, at.batch),
          elapsed0(p.s.elapsed ? p.s.elapsed + int64_t(at.batch) * p.s.length : &one_and_only),
          bc(p, at.batch, from, BACK)
    {
    }
    __device__ __forceinline__ void load(const params &p, int slot, int t0, int end)
    {
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int t = min(t0 + slot * STEPS + i, end - 1);
            u[i] = *u0.at(t, BACK ? p.dout_step : p.u_step), dt[i] = *dt0.at(t, p.dt_step);
            if constexpr (BACK)
                z[i] = *z0.at(t, p.z_step);
        }
        const int t = t0 + int(threadIdx.x) % (SLOTS * STEPS);
        elapsed = t < end ? elapsed0[t & p.elapsed_mask] : 0.0f;
        bc.load(p, t0, end);
    }
    __device__ __forceinline__ void put(map_tile<N, STEPS> &tile) const
    {
        bc.put(tile.bc, 0);
        if (threadIdx.x % 32 < SLOTS * STEPS)
            reinterpret_cast<float *>(tile.elapsed)[threadIdx.x % 32] = elapsed;
    }
};

/* delta summed over the steps walked, compensated: thousands of roundings would show in long memories. */
struct long_sum {
    float sum = 0.0f, lost = 0.0f;
    __device__ __forceinline__ void add(float x)
    {
        const float y = x - lost, t = sum + y;
        lost = (t - sum) - y, sum = t;
    }
};

/* A channel's sum over its slots, which are GROUPS lanes apart; nearer: over those between this one and the edge. */
template <bool BACK> __device__ __forceinline__ float sum_slots(float mine, int slot, float *nearer)
{
    const float one = __shfl_xor_sync(ALL, mine, GROUPS), pair = mine + one;
    const float two = __shfl_xor_sync(ALL, pair, 2 * GROUPS);
    const int before = BACK ? slot : SLOTS - 1 - slot;
    *nearer = (before & 1 ? one : 0.0f) + (before & 2 ? two : 0.0f);
    return pair + two;
}

/* A lane's steps of a tile: what each feeds to the states, and delta summed between it and the edge (backward with its
 * own). Gives the tile's sum of delta. */
template <typename T, int N, bool BACK, int STEPS>
__device__ __forceinline__ float
prepare_tile(float (&x)[STEPS], float (&away)[STEPS], float sum, const map_inputs<T, N, BACK, STEPS> &inputs,
             const map_tile<N, STEPS> &tile, const params &p, int slot, float bias2, int left)
{
    float elapsed[STEPS], mine = 0.0f, nearer;
    load<STEPS>(elapsed, reinterpret_cast<const float *>(tile.elapsed) + slot * STEPS);
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const int i = BACK ? j : STEPS - 1 - j;
        const float delta = elapsed[i] * softplus(fmaf(to_float(inputs.dt[i]), LOG2E, bias2));
        if constexpr (BACK) {
            const float dout = slot * STEPS + i < left ? to_float(inputs.u[i]) : 0.0f;
            x[i] = p.s.z ? dout * silu(to_float(inputs.z[i])) : dout;
            mine += delta;
            away[i] = mine;
        } else {
            x[i] = delta * to_float(inputs.u[i]);
            away[i] = mine;
            mine += delta;
        }
    }
    const float tile_sum = sum_slots<BACK>(mine, slot, &nearer);
#pragma unroll
    for (int i = 0; i < STEPS; i++)
        away[i] += sum + nearer;
    return tile_sum;
}

/* Four states of a lane: h += sum_t exp(A away_t) x_t B_t over its steps of a tile. */
template <int ROW, int STEPS>
__device__ __forceinline__ void add_steps(float *h, const float *A2, const float (&x)[STEPS],
                                          const float (&away)[STEPS], const float4 *bc)
{
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        float b[4];
        load<4>(b, reinterpret_cast<const float *>(bc + i * ROW));
#pragma unroll
        for (int s = 0; s < 4; s++)
            h[s] = fmaf(ptx::exp2(away[i] * A2[s]), x[i] * b[s], h[s]);
    }
}

/* The map of each chunk but the last, backward but the first. A warp has 8 channels and SPAN states, a lane
 * STEPS of each 4 STEPS steps. Grid (channel groups x N / SPAN x (chunks - 1), batch). */
template <typename T, int N, bool BACK, int STEPS>
__global__ void __launch_bounds__(32 * WARPS, 3) scan_map(const params p)
{
    constexpr int S = SPAN<N>, FOURS = S / 4, MAP_STEPS = SLOTS * STEPS;
    __shared__ map_tile<N, STEPS> tiles[WARPS];
    map_tile<N, STEPS> &tile = tiles[threadIdx.x / 32];
    place<1> at((p.chunks - 1) * (N / S), false);
    const int from = at.chunk / (p.chunks - 1) * S, c = at.channel(p, 0), slot = at.part;
    at.chunk = at.chunk % (p.chunks - 1) + (BACK ? 1 : 0);
    const int begin = at.chunk * p.chunk_steps, end = min(p.s.length, begin + p.chunk_steps);
    const int tiles_left = (end - begin + MAP_STEPS - 1) / MAP_STEPS, step = BACK ? MAP_STEPS : -MAP_STEPS;
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    float A2[S], h[S] = {}, slowest[FOURS];
#pragma unroll
    for (int s = 0; s < S; s++) {
        const bool there = from + s < p.s.d_state;
        A2[s] = there ? LOG2E * p.s.A[int64_t(c) * p.s.d_state + from + s] : 0.0f;
        slowest[s / 4] = fminf(s % 4 ? slowest[s / 4] : INFINITY, there ? -A2[s] : INFINITY);
    }
    const float bias2 = p.s.dt_bias ? LOG2E * p.s.dt_bias[c] : 0.0f;
    map_inputs<T, N, BACK, STEPS> inputs(p, at, from);
    long_sum sum;
    int t0 = BACK ? begin : begin + (tiles_left - 1) * MAP_STEPS;
    inputs.load(p, slot, t0, end);
#pragma unroll 1
    for (int i = 0; i < tiles_left; i++, t0 += step) {
        float x[STEPS], away[STEPS];
        bool remembers = false;
        __syncwarp(); /* all have read the tile before */
        inputs.put(tile);
        __syncwarp();
        const float tile_sum = prepare_tile(x, away, sum.sum, inputs, tile, p, slot, bias2, end - t0);
        inputs.load(p, slot, max(min(t0 + step, end - 1), begin), end);
#pragma unroll
        for (int g = 0; g < FOURS; g++)
            if (__any_sync(ALL, !(sum.sum * slowest[g] >= FORGOTTEN))) {
                add_steps<FOURS, STEPS>(h + 4 * g, A2 + 4 * g, x, away, tile.bc + slot * STEPS * FOURS + g);
                remembers = true;
            }
        if (!remembers && N == S) /* else another block may need the whole sum */
            break;
        sum.add(tile_sum);
    }
#pragma unroll
    for (int s = 0; s < S; s++)
        h[s] = sum4<GROUPS>(h[s]);
    if (slot != 0 || !at.has(p, 0))
        return;
    store<S>(chunk_map<N>(p, at.batch, at.chunk) + int64_t(c) * N + from, h);
    if (from == 0)
        *chunk_sum(p, at.batch, at.chunk, c) = sum.sum;
}

/* h <- what the lane's chunk is handed: by the maps of the chunks before (direction -1) or after it (1), the nearest
 * first, until all is forgotten, and by `beyond` (batch, E, N), NULL for zero. */
template <int N, int K, int P>
__device__ __forceinline__ void follow_maps(float (&h)[K][N / P], const float (&A2)[K][N / P], const params &p,
                                            const place<K, P> &at, int direction, const float *beyond)
{
    constexpr int S = N / P, AT_ONCE = S * K <= 4 ? 16 : S * K <= 16 ? 4 : 1; /* chunks on their way at once */
    const int count = direction < 0 ? at.chunk : p.chunks - 1 - at.chunk;
    float away[K] = {}, slowest[K]; /* delta summed over the chunks between */
#pragma unroll
    for (int k = 0; k < K; k++) {
        slowest[k] = INFINITY;
#pragma unroll
        for (int s = 0; s < S; s++)
            h[k][s] = 0.0f, slowest[k] = fminf(slowest[k], at.part * S + s < p.s.d_state ? -A2[k][s] : INFINITY);
    }
#pragma unroll 1
    for (int first = 0; first < count; first += AT_ONCE) {
        bool remembers = false;
#pragma unroll
        for (int k = 0; k < K; k++)
            remembers = remembers || !(away[k] * slowest[k] >= FORGOTTEN);
        if (!__any_sync(ALL, remembers))
            return;
        float local[AT_ONCE][K][S], sum[AT_ONCE][K];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
            for (int k = 0; k < K; k++) {
                const int c = at.channel(p, k), chunk = at.chunk + direction * min(first + i + 1, count);
                load<S>(local[i][k], chunk_map<N>(p, at.batch, chunk) + int64_t(c) * N + at.part * S);
                sum[i][k] = *chunk_sum(p, at.batch, chunk, c);
            }
#pragma unroll
        for (int k = 0; k < K; k++) {
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const bool there = first + i < count;
#pragma unroll
                for (int s = 0; s < S; s++)
                    h[k][s] = there ? fmaf(ptx::exp2(away[k] * A2[k][s]), local[i][k][s], h[k][s]) : h[k][s];
                away[k] += there ? sum[i][k] : 0.0f;
            }
        }
    }
    float start[K][S];
    load_states<N, K, P>(start, beyond ? beyond + int64_t(at.batch) * p.s.channels * p.s.d_state : nullptr, p, at,
                         p.s.d_state);
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int s = 0; s < S; s++)
            h[k][s] = fmaf(ptx::exp2(away[k] * A2[k][s]), start[k][s], h[k][s]);
}

} /* namespace scan */

#endif
