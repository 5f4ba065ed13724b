/* SPDX-License-Identifier: MIT */

/* Products on the GPU; linear.h says what is computed, math.cuh in which order.
 *
 * Three kernels give the same bits. All first bring rows of activations into shared memory as bf16 pieces, normed if
 * asked; weights are packed as the tensor cores want them and take 16 bytes a lane.
 *   wide    a warp walks all blocks of the inputs for 16 MT outputs x 8 NT rows. The copy engine brings each block's
 *           weights once for all warps, through a ring in shared memory: for many rows
 *   tall    the same by wgmma for one piece: a group of 4 warps takes 64 outputs x 64 rows, its weights from registers,
 *           the rows out of shared memory, where they and all weights stand at once: for the most rows
 *   narrow  16 outputs x 8 NT rows a block of 8 warps, each taking every eighth block of the inputs, weights straight
 *           into registers; their sums are added in order out of shared memory: short chains, for few rows
 * and `pair` the same bits as two of them, between two layers of a stack.
 *
 * Grid: (output tiles, row tiles), 256 threads; tall 128 for 64 outputs. Bytes from L2: each block its weights, 2
 * pieces outs in, and its rows, 4 rows in (fp32 x). Floor: 2 products pairs rows in out operations of the tensor cores'
 * 990e12/s; mma.sync reaches about 60 % of that. */

#include "kernels/cuda/linear.h"

#include <cuda_runtime.h>
#include <string.h>

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/rows.cuh"

namespace {

constexpr int WARPS = 8, THREADS = 32 * WARPS;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* What every kernel gets. */
struct params {
    struct linear_cuda w;
    linear_cuda_rows r;
    int blocks;       /* of 32 inputs                                           */
    int tiles;        /* of 16 outputs                                          */
    bool vectors;     /* x can be read 16 bytes at a time, norm too             */
    bool vector_results; /* y can be written so, and the residual read           */
};

/* ---- activations -------------------------------------------------------------------------------------------- */

/* Rows in shared memory: (P, ROWS, CHUNK + 8) bf16. The 16 bytes after each row keep the fragments' loads apart. */
template <int ROWS_, int CHUNK_> struct stage {
    static constexpr int ROWS = ROWS_, CHUNK = CHUNK_, STAGERS = WARPS;
    static constexpr int STRIDE = CHUNK + 8;
    static constexpr int PIECE = ROWS * STRIDE;
    static constexpr int PARTS = (CHUNK + 127) / 128, MOST = PARTS > 2 ? 2 : 4; /* rows a warp loads at a time */
    static constexpr bool WHOLE = false;                                        /* rows always fit the chunk */

    __device__ static __forceinline__ int place(int row, int k)
    {
        return row * STRIDE + k;
    }
};

/* Four neighbouring values of a row, zeros past the end. */
__device__ __forceinline__ float4 load_4(const float *x, int i, int end, bool vectors)
{
    if (vectors && i + 4 <= end)
        return *reinterpret_cast<const float4 *>(x + i);
    float4 v;
    v.x = i + 0 < end ? x[i + 0] : 0.0f;
    v.y = i + 1 < end ? x[i + 1] : 0.0f;
    v.z = i + 2 < end ? x[i + 2] : 0.0f;
    v.w = i + 3 < end ? x[i + 3] : 0.0f;
    return v;
}

__device__ __forceinline__ float add_squares(float sum, const float4 &v)
{
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

__device__ __forceinline__ float4 normed_4(const float4 &v, float scale, const float4 &weight)
{
    return make_float4(math::normed(v.x, scale, weight.x), math::normed(v.y, scale, weight.y),
                       math::normed(v.z, scale, weight.z), math::normed(v.w, scale, weight.w));
}

template <int P, int PIECE> __device__ __forceinline__ void put_4(uint16_t *to, const float4 &v)
{
    uint32_t low[P], high[P];
    math::split(low, v.x, v.y);
    math::split(high, v.z, v.w);
#pragma unroll
    for (int p = 0; p < P; p++)
        *reinterpret_cast<uint2 *>(to + p * PIECE) = make_uint2(low[p], high[p]);
}

/* The scale of a row that is longer than a chunk. */
__device__ __forceinline__ float long_row_scale(const params &p, const float *x, int lane)
{
    float squares = 0.0f;
    for (int i = 4 * lane; i < p.w.in; i += 128)
        squares = add_squares(squares, load_4(x, i, p.w.in, p.vectors));
    return math::row_scale(squares, p.w.in);
}

/* The scales of a warp's rows, the first of them `row`, from their chunks. Of those that fit a chunk lane m finishes
 * row m's, all at once. */
template <class at, int TOGETHER, int PARTS>
__device__ __forceinline__ void row_scales(float (&scale)[TOGETHER], const params &p,
                                           const float4 (&v)[TOGETHER][PARTS], int row, int lane)
{
    if (!at::WHOLE && p.w.in > at::CHUNK) {
        for (int m = 0; m < TOGETHER; m++)
            scale[m] =
                row + m * at::STAGERS < p.r.rows
                    ? long_row_scale(p, static_cast<const float *>(p.r.x) + (row + m * at::STAGERS) * p.r.x_stride, lane)
                    : 1.0f;
        return;
    }
    float own = 0.0f;
#pragma unroll
    for (int m = 0; m < TOGETHER; m++) {
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < PARTS; j++)
            squares = add_squares(squares, v[m][j]);
        squares = math::warp_sum(squares);
        own = lane == m ? squares : own;
    }
    own = math::scale_of(own, p.w.in);
#pragma unroll
    for (int m = 0; m < TOGETHER; m++)
        scale[m] = __shfl_sync(0xffffffffu, own, m);
}

/* fp32 rows row0.. of inputs k0.. as pieces, where `at` (stage, cores) says; what is outside the matrix becomes zero. A
 * warp has TOGETHER rows' loads in flight. */
template <int P, class at> __device__ __forceinline__ void stage_f32(uint16_t *xs, const params &p, int row0, int k0)
{
    constexpr int ROWS = at::ROWS, CHUNK = at::CHUNK, WARPS = at::STAGERS, PARTS = at::PARTS;
    constexpr int TOGETHER = ROWS / WARPS < at::MOST ? (ROWS + WARPS - 1) / WARPS : at::MOST;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    for (int first = warp; first < ROWS; first += WARPS * TOGETHER) {
        float4 v[TOGETHER][PARTS];
#pragma unroll
        for (int m = 0; m < TOGETHER; m++) {
            const int row = row0 + first + m * WARPS;
            const float *x = static_cast<const float *>(p.r.x) + row * p.r.x_stride;
#pragma unroll
            for (int j = 0; j < PARTS; j++)
                v[m][j] = load_4(x, k0 + 128 * j + 4 * lane, row < p.r.rows ? p.w.in : 0, p.vectors);
        }
        float4 weight[PARTS];
        float scale[TOGETHER];
        if (p.r.norm) {
#pragma unroll
            for (int j = 0; j < PARTS; j++)
                weight[j] = load_4(p.r.norm, k0 + 128 * j + 4 * lane, p.w.in, p.vectors);
            row_scales<at>(scale, p, v, row0 + first, lane);
        }
#pragma unroll
        for (int j = 0; j < PARTS; j++) {
            const int k = 128 * j + 4 * lane;
            if (p.r.norm) {
#pragma unroll
                for (int m = 0; m < TOGETHER; m++)
                    v[m][j] = normed_4(v[m][j], scale[m], weight[j]);
            }
#pragma unroll
            for (int m = 0; m < TOGETHER; m++)
                if (first + m * WARPS < ROWS && k < CHUNK)
                    put_4<P, at::PIECE>(xs + at::place(first + m * WARPS, k), v[m][j]);
        }
    }
}

/* bf16 rows are one piece as they are. */
template <class at> __device__ __forceinline__ void stage_bf16(uint16_t *xs, const params &p, int row0, int k0)
{
    constexpr int ROWS = at::ROWS, CHUNK = at::CHUNK;
    const uint16_t *x = static_cast<const uint16_t *>(p.r.x);
    for (int i = int(threadIdx.x); i < ROWS * CHUNK / 8; i += 32 * at::STAGERS) {
        const int row = i / (CHUNK / 8), k = i % (CHUNK / 8) * 8;
        const bool inside = row0 + row < p.r.rows && k0 + k < p.w.in;
        const uint16_t *from = x + (inside ? (row0 + row) * p.r.x_stride + k0 + k : 0);
        uint16_t *to = xs + at::place(row, k);
        if (p.vectors) {
            ptx::copy_16(to, from, inside);
        } else {
            for (int c = 0; c < 8; c++)
                to[c] = inside && k0 + k + c < p.w.in ? from[c] : uint16_t(0);
        }
    }
    ptx::wait_for_copies();
}

template <int P, class at> __device__ __forceinline__ void stage_rows(uint16_t *xs, const params &p, int row0, int k0)
{
    if (P == 1 && p.r.x_bf16)
        stage_bf16<at>(xs, p, row0, k0);
    else
        stage_f32<P, at>(xs, p, row0, k0);
}

/* ---- operands ----------------------------------------------------------------------------------------------- */

/* The lane's weights of one block of inputs for one tile of outputs; tiles past the end read the last. */
template <int PW>
__device__ __forceinline__ void load_weights(uint4 (&a)[PW][2], const params &p, int tile, int block, int lane)
{
    const uint4 *tiles = static_cast<const uint4 *>(p.w.tiles) +
                         (int64_t(min(tile, p.tiles - 1)) * p.blocks + block) * p.w.pieces * 64 + lane;
#pragma unroll
    for (int i = 0; i < PW; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            a[i][half] = __ldg(tiles + (2 * i + half) * 32);
}

/* The activations of one block for 8 rows, the first of which is at `xs`: pieces PIECE apart. */
template <int P, int STRIDE, int PIECE>
__device__ __forceinline__ void load_rows(uint2 (&b)[P][2], const uint16_t *xs, int lane)
{
    const uint16_t *row = xs + lane % 8 * STRIDE + lane / 8 * 8;
#pragma unroll
    for (int i = 0; i < P; i++) {
        const uint4 v = ptx::load_matrices(row + i * PIECE);
        b[i][0] = make_uint2(v.x, v.y);
        b[i][1] = make_uint2(v.z, v.w);
    }
}

/* ---- results ------------------------------------------------------------------------------------------------ */

/* One result, the residual added. */
__device__ __forceinline__ void put_result(const params &p, int row, int output, float y)
{
    if (row >= p.r.rows || output >= p.w.out)
        return;
    if (p.r.residual)
        y = __fadd_rn(p.r.residual[row * p.r.residual_stride + output], y);
    if (p.r.y_bf16)
        static_cast<__nv_bfloat16 *>(p.r.y)[row * p.r.y_stride + output] = __float2bfloat16(y);
    else
        static_cast<float *>(p.r.y)[row * p.r.y_stride + output] = y;
}

/* A warp's results out of its corner of shared memory: ROWS of OUTPUTS, STRIDE floats apart. 16 bytes a lane go out at a
 * time, and loads of the residual before any of its stores. */
template <int ROWS, int OUTPUTS, int STRIDE>
__device__ __forceinline__ void put_bf16(const params &p, const float *corner, int row0, int output0, int lane)
{
    constexpr int LANES = OUTPUTS / 8;
#pragma unroll
    for (int i = lane; i < ROWS * LANES; i += 32) {
        const int row = row0 + i / LANES, output = output0 + i % LANES * 8;
        const float4 *from = reinterpret_cast<const float4 *>(corner + i / LANES * STRIDE + i % LANES * 8);
        const float4 a = from[0], b = from[1];
        if (row < p.r.rows && output < p.w.out)
            *reinterpret_cast<uint4 *>(static_cast<uint16_t *>(p.r.y) + row * p.r.y_stride + output) =
                make_uint4(math::pack_bf16(a.x, a.y), math::pack_bf16(a.z, a.w), math::pack_bf16(b.x, b.y), math::pack_bf16(b.z, b.w));
    }
}

__device__ __forceinline__ float4 sum_4(const float4 &a, const float4 &b)
{
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}

template <int ROWS, int OUTPUTS, int STRIDE>
__device__ __forceinline__ void put_f32(const params &p, const float *corner, int row0, int output0, int lane)
{
    constexpr int LANES = OUTPUTS / 4, EACH = ROWS * LANES / 32, TOGETHER = EACH < 8 ? EACH : 8;
#pragma unroll
    for (int first = 0; first < EACH; first += TOGETHER) {
        float4 residual[TOGETHER];
#pragma unroll
        for (int m = 0; m < TOGETHER; m++) {
            const int i = lane + 32 * (first + m), row = row0 + i / LANES, output = output0 + i % LANES * 4;
            residual[m] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (p.r.residual && row < p.r.rows && output < p.w.out)
                residual[m] = *reinterpret_cast<const float4 *>(p.r.residual + row * p.r.residual_stride + output);
        }
#pragma unroll
        for (int m = 0; m < TOGETHER; m++) {
            const int i = lane + 32 * (first + m), row = row0 + i / LANES, output = output0 + i % LANES * 4;
            const float4 y = *reinterpret_cast<const float4 *>(corner + i / LANES * STRIDE + i % LANES * 4);
            if (row < p.r.rows && output < p.w.out)
                *reinterpret_cast<float4 *>(static_cast<float *>(p.r.y) + row * p.r.y_stride + output) =
                    p.r.residual ? sum_4(residual[m], y) : y;
        }
    }
}

/* A warp's 16 MT outputs x 8 NT rows by way of its corner, whose rows are 4 floats longer than needed, against bank
 * conflicts. */
template <int MT, int NT>
__device__ __forceinline__ void put_totals(const params &p, float *corner, const float (&total)[NT][MT][4], const float *scale,
                                           const float *bias, int row0, int output0, int lane)
{
    constexpr int OUTPUTS = 16 * MT, ROWS = 8 * NT, STRIDE = OUTPUTS + 4;
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int high = 0; high < 2; high++) {
            const int output = 16 * m + g + high * 8;
            const float s = scale[output], b = bias[output];
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int c = 0; c < 2; c++)
                    corner[(8 * n + 2 * t + c) * STRIDE + output] = fmaf(total[n][m][2 * high + c], s, b);
        }
    __syncwarp();
    if (p.vector_results && p.r.y_bf16)
        put_bf16<ROWS, OUTPUTS, STRIDE>(p, corner, row0, output0, lane);
    else if (p.vector_results)
        put_f32<ROWS, OUTPUTS, STRIDE>(p, corner, row0, output0, lane);
    else
        for (int i = lane; i < ROWS * OUTPUTS; i += 32)
            put_result(p, row0 + i / OUTPUTS, output0 + i % OUTPUTS, corner[i / OUTPUTS * STRIDE + i % OUTPUTS]);
}

/* Before a kernel reads what others wrote, and its permission for the next one. */
__device__ __forceinline__ void begin(const params &p)
{
    if (p.r.ahead)
        ptx::start_next_kernel();
    ptx::wait_for_kernels();
    if (!p.r.ahead)
        ptx::start_next_kernel();
}

/* ---- wide --------------------------------------------------------------------------------------------------- */

/* Shared memory: scale, bias and barriers; then a ring of RING blocks' weights, and the rows; when all is summed the
 * warps' corners go over both. */
template <int PW, int P, int MT_, int NT_, int WM_, int CHUNK_, int RING_, int BLOCKS_> struct wide_shape {
    static constexpr int MT = MT_, NT = NT_, WM = WM_, WN = WARPS / WM_, CHUNK = CHUNK_, RING = RING_;
    static constexpr int BLOCKS = BLOCKS_; /* a multiprocessor should hold */
    static constexpr int OUTPUTS = 16 * MT * WM, ROWS = 8 * NT * WN;
    static constexpr int PLACE = OUTPUTS / 16 * PW * 1024; /* bytes of a block's weights */
    static constexpr int HEAD = (OUTPUTS * 8 + RING * 8 + 127) / 128 * 128;
    static constexpr int CORNER = 8 * NT * (16 * MT + 4); /* floats */
    static constexpr int STAGED = RING * PLACE + P * stage<ROWS, CHUNK>::PIECE * 2, CORNERS = WARPS * CORNER * 4;
    static constexpr int SHARED = HEAD + (STAGED > CORNERS ? STAGED : CORNERS);
};

/* Warp 0: send for the weights of a block of inputs; tiles past the end bring the last. */
template <int PW, class S>
__device__ __forceinline__ void send_weights(const params &p, unsigned char *ring, uint64_t *full, int block, int lane)
{
    uint64_t *barrier = full + block % S::RING;
    if (lane == 0)
        ptx::barrier_expect(barrier, S::PLACE);
    __syncwarp();
    if (lane < S::OUTPUTS / 16) {
        const int tile = min(int(blockIdx.x) * (S::OUTPUTS / 16) + lane, p.tiles - 1);
        const char *from = static_cast<const char *>(p.w.tiles) + (int64_t(tile) * p.blocks + block) * p.w.pieces * 1024;
        ptx::bulk_load(ring + block % S::RING * S::PLACE + lane * PW * 1024, from, PW * 1024, barrier);
    }
    __syncwarp();
}

/* What needs no other kernel: the first weights on their way, scale and bias. */
template <int PW, class S>
__device__ __forceinline__ void start(const params &p, unsigned char *ring, uint64_t *full, float *scale)
{
    if (threadIdx.x < 32) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < S::RING; i++)
                ptx::barrier_init(full + i);
            ptx::barrier_init_done();
        }
        __syncwarp();
        for (int block = 0; block < min(S::RING, p.blocks); block++)
            send_weights<PW, S>(p, ring, full, block, int(threadIdx.x));
    }
    for (int i = int(threadIdx.x); i < S::OUTPUTS; i += THREADS) {
        const int output = min(int(blockIdx.x) * S::OUTPUTS + i, p.tiles * 16 - 1);
        scale[i] = __ldg(p.w.scale + output);
        scale[S::OUTPUTS + i] = __ldg(p.w.bias + output);
    }
}

/* Adds a block of inputs: weights of the warp's first tile at `ws`, activations of its first row at `xs`. */
template <int PW, int P, class S>
__device__ __forceinline__ void add_block(float (&total)[S::NT][S::MT][4], const uint4 *ws, const uint16_t *xs, int lane)
{
    using at = stage<S::ROWS, S::CHUNK>;
    uint4 a[S::MT][PW][2];
#pragma unroll
    for (int i = 0; i < S::MT * PW * 2; i++)
        (&a[0][0][0])[i] = ws[i * 32 + lane];
#pragma unroll
    for (int n = 0; n < S::NT; n++) {
        uint2 b[P][2];
        load_rows<P, at::STRIDE, at::PIECE>(b, xs + n * 8 * at::STRIDE, lane);
#pragma unroll
        for (int m = 0; m < S::MT; m++) {
            float c[4];
            math::block_sum<PW, P>(c, a[m], b);
#pragma unroll
            for (int i = 0; i < 4; i++)
                total[n][m][i] = __fadd_rn(total[n][m][i], c[i]);
        }
    }
}

template <int PW, int P, class S> __global__ void __launch_bounds__(THREADS, S::BLOCKS) wide(const params p)
{
    extern __shared__ __align__(128) unsigned char shared[];
    using at = stage<S::ROWS, S::CHUNK>;
    float *scale = reinterpret_cast<float *>(shared), *bias = scale + S::OUTPUTS;
    uint64_t *full = reinterpret_cast<uint64_t *>(bias + S::OUTPUTS);
    unsigned char *ring = shared + S::HEAD;
    uint16_t *xs = reinterpret_cast<uint16_t *>(ring + S::RING * S::PLACE);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int warp_output = warp / S::WN * 16 * S::MT, warp_row = warp % S::WN * 8 * S::NT;
    const int row0 = int(blockIdx.y) * S::ROWS;

    start<PW, S>(p, ring, full, scale);
    begin(p);
    float total[S::NT][S::MT][4] = {};
    for (int first = 0; first < p.blocks; first += S::CHUNK / 32) {
        if (first > 0)
            __syncthreads(); /* all have used the chunk before */
        stage_rows<P, at>(xs, p, row0, first * 32);
        __syncthreads();
        const int end = min(p.blocks, first + S::CHUNK / 32);
        for (int block = first; block < end; block++) {
            ptx::barrier_wait(full + block % S::RING, uint32_t(block / S::RING % 2));
            const unsigned char *ws = ring + block % S::RING * S::PLACE + warp_output / 16 * PW * 1024;
            add_block<PW, P, S>(total, reinterpret_cast<const uint4 *>(ws), xs + warp_row * at::STRIDE + (block - first) * 32, lane);
            if (block + S::RING >= p.blocks)
                continue;
            __syncthreads(); /* all have used the weights */
            if (warp == 0)
                send_weights<PW, S>(p, ring, full, block + S::RING, lane);
        }
    }
    __syncthreads();
    put_totals<S::MT, S::NT>(p, reinterpret_cast<float *>(ring) + warp * S::CORNER, total, scale + warp_output, bias + warp_output,
                             row0 + warp_row, int(blockIdx.x) * S::OUTPUTS + warp_output, lane);
}

/* ---- tall --------------------------------------------------------------------------------------------------- */

/* Rows in shared memory as wgmma takes them, (CHUNK / 8, ROWS, 8) bf16: each 8 inputs of 8 rows are 128 bytes on end.
 * 16 bytes after each 8 inputs keep the staging warps' stores apart. */
template <int ROWS_, int CHUNK_, int STAGERS_> struct cores {
    static constexpr int ROWS = ROWS_, CHUNK = CHUNK_, STAGERS = STAGERS_;
    static constexpr int STRIDE = 8 * ROWS + 8; /* from 8 inputs to the next 8 */
    static constexpr int PIECE = CHUNK / 8 * STRIDE;
    static constexpr int PARTS = (CHUNK + 127) / 128, MOST = PARTS > 2 ? 4 : 8;
    static constexpr bool WHOLE = true;

    __device__ static __forceinline__ int place(int row, int k)
    {
        return k / 8 * STRIDE + row * 8 + k % 8;
    }
};

/* GROUPS warp groups of 4 warps, each 64 outputs of 64 HALVES rows, 64 at a time. Shared memory: barriers; all
 * weights, the rows, and a corner for each group's results: (32, 72) bf16 or (16, 68) floats. */
template <int GROUPS_, int HALVES_, int CHUNK_> struct tall_shape {
    static constexpr int GROUPS = GROUPS_, HALVES = HALVES_, CHUNK = CHUNK_, THREADS = 128 * GROUPS,
                         BLOCKS = CHUNK / 32;
    static constexpr int OUTPUTS = 64 * GROUPS, ROWS = 64 * HALVES;
    using at = cores<ROWS, CHUNK, THREADS / 32>;
    static constexpr int TILE = BLOCKS * 1024; /* bytes of 16 outputs' weights */
    static constexpr bool EARLY = GROUPS < 4 && HALVES == 1; /* registers are free for the residual all along */
    static constexpr int HEAD = 128;
    static constexpr int WEIGHTS = 4 * GROUPS * TILE, STAGED = at::PIECE * 2, CORNER = 4608;
    static constexpr int SHARED = HEAD + WEIGHTS + STAGED + GROUPS * CORNER;
};

/* What needs no other kernel: all weights on their way, as (group, 4 tiles, blocks). */
template <class S> __device__ __forceinline__ void start_tall(const params &p, unsigned char *weights, uint64_t *full)
{
    const int bytes = p.blocks * 1024;
    if (threadIdx.x == 0) {
        for (int group = 0; group < S::GROUPS; group++)
            ptx::barrier_init(full + group);
        ptx::barrier_init_done();
        for (int i = 0; i < 4 * S::GROUPS; i++) {
            const int tile = min(int(blockIdx.x) * 4 * S::GROUPS + i, p.tiles - 1);
            if (i % 4 == 0)
                ptx::barrier_expect(full + i / 4, uint32_t(4 * bytes));
            ptx::bulk_load(weights + i * S::TILE, static_cast<const char *>(p.w.tiles) + int64_t(tile) * bytes,
                           uint32_t(bytes), full + i / 4);
        }
    }
}

/* The warp's 16 outputs of 64 rows, lane 4 g + t: outputs g and g + 8 (c[4 n + 2 high + i]) of rows 8 n + 2 t + i. */
template <class S>
__device__ __forceinline__ void sum_rows(float (&total)[32], const unsigned char *weights, const uint16_t *xs,
                                         int blocks)
{
    const uint4 *ws = reinterpret_cast<const uint4 *>(weights + int(threadIdx.x) / 32 * S::TILE) + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 32; i++)
        total[i] = 0.0f;
#pragma unroll 2
    for (int block = 0; block < blocks; block++) {
        const uint4 a[2] = {ws[0], ws[32]};
        float c[32];
        ptx::mma_rows<8>(c, a, xs, S::at::STRIDE * 2);
#pragma unroll
        for (int i = 0; i < 32; i++)
            total[i] = __fadd_rn(total[i], c[i]);
        ws += 64;
        xs += 4 * S::at::STRIDE;
    }
}

/* A group's 64 outputs of 64 rows, 32 rows at a time by way of its corner. */
template <class S>
__device__ __forceinline__ void put_tall_bf16(const params &p, uint16_t *corner, const float (&y)[32], int row0,
                                              int output0)
{
    const int thread = int(threadIdx.x) % 128, lane = thread % 32, group = int(threadIdx.x) / 128;
#pragma unroll
    for (int part = 0; part < 2; part++) {
        ptx::sync_threads(uint32_t(1 + group), 128); /* the corner is free */
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            const float *c = y + (part * 4 + n) * 4;
            const uint4 v = make_uint4(math::pack_bf16(c[0], c[1]), math::pack_bf16(c[2], c[3]),
                                       math::pack_bf16(c[4], c[5]), math::pack_bf16(c[6], c[7]));
            ptx::store_transposed(
                corner + (8 * n + lane / 16 * 8 + lane % 8) * 72 + thread / 32 * 16 + lane / 8 % 2 * 8, v);
        }
        ptx::sync_threads(uint32_t(1 + group), 128);
#pragma unroll
        for (int i = thread; i < 32 * 8; i += 128) {
            const int row = row0 + part * 32 + i / 8, output = output0 + i % 8 * 8;
            if (row >= p.r.rows || output >= p.w.out)
                continue;
            const uint4 v = *reinterpret_cast<const uint4 *>(corner + i / 8 * 72 + i % 8 * 8);
            uint16_t *to = static_cast<uint16_t *>(p.r.y) + row * p.r.y_stride + output;
            if (p.r.y_kept)
                ptx::store_kept(to, v);
            else
                *reinterpret_cast<uint4 *>(to) = v;
        }
    }
}

/* What is to be added to a thread's share of 64 rows of fp32 results. */
__device__ __forceinline__ void ask_residual(float4 (&residual)[8], const params &p, int row0, int output0)
{
    const int thread = int(threadIdx.x) % 128, output = output0 + thread % 16 * 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = row0 + thread / 16 + i * 8;
        residual[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (p.r.residual && row < p.r.rows && output < p.w.out)
            residual[i] = *reinterpret_cast<const float4 *>(p.r.residual + row * p.r.residual_stride + output);
    }
}

/* The same in fp32, 16 rows at a time. */
template <class S>
__device__ __forceinline__ void put_tall_f32(const params &p, float *corner, const float (&y)[32],
                                             const float4 (&residual)[8], int row0, int output0)
{
    const int thread = int(threadIdx.x) % 128, lane = thread % 32, group = int(threadIdx.x) / 128;
    const int output = output0 + thread % 16 * 4;
#pragma unroll
    for (int part = 0; part < 4; part++) {
        ptx::sync_threads(uint32_t(1 + group), 128);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int row = i / 4 * 8 + lane % 4 * 2 + i % 2, at = thread / 32 * 16 + i / 2 % 2 * 8 + lane / 4;
            corner[row * 68 + at] = y[part * 8 + i];
        }
        ptx::sync_threads(uint32_t(1 + group), 128);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int row = row0 + part * 16 + thread / 16 + i * 8;
            const float4 v = *reinterpret_cast<const float4 *>(corner + (thread / 16 + i * 8) * 68 + thread % 16 * 4);
            if (row < p.r.rows && output < p.w.out)
                *reinterpret_cast<float4 *>(static_cast<float *>(p.r.y) + row * p.r.y_stride + output) =
                    p.r.residual ? sum_4(residual[part * 2 + i], v) : v;
        }
    }
}

/* All that a block loads is on its way at once, so that it waits for L2 once. */
template <class S> __global__ void __launch_bounds__(S::THREADS, 1) tall(const __grid_constant__ params p)
{
    extern __shared__ __align__(128) unsigned char shared[];
    uint64_t *full = reinterpret_cast<uint64_t *>(shared);
    unsigned char *weights = shared + S::HEAD, *corners = weights + S::WEIGHTS + S::STAGED;
    uint16_t *xs = reinterpret_cast<uint16_t *>(weights + S::WEIGHTS);
    const int group = int(threadIdx.x) / 128, lane = int(threadIdx.x) % 32;
    const int own = int(threadIdx.x) / 32 * 16 + lane / 4; /* the thread's first output of the block's */
    const int row0 = int(blockIdx.y) * S::ROWS, output0 = int(blockIdx.x) * S::OUTPUTS + group * 64;

    start_tall<S>(p, weights, full);
    float scales[2], biases[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int output = min(int(blockIdx.x) * S::OUTPUTS + own + 8 * i, p.tiles * 16 - 1);
        scales[i] = __ldg(p.w.scale + output), biases[i] = __ldg(p.w.bias + output);
    }
    begin(p);
    float4 residual[8];
    if (S::EARLY)
        ask_residual(residual, p, row0, output0);
    stage_rows<1, typename S::at>(xs, p, row0, 0);
    ptx::shared_written();
    __syncthreads();
    ptx::barrier_wait(full + group, 0);
#pragma unroll 1
    for (int half = 0; half < S::HALVES; half++) {
        float y[32];
        sum_rows<S>(y, weights, xs + half * 64 * 8, p.blocks);
#pragma unroll
        for (int i = 0; i < 32; i++)
            y[i] = fmaf(y[i], scales[i / 2 % 2], biases[i / 2 % 2]);
        unsigned char *corner = corners + group * S::CORNER;
        if (p.r.y_bf16) {
            put_tall_bf16<S>(p, reinterpret_cast<uint16_t *>(corner), y, row0 + half * 64, output0);
            continue;
        }
        if (!S::EARLY)
            ask_residual(residual, p, row0 + half * 64, output0);
        put_tall_f32<S>(p, reinterpret_cast<float *>(corner), y, residual, row0 + half * 64, output0);
    }
}

/* ---- two products in one ------------------------------------------------------------------------------------ */

/* Rows in shared memory as ptx::mma_swizzled() takes them, (CHUNK / 64, ROWS, 64) bf16: they come and go without bank
 * conflicts. */
template <int ROWS_, int CHUNK_, int STAGERS_> struct swizzled {
    static constexpr int ROWS = ROWS_, CHUNK = CHUNK_, STAGERS = STAGERS_;
    static constexpr int PIECE = ROWS * CHUNK;
    static constexpr bool WHOLE = true;

    __device__ static __forceinline__ int place(int row, int k)
    {
        return k / 64 * (ROWS * 64) + row * 64 + (k / 8 % 8 ^ row % 8) * 8 + k % 8;
    }
};

/* For rows between two layers: x += W y, then z = V norm(x), 512 -> 256 -> 1024. A block takes 64 rows through both, x in
 * shared memory in between, so that few multiprocessors do in one launch what takes two with several waves each. A warp
 * has 16 outputs at a time of every 256. Its weights, which nobody else needs, it brings by a ring of its own, each lane
 * what it takes itself: no barrier is needed.
 *
 * Grid: (row tiles), 512 threads. Bytes from L2: 768 KiB of weights a block; a row 1 KiB of y, 1 of x in and out, 2 of z. */
struct pair_shape {
    static constexpr int ROWS = 64, MIDDLE = 256, OUT = 1024, THREADS = 512, GROUPS = 4;
    static constexpr int FIRST = 512 / 64, SECOND = MIDDLE / 64, PASSES = OUT / MIDDLE; /* pieces: 64 inputs, 16 outputs */
    static constexpr int PIECE = 2048, PLACES = 4, PIECES = FIRST + PASSES * SECOND;
    using wide_rows = swizzled<ROWS, 512, THREADS / 32>;
    using at = swizzled<ROWS, MIDDLE, THREADS / 32>;
    static constexpr int X_ROW = MIDDLE + 4; /* floats */
    static constexpr int SCALES = 2 * MIDDLE, NORM = SCALES + 2 * OUT; /* tables: scale, bias of both, the norm's weights */
    static constexpr int HEAD = (NORM + MIDDLE) * 4, RING = THREADS / 32 * PLACES * PIECE;
    static constexpr int STAGED = ROWS * X_ROW * 4;  /* y, then the first product, then normed x */
    static constexpr int CORNERS = at::PIECE * 2;    /* behind that, for results */
    static constexpr int SHARED = HEAD + RING + STAGED;
    static_assert(wide_rows::WHOLE && wide_rows::PIECE * 2 <= STAGED && CORNERS + GROUPS * 4608 <= STAGED && SHARED <= 232448,
                  "it fits");
};

struct pair_params {
    params first, second;
};

/* A warp's weights: 16 outputs of the first product, then of each 256 of the second. */
struct pair_weights {
    using S = pair_shape;
    const pair_params &p;
    unsigned char *ring;
    int warp, lane;

    __device__ __forceinline__ pair_weights(const pair_params &p_, unsigned char *ring_) : p(p_)
    {
        warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
        ring = ring_ + warp * S::PLACES * S::PIECE + lane * 16;
    }
    __device__ __forceinline__ void send(int piece) const
    {
        if (piece < S::PIECES) {
            const int later = piece - S::FIRST;
            const void *tiles = later < 0 ? p.first.w.tiles : p.second.w.tiles;
            const int at = later < 0 ? warp * S::FIRST + piece : (later / S::SECOND * 16 + warp) * S::SECOND + later % S::SECOND;
            const char *from = static_cast<const char *>(tiles) + at * S::PIECE + lane * 16;
#pragma unroll
            for (int i = 0; i < 4; i++)
                ptx::copy_16(ring + piece % S::PLACES * S::PIECE + i * 512, from + i * 512, true);
        }
        ptx::commit_copies(); /* also without any: groups are counted */
    }
    /* total += the piece's two blocks' sums; then another comes into its place. */
    __device__ __forceinline__ void add(float (&total)[32], int piece, const uint16_t *xs) const
    {
        const uint4 *ws = reinterpret_cast<const uint4 *>(ring + piece % S::PLACES * S::PIECE);
        ptx::wait_for_groups<S::PLACES - 1>();
        const uint4 a[2][2] = {{ws[0], ws[32]}, {ws[64], ws[96]}};
#pragma unroll
        for (int block = 0; block < 2; block++) {
            float c[32];
            ptx::mma_swizzled(c, a[block], xs + block * 32);
#pragma unroll
            for (int i = 0; i < 32; i++)
                total[i] = __fadd_rn(total[i], c[i]);
        }
        send(piece + S::PLACES);
        __syncwarp();
    }
};

/* The scale and bias of a thread's two outputs: a table of scales, and as long a one of biases. */
__device__ __forceinline__ void finish_totals(float (&y)[32], const float *table, int length, int own)
{
#pragma unroll
    for (int i = 0; i < 32; i++)
        y[i] = fmaf(y[i], table[own + i / 2 % 2 * 8], table[length + own + i / 2 % 2 * 8]);
}

__device__ __forceinline__ void load_tables(float *table, const pair_params &p)
{
    using S = pair_shape;
    const int i = int(threadIdx.x);
    table[i] = i < S::MIDDLE ? __ldg(p.first.w.scale + i) : __ldg(p.first.w.bias + i - S::MIDDLE);
#pragma unroll
    for (int j = i; j < S::OUT; j += S::THREADS)
        table[S::SCALES + j] = __ldg(p.second.w.scale + j), table[S::SCALES + S::OUT + j] = __ldg(p.second.w.bias + j);
    if (i < S::MIDDLE)
        table[S::NORM + i] = __ldg(p.second.r.norm + i);
}

/* x of a warp's rows, every 16th: what the first product is added to, and what the second takes. */
struct pair_rows {
    static constexpr int EACH = pair_shape::ROWS / 16;
    float4 v[EACH][2];

    __device__ __forceinline__ void load(const params &p, int row0, int warp, int lane)
    {
#pragma unroll
        for (int m = 0; m < EACH; m++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int row = row0 + warp + 16 * m;
                v[m][j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (row < p.r.rows)
                    v[m][j] = *reinterpret_cast<const float4 *>(p.r.residual + row * p.r.residual_stride + 128 * j + 4 * lane);
            }
    }
    /* Add the product and put the sum where it lives. */
    __device__ __forceinline__ void add(const float *product, const params &p, int row0, int warp, int lane)
    {
#pragma unroll
        for (int m = 0; m < EACH; m++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int row = warp + 16 * m, i = 128 * j + 4 * lane;
                v[m][j] = sum_4(v[m][j], *reinterpret_cast<const float4 *>(product + row * pair_shape::X_ROW + i));
                if (row0 + row < p.r.rows)
                    *reinterpret_cast<float4 *>(static_cast<float *>(p.r.y) + (row0 + row) * p.r.y_stride + i) = v[m][j];
            }
    }
    __device__ __forceinline__ void norm(const params &p, const float *weights, int lane)
    {
        float scale[EACH];
        row_scales<pair_shape::at>(scale, p, v, 0, lane);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float4 weight = *reinterpret_cast<const float4 *>(weights + 128 * j + 4 * lane);
#pragma unroll
            for (int m = 0; m < EACH; m++)
                v[m][j] = normed_4(v[m][j], scale[m], weight);
        }
    }
    __device__ __forceinline__ void put(uint16_t *xs, int warp, int lane) const
    {
        using at = pair_shape::at;
#pragma unroll
        for (int m = 0; m < EACH; m++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                put_4<1, at::PIECE>(xs + at::place(warp + 16 * m, 128 * j + 4 * lane), v[m][j]);
    }
};

__global__ void __launch_bounds__(pair_shape::THREADS, 1) pair(const __grid_constant__ pair_params p)
{
    using S = pair_shape;
    extern __shared__ __align__(1024) unsigned char pair_shared[];
    float *table = reinterpret_cast<float *>(pair_shared);
    unsigned char *staged = pair_shared + S::HEAD + S::RING;
    const pair_weights weights(p, pair_shared + S::HEAD);
    uint16_t *xs = reinterpret_cast<uint16_t *>(staged);
    float *product = reinterpret_cast<float *>(staged);
    const int warp = weights.warp, lane = weights.lane, group = warp / 4, row0 = int(blockIdx.x) * S::ROWS;
    const int own = warp * 16 + lane / 4;
    for (int i = 0; i < S::PLACES; i++)
        weights.send(i);
    load_tables(table, p);
    begin(p.second);
    stage_bf16<S::wide_rows>(xs, p.first, row0, 0);
    pair_rows x;
    x.load(p.first, row0, warp, lane);
    ptx::shared_written();
    __syncthreads();
    float total[32] = {};
    int piece = 0;
#pragma unroll 1
    for (; piece < S::FIRST; piece++)
        weights.add(total, piece, xs + piece * S::wide_rows::PIECE / S::FIRST);
    finish_totals(total, table, S::MIDDLE, own);
    __syncthreads(); /* y has been read */
#pragma unroll
    for (int i = 0; i < 32; i++)
        product[(i / 4 * 8 + lane % 4 * 2 + i % 2) * S::X_ROW + own + i / 2 % 2 * 8] = total[i];
    __syncthreads();
    x.add(product, p.first, row0, warp, lane);
    x.norm(p.second, table + S::NORM, lane);
    __syncthreads(); /* the product has been read */
    x.put(xs, warp, lane);
    ptx::shared_written();
    __syncthreads();
    uint16_t *corner = reinterpret_cast<uint16_t *>(staged + S::CORNERS + group * 4608);
#pragma unroll 1
    for (int pass = 0; pass < S::PASSES; pass++) {
#pragma unroll
        for (int i = 0; i < 32; i++)
            total[i] = 0.0f;
#pragma unroll 1
        for (int i = 0; i < S::SECOND; i++, piece++)
            weights.add(total, piece, xs + i * S::at::PIECE / S::SECOND);
        finish_totals(total, table + S::SCALES, S::OUT, pass * S::MIDDLE + own);
        put_tall_bf16<S>(p.second, corner, total, row0, pass * S::MIDDLE + group * 64);
    }
}

/* ---- narrow ------------------------------------------------------------------------------------------------- */

template <int NT_> struct narrow_shape {
    static constexpr int NT = NT_, CHUNK = 512, BLOCKS = CHUNK / 32, ROWS = 8 * NT;
    static constexpr int SUM = 16 * ROWS + 8;           /* floats a block's sums take: (ROWS, 16) and padding */
    static constexpr int OWN = (16 * ROWS + THREADS - 1) / THREADS; /* results a thread adds up                  */
    static constexpr int shared(int P) { return P * stage<ROWS, CHUNK>::PIECE * 2 + BLOCKS * SUM * 4; }
};

/* The sums of one block of inputs. */
template <int PW, int P, class S>
__device__ __forceinline__ void put_block(float *sums, const uint4 (&a)[PW][2], const uint16_t *xs, int lane)
{
    using at = stage<S::ROWS, S::CHUNK>;
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < S::NT; n++) {
        uint2 b[P][2];
        float c[4];
        load_rows<P, at::STRIDE, at::PIECE>(b, xs + n * 8 * at::STRIDE, lane);
        math::block_sum<PW, P>(c, a, b);
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[(8 * n + 2 * t + i % 2) * 16 + g + i / 2 * 8] = c[i];
    }
}

template <int PW, int P, class S> __global__ void __launch_bounds__(THREADS) narrow(const params p)
{
    extern __shared__ __align__(128) unsigned char shared[];
    using at = stage<S::ROWS, S::CHUNK>;
    uint16_t *xs = reinterpret_cast<uint16_t *>(shared);
    float *sums = reinterpret_cast<float *>(xs + P * at::PIECE);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int tile = int(blockIdx.x), row0 = int(blockIdx.y) * S::ROWS;

    float total[S::OWN] = {};
    uint4 a[PW][2];
    load_weights<PW>(a, p, tile, min(warp, p.blocks - 1), lane);
    begin(p);
    for (int first = 0; first < p.blocks; first += S::BLOCKS) {
        stage_rows<P, at>(xs, p, row0, first * 32);
        __syncthreads();
        const int count = min(S::BLOCKS, p.blocks - first);
        for (int block = warp; block < count; block += WARPS) {
            uint4 next[PW][2];
            load_weights<PW>(next, p, tile, min(first + block + WARPS, p.blocks - 1), lane);
            put_block<PW, P, S>(sums + block * S::SUM, a, xs + block * 32, lane);
#pragma unroll
            for (int i = 0; i < PW * 2; i++)
                (&a[0][0])[i] = (&next[0][0])[i];
        }
        __syncthreads();
#pragma unroll
        for (int own = 0; own < S::OWN; own++)
            for (int block = 0; block < count; block++)
                if (own * THREADS + int(threadIdx.x) < 16 * S::ROWS)
                    total[own] = __fadd_rn(total[own], sums[block * S::SUM + own * THREADS + int(threadIdx.x)]);
    }
#pragma unroll
    for (int own = 0; own < S::OWN; own++) {
        const int i = own * THREADS + int(threadIdx.x);
        if (i < 16 * S::ROWS)
            put_result(p, row0 + i / 16, tile * 16 + i % 16,
                       fmaf(total[own], __ldg(p.w.scale + tile * 16 + i % 16), __ldg(p.w.bias + tile * 16 + i % 16)));
    }
}

/* ---- launches ----------------------------------------------------------------------------------------------- */

/* The largest tiles that still give most multiprocessors a block. */
constexpr int ENOUGH_BLOCKS = 100;

template <class S> bool enough(const params &p, int blocks = ENOUGH_BLOCKS)
{
    return ceil_div(p.w.out, S::OUTPUTS) * ceil_div(p.r.rows, S::ROWS) >= blocks;
}

template <int PW, int P, class S> int launch_wide(const params &p, void *stream)
{
    const dim3 grid(unsigned(ceil_div(p.w.out, S::OUTPUTS)), unsigned(ceil_div(p.r.rows, S::ROWS)));
    return rows::launch(wide<PW, P, S>, grid, THREADS, S::SHARED, stream, p);
}

template <int PW, int P, int NT> int launch_narrow(const params &p, void *stream)
{
    using S = narrow_shape<NT>;
    const dim3 grid(unsigned(ceil_div(p.w.out, 16)), unsigned(ceil_div(p.r.rows, S::ROWS)));
    return rows::launch(narrow<PW, P, S>, grid, THREADS, S::shared(P), stream, p);
}

template <class S> int launch_tall(const params &p, void *stream)
{
    const dim3 grid(unsigned(ceil_div(p.w.out, S::OUTPUTS)), unsigned(ceil_div(p.r.rows, S::ROWS)));
    return rows::launch(tall<S>, grid, S::THREADS, S::SHARED, stream, p);
}

/* The first of the shapes, which are given from the largest on, that is enough; -1 for none. What a block of 512 inputs
 * does is worth more of them. */
template <class S, class... Smaller> int launch_tallest(const params &p, void *stream)
{
    if (enough<S>(p, S::CHUNK > 256 ? 60 : ENOUGH_BLOCKS))
        return launch_tall<S>(p, stream);
    if constexpr (sizeof...(Smaller) > 0)
        return launch_tallest<Smaller...>(p, stream);
    return -1;
}

int launch_tall_any(const params &p, void *stream)
{
    if (p.w.pieces > 1 || p.w.in > 512 || !p.vectors || !p.vector_results)
        return -1;
    if (p.w.in > 256)
        return launch_tallest<tall_shape<2, 1, 512>, tall_shape<1, 1, 512>>(p, stream);
    return launch_tallest<tall_shape<4, 2, 256>, tall_shape<4, 1, 256>, tall_shape<2, 1, 256>>(p, stream);
}

template <int PW, int P> int launch_any(const params &p, void *stream)
{
    if constexpr (P == 1) {
        const int error = launch_tall_any(p, stream);
        if (error >= 0)
            return error;
    }
    using large = wide_shape<PW, P, 2, P == 1 ? 8 : 4, 4, P == 3 ? 128 : 256, 4, P == 1 ? 2 : 1>;
    using middle = wide_shape<PW, P, 2, 4, 4, P == 1 ? 512 : 128, PW == 3 ? 3 : 4, P == 1 ? 2 : 1>;
    using small = wide_shape<PW, P, 1, 2, 4, 256, 8 / PW, 1>;
    if (enough<large>(p))
        return launch_wide<PW, P, large>(p, stream);
    if (enough<middle>(p))
        return launch_wide<PW, P, middle>(p, stream);
    if (enough<small>(p))
        return launch_wide<PW, P, small>(p, stream);
    if (p.tiles * ceil_div(p.r.rows, 32) >= ENOUGH_BLOCKS)
        return launch_narrow<PW, P, 4>(p, stream);
    if (p.tiles * ceil_div(p.r.rows, 16) >= ENOUGH_BLOCKS)
        return launch_narrow<PW, P, 2>(p, stream);
    return launch_narrow<PW, P, 1>(p, stream);
}

bool aligned(const void *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool valid(const struct linear_cuda &w, const linear_cuda_rows &r)
{
    return w.in >= 1 && w.out >= 1 && w.pieces >= 1 && w.pieces <= 3 && r.rows >= 0 && r.rows <= 8 * 65535 &&
           r.precision >= 1 && r.precision <= 3 && (w.pieces == 1 || w.pieces >= r.precision) &&
           (!r.x_bf16 || (r.precision == PRECISION_BF16 && !r.norm));
}

params params_of(const struct linear_cuda &w, const linear_cuda_rows &r)
{
    params p = {w, r, ceil_div(w.in, 32), ceil_div(w.out, 16), false, false};
    p.vectors = aligned(r.x) && aligned(r.norm) && r.x_stride % (r.x_bf16 ? 8 : 4) == 0 && (!r.x_bf16 || w.in % 8 == 0);
    const int together = r.y_bf16 ? 8 : 4;
    p.vector_results = aligned(r.y) && r.y_stride % together == 0 && w.out % together == 0 &&
                       (!r.residual || (!r.y_bf16 && aligned(r.residual) && r.residual_stride % 4 == 0));
    return p;
}

bool pair_takes(const params &a, const params &b)
{
    return a.w.in == 512 && a.w.out == pair_shape::MIDDLE && b.w.in == pair_shape::MIDDLE && b.w.out == 1024 && a.w.pieces == 1 &&
           b.w.pieces == 1 && a.r.precision == PRECISION_BF16 && b.r.precision == PRECISION_BF16 && a.r.rows == b.r.rows &&
           a.r.x_bf16 && !a.r.y_bf16 && a.r.residual && a.r.y == b.r.x && a.r.y_stride == b.r.x_stride && b.r.norm && b.r.y_bf16 &&
           !b.r.residual && a.vectors && b.vectors && a.vector_results && b.vector_results;
}

/* ---- packing ------------------------------------------------------------------------------------------------ */

size_t padded_outputs(int out) { return size_t(ceil_div(out, 16)) * 16; }

size_t tiles_bytes(int in, int out, int pieces)
{
    return padded_outputs(out) * size_t(ceil_div(in, 32)) * 32 * 2 * size_t(pieces);
}

/* x to the nearest bf16, ties to even; NaN stays NaN. */
uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

float from_bf16(uint16_t x)
{
    const uint32_t bits = uint32_t(x) << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* Where weight (o, k) stands in its tile: linear.h. */
size_t tile_index(int o, int k)
{
    const int lane = o % 8 * 4 + k % 8 / 2, pair = k % 16 / 8 * 2 + o % 16 / 8;
    return size_t(lane) * 8 + size_t(pair) * 2 + size_t(k % 2);
}

} /* namespace */

/* ---- entry points ------------------------------------------------------------------------------------------- */

size_t linear_cuda_bytes(int in, int out, int pieces)
{
    return tiles_bytes(in, out, pieces) + padded_outputs(out) * 2 * sizeof(float);
}

void linear_cuda_pack(void *packed, int in, int out, int pieces, const float *weight, const float *scale,
                      const float *bias)
{
    uint16_t *tiles = static_cast<uint16_t *>(packed);
    float *scales = reinterpret_cast<float *>(static_cast<unsigned char *>(packed) + tiles_bytes(in, out, pieces));
    float *biases = scales + padded_outputs(out);
    const size_t blocks = size_t(ceil_div(in, 32));
    memset(packed, 0, linear_cuda_bytes(in, out, pieces));
    for (int o = 0; o < out; o++) {
        for (int k = 0; k < in; k++) {
            float rest = weight[size_t(o) * size_t(in) + size_t(k)];
            for (int i = 0; i < pieces; i++) {
                const size_t tile = ((size_t(o / 16) * blocks + size_t(k / 32)) * size_t(pieces) + size_t(i)) * 2 + size_t(k / 16 % 2);
                const uint16_t piece = to_bf16(rest);
                tiles[tile * 256 + tile_index(o, k)] = piece;
                rest -= from_bf16(piece);
            }
        }
        scales[o] = scale ? scale[o] : 1.0f;
        biases[o] = bias ? bias[o] : 0.0f;
    }
}

struct linear_cuda linear_cuda_at(const void *device, int in, int out, int pieces)
{
    const float *scales = reinterpret_cast<const float *>(static_cast<const unsigned char *>(device) + tiles_bytes(in, out, pieces));
    return {in, out, pieces, device, scales, scales + padded_outputs(out)};
}

int linear_cuda(const struct linear_cuda *w, const struct linear_cuda_rows *rows, void *stream)
{
    if (!valid(*w, *rows))
        return -1;
    if (rows->rows == 0)
        return 0;
    const params p = params_of(*w, *rows);
    switch (rows->precision) {
    case PRECISION_BF16: return launch_any<1, 1>(p, stream);
    case PRECISION_TF32: return w->pieces == 1 ? launch_any<1, 2>(p, stream) : launch_any<2, 2>(p, stream);
    default: return w->pieces == 1 ? launch_any<1, 3>(p, stream) : launch_any<3, 3>(p, stream);
    }
}

int linear_cuda_pair(const struct linear_cuda *w, const struct linear_cuda_rows *rows, const struct linear_cuda *next,
                     const struct linear_cuda_rows *next_rows, void *stream)
{
    if (!valid(*w, *rows) || !valid(*next, *next_rows))
        return -1;
    if (rows->rows == 0)
        return 0;
    const pair_params p = {params_of(*w, *rows), params_of(*next, *next_rows)};
    if (rows->together && pair_takes(p.first, p.second))
        return ::rows::launch(pair, dim3(unsigned(ceil_div(rows->rows, pair_shape::ROWS))), pair_shape::THREADS, pair_shape::SHARED,
                            stream, p);
    const int error = linear_cuda(w, rows, stream);
    return error ? error : linear_cuda(next, next_rows, stream);
}
