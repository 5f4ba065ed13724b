/* SPDX-License-Identifier: MIT */
#include "model/cuda/move.h"

namespace
{

constexpr int WARPS = 4;

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
    return is_odd(x) ? 0.0f : x;
}

__device__ __forceinline__ float4 sound_of(float4 x)
{
    return {sound_of(x.x), sound_of(x.y), sound_of(x.z), sound_of(x.w)};
}

__global__ void in(const char *records, int rows, int inputs, size_t record_bytes, int32_t *slots, float *elapsed,
                   float *x)
{
    const int row = int(blockIdx.x) * WARPS + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    if (row >= rows) {
        return;
    }
    const move_record *record = reinterpret_cast<const move_record *>(records + size_t(row) * record_bytes);
    for (int i = lane; i < inputs; i += 32) {
        x[size_t(row) * size_t(inputs) + size_t(i)] = sound_of(record->samples[i]);
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

/* Small blocks: one of mamba_stack.h's waits for a multiprocessor until those that are there end. */
constexpr int BESIDE_THREADS = 64, BESIDE_BLOCKS = 16; /* on a multiprocessor, by registers */

/* Each thread has 128 bytes on their way: 128 KB in all, what the bus takes in 2 us. */
constexpr int OUT_BLOCKS = 16;

__global__ void __launch_bounds__(BESIDE_THREADS, BESIDE_BLOCKS) out(const float *from, float *to, size_t n)
{
    const size_t step = size_t(OUT_BLOCKS) * BESIDE_THREADS, first = size_t(blockIdx.x) * BESIDE_THREADS + threadIdx.x;
#pragma unroll 8
    for (size_t i = first; i < n / 4; i += step) {
        reinterpret_cast<float4 *>(to)[i] = reinterpret_cast<const float4 *>(from)[i];
    }
    if (first < n % 4) {
        to[n / 4 * 4 + first] = from[n / 4 * 4 + first];
    }
    __threadfence_system();
}

/* Rows that a warp moves at once: the bus answers after a microsecond or two, and at 50 GB/s some 100 KB must be on their
 * way for that. 128 blocks' warps have 2 KB each on theirs: 512 KB, but their tables before, and that halves it. 64 blocks take a
 * step of 20,000 streams .13 ms longer, 16 .5. */
constexpr int ABREAST = 4, ROW_WARPS = BESIDE_THREADS / 32, ROW_BLOCKS = 128, PIECES = 4;

/* A warp's next rows: lane i < n holds the i-th. */
struct rows_ahead {
    move_row mine;
    int first, n;
};

__device__ __forceinline__ rows_ahead look_ahead(const move_row *table, int first, int rows)
{
    const int lane = int(threadIdx.x) % 32;
    rows_ahead ahead = {{}, first, min(ABREAST, rows - first)};
    if (lane < ahead.n) {
        ahead.mine = table[first + lane];
    }
    return ahead;
}

template <class T> __device__ __forceinline__ T *of_row(T *mine, int i)
{
    return reinterpret_cast<T *>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(mine), i));
}

/* These rows, width T a row, each lane PIECES of them before it waits for one. */
template <class T> __device__ __forceinline__ void fetch_rows(const rows_ahead &ahead, int width, float *x)
{
    const int lane = int(threadIdx.x) % 32, all = ahead.n * width;
    T *to = reinterpret_cast<T *>(x) + size_t(ahead.first) * size_t(width);
    for (int first = 0; first < all; first += 32 * PIECES) {
        T values[PIECES];
#pragma unroll
        for (int k = 0; k < PIECES; k++) {
            const int at = first + 32 * k + lane, row = min(at / width, ahead.n - 1);
            const T *from = reinterpret_cast<const T *>(of_row(ahead.mine.in, row));
            if (at < all) {
                values[k] = from[at - row * width];
            }
        }
#pragma unroll
        for (int k = 0; k < PIECES; k++) {
            const int at = first + 32 * k + lane;
            if (at < all) {
                to[at] = sound_of(values[k]);
            }
        }
    }
}

/* Gives whether this lane saw NaN or inf. */
template <class T> __device__ __forceinline__ bool deliver_rows(const rows_ahead &ahead, int width, const float *x)
{
    const int lane = int(threadIdx.x) % 32, all = ahead.n * width;
    const T *from = reinterpret_cast<const T *>(x) + size_t(ahead.first) * size_t(width);
    bool odd = false;
    for (int first = 0; first < all; first += 32) {
        const int at = first + lane, row = min(at / width, ahead.n - 1);
        T *to = reinterpret_cast<T *>(of_row(ahead.mine.out, row));
        if (at < all) {
            const T value = from[at];
            to[at - row * width] = value;
            odd = odd || is_odd(value);
        }
    }
    return odd;
}

/* Do all of these rows take 16 bytes at a time? */
__device__ __forceinline__ bool are_wide(const rows_ahead &ahead, const void *mine, int width)
{
    const bool own = int(threadIdx.x) % 32 >= ahead.n || reinterpret_cast<size_t>(mine) % 16 == 0;
    return __all_sync(~0u, own) && width % 4 == 0;
}

__global__ void __launch_bounds__(BESIDE_THREADS, BESIDE_BLOCKS)
    fetch(const move_row *table, int rows, int inputs, int32_t *slots, float *elapsed, float *x)
{
    const int warp = int(blockIdx.x) * ROW_WARPS + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    for (int first = warp * ABREAST; first < rows; first += int(gridDim.x) * ROW_WARPS * ABREAST) {
        const rows_ahead ahead = look_ahead(table, first, rows);
        if (are_wide(ahead, ahead.mine.in, inputs)) {
            fetch_rows<float4>(ahead, inputs / 4, x);
        } else {
            fetch_rows<float>(ahead, inputs, x);
        }
        if (lane < ahead.n) {
            slots[first + lane] = ahead.mine.slot;
            elapsed[first + lane] = ahead.mine.elapsed;
        }
    }
    __threadfence();
}

__global__ void __launch_bounds__(BESIDE_THREADS, BESIDE_BLOCKS)
    deliver(const move_row *table, int rows, int outputs, const float *from, volatile uint32_t *odd)
{
    const int warp = int(blockIdx.x) * ROW_WARPS + int(threadIdx.x) / 32;
    bool any = false;
    for (int first = warp * ABREAST; first < rows; first += int(gridDim.x) * ROW_WARPS * ABREAST) {
        const rows_ahead ahead = look_ahead(table, first, rows);
        any |= are_wide(ahead, ahead.mine.out, outputs) ? deliver_rows<float4>(ahead, outputs / 4, from)
                                                        : deliver_rows<float>(ahead, outputs, from);
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
