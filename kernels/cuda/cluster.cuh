/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_CLUSTER_CUH
#define KERNELS_CUDA_CLUSTER_CUH

/* What a thread block cluster (sm_90) offers beyond ptx.cuh: stores into another block's shared memory that count
 * towards a barrier there, as a bulk copy's bytes do. A phase's bytes may come before its barrier_expect(), but only
 * once the phase before it is over. Addresses are those of PTX, 32 bits. */

#include <stdint.h>

namespace cluster {

/* The block's number in its cluster. */
__device__ __forceinline__ uint32_t rank()
{
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

/* The cluster's number in a grid whose rows are clusters of (n, 1). */
__device__ __forceinline__ uint32_t number()
{
    uint32_t n;
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(n));
    return n;
}

/* Every thread of every block: arrive, then wait. What was written before an arrive is seen after the wait. */
__device__ __forceinline__ void arrive()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

/* The same where nothing has been written but barriers, and those are barrier_init_done(): a microsecond less. */
__device__ __forceinline__ void arrive_early()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void wait()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* The same place in another block's shared memory. */
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t rank)
{
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

/* Put 4, 8 or 16 bytes, aligned to that, into a block's shared memory and count them at a barrier of that block. */
__device__ __forceinline__ void send(uint32_t there, uint32_t barrier, uint32_t v)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(there), "r"(v),
                 "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void send(uint32_t there, uint32_t barrier, uint2 v)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(there),
                 "r"(v.x), "r"(v.y), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void send(uint32_t there, uint32_t barrier, uint4 v)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     there),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
                 : "memory");
}

/* Four lanes that differ in bits `step` and 2 `step` of their number have a value each; all get all, to send 16 bytes at
 * a time. */
__device__ __forceinline__ uint4 gather4(uint32_t v, int lane, int step)
{
    const uint32_t other = __shfl_xor_sync(0xffffffffu, v, step);
    const bool odd = (lane & step) != 0, upper = (lane & 2 * step) != 0;
    const uint32_t a = odd ? other : v, b = odd ? v : other;
    const uint32_t c = __shfl_xor_sync(0xffffffffu, a, 2 * step), d = __shfl_xor_sync(0xffffffffu, b, 2 * step);
    return upper ? make_uint4(c, d, a, b) : make_uint4(a, b, c, d);
}

} /* namespace cluster */

#endif
