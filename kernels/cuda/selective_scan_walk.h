/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_WALK_H
#define KERNELS_CUDA_SELECTIVE_SCAN_WALK_H

/* What the scan's forward and backward share: who does what, staging, and the functions of one number. */

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/selective_scan.h"

namespace scan
{

using rows::put;
using rows::to_float;

constexpr int TILE = 16; /* steps staged at once, and between two checkpoints */
constexpr int QUADS = TILE / 4;
constexpr int WARPS = 4;  /* a block */
constexpr int GROUPS = 8; /* of four lanes in a warp */
constexpr unsigned ALL = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

__device__ const float one_and_only = 1.0f;

/* What every kernel gets. */
struct params {
    selective_scan_cuda s;
    int chunks, chunk_steps; /* chunk_steps is a multiple of TILE */
    int tiles;               /* checkpoints a sequence */
    int vector_bc;           /* four neighbours of B and C can be read at once */
    float *maps, *sums;      /* (batch, chunks, E, N) and (batch, chunks, E) */
    float *partial_bc; /* (channel groups, batch, L, 2N), N padded: dB and dC, each summed over one block's channels */
    float *partial_a;  /* (batch chunks, a_row): E (N + 2) of dA, then dD, then ddt_bias, of one chunk */
    int a_row;         /* floats between two of them, a multiple of 4 */
    int groups;
    int u_step, dt_step, z_step, B_step, C_step, out_step, dout_step, du_step, ddt_step,
        dz_step;      /* bytes between rows */
    int elapsed_mask; /* 0 where all steps take the same time */
};

/* Of so many places in shared memory, through which warps feed others, the one whose turn it is, and its barriers'
 * parity. */
template <int PLACES> struct turn {
    int place = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void next()
    {
        place++;
        if (place == PLACES)
            place = 0, parity ^= 1;
    }
};

/* log1p(e), 0 <= e <= 1, to 3e-7 of itself. */
__device__ __forceinline__ float log1p_of(float e)
{
    float series = fmaf(e, -0.00853919052f, 0.0440895706f);
    series = fmaf(series, e, -0.107681625f);
    series = fmaf(series, e, 0.177452356f);
    series = fmaf(series, e, -0.244954601f);
    series = fmaf(series, e, 0.332754791f);
    series = fmaf(series, e, -0.499974042f);
    return e * fmaf(series, e, 0.999999821f);
}

/* softplus(x) from x log2 e: max(x, 0) + log1p(e), e = exp(-|x|). log1p(e) / e by a polynomial, 3e-7 at most, which
 * keeps the relative error where softplus is small. */
__device__ __forceinline__ float softplus(float x2)
{
    const float e = ptx::exp2(-fabsf(x2));
    return fmaf(fmaxf(x2, 0.0f), LN2, log1p_of(e));
}

/* The same and its slope, the sigmoid. */
__device__ __forceinline__ float softplus(float x2, float *slope)
{
    const float e = ptx::exp2(-fabsf(x2));
    *slope = (x2 >= 0.0f ? 1.0f : e) * ptx::reciprocal(1.0f + e);
    return fmaf(fmaxf(x2, 0.0f), LN2, log1p_of(e));
}

__device__ __forceinline__ float sigmoid(float x)
{
    return ptx::reciprocal(1.0f + ptx::exp2(-LOG2E * x));
}
__device__ __forceinline__ float silu(float x)
{
    return x * sigmoid(x);
}

/* 2^x - 1, |x| < 2^-6, to 1e-7 of itself. */
__device__ __forceinline__ float exp2_minus_1(float x)
{
    return x * fmaf(x, fmaf(x, LN2 * LN2 * LN2 / 6.0f, LN2 * LN2 / 2.0f), LN2);
}

/* 2^power h + in. A factor close to one is off by a part of 2^-24 that is much the same at each step, and thousands of
 * steps of it would show: there the change of h is added. */
__device__ __forceinline__ float decay_exactly(float power, float h, float in)
{
    const float near_one = h + fmaf(exp2_minus_1(power), h, in), any = fmaf(ptx::exp2(power), h, in);
    return fabsf(power) < 0x1p-6f ? near_one : any;
}

/* Sum P values over the P lanes of a channel; lane `part` gets the sum of that index. Parts 0 and 1 are APART in the
 * warp, parts 0 and 2 FAR. */
template <int P, int APART, int FAR = 2 * APART> __device__ __forceinline__ float fold(const float (&v)[P], int part)
{
    static_assert(P == 2 || P == 4, "lanes a channel");
    const bool odd = (part & 1) != 0;
    if constexpr (P == 2) {
        return (odd ? v[1] : v[0]) + __shfl_xor_sync(ALL, odd ? v[0] : v[1], APART);
    } else {
        const bool high = (part & 2) != 0;
        const float even_sum = (high ? v[2] : v[0]) + __shfl_xor_sync(ALL, high ? v[0] : v[2], FAR);
        const float odd_sum = (high ? v[3] : v[1]) + __shfl_xor_sync(ALL, high ? v[1] : v[3], FAR);
        return (odd ? odd_sum : even_sum) + __shfl_xor_sync(ALL, odd ? even_sum : odd_sum, APART);
    }
}

/* Sum over the four lanes of a channel; each gets it. */
template <int APART> __device__ __forceinline__ float sum4(float v)
{
    v += __shfl_xor_sync(ALL, v, APART);
    return v + __shfl_xor_sync(ALL, v, 2 * APART);
}

/* n floats as vectors; p aligned to min(n, 4) floats. */
template <int n> __device__ __forceinline__ void load(float *v, const float *p)
{
    if constexpr (n >= 4) {
#pragma unroll
        for (int i = 0; i < n; i += 4) {
            const float4 x = *reinterpret_cast<const float4 *>(p + i);
            v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
        }
    } else if constexpr (n == 2) {
        const float2 x = *reinterpret_cast<const float2 *>(p);
        v[0] = x.x, v[1] = x.y;
    } else {
        v[0] = *p;
    }
}

template <int n> __device__ __forceinline__ void store(float *p, const float *v)
{
    if constexpr (n >= 4) {
#pragma unroll
        for (int i = 0; i < n; i += 4)
            *reinterpret_cast<float4 *>(p + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    } else if constexpr (n == 2) {
        *reinterpret_cast<float2 *>(p) = make_float2(v[0], v[1]);
    } else {
        *p = v[0];
    }
}

/* One channel's column of a (batch, L, E) tensor. 32 bits for the step and for the bytes between steps: an address is
 * one multiplication then. */
template <typename T> struct column {
    const unsigned char *base;

    __device__ __forceinline__ column(const void *tensor, int64_t row, int channel, const params &p, int batch)
        : base(ptx::opaque(static_cast<const unsigned char *>(tensor) +
                           (int64_t(batch) * p.s.length * row + channel) * int(sizeof(T))))
    {
    }
    /* ALONE: by one instruction; else the compiler may find it from another, or carry the step as 64 bits through a
     * loop and take four. */
    template <bool ALONE = false> __device__ __forceinline__ const T *at(int t, int step) const
    {
        const unsigned char *x;
        if constexpr (ALONE)
            x = ptx::offset(base, t, step);
        else
            x = base + int64_t(t) * step;
        return ptx::in_global(reinterpret_cast<const T *>(x));
    }
};

/* How a channel's lanes stand in their warp. APART: as many apart as the warp has groups. BRAIDED: parts 0 and 1 side
 * by side, then those of the next groups, in the other half of the warp parts 2 and 3. A float4 read from shared memory
 * takes two cycles where lanes l and l ^ 1, or l and l ^ 2, read the same, else four: so those do that are read by
 * part, and those read by channel. PAIRED: so too, and a lane's two channels are neighbours. */
enum class lanes { APART, BRAIDED, PAIRED };

/* Lanes of parts 0 and 2 where they are braided. */
constexpr int BRAIDED_FAR = 16;

/* Where a lane stands: part 0..P-1 of K channels. */
template <int K, int P = 4> struct place {
    static constexpr int GROUPS = 32 / P;
    int warp, group, part, batch, chunk, first; /* first: the lane's first channel */
    int between;                                /* from one of its channels to the next */

    __device__ __forceinline__ place(int chunks, lanes order, int warps = WARPS)
    {
        const int lane = int(threadIdx.x) % 32;
        warp = int(threadIdx.x) / 32;
        group = order == lanes::APART ? lane % GROUPS : lane / 2 % GROUPS;
        part = order == lanes::APART ? lane / GROUPS : lane % 2 + lane / (2 * GROUPS) * 2;
        chunk = int(blockIdx.x) % chunks, batch = int(blockIdx.y);
        between = order == lanes::PAIRED ? 1 : GROUPS;
        first = (int(blockIdx.x) / chunks * warps + warp) * GROUPS * K + group * (order == lanes::PAIRED ? K : 1);
    }
    __device__ __forceinline__ bool has(const params &p, int k) const
    {
        return first + between * k < p.s.channels;
    }
    /* Among the channels of a block. */
    __device__ __forceinline__ int column(int k) const
    {
        return (warp * K + k) * GROUPS + group;
    }
    /* Past E the last channel is walked again, and not written. */
    __device__ __forceinline__ int channel(const params &p, int k) const
    {
        return min(first + between * k, p.s.channels - 1);
    }
};

/* The lane's states in an (E, width) table; width N (padded) or d_state. */
template <int N, int K, int P>
__device__ __forceinline__ void load_states(float (&v)[K][N / P], const float *table, const params &p,
                                            const place<K, P> &at, int width)
{
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int n = at.part * (N / P);
        const float *from = table + int64_t(at.channel(p, k)) * width + n;
        if (table && width == N)
            load<N / P>(v[k], from);
        else
#pragma unroll
            for (int s = 0; s < N / P; s++)
                v[k][s] = table && n + s < width ? from[s] : 0.0f;
    }
}

template <int N, int K, int P>
__device__ __forceinline__ void store_states(float *table, const float (&v)[K][N / P], const params &p,
                                             const place<K, P> &at, int width)
{
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int n = at.part * (N / P);
        float *to = table + int64_t(at.first + at.between * k) * width + n;
        if (!at.has(p, k))
            continue;
        if (width == N)
            store<N / P>(to, v[k]);
        else
#pragma unroll
            for (int s = 0; s < N / P; s++)
                if (n + s < width)
                    to[s] = v[k][s];
    }
}

template <int N, int K, int P>
__device__ __forceinline__ void store_states(float *table, const float (&v)[K][N / P], const params &p,
                                             const place<K, P> &at)
{
    store_states<N, K, P>(table, v, p, at, p.s.d_state);
}

template <int N> __device__ __forceinline__ float *chunk_map(const params &p, int batch, int chunk)
{
    return p.maps + (int64_t(batch) * p.chunks + chunk) * p.s.channels * N;
}

__device__ __forceinline__ float *chunk_sum(const params &p, int batch, int chunk, int channel)
{
    return p.sums + (int64_t(batch) * p.chunks + chunk) * p.s.channels + channel;
}

/* The states before step t0, a multiple of TILE. */
template <int K, int P> __device__ __forceinline__ float *checkpoint(const params &p, const place<K, P> &at, int t0)
{
    return p.s.states + (int64_t(at.batch) * p.tiles + t0 / TILE) * p.s.channels * p.s.d_state;
}

/* Four neighbours of a row of B or C. */
template <typename T> struct quad;
template <> struct quad<float> {
    float4 v;
    __device__ __forceinline__ void load(const float *p)
    {
        v = *reinterpret_cast<const float4 *>(p);
    }
    __device__ __forceinline__ void set(float a, float b, float c, float d)
    {
        v = make_float4(a, b, c, d);
    }
    __device__ __forceinline__ float4 floats() const
    {
        return v;
    }
};
template <> struct quad<__nv_bfloat16> {
    uint2 v;
    __device__ __forceinline__ void load(const __nv_bfloat16 *p)
    {
        v = *reinterpret_cast<const uint2 *>(p);
    }
    __device__ __forceinline__ void set(float a, float b, float c, float d)
    {
        v.x = (__float_as_uint(a) >> 16) | (__float_as_uint(b) & 0xffff0000u);
        v.y = (__float_as_uint(c) >> 16) | (__float_as_uint(d) & 0xffff0000u);
    }
    __device__ __forceinline__ float4 floats() const
    {
        return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                           __uint_as_float(v.y & 0xffff0000u));
    }
};

/* A thread's share of a tile of B, and with C of C, between global and shared memory; THREADS of them take all of it:
 * STEPS rows of N states from state `from` on (only_c: of C in place of B). Shared memory has HALVES tiles of B, then
 * as many of C. */
template <typename T, int N, bool WITH_C, int THREADS, int HALVES, int STEPS = TILE> struct staged_bc {
    static constexpr int QUADS_A_ROW = N / 4 * (WITH_C ? 2 : 1), ITEMS = STEPS * QUADS_A_ROW;
    static constexpr int EACH = (ITEMS + THREADS - 1) / THREADS, ROWS = THREADS / QUADS_A_ROW;
    static constexpr int RUN = N / 4 < 8 ? 8 : N / 4; /* threads that put side by side: no two into one bank */
    static_assert(THREADS % QUADS_A_ROW == 0, "a thread stays in its column");
    const unsigned char *base;
    int step, n, row, to;
    quad<T> v[EACH];

    __device__ __forceinline__ staged_bc(const params &p, int batch, int from = 0, bool only_c = false)
    {
        const int thread = int(threadIdx.x) % THREADS, run = thread / RUN;
        const bool of_c = only_c || (WITH_C && run % 2 != 0);
        n = from + thread % (N / 4) * 4;
        row = (WITH_C ? run / 2 : run) * (RUN / (N / 4)) + thread % RUN / (N / 4);
        step = ptx::opaque(of_c ? p.C_step : p.B_step);
        base = ptx::opaque(static_cast<const unsigned char *>(of_c ? p.s.C : p.s.B) +
                           int64_t(batch) * p.s.length * step + n * int(sizeof(T)));
        to = (of_c && !only_c ? HALVES * STEPS * (N / 4) : 0) + row * (N / 4) + (n - from) / 4;
    }
    __device__ __forceinline__ bool holds(int i) const
    {
        return ITEMS % THREADS == 0 || row + i * ROWS < STEPS;
    }
    __device__ __forceinline__ void load(const params &p, int t0, int end)
    {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (!holds(i))
                break;
            const T *x =
                ptx::in_global(reinterpret_cast<const T *>(base + int64_t(min(t0 + row + i * ROWS, end - 1)) * step));
            if (p.vector_bc) {
                v[i].load(x);
            } else {
                const int left = p.s.d_state - n;
                v[i].set(left > 0 ? to_float(x[0]) : 0.0f, left > 1 ? to_float(x[1]) : 0.0f,
                         left > 2 ? to_float(x[2]) : 0.0f, left > 3 ? to_float(x[3]) : 0.0f);
            }
        }
    }
    /* What load() will read, on its way into L2. */
    __device__ __forceinline__ void prefetch(int t0, int last) const
    {
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (holds(i))
                ptx::prefetch(base + int64_t(min(t0 + row + i * ROWS, last)) * step);
    }
    __device__ __forceinline__ void put(float4 *bc, int half) const
    {
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (holds(i))
                bc[half * (STEPS * N / 4) + to + i * ROWS * (N / 4)] = v[i].floats();
    }
};

} /* namespace scan */

#endif
