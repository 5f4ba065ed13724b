/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

/* What the kernels of layers.h share: where a row's past stands, and how a kernel is launched. */

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/layers.h"
#include "kernels/cuda/ptx.cuh"

namespace rows
{

/* ---- launches ----------------------------------------------------------------------------------------------- */

/* Every kernel is launched as a programmatic dependent: it begins with ptx::wait_for_kernels(), before which nothing in
 * memory may be touched, and lets the next one start only after that, so that whoever runs early knows that all but his
 * direct predecessor is over. One that writes phases doesn't at all: mamba_step.h reads them early. */
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, void *stream, Arguments... arguments)
{
    if (shared > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
        if (error != cudaSuccess)
            return error;
    }
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &early;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

inline int multiprocessors()
{
    int device = 0, count = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1)
        return 132;
    return count;
}

constexpr int WARP = 32;

constexpr size_t ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* ---- states ------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ float to_float(float x)
{
    return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ void put(float *p, float x)
{
    *p = x;
}
__device__ __forceinline__ void put(__nv_bfloat16 *p, float x)
{
    *p = __float2bfloat16(x);
}

__device__ __forceinline__ int slot_of(const rows_cuda &r, int row)
{
    return r.slots[r.sequence ? 0 : row];
}

template <typename T> __device__ __forceinline__ T *state_of(const rows_cuda &r, int slot, size_t state_at)
{
    return reinterpret_cast<T *>(static_cast<char *>(r.states) + size_t(slot) * r.state_stride + state_at);
}

__device__ __forceinline__ bool finite(float x)
{
    return fabsf(x) <= 3.402823466e38f;
}
__device__ __forceinline__ float finite_or_zero(float x)
{
    return finite(x) ? x : 0.0f;
}

/* A row's place in a ring of the slot's state: hop number t stands at index t % length. */
template <typename T> struct ring {
    T *base;
    int length, width;
    int now;   /* index of this row, and of the oldest one before it stands there                               */
    int above; /* how many earlier rows are in the call                                                         */

    __device__ __forceinline__ ring(const rows_cuda &r, int row, size_t state_at, int length_, int width_)
    {
        const int slot = slot_of(r, row);
        base = state_of<T>(r, slot, state_at);
        length = length_, width = width_;
        above = r.sequence ? row : 0;
        now = length ? int((r.phase[slot] + unsigned(above)) % unsigned(length)) : 0;
    }
    /* The row `ago` hops before this one, 0..length; 0 is where this row goes (and the oldest still is). */
    __device__ __forceinline__ T *past(int ago) const
    {
        const int index = now - ago;
        return base + size_t(index < 0 ? index + length : index) * size_t(width);
    }
};

/* What a ring is. A sequence puts its last rows there when all else has been read: x (rows, width). Nothing for a step,
 * which does it itself. In layers.cu. */
struct memory {
    size_t state_at;
    int length, width;
    bool bf16;
    bool clean; /* NaN and inf become 0 */
};
int remember(const rows_cuda &r, const memory &m, const float *x, int64_t x_row, void *stream);

} /* namespace rows */

#endif
