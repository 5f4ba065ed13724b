/* SPDX-License-Identifier: MIT */

/* The layers of layers.h that work on rows of activations (norm, conv), and the care of samples and states. Twins:
 * kernels/scalar.c's rms_norm and conv1d; model/state.c's layout. All are bound by the bytes they move. */

#include "kernels/cuda/layers.h"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/rows.cuh"

namespace
{

constexpr int THREADS = 256;
constexpr int RUN = 8; /* rows of a sequence that a thread of conv does */

/* ---- norm --------------------------------------------------------------------------------------------------- */

struct normalisation {
    const float *weight, *x;
    int64_t x_row;
    float *y;
    int64_t y_row;
    int rows, width;
    bool aligned; /* rows of x, y and the weights can be read in fours */
};

__device__ __forceinline__ float4 four(const float *p, int i, int width, bool aligned)
{
    if (aligned)
        return *reinterpret_cast<const float4 *>(p + i);
    return make_float4(p[i], i + 1 < width ? p[i + 1] : 0.0f, i + 2 < width ? p[i + 2] : 0.0f,
                       i + 3 < width ? p[i + 3] : 0.0f);
}

__device__ __forceinline__ void put_four(float *p, int i, int width, bool aligned, float4 v)
{
    if (aligned) {
        *reinterpret_cast<float4 *>(p + i) = v;
        return;
    }
    const float values[] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int c = 0; c < 4; c++)
        if (i + c < width)
            p[i + c] = values[c];
}

/* A warp a row, in math.cuh's order. */
__global__ void __launch_bounds__(THREADS) norm(const __grid_constant__ normalisation n)
{
    const int lane = int(threadIdx.x) % rows::WARP, row = int(blockIdx.x) * (THREADS / rows::WARP) + int(threadIdx.x) / rows::WARP;
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (row >= n.rows)
        return;
    const float *x = n.x + row * n.x_row;
    float squares = 0.0f;
    for (int i = 4 * lane; i < n.width; i += 4 * rows::WARP) {
        const float4 v = four(x, i, n.width, n.aligned);
        squares = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, squares))));
    }
    const float scale = math::row_scale(squares, n.width);
    for (int i = 4 * lane; i < n.width; i += 4 * rows::WARP) {
        const float4 v = four(x, i, n.width, n.aligned), w = four(n.weight, i, n.width, n.aligned);
        put_four(n.y + row * n.y_row, i, n.width, n.aligned,
                 make_float4(math::normed(v.x, scale, w.x), math::normed(v.y, scale, w.y),
                             math::normed(v.z, scale, w.z), math::normed(v.w, scale, w.w)));
    }
}

/* ---- conv --------------------------------------------------------------------------------------------------- */

struct convolution {
    rows_cuda rows;
    struct conv_cuda conv;
    const float *x;
    int64_t x_row;
    float *y;
    int64_t y_row;
    int run; /* rows of a thread: RUN in a sequence, 1 in a step */
};

/* One channel's inputs up to one row. */
template <typename T> struct column {
    const float *x;
    const int64_t x_row;
    const rows::ring<T> ring;
    const int channel;

    __device__ __forceinline__ column(const convolution &c, int row, int channel_)
        : x(c.x + row * c.x_row + channel_), x_row(c.x_row),
          ring(c.rows, row, c.conv.state_at, c.conv.taps - 1, c.conv.width), channel(channel_)
    {
    }
    __device__ __forceinline__ float ago(int k) const
    {
        return k <= ring.above ? x[-k * x_row] : rows::to_float(ring.past(k)[channel]);
    }
    /* A step's input, over the oldest, which has been read by then. */
    __device__ __forceinline__ void keep(const convolution &c, float value) const
    {
        if (ring.length && !c.rows.sequence)
            rows::put(ring.past(0) + channel, value);
    }
};

__device__ __forceinline__ void store(const convolution &c, int row, int channel, float sum)
{
    c.y[row * c.y_row + channel] = c.conv.silu ? math::silu(sum) : sum;
}

/* Up to RUN rows of one channel from `first` on, K taps: all the inputs are asked for before any is used. */
template <typename T, int K, int RUN>
__device__ __forceinline__ void convolve(const convolution &c, int channel, int first, int end)
{
    const float bias = c.conv.bias ? __ldg(&c.conv.bias[channel]) : 0.0f;
    const column<T> start(c, first, channel);
    float weight[K], x[K - 1 + RUN];
#pragma unroll
    for (int k = 0; k < K; k++)
        weight[k] = __ldg(&c.conv.weight[k * c.conv.width + channel]);
#pragma unroll
    for (int i = 0; i < K - 1; i++)
        x[i] = start.ago(K - 1 - i);
#pragma unroll
    for (int i = 0; i < RUN; i++)
        x[K - 1 + i] = first + i < end ? start.x[i * c.x_row] : 0.0f;
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        float sum = bias;
#pragma unroll
        for (int k = 0; k < K; k++)
            sum = fmaf(weight[k], x[i + k], sum);
        if (first + i < end)
            store(c, first + i, channel, sum);
    }
    start.keep(c, x[K - 1]);
}

/* The same for any number of taps. */
template <typename T> __device__ void convolve_any(const convolution &c, int channel, int first, int end)
{
    const int taps = c.conv.taps;
    for (int row = first; row < end; row++) {
        const column<T> inputs(c, row, channel);
        float sum = c.conv.bias ? c.conv.bias[channel] : 0.0f;
        for (int k = 0; k < taps; k++)
            sum = fmaf(c.conv.weight[k * c.conv.width + channel], inputs.ago(taps - 1 - k), sum);
        store(c, row, channel, sum);
        inputs.keep(c, *inputs.x);
    }
}

template <typename T> __global__ void __launch_bounds__(THREADS) conv(const __grid_constant__ convolution c)
{
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    const int first = int(i / c.conv.width) * c.run, channel = int(i % c.conv.width);
    const int end = min(first + c.run, c.rows.rows);
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (first >= end)
        return;
    if (c.conv.taps == 4 && c.rows.sequence)
        convolve<T, 4, RUN>(c, channel, first, end);
    else if (c.conv.taps == 4)
        convolve<T, 4, 1>(c, channel, first, end);
    else
        convolve_any<T>(c, channel, first, end);
}

/* One thread an element of the last rows. */
template <typename T>
__global__ void __launch_bounds__(THREADS) remember(const rows_cuda r, rows::memory m, const float *x, int64_t x_row)
{
    const int i = int(blockIdx.x) * THREADS + int(threadIdx.x), back = i / m.width, channel = i - back * m.width;
    ptx::wait_for_kernels();
    if (back >= min(m.length, r.rows))
        return;
    const int row = r.rows - 1 - back;
    const float value = x[row * x_row + channel];
    const rows::ring<T> ring(r, row, m.state_at, m.length, m.width);
    rows::put(ring.past(0) + channel, m.clean ? rows::finite_or_zero(value) : value);
}

/* ---- samples ------------------------------------------------------------------------------------------------ */

__global__ void __launch_bounds__(THREADS) clean(float *x, size_t n)
{
    const size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x;
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (i < n)
        x[i] = rows::finite_or_zero(x[i]);
}

/* A warp a row; in a sequence the first moves the phase on. */
__global__ void __launch_bounds__(THREADS)
    finish(const rows_cuda r, const float *x, int width, const struct finish_cuda f)
{
    const int lane = int(threadIdx.x) % rows::WARP, row = int(blockIdx.x) * (THREADS / rows::WARP) + int(threadIdx.x) / rows::WARP;
    ptx::wait_for_kernels();
    if (row >= r.rows)
        return;
    bool bad = false;
    for (int i = lane; i < width; i += rows::WARP)
        bad |= !rows::finite(x[int64_t(row) * width + i]);
    bad = __any_sync(0xffffffffu, bad);
    if (lane)
        return;
    f.blown[row] = bad;
    if (!r.sequence || row == 0) {
        unsigned *phase = r.phase + rows::slot_of(r, row);
        *phase = unsigned((uint64_t(*phase) + unsigned(r.sequence ? r.rows : 1)) % f.period);
    }
}

/* ---- states ------------------------------------------------------------------------------------------------- */

/* h (E, N) and the slot's (N, E). */
template <typename T, bool BACK>
__global__ void __launch_bounds__(THREADS) turn(const rows_cuda r, size_t state_at, int N, int E, float *h)
{
    const int i = int(blockIdx.x) * THREADS + int(threadIdx.x);
    ptx::wait_for_kernels();
    if (i >= N * E)
        return;
    T *const state = rows::state_of<T>(r, r.slots[0], state_at) + i % N * E + i / N;
    if (BACK)
        rows::put(state, h[i]);
    else
        h[i] = rows::to_float(*state);
}

constexpr int PARTS = 64;

struct parts {
    struct state_part_cuda part[PARTS];
};

/* Where element i of a part is on the device, and where in the portable state. */
template <typename T>
__device__ __forceinline__ T *element(const rows_cuda &r, const struct state_part_cuda &part, int slot, unsigned phase,
                                      int64_t i)
{
    const unsigned row = unsigned(i / part.width), column = unsigned(i % part.width);
    const unsigned index = (phase % unsigned(part.length) + row) % unsigned(part.length);
    return rows::state_of<T>(r, slot, part.at) + size_t(index) * size_t(part.width) + column;
}

/* Block (x, y, z): some elements of part y, of slots[z] or the one slot. */
__global__ void __launch_bounds__(THREADS)
    get(const rows_cuda r, const __grid_constant__ parts p, int slot, const int32_t *slots, size_t floats,
        float *portable)
{
    const struct state_part_cuda &part = p.part[blockIdx.y];
    ptx::wait_for_kernels();
    slot = slots ? slots[blockIdx.z] : slot;
    portable += blockIdx.z * floats;
    const unsigned phase = r.phase[slot];
    const int64_t count = int64_t(part.length) * part.width;
    for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < count; i += int64_t(gridDim.x) * THREADS)
        portable[part.portable + size_t(i)] = part.bf16
                                                  ? rows::to_float(*element<__nv_bfloat16>(r, part, slot, phase, i))
                                                  : *element<float>(r, part, slot, phase, i);
}

__global__ void __launch_bounds__(THREADS)
    put(const rows_cuda r, const __grid_constant__ parts p, int slot, const float *portable)
{
    const struct state_part_cuda &part = p.part[blockIdx.y];
    ptx::wait_for_kernels();
    const int64_t count = int64_t(part.length) * part.width;
    for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < count; i += int64_t(gridDim.x) * THREADS) {
        const float value = portable ? portable[part.portable + size_t(i)] : 0.0f;
        if (part.bf16)
            rows::put(element<__nv_bfloat16>(r, part, slot, 0, i), value);
        else
            rows::put(element<float>(r, part, slot, 0, i), value);
    }
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        r.phase[slot] = 0;
}

/* ---- launches ----------------------------------------------------------------------------------------------- */

/* Calls launch(parts, their number, offset) for every PARTS of them. */
template <typename Launch> int in_batches(const struct state_part_cuda *all, int n, Launch launch)
{
    int error = 0;
    for (int done = 0; done < n && !error; done += PARTS) {
        parts p = {};
        const int count = n - done < PARTS ? n - done : PARTS;
        for (int i = 0; i < count; i++)
            p.part[i] = all[done + i];
        error = launch(p, count);
    }
    return error;
}

dim3 grid_of(int n)
{
    return dim3(16, unsigned(n));
}

template <bool BACK>
int launch_turn(const rows_cuda &r, size_t state_at, int bf16, int N, int E, float *h, void *stream)
{
    const size_t blocks = rows::ceil_div(size_t(N) * size_t(E), THREADS);
    return bf16 ? rows::launch(turn<__nv_bfloat16, BACK>, blocks, THREADS, 0, stream, r, state_at, N, E, h)
                : rows::launch(turn<float, BACK>, blocks, THREADS, 0, stream, r, state_at, N, E, h);
}

} /* namespace */

int rows::remember(const rows_cuda &r, const memory &m, const float *x, int64_t x_row, void *stream)
{
    if (!r.sequence || m.length == 0)
        return 0;
    const size_t blocks = ceil_div(size_t(m.length) * size_t(m.width), THREADS);
    return m.bf16 ? launch(::remember<__nv_bfloat16>, blocks, THREADS, 0, stream, r, m, x, x_row)
                  : launch(::remember<float>, blocks, THREADS, 0, stream, r, m, x, x_row);
}

int norm_cuda(const float *weight, const float *x, int64_t x_row, float *y, int64_t y_row, int rows, int width,
              void *stream)
{
    if (rows < 0 || width < 1)
        return -1;
    const bool aligned = width % 4 == 0 && x_row % 4 == 0 && y_row % 4 == 0;
    const normalisation n = {weight, x, x_row, y, y_row, rows, width, aligned};
    return rows ? rows::launch(norm, rows::ceil_div(size_t(rows), THREADS / rows::WARP), THREADS, 0, stream, n) : 0;
}

int conv_cuda(const struct rows_cuda *r, const struct conv_cuda *c, const float *x, int64_t x_row, float *y,
              int64_t y_row, void *stream)
{
    if (r->rows < 0 || c->width < 1 || c->taps < 1 || c->taps > 64)
        return -1;
    if (r->rows == 0)
        return 0;
    const convolution all = {*r, *c, x, x_row, y, y_row, r->sequence ? RUN : 1};
    const size_t threads = rows::ceil_div(size_t(r->rows), size_t(all.run)) * size_t(c->width);
    const size_t blocks = rows::ceil_div(threads, THREADS);
    const int error = c->state_bf16 ? rows::launch(conv<__nv_bfloat16>, blocks, THREADS, 0, stream, all)
                                    : rows::launch(conv<float>, blocks, THREADS, 0, stream, all);
    const rows::memory m = {c->state_at, c->taps - 1, c->width, c->state_bf16 != 0, false};
    return error ? error : rows::remember(*r, m, x, x_row, stream);
}

int clean_cuda(float *x, size_t n, void *stream)
{
    return n ? rows::launch(clean, rows::ceil_div(n, THREADS), THREADS, 0, stream, x, n) : 0;
}

int finish_cuda(const struct rows_cuda *r, const float *x, int width, const struct finish_cuda *f, void *stream)
{
    if (r->rows < 0 || width < 1 || f->period < 1)
        return -1;
    const size_t blocks = rows::ceil_div(size_t(r->rows), THREADS / rows::WARP);
    return r->rows ? rows::launch(finish, blocks, THREADS, 0, stream, *r, x, width, *f) : 0;
}

int state_cuda_to_scan(const struct rows_cuda *rows, size_t state_at, int bf16, int N, int E, float *h, void *stream)
{
    return launch_turn<false>(*rows, state_at, bf16, N, E, h, stream);
}

int state_cuda_from_scan(const struct rows_cuda *rows, size_t state_at, int bf16, int N, int E, const float *h,
                         void *stream)
{
    return launch_turn<true>(*rows, state_at, bf16, N, E, const_cast<float *>(h), stream);
}

int state_cuda_get(const struct rows_cuda *rows, const struct state_part_cuda *all, int n, int slot, float *portable,
                   void *stream)
{
    return in_batches(all, n, [&](const parts &p, int count) {
        return rows::launch(get, grid_of(count), THREADS, 0, stream, *rows, p, slot, static_cast<const int32_t *>(nullptr),
                            size_t(0), portable);
    });
}

int state_cuda_get_all(const struct rows_cuda *rows, const struct state_part_cuda *all, int n, const int32_t *slots,
                       int count, size_t floats, float *portable, void *stream)
{
    return in_batches(all, n, [&](const parts &p, int in_all) {
        const dim3 grid(4, unsigned(in_all), unsigned(count));
        return rows::launch(get, grid, THREADS, 0, stream, *rows, p, 0, slots, floats, portable);
    });
}

int state_cuda_put(const struct rows_cuda *rows, const struct state_part_cuda *all, int n, int slot,
                   const float *portable, void *stream)
{
    return in_batches(all, n, [&](const parts &p, int count) {
        return rows::launch(put, grid_of(count), THREADS, 0, stream, *rows, p, slot, portable);
    });
}
