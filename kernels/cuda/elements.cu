/* SPDX-License-Identifier: MIT */

/* The layers of layers.h that look at a value or a row alone. Twins: model/layer_{sigmoid,softmax,scale,embedding,s4d}.c. */

#include "kernels/cuda/layers.h"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/rows.cuh"

namespace
{

constexpr int THREADS = 256;

/* y[i] = f(i) for n values, a thread each. */
template <typename F> __global__ void __launch_bounds__(THREADS) each(float *y, size_t n, const __grid_constant__ F f)
{
    const size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x;
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (i < n)
        y[i] = f(i);
}

template <typename F> int for_each(float *y, size_t n, F f, void *stream)
{
    return n ? rows::launch(each<F>, rows::ceil_div(n, THREADS), THREADS, 0, stream, y, n, f) : 0;
}

struct squashed {
    const float *x;

    __device__ __forceinline__ float operator()(size_t i) const
    {
        return math::sigmoid(x[i]);
    }
};

struct scaled {
    const float *mean, *factor, *x;
    unsigned width;

    __device__ __forceinline__ float operator()(size_t i) const
    {
        const unsigned column = unsigned(i % width);
        return __fmul_rn(__fadd_rn(x[i], -mean[column]), factor[column]);
    }
};

struct embedded {
    const float *weight, *x;
    float vocabulary;
    unsigned width;

    __device__ __forceinline__ float operator()(size_t i) const
    {
        const float token = x[i / width];
        const size_t row = token >= 0.0f && token < vocabulary ? size_t(token) : 0;
        return weight[row * width + i % width];
    }
};

struct gated_halves {
    const float *halves, *residual;
    unsigned width;

    __device__ __forceinline__ float operator()(size_t i) const
    {
        const float *row = halves + i / width * 2 * width + i % width;
        const float gate = math::sigmoid(row[width]);
        return residual ? fmaf(row[0], gate, residual[i]) : __fmul_rn(row[0], gate);
    }
};

/* A warp a row: the largest, which goes out so that nothing overflows, then the sum. */
__global__ void __launch_bounds__(THREADS) softmax(const float *x, float *y, int rows_, int width)
{
    const int lane = int(threadIdx.x) % rows::WARP, row = int(blockIdx.x) * (THREADS / rows::WARP) + int(threadIdx.x) / rows::WARP;
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (row >= rows_)
        return;
    x += int64_t(row) * width;
    y += int64_t(row) * width;
    float most = -INFINITY, sum = 0.0f;
    for (int i = lane; i < width; i += rows::WARP)
        most = fmaxf(most, x[i]);
#pragma unroll
    for (int distance = rows::WARP / 2; distance > 0; distance /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, distance));
    for (int i = lane; i < width; i += rows::WARP)
        sum = __fadd_rn(sum, expf(__fadd_rn(x[i], -most)));
    sum = math::warp_sum(sum);
    for (int i = lane; i < width; i += rows::WARP)
        y[i] = __fdiv_rn(expf(__fadd_rn(x[i], -most)), sum);
}

} /* namespace */

int sigmoid_cuda(const float *x, float *y, int rows, int width, void *stream)
{
    if (rows < 0 || width < 1)
        return -1;
    return for_each(y, size_t(rows) * size_t(width), squashed{x}, stream);
}

int scale_cuda(const float *mean, const float *factor, const float *x, float *y, int rows, int width, void *stream)
{
    if (rows < 0 || width < 1)
        return -1;
    return for_each(y, size_t(rows) * size_t(width), scaled{mean, factor, x, unsigned(width)}, stream);
}

int embedding_cuda(const float *weight, int vocabulary, const float *x, float *y, int rows, int width, void *stream)
{
    if (rows < 0 || width < 1 || vocabulary < 1)
        return -1;
    return for_each(y, size_t(rows) * size_t(width), embedded{weight, x, float(vocabulary), unsigned(width)}, stream);
}

int glu_cuda(const float *halves, const float *residual, float *y, int rows, int width, void *stream)
{
    if (rows < 0 || width < 1)
        return -1;
    return for_each(y, size_t(rows) * size_t(width), gated_halves{halves, residual, unsigned(width)}, stream);
}

int softmax_cuda(const float *x, float *y, int rows, int width, void *stream)
{
    if (rows < 0 || width < 1)
        return -1;
    const size_t blocks = rows::ceil_div(size_t(rows), THREADS / rows::WARP);
    return rows ? rows::launch(softmax, blocks, THREADS, 0, stream, x, y, rows, width) : 0;
}
