/* SPDX-License-Identifier: MIT */

/* The selective scan on the GPU; selective_scan.h says what it computes. Twin: `selective_scan` in kernels/.
 *
 * Mapping. A lane owns S = 4 states of K channels, G = N / S lanes share a channel, a warp walks CW = 32 / G * K of them
 * (32 at N = 16, K = 4), a block of 4 warps 4 CW neighbouring channels of one sequence over one chunk of time. Against
 * one channel a lane this reads B and C from shared memory once for K channels, and in the backward sums dB and dC over
 * K channels in registers before any shuffle. K = 2 and 1 trade some of that for 2 or 4 times as many warps.
 * All that is per channel and not per state (softplus, gate, D) runs with one lane a channel, coalesced, once a tile of
 * 16 steps, before and after the walk; it hands over through shared memory.
 *
 * Grid: (ceil(E / 4 CW), chunks, batch), 128 threads. Chunks are used only when batch x channels can't fill the
 * machine: A does not depend on time, so a chunk is the affine map h -> exp(A sum delta) h + local, and
 *   1. each chunk but the last gives (sum delta, local);  2. a prefix over chunks gives start states;
 *   3. the scan proper runs from those.  The backward's carry exp(delta A) dh is the same recurrence in reverse.
 *
 * Bytes an element (one batch, step, channel) in HBM, N = 16:
 *   forward   fp32 16, bf16 8; + 8 or 4 with chunks; + 4 for checkpoints in training (16 floats every 16 steps)
 *   backward  fp32 28 + 4 of checkpoints + 4 of partial dB, dC at K = 2 (2 at K = 4); bf16 14 + 4 + 4; chunked + 12, 6
 * Floor on an H100 (3.0 TB/s, 4.2e12 exponentials/s): forward 5.4 ps fp32 (bytes), 4.8 bf16 (exponentials); backward 12
 * and 7.5 ps (bytes; its 40 exponentials are 9.6). The backward is bound by instructions, 3.0e13 lanes/s: the compiled
 * inner loop is 23 a state-step at K = 2, and all of it about 700 an element = 24 ps; at K = 4 about 600 = 20 ps. */

#include "kernels/cuda/selective_scan.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace {

constexpr int TILE = 16;   /* steps staged at once, and between two checkpoints                                  */
constexpr int SEGMENT = 8; /* steps of state history the backward keeps: shared memory against recomputation     */
constexpr int WARPS = 4;   /* a block                                                                            */
constexpr int MIN_CHUNK = 64;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr unsigned ALL = 0xffffffffu;

/* What every kernel gets. */
struct params {
    selective_scan_cuda s;
    int chunks, chunk_steps; /* chunk_steps is a multiple of TILE                                               */
    int tiles;               /* checkpoints a sequence                                                          */
    int blocks;              /* along channels                                                                  */
    float *carry, *sums;     /* (batch, chunks, E, N) and (batch, chunks, E): maps, then start states           */
    float *partial_bc;       /* (blocks, batch, L, 2N): dB and dC, each summed over one block's channels        */
    float *partial_a;        /* (batch chunks, E (N + 2)): dA, then dD, then ddt_bias, of one chunk             */
};

/* Who does what in a warp, see the top of the file. */
template <int N_, int K_> struct shape {
    static constexpr int N = N_, K = K_;
    static constexpr int S = N < 4 ? N : 4;
    static constexpr int G = N / S;
    static constexpr int CW = 32 / G * K;      /* channels a warp                                                */
    static constexpr int ROWS = 32 / CW;       /* rows staged side by side by one warp                           */
    static constexpr int R = TILE / ROWS;      /* rows each lane stages                                          */
    static constexpr int BC = (TILE * N + 127) / 128; /* elements of B (and C) each thread stages                */
    static_assert(K <= G && CW <= 32 && TILE % ROWS == 0, "lanes and channels must tile a warp");
};

/* ---- small things ------------------------------------------------------------------------------------------- */

__device__ __forceinline__ float exp2_fast(float x)
{
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

/* A hint: bring the line at `address` to L2. Must lie in mapped memory's neighbourhood only; never faults. */
__device__ __forceinline__ void prefetch_l2(const void *address)
{
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
    (void)address;
#endif
}

/* The same number, but the compiler doesn't know: addresses made from it are made anew, not kept in registers. */
__device__ __forceinline__ int forget(int x)
{
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(x));
#endif
    return x;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void put(float *p, float x) { *p = x; }
__device__ __forceinline__ void put(__nv_bfloat16 *p, float x) { *p = __float2bfloat16(x); }

template <typename T> __device__ __forceinline__ T zero();
template <> __device__ __forceinline__ float zero<float>() { return 0.0f; }
template <> __device__ __forceinline__ __nv_bfloat16 zero<__nv_bfloat16>() { return __float2bfloat16(0.0f); }

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp2_fast(-LOG2E * x)); }

/* exp(x) for x <= 0 to 2 ulp: the product x log2 e in two parts. */
__device__ __forceinline__ float exp_negative(float x)
{
    const float whole = x * LOG2E;
    const float rest = fmaf(x, 1.925963033500011e-8f, fmaf(x, LOG2E, -whole));
    const float y = exp2_fast(whole);
    return x < -87.0f ? 0.0f : fmaf(y * LN2, rest, y);
}

/* softplus(x) = max(x, 0) + log1p(e), e = exp(-|x|), and its slope, the sigmoid. No branches, so that a tile's rows
 * overlap. log1p(e) = 2 atanh(s), s = e / (2 + e) <= 1/3: seven terms leave 1e-8. Above 20 this is x itself. */
__device__ __forceinline__ float softplus(float x, float *slope)
{
    const float e = exp_negative(-fabsf(x));
    const float s = __fdividef(e, 2.0f + e), s2 = s * s;
    float series = fmaf(s2, 2.0f / 13.0f, 2.0f / 11.0f);
    series = fmaf(s2, series, 2.0f / 9.0f);
    series = fmaf(s2, series, 2.0f / 7.0f);
    series = fmaf(s2, series, 2.0f / 5.0f);
    series = fmaf(s2, series, 2.0f / 3.0f);
    series = fmaf(s2, series, 2.0f);
    *slope = __fdividef(x >= 0.0f ? 1.0f : e, 1.0f + e);
    return fmaf(s, series, fmaxf(x, 0.0f));
}

/* n floats (1, 2 or 4) as one access; p aligned to n floats. */
template <int n> __device__ __forceinline__ void load(float *v, const float *p)
{
    if constexpr (n == 4) {
        const float4 x = *reinterpret_cast<const float4 *>(p);
        v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
    } else if constexpr (n == 2) {
        const float2 x = *reinterpret_cast<const float2 *>(p);
        v[0] = x.x, v[1] = x.y;
    } else {
        v[0] = *p;
    }
}

template <int n> __device__ __forceinline__ void store(float *p, const float *v)
{
    if constexpr (n == 4)
        *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
    else if constexpr (n == 2)
        *reinterpret_cast<float2 *>(p) = make_float2(v[0], v[1]);
    else
        *p = v[0];
}

/* Sum n values over the lanes that differ in the bits FIRST <= bit < END. While several values are left each step
 * halves them (a lane passes on the half it gives up), so n sums over m lanes cost about n shuffles, not n log2 m.
 * v[0], v[1], .. (n / m of them, at least one) then hold the sums with index first, first + 1, ..; gives first. */
template <int n, int FIRST, int END> __device__ __forceinline__ int fold(float *v, int lane)
{
    if constexpr (FIRST >= END) {
        return 0;
    } else if constexpr (n == 1) {
        v[0] += __shfl_xor_sync(ALL, v[0], FIRST);
        return fold<1, FIRST * 2, END>(v, lane);
    } else {
        const bool upper = (lane & FIRST) != 0;
#pragma unroll
        for (int i = 0; i < n / 2; i++) {
            const float keep = upper ? v[i + n / 2] : v[i];
            const float give = upper ? v[i] : v[i + n / 2];
            v[i] = keep + __shfl_xor_sync(ALL, give, FIRST);
        }
        return (upper ? n / 2 : 0) + fold<n / 2, FIRST * 2, END>(v, lane);
    }
}

/* ---- where a thread stands ---------------------------------------------------------------------------------- */

/* Two views of one warp: (group, part) in the walk, a lane's K channels and S states; (column, row) in the staging,
 * one channel and every ROWS-th step. */
template <class P> struct place {
    int warp, lane, group, part, column, row;
    int channel0;        /* the warp's first */
    int batch, chunk;
    int begin, end;      /* the chunk's steps */

    __device__ __forceinline__ place(const params &p, int chunk_)
    {
        warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
        group = lane / P::G, part = lane % P::G;
        column = lane % P::CW, row = lane / P::CW;
        channel0 = (int(blockIdx.x) * WARPS + warp) * P::CW;
        batch = int(blockIdx.z), chunk = chunk_;
        begin = chunk * p.chunk_steps;
        end = min(p.s.length, begin + p.chunk_steps);
    }
    /* The lane's k-th channel in the walk; its channel in the staging. */
    __device__ __forceinline__ int walked(int k) const { return channel0 + group * P::K + k; }
    __device__ __forceinline__ int staged() const { return channel0 + column; }
    __device__ __forceinline__ int staged_step(int r) const { return r * P::ROWS + row; }
    /* Row r of the tile at t0 is inside the chunk, and the lane's channel inside E, where r ROWS is below this. */
    __device__ __forceinline__ int rows_left(const params &p, int t0) const
    {
        return staged() < p.s.channels ? end - t0 - row : 0;
    }
    /* Where the lane's first row of the tile at t0 is in a (batch, L, E) tensor. */
    __device__ __forceinline__ int64_t first_row(const params &p, int t0, int64_t stride) const
    {
        return (int64_t(batch) * p.s.length + t0 + row) * stride + staged();
    }
};

/* Copy the lane's K x S values of an (E, N) table; channels past E read as zero and are not written. */
template <class P>
__device__ __forceinline__ void load_states(float (&v)[P::K][P::S], const float *table, const place<P> &at,
                                            int channels)
{
#pragma unroll
    for (int k = 0; k < P::K; k++) {
#pragma unroll
        for (int s = 0; s < P::S; s++)
            v[k][s] = 0.0f;
        if (table && at.walked(k) < channels)
            load<P::S>(v[k], table + int64_t(at.walked(k)) * P::N + at.part * P::S);
    }
}

template <class P>
__device__ __forceinline__ void store_states(float *table, const float (&v)[P::K][P::S], const place<P> &at,
                                             int channels)
{
#pragma unroll
    for (int k = 0; k < P::K; k++)
        if (at.walked(k) < channels)
            store<P::S>(table + int64_t(at.walked(k)) * P::N + at.part * P::S, v[k]);
}

/* exp(delta A) is computed as 2^(delta A2) */
template <class P> __device__ __forceinline__ void load_A2(float (&A2)[P::K][P::S], const params &p, const place<P> &at)
{
    load_states<P>(A2, p.s.A, at, p.s.channels);
#pragma unroll
    for (int k = 0; k < P::K; k++)
#pragma unroll
        for (int s = 0; s < P::S; s++)
            A2[k][s] *= LOG2E;
}

/* The (E, N) table of a chunk's map or start state. */
template <class P> __device__ __forceinline__ float *chunk_table(const params &p, const place<P> &at)
{
    return p.carry + (int64_t(at.batch) * p.chunks + at.chunk) * p.s.channels * P::N;
}

template <class P> __device__ __forceinline__ float *checkpoint(const params &p, const place<P> &at, int tile)
{
    return p.s.states + (int64_t(at.batch) * p.tiles + tile) * p.s.channels * P::N;
}

__device__ __forceinline__ const float *sequence_table(const float *h, const params &p, int batch, int N)
{
    return h ? h + int64_t(batch) * p.s.channels * N : nullptr;
}

/* ---- staging ------------------------------------------------------------------------------------------------ */

/* The lane's rows of one (batch, L, E) input for the tile at t0; what is outside the chunk or past E is zero. */
template <typename T, class P>
__device__ __forceinline__ void load_rows(T (&v)[P::R], const void *base, int64_t stride, const params &p,
                                          const place<P> &at, int t0)
{
    const T *x = static_cast<const T *>(base) + at.first_row(p, t0, stride);
    const int left = at.rows_left(p, t0);
#pragma unroll
    for (int r = 0; r < P::R; r++, x += P::ROWS * stride) {
        v[r] = zero<T>();
        if (r * P::ROWS < left)
            v[r] = *x;
    }
}

/* The thread's share of a (batch, L, N) input for the tile at t0, and its way into shared memory. */
template <typename T, class P>
__device__ __forceinline__ void load_bc(T (&v)[P::BC], const void *base, int64_t stride, const params &p,
                                        const place<P> &at, int t0)
{
    const T *x = static_cast<const T *>(base) + int64_t(at.batch) * p.s.length * stride;
#pragma unroll
    for (int i = 0; i < P::BC; i++) {
        const int j = i * 128 + int(threadIdx.x), t = t0 + j / P::N;
        v[i] = zero<T>();
        if (j < TILE * P::N && t < at.end)
            v[i] = x[int64_t(t) * stride + j % P::N];
    }
}

template <typename T, class P> __device__ __forceinline__ void put_bc(float *tile, const T (&v)[P::BC])
{
#pragma unroll
    for (int i = 0; i < P::BC; i++) {
        const int j = i * 128 + int(threadIdx.x);
        if (j < TILE * P::N)
            tile[j] = to_float(v[i]);
    }
}

__device__ __forceinline__ float load_or(const float *x, int64_t i, float otherwise) { return x ? x[i] : otherwise; }

/* elapsed of the lane's rows, zero outside the chunk: a step of no time changes nothing. */
template <class P>
__device__ __forceinline__ void load_elapsed(float (&v)[P::R], const params &p, const place<P> &at, int t0)
{
    const int left = at.rows_left(p, t0);
#pragma unroll
    for (int r = 0; r < P::R; r++)
        v[r] = r * P::ROWS < left ? 1.0f : 0.0f;
    if (p.s.elapsed) {
        const float *elapsed = p.s.elapsed + int64_t(at.batch) * p.s.length + t0 + at.row;
#pragma unroll
        for (int r = 0; r < P::R; r++)
            if (r * P::ROWS < left)
                v[r] = elapsed[r * P::ROWS];
    }
}

/* ---- the walk ----------------------------------------------------------------------------------------------- */

/* h <- exp(delta A) h + x B, x = delta u */
template <class P>
__device__ __forceinline__ void step(float (&h)[P::K][P::S], const float (&A2)[P::K][P::S], const float *delta,
                                     const float *x, const float *b)
{
#pragma unroll
    for (int k = 0; k < P::K; k++)
#pragma unroll
        for (int s = 0; s < P::S; s++)
            h[k][s] = fmaf(exp2_fast(delta[k] * A2[k][s]), h[k][s], x[k] * b[s]);
}

/* A tile of one warp's channels in the forward. */
template <class P> struct forward_tile {
    float delta[TILE][P::CW], x[TILE][P::CW];
    float y[TILE][P::CW]; /* D u, then y */
    float gate[TILE][P::CW];
};

/* One tile's inputs on their way: the next tile's loads are in flight while this one is walked. */
template <typename T, class P, bool MAP> struct forward_inputs {
    T u[P::R], dt[P::R], z[MAP ? 1 : P::R], b[P::BC], c[MAP ? 1 : P::BC];

    __device__ __forceinline__ void load(const params &p, const place<P> &at, int t0)
    {
        load_rows<T, P>(u, p.s.u, p.s.u_row, p, at, t0);
        load_rows<T, P>(dt, p.s.dt, p.s.dt_row, p, at, t0);
        load_bc<T, P>(b, p.s.B, p.s.B_row, p, at, t0);
        if constexpr (!MAP) {
            load_bc<T, P>(c, p.s.C, p.s.C_row, p, at, t0);
            if (p.s.z)
                load_rows<T, P>(z, p.s.z, p.s.z_row, p, at, t0);
        }
    }

    __device__ __forceinline__ void put(forward_tile<P> &tile, const params &p, const place<P> &at, int t0, float bias,
                                        float skip) const
    {
        float elapsed[P::R];
        load_elapsed<P>(elapsed, p, at, t0);
#pragma unroll
        for (int r = 0; r < P::R; r++) {
            const int i = at.staged_step(r);
            float slope;
            const float delta = elapsed[r] * softplus(to_float(dt[r]) + bias, &slope);
            tile.delta[i][at.column] = delta;
            tile.x[i][at.column] = delta * to_float(u[r]);
            if constexpr (!MAP)
                tile.y[i][at.column] = skip * to_float(u[r]);
        }
        if constexpr (!MAP) {
            if (p.s.z) {
#pragma unroll
                for (int r = 0; r < P::R; r++)
                    tile.gate[at.staged_step(r)][at.column] = to_float(z[r]) * sigmoid(to_float(z[r]));
            }
        }
    }
};

/* Walk a tile from state h; MAP wants only the state and the sum of delta, else y is added up. */
template <class P, bool MAP>
__device__ __forceinline__ void walk_forward(float (&h)[P::K][P::S], float (&sum)[P::K], const float (&A2)[P::K][P::S],
                                             forward_tile<P> &tile, const float *Bs, const float *Cs,
                                             const place<P> &at)
{
#pragma unroll 2
    for (int t = 0; t < TILE; t++) {
        float delta[P::K], x[P::K], b[P::S];
        load<P::K>(delta, &tile.delta[t][at.group * P::K]);
        load<P::K>(x, &tile.x[t][at.group * P::K]);
        load<P::S>(b, Bs + t * P::N + at.part * P::S);
        step<P>(h, A2, delta, x, b);
        if constexpr (MAP) {
#pragma unroll
            for (int k = 0; k < P::K; k++)
                sum[k] += delta[k];
        } else {
            float c[P::S], y[P::K];
            load<P::S>(c, Cs + t * P::N + at.part * P::S);
#pragma unroll
            for (int k = 0; k < P::K; k++) {
                y[k] = h[k][0] * c[0];
#pragma unroll
                for (int s = 1; s < P::S; s++)
                    y[k] = fmaf(h[k][s], c[s], y[k]);
            }
            const int k = fold<P::K, 1, P::G>(y, at.lane);
            if (at.part < P::K)
                tile.y[t][at.group * P::K + k] += y[0];
        }
    }
}

template <typename T, class P>
__device__ __forceinline__ void write_out(const forward_tile<P> &tile, const params &p, const place<P> &at, int t0)
{
    T *out = static_cast<T *>(p.s.out) + at.first_row(p, t0, p.s.out_row);
    const int left = at.rows_left(p, t0);
#pragma unroll
    for (int r = 0; r < P::R; r++, out += P::ROWS * p.s.out_row) {
        const int i = at.staged_step(r);
        const float gate = p.s.z ? tile.gate[i][at.column] : 1.0f;
        if (r * P::ROWS < left)
            put(out, tile.y[i][at.column] * gate);
    }
}

/* Forward: the scan of one chunk, or with MAP only its map (sum delta, end state from zero). */
template <typename T, class P, bool MAP>
__global__ void __launch_bounds__(128, P::N == 16 && P::K == 4 ? 4 : 1) scan_forward(const params p)
{
    __shared__ __align__(16) forward_tile<P> tiles[WARPS];
    __shared__ __align__(16) float Bs[2][TILE * P::N], Cs[2][TILE * P::N];
    const place<P> at(p, int(blockIdx.y));
    forward_tile<P> &tile = tiles[at.warp];
    const int channels = p.s.channels;
    const bool mine = at.staged() < channels;
    const float bias = mine ? load_or(p.s.dt_bias, at.staged(), 0.0f) : 0.0f;
    const float skip = mine ? load_or(p.s.D, at.staged(), 0.0f) : 0.0f;

    float A2[P::K][P::S], h[P::K][P::S], sum[P::K] = {};
    load_A2<P>(A2, p, at);
    const float *start = p.chunks > 1 ? chunk_table<P>(p, at) : sequence_table(p.s.h0, p, at.batch, P::N);
    load_states<P>(h, MAP ? nullptr : start, at, channels);

    forward_inputs<T, P, MAP> next;
    next.load(p, at, at.begin);
    for (int t0 = at.begin, odd = 0; t0 < at.end; t0 += TILE, odd ^= 1) {
        next.put(tile, p, at, t0, bias, skip);
        put_bc<T, P>(Bs[odd], next.b);
        if constexpr (!MAP) {
            put_bc<T, P>(Cs[odd], next.c);
            if (p.s.states)
                store_states<P>(checkpoint<P>(p, at, t0 / TILE), h, at, channels);
        }
        /* One barrier a tile: a warp that runs ahead writes the other half of Bs and Cs, and can't get further. */
        __syncthreads();
        if (t0 + TILE < at.end)
            next.load(p, at, t0 + TILE);
        walk_forward<P, MAP>(h, sum, A2, tile, Bs[odd], Cs[odd], at);
        __syncwarp();
        if constexpr (!MAP)
            write_out<T, P>(tile, p, at, t0);
        __syncwarp();
    }

    if constexpr (MAP) {
        store_states<P>(chunk_table<P>(p, at), h, at, channels);
#pragma unroll
        for (int k = 0; k < P::K; k++)
            if (at.part == 0 && at.walked(k) < channels)
                p.sums[(int64_t(at.batch) * p.chunks + at.chunk) * channels + at.walked(k)] = sum[k];
    } else if (p.s.h_end && at.end == p.s.length) {
        store_states<P>(p.s.h_end + int64_t(at.batch) * channels * P::N, h, at, channels);
    }
}

/* Turn each chunk's map into its start state, forward from h0 or (reverse) backward from dh_end. One thread a state;
 * grid (ceil(E N / 128), 1, batch). The last chunk's map (reverse: the first's) is not read: nothing follows it. */
__global__ void __launch_bounds__(128) scan_chunks(const params p, const float *first, int reverse)
{
    const int i = int(blockIdx.x) * 128 + int(threadIdx.x), N = p.s.d_state, width = p.s.channels * N;
    if (i >= width)
        return;
    const float A2 = p.s.A[i] * LOG2E;
    float h = first ? first[int64_t(blockIdx.z) * width + i] : 0.0f;
    for (int j = 0; j < p.chunks; j++) {
        const int64_t chunk = int64_t(blockIdx.z) * p.chunks + (reverse ? p.chunks - 1 - j : j);
        float *map = p.carry + chunk * width + i;
        const float local = j + 1 < p.chunks ? *map : 0.0f;
        const float sum = j + 1 < p.chunks ? p.sums[chunk * p.s.channels + i / N] : 0.0f;
        *map = h;
        h = fmaf(exp2_fast(sum * A2), h, local);
    }
}

/* ---- backward ----------------------------------------------------------------------------------------------- */

/* One warp's tile. The walk puts its sums over states where it found its inputs, which it has read by then. */
template <class P> struct backward_tile {
    float delta[TILE][P::CW];                /* then <dL/dlog2 a, A2>                                            */
    float x[TILE][P::CW];                    /* delta u; then dL/dx                                              */
    float dy[TILE][P::CW];                   /* dout silu(z); then <C, h>                                        */
    float history[SEGMENT][P::K][32][P::S];  /* the state before each step                                       */
    float dbc[TILE * 2 * P::N];               /* dB and dC summed over the warp's channels                        */
};

template <class P> struct backward_block {
    float B[TILE * P::N], C[TILE * P::N];
    backward_tile<P> tiles[WARPS];
};

/* What the staging reads. It is read again after the walk, by then from a cache, to leave the walk its registers. */
template <typename T, class P> struct backward_inputs {
    T u[P::R], dt[P::R], z[P::R], dout[P::R];
    float elapsed[P::R];

    __device__ __forceinline__ void load(const params &p, const place<P> &at, int t0, bool with_u)
    {
        load_rows<T, P>(dt, p.s.dt, p.s.dt_row, p, at, t0);
        load_rows<T, P>(dout, p.s.dout, p.s.dout_row, p, at, t0);
        if (p.s.z)
            load_rows<T, P>(z, p.s.z, p.s.z_row, p, at, t0);
        if (with_u)
            load_rows<T, P>(u, p.s.u, p.s.u_row, p, at, t0);
        load_elapsed<P>(elapsed, p, at, t0);
    }
    /* dL/dy = dout silu(z) of every row */
    __device__ __forceinline__ void dy(float (&v)[P::R], const params &p) const
    {
#pragma unroll
        for (int r = 0; r < P::R; r++)
            v[r] = to_float(dout[r]);
        if (p.s.z) {
#pragma unroll
            for (int r = 0; r < P::R; r++)
                v[r] *= to_float(z[r]) * sigmoid(to_float(z[r]));
        }
    }
};

/* Phase 1 in reverse: the chunk's carry exp(delta A) dh at its first step when none comes in at its end. */
template <typename T, class P> __global__ void __launch_bounds__(128) scan_backward_map(const params p)
{
    __shared__ __align__(16) float delta_s[WARPS][TILE][P::CW], dy_s[WARPS][TILE][P::CW], Cs[TILE * P::N];
    const place<P> at(p, int(blockIdx.y) + 1);
    const bool mine = at.staged() < p.s.channels;
    const float bias = mine ? load_or(p.s.dt_bias, at.staged(), 0.0f) : 0.0f;
    float A2[P::K][P::S], carry[P::K][P::S] = {}, sum[P::K] = {};
    load_A2<P>(A2, p, at);

    for (int t0 = (at.end - 1) / TILE * TILE; t0 >= at.begin; t0 -= TILE) {
        backward_inputs<T, P> in;
        T c_in[P::BC];
        in.load(p, at, t0, false);
        load_bc<T, P>(c_in, p.s.C, p.s.C_row, p, at, t0);
        __syncthreads();
        put_bc<T, P>(Cs, c_in);
        float dy_rows[P::R];
        in.dy(dy_rows, p);
#pragma unroll
        for (int r = 0; r < P::R; r++) {
            const int i = at.staged_step(r);
            float slope;
            delta_s[at.warp][i][at.column] = in.elapsed[r] * softplus(to_float(in.dt[r]) + bias, &slope);
            dy_s[at.warp][i][at.column] = dy_rows[r];
        }
        __syncthreads();
#pragma unroll 2
        for (int t = TILE - 1; t >= 0; t--) {
            float delta[P::K], dy[P::K], c[P::S];
            load<P::K>(delta, &delta_s[at.warp][t][at.group * P::K]);
            load<P::K>(dy, &dy_s[at.warp][t][at.group * P::K]);
            load<P::S>(c, Cs + t * P::N + at.part * P::S);
#pragma unroll
            for (int k = 0; k < P::K; k++) {
                sum[k] += delta[k];
#pragma unroll
                for (int s = 0; s < P::S; s++)
                    carry[k][s] = exp2_fast(delta[k] * A2[k][s]) * fmaf(dy[k], c[s], carry[k][s]);
            }
        }
    }

    store_states<P>(chunk_table<P>(p, at), carry, at, p.s.channels);
#pragma unroll
    for (int k = 0; k < P::K; k++)
        if (at.part == 0 && at.walked(k) < p.s.channels)
            p.sums[(int64_t(at.batch) * p.chunks + at.chunk) * p.s.channels + at.walked(k)] = sum[k];
}

/* Run the states from the checkpoint to the segment's steps, and keep the state before each of these. */
template <class P>
__device__ __forceinline__ void recompute(backward_tile<P> &tile, const float *Bs, const float (&A2)[P::K][P::S],
                                          const float *start, const place<P> &at, int channels, int first)
{
    float h[P::K][P::S];
    load_states<P>(h, start, at, channels);
#pragma unroll 2
    for (int t = 0; t < first + SEGMENT; t++) {
        if (t >= first) {
#pragma unroll
            for (int k = 0; k < P::K; k++)
                store<P::S>(tile.history[t - first][k][at.lane], h[k]);
        }
        float delta[P::K], x[P::K], b[P::S];
        load<P::K>(delta, &tile.delta[t][at.group * P::K]);
        load<P::K>(x, &tile.x[t][at.group * P::K]);
        load<P::S>(b, Bs + t * P::N + at.part * P::S);
        step<P>(h, A2, delta, x, b);
    }
}

/* One step back. With p = a h_before, h = p + x B, and the incoming carry (of dh through the later steps):
 *   dh = carry + dy C;  dC = sum dy h;  dB = sum dh x;  dx = <dh, B>;  dlog a = dh p;  carry <- a dh. */
template <class P>
__device__ __forceinline__ void step_back(backward_tile<P> &tile, int t, float (&carry)[P::K][P::S],
                                          float (&dA)[P::K][P::S], const float (&A2)[P::K][P::S], const float *Bs,
                                          const float *Cs, const place<P> &at)
{
    float delta[P::K], x[P::K], dy[P::K], b[P::S], c[P::S];
    load<P::K>(delta, &tile.delta[t][at.group * P::K]);
    load<P::K>(x, &tile.x[t][at.group * P::K]);
    load<P::K>(dy, &tile.dy[t][at.group * P::K]);
    load<P::S>(b, Bs + t * P::N + at.part * P::S);
    load<P::S>(c, Cs + t * P::N + at.part * P::S);

    float dbc[2 * P::S] = {}, dx[P::K] = {}, da[P::K] = {}, y[P::K] = {};
#pragma unroll
    for (int k = 0; k < P::K; k++) {
        float before[P::S];
        load<P::S>(before, tile.history[t % SEGMENT][k][at.lane]);
#pragma unroll
        for (int s = 0; s < P::S; s++) {
            const float a = exp2_fast(delta[k] * A2[k][s]);
            const float decayed = a * before[s];
            const float h = fmaf(x[k], b[s], decayed);
            const float dh = fmaf(dy[k], c[s], carry[k][s]);
            const float dlog = dh * decayed;
            dbc[s] = fmaf(dh, x[k], dbc[s]);
            dbc[P::S + s] = fmaf(dy[k], h, dbc[P::S + s]);
            dx[k] = fmaf(dh, b[s], dx[k]);
            y[k] = fmaf(h, c[s], y[k]);
            da[k] = fmaf(dlog, A2[k][s], da[k]);
            dA[k][s] = fmaf(dlog, delta[k], dA[k][s]);
            carry[k][s] = a * dh;
        }
    }

    const int k = fold<P::K, 1, P::G>(dx, at.lane);
    fold<P::K, 1, P::G>(da, at.lane);
    fold<P::K, 1, P::G>(y, at.lane);
    const int first = fold<2 * P::S, P::G, 32>(dbc, at.lane);
    __syncwarp(); /* every lane has read this row's inputs */
    if (at.part < P::K) {
        const int channel = at.group * P::K + k;
        tile.x[t][channel] = dx[0];
        tile.delta[t][channel] = da[0];
        tile.dy[t][channel] = y[0];
    }
    constexpr int LEFT = 2 * P::S * P::G > 32 ? 2 * P::S * P::G / 32 : 1;
    if (at.group < 2 * P::S) {
#pragma unroll
        for (int i = 0; i < LEFT; i++) {
            const int j = first + i;
            tile.dbc[t * 2 * P::N + j / P::S * P::N + at.part * P::S + j % P::S] = dbc[i];
        }
    }
}

/* The walk's inputs, into shared memory. */
template <typename T, class P>
__device__ __forceinline__ void stage_backward(backward_tile<P> &tile, const params &p, const place<P> &at, int t0,
                                               float bias)
{
    backward_inputs<T, P> in;
    in.load(p, at, t0, true);
    float dy[P::R];
    in.dy(dy, p);
#pragma unroll
    for (int r = 0; r < P::R; r++) {
        const int i = at.staged_step(r);
        float slope;
        const float delta = in.elapsed[r] * softplus(to_float(in.dt[r]) + bias, &slope);
        tile.delta[i][at.column] = delta;
        tile.x[i][at.column] = delta * to_float(in.u[r]);
        tile.dy[i][at.column] = dy[r];
    }
}

/* From the walk's sums over states to du, ddt, dz; and the lane's share of dD and ddt_bias. What is outside the chunk
 * adds zero to both and is not written. */
template <typename T, class P>
__device__ __forceinline__ void write_gradients(const backward_tile<P> &tile, const backward_inputs<T, P> &in,
                                                const params &p, const place<P> &at, int t0, float bias, float skip,
                                                float &dD, float &dbias)
{
    T *du = static_cast<T *>(p.s.du) + at.first_row(p, t0, p.s.du_row);
    T *ddt = static_cast<T *>(p.s.ddt) + at.first_row(p, t0, p.s.ddt_row);
    const int left = at.rows_left(p, t0);
    float dy[P::R];
    in.dy(dy, p);
#pragma unroll
    for (int r = 0; r < P::R; r++, du += P::ROWS * p.s.du_row, ddt += P::ROWS * p.s.ddt_row) {
        const int i = at.staged_step(r);
        float slope;
        const float u = to_float(in.u[r]), dx = tile.x[i][at.column];
        const float delta = in.elapsed[r] * softplus(to_float(in.dt[r]) + bias, &slope);
        const float through = fmaf(u, dx, LN2 * tile.delta[i][at.column]) * in.elapsed[r] * slope;
        if (r * P::ROWS < left) {
            put(du, fmaf(delta, dx, skip * dy[r]));
            put(ddt, through);
        }
        dD = fmaf(dy[r], u, dD);
        dbias += through;
    }
    if (p.s.z) {
        T *dz = static_cast<T *>(p.s.dz) + at.first_row(p, t0, p.s.dz_row);
#pragma unroll
        for (int r = 0; r < P::R; r++, dz += P::ROWS * p.s.dz_row) {
            const int i = at.staged_step(r);
            const float z = to_float(in.z[r]), slope = sigmoid(z);
            const float y = fmaf(skip, to_float(in.u[r]), tile.dy[i][at.column]);
            if (r * P::ROWS < left)
                put(dz, to_float(in.dout[r]) * y * slope * fmaf(z, 1.0f - slope, 1.0f));
        }
    }
}

/* Add the four warps' dB and dC of a tile, for reduce_bc to add up over blocks. */
template <class P>
__device__ __forceinline__ void write_partial_bc(const backward_block<P> &block, const params &p, const place<P> &at,
                                                 int t0)
{
    const int steps = min(TILE, at.end - t0);
    float *partial = p.partial_bc +
        ((int64_t(blockIdx.x) * p.s.batch + at.batch) * p.s.length + t0) * (2 * P::N);
    for (int i = int(threadIdx.x); i < steps * 2 * P::N; i += 128) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            sum += block.tiles[w].dbc[i];
        partial[i] = sum;
    }
}

/* Hint the tile before this one into L2: one lane a row and tensor. */
template <typename T, class P>
__device__ __forceinline__ void prefetch_tile(const params &p, const place<P> &at, int t0)
{
    if (t0 < at.begin || at.channel0 >= p.s.channels)
        return;
    const void *const base[4] = {p.s.dt, p.s.u, p.s.dout, p.s.z};
    const int64_t stride[4] = {p.s.dt_row, p.s.u_row, p.s.dout_row, p.s.z_row};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (base[i] && at.lane < TILE)
            prefetch_l2(static_cast<const T *>(base[i]) +
                        (int64_t(at.batch) * p.s.length + t0 + at.lane) * stride[i] + at.channel0);
    const int64_t i = int64_t(at.channel0) * P::N + at.lane * 32;
    if (at.lane * 32 < P::CW * P::N && i < int64_t(p.s.channels) * P::N)
        prefetch_l2(checkpoint<P>(p, at, t0 / TILE) + i);
}

/* Backward: one chunk, tile by tile from its end. */
template <typename T, class P>
__global__ void __launch_bounds__(128, P::N == 16 && P::K == 2 ? 4 : 2) scan_backward(const params p)
{
    extern __shared__ __align__(16) unsigned char shared[];
    backward_block<P> &block = *reinterpret_cast<backward_block<P> *>(shared);
    const place<P> at(p, int(blockIdx.y));
    backward_tile<P> &tile = block.tiles[at.warp];
    const int channels = p.s.channels;
    const bool mine = at.staged() < channels;
    const float bias = mine ? load_or(p.s.dt_bias, at.staged(), 0.0f) : 0.0f;
    const float skip = mine ? load_or(p.s.D, at.staged(), 0.0f) : 0.0f;

    float A2[P::K][P::S], carry[P::K][P::S], dA[P::K][P::S] = {}, dD = 0.0f, dbias = 0.0f;
    load_A2<P>(A2, p, at);
    load_states<P>(carry, p.chunks > 1 ? chunk_table<P>(p, at) : sequence_table(p.s.dh_end, p, at.batch, P::N), at,
                   channels);

    for (int t0 = (at.end - 1) / TILE * TILE; t0 >= at.begin; t0 -= TILE) {
        T b_in[P::BC], c_in[P::BC];
        load_bc<T, P>(b_in, p.s.B, p.s.B_row, p, at, t0);
        load_bc<T, P>(c_in, p.s.C, p.s.C_row, p, at, t0);
        put_bc<T, P>(block.B, b_in);
        put_bc<T, P>(block.C, c_in);
        stage_backward<T, P>(tile, p, at, t0, bias);
        prefetch_tile<T, P>(p, at, t0 - TILE);
        __syncthreads(); /* B and C are staged; the last tile's dbc has been read */
#pragma unroll 1
        for (int first = TILE - SEGMENT; first >= 0; first -= SEGMENT) {
            recompute<P>(tile, block.B, A2, checkpoint<P>(p, at, t0 / TILE), at, channels, first);
#pragma unroll 1
            for (int t = first + SEGMENT - 1; t >= first; t--)
                step_back<P>(tile, t, carry, dA, A2, block.B, block.C, at);
        }
        const int again = forget(t0);
        backward_inputs<T, P> in;
        in.load(p, at, again, true);
        __syncthreads(); /* all dbc is there; nobody needs B and C any more */
        write_gradients<T, P>(tile, in, p, at, again, bias, skip, dD, dbias);
        write_partial_bc<P>(block, p, at, t0);
        __syncwarp(); /* the next tile overwrites this one */
    }

    if (p.s.dh0 && at.begin == 0)
        store_states<P>(p.s.dh0 + int64_t(at.batch) * channels * P::N, carry, at, channels);
    float *partial = p.partial_a + (int64_t(at.batch) * p.chunks + at.chunk) * channels * (P::N + 2);
    store_states<P>(partial, dA, at, channels);
    fold<1, P::CW, 32>(&dD, at.lane);
    fold<1, P::CW, 32>(&dbias, at.lane);
    if (at.row == 0 && mine) {
        partial[int64_t(channels) * P::N + at.staged()] = dD;
        partial[int64_t(channels) * (P::N + 1) + at.staged()] = dbias;
    }
}

/* dB and dC from the blocks' partial sums; one thread an element of (batch L, 2N). */
template <typename T> __global__ void __launch_bounds__(128) reduce_bc(const params p)
{
    const int N = p.s.d_state;
    const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x, total = int64_t(p.s.batch) * p.s.length * 2 * N;
    if (i >= total)
        return;
    float sum = 0.0f;
#pragma unroll 4
    for (int block = 0; block < p.blocks; block++)
        sum += p.partial_bc[block * total + i];
    const int64_t row = i / (2 * N);
    const int j = int(i % (2 * N));
    put(static_cast<T *>(j < N ? p.s.dB : p.s.dC) + row * N + j % N, sum);
}

/* dA, dD, ddt_bias from the chunks' partial sums. Block: 32 columns x 8 rows of chunks. */
__global__ void __launch_bounds__(256) reduce_a(const params p)
{
    __shared__ float sums[8][33];
    const int N = p.s.d_state, E = p.s.channels, width = E * (N + 2), rows = p.s.batch * p.chunks;
    const int column = int(threadIdx.x) % 32, row = int(threadIdx.x) / 32, i = int(blockIdx.x) * 32 + column;
    float sum = 0.0f;
    if (i < width) {
#pragma unroll 4
        for (int j = row; j < rows; j += 8)
            sum += p.partial_a[int64_t(j) * width + i];
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

/* ---- plan --------------------------------------------------------------------------------------------------- */

int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

int multiprocessors()
{
    int device = 0, count = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1)
        return 132;
    return count;
}

/* Channels a block walks at K channels a lane. */
int block_channels(int N, int K) { return WARPS * 32 / (N < 4 ? 1 : N / 4) * K; }

/* The K of the sizes that have only one. */
int fixed_channels_per_lane(int N) { return N <= 4 ? 1 : N == 8 ? 2 : 4; }

struct plan {
    int K, chunks, chunk_steps;
};

/* Chunks cost a second pass (a third of the backward's work, two thirds of the forward's), so first take smaller tiles,
 * more warps from the same channels, and split time where even those leave multiprocessors idle. A split backward takes
 * the big tiles again if they fill the machine, in four waves of the two blocks a multiprocessor that fit. */
plan plan_scan(const selective_scan_cuda &s, bool backward)
{
    const int64_t sms = multiprocessors();
    const bool choose = s.d_state == 16 && !s.channels_per_lane;
    const auto blocks = [&](int K) {
        return int64_t(s.batch) * ceil_div(s.channels, block_channels(s.d_state, K));
    };
    int K = s.d_state != 16 ? fixed_channels_per_lane(s.d_state) : s.channels_per_lane;
    if (choose) {
        const int smallest = backward ? 2 : 1;
        K = blocks(4) >= sms * (backward ? 4 : 3) ? 4 : blocks(2) >= sms * 2 ? 2 : smallest;
    }
    int64_t chunks = 1;
    if (2 * blocks(K) < sms * (backward ? 5 : 2)) {
        if (choose && blocks(4) * (s.length / MIN_CHUNK) >= 2 * sms)
            K = 4;
        chunks = backward ? sms * 8 / blocks(K) : sms * 4 / blocks(K);
    }
    int steps = s.chunk_steps;
    if (!steps)
        steps = ceil_div(s.length, chunks > 1 ? chunks : 1);
    if (!s.chunk_steps && steps < MIN_CHUNK)
        steps = MIN_CHUNK;
    steps = ceil_div(steps, TILE) * TILE;
    return {K, ceil_div(s.length, steps), steps};
}

int64_t states_floats(const selective_scan_cuda &s) { return int64_t(s.channels) * s.d_state; }

params make_params(const selective_scan_cuda &s, bool backward, size_t *bytes)
{
    const plan plan = plan_scan(s, backward);
    params p = {};
    p.s = s;
    p.chunks = plan.chunks, p.chunk_steps = plan.chunk_steps;
    p.tiles = ceil_div(s.length, TILE);
    p.blocks = ceil_div(s.channels, block_channels(s.d_state, plan.K));
    float *at = static_cast<float *>(s.workspace);
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
        float *here = at ? at + used : nullptr;
        used += (floats + 3) / 4 * 4; /* keep 16-byte alignment */
        return here;
    };
    if (p.chunks > 1) {
        p.carry = take(int64_t(s.batch) * p.chunks * states_floats(s));
        p.sums = take(int64_t(s.batch) * p.chunks * s.channels);
    }
    if (backward) {
        p.partial_bc = take(int64_t(p.blocks) * s.batch * s.length * 2 * s.d_state);
        p.partial_a = take(int64_t(s.batch) * p.chunks * s.channels * (s.d_state + 2));
    }
    *bytes = size_t(used) * sizeof(float);
    return p;
}

/* ---- launches ----------------------------------------------------------------------------------------------- */

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, void *stream,
                   Arguments... arguments)
{
    if (shared > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(shared));
        if (error != cudaSuccess)
            return error;
    }
    void *values[] = {static_cast<void *>(&arguments)...};
    return cudaLaunchKernel(reinterpret_cast<const void *>(kernel), grid, dim3(unsigned(threads)), values, shared,
                            static_cast<cudaStream_t>(stream));
}

dim3 grid_of(const params &p, int chunks) { return dim3(unsigned(p.blocks), unsigned(chunks), unsigned(p.s.batch)); }

cudaError_t launch_chunks(const params &p, const float *first, int reverse, void *stream)
{
    const dim3 grid(unsigned(ceil_div(states_floats(p.s), 128)), 1, unsigned(p.s.batch));
    return launch(scan_chunks, grid, 128, 0, stream, p, first, reverse);
}

template <typename T, class P> cudaError_t forward(const params &p, void *stream)
{
    cudaError_t error = cudaSuccess;
    if (p.chunks > 1) {
        error = launch(scan_forward<T, P, true>, grid_of(p, p.chunks - 1), 128, 0, stream, p);
        if (error == cudaSuccess)
            error = launch_chunks(p, p.s.h0, 0, stream);
    }
    if (error == cudaSuccess)
        error = launch(scan_forward<T, P, false>, grid_of(p, p.chunks), 128, 0, stream, p);
    return error;
}

template <typename T, class P> cudaError_t backward(const params &p, void *stream)
{
    cudaError_t error = cudaSuccess;
    if (p.chunks > 1) {
        error = launch(scan_backward_map<T, P>, grid_of(p, p.chunks - 1), 128, 0, stream, p);
        if (error == cudaSuccess)
            error = launch_chunks(p, p.s.dh_end, 1, stream);
    }
    if (error == cudaSuccess)
        error = launch(scan_backward<T, P>, grid_of(p, p.chunks), 128, sizeof(backward_block<P>), stream, p);
    if (error == cudaSuccess) {
        const int64_t elements = int64_t(p.s.batch) * p.s.length * 2 * p.s.d_state;
        error = launch(reduce_bc<T>, dim3(unsigned(ceil_div(elements, 128))), 128, 0, stream, p);
    }
    if (error == cudaSuccess) {
        const int64_t width = int64_t(p.s.channels) * (p.s.d_state + 2);
        error = launch(reduce_a, dim3(unsigned(ceil_div(width, 32))), 256, 0, stream, p);
    }
    return error;
}

template <typename T> cudaError_t forward_of(const params &p, int K, void *stream)
{
    switch (p.s.d_state) {
    case 1: return forward<T, shape<1, 1>>(p, stream);
    case 2: return forward<T, shape<2, 1>>(p, stream);
    case 4: return forward<T, shape<4, 1>>(p, stream);
    case 8: return forward<T, shape<8, 2>>(p, stream);
    case 32: return forward<T, shape<32, 4>>(p, stream);
    case 64: return forward<T, shape<64, 4>>(p, stream);
    default: break;
    }
    return K == 4 ? forward<T, shape<16, 4>>(p, stream)
         : K == 2 ? forward<T, shape<16, 2>>(p, stream)
                  : forward<T, shape<16, 1>>(p, stream);
}

template <typename T> cudaError_t backward_of(const params &p, int K, void *stream)
{
    switch (p.s.d_state) {
    case 1: return backward<T, shape<1, 1>>(p, stream);
    case 2: return backward<T, shape<2, 1>>(p, stream);
    case 4: return backward<T, shape<4, 1>>(p, stream);
    case 8: return backward<T, shape<8, 2>>(p, stream);
    case 32: return backward<T, shape<32, 4>>(p, stream);
    case 64: return backward<T, shape<64, 4>>(p, stream);
    default: break;
    }
    return K == 4 ? backward<T, shape<16, 4>>(p, stream) : backward<T, shape<16, 2>>(p, stream);
}

bool sizes_valid(const selective_scan_cuda &s, bool backward)
{
    const int N = s.d_state, K = s.channels_per_lane;
    return s.batch >= 1 && s.batch <= 65535 && s.length >= 1 && s.channels >= 1 && s.chunk_steps >= 0 && N >= 1 &&
           N <= 64 && (N & (N - 1)) == 0 && (K == 0 || (K == 1 && !backward) || K == 2 || K == 4) &&
           plan_scan(s, backward).chunks <= 65535;
}

} /* namespace */

/* ---- entry points ------------------------------------------------------------------------------------------- */

size_t selective_scan_cuda_workspace_bytes(const struct selective_scan_cuda *scan, int backward)
{
    size_t bytes = 0;
    if (sizes_valid(*scan, backward != 0))
        make_params(*scan, backward != 0, &bytes);
    return bytes;
}

size_t selective_scan_cuda_states_bytes(const struct selective_scan_cuda *scan)
{
    return size_t(scan->batch) * size_t(ceil_div(scan->length, TILE)) * size_t(states_floats(*scan)) * sizeof(float);
}

int selective_scan_cuda_forward(const struct selective_scan_cuda *scan, void *stream)
{
    size_t bytes;
    if (!sizes_valid(*scan, false))
        return -1;
    const params p = make_params(*scan, false, &bytes);
    const int K = plan_scan(*scan, false).K;
    return scan->bf16 ? forward_of<__nv_bfloat16>(p, K, stream) : forward_of<float>(p, K, stream);
}

int selective_scan_cuda_backward(const struct selective_scan_cuda *scan, void *stream)
{
    size_t bytes;
    if (!sizes_valid(*scan, true) || !scan->states)
        return -1;
    const params p = make_params(*scan, true, &bytes);
    const int K = plan_scan(*scan, true).K;
    return scan->bf16 ? backward_of<__nv_bfloat16>(p, K, stream) : backward_of<float>(p, K, stream);
}

const char *selective_scan_cuda_error(int result)
{
    return result == -1 ? "sizes this scan does not take" : cudaGetErrorString(cudaError_t(result));
}
