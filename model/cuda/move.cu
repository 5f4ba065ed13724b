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

constexpr int OUT_BLOCKS = 8, OUT_THREADS = 256;

__global__ void __launch_bounds__(OUT_THREADS) out(const float *from, float *to, size_t n)
{
    const size_t step = size_t(OUT_BLOCKS) * OUT_THREADS, first = size_t(blockIdx.x) * OUT_THREADS + threadIdx.x;
#pragma unroll 4
    for (size_t i = first; i < n / 4; i += step) {
        reinterpret_cast<float4 *>(to)[i] = reinterpret_cast<const float4 *>(from)[i];
    }
    if (first < n % 4) {
        to[n / 4 * 4 + first] = from[n / 4 * 4 + first];
    }
    __threadfence_system();
}

} /* namespace */

cudaError_t move_out(const float *from, float *to, size_t n, cudaStream_t stream)
{
    out<<<OUT_BLOCKS, OUT_THREADS, 0, stream>>>(from, to, n);
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
