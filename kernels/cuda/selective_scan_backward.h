/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_BACKWARD_H
#define KERNELS_CUDA_SELECTIVE_SCAN_BACKWARD_H

/* The scan backward, tile by tile from the end. With p = a h_before, h = p + x B, x = delta u, dy = dout silu(z), and
 * the carry of dh through the later steps: dh = carry + dy C;  dC = sum dy h;  dB = sum dh x;  dx = <dh, B>;  dlog a =
 * dh p;  carry <- a dh
 *
 * Mapping as in the forward, eight channels a warp, but a channel's lanes are 8 apart: lane l has channel l % 8 and
 * part l / 8, as the sums over channels by matrix products want it. States and decays of a segment of steps are made
 * again from the checkpoint and stay in registers. */

#include "kernels/cuda/selective_scan_walk.h"

namespace scan
{

/* Steps whose states and decays are in registers at once. */
template <int N> constexpr int SEGMENT = N <= 16 ? 8 : 4;

template <int N> struct backward_block {
    float4 bc[2][2][TILE * N / 4];     /* B, then C; two tiles each */
    float4 steps[WARPS][TILE][GROUPS]; /* delta, x, dy, -     */
    float4 rest[WARPS][TILE][GROUPS];  /* u, elapsed times slope of softplus, dout, z */
    float dbc[2][WARPS][TILE][2 * N];  /* dB and dC summed over a warp's channels */
};

/* Sums over a warp's channels of the terms of four steps and states, by products with ones: tf32 takes the leading 11
 * bits of each term; PARTS = 2 adds the next 11 by a second product, which leaves 2^-22. Lane l gets step l % 4 of the
 * states of part l / 8, over the channels whose third bit is its own; its neighbour four lanes away has the rest. */
template <int PARTS> struct channel_sums {
    float d[4] = {};
    __device__ __forceinline__ void add(int step, float (&terms)[4], const float (&is)[8])
    {
        const float ones[2] = {is[2 * step], is[2 * step + 1]};
        ptx::mma_tf32(d, terms, ones);
        if constexpr (PARTS == 2) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                terms[i] -= __uint_as_float(__float_as_uint(terms[i]) & 0xffffe000u);
            ptx::mma_tf32(d, terms, ones);
        }
    }
};

/* One of two neighbours gets the sums of dB, the other of dC. States 1 and 2 are crosswise in d. */
template <int PARTS>
__device__ __forceinline__ float4 share_sums(const channel_sums<PARTS> &dB, const channel_sums<PARTS> &dC, bool takes_C)
{
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = (takes_C ? dC.d[i] : dB.d[i]) + __shfl_xor_sync(ALL, takes_C ? dB.d[i] : dC.d[i], 4);
    return make_float4(v[0], v[2], v[1], v[3]);
}

template <typename T, int N> struct backward_rows {
    column<T> u, dt, z, dout, du, ddt, dz;
    const float *elapsed;

    __device__ __forceinline__ backward_rows(const params &p, const place<1> &at)
        : u(p.s.u, p.s.u_row, at.channel(p, 0), p, at.batch), dt(p.s.dt, p.s.dt_row, at.channel(p, 0), p, at.batch),
          z(p.s.z ? p.s.z : p.s.u, p.s.z ? p.s.z_row : p.s.u_row, at.channel(p, 0), p, at.batch),
          dout(p.s.dout, p.s.dout_row, at.channel(p, 0), p, at.batch),
          du(p.s.du, p.s.du_row, at.channel(p, 0), p, at.batch),
          ddt(p.s.ddt, p.s.ddt_row, at.channel(p, 0), p, at.batch),
          dz(p.s.dz, p.s.dz_row, at.channel(p, 0), p, at.batch),
          elapsed(p.s.elapsed ? p.s.elapsed + int64_t(at.batch) * p.s.length : &one_and_only)
    {
    }
};

/* Prepare the lane's four steps of the tile. */
template <typename T, int N>
__device__ __forceinline__ void stage_backward(backward_block<N> &block, const backward_rows<T, N> &rows,
                                               const params &p, const place<1> &at, int t0, int end, float bias2)
{
    T u[QUADS], dt[QUADS], z[QUADS], dout[QUADS];
    float elapsed[QUADS];
#pragma unroll
    for (int j = 0; j < QUADS; j++) {
        const int t = min(t0 + 4 * j + at.part, end - 1);
        u[j] = *rows.u.at(t, p.u_step), dt[j] = *rows.dt.at(t, p.dt_step), z[j] = *rows.z.at(t, p.z_step);
        dout[j] = *rows.dout.at(t, p.dout_step), elapsed[j] = rows.elapsed[t & p.elapsed_mask];
    }
#pragma unroll
    for (int j = 0; j < QUADS; j++) {
        const bool inside = t0 + 4 * j + at.part < end && at.has(p, 0);
        const float time = inside ? elapsed[j] : 0.0f, gradient = inside ? to_float(dout[j]) : 0.0f;
        float slope;
        const float delta = time * softplus(fmaf(to_float(dt[j]), LOG2E, bias2), &slope);
        const float dy = p.s.z ? gradient * silu(to_float(z[j])) : gradient;
        block.steps[at.warp][4 * j + at.part][at.group] = make_float4(delta, delta * to_float(u[j]), dy, 0.0f);
        block.rest[at.warp][4 * j + at.part][at.group] =
            make_float4(to_float(u[j]), time * slope, gradient, to_float(z[j]));
    }
}

/* What one lane carries along. */
template <int S> struct backward_lane {
    float A2[S], carry[S], dA[S], dD, dbias, bias2, skip;
};

/* From the sums over states of one step to du, ddt, dz. */
template <typename T, int N>
__device__ __forceinline__ void write_gradients(backward_block<N> &block, const backward_rows<T, N> &rows,
                                                const params &p, const place<1> &at, backward_lane<N / 4> &lane, int i,
                                                int t, int end, float dx, float dlog, float y)
{
    const float4 step = block.steps[at.warp][i][at.group], rest = block.rest[at.warp][i][at.group];
    const float through = fmaf(rest.x, dx, LN2 * dlog) * rest.y;
    lane.dD = fmaf(step.z, rest.x, lane.dD);
    lane.dbias += through;
    if (t >= end)
        return;
    put(const_cast<T *>(rows.du.at(t, p.du_step)), fmaf(step.x, dx, lane.skip * step.z));
    put(const_cast<T *>(rows.ddt.at(t, p.ddt_step)), through);
    if (p.s.z) {
        const float slope = sigmoid(rest.w);
        put(const_cast<T *>(rows.dz.at(t, p.dz_step)),
            rest.z * fmaf(lane.skip, rest.x, y) * slope * fmaf(rest.w, 1.0f - slope, 1.0f));
    }
}

/* Sum the warps' dB and dC of a tile, for reduce_bc to add up over blocks. */
template <int N>
__device__ __forceinline__ void write_partial_bc(const float (&dbc)[WARPS][TILE][2 * N], const params &p,
                                                 const place<1> &at, int group, int t0, int end)
{
    float4 *partial = reinterpret_cast<float4 *>(p.partial_bc +
                                                 ((int64_t(group) * p.s.batch + at.batch) * p.s.length + t0) * (2 * N));
    for (int i = int(threadIdx.x); i < min(TILE, end - t0) * N / 2; i += 32 * WARPS) {
        float4 sum = reinterpret_cast<const float4 *>(dbc[0])[i];
#pragma unroll
        for (int w = 1; w < WARPS; w++) {
            const float4 v = reinterpret_cast<const float4 *>(dbc[w])[i];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        partial[i] = sum;
    }
}

/* What a lane starts with; carry: the gradient of the last state. */
template <int N>
__device__ __forceinline__ void start_lane(backward_lane<N / 4> &lane, const params &p, const place<1> &at)
{
    float table[1][N / 4];
    load_states<N, 1>(table, p.s.A, p, at, p.s.d_state);
#pragma unroll
    for (int s = 0; s < N / 4; s++)
        lane.A2[s] = LOG2E * table[0][s];
    load_states<N, 1>(table, p.s.dh_end ? p.s.dh_end + int64_t(at.batch) * p.s.channels * p.s.d_state : nullptr, p, at,
                      p.s.d_state);
#pragma unroll
    for (int s = 0; s < N / 4; s++)
        lane.carry[s] = table[0][s];
    lane.bias2 = p.s.dt_bias ? LOG2E * p.s.dt_bias[at.channel(p, 0)] : 0.0f;
    lane.skip = p.s.D ? p.s.D[at.channel(p, 0)] : 0.0f;
}

/* States and decays of a segment: walk from the checkpoint to step `first` of the tile, and keep what follows. */
template <int N>
__device__ __forceinline__ void
recall(float (&h)[SEGMENT<N> + 1][N / 4], float (&a)[SEGMENT<N>][N / 4], const float4 (&steps)[TILE][GROUPS],
       const float *B, const backward_lane<N / 4> &lane, const params &p, const place<1> &at, int t0, int first)
{
    constexpr int S = N / 4;
    float start[1][S];
    load_states<N, 1>(start, checkpoint(p, at, t0), p, at, p.s.d_state);
#pragma unroll
    for (int s = 0; s < S; s++)
        h[0][s] = start[0][s];
#pragma unroll 4
    for (int t = 0; t < first; t++) {
        const float4 step = steps[t][at.group];
        float b[S];
        load<S>(b, B + t * N);
#pragma unroll
        for (int s = 0; s < S; s++)
            h[0][s] = fmaf(ptx::exp2(step.x * lane.A2[s]), h[0][s], step.y * b[s]);
    }
#pragma unroll
    for (int i = 0; i < SEGMENT<N>; i++) {
        const float4 step = steps[first + i][at.group];
        float b[S];
        load<S>(b, B + (first + i) * N);
#pragma unroll
        for (int s = 0; s < S; s++) {
            a[i][s] = ptx::exp2(step.x * lane.A2[s]);
            h[i + 1][s] = fmaf(a[i][s], h[i][s], step.y * b[s]);
        }
    }
}

/* One step back. terms_B, terms_C: the lane's summands of dB and dC. */
template <int S>
__device__ __forceinline__ void step_back(backward_lane<S> &lane, float4 step, const float (&b)[S], const float (&c)[S],
                                          const float (&before)[S], const float (&after)[S], const float (&a)[S],
                                          float (&terms_B)[(S + 3) / 4][4], float (&terms_C)[(S + 3) / 4][4], float &dx,
                                          float &dlog, float &y)
{
    dx = dlog = y = 0.0f;
#pragma unroll
    for (int s = 0; s < S; s++) {
        const float dh = fmaf(step.z, c[s], lane.carry[s]);
        terms_B[s / 4][s % 4] = dh * step.y, terms_C[s / 4][s % 4] = step.z * after[s];
        dx = fmaf(dh, b[s], dx);
        y = fmaf(after[s], c[s], y);
        lane.carry[s] = a[s] * dh;
        const float through = lane.carry[s] * before[s];
        dlog = fmaf(through, lane.A2[s], dlog);
        lane.dA[s] = fmaf(through, step.x, lane.dA[s]);
    }
}

/* dB and dC of four steps into the warp's sums; the lane has four of its part's states at a time, or S < 4. */
template <int N, int PARTS>
__device__ __forceinline__ void put_sums(float *dbc, const channel_sums<PARTS> (&dB)[(N / 4 + 3) / 4],
                                         const channel_sums<PARTS> (&dC)[(N / 4 + 3) / 4], bool takes_C)
{
#pragma unroll
    for (int q = 0; q < (N / 4 + 3) / 4; q++) {
        const float4 sums = share_sums(dB[q], dC[q], takes_C);
        const float v[4] = {sums.x, sums.y, sums.z, sums.w};
        store<(N < 16 ? N / 4 : 4)>(dbc + 4 * q, v);
    }
}

/* Phase 1 of a split backward: what a chunk makes of no gradient of its last state, and its sum of delta. Chunk 0's
 * isn't wanted. Grid (channel groups x (chunks - 1), batch). */
template <typename T, int N> __global__ void __launch_bounds__(32 * WARPS) scan_backward_map(const params p)
{
    constexpr int S = N / 4;
    extern __shared__ __align__(16) unsigned char shared[];
    backward_block<N> &block = *reinterpret_cast<backward_block<N> *>(shared);
    place<1> at(p.chunks - 1, false);
    at.chunk++;
    const int begin = at.chunk * p.chunk_steps, end = min(p.s.length, begin + p.chunk_steps);
    backward_lane<S> lane = {};
    start_lane<N>(lane, p, at);
    float carry[1][S] = {}, sum = 0.0f;
    const backward_rows<T, N> rows(p, at);
    staged_bc<T, N, true, 32 * WARPS, 2> bc(p, at.batch);
    int odd = 0;
#pragma unroll 1
    for (int t0 = (end - 1) / TILE * TILE; t0 >= begin; t0 -= TILE, odd ^= 1) {
        bc.load(p, t0, end);
        stage_backward<T, N>(block, rows, p, at, t0, end, lane.bias2);
        bc.put(block.bc[0][0], odd);
        __syncthreads(); /* one a tile: who runs ahead writes the other half */
        const float *C = reinterpret_cast<const float *>(block.bc[1][odd]) + at.part * S;
#pragma unroll 4
        for (int t = TILE - 1; t >= 0; t--) {
            const float4 step = block.steps[at.warp][t][at.group];
            float c[S];
            load<S>(c, C + t * N);
            sum += step.x;
#pragma unroll
            for (int s = 0; s < S; s++)
                carry[0][s] = ptx::exp2(step.x * lane.A2[s]) * fmaf(step.z, c[s], carry[0][s]);
        }
        __syncwarp();
    }
    store_states<N, 1>(chunk_map<N>(p, at.batch, at.chunk), carry, p, at, N);
    if (at.part == 0 && at.has(p, 0))
        p.sums[(int64_t(at.batch) * p.chunks + at.chunk) * p.s.channels + at.first] = sum;
}

/* lane.carry <- the gradient of the state after the lane's chunk, through the maps of the chunks behind it. */
template <int N>
__device__ __forceinline__ void follow_back(backward_lane<N / 4> &lane, const params &p, const place<1> &at)
{
    constexpr int S = N / 4;
    for (int chunk = p.chunks - 1; chunk > at.chunk; chunk--) {
        const int c = at.channel(p, 0);
        float local[S];
        load<S>(local, chunk_map<N>(p, at.batch, chunk) + int64_t(c) * N + at.part * S);
        const float sum = p.sums[(int64_t(at.batch) * p.chunks + chunk) * p.s.channels + c];
#pragma unroll
        for (int s = 0; s < S; s++)
            lane.carry[s] = decay_exactly(sum * lane.A2[s], lane.carry[s], local[s]);
    }
}

/* The lane's sums over its chunk, for reduce_a. */
template <int N>
__device__ __forceinline__ void write_partial_a(const backward_lane<N / 4> &lane, const params &p, const place<1> &at)
{
    float *partial = p.partial_a + (int64_t(at.batch) * p.chunks + at.chunk) * p.a_row;
    float dA[1][N / 4];
#pragma unroll
    for (int s = 0; s < N / 4; s++)
        dA[0][s] = lane.dA[s];
    store_states<N, 1>(partial, dA, p, at);
    const float dD = sum4<8>(lane.dD), dbias = sum4<8>(lane.dbias);
    if (at.part == 0 && at.has(p, 0)) {
        partial[int64_t(p.s.channels) * p.s.d_state + at.first] = dD;
        partial[int64_t(p.s.channels) * (p.s.d_state + 1) + at.first] = dbias;
    }
}

/* The backward of a chunk, or of all there is. Grid (channel groups x chunks, batch). */
template <typename T, int N, int PARTS, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS) scan_backward(const params p)
{
    constexpr int S = N / 4, Q = (S + 3) / 4, STEPS = SEGMENT<N>;
    extern __shared__ __align__(16) unsigned char shared[];
    backward_block<N> &block = *reinterpret_cast<backward_block<N> *>(shared);
    const place<1> at(p.chunks, false);
    const int begin = at.chunk * p.chunk_steps, end = min(p.s.length, begin + p.chunk_steps);
    const int group = int(blockIdx.x) / p.chunks, quad = int(threadIdx.x) % 32 / 4, lane4 = int(threadIdx.x) % 4;
    const bool takes_C = quad % 2 != 0;
    const int bc_column = (takes_C ? N : 0) + at.part * S;
    backward_lane<S> lane = {};
    start_lane<N>(lane, p, at);
    follow_back<N>(lane, p, at);
    float is[8]; /* rows of a matrix that picks a row */
#pragma unroll
    for (int i = 0; i < 8; i++)
        is[i] = quad == i ? 1.0f : 0.0f;
    const backward_rows<T, N> rows(p, at);
    staged_bc<T, N, true, 32 * WARPS, 2> bc(p, at.batch);
    const int write_end = at.has(p, 0) ? end : 0;
    int odd = 0, before = -1;
#pragma unroll 1
    for (int t0 = (end - 1) / TILE * TILE; t0 >= begin; t0 -= TILE, odd ^= 1) {
        bc.load(p, t0, end);
        stage_backward<T, N>(block, rows, p, at, t0, end, lane.bias2);
        bc.put(block.bc[0][0], odd);
        /* One barrier a tile: B and C are there; and the dB, dC of the tile before. */
        __syncthreads();
        if (before >= 0)
            write_partial_bc<N>(block.dbc[odd ^ 1], p, at, group, before, end);
        before = t0;
        const float *B = reinterpret_cast<const float *>(block.bc[0][odd]) + at.part * S;
        const float4(&steps)[TILE][GROUPS] = block.steps[at.warp];
#pragma unroll 1
        for (int first = TILE - STEPS; first >= 0; first -= STEPS) {
            float h[STEPS + 1][S], a[STEPS][S];
            recall<N>(h, a, steps, B, lane, p, at, t0, first);
#pragma unroll
            for (int four = STEPS - 4; four >= 0; four -= 4) {
                channel_sums<PARTS> dB[Q], dC[Q];
                float dx[4], dlog[4], y[4];
#pragma unroll
                for (int i = 3; i >= 0; i--) {
                    const int t = four + i;
                    float b[S], c[S], terms_B[Q][4] = {}, terms_C[Q][4] = {};
                    load<S>(b, B + (first + t) * N);
                    load<S>(c, B + (2 * TILE + first + t) * N);
                    step_back<S>(lane, steps[first + t][at.group], b, c, h[t], h[t + 1], a[t], terms_B, terms_C, dx[i],
                                 dlog[i], y[i]);
#pragma unroll
                    for (int q = 0; q < Q; q++)
                        dB[q].add(i, terms_B[q], is), dC[q].add(i, terms_C[q], is);
                }
                const int mine = first + four + at.part;
                write_gradients<T, N>(block, rows, p, at, lane, mine, t0 + mine, write_end, fold4<8>(dx, at.part),
                                      fold4<8>(dlog, at.part), fold4<8>(y, at.part));
                put_sums<N, PARTS>(&block.dbc[odd][at.warp][first + four + lane4][bc_column], dB, dC, takes_C);
            }
        }
        __syncwarp(); /* the next tile overwrites the steps */
    }
    __syncthreads();
    write_partial_bc<N>(block.dbc[odd ^ 1], p, at, group, before, end);
    float carry[1][S];
#pragma unroll
    for (int s = 0; s < S; s++)
        carry[0][s] = lane.carry[s];
    if (p.s.dh0 && begin == 0)
        store_states<N, 1>(p.s.dh0 + int64_t(at.batch) * p.s.channels * p.s.d_state, carry, p, at);
    write_partial_a<N>(lane, p, at);
}

/* dB and dC from the blocks' partial sums; one thread an element of (batch L, 2N). */
template <typename T, int N> __global__ void __launch_bounds__(128) reduce_bc(const params p)
{
    const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x, total = int64_t(p.s.batch) * p.s.length * 2 * N;
    if (i >= total)
        return;
    float sum = 0.0f;
#pragma unroll 4
    for (int group = 0; group < p.groups; group++)
        sum += p.partial_bc[group * total + i];
    const int64_t row = i / (2 * N);
    const int j = int(i % (2 * N));
    if (j % N < p.s.d_state)
        put(static_cast<T *>(j < N ? p.s.dB : p.s.dC) + row * p.s.d_state + j % N, sum);
}

/* dA, dD, ddt_bias from the chunks' partial sums. Block: 32 columns x 8 rows of chunks. */
static __global__ void __launch_bounds__(256) reduce_a(const params p)
{
    __shared__ float sums[8][33];
    const int N = p.s.d_state, E = p.s.channels, width = E * (N + 2), rows = p.s.batch * p.chunks;
    const int column = int(threadIdx.x) % 32, row = int(threadIdx.x) / 32, i = int(blockIdx.x) * 32 + column;
    float sum = 0.0f;
    if (i < width) {
#pragma unroll 4
        for (int j = row; j < rows; j += 8)
            sum += p.partial_a[int64_t(j) * p.a_row + i];
    }
    sums[row][column] = sum;
    __syncthreads();
    if (row != 0 || i >= width)
        return;
    for (int j = 1; j < 8; j++)
        sum += sums[j][column];
    float *to = i < E * N ? p.s.dA : i < E * (N + 1) ? p.s.dD : p.s.ddt_bias;
    if (to)
        to[i < E * N ? i : i % E] = sum;
}

} /* namespace scan */

#endif
