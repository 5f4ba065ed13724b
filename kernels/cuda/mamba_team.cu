/* SPDX-License-Identifier: MIT */

/* A stack of Mamba layers in one launch for some hundred streams; mamba_team.h says what for, math.cuh in which
 * arithmetic.
 *
 * Block r of a team owns channels 64 r .. 64 r + 63 of E and outputs 32 r .. 32 r + 31 of D, for all rows of the pass.
 * A layer:
 *
 *   norm      every block norms all rows of x
 *   in_proj   its 64 rows of x and of z: 8 tiles of 16 outputs, a warp a tile and every second tile of 8 rows
 *   convolve  a thread is a channel of every eighth row, from here to y
 *   x_proj    blocks 2 r and 2 r + 1 of all 48 sums, each pair of rows to the block that adds them up  (meeting 1)
 *   mix       the sums of its own pairs of rows added up and sent to every block                       (meeting 2)
 *   scan      dt_proj, the step of its channels, y sent to every block                                 (meeting 3)
 *   out_proj  its 32 outputs, half of the inputs a warp; added up; the new x sent to every block       (meeting 4)
 *
 * A meeting is a mailbox in each block that counts the bytes it is sent. Nobody overwrites what another still reads: to
 * send in one meeting a block must have all it was sent in the one before, which the others sent after reading what
 * came in the meeting before that. After a pass nothing is sent until the next pass's meeting 1, whose mailbox was
 * emptied before this pass's meeting 2.
 *
 * Weights come by bulk copy, a layer's over the last one's as soon as those have been used; what the next layer has of
 * the states goes into a thread's registers, or as far as L2, as soon as it has this one's out of them. */

#include "kernels/cuda/mamba_team.h"

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.cuh"

namespace
{

using rows::to_float;

constexpr int D = 256, E = 512, N = 16, K = 4, R = 16;
constexpr int MIXED = R + 2 * N;
constexpr int BLOCKS = 8, WARPS = 16, THREADS = 32 * WARPS;
constexpr int MINE = E / BLOCKS; /* channels a block */
constexpr int OUTS = D / BLOCKS; /* outputs a block  */
constexpr int CHUNK = 1024;      /* bytes of a tile of 16 outputs by a block of 32 inputs */
/* Tiles of 8 rows a pass, at most: what there is shared memory for. */
template <int P> constexpr int TILES = P == PRECISION_BF16 ? 3 : 2;
constexpr unsigned ALL = 0xffffffffu;

struct params {
    mamba_cuda layer[MAMBA_TEAM_LAYERS];
    step_cuda step;
    float *x;
    int layers, passes, each; /* passes a team at most, rows a pass */
};

/* A row of a pass. */
struct row_place {
    int64_t state; /* element of the states at which the slot begins */
    int oldest;    /* row of the history's ring                      */
    float elapsed;
};

/* y between the blocks. */
template <int P> struct activation {
    using type = float;
};

template <> struct activation<PRECISION_BF16> {
    using type = uint16_t;
};

/* Rows are padded so that a warp's accesses fall into different banks. */
template <int P, int NT> struct alignas(128) team_shared {
    static constexpr int ROWS = 8 * NT, NORMED = 8 * ROWS + 8;
    using T = typename activation<P>::type;
    unsigned char in_weights[4 * D / 32 * 2][CHUNK]; /* 4 tiles of x, 4 of z               */
    unsigned char out_weights[2 * E / 32][CHUNK];
    unsigned char x_weights[3 * 2][CHUNK]; /* 3 tiles, blocks 2 r and 2 r + 1    */
    unsigned char dt_weights[4][CHUNK];
    float x[ROWS][D + 4];
    union {
        struct {
            uint16_t normed[P][D / 8][NORMED]; /* pieces: 8 inputs of all rows, 8 of the next */
            float xz[ROWS][2 * MINE + 4];
        };
        float4 ends[2 * NT][E / 64][32]; /* out_proj's upper blocks, as the tensor cores give them */
    };
    T y[ROWS][E + 8];
    uint16_t u[P][ROWS][MINE + 8];                 /* pieces */
    float partial[(NT + 1) / 2][E / 32][MIXED][2]; /* of the block's pairs of rows */
    float mixed[ROWS][MIXED + 4];
    float dt[ROWS][MINE + 4];
    row_place rows[2][ROWS]; /* by pass % 2 */
    uint64_t boxes[7];
};

enum { BOX_IN, BOX_SMALL, BOX_OUT, BOX_X, BOX_PARTIAL, BOX_MIXED, BOX_Y, BOXES };

/* The lane's weights of a chunk. */
__device__ __forceinline__ void operands(uint4 (&a)[1][2], const unsigned char *chunk, int lane)
{
    a[0][0] = *reinterpret_cast<const uint4 *>(chunk + lane * 16);
    a[0][1] = *reinterpret_cast<const uint4 *>(chunk + 512 + lane * 16);
}

/* The activations of a block of inputs for 8 rows: pieces `piece` values apart, rows `stride`, 8 inputs and the next
 * `next`. */
template <int P>
__device__ __forceinline__ void operands(uint2 (&b)[P][2], const uint16_t *rows, int piece, int stride, int next,
                                         int lane)
{
#pragma unroll
    for (int i = 0; i < P; i++) {
        const uint4 v = ptx::load_matrices(rows + i * piece + lane % 8 * stride + lane / 8 * next);
        b[i][0] = make_uint2(v.x, v.y);
        b[i][1] = make_uint2(v.z, v.w);
    }
}

/* The same of 8 rows that aren't pieces yet: the lane's row from its first value on. HALVES 1: of a block's lower half.
 */
template <int P, int HALVES> __device__ __forceinline__ void split_operands(uint2 (&b)[P][HALVES], const float *row)
{
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const float2 low = *reinterpret_cast<const float2 *>(row + 16 * half);
        const float2 high = *reinterpret_cast<const float2 *>(row + 16 * half + 8);
        uint32_t lows[P], highs[P];
        math::split(lows, low.x, low.y);
        math::split(highs, high.x, high.y);
#pragma unroll
        for (int i = 0; i < P; i++)
            b[i][half] = make_uint2(lows[i], highs[i]);
    }
}

__device__ __forceinline__ void add(float (&total)[4], const float (&c)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        total[i] = __fadd_rn(total[i], c[i]);
}

/* ---- a block of the team -------------------------------------------------------------------------------------- */

template <int P, int NT, class S> struct member {
    using memory = team_shared<P, NT>;
    static constexpr int ROWS = 8 * NT;

    const params &p;
    memory &shared;
    S *states;
    int rank, warp, lane, g, t;
    int first_row, end_row; /* of the team */
    int round, last_round;  /* layers gone through in all passes */
    int x_round;            /* meetings of BOX_X                 */

    int channel, e;                 /* the thread's, in the block and in E */
    S h[NT][N], history[NT][K - 1]; /* of rows warp / 2 + 8 j; the history as it lies */
    float u[NT], gate[NT];

    __device__ __forceinline__ member(const params &params_, unsigned char *shared_)
        : p(params_), shared(*reinterpret_cast<memory *>(shared_))
    {
        rank = int(cluster::rank());
        warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
        g = lane / 4, t = lane % 4;
        first_row = int(blockIdx.x) / BLOCKS * p.passes * p.each;
        end_row = min(p.step.rows, first_row + p.passes * p.each);
        round = 0, x_round = 0;
        last_round = (end_row - first_row + p.each - 1) / p.each * p.layers - 1;
        channel = warp % 2 * 32 + lane, e = rank * MINE + channel;
        states = static_cast<S *>(p.step.states);
    }

    __device__ __forceinline__ uint64_t *box(int i) const
    {
        return shared.boxes + i;
    }

    __device__ __forceinline__ const row_place &place(int pass, int row) const
    {
        return shared.rows[pass % 2][row];
    }

    __device__ __forceinline__ int rows_of(int pass) const
    {
        return min(p.each, end_row - first_row - pass * p.each);
    }

    /* ---- weights ---------------------------------------------------------------------------------------------- */

    static __device__ __forceinline__ const char *packed(const struct linear_cuda &w, int i)
    {
        return static_cast<const char *>(w.tiles) + i * CHUNK;
    }

    /* One warp each: a layer's weights, over the last one's. Chunks of a tile and of neighbouring tiles lie one after
     * the other. */
    __device__ __forceinline__ void fill_in(int layer)
    {
        if (lane == 0)
            ptx::barrier_expect(box(BOX_IN), sizeof shared.in_weights);
        __syncwarp();
        if (lane < 2) /* x, z */
            ptx::bulk_load(shared.in_weights[lane * 32],
                           packed(p.layer[layer].in_proj, (lane * (E / 16) + 4 * rank) * (D / 32)), 32 * CHUNK,
                           box(BOX_IN));
    }

    __device__ __forceinline__ void fill_small(int layer)
    {
        if (lane == 0)
            ptx::barrier_expect(box(BOX_SMALL), sizeof shared.x_weights + sizeof shared.dt_weights);
        __syncwarp();
        if (lane < 3)
            ptx::bulk_load(shared.x_weights[lane * 2], packed(p.layer[layer].x_proj, lane * (E / 32) + 2 * rank),
                           2 * CHUNK, box(BOX_SMALL));
        else if (lane == 3)
            ptx::bulk_load(shared.dt_weights, packed(p.layer[layer].dt_proj, 4 * rank), 4 * CHUNK, box(BOX_SMALL));
    }

    __device__ __forceinline__ void fill_out(int layer)
    {
        if (lane == 0) {
            ptx::barrier_expect(box(BOX_OUT), sizeof shared.out_weights);
            ptx::bulk_load(shared.out_weights, packed(p.layer[layer].out_proj, 2 * rank * (E / 32)), 2 * E / 32 * CHUNK,
                           box(BOX_OUT));
        }
    }

    /* The layer after this one, if there is one: of this pass, or the next pass's first. */
    __device__ __forceinline__ bool more() const
    {
        return round < last_round;
    }

    __device__ __forceinline__ int next(int layer) const
    {
        return layer + 1 < p.layers ? layer + 1 : 0;
    }

    /* ---- meetings --------------------------------------------------------------------------------------------- */

    /* Every block is sent this much a meeting: of the pairs of rows, block r adds up r and r + 8. */
    __device__ __forceinline__ void arm(int i)
    {
        const int pairs = (4 * NT - rank + BLOCKS - 1) / BLOCKS;
        const int bytes = i == BOX_X       ? ROWS * D * 4
                          : i == BOX_Y     ? int(ROWS * E * sizeof(typename memory::T))
                          : i == BOX_MIXED ? ROWS * MIXED * 4
                                           : pairs * (E / 32) * MIXED * 8;
        ptx::barrier_expect(box(i), uint32_t(bytes));
    }

    /* Whether the block has pairs of rows of its own. */
    __device__ __forceinline__ bool adds_up() const
    {
        return rank < 4 * NT;
    }

    /* All threads: wait for a meeting. Its mailbox is armed again if there is another one. */
    __device__ __forceinline__ void meet(int i, int which, bool again)
    {
        ptx::barrier_wait(box(i), which & 1);
        if (threadIdx.x == 0 && again)
            arm(i);
    }

    template <typename V> __device__ __forceinline__ void send(const void *place, int i, int to, V v) const
    {
        const uint32_t there = ptx::shared_address(place), arrived = ptx::shared_address(box(i));
        cluster::send(cluster::in_block(there, uint32_t(to)), cluster::in_block(arrived, uint32_t(to)), v);
    }

    /* ---- rows ------------------------------------------------------------------------------------------------- */

    /* The first warp: where a pass's rows are. */
    __device__ __forceinline__ void find_rows(int pass)
    {
        if (warp > 0 || lane >= rows_of(pass))
            return;
        const int row = first_row + pass * p.each + lane, slot = p.step.slots[row];
        shared.rows[pass % 2][lane] = {slot * p.step.state_stride, int(p.step.phase[slot] % (K - 1)),
                                       p.step.elapsed[row]};
    }

    /* What a row remembers of a layer into the thread's registers: for the convolution, and the states. The loads are
     * asked for long before they are used, but of the states, for which there are too few registers, only row 0's: those
     * of row j + 1 follow row j's, out of L2. */

    __device__ __forceinline__ void fetch_history(int j, int layer, int pass)
    {
        const int row = warp / 2 + 8 * j;
        const S *from = states + place(pass, row).state + p.layer[layer].state_at + e;
#pragma unroll
        for (int k = 0; k < K - 1; k++)
            history[j][k] = row < rows_of(pass) ? __ldcs(from + k * E) : S(0.0f);
    }

    __device__ __forceinline__ void fetch_states(int j, int layer, int pass)
    {
        const int row = warp / 2 + 8 * j;
        const S *from = states + place(pass, row).state + p.layer[layer].state_at + (K - 1) * E + e;
#pragma unroll
        for (int n = 0; n < N; n++)
            h[j][n] = row < rows_of(pass) ? __ldcs(from + n * E) : S(0.0f); /* always set: nothing is kept for it */
    }

    /* Of all rows what a layer begins with. */
    __device__ __forceinline__ void fetch(int layer, int pass)
    {
#pragma unroll
        for (int j = 0; j < NT; j++)
            fetch_history(j, layer, pass);
        fetch_states(0, layer, pass);
        bring_near(layer, pass);
    }

    /* The states of rows 8 and on into L2: a warp a row, a lane a line of 128 bytes of the block's channels. */
    __device__ __forceinline__ void bring_near(int layer, int pass) const
    {
        constexpr int LINES = MINE * int(sizeof(S)) / 128;
        const int row = 8 + warp;
        if (row >= rows_of(pass) || lane >= N * LINES)
            return;
        const S *from = states + place(pass, row).state + p.layer[layer].state_at + (K - 1) * E + rank * MINE;
        ptx::prefetch(from + lane / LINES * E + lane % LINES * (128 / int(sizeof(S))));
    }

    static __device__ __forceinline__ void put_state(float *p, float x)
    {
        __stcs(p, x);
    }

    static __device__ __forceinline__ void put_state(__nv_bfloat16 *p, float x)
    {
        __stcs(p, __float2bfloat16(x));
    }

    __device__ __forceinline__ void load_x(int pass)
    {
        const float *from = p.x + int64_t(first_row + pass * p.each) * D;
        for (int i = int(threadIdx.x); i < ROWS * (D / 4); i += THREADS) {
            const int row = i / (D / 4), k = i % (D / 4) * 4;
            float4 v = make_float4(0, 0, 0, 0);
            if (row < rows_of(pass))
                v = *reinterpret_cast<const float4 *>(from + row * D + k);
            *reinterpret_cast<float4 *>(&shared.x[row][k]) = v;
        }
    }

    __device__ __forceinline__ void start()
    {
        if (warp == 0) {
            if (lane < BOXES)
                ptx::barrier_init(box(lane));
            ptx::barrier_init_done();
            __syncwarp();
            fill_in(0), fill_small(0), fill_out(0);
            if (lane == 0) {
                arm(BOX_MIXED), arm(BOX_Y);
                if (adds_up())
                    arm(BOX_PARTIAL);
                if (p.layers > 1)
                    arm(BOX_X);
            }
        }
        cluster::arrive();
        find_rows(0);
        ptx::wait_for_kernels();
        ptx::start_next_kernel();
        __syncthreads();
        fetch(0, 0);
        cluster::wait();
    }

    /* ---- norm, in_proj ---------------------------------------------------------------------------------------- */

    __device__ __forceinline__ void norm(const float *weight)
    {
        float4 w[D / 128];
#pragma unroll
        for (int j = 0; j < D / 128; j++)
            w[j] = __ldg(reinterpret_cast<const float4 *>(weight) + 32 * j + lane);
        constexpr int OWN = (ROWS + WARPS - 1) / WARPS;
        float4 v[OWN][D / 128];
        float own = 0;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int row = min(warp + WARPS * i, ROWS - 1);
            float squares = 0;
#pragma unroll
            for (int j = 0; j < D / 128; j++) {
                v[i][j] = *reinterpret_cast<const float4 *>(&shared.x[row][128 * j + 4 * lane]);
                squares = fmaf(v[i][j].x, v[i][j].x, squares), squares = fmaf(v[i][j].y, v[i][j].y, squares);
                squares = fmaf(v[i][j].z, v[i][j].z, squares), squares = fmaf(v[i][j].w, v[i][j].w, squares);
            }
            squares = math::warp_sum(squares);
            own = lane == i ? squares : own;
        }
        own = math::scale_of(own, D); /* lane i finishes row i's: all at once */
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const float scale = __shfl_sync(ALL, own, i);
            if (warp + WARPS * i < ROWS)
                put_normed(warp + WARPS * i, v[i], scale, w);
        }
    }

    __device__ __forceinline__ void put_normed(int row, const float4 (&v)[D / 128], float scale,
                                               const float4 (&w)[D / 128])
    {
#pragma unroll
        for (int j = 0; j < D / 128; j++) {
            uint32_t low[P], high[P];
            math::split(low, math::normed(v[j].x, scale, w[j].x), math::normed(v[j].y, scale, w[j].y));
            math::split(high, math::normed(v[j].z, scale, w[j].z), math::normed(v[j].w, scale, w[j].w));
#pragma unroll
            for (int i = 0; i < P; i++)
                *reinterpret_cast<uint2 *>(&shared.normed[i][16 * j + lane / 2][8 * row + lane % 2 * 4]) =
                    make_uint2(low[i], high[i]);
        }
    }

    /* What passes from one product to the next. */
    static __device__ __forceinline__ float passed(float x)
    {
        return P == PRECISION_BF16 ? math::round_bf16(x) : x;
    }

    /* in_proj's tiles of rows: a warp has every GROUPS-th, or by wgmma four warps all of them. */
    static constexpr int GROUPS = NT > 1 && P > 1 ? 2 : 1, MOST = (NT + GROUPS - 1) / GROUPS;

    __device__ __forceinline__ void sum_bf16(float (&total)[MOST][4], int tile) const
    {
#pragma unroll 4
        for (int block = 0; block < D / 32; block++) {
            uint4 a[1][2];
            float c[4 * NT];
            operands(a, shared.in_weights[tile * (D / 32) + block], lane);
            ptx::mma_rows<NT>(c, a[0], shared.normed[0][4 * block], memory::NORMED * 2);
#pragma unroll
            for (int i = 0; i < 4 * NT; i++)
                total[i / 4][i % 4] = __fadd_rn(total[i / 4][i % 4], c[i]);
        }
    }

    __device__ __forceinline__ void sum_pieces(float (&total)[MOST][4], int tile, int first) const
    {
#pragma unroll 4
        for (int block = 0; block < D / 32; block++) {
            uint4 a[1][2];
            operands(a, shared.in_weights[tile * (D / 32) + block], lane);
#pragma unroll
            for (int j = 0; j < MOST; j++) {
                if (first + GROUPS * j >= NT)
                    continue;
                uint2 b[P][2];
                float c[4];
                operands(b, &shared.normed[0][4 * block][64 * (first + GROUPS * j)], D / 8 * memory::NORMED, 8,
                         memory::NORMED, lane);
                math::block_sum<1, P>(c, a, b);
                add(total[j], c);
            }
        }
    }

    __device__ __forceinline__ void in_proj(int layer)
    {
        const mamba_cuda &w = p.layer[layer];
        const int tile = warp % 8, first = warp / 8;
        const int output = (tile < 4 ? 0 : E) + rank * MINE + tile % 4 * 16 + g;
        const float scale[2] = {__ldg(w.in_proj.scale + output), __ldg(w.in_proj.scale + output + 8)};
        const float bias[2] = {__ldg(w.in_proj.bias + output), __ldg(w.in_proj.bias + output + 8)};
        ptx::barrier_wait(box(BOX_IN), round & 1);
        if (first >= GROUPS)
            return;
        float total[MOST][4] = {};
        if constexpr (P == PRECISION_BF16)
            sum_bf16(total, tile);
        else
            sum_pieces(total, tile, first);
#pragma unroll
        for (int j = 0; j < MOST; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (first + GROUPS * j < NT)
                    shared.xz[8 * (first + GROUPS * j) + 2 * t + i % 2][tile * 16 + g + i / 2 * 8] =
                        passed(fmaf(total[j][i], scale[i / 2], bias[i / 2]));
    }

    /* ---- convolve, x_proj, mix -------------------------------------------------------------------------------- */

    __device__ __forceinline__ void convolve(int layer, int pass)
    {
        const mamba_cuda &w = p.layer[layer];
        float weight[K];
#pragma unroll
        for (int k = 0; k < K; k++)
            weight[k] = __ldg(w.conv_weight + k * E + e);
        const float bias = w.conv_bias ? __ldg(w.conv_bias + e) : 0.0f;
#pragma unroll
        for (int j = 0; j < NT; j++) {
            const int row = warp / 2 + 8 * j;
            u[j] = gate[j] = 0;
            if (row < rows_of(pass)) {
                const row_place &at = place(pass, row);
                const float x = shared.xz[row][channel];
                float sum = bias;
#pragma unroll
                for (int k = 0; k < K - 1; k++)
                    sum = fmaf(weight[k], past(j, at.oldest, k), sum);
                u[j] = math::silu(fmaf(weight[K - 1], x, sum));
                gate[j] = math::silu(shared.xz[row][MINE + channel]);
                put_state(states + at.state + w.state_at + at.oldest * E + e, x);
            }
            put_u(row, u[j]);
        }
    }

    __device__ __forceinline__ void put_u(int row, float x)
    {
        uint32_t piece[P];
        math::split(piece, x, 0.0f);
#pragma unroll
        for (int i = 0; i < P; i++)
            shared.u[i][row][channel] = uint16_t(piece[i]);
    }

    /* Row k of the history, the oldest first. */
    __device__ __forceinline__ float past(int j, int oldest, int k) const
    {
        static_assert(K - 1 == 3, "one of three");
        const S *v = history[j];
        return to_float(oldest == 0 ? v[k] : oldest == 1 ? v[(k + 1) % 3] : v[(k + 2) % 3]);
    }

    __device__ __forceinline__ void x_proj()
    {
        ptx::barrier_wait(box(BOX_SMALL), round & 1);
        for (int task = warp; task < 6 * NT; task += WARPS) {
            const int tile = task % 3, half = task / 3 % 2, rows = task / 6;
            uint4 a[1][2];
            uint2 b[P][2];
            float c[4];
            operands(a, shared.x_weights[tile * 2 + half], lane);
            operands(b, &shared.u[0][8 * rows][half * 32], ROWS * (MINE + 8), MINE + 8, 8, lane);
            math::block_sum<1, P>(c, a, b);
            const int pair = 4 * rows + t;
#pragma unroll
            for (int i = 0; i < 2; i++)
                send(&shared.partial[pair / BLOCKS][2 * rank + half][tile * 16 + g + 8 * i][0], BOX_PARTIAL,
                     pair % BLOCKS, make_uint2(__float_as_uint(c[2 * i]), __float_as_uint(c[2 * i + 1])));
        }
    }

    /* dt, B and C of the block's rows to all blocks: a thread a sum of a row. */
    __device__ __forceinline__ void mix(int layer)
    {
        const struct linear_cuda &w = p.layer[layer].x_proj;
        if (!adds_up())
            return;
        const int i = int(threadIdx.x), slot = i / (2 * MIXED), sum = i % (2 * MIXED) / 2;
        const bool mine = slot * BLOCKS + rank < 4 * NT;
        const float scale = __ldg(w.scale + sum), bias = __ldg(w.bias + sum);
        meet(BOX_PARTIAL, round, more());
        if (i / 32 * 32 >= (NT + 1) / 2 * 2 * MIXED || !mine) /* whole warps */
            return;
        const float total = math::add_up<E / 32>(&shared.partial[slot][0][0][0] + i % (2 * MIXED), 2 * MIXED);
        const uint4 v = cluster::gather4(__float_as_uint(fmaf(total, scale, bias)), lane, 2);
        const int row = 2 * (slot * BLOCKS + rank) + i % 2;
#pragma unroll
        for (int k = 0; k < 2; k++)
            send(&shared.mixed[row][sum / 4 * 4], BOX_MIXED, sum % 4 * 2 + k, v);
    }

    /* ---- scan ------------------------------------------------------------------------------------------------- */

    /* dt of the block's channels, what softplus takes: a tile of 16 channels by 8 rows a warp. */
    __device__ __forceinline__ void dt_proj(int layer)
    {
        const struct linear_cuda &w = p.layer[layer].dt_proj;
        const int tile = warp % 4, first = warp / 4 * 8, output = rank * MINE + tile * 16 + g;
        const float scale[2] = {__ldg(w.scale + output), __ldg(w.scale + output + 8)};
        const float bias[2] = {__ldg(w.bias + output), __ldg(w.bias + output + 8)};
        meet(BOX_MIXED, round, more());
        if (warp >= 4 * NT)
            return;
        const uint4 a[1][1] = {{*reinterpret_cast<const uint4 *>(shared.dt_weights[tile] + lane * 16)}};
        uint2 b[P][1];
        float c[4];
        split_operands(b, shared.mixed[first + g] + 2 * t);
        math::block_sum<1, P, 1>(c, a, b);
#pragma unroll
        for (int i = 0; i < 4; i++)
            shared.dt[first + 2 * t + i % 2][tile * 16 + g + i / 2 * 8] = fmaf(c[i], scale[i / 2], bias[i / 2]);
    }

    /* The thread's channel of its j-th row over the step, in registers and back to the states; gives y. */
    template <bool ZOH>
    __device__ __forceinline__ float step_row(int j, const row_place &at, const float (&rate)[N], float skip,
                                              int64_t state_at)
    {
        const int row = warp / 2 + 8 * j;
        const float *B = shared.mixed[row] + R;
        const float delta = math::time_step(shared.dt[row][channel], at.elapsed);
        S *to = states + at.state + state_at + (K - 1) * E + e;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < N; n += 4) {
            const float4 b = *reinterpret_cast<const float4 *>(B + n), c = *reinterpret_cast<const float4 *>(B + N + n);
            const float bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float now = math::next_state<P, ZOH>(to_float(h[j][n + i]), rate[n + i], delta, u[j], bs[i]);
                put_state(to + (n + i) * E, now);
                sum = fmaf(cs[i], now, sum);
            }
        }
        return __fmul_rn(fmaf(skip, u[j], sum), gate[j]);
    }

    template <bool ZOH> __device__ __forceinline__ void scan(int layer, int pass, const float (&rate)[N], float skip)
    {
        const int then = layer + 1 < p.layers ? pass : pass + 1;
#pragma unroll
        for (int j = 0; j < NT; j++) {
            const int row = warp / 2 + 8 * j;
            const float y =
                row < rows_of(pass) ? step_row<ZOH>(j, place(pass, row), rate, skip, p.layer[layer].state_at) : 0.0f;
            send_y(row, y);
            if (j + 1 < NT)
                fetch_states(j + 1, layer, pass);
        }
        if (more())
            fetch(next(layer), then);
    }

    /* Neighbouring lanes have neighbouring channels: 16 bytes of them are sent at a time. */
    __device__ __forceinline__ void send_y(int row, float y) const
    {
        if constexpr (P == PRECISION_BF16) {
            const float other = __shfl_xor_sync(ALL, y, 1);
            const uint32_t pair = lane % 2 ? math::pack_bf16(other, y) : math::pack_bf16(y, other);
            send(&shared.y[row][e / 8 * 8], BOX_Y, lane % 8, cluster::gather4(pair, lane, 2));
        } else {
            const uint4 v = cluster::gather4(__float_as_uint(y), lane, 1);
#pragma unroll
            for (int k = 0; k < 2; k++)
                send(&shared.y[row][e / 4 * 4], BOX_Y, lane % 4 * 2 + k, v);
        }
    }

    __device__ __forceinline__ void scan_any(int layer, int pass)
    {
        const mamba_cuda &w = p.layer[layer];
        float rate[N];
#pragma unroll
        for (int n = 0; n < N; n++)
            rate[n] = math::rate<P>(__ldg(w.A + n * E + e), w.zoh);
        const float skip = __ldg(w.skip + e);
        dt_proj(layer);
        __syncthreads();
        if (warp == WARPS - 1 && more())
            fill_small(next(layer));
        if (w.zoh)
            scan<true>(layer, pass, rate, skip);
        else
            scan<false>(layer, pass, rate, skip);
    }

    /* ---- out_proj --------------------------------------------------------------------------------------------- */

    /* A warp has a tile of 16 outputs by 8 rows over half of the blocks of inputs. The lower half's warp adds up. */
    __device__ __forceinline__ void out_proj(int layer, int pass)
    {
        const struct linear_cuda &w = p.layer[layer].out_proj;
        const int task = warp % (2 * NT), upper = warp / (2 * NT), tile = task % 2, rows = task / 2 * 8;
        const int output = rank * OUTS + tile * 16 + g;
        const float scale[2] = {__ldg(w.scale + output), __ldg(w.scale + output + 8)};
        const float bias[2] = {__ldg(w.bias + output), __ldg(w.bias + output + 8)};
        ptx::barrier_wait(box(BOX_OUT), round & 1);
        meet(BOX_Y, round, more());
        float total[4] = {};
        if (upper < 2) {
#pragma unroll
            for (int i = 0; i < E / 64; i++) {
                const int block = upper * (E / 64) + i;
                uint4 a[1][2];
                uint2 b[P][2];
                float c[4];
                operands(a, shared.out_weights[tile * (E / 32) + block], lane);
                if constexpr (P == PRECISION_BF16)
                    operands(b, &shared.y[rows][block * 32], 0, E + 8, 8, lane);
                else
                    split_operands(b, &shared.y[rows + g][block * 32 + 2 * t]);
                math::block_sum<1, P>(c, a, b);
                if (upper)
                    shared.ends[task][i][lane] = make_float4(c[0], c[1], c[2], c[3]);
                else
                    add(total, c);
            }
        }
        __syncthreads();
        if (warp == WARPS - 1 && more())
            fill_out(next(layer));
        if (upper > 0)
            return;
#pragma unroll
        for (int i = 0; i < E / 64; i++) {
            const float4 v = shared.ends[task][i][lane];
            const float c[4] = {v.x, v.y, v.z, v.w};
            add(total, c);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            total[i] = __fadd_rn(shared.x[rows + 2 * t + i % 2][output + i / 2 * 8],
                                 fmaf(total[i], scale[i / 2], bias[i / 2]));
        put_x(total, rows, rank * OUTS + tile * 16, layer + 1 == p.layers, pass);
    }

    /* A tile's new x: at the end to where it came from, else to all blocks, four outputs of a row at a time. */
    __device__ __forceinline__ void put_x(const float (&x)[4], int rows, int output, bool last, int pass)
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = rows + 2 * t + i % 2, o = output + i / 2 * 8;
            if (last) {
                if (row < rows_of(pass))
                    p.x[int64_t(first_row + pass * p.each + row) * D + o + g] = x[i];
                continue;
            }
            const uint4 v = cluster::gather4(__float_as_uint(x[i]), lane, 4);
#pragma unroll
            for (int k = 0; k < 2; k++)
                send(&shared.x[row][o + g / 4 * 4], BOX_X, g % 4 * 2 + k, v);
        }
    }

    /* ---- a layer, a pass -------------------------------------------------------------------------------------- */

    __device__ __forceinline__ void advance(int layer, int pass)
    {
        norm(p.layer[layer].norm);
        ptx::shared_written(); /* wgmma reads it */
        __syncthreads();
        in_proj(layer);
        __syncthreads();
        if (warp == WARPS - 1 && more())
            fill_in(next(layer));
        convolve(layer, pass);
        __syncthreads();
        x_proj();
        mix(layer);
        scan_any(layer, pass);
        out_proj(layer, pass);
        round++;
    }

    __device__ __forceinline__ void run(int pass)
    {
        if (rows_of(pass + 1) > 0)
            find_rows(pass + 1);
        load_x(pass);
        __syncthreads();
        for (int layer = 0; layer < p.layers; layer++) {
            if (layer > 0) {
                meet(BOX_X, x_round++, more());
                __syncthreads(); /* ends have been read, which norm writes over */
            }
            advance(layer, pass);
        }
        __syncthreads(); /* x has been read */
    }
};

template <int P, int NT, class S>
__global__ void __launch_bounds__(THREADS, 1) advance(const __grid_constant__ params p)
{
    extern __shared__ __align__(128) unsigned char shared[];
    member<P, NT, S> mine(p, shared);
    mine.start();
    for (int pass = 0; mine.rows_of(pass) > 0; pass++)
        mine.run(pass);
}

/* ---- launching ------------------------------------------------------------------------------------------------ */

using shape = rows::cluster_kernel;

template <int P, int NT, class S> shape shape_of()
{
    return {reinterpret_cast<const void *>(advance<P, NT, S>), BLOCKS, THREADS, sizeof(team_shared<P, NT>)};
}

template <int P, class S> shape shape_for(int tiles)
{
    if constexpr (TILES<P> == 3)
        if (tiles == 3)
            return shape_of<P, 3, S>();
    return tiles == 1 ? shape_of<P, 1, S>() : shape_of<P, 2, S>();
}

/* States are bf16 only where everything is. No kernel: not such a one. */
shape find_shape(int precision, bool half, int tiles)
{
    if (half)
        return precision == PRECISION_BF16 ? shape_for<1, __nv_bfloat16>(tiles) : shape{};
    switch (precision) {
    case PRECISION_BF16:
        return shape_for<1, float>(tiles);
    case PRECISION_TF32:
        return shape_for<2, float>(tiles);
    case PRECISION_FP32:
        return shape_for<3, float>(tiles);
    default:
        return {};
    }
}

int most_tiles(int precision)
{
    return precision == PRECISION_BF16 ? TILES<PRECISION_BF16> : TILES<PRECISION_FP32>;
}

bool takes_layer(const mamba_cuda &w)
{
    return w.D == D && w.E == E && w.N == N && w.K == K && w.R == R && w.in_proj.pieces == 1 && w.x_proj.pieces == 1 &&
           w.dt_proj.pieces == 1 && w.out_proj.pieces == 1;
}

bool takes(const mamba_cuda *layers, int n)
{
    bool taken = n >= 1 && n <= MAMBA_TEAM_LAYERS;
    for (int i = 0; i < n && taken; i++)
        taken = takes_layer(layers[i]);
    return taken;
}

int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

} /* namespace */

extern "C" int mamba_team_streams(const mamba_cuda *layers, int n, int precision, int state_bf16)
{
    const int most = most_tiles(precision);
    return takes(layers, n) ? 8 * most * rows::clusters_at_once(find_shape(precision, state_bf16 != 0, most)) : 0;
}

extern "C" int mamba_team_step(const mamba_cuda *layers, int n, const step_cuda *step, float *x, void *stream)
{
    const int most = most_tiles(step->precision);
    const int teams = takes(layers, n) ? rows::clusters_at_once(find_shape(step->precision, step->state_bf16 != 0, most)) : 0;
    if (step->rows < 0 || teams == 0)
        return -1;
    if (step->rows == 0)
        return 0;
    params p = {};
    for (int i = 0; i < n; i++)
        p.layer[i] = layers[i];
    p.step = *step, p.x = x, p.layers = n;
    p.passes = ceil_div(step->rows, teams * most * 8);
    p.each = ceil_div(step->rows, teams * p.passes);
    const shape s = find_shape(step->precision, step->state_bf16 != 0, ceil_div(p.each, 8));
    return rows::launch_clusters(s, ceil_div(step->rows, p.passes * p.each), stream, p);
}
