/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

/* What the kernels of layers.h share: where a row's past stands, and how a kernel is launched. */

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/layers.h"
#include "kernels/cuda/math.cuh"
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

/* How a kernel of clusters looks: which, its blocks a cluster and threads a block, bytes of shared memory. */
struct cluster_kernel {
    const void *kernel;
    int blocks, threads;
    size_t shared;
};

inline cudaLaunchConfig_t configure(const cluster_kernel &k, int clusters, cudaLaunchAttribute (&attributes)[2], void *stream)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(clusters) * unsigned(k.blocks));
    config.blockDim = dim3(unsigned(k.threads));
    config.dynamicSmemBytes = k.shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    config.numAttrs = 2;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = unsigned(k.blocks);
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    return config;
}

inline cudaError_t permit(const cluster_kernel &k)
{
    const cudaError_t error =
        cudaFuncSetAttribute(k.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(k.shared));
    return error ? error : cudaFuncSetAttribute(k.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

/* Clusters that run side by side; 0 with no kernel, no room for one, or on another kind of device. */
inline int clusters_at_once(const cluster_kernel &k)
{
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = configure(k, 1, attributes, nullptr);
    config.numAttrs = 1;
    int clusters = 0;
    if (!k.kernel || permit(k) || cudaOccupancyMaxActiveClusters(&clusters, k.kernel, &config)) {
        cudaGetLastError(); /* it is answered, not a fault */
        return 0;
    }
    return clusters;
}

/* As launch() does, with `clusters` of them. */
template <typename Parameters>
int launch_clusters(const cluster_kernel &k, int clusters, void *stream, Parameters parameters)
{
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = configure(k, clusters, attributes, stream);
    void *values[] = {&parameters};
    const cudaError_t error = permit(k);
    return error ? error : cudaLaunchKernelExC(&config, k.kernel, values);
}

inline int multiprocessors()
{
    int device = 0, count = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1)
        return 132;
    return count;
}

/* The device lets a block have so much shared memory. */
inline bool has_shared(size_t bytes)
{
    int device = 0, most = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
           bytes <= size_t(most);
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

/* Two neighbouring values. */
__device__ __forceinline__ float2 pair_at(const float *p)
{
    return *reinterpret_cast<const float2 *>(p);
}
__device__ __forceinline__ float2 pair_at(const __nv_bfloat16 *p)
{
    const uint32_t v = *reinterpret_cast<const uint32_t *>(p);
    return make_float2(math::low_bf16(v), math::high_bf16(v));
}
__device__ __forceinline__ void put_pair(float *p, float2 v)
{
    *reinterpret_cast<float2 *>(p) = v;
}
__device__ __forceinline__ void put_pair(__nv_bfloat16 *p, float2 v)
{
    *reinterpret_cast<uint32_t *>(p) = math::pack_bf16(v.x, v.y);
}

/* What won't be touched again soon: first to leave L2. */
__device__ __forceinline__ void put_once(float *p, float x)
{
    __stcs(p, x);
}
__device__ __forceinline__ void put_once(__nv_bfloat16 *p, float x)
{
    __stcs(p, __float2bfloat16(x));
}
__device__ __forceinline__ void put_pair_once(float *p, float2 v)
{
    __stcs(reinterpret_cast<float2 *>(p), v);
}
__device__ __forceinline__ void put_pair_once(__nv_bfloat16 *p, float2 v)
{
    __stcs(reinterpret_cast<uint32_t *>(p), math::pack_bf16(v.x, v.y));
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
