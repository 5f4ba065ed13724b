/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_CHUNKS_H
#define KERNELS_CUDA_SELECTIVE_SCAN_CHUNKS_H

/* What a cut in time costs: a first launch finds what each chunk hands on to the next (forward: the state at its end
 * from zero at its begin; backward: the gradient at its begin from zero at its end), and delta summed, by which it
 * decays what it is handed. A chunk then starts with a sum over the chunks before it. Both sums are over independent
 * terms, exp(A delta summed to the edge) times what a step feeds: no chain of states, and no rounding of one step is
 * repeated in the next. So lanes share a tile's steps, and steps are walked away from the edge, by fewer and fewer
 * states and channels, until what is beyond is forgotten: most of a long chunk is never read. */

#include "kernels/cuda/selective_scan_walk.h"

namespace scan
{

/* Of two to the power of minus this is left of a state that is forgotten: what fp32 rounds away, and a 128th of what
 * bf16 does. */
template <typename T> constexpr float FORGOTTEN = sizeof(T) == 2 ? 16.0f : 24.0f;

/* Steps of a tile that a lane has, at the fewest. */
constexpr int LEAST_STEPS = 4;

/* States of a channel that one lane of scan_map takes. */
template <int N> constexpr int SPAN = N < 16 ? N : 16;

/* STEPS: of a tile. */
template <int N, int STEPS> struct map_tile {
    float4 bc[STEPS * SPAN<N> / 4]; /* B, or C backward */
    float4 elapsed[STEPS / 4];
};

/* A lane's inputs of a tile, on their way while the tile before is walked: u, or backward dout and z. P lanes share a
 * channel, each has STEPS of the tile's. */
template <typename T, int N, bool BACK, int P, int STEPS> struct map_inputs {
    column<T> u0, dt0, z0;
    const float *elapsed0;
    T u[STEPS], dt[STEPS], z[BACK ? STEPS : 1];
    float elapsed;
    staged_bc<T, SPAN<N>, false, 32, 1, P * STEPS> bc;

    __device__ __forceinline__ map_inputs(const params &p, const place<1, P> &at, int from)
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
        const int t = t0 + int(threadIdx.x) % (P * STEPS);
        elapsed = t < end ? elapsed0[t & p.elapsed_mask] : 0.0f;
        bc.load(p, t0, end);
    }
    __device__ __forceinline__ void put(map_tile<N, P * STEPS> &tile) const
    {
        bc.put(tile.bc, 0);
        if (threadIdx.x % 32 < P * STEPS)
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

/* A channel's sum over its P slots, which are 32 / P lanes apart; nearer: over those between this one and the edge. */
template <bool BACK, int P> __device__ __forceinline__ float sum_slots(float mine, int slot, float *nearer)
{
    const int before = BACK ? slot : P - 1 - slot;
    *nearer = 0.0f;
#pragma unroll
    for (int bit = 1; bit < P; bit *= 2) {
        const float other = __shfl_xor_sync(ALL, mine, bit * (32 / P));
        *nearer += before & bit ? other : 0.0f;
        mine += other;
    }
    return mine;
}

/* Steps that are `away` from the nearer end of the lane's, which sum to `mine`: from the edge, with the `sum` of tiles
 * between. Gives the tile's sum of delta. */
template <bool BACK, int P, int STEPS>
__device__ __forceinline__ float place_steps(float (&away)[STEPS], float mine, float sum, int slot)
{
    float nearer;
    const float tile_sum = sum_slots<BACK, P>(mine, slot, &nearer);
#pragma unroll
    for (int i = 0; i < STEPS; i++)
        away[i] += sum + nearer;
    return tile_sum;
}

/* A lane's steps of a tile: what each feeds to the states, and delta summed between it and the edge (backward with its
 * own). Gives the tile's sum of delta. */
template <typename T, int N, bool BACK, int P, int STEPS>
__device__ __forceinline__ float
prepare_tile(float (&x)[STEPS], float (&away)[STEPS], float sum, const map_inputs<T, N, BACK, P, STEPS> &inputs,
             const map_tile<N, P * STEPS> &tile, const params &p, int slot, float bias2, int left)
{
    float elapsed[STEPS], mine = 0.0f;
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
    return place_steps<BACK, P>(away, mine, sum, slot);
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

/* One lane of scan_map: S states of a channel, summed over the steps it walked itself. */
template <int S> struct map_lane {
    float A2[S], h[S], slowest[S / 4], bias2; /* slowest: the least |A2| of four states */
    long_sum sum;

    /* Of channel c, from state `from` on. */
    __device__ __forceinline__ void start(const params &p, int c, int from)
    {
#pragma unroll
        for (int s = 0; s < S; s++) {
            const bool there = from + s < p.s.d_state;
            A2[s] = there ? LOG2E * p.s.A[int64_t(c) * p.s.d_state + from + s] : 0.0f;
            slowest[s / 4] = fminf(s % 4 ? slowest[s / 4] : INFINITY, there ? -A2[s] : INFINITY);
        }
        bias2 = p.s.dt_bias ? LOG2E * p.s.dt_bias[c] : 0.0f;
    }
    __device__ __forceinline__ bool remembers(int g, float forgotten) const
    {
        return !(sum.sum * slowest[g] >= forgotten);
    }
    __device__ __forceinline__ bool remembers(float forgotten) const
    {
        float least = slowest[0];
#pragma unroll
        for (int g = 1; g < S / 4; g++)
            least = fminf(least, slowest[g]);
        return !(sum.sum * least >= forgotten);
    }
};

/* A lane's steps of a tile into those fours of its states that the warp remembers. Gives the channels that remember
 * still, a bit each. */
template <typename T, int S, int P, int STEPS>
__device__ __forceinline__ unsigned add_tile(map_lane<S> &lane, const params &p, const place<1, P> &at,
                                             const float (&x)[STEPS], const float (&away)[STEPS], const float4 *bc,
                                             float tile_sum)
{
#pragma unroll
    for (int g = 0; g < S / 4; g++)
        if (__any_sync(ALL, lane.remembers(g, FORGOTTEN<T>)))
            add_steps<S / 4, STEPS>(lane.h + 4 * g, lane.A2 + 4 * g, x, away, bc + g);
    lane.sum.add(tile_sum);
    return __ballot_sync(ALL, at.has(p, 0) && lane.remembers(FORGOTTEN<T>)) & ((1u << 32 / P) - 1);
}

/* Steps of a chunk that are not walked yet. */
struct map_rest {
    int t0, tiles, begin, end; /* t0: of the tile that is next */
};

/* Walk until no more than `few` channels of the warp remember. Gives those that do, a bit each. */
template <typename T, int N, bool BACK, int P, int STEPS>
__device__ __forceinline__ unsigned walk_map(map_lane<SPAN<N>> &lane, map_tile<N, P * STEPS> &tile, map_rest &rest,
                                             const params &p, const place<1, P> &at, int from, int few)
{
    constexpr int FOURS = SPAN<N> / 4, MAP_STEPS = P * STEPS;
    const int slot = at.part, step = BACK ? MAP_STEPS : -MAP_STEPS;
    unsigned remember = 1;
    map_inputs<T, N, BACK, P, STEPS> inputs(p, at, from);
    inputs.load(p, slot, rest.t0, rest.end);
#pragma unroll 1
    for (; rest.tiles > 0; rest.tiles--) {
        float x[STEPS], away[STEPS];
        __syncwarp(); /* all have read the tile before */
        inputs.put(tile);
        __syncwarp();
        const float tile_sum =
            prepare_tile(x, away, lane.sum.sum, inputs, tile, p, slot, lane.bias2, rest.end - rest.t0);
        rest.t0 += step;
        inputs.load(p, slot, max(min(rest.t0, rest.end - 1), rest.begin), rest.end);
        remember = add_tile<T>(lane, p, at, x, away, tile.bc + slot * STEPS * FOURS, tile_sum);
        if (__popc(remember) <= few) {
            rest.tiles--;
            break;
        }
    }
    return remember;
}

/* Sum the states over a channel's P lanes; the first of them stores, if `stores`. */
template <int N, int P>
__device__ __forceinline__ void finish_map(map_lane<SPAN<N>> &lane, const params &p, const place<1, P> &at, int from,
                                           bool stores)
{
#pragma unroll
    for (int s = 0; s < SPAN<N>; s++)
#pragma unroll
        for (int apart = 32 / P; apart < 32; apart *= 2)
            lane.h[s] += __shfl_xor_sync(ALL, lane.h[s], apart);
    if (at.part != 0 || !at.has(p, 0) || !stores)
        return;
    const int c = at.channel(p, 0);
    store<SPAN<N>>(chunk_map<N>(p, at.batch, at.chunk) + int64_t(c) * N + from, lane.h);
    if (from == 0)
        *chunk_sum(p, at.batch, at.chunk, c) = lane.sum.sum;
}

/* What a lane has where a warp goes on with half its channels, of those that still remember. */
template <int S, int P>
__device__ __forceinline__ void gather(map_lane<S> &lane, place<1, 2 * P> &to, const params &p, const place<1, P> &at,
                                       unsigned remember)
{
    for (int i = 0; i < to.group; i++)
        remember &= remember - 1;
    const int source = remember ? __ffs(int(remember)) - 1 : 0, channel = int(__shfl_sync(ALL, at.first, source));
    to.batch = at.batch, to.chunk = at.chunk;
    to.first = remember ? channel : p.s.channels; /* which has() nothing */
    const auto take = [source](float &x) { x = __shfl_sync(ALL, x, source); };
#pragma unroll
    for (int s = 0; s < S; s++) {
        take(lane.A2[s]), take(lane.h[s]);
        lane.h[s] = to.part == 0 ? lane.h[s] : 0.0f;
    }
#pragma unroll
    for (int g = 0; g < S / 4; g++) {
        take(lane.slowest[g]);
        lane.slowest[g] = remember ? lane.slowest[g] : INFINITY;
    }
    take(lane.bias2), take(lane.sum.sum), take(lane.sum.lost);
}

/* Walk the chunk: with half the channels, and twice as many lanes for each, once no more than those remember. */
template <typename T, int N, bool BACK, int P, int STEPS>
__device__ __forceinline__ void walk_narrowing(map_lane<SPAN<N>> &lane, map_tile<N, P * STEPS> &tile, map_rest &rest,
                                               const params &p, const place<1, P> &at, int from)
{
    constexpr bool NARROWS = STEPS > LEAST_STEPS;
    const unsigned remember = walk_map<T, N, BACK, P, STEPS>(lane, tile, rest, p, at, from, NARROWS ? 16 / P : 0);
    const bool goes_on = NARROWS && rest.tiles > 0 && remember != 0;
    finish_map<N>(lane, p, at, from, !goes_on || !(remember >> at.group & 1));
    if constexpr (NARROWS) {
        place<1, 2 * P> half(1, lanes::APART);
        if (!goes_on)
            return;
        gather(lane, half, p, at, remember);
        walk_narrowing<T, N, BACK, 2 * P, STEPS / 2>(lane, tile, rest, p, half, from);
    }
}

/* The map of each chunk but the last, backward but the first. A warp has 8 channels and SPAN states, a lane
 * STEPS of each 4 STEPS steps. Grid (channel groups x N / SPAN x (chunks - 1), batch). */
template <typename T, int N, bool BACK, int STEPS>
__global__ void __launch_bounds__(32 * WARPS, 3) scan_map(const params p)
{
    constexpr int S = SPAN<N>, MAP_STEPS = 4 * STEPS;
    __shared__ map_tile<N, MAP_STEPS> tiles[WARPS];
    map_tile<N, MAP_STEPS> &tile = tiles[threadIdx.x / 32];
    place<1> at((p.chunks - 1) * (N / S), lanes::APART);
    const int from = at.chunk / (p.chunks - 1) * S, c = at.channel(p, 0);
    at.chunk = at.chunk % (p.chunks - 1) + (BACK ? 1 : 0);
    map_rest rest;
    rest.begin = at.chunk * p.chunk_steps, rest.end = min(p.s.length, rest.begin + p.chunk_steps);
    rest.tiles = (rest.end - rest.begin + MAP_STEPS - 1) / MAP_STEPS;
    rest.t0 = BACK ? rest.begin : rest.begin + (rest.tiles - 1) * MAP_STEPS;
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    map_lane<S> lane = {};
    lane.start(p, c, from);
    if constexpr (N == S && STEPS == 8) {
        walk_narrowing<T, N, BACK, 4, STEPS>(lane, tile, rest, p, at, from);
    } else { /* other blocks have other states of a channel, and want all of its sum; or chunks are short */
        walk_map<T, N, BACK, 4, STEPS>(lane, tile, rest, p, at, from, N == S ? 0 : -1);
        finish_map<N>(lane, p, at, from, true);
    }
}

/* h <- what the lane's chunk is handed: by the maps of the chunks before (direction -1) or after it (1), the nearest
 * first, until all is forgotten, and by `beyond` (batch, E, N), NULL for zero. */
template <typename T, int N, int K, int P>
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
            remembers = remembers || !(away[k] * slowest[k] >= FORGOTTEN<T>);
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
