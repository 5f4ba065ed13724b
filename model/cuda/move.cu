/* SPDX-License-Identifier: MIT */
#include "model/cuda/move.h"

namespace
{

constexpr int WARPS = 4;

__global__ void in(const char *records, int rows, int inputs, size_t record_bytes, int32_t *slots, float *elapsed,
                   float *x)
{
    const int row = int(blockIdx.x) * WARPS + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    if (row >= rows) {
        return;
    }
    const move_record *record = reinterpret_cast<const move_record *>(records + size_t(row) * record_bytes);
    for (int i = lane; i < inputs; i += 32) {
        const float sample = record->samples[i];
        x[size_t(row) * size_t(inputs) + size_t(i)] = isfinite(sample) ? sample : 0.0f;
    }
    if (lane == 0) {
        slots[row] = record->slot;
        elapsed[row] = record->elapsed;
    }
    __threadfence(); /* kernels may start when this one ends and read slots before its end is told to them */
}

__global__ void done(uint32_t *count, volatile uint32_t *host)
{
    const uint32_t next = *count + 1;
    *count = next;
    __threadfence_system();
    *host = next;
}

/* What runs beside a block of mamba_stack.h. That leaves 1024 registers in each of a multiprocessor's four files, and a warp's are
 * all in one: so one warp of 32 registers a thread in each. What takes more waits until the stack ends, or, if it was there before,
 * keeps it from the multiprocessor. */
constexpr int BESIDE_THREADS = 128, BESIDE_BLOCKS = 16; /* a multiprocessor, by registers: 32 */

/* Each thread has 64 bytes on their way: 128 KB in all, what the bus takes in 2 us. */
constexpr int OUT_BLOCKS = 16;

__global__ void __launch_bounds__(BESIDE_THREADS, BESIDE_BLOCKS) out(const float *from, float *to, size_t n)
{
    const size_t step = size_t(OUT_BLOCKS) * BESIDE_THREADS, first = size_t(blockIdx.x) * BESIDE_THREADS + threadIdx.x;
#pragma unroll 4
    for (size_t i = first; i < n / 4; i += step) {
        reinterpret_cast<float4 *>(to)[i] = reinterpret_cast<const float4 *>(from)[i];
    }
    if (first < n % 4) {
        to[n / 4 * 4 + first] = from[n / 4 * 4 + first];
    }
    __threadfence_system();
}

/* Rows that a warp moves at once: the bus answers after a microsecond or two, and at 50 GB/s some 100 KB must be on their
 * way for that. 128 blocks' warps have 1 KB each on theirs: 512 KB, but their tables before, and that halves it. */
constexpr int ABREAST = 4, ROW_WARPS = BESIDE_THREADS / 32, ROW_BLOCKS = 128, PIECES = 2;

/* Where a lane is in a warp's rows, width values each, lane i < n of which holds where the i-th begins: from its first value on
 * 32 at a time. Registers are few, and a division takes many. */
struct walk {
    int row, column;

    __device__ __forceinline__ explicit walk(int width) : row(0), column(int(threadIdx.x) % 32)
    {
        pass_ends(width);
    }

    __device__ __forceinline__ void pass_ends(int width)
    {
        while (column >= width) {
            row++, column -= width;
        }
    }

    /* All lanes ask. */
    template <class T> __device__ __forceinline__ T *next(T *mine, int width)
    {
        T *begin = reinterpret_cast<T *>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(mine), row)); /* row: modulo 32 */
        T *place = begin + column;
        column += 32;
        pass_ends(width);
        return place;
    }
};

__device__ __forceinline__ bool is_odd(float x)
{
    return !isfinite(x);
}

__device__ __forceinline__ bool is_odd(float4 x)
{
    return is_odd(x.x) || is_odd(x.y) || is_odd(x.z) || is_odd(x.w);
}

__device__ __forceinline__ float sound_of(float x)
{
    return isfinite(x) ? x : 0.0f;
}

__device__ __forceinline__ float4 sound_of(float4 x)
{
    return {sound_of(x.x), sound_of(x.y), sound_of(x.z), sound_of(x.w)};
}

/* n rows, each lane PIECES of their values before it waits for one. */
template <class T> __device__ __forceinline__ void fetch_rows(const T *mine, int width, int n, T *to)
{
    const int lane = int(threadIdx.x) % 32, all = n * width;
    walk over(width);
#pragma unroll 1
    for (int first = lane; first < all + lane; first += 32 * PIECES) {
        T values[PIECES];
#pragma unroll
        for (int k = 0; k < PIECES; k++) {
            const T *from = over.next(mine, width);
            if (first + 32 * k < all) {
                values[k] = *from;
            }
        }
#pragma unroll
        for (int k = 0; k < PIECES; k++) {
            if (first + 32 * k < all) {
                to[first + 32 * k] = sound_of(values[k]);
            }
        }
    }
}

/* Gives whether this lane saw NaN or inf. */
template <class T> __device__ __forceinline__ bool deliver_rows(T *mine, int width, int n, const T *from)
{
    const int lane = int(threadIdx.x) % 32, all = n * width;
    bool odd = false;
    walk over(width);
#pragma unroll 1
    for (int at = lane; at < all + lane; at += 32) {
        T *to = over.next(mine, width);
        if (at < all) {
            const T value = from[at];
            *to = value;
            odd = odd || is_odd(value);
        }
    }
    return odd;
}

/* Do all of a warp's rows take 16 bytes at a time? */
__device__ __forceinline__ bool are_wide(const void *mine, int width)
{
    return __all_sync(~0u, reinterpret_cast<size_t>(mine) % 16 == 0) && width % 4 == 0;
}

__global__ void __launch_bounds__(BESIDE_THREADS, BESIDE_BLOCKS)
    fetch(const move_row *table, int rows, int inputs, int32_t *slots, float *elapsed, float *x)
{
    const int warp = int(blockIdx.x) * ROW_WARPS + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
#pragma unroll 1
    for (int first = warp * ABREAST; first < rows; first += int(gridDim.x) * ROW_WARPS * ABREAST) {
        const int n = min(ABREAST, rows - first);
        const float *mine = nullptr;
        if (lane < n) {
            const move_row row = table[first + lane];
            mine = row.in;
            slots[first + lane] = row.slot;
            elapsed[first + lane] = row.elapsed;
        }
        float *to = x + size_t(first) * size_t(inputs);
        if (are_wide(mine, inputs)) {
            fetch_rows(reinterpret_cast<const float4 *>(mine), inputs / 4, n, reinterpret_cast<float4 *>(to));
        } else {
            fetch_rows(mine, inputs, n, to);
        }
    }
    __threadfence();
}

__global__ void __launch_bounds__(BESIDE_THREADS, BESIDE_BLOCKS)
    deliver(const move_row *table, int rows, int outputs, const float *x, volatile uint32_t *odd)
{
    const int warp = int(blockIdx.x) * ROW_WARPS + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    bool any = false;
#pragma unroll 1
    for (int first = warp * ABREAST; first < rows; first += int(gridDim.x) * ROW_WARPS * ABREAST) {
        const int n = min(ABREAST, rows - first);
        float *mine = lane < n ? table[first + lane].out : nullptr;
        const float *from = x + size_t(first) * size_t(outputs);
        any |= are_wide(mine, outputs)
                   ? deliver_rows(reinterpret_cast<float4 *>(mine), outputs / 4, n, reinterpret_cast<const float4 *>(from))
                   : deliver_rows(mine, outputs, n, from);
    }
    if (any) {
        *odd = 1;
    }
    __threadfence_system();
}

unsigned row_blocks(int rows)
{
    const int blocks = (rows + ROW_WARPS * ABREAST - 1) / (ROW_WARPS * ABREAST);
    return unsigned(blocks < ROW_BLOCKS ? blocks : ROW_BLOCKS);
}

} /* namespace */

cudaError_t move_fetch(const struct move_row *table, int rows, int inputs, int32_t *slots, float *elapsed, float *x,
                       cudaStream_t stream)
{
    fetch<<<row_blocks(rows), BESIDE_THREADS, 0, stream>>>(table, rows, inputs, slots, elapsed, x);
    return cudaGetLastError();
}

cudaError_t move_deliver(const struct move_row *table, int rows, int outputs, const float *from, uint32_t *odd,
                         cudaStream_t stream)
{
    deliver<<<row_blocks(rows), BESIDE_THREADS, 0, stream>>>(table, rows, outputs, from, odd);
    return cudaGetLastError();
}

cudaError_t move_out(const float *from, float *to, size_t n, cudaStream_t stream)
{
    out<<<OUT_BLOCKS, BESIDE_THREADS, 0, stream>>>(from, to, n);
    return cudaGetLastError();
}

cudaError_t move_in(const void *records, int rows, int inputs, int32_t *slots, float *elapsed, float *x,
                    cudaStream_t stream)
{
    const unsigned blocks = unsigned((rows + WARPS - 1) / WARPS);
    in<<<blocks, WARPS * 32, 0, stream>>>(static_cast<const char *>(records), rows, inputs, move_record_bytes(inputs), slots,
                                          elapsed, x);
    return cudaGetLastError();
}

cudaError_t move_done(uint32_t *count, volatile uint32_t *host, cudaStream_t stream)
{
    done<<<1, 1, 0, stream>>>(count, host);
    return cudaGetLastError();
}
