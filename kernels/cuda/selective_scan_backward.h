/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_BACKWARD_H
#define KERNELS_CUDA_SELECTIVE_SCAN_BACKWARD_H

/* The scan backward, tile by tile from the end. With p = a h_before, h = p + x B, x = delta u, dy = dout silu(z), and
 * the carry of dh through the later steps: dh = carry + dy C;  dC = sum dy h;  dB = sum dh x;  dx = <dh, B>;  dlog a =
 * dh p;  carry <- a dh
 *
 * Mapping as in the forward, four lanes a channel and 8 K channels a warp, but a channel's lanes are 8 apart: lane l
 * has channels l % 8 + 8 k and part l / 8, as the sums over channels by matrix products want it. From a tile's
 * checkpoint the states are walked once to its last segment, with those before each segment kept in shared memory;
 * then, segment by segment from the last, states and decays are made again and stay in registers. */

#include "kernels/cuda/selective_scan_chunks.h"

namespace scan
{

/* Blocks on a multiprocessor, which limits registers. */
constexpr int backward_blocks(int N)
{
    return N == 64 ? 1 : N == 32 ? 2 : 3;
}

/* Steps whose states and decays are in registers at once. */
template <int N, int K> constexpr int SEGMENT = N <= 16 && K == 1 ? 8 : 4;

/* Products by which channels are summed. */
template <typename T> constexpr int PARTS = sizeof(T) == 2 ? 1 : 2;

/* A tile of W warps' channels, prepared; a warp's K times GROUPS stand together. Rows of `rest` are apart so that lanes
 * of two of them don't meet in a bank. */
template <int K, int W> struct backward_steps {
    float4 steps[TILE][W * K * GROUPS];         /* delta, x, dy, dout silu'(z) */
    float2 rest[TILE][W * K * GROUPS + GROUPS]; /* u, elapsed times slope of softplus */
};

/* dB, then dC, summed over a warp's channels; rows of four steps are in different banks. */
template <int N> using warp_sums = float[TILE][2 * N + 4];

/* A warp's states before each segment but the last. */
template <int N, int K> using segment_starts = float[TILE / SEGMENT<N, K> - 1][K][32 * (N / 4)];

template <int N, int K> struct backward_block {
    float4 bc[2][2][TILE * N / 4]; /* B, then C; two tiles each */
    backward_steps<K, WARPS> tile;
    warp_sums<N> dbc[2][WARPS];
    segment_starts<N, K> starts[WARPS];
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

/* Rows of a matrix that picks a row. */
static __device__ __forceinline__ void pick_rows(float (&is)[8])
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        is[i] = int(threadIdx.x) % 32 / 4 == i ? 1.0f : 0.0f;
}

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

/* Columns of one channel. */
template <typename T> struct backward_inputs {
    column<T> u, dt, z, dout;
    const float *elapsed;

    __device__ __forceinline__ backward_inputs(const params &p, int channel, int batch)
        : u(p.s.u, p.s.u_row, channel, p, batch), dt(p.s.dt, p.s.dt_row, channel, p, batch),
          z(p.s.z ? p.s.z : p.s.u, p.s.z ? p.s.z_row : p.s.u_row, channel, p, batch),
          dout(p.s.dout, p.s.dout_row, channel, p, batch),
          elapsed(p.s.elapsed ? p.s.elapsed + int64_t(batch) * p.s.length : &one_and_only)
    {
    }
};

template <typename T> struct gradient_rows {
    column<T> du, ddt, dz;

    __device__ __forceinline__ gradient_rows(const params &p, int channel, int batch)
        : du(p.s.du, p.s.du_row, channel, p, batch), ddt(p.s.ddt, p.s.ddt_row, channel, p, batch),
          dz(p.s.dz, p.s.dz_row, channel, p, batch)
    {
    }
};

/* One step's inputs of K channels, `apart` from the first. */
template <typename T, int K> struct backward_step {
    T u[K], dt[K], z[K], dout[K];
    float elapsed;

    template <bool ALONE = false>
    __device__ __forceinline__ void load(const backward_inputs<T> &from, const params &p, const int (&apart)[K], int t)
    {
        const T *const u0 = from.u.template at<ALONE>(t, p.u_step);
        const T *const dt0 = from.dt.template at<ALONE>(t, p.dt_step);
        const T *const z0 = from.z.template at<ALONE>(t, p.z_step);
        const T *const dout0 = from.dout.template at<ALONE>(t, p.dout_step);
#pragma unroll
        for (int k = 0; k < K; k++)
            u[k] = u0[apart[k]], dt[k] = dt0[apart[k]], z[k] = z0[apart[k]], dout[k] = dout0[apart[k]];
        elapsed = from.elapsed[t & p.elapsed_mask];
    }
    __device__ __forceinline__ backward_step<float, K> floats() const
    {
        backward_step<float, K> x;
#pragma unroll
        for (int k = 0; k < K; k++)
            x.u[k] = to_float(u[k]), x.dt[k] = to_float(dt[k]), x.z[k] = to_float(z[k]), x.dout[k] = to_float(dout[k]);
        x.elapsed = elapsed;
        return x;
    }
    /* inside: there are such a step and channel; else it changes nothing. */
    __device__ __forceinline__ void prepare(float4 &step, float2 &rest, const params &p, int k, float bias2,
                                            bool inside) const
    {
        const float time = inside ? elapsed : 0.0f, gradient = inside ? to_float(dout[k]) : 0.0f;
        const float gate = to_float(z[k]), s = sigmoid(gate);
        float slope;
        const float delta = time * softplus(fmaf(to_float(dt[k]), LOG2E, bias2), &slope);
        step = make_float4(delta, delta * to_float(u[k]), gradient * (p.s.z ? gate * s : 1.0f),
                           gradient * (s * fmaf(gate, 1.0f - s, 1.0f)));
        rest = make_float2(to_float(u[k]), time * slope);
    }
};

/* How the fed kernel finds addresses, column::at: (8, 1536) 2^13 takes 2 % less in bf16 alone, fp32 2 % more. */
template <typename T> constexpr bool ALONE_FED = sizeof(T) == 2;

/* What one lane carries along. */
template <int S, int K> struct backward_lane {
    float A2[K][S], carry[K][S], dA[K][S], dD[K], dbias[K], bias2[K], skip[K];
};

/* Prepare the lane's four steps of the tile. */
template <typename T, int K>
__device__ __forceinline__ void stage_backward(backward_steps<K, WARPS> &tile, const backward_inputs<T> &from,
                                               const params &p, const place<K> &at, int t0, int end,
                                               const float (&bias2)[K])
{
    backward_step<T, K> steps[QUADS];
    int apart[K];
#pragma unroll
    for (int k = 0; k < K; k++)
        apart[k] = at.channel(p, k) - at.channel(p, 0);
#pragma unroll
    for (int j = 0; j < QUADS; j++)
        steps[j].load(from, p, apart, min(t0 + 4 * j + at.part, end - 1));
#pragma unroll
    for (int j = 0; j < QUADS; j++)
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int i = 4 * j + at.part, c = at.column(k);
            steps[j].prepare(tile.steps[i][c], tile.rest[i][c], p, k, bias2[k], t0 + i < end && at.has(p, k));
        }
}

/* From the sums over states of one step to du, ddt, dz. */
template <typename T, int N, int K, int W>
__device__ __forceinline__ void write_gradients(const backward_steps<K, W> &tile, const gradient_rows<T> &rows,
                                                const params &p, const place<K> &at, backward_lane<N / 4, K> &lane,
                                                int k, int i, int t, int end, float dx, float dlog, float y)
{
    constexpr bool ALONE = W > WARPS && ALONE_FED<T>;
    const float4 step = tile.steps[i][at.column(k)];
    const float2 rest = tile.rest[i][at.column(k)];
    const float through = fmaf(rest.x, dx, LN2 * dlog) * rest.y;
    lane.dD[k] = fmaf(step.z, rest.x, lane.dD[k]);
    lane.dbias[k] += through;
    const bool inside = t < end && at.has(p, k);
    ptx::store_if(inside, const_cast<T *>(rows.du.template at<ALONE>(t, p.du_step)) + GROUPS * k,
                  fmaf(step.x, dx, lane.skip[k] * step.z));
    ptx::store_if(inside, const_cast<T *>(rows.ddt.template at<ALONE>(t, p.ddt_step)) + GROUPS * k, through);
    ptx::store_if(inside && p.s.z, const_cast<T *>(rows.dz.template at<ALONE>(t, p.dz_step)) + GROUPS * k,
                  step.w * fmaf(lane.skip[k], rest.x, y));
}

/* Sum the warps' dB and dC of a tile, for reduce_bc to add up over blocks. */
template <int N, int W>
__device__ __forceinline__ void write_partial_bc(const warp_sums<N> (&dbc)[W], const params &p, int batch, int group,
                                                 int t0, int end)
{
    float4 *partial =
        reinterpret_cast<float4 *>(p.partial_bc + ((int64_t(group) * p.s.batch + batch) * p.s.length + t0) * (2 * N));
#pragma unroll
    for (int j = 0; j < TILE * N / 2; j += 32 * WARPS) {
        const int i = j + int(threadIdx.x) % (32 * WARPS), row = i / (N / 2), column = i % (N / 2) * 4;
        if (row >= min(TILE, end - t0))
            break;
        float4 sum = *reinterpret_cast<const float4 *>(&dbc[0][row][column]);
#pragma unroll
        for (int w = 1; w < W; w++) {
            const float4 v = *reinterpret_cast<const float4 *>(&dbc[w][row][column]);
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        partial[i] = sum;
    }
}

/* What a lane starts with; carry: the gradient of the state at its chunk's end. */
template <typename T, int N, int K>
__device__ __forceinline__ void start_lane(backward_lane<N / 4, K> &lane, const params &p, const place<K> &at)
{
    load_states<N, K, 4>(lane.A2, p.s.A, p, at, p.s.d_state);
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int s = 0; s < N / 4; s++)
            lane.A2[k][s] *= LOG2E;
        lane.bias2[k] = p.s.dt_bias ? LOG2E * p.s.dt_bias[at.channel(p, k)] : 0.0f;
        lane.skip[k] = p.s.D ? p.s.D[at.channel(p, k)] : 0.0f;
    }
    follow_maps<T, N, K, 4>(lane.carry, lane.A2, p, at, 1, p.s.dh_end);
}

/* Walk from the checkpoint to the last segment of the tile. h: in the state before the tile, out before that segment;
 * those before the other segments to shared memory. */
template <int N, int K, int W>
__device__ __forceinline__ void walk_tile(float (&h)[K][N / 4], segment_starts<N, K> &starts,
                                          const backward_steps<K, W> &tile, const float *B,
                                          const backward_lane<N / 4, K> &lane, const place<K> &at)
{
    constexpr int S = N / 4, STEPS = SEGMENT<N, K>;
#pragma unroll 1
    for (int first = 0; first < TILE - STEPS; first += STEPS) {
#pragma unroll
        for (int k = 0; k < K; k++)
            store<S>(starts[first / STEPS][k] + threadIdx.x % 32 * S, h[k]);
#pragma unroll
        for (int t = first; t < first + STEPS; t++) {
            float b[S];
            load<S>(b, B + t * N);
#pragma unroll
            for (int k = 0; k < K; k++) {
                const float2 step = *reinterpret_cast<const float2 *>(&tile.steps[t][at.column(k)]);
#pragma unroll
                for (int s = 0; s < S; s++)
                    h[k][s] = fmaf(ptx::exp2(step.x * lane.A2[k][s]), h[k][s], step.y * b[s]);
            }
        }
    }
}

/* States and decays of a segment from h[.][0]. */
template <int N, int K, int W>
__device__ __forceinline__ void recall(float (&h)[SEGMENT<N, K> + 1][K][N / 4], float (&a)[SEGMENT<N, K>][K][N / 4],
                                       const backward_steps<K, W> &tile, const float *B,
                                       const backward_lane<N / 4, K> &lane, const place<K> &at, int first)
{
    constexpr int S = N / 4;
#pragma unroll
    for (int i = 0; i < SEGMENT<N, K>; i++) {
        float b[S];
        load<S>(b, B + (first + i) * N);
#pragma unroll
        for (int k = 0; k < K; k++) {
            const float2 step = *reinterpret_cast<const float2 *>(&tile.steps[first + i][at.column(k)]);
#pragma unroll
            for (int s = 0; s < S; s++) {
                a[i][k][s] = ptx::exp2(step.x * lane.A2[k][s]);
                h[i + 1][k][s] = fmaf(a[i][k][s], h[i][k][s], step.y * b[s]);
            }
        }
    }
}

/* One step back of channel k. terms_B, terms_C: the lane's summands of dB and dC, over its channels so far. */
template <int S, int K>
__device__ __forceinline__ void step_back(backward_lane<S, K> &lane, int k, float4 step, const float (&b)[S],
                                          const float (&c)[S], const float (&before)[S], const float (&after)[S],
                                          const float (&a)[S], float (&terms_B)[(S + 3) / 4][4],
                                          float (&terms_C)[(S + 3) / 4][4], float &dx, float &dlog, float &y)
{
    dx = dlog = y = 0.0f;
#pragma unroll
    for (int s = 0; s < S; s++) {
        const float dh = fmaf(step.z, c[s], lane.carry[k][s]);
        float &term_B = terms_B[s / 4][s % 4], &term_C = terms_C[s / 4][s % 4];
        term_B = k ? fmaf(dh, step.y, term_B) : dh * step.y;
        term_C = k ? fmaf(step.z, after[s], term_C) : step.z * after[s];
        dx = fmaf(dh, b[s], dx);
        y = fmaf(after[s], c[s], y);
        lane.carry[k][s] = a[s] * dh;
        const float through = lane.carry[k][s] * before[s];
        dlog = fmaf(through, lane.A2[k][s], dlog);
        lane.dA[k][s] = fmaf(through, step.x, lane.dA[k][s]);
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

/* The lane's sums over its chunk, for reduce_a. */
template <int N, int K>
__device__ __forceinline__ void write_partial_a(const backward_lane<N / 4, K> &lane, const params &p,
                                                const place<K> &at)
{
    float *partial = p.partial_a + (int64_t(at.batch) * p.chunks + at.chunk) * p.a_row;
    store_states<N, K, 4>(partial, lane.dA, p, at);
#pragma unroll
    for (int k = 0; k < K; k++) {
        const float dD = sum4<8>(lane.dD[k]), dbias = sum4<8>(lane.dbias[k]);
        if (at.part == 0 && at.has(p, k)) {
            const int c = at.channel(p, k);
            partial[int64_t(p.s.channels) * p.s.d_state + c] = dD;
            partial[int64_t(p.s.channels) * (p.s.d_state + 1) + c] = dbias;
        }
    }
}

/* A segment back: all its gradients. */
template <typename T, int N, int K, int W>
__device__ __forceinline__ void
walk_back(backward_lane<N / 4, K> &lane, const backward_steps<K, W> &tile, warp_sums<N> &dbc, const float *B,
          const float *C, const float (&h)[SEGMENT<N, K> + 1][K][N / 4], const float (&a)[SEGMENT<N, K>][K][N / 4],
          const float (&is)[8], const gradient_rows<T> &rows, const params &p, const place<K> &at, int t0, int first,
          int end)
{
    constexpr int S = N / 4, Q = (S + 3) / 4;
    const bool takes_C = threadIdx.x % 8 >= 4;
    const int bc_column = (takes_C ? N : 0) + at.part * S;
#pragma unroll
    for (int four = SEGMENT<N, K> - 4; four >= 0; four -= 4) {
        channel_sums<PARTS<T>> dB[Q], dC[Q];
        float dx[K][4], dlog[K][4], y[K][4];
#pragma unroll
        for (int i = 3; i >= 0; i--) {
            const int t = four + i;
            float b[S], c[S], terms_B[Q][4] = {}, terms_C[Q][4] = {};
            load<S>(b, B + (first + t) * N);
            load<S>(c, C + (first + t) * N);
#pragma unroll
            for (int k = 0; k < K; k++)
                step_back(lane, k, tile.steps[first + t][at.column(k)], b, c, h[t][k], h[t + 1][k], a[t][k], terms_B,
                          terms_C, dx[k][i], dlog[k][i], y[k][i]);
#pragma unroll
            for (int q = 0; q < Q; q++)
                dB[q].add(i, terms_B[q], is), dC[q].add(i, terms_C[q], is);
        }
        const int mine = first + four + at.part;
#pragma unroll
        for (int k = 0; k < K; k++)
            write_gradients<T, N>(tile, rows, p, at, lane, k, mine, t0 + mine, end, fold<4, 8>(dx[k], at.part),
                                  fold<4, 8>(dlog[k], at.part), fold<4, 8>(y[k], at.part));
        put_sums<N>(&dbc[first + four + int(threadIdx.x) % 4][bc_column], dB, dC, takes_C);
    }
}

/* A tile back. bc: B, then C so many tiles on; start: the state before the tile. */
template <typename T, int N, int K, int W, int TILES = 2>
__device__ __forceinline__ void
tile_back(backward_lane<N / 4, K> &lane, float (&start)[K][N / 4], const backward_steps<K, W> &tile, const float4 *bc,
          warp_sums<N> &dbc, segment_starts<N, K> &starts, const float (&is)[8], const gradient_rows<T> &rows,
          const params &p, const place<K> &at, int t0, int end)
{
    constexpr int S = N / 4, STEPS = SEGMENT<N, K>;
    const float *B = reinterpret_cast<const float *>(bc) + at.part * S, *C = B + TILES * TILE * N;
    walk_tile<N, K>(start, starts, tile, B, lane, at);
#pragma unroll 1
    for (int first = TILE - STEPS; first >= 0; first -= STEPS) {
        float h[STEPS + 1][K][S], a[STEPS][K][S];
#pragma unroll
        for (int k = 0; k < K; k++) {
            if (first < TILE - STEPS)
                load<S>(start[k], starts[first / STEPS][k] + threadIdx.x % 32 * S);
#pragma unroll
            for (int s = 0; s < S; s++)
                h[0][k][s] = start[k][s];
        }
        recall<N, K>(h, a, tile, B, lane, at, first);
        walk_back<T, N, K>(lane, tile, dbc, B, C, h, a, is, rows, p, at, t0, first, end);
    }
}

/* The backward of a chunk, or of all there is. Grid (channel groups x chunks, batch). */
template <typename T, int N, int K>
__global__ void __launch_bounds__(32 * WARPS, backward_blocks(N)) scan_backward(const params p)
{
    constexpr int S = N / 4;
    extern __shared__ __align__(16) unsigned char shared[];
    backward_block<N, K> &block = *reinterpret_cast<backward_block<N, K> *>(shared);
    const place<K> at(p.chunks, lanes::APART);
    const int begin = at.chunk * p.chunk_steps, end = min(p.s.length, begin + p.chunk_steps);
    const int group = int(blockIdx.x) / p.chunks;
    backward_lane<S, K> lane = {};
    ptx::wait_for_kernels();
    start_lane<T, N, K>(lane, p, at);
    float is[8];
    pick_rows(is);
    const backward_inputs<T> inputs(p, at.channel(p, 0), at.batch);
    const gradient_rows<T> rows(p, at.channel(p, 0), at.batch);
    staged_bc<T, N, true, 32 * WARPS, 2> bc(p, at.batch);
    int odd = 0, before = -1;
#pragma unroll 1
    for (int t0 = (end - 1) / TILE * TILE; t0 >= begin; t0 -= TILE, odd ^= 1) {
        float start[K][S];
        bc.load(p, t0, end);
        load_states<N, K, 4>(start, checkpoint(p, at, t0), p, at, p.s.d_state);
        stage_backward(block.tile, inputs, p, at, t0, end, lane.bias2);
        bc.put(block.bc[0][0], odd);
        /* One barrier a tile: B and C are there; and the dB, dC of the tile before. */
        __syncthreads();
        if (before >= 0)
            write_partial_bc<N, WARPS>(block.dbc[odd ^ 1], p, at.batch, group, before, end);
        before = t0;
        tile_back<T, N, K>(lane, start, block.tile, block.bc[0][odd], block.dbc[odd][at.warp], block.starts[at.warp],
                           is, rows, p, at, t0, end);
        __syncwarp(); /* the next tile overwrites the steps */
    }
    __syncthreads();
    write_partial_bc<N, WARPS>(block.dbc[odd ^ 1], p, at.batch, group, before, end);
    if (p.s.dh0 && begin == 0)
        store_states<N, K, 4>(p.s.dh0 + int64_t(at.batch) * p.s.channels * p.s.d_state, lane.carry, p, at);
    write_partial_a<N, K>(lane, p, at);
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
