/* SPDX-License-Identifier: MIT */

/* The layers of layers.h whose channels know nothing of each other and remember for ever: a thread walks one channel of one
 * stream through all of its rows. Twins: model/layer_pool.c, model/layer_s4d.c. */

#include "kernels/cuda/layers.h"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/rows.cuh"

namespace
{

constexpr int THREADS = 128;

/* What thread i of a call has: in a step one row, in a sequence all of them. */
struct walk {
    int first, count, channel;

    __device__ __forceinline__ walk(const rows_cuda &r, int64_t i, int width)
        : first(int(i / width)), count(r.sequence ? r.rows : 1), channel(int(i % width))
    {
    }
    __device__ __forceinline__ bool none(const rows_cuda &r) const
    {
        return first >= (r.sequence ? 1 : r.rows);
    }
};

int64_t walks(const rows_cuda &r, int width)
{
    return r.rows ? int64_t(r.sequence ? 1 : r.rows) * width : 0;
}

/* ---- pool --------------------------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(THREADS)
    pool(const rows_cuda r, const struct pool_cuda p, const float *elapsed, const float *x, float *y)
{
    const walk w(r, int64_t(blockIdx.x) * THREADS + threadIdx.x, p.width);
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (w.none(r))
        return;
    float *state = rows::state_of<float>(r, rows::slot_of(r, w.first), p.state_at) + w.channel;
    float mean = state[0], total = p.ema ? 0.0f : state[p.width];
    for (int t = w.first; t < w.first + w.count; t++) {
        float weight;
        if (p.ema) {
            weight = -expm1f(__fdiv_rn(-elapsed[t], p.hops));
        } else {
            total = fminf(__fadd_rn(total, elapsed[t]), p.hops);
            weight = fminf(__fdiv_rn(elapsed[t], total), 1.0f);
        }
        const int64_t at = int64_t(t) * p.width + w.channel;
        mean = fmaf(weight, __fadd_rn(x[at], -mean), mean);
        y[at] = mean;
    }
    state[0] = mean;
    if (!p.ema)
        state[p.width] = total;
}

/* ---- diagonal ----------------------------------------------------------------------------------------------- */

/* A channel's states in the slot or, for a sequence, in shared memory. */
struct states {
    float *re, *im;
    int stride;
};

/* A-bar - 1 and B-bar of a pair over a step of `elapsed`: model/layer_s4d.c's formulas. */
__device__ void discretise(const struct diagonal_cuda &d, double elapsed, int at, int channel, float2 *a, float2 *b)
{
    const int plane = d.pairs * d.width;
    const double re = double(d.A[at]), im = double(d.A[plane + at]), dt = elapsed * double(d.dt[channel]);
    const double x = dt * re, y = dt * im;
    if (d.bilinear) {
        const double down = (1 - x / 2) * (1 - x / 2) + y * y / 4, b_re = dt * (1 - x / 2) / down, b_im = dt * y / 2 / down;
        *a = make_float2(float(b_re * re - b_im * im), float(b_re * im + b_im * re));
        *b = make_float2(float(b_re), float(b_im));
        return;
    }
    const double half = sin(y / 2), size = re * re + im * im;
    const double a_re = expm1(x) * cos(y) - 2 * half * half, a_im = exp(x) * sin(y);
    *a = make_float2(float(a_re), float(a_im));
    *b = make_float2(float((a_re * re + a_im * im) / size), float((a_im * re - a_re * im) / size));
}

/* One step of one channel; gives Re<c, h> + D u. h moves by its change, as math.cuh says of mamba's. */
__device__ __forceinline__ float advance(const struct diagonal_cuda &d, float elapsed, float u, int channel, const states &s)
{
    const int plane = d.pairs * d.width;
    float y = __fmul_rn(d.skip[channel], u);
    for (int n = 0; n < d.pairs; n++) {
        const int at = n * d.width + channel;
        float2 a, b;
        if (elapsed == 1.0f) {
            a = make_float2(d.a[at], d.a[plane + at]);
            b = make_float2(d.b[at], d.b[plane + at]);
        } else {
            discretise(d, double(elapsed), at, channel, &a, &b);
        }
        const float re = s.re[n * s.stride], im = s.im[n * s.stride];
        const float next_re = __fadd_rn(re, fmaf(-a.y, im, fmaf(a.x, re, __fmul_rn(b.x, u))));
        const float next_im = __fadd_rn(im, fmaf(a.y, re, fmaf(a.x, im, __fmul_rn(b.y, u))));
        s.re[n * s.stride] = next_re;
        s.im[n * s.stride] = next_im;
        y = fmaf(-d.c[plane + at], next_im, fmaf(d.c[at], next_re, y));
    }
    return y;
}

__device__ __forceinline__ float finished(const struct diagonal_cuda &d, float y)
{
    switch (d.activation) {
    case DIAGONAL_SILU: return math::silu(y);
    case DIAGONAL_GELU: return math::gelu(y);
    default: return y;
    }
}

__global__ void __launch_bounds__(THREADS) diagonal_step(const rows_cuda r, const __grid_constant__ struct diagonal_cuda d,
                                                        const float *elapsed, const float *x, const float *residual, float *y)
{
    const walk w(r, int64_t(blockIdx.x) * THREADS + threadIdx.x, d.width);
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (w.none(r))
        return;
    float *h = rows::state_of<float>(r, rows::slot_of(r, w.first), d.state_at) + w.channel;
    const int64_t at = int64_t(w.first) * d.width + w.channel;
    const float value = finished(d, advance(d, elapsed[w.first], x[at], w.channel, {h, h + d.pairs * d.width, d.width}));
    y[at] = residual ? __fadd_rn(residual[at], value) : value;
}

/* A warp has 32 channels; their states wait in shared memory, a column each. */
__global__ void __launch_bounds__(rows::WARP)
    diagonal_sequence(const rows_cuda r, const __grid_constant__ struct diagonal_cuda d, const float *elapsed, const float *x,
                      const float *residual, float *y)
{
    extern __shared__ __align__(16) float shared[];
    const int lane = int(threadIdx.x), channel = int(blockIdx.x) * rows::WARP + lane;
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (channel >= d.width)
        return;
    float *h = rows::state_of<float>(r, rows::slot_of(r, 0), d.state_at) + channel;
    const states s = {shared + lane, shared + d.pairs * rows::WARP + lane, rows::WARP};
    for (int n = 0; n < 2 * d.pairs; n++)
        s.re[n * s.stride] = h[n * d.width];
    for (int t = 0; t < r.rows; t++) {
        const int64_t at = int64_t(t) * d.width + channel;
        const float value = finished(d, advance(d, elapsed[t], x[at], channel, s));
        y[at] = residual ? __fadd_rn(residual[at], value) : value;
    }
    for (int n = 0; n < 2 * d.pairs; n++)
        h[n * d.width] = s.re[n * s.stride];
}

} /* namespace */

int pool_cuda(const struct rows_cuda *r, const struct pool_cuda *p, const float *elapsed, const float *x, float *y,
              void *stream)
{
    if (r->rows < 0 || p->width < 1)
        return -1;
    const size_t blocks = rows::ceil_div(size_t(walks(*r, p->width)), THREADS);
    return blocks ? rows::launch(pool, blocks, THREADS, 0, stream, *r, *p, elapsed, x, y) : 0;
}

int diagonal_cuda(const struct rows_cuda *r, const struct diagonal_cuda *d, const float *elapsed, const float *x,
                  const float *residual, float *y, void *stream)
{
    if (r->rows < 0 || d->width < 1 || d->pairs < 1 || d->pairs > DIAGONAL_CUDA_PAIRS_MAX)
        return -1;
    if (r->sequence && r->rows) {
        const size_t shared = 2 * size_t(d->pairs) * rows::WARP * sizeof(float);
        return rows::launch(diagonal_sequence, rows::ceil_div(size_t(d->width), rows::WARP), rows::WARP, shared, stream, *r,
                            *d, elapsed, x, residual, y);
    }
    const size_t blocks = rows::ceil_div(size_t(walks(*r, d->width)), THREADS);
    return blocks ? rows::launch(diagonal_step, blocks, THREADS, 0, stream, *r, *d, elapsed, x, residual, y) : 0;
}
