/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_PTX_H
#define KERNELS_CUDA_SELECTIVE_SCAN_PTX_H

/* The instructions of compute capability 9.0 that the scan uses and C++ has no name for. */

#include <stdint.h>

namespace ptx
{

/* 2^x to 2 ulp; below 2^-126 zero. */
__device__ __forceinline__ float exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x to 1 ulp. */
__device__ __forceinline__ float reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The same, but the compiler doesn't know where it comes from: it keeps it in a register, not in parts. */
template <typename X> __device__ __forceinline__ X *opaque(X *p)
{
    asm("" : "+l"(p));
    return p;
}

/* For a pointer out of opaque: it points into global memory. */
template <typename X> __device__ __forceinline__ X *global(X *p)
{
    __builtin_assume(__isGlobal(p));
    return p;
}

__device__ __forceinline__ int opaque(int x)
{
    asm("" : "+r"(x));
    return x;
}

/* Programmatic dependent launch: the launch that follows may start (it waits before it reads what this one writes);
 * wait until the launch before is over and its writes are seen. Without the attribute on the later launch, nothing. */
__device__ __forceinline__ void let_next_launch_start()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void wait_for_launch_before()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* d += A B, A 16 x 8, B 8 x 8, of whose numbers the leading 11 bits count; fragments as mma.m16n8k8 has them: lane l
 * has a = A[l/4 + 8 (i & 1)][l%4 + 4 (i / 2)], b = B[l%4 + 4 i][l/4], d = D[l/4 + 8 (i / 2)][2 (l%4) + (i & 1)]. */
__device__ __forceinline__ void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2])
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

} /* namespace ptx */

#endif
