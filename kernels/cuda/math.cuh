/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_MATH_CUH
#define KERNELS_CUDA_MATH_CUH

/* The arithmetic of the streaming step on the GPU, and the one place that defines it. Every kernel that advances a
 * stream calls these functions in the orders given here, so that a stream's result is the same bits whichever kernel,
 * batch size and tile computed it. Roundings are spelled out (fmaf, __fmul_rn, __fadd_rn): the compiler may not
 * contract them differently from one kernel to the next.
 *
 * Products. y = W x runs on the tensor cores as mma.m16n8k16, bf16 in and fp32 out: 16 outputs by 8 rows by 16 inputs.
 *   1. An fp32 value is a sum of bf16 pieces, each the rounded rest of those before it (`split`). The precision P is
 *      how many are used: 1 bf16, 2 tf32's accuracy and better, 3 fp32's. int8 weights are one exact piece.
 *   2. The sum over the inputs runs in blocks of 32. A block's sum starts from zero and takes the products of pieces
 *      i of the weights and j of the activations with i + j < P: those with the largest i + j, the smallest products,
 *      first; among them i ascending; of each the block's lower 16 inputs, then its upper 16 (`block_sum`). Inputs past
 *      the end are zeros.
 *      wgmma gives the same bits as mma.sync one after the other (ptx::mma_rows): measured on an H200, 0 of 2.9 million sums
 *      differ, of 2, 6 and 12 products a block, wide, cancelling and tiny values too.
 *   3. total = ((block 0 + block 1) + block 2) + ..., in fp32.
 *   4. y = fmaf(total, scale, bias); scale is 1 for fp32 weights, bias 0 where there is none. A residual is added then.
 * With P = 1 what passes between the products is bf16 too: in_proj's x and z are rounded to bf16 as they come out.
 *
 * A row's RMSNorm (`row_scale`): y_i = (x_i * scale) * weight_i, scale = 1 / sqrt(sum / width + 1e-5). Lane l of a warp
 * sums the squares of i = 128 j + 4 l + c by fmaf, j then c = 0..3 ascending; then lanes add across by butterfly, lane
 * distances 16, 8, 4, 2, 1.
 *
 * A step of one channel:
 *   u     = silu(bias + sum_k weight[k] x[t - K + 1 + k])    fmaf from the bias, oldest first
 *   delta = elapsed * softplus(dt), dt = dt_proj with its bias in step 4 above
 *   h_n   = h_n + fmaf(expm1(delta A_n), h_n, input gain * B_n)
 *   y     = fmaf(D, u, sum_n C_n h_n) * silu(z)              fmaf from zero, n ascending
 * h moves by its change because exp(delta A) near 1 rounds: over the 1 / (delta |A|) steps a slow state remembers, that
 * would add up. With P = 1 and Euler's rule it may, to far less than bf16 loses anyway: h_n = fmaf(2^(delta A_n log2 e), h_n,
 * delta u B_n), 5 instructions instead of 18. States kept as bf16 are rounded when stored; y takes them before that. */

#include <cuda_bf16.h>
#include <stdint.h>

#include "kernels/cuda/ptx.cuh"

namespace math {

/* ---- pieces and products ------------------------------------------------------------------------------------ */

/* Two neighbouring values as the tensor cores take them: the first in the low half. */
__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    const uint32_t l = __bfloat16_as_ushort(__float2bfloat16(low)), h = __bfloat16_as_ushort(__float2bfloat16(high));
    return h << 16 | l;
}

__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float round_bf16(float x) { return __bfloat162float(__float2bfloat16(x)); }

/* P pieces of two neighbouring values. The rests are exact. */
template <int P> __device__ __forceinline__ void split(uint32_t (&piece)[P], float x0, float x1)
{
#pragma unroll
    for (int p = 0; p < P; p++) {
        piece[p] = pack_bf16(x0, x1);
        x0 = __fsub_rn(x0, low_bf16(piece[p]));
        x1 = __fsub_rn(x1, high_bf16(piece[p]));
    }
}

/* A block's sum, from zero. PW pieces of weights, P of activations; [0] the lower 16 inputs, [1] the upper, which may be
 * left out (HALVES 1) where all are past the end: adding zeros changes nothing. Lane
 * 4 g + t has of a (16 outputs, 16 inputs) what linear.h says; of b the inputs 2t, 2t + 1 and 2t + 8, 2t + 9 of row g;
 * of c the outputs g and g + 8 of rows 2t and 2t + 1: c[0], c[1] and c[2], c[3]. */
template <int PW, int P, int HALVES = 2>
__device__ __forceinline__ void block_sum(float (&c)[4], const uint4 (&a)[PW][HALVES], const uint2 (&b)[P][HALVES])
{
    static_assert(PW == 1 || PW == P, "weights have one piece, or as many as the precision");
    c[0] = c[1] = c[2] = c[3] = 0.0f;
#pragma unroll
    for (int both = P - 1; both >= 0; both--)
#pragma unroll
        for (int i = 0; i <= both && i < PW; i++)
#pragma unroll
            for (int half = 0; half < HALVES; half++)
                ptx::mma(c, a[i][half], b[both - i][half]);
}

/* count values, stride floats apart, added in ascending order: step 3. */
template <int count> __device__ __forceinline__ float add_up(const float *v, int stride)
{
    float x[count];
#pragma unroll
    for (int i = 0; i < count; i++)
        x[i] = v[i * stride];
#pragma unroll
    for (int i = 1; i < count; i++)
        x[0] = __fadd_rn(x[0], x[i]);
    return x[0];
}

/* ---- functions, to 2e-7 or so ------------------------------------------------------------------------------- */

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

/* exp(x) to 2 ulp: the product x log2 e in two parts. */
__device__ __forceinline__ float exp(float x)
{
    x = fminf(x, 88.0f); /* where the second part would be inf times zero; silu needs no more */
    const float whole = __fmul_rn(x, LOG2E);
    const float rest = fmaf(x, 1.925963033500011e-8f, fmaf(x, LOG2E, -whole));
    const float y = ptx::exp2(whole);
    return x < -87.0f ? 0.0f : fmaf(__fmul_rn(y, LN2), rest, y);
}

/* exp(x) - 1 for x <= 0, relative: a series up to -1/2 (the terms left out are 1e-8), then the exponential, whose own
 * error is no longer magnified. Gives NaN for NaN. */
__device__ __forceinline__ float expm1_negative(float x)
{
    float series = fmaf(x, 1.0f / 40320.0f, 1.0f / 5040.0f);
    series = fmaf(x, series, 1.0f / 720.0f);
    series = fmaf(x, series, 1.0f / 120.0f);
    series = fmaf(x, series, 1.0f / 24.0f);
    series = fmaf(x, series, 1.0f / 6.0f);
    series = fmaf(x, series, 0.5f);
    series = fmaf(__fmul_rn(x, x), series, x);
    const float direct = __fadd_rn(ptx::exp2(__fmul_rn(x, LOG2E)), -1.0f);
    return x < -0.5f ? direct : series;
}

/* x sigmoid(x) */
__device__ __forceinline__ float silu(float x)
{
    return __fdividef(x, __fadd_rn(1.0f, exp(-x)));
}

/* By CUDA's own expf and erff, which a NaN survives. */
__device__ __forceinline__ float sigmoid(float x)
{
    return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-x)));
}
__device__ __forceinline__ float gelu(float x)
{
    return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, erff(__fmul_rn(x, 0.70710678f))));
}

/* log(1 + exp(x)) = max(x, 0) + log1p(e), e = exp(-|x|); log1p(e) = 2 atanh(s), s = e / (2 + e) <= 1/3: seven terms
 * leave 1e-8. Above 20 this is x itself. */
__device__ __forceinline__ float softplus(float x)
{
    const float e = exp(-fabsf(x));
    const float s = __fdividef(e, __fadd_rn(2.0f, e)), s2 = __fmul_rn(s, s);
    float series = fmaf(s2, 2.0f / 13.0f, 2.0f / 11.0f);
    series = fmaf(s2, series, 2.0f / 9.0f);
    series = fmaf(s2, series, 2.0f / 7.0f);
    series = fmaf(s2, series, 2.0f / 5.0f);
    series = fmaf(s2, series, 2.0f / 3.0f);
    series = fmaf(s2, series, 2.0f);
    return fmaf(s, series, x <= 0.0f ? 0.0f : x); /* NaN stays: fmaxf would lose it */
}

/* ---- RMSNorm ------------------------------------------------------------------------------------------------ */

/* Sum over a warp, the same in every lane. */
__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        x = __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

/* The scale of a row from its squares' sum, and from a lane's share of it (order: top of the file). */
__device__ __forceinline__ float scale_of(float sum, int width)
{
    return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, float(width)), 1e-5f)));
}

__device__ __forceinline__ float row_scale(float squares, int width)
{
    return scale_of(warp_sum(squares), width);
}

__device__ __forceinline__ float normed(float x, float scale, float weight)
{
    return __fmul_rn(__fmul_rn(x, scale), weight);
}

/* ---- one channel's step ------------------------------------------------------------------------------------- */

/* elapsed * softplus(dt) */
__device__ __forceinline__ float time_step(float dt, float elapsed)
{
    return __fmul_rn(elapsed, softplus(dt));
}

/* What multiplies B_n: delta u by Euler's rule, (exp(delta A) - 1) / A u by a zero-order hold. */
template <bool ZOH> __device__ __forceinline__ float input(float change, float A, float delta, float u)
{
    if constexpr (ZOH)
        return __fmul_rn(A != 0.0f ? __fdividef(change, A) : delta, u);
    return __fmul_rn(delta, u);
}

/* What next_state() takes of A: a power of two's where the step is one. */
template <int P> __device__ __forceinline__ float rate(float A, bool zoh)
{
    return P == 1 && !zoh ? __fmul_rn(A, LOG2E) : A;
}

/* One state over the step: gives h after it. */
template <int P, bool ZOH>
__device__ __forceinline__ float next_state(float h, float rate, float delta, float u, float B)
{
    if constexpr (P == 1 && !ZOH)
        return fmaf(ptx::exp2(__fmul_rn(delta, rate)), h, __fmul_rn(__fmul_rn(delta, u), B));
    const float change = expm1_negative(__fmul_rn(delta, rate));
    return __fadd_rn(h, fmaf(change, h, __fmul_rn(input<ZOH>(change, rate, delta, u), B)));
}

/* The output from sum = <C, h>, then the skip and the gate. */
__device__ __forceinline__ float gated(float sum, float D, float u, float z)
{
    return __fmul_rn(fmaf(D, u, sum), silu(z));
}

} /* namespace math */

#endif
