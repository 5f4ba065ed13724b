/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_PTX_CUH
#define KERNELS_CUDA_PTX_CUH

/* The machine's own instructions (PTX ISA 8, sm_90) that CUDA C++ has no name for, one function each. */

#include <cuda_bf16.h>
#include <stdint.h>

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return uint32_t(__cvta_generic_to_shared(p));
}

/* 2^x to 2 ulp; subnormal results are 0. */
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
__device__ __forceinline__ int opaque(int x)
{
    asm("" : "+r"(x));
    return x;
}

/* base + a b, in one instruction: out of a loop the compiler carries b as 64 bits, and multiplies these. */
template <typename X> __device__ __forceinline__ X *offset(X *base, int a, int b)
{
    X *at;
    asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(at) : "r"(a), "r"(b), "l"(base));
    return at;
}

/* For a pointer out of opaque: it points into global memory. */
template <typename X> __device__ __forceinline__ X *in_global(X *p)
{
    __builtin_assume(__isGlobal(p));
    return p;
}

/* c += a b: 16 x 16 by 16 x 8, bf16 in, fp32 out. */
__device__ __forceinline__ void mma(float (&c)[4], const uint4 &a, const uint2 &b)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

/* c += a b: 16 x 8 by 8 x 8, of whose numbers the leading 11 bits count. Lane l has a = A[l/4 + 8 (i & 1)][l%4 + 4 (i/2)],
 * b = B[l%4 + 4 i][l/4], c = C[l/4 + 8 (i/2)][2 (l%4) + (i & 1)]. */
__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2])
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

/* Four 8 x 8 matrices of 16-bit values: lane 8 m + r gives the address of row r of matrix m (16 bytes, aligned); lane
 * 4 g + t gets of each matrix the values 2t, 2t + 1 of row g. */
__device__ __forceinline__ uint4 load_matrices(const void *row)
{
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(shared_address(row))
                 : "memory");
    return v;
}

/* And back, transposed: lane 8 m + r gives where row r of matrix m goes; lane 4 g + t has of each the values g of rows
 * 2t, 2t + 1. */
__device__ __forceinline__ void store_transposed(void *row, const uint4 &v)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

/* mma_rows() below, N rows wide: where the sums, the halves of a and of b are among the operands, of which the sums are
 * the first. */
#define SUMS(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define MMA_ROWS(N, C, A_LOW, A_HIGH, B_LOW, B_HIGH, ...)                                                                \
    asm volatile("{\n"                                                                                                   \
                 ".reg .pred add;\n"                                                                                     \
                 "setp.ne.b32 add, 0, 0;\n"                                                                              \
                 "wgmma.fence.sync.aligned;\n"                                                                           \
                 "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 {" C "}, {" A_LOW "}, " B_LOW                  \
                 ", add, 1, 1, 0;\n"                                                                                     \
                 "setp.eq.b32 add, 0, 0;\n"                                                                              \
                 "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 {" C "}, {" A_HIGH "}, " B_HIGH                \
                 ", add, 1, 1, 0;\n"                                                                                     \
                 "wgmma.commit_group.sync.aligned;\n"                                                                    \
                 "wgmma.wait_group.sync.aligned 0;\n"                                                                    \
                 "}"                                                                                                     \
                 : __VA_ARGS__                                                                                           \
                 : "r"(a[0].x), "r"(a[0].y), "r"(a[0].z), "r"(a[0].w), "r"(a[1].x), "r"(a[1].y), "r"(a[1].z),            \
                   "r"(a[1].w), "l"(at), "l"(at + (2 * stride >> 4))                                                     \
                 : "memory")
#define MMA_64_ROWS() /* where c has 32 sums */                                                                          \
    MMA_ROWS("64", "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                              \
                   "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"                                            \
                   "%30,%31",                                                                                            \
             "%32,%33,%34,%35", "%36,%37,%38,%39", "%40", "%41",                                                         \
             SUMS(0), SUMS(4), SUMS(8), SUMS(12), SUMS(16), SUMS(20), SUMS(24), SUMS(28))

/* c = a b: 64 x 32 by 32 x 8 TILES, by 4 warps from the first of which 4 divides; bits as two mma() from zero, the
 * lower 16 inputs first. Each warp has its 16 outputs of a, as mma() takes them; b stands in shared memory as (4, 8
 * TILES, 8) bf16, `stride` bytes from 8 inputs to the next, and is shared_written(). c[4 n + i] is mma()'s c[i] of the
 * rows from 8 n on. One statement: nothing may read c before the wait. */
template <int TILES>
__device__ __forceinline__ void mma_rows(float (&c)[4 * TILES], const uint4 (&a)[2], const void *b, uint32_t stride)
{
    static_assert(TILES == 1 || TILES == 2 || TILES == 3 || TILES == 8, "no other is written down");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    /* in a cluster the address tells the block too, above its 18 bits */
    const uint32_t place = shared_address(b) & 0x3ffff;
    const uint64_t at = uint64_t(place >> 4) | uint64_t(stride >> 4) << 16 | uint64_t(128 >> 4) << 32;
    if constexpr (TILES == 1)
        MMA_ROWS("8", "%0,%1,%2,%3",
                 "%4,%5,%6,%7", "%8,%9,%10,%11", "%12", "%13",
                 SUMS(0));
    else if constexpr (TILES == 2)
        MMA_ROWS("16", "%0,%1,%2,%3,%4,%5,%6,%7",
                 "%8,%9,%10,%11", "%12,%13,%14,%15", "%16", "%17",
                 SUMS(0), SUMS(4));
    else if constexpr (TILES == 3)
        MMA_ROWS("24", "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11",
                 "%12,%13,%14,%15", "%16,%17,%18,%19", "%20", "%21",
                 SUMS(0), SUMS(4), SUMS(8));
    else if constexpr (TILES == 8)
        MMA_64_ROWS();
#else
    const char *row = static_cast<const char *>(b) + threadIdx.x % 32 / 4 * 16 + threadIdx.x % 4 * 4;
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const char *pair = row + n * 128 + 2 * half * stride;
            mma(sum, a[half],
                make_uint2(*reinterpret_cast<const uint32_t *>(pair),
                           *reinterpret_cast<const uint32_t *>(pair + stride)));
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            c[4 * n + i] = sum[i];
    }
#endif
}

/* The same with 64 rows, which stand in shared memory as (rows, 64) bf16 aligned to 1,024 bytes, the 16 bytes with inputs 8 i.. of
 * row r at place i ^ r % 8; b is where the first row's would be if nothing were exchanged: the first or the second 32. */
__device__ __forceinline__ void mma_swizzled(float (&c)[32], const uint4 (&a)[2], const void *b)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    constexpr uint32_t stride = 16;
    const uint64_t at = uint64_t((shared_address(b) & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
    MMA_64_ROWS();
#else
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, first = shared_address(b) % 128 / 16;
    const char *row = static_cast<const char *>(b) - first * 16 + g * 128 + t * 4;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const char *low = row + n * 1024 + ((first + 2 * half) ^ g) * 16, *high = row + n * 1024 + ((first + 2 * half + 1) ^ g) * 16;
            mma(sum, a[half], make_uint2(*reinterpret_cast<const uint32_t *>(low), *reinterpret_cast<const uint32_t *>(high)));
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            c[4 * n + i] = sum[i];
    }
#endif
}
#undef MMA_64_ROWS
#undef MMA_ROWS
#undef SUMS

/* ---- stores -------------------------------------------------------------------------------------------------- */

/* Into global memory, if `store`: one instruction, past which others may be moved; a branch is a wall. */
__device__ __forceinline__ void store_if(bool store, float *to, float v)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.global.f32 [%1], %2;\n}" ::"r"(int(store)), "l"(to), "f"(v));
}
__device__ __forceinline__ void store_if(bool store, __nv_bfloat16 *to, float v)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.global.b16 [%1], %2;\n}" ::"r"(int(store)), "l"(to),
                 "h"(__bfloat16_as_ushort(__float2bfloat16(v))));
}

/* ---- one kernel after another (programmatic dependent launch) ------------------------------------------------ */

/* Until the kernels this one depends on have finished and their writes are seen. */
__device__ __forceinline__ void wait_for_kernels()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* Once every block has said so or ended, the next kernel may start. */
__device__ __forceinline__ void start_next_kernel()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* ---- some of a block's threads ------------------------------------------------------------------------------- */

/* n of them, whole warps, meet at barrier 1..15. */
__device__ __forceinline__ void sync_threads(uint32_t barrier, uint32_t n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(n) : "memory");
}

/* Four warps, from the first of which 4 divides, take registers that others gave back: n a thread from here on. Without
 * sm_90's own instructions they keep what they have. */
template <int n> __device__ __forceinline__ void more_registers()
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
#endif
}

template <int n> __device__ __forceinline__ void fewer_registers()
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
#endif
}

/* ---- copies by the thread ------------------------------------------------------------------------------------ */

/* 16 bytes from device to shared memory, or 16 zero bytes. */
__device__ __forceinline__ void copy_16(void *shared, const void *global, bool real)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(real ? 16 : 0)
                 : "memory");
}

/* 16 bytes, and the line of 128 that has them on its way into L2. */
__device__ __forceinline__ void copy_16_of_line(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
                 : "memory");
}

/* 16 bytes that other warps of the multiprocessor read too: they go through L1. */
__device__ __forceinline__ void copy_16_kept(void *shared, const void *global)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

/* 4 bytes, likewise. */
__device__ __forceinline__ void copy_4_kept(void *shared, const void *global)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

/* Copies since the last commit are a group of the thread's. */
__device__ __forceinline__ void commit_copies()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all but the thread's last n groups are there. */
template <int n> __device__ __forceinline__ void wait_for_groups()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

__device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* The line of 128 bytes on its way into L2. */
__device__ __forceinline__ void prefetch(const void *global)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

/* ---- bulk copies by the copy engine -------------------------------------------------------------------------- */

/* A barrier in shared memory that n arrive at in each phase; where bytes come to it one thread arrives, telling how many
 * (`expect`). */
__device__ __forceinline__ void barrier_init(uint64_t *barrier, uint32_t n = 1)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(n) : "memory");
}

/* After the inits, before others or the copy engine use the barriers. */
__device__ __forceinline__ void barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/* Until the phase with this parity is over: 0 for the first. */
__device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* bytes (a multiple of 16, both sides aligned to 16) into shared memory; they count towards the barrier. */
__device__ __forceinline__ void bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

/* The same and the opposite for what won't be touched again soon: first to leave L2. What threads wrote into shared memory
 * they first publish: shared_written(), then a barrier. */
__device__ __forceinline__ uint64_t first_to_leave()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void bulk_load_once(void *shared, const void *global, uint32_t bytes, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(first_to_leave())
                 : "memory");
}

__device__ __forceinline__ void bulk_store_once(void *global, const void *shared, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(global),
                 "r"(shared_address(shared)), "r"(bytes), "l"(first_to_leave())
                 : "memory");
}

/* And for what is read soon while much passes that won't be: last to leave. */
__device__ __forceinline__ void store_kept(void *to, const uint4 &v)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1,%2,%3,%4}, %5;" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "l"(policy)
                 : "memory");
}

/* bytes (as in bulk_load) on their way into L2. */
__device__ __forceinline__ void bulk_prefetch(const void *global, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void shared_written()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void bulk_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until all but the last n committed groups of this thread's stores have left shared memory. */
template <int n> __device__ __forceinline__ void bulk_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(n) : "memory");
}

/* Until all this thread's stores are done. */
__device__ __forceinline__ void bulk_wait()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

} /* namespace ptx */

#endif
