/* SPDX-License-Identifier: MIT */

/* A stack of Mamba layers in one launch; mamba_cluster.h says what for, math.cuh in which arithmetic.
 *
 * Block r of a cluster owns channels 32 r .. 32 r + 31 of E and outputs 16 r .. 16 r + 15 of D, so that its channels are
 * exactly block r of 32 in the sums of x_proj and out_proj. Every block holds all streams' rows of x. A layer:
 *
 *   in_proj   its 32 rows of x and 32 of z: 4 tiles of 16 outputs x 8 blocks of 32 inputs, 2 of these 32 a warp
 *   convolve  a lane adds up the blocks of its channel and stream, and makes u and the gate
 *   x_proj    block r of all 48 sums, sent to every block                                              (meeting 1)
 *   mix       all 16 blocks of the 48 sums added up, in every block
 *   scan      dt_proj, the step of its channels, y sent to every block                                 (meeting 2)
 *   out_proj  its 16 outputs, a block of 32 inputs a warp; added up; the new x sent to every block     (meeting 3)
 *
 * A meeting is a mailbox in each block that counts the bytes of all 16. Nobody overwrites what another still reads: to
 * send in one meeting a block must have all it was sent in the one before, which the others sent after reading what
 * came in the meeting before that.
 *
 * Weights come by bulk copy, in chunks of one tile x 32 inputs, as many layers ahead as fit beside the rest; a layer's
 * slot is filled anew as soon as its last reader is through. What a lane needs besides (its channel's vectors, states
 * and history) it loads into registers while the layer before ends. */

#include "kernels/cuda/mamba_cluster.h"

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/ptx.cuh"

namespace {

constexpr int D = 256, E = 512, N = 16, K = 4, R = 16;
constexpr int MIXED = R + 2 * N;
constexpr int BLOCKS = 16, WARPS = 16, THREADS = 32 * WARPS;
constexpr int MINE = E / BLOCKS; /* channels a block, and inputs a block of a sum     */
constexpr int OUTS = D / BLOCKS; /* outputs a block, and outputs a tile               */
constexpr int SHARED = 227 * 1024;
constexpr unsigned ALL = 0xffffffffu;

struct params {
    mamba_cuda layer[MAMBA_CLUSTER_LAYERS];
    step_cuda step;
    float *x;
    int layers;
};

/* What a kernel is made for, and where things lie in shared memory, in floats unless said otherwise. Rows are padded so
 * that a warp's accesses fall into different banks. */
template <int P_, int PW_, int W_, bool HALF_> struct plan {
    static constexpr int P = P_, PW = PW_; /* pieces of activations and of weights             */
    static constexpr int W = W_;           /* streams                                          */
    static constexpr bool HALF = HALF_;    /* bf16 states                                      */
    static constexpr int TILES = W > 8 ? W / 8 : 1;
    static constexpr int COLUMNS = W / TILES; /* streams a tile; its other columns repeat them    */
    /* The lanes that would have the repeated columns share a channel's states. */
    static constexpr int PARTS = W >= 8 ? 1 : W == 4 ? 2 : 4;
    static constexpr int STATES = N / PARTS;
    static constexpr int SCANNERS = W == 1 ? 4 : 8 * TILES; /* warps */
    static constexpr bool LATE = W >= 8; /* the states' registers are needed for in_proj first */
    static constexpr int YS = P == 1 ? (E + 8) / 2 : E + 8;

    static constexpr int CHUNK = PW * 1024;   /* bytes: a tile of weights by 32 inputs */
    static constexpr int IN = 4 * D / 32;     /* chunks of in_proj                      */
    static constexpr int REST = 3 + 2 + E / 32; /* of x_proj, dt_proj, out_proj           */

    static constexpr int SCALES = 32; /* after the mailboxes */
    static constexpr int X = SCALES + 16, XS = D + 8;
    static constexpr int SUMS = X + W * XS, SS = 2 * MINE + 4; /* (8, W): in_proj's blocks         */
    static constexpr int ENDS = SUMS, ES = OUTS + 8;           /* (16, W): out_proj's, in their place */
    static constexpr int SUMS_SIZE = W * (8 * SS > 16 * ES ? 8 * SS : 16 * ES);
    static constexpr int U = SUMS + SUMS_SIZE, US = MINE + 8;
    static constexpr int PARTIAL = U + W * US; /* (16 blocks, 48, W)                     */
    static constexpr int DT = PARTIAL + BLOCKS * MIXED * W, DS = R + 8;
    static constexpr int BC = DT + W * DS, BS = 2 * N + 4;
    static constexpr int Y = BC + W * BS;
    static constexpr int END = (Y + W * YS + 31) / 32 * 32;

    static constexpr int ROOM = SHARED - END * 4;
    static constexpr int BOTH = ROOM / ((IN + REST) * CHUNK);
    static constexpr int REST_SLOTS = BOTH > 4 ? 4 : BOTH;
    static constexpr int IN_SLOTS =
        REST_SLOTS + (REST_SLOTS < 4 && ROOM - REST_SLOTS * (IN + REST) * CHUNK >= IN * CHUNK ? 1 : 0);
    static constexpr int IN_AT = END * 4, REST_AT = IN_AT + IN_SLOTS * IN * CHUNK; /* bytes */
    static constexpr int BYTES = REST_AT + REST_SLOTS * REST * CHUNK;
};

/* Mailboxes, by their place in shared memory. */
enum { BOX_IN, BOX_REST = 4, BOX_X = 8, BOX_PARTIAL, BOX_Y };

__device__ __forceinline__ float load_state(const float *p)
{
    return *p;
}

__device__ __forceinline__ float load_state(const __nv_bfloat16 *p)
{
    return __bfloat162float(*p);
}

__device__ __forceinline__ void store_state(float *p, float x)
{
    *p = x;
}

__device__ __forceinline__ void store_state(__nv_bfloat16 *p, float x)
{
    *p = __float2bfloat16(x);
}

template <bool HALF> struct state_type {
    typedef float type;
};

template <> struct state_type<true> {
    typedef __nv_bfloat16 type;
};

/* count values, stride floats apart, added in ascending order. */
template <int count> __device__ __forceinline__ float add_up(const float *v, int stride)
{
    float x[count];
#pragma unroll
    for (int i = 0; i < count; i++)
        x[i] = v[i * stride];
#pragma unroll
    for (int i = 1; i < count; i++)
        x[0] = __fadd_rn(x[0], x[i]);
    return x[0];
}

/* Four lanes that differ in bits `step` and 2 `step` of their number have a value each; all get all. */
__device__ __forceinline__ uint4 gather4(uint32_t v, int lane, int step)
{
    const uint32_t other = __shfl_xor_sync(ALL, v, step);
    const bool odd = (lane & step) != 0, upper = (lane & 2 * step) != 0;
    const uint32_t a = odd ? other : v, b = odd ? v : other;
    const uint32_t c = __shfl_xor_sync(ALL, a, 2 * step), d = __shfl_xor_sync(ALL, b, 2 * step);
    return upper ? make_uint4(c, d, a, b) : make_uint4(a, b, c, d);
}

/* ---- a block of the cluster ----------------------------------------------------------------------------------- */

template <class T> struct block {
    typedef typename state_type<T::HALF>::type state;

    const params &p;
    unsigned char *shared;
    float *f; /* the same */
    int rank, warp, lane, g, t;
    int first_row, rows; /* of this cluster */

    /* A lane of the first SCANNERS warps has a channel of a stream, or some of its states. */
    struct {
        int stream, part, channel, e; /* channel in the block, and in E */
        int tile, half, pick;         /* its tile of 16 and half tile in the block's channels, its register of mma's c */
        bool live;                    /* the stream is there */
        state *states;                /* of the slot */
        int ring;                     /* phase % (K - 1)     */
        float elapsed;
        float conv[K], conv_bias, skip, dt_scale, dt_bias;
        float scale[2], bias[2]; /* of in_proj, for x and z */
        float A[T::STATES], h[T::STATES], history[K - 1];
        float u, gate;
    } my;

    float2 norm[2][4];                   /* of the inputs the lane takes in in_proj */
    float mixed_scale[2], mixed_bias[2]; /* of the thread's sums in mix             */
    float residual, out_scale, out_bias; /* of the thread's output                  */

    __device__ __forceinline__ block(const params &params_, unsigned char *shared_)
        : p(params_), shared(shared_), f(reinterpret_cast<float *>(shared_))
    {
        rank = int(cluster::rank());
        warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
        g = lane / 4, t = lane % 4;
        first_row = int(blockIdx.x) / BLOCKS * T::W;
        rows = min(T::W, p.step.rows - first_row);
    }

    __device__ __forceinline__ uint64_t *box(int i) const
    {
        return reinterpret_cast<uint64_t *>(shared) + i;
    }

    /* The i-th chunk of a layer's slot. */
    __device__ __forceinline__ unsigned char *in_chunk(int layer, int i) const
    {
        return shared + T::IN_AT + (layer % T::IN_SLOTS * T::IN + i) * T::CHUNK;
    }

    __device__ __forceinline__ unsigned char *rest_chunk(int layer, int i) const
    {
        return shared + T::REST_AT + (layer % T::REST_SLOTS * T::REST + i) * T::CHUNK;
    }

    /* The lane's operands from a chunk. */
    __device__ __forceinline__ void operands(uint4 (&a)[T::PW][2], const unsigned char *chunk) const
    {
#pragma unroll
        for (int i = 0; i < 2 * T::PW; i++)
            a[i / 2][i % 2] = *reinterpret_cast<const uint4 *>(chunk + i * 512 + lane * 16);
    }

    /* Where the chunk of tile `tile` and inputs 32 i .. of a packed matrix is. */
    __device__ __forceinline__ const char *packed(const struct linear_cuda &w, int tile, int i) const
    {
        return static_cast<const char *>(w.tiles) + int64_t(tile * ((w.in + 31) / 32) + i) * w.pieces * 1024;
    }

    /* One warp: start filling a layer's slot, a chunk a lane. */
    __device__ __forceinline__ void fill_in(int layer)
    {
        uint64_t *arrived = box(BOX_IN + layer % T::IN_SLOTS);
        if (lane == 0)
            ptx::barrier_expect(arrived, T::IN * T::CHUNK);
        __syncwarp();
        const int m = lane / 8; /* two tiles of x, two of z */
        const char *from = packed(p.layer[layer].in_proj, m / 2 * (E / 16) + 2 * rank + m % 2, lane % 8);
        ptx::bulk_load(in_chunk(layer, lane), from, T::CHUNK, arrived);
    }

    __device__ __forceinline__ void fill_rest(int layer)
    {
        const mamba_cuda &w = p.layer[layer];
        uint64_t *arrived = box(BOX_REST + layer % T::REST_SLOTS);
        if (lane == 0)
            ptx::barrier_expect(arrived, T::REST * T::CHUNK);
        __syncwarp();
        if (lane < T::REST) {
            const char *from = lane < 3   ? packed(w.x_proj, lane, rank)
                               : lane < 5 ? packed(w.dt_proj, 2 * rank + lane - 3, 0)
                                          : packed(w.out_proj, rank, lane - 5);
            ptx::bulk_load(rest_chunk(layer, lane), from, T::CHUNK, arrived);
        }
    }

    __device__ __forceinline__ void wait_in(int layer)
    {
        ptx::barrier_wait(box(BOX_IN + layer % T::IN_SLOTS), layer / T::IN_SLOTS & 1);
    }

    __device__ __forceinline__ void wait_rest(int layer)
    {
        ptx::barrier_wait(box(BOX_REST + layer % T::REST_SLOTS), layer / T::REST_SLOTS & 1);
    }

    /* Every block sends every block this much a meeting. */
    __device__ __forceinline__ void arm(int i)
    {
        const int each = i == BOX_X ? D * 4 : i == BOX_PARTIAL ? BLOCKS * MIXED * 4 : E * (T::P == 1 ? 2 : 4);
        const int bytes = T::W * each;
        ptx::barrier_expect(box(i), uint32_t(bytes));
    }

    /* All threads: wait for a layer's meeting. Its mailbox is armed again if there is another one. */
    __device__ __forceinline__ void meet(int i, int round, bool again)
    {
        ptx::barrier_wait(box(i), round & 1);
        if (threadIdx.x == 0 && again)
            arm(i);
    }

    /* ---- before the first layer ------------------------------------------------------------------------------- */

    __device__ __forceinline__ void start()
    {
        if (warp == 0) {
            if (lane <= BOX_Y)
                ptx::barrier_init(box(lane));
            ptx::barrier_init_done();
            __syncwarp();
            for (int i = 0; i < min(p.layers, T::IN_SLOTS); i++) {
                fill_in(i);
                if (i < T::REST_SLOTS)
                    fill_rest(i);
            }
            if (lane == 0) {
                arm(BOX_PARTIAL), arm(BOX_Y);
                if (p.layers > 1)
                    arm(BOX_X);
            }
            __syncwarp();
        }
        cluster::arrive();
        ptx::wait_for_kernels();
        ptx::start_next_kernel();
        stand();
        fetch(0);
        load_rows();
        cluster::wait();
    }

    __device__ __forceinline__ void load_rows()
    {
        for (int i = int(threadIdx.x); i < T::W * D / 4; i += THREADS) {
            const int s = i / (D / 4), k = i % (D / 4) * 4;
            float4 v = make_float4(0, 0, 0, 0);
            if (s < rows)
                v = *reinterpret_cast<const float4 *>(p.x + int64_t(first_row + s) * D + k);
            *reinterpret_cast<float4 *>(f + T::X + s * T::XS + k) = v;
        }
        residual = 0;
        if (output_stream() < rows)
            residual = p.x[int64_t(first_row + output_stream()) * D + rank * OUTS + output()];
    }

    /* Which channel and stream a lane has, and where the stream's state is. */
    __device__ __forceinline__ void stand()
    {
        const int c = T::W == 1 ? warp / 2 % 2 * 2 : warp / 2 % 4, column = 2 * t + c % 2;
        my.tile = warp % 2, my.half = c / 2, my.pick = c;
        my.channel = my.tile * 16 + my.half * 8 + g;
        my.e = rank * MINE + my.channel;
        my.stream = warp / 8 * 8 % T::W + column % T::COLUMNS;
        my.part = T::W == 1 ? t : T::W < 8 ? column / T::W : 0;
        my.live = warp < T::SCANNERS && my.stream < rows;
        my.states = static_cast<state *>(p.step.states);
        my.ring = 0, my.elapsed = 1;
        if (my.live) {
            const int slot = p.step.slots[first_row + my.stream];
            my.states += slot * p.step.state_stride;
            my.ring = int(p.step.phase[slot] % (K - 1));
            my.elapsed = p.step.elapsed[first_row + my.stream];
        }
    }

    /* ---- ahead of a layer: what goes into registers ----------------------------------------------------------- */

    __device__ __forceinline__ void fetch(int layer)
    {
        const mamba_cuda &w = p.layer[layer];
        if (warp < T::SCANNERS) {
            fetch_channel(w);
            if (!T::LATE)
                fetch_states(w);
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            norm[i / 4][i % 4] =
                *reinterpret_cast<const float2 *>(w.norm + (warp / 4 * 2 + i / 4) * 32 + i % 4 * 8 + 2 * t);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int sum = min((int(threadIdx.x) + i * THREADS) / T::W, MIXED - 1);
            mixed_scale[i] = w.x_proj.scale[sum], mixed_bias[i] = w.x_proj.bias[sum];
        }
    }

    __device__ __forceinline__ void fetch_channel(const mamba_cuda &w)
    {
#pragma unroll
        for (int k = 0; k < K; k++)
            my.conv[k] = w.conv_weight[k * E + my.e];
        my.conv_bias = w.conv_bias ? w.conv_bias[my.e] : 0.0f;
        my.skip = w.skip[my.e];
        my.dt_scale = w.dt_proj.scale[my.e], my.dt_bias = w.dt_proj.bias[my.e];
#pragma unroll
        for (int i = 0; i < 2; i++)
            my.scale[i] = w.in_proj.scale[i * E + my.e], my.bias[i] = w.in_proj.bias[i * E + my.e];
        const state *from = my.states + w.state_at + my.e;
#pragma unroll
        for (int k = 0; k < K - 1; k++)
            my.history[k] = my.live ? load_state(from + (my.ring + k) % (K - 1) * E) : 0.0f;
    }

    __device__ __forceinline__ void fetch_states(const mamba_cuda &w)
    {
        const state *from = my.states + w.state_at + (K - 1 + my.part * T::STATES) * E + my.e;
#pragma unroll
        for (int n = 0; n < T::STATES; n++) {
            my.A[n] = w.A[(my.part * T::STATES + n) * E + my.e];
            my.h[n] = my.live ? load_state(from + n * E) : 0.0f;
        }
    }

    /* ---- in_proj ---------------------------------------------------------------------------------------------- */

    __device__ __forceinline__ float row_scale(const float *x) const
    {
        float squares = 0;
#pragma unroll
        for (int j = 0; j < D / 128; j++) {
            const float4 v = *reinterpret_cast<const float4 *>(x + 128 * j + 4 * lane);
            squares = fmaf(v.x, v.x, squares), squares = fmaf(v.y, v.y, squares);
            squares = fmaf(v.z, v.z, squares), squares = fmaf(v.w, v.w, squares);
        }
        return math::row_scale(squares, D);
    }

    /* The scale of the row in the lane's column of each tile. One row: each warp for itself, to save a barrier. */
    __device__ __forceinline__ void scales(float (&scale)[T::TILES])
    {
        if constexpr (T::W == 1) {
            scale[0] = row_scale(f + T::X);
        } else {
            if (warp < T::W) {
                const float mine = row_scale(f + T::X + warp * T::XS);
                if (lane == 0)
                    f[T::SCALES + warp] = mine;
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < T::TILES; i++)
                scale[i] = f[T::SCALES + i * 8 + g % T::COLUMNS];
        }
    }

    __device__ __forceinline__ void in_proj(int layer)
    {
        const int tile = warp % 4, first = warp / 4 * 2;
        uint4 a[2][T::PW][2];
        wait_in(layer);
        operands(a[0], in_chunk(layer, tile * 8 + first));
        operands(a[1], in_chunk(layer, tile * 8 + first + 1));
        if (layer > 0)
            meet(BOX_X, layer - 1, layer + 1 < p.layers);
        else
            __syncthreads();
        float scale[T::TILES];
        scales(scale);
#pragma unroll
        for (int n = 0; n < T::TILES; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint2 b[T::P][2];
                normed_inputs(b, n, first + i, scale[n], norm[i]);
                float c[4];
                math::block_sum<T::PW, T::P>(c, a[i], b);
                put_sums(f + T::SUMS + (first + i) * T::W * T::SS, T::SS, n, tile * 16, c);
            }
        if (T::LATE && warp < T::SCANNERS)
            fetch_states(p.layer[layer]);
        __syncthreads();
        if (warp == WARPS - 1 && layer + T::IN_SLOTS < p.layers)
            fill_in(layer + T::IN_SLOTS);
    }

    /* Inputs 32 i .. of the row in the lane's column, as the tensor cores take them. */
    __device__ __forceinline__ void normed_inputs(uint2 (&b)[T::P][2], int n, int i, float scale,
                                                  const float2 (&weight)[4]) const
    {
        const float *x = f + T::X + (n * 8 + g % T::COLUMNS) * T::XS + 32 * i + 2 * t;
        float2 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v[j] = *reinterpret_cast<const float2 *>(x + 8 * j);
            v[j] = make_float2(math::normed(v[j].x, scale, weight[j].x), math::normed(v[j].y, scale, weight[j].y));
        }
        split_inputs(b, v);
    }

    static __device__ __forceinline__ void split_inputs(uint2 (&b)[T::P][2], const float2 (&v)[4])
    {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t low[T::P], high[T::P];
            math::split<T::P>(low, v[2 * half].x, v[2 * half].y);
            math::split<T::P>(high, v[2 * half + 1].x, v[2 * half + 1].y);
#pragma unroll
            for (int i = 0; i < T::P; i++)
                b[i][half] = make_uint2(low[i], high[i]);
        }
    }

    /* A tile's results of outputs first .. first + 15 into rows of sums, a stream a row. */
    __device__ __forceinline__ void put_sums(float *sums, int stride, int n, int first, const float (&c)[4]) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int column = 2 * t + i % 2;
            if (column < T::COLUMNS)
                sums[(n * 8 + column) * stride + first + g + i / 2 * 8] = c[i];
        }
    }

    /* ---- convolve --------------------------------------------------------------------------------------------- */

    __device__ __forceinline__ void convolve(int layer)
    {
        if (warp < T::SCANNERS) {
            const float *sums = f + T::SUMS + my.stream * T::SS + my.channel;
            float x = fmaf(add_up<8>(sums, T::W * T::SS), my.scale[0], my.bias[0]);
            float z = fmaf(add_up<8>(sums + MINE, T::W * T::SS), my.scale[1], my.bias[1]);
            if constexpr (T::P == 1)
                x = math::round_bf16(x), z = math::round_bf16(z);
            float u = my.conv_bias;
#pragma unroll
            for (int k = 0; k < K - 1; k++)
                u = fmaf(my.conv[k], my.history[k], u);
            my.u = math::silu(fmaf(my.conv[K - 1], x, u));
            if (my.part == 0) {
                f[T::U + my.stream * T::US + my.channel] = my.u;
                if (my.live)
                    store_state(my.states + p.layer[layer].state_at + my.ring * E + my.e, x);
            }
            my.gate = math::silu(z);
        }
        __syncthreads();
    }

    /* ---- x_proj and what comes of it -------------------------------------------------------------------------- */

    /* Warps 0..11: a tile of 16 sums each, to four blocks. */
    __device__ __forceinline__ void x_proj(int layer)
    {
        if (warp >= 12)
            return;
        const int tile = warp % 3;
        uint4 a[T::PW][2];
        wait_rest(layer);
        operands(a, rest_chunk(layer, tile));
#pragma unroll
        for (int n = 0; n < T::TILES; n++) {
            const float *u = f + T::U + (n * 8 + g % T::COLUMNS) * T::US + 2 * t;
            float2 v[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                v[j] = *reinterpret_cast<const float2 *>(u + 8 * j);
            uint2 b[T::P][2];
            split_inputs(b, v);
            float c[4];
            math::block_sum<T::PW, T::P>(c, a, b);
            send_partial(tile * 16, n, c);
        }
    }

    /* A tile's results to blocks 4 (warp / 3) ..: (sum, stream), as many streams at once as one store takes. Where
     * columns repeat, lanes 2 and 3 of four have what 0 and 1 have, and each pair serves two of the blocks. */
    __device__ __forceinline__ void send_partial(int first, int n, const float (&c)[4]) const
    {
        const int row = first + g + t % 2 * 8;
        const float *place = f + T::PARTIAL + (rank * MIXED + row) * T::W;
        const bool odd = t % 2 != 0;
        const float own[2] = {odd ? c[2] : c[0], odd ? c[3] : c[1]}; /* columns 2t and 2t + 1 of that row */
        if constexpr (T::W == 1) {
            send_each<2>(place, t / 2, __float_as_uint(own[0]));
        } else if constexpr (T::W == 2) {
            send_each<2>(place, t / 2, make_uint2(__float_as_uint(own[0]), __float_as_uint(own[1])));
        } else {
            const float other0 = __shfl_xor_sync(ALL, odd ? c[0] : c[2], 1);
            const float other1 = __shfl_xor_sync(ALL, odd ? c[1] : c[3], 1);
            const uint2 mine = make_uint2(__float_as_uint(own[0]), __float_as_uint(own[1]));
            const uint2 next = make_uint2(__float_as_uint(other0), __float_as_uint(other1));
            const uint4 all = odd ? make_uint4(next.x, next.y, mine.x, mine.y)
                                  : make_uint4(mine.x, mine.y, next.x, next.y);
            if constexpr (T::W == 4)
                send_each<2>(place, t / 2, all);
            else
                send_each<4>(place + n * 8 + t / 2 * 4, 0, all);
        }
    }

    /* To `count` of the warp's four blocks, from the group-th such group. */
    template <int count, typename V> __device__ __forceinline__ void send_each(const float *place, int group, V v) const
    {
        const uint32_t there = ptx::shared_address(place), arrived = ptx::shared_address(box(BOX_PARTIAL));
#pragma unroll
        for (int i = 0; i < count; i++) {
            const uint32_t to = uint32_t(warp / 3 * 4 + group * count + i);
            cluster::send(cluster::in_block(there, to), cluster::in_block(arrived, to), v);
        }
    }

    /* dt, B and C of all streams from all blocks' parts. */
    __device__ __forceinline__ void mix(int layer)
    {
        out_scale = p.layer[layer].out_proj.scale[rank * OUTS + output()];
        out_bias = p.layer[layer].out_proj.bias[rank * OUTS + output()];
        meet(BOX_PARTIAL, layer, layer + 1 < p.layers);
#pragma unroll
        for (int j = 0; j < (MIXED * T::W + THREADS - 1) / THREADS; j++) {
            const int i = int(threadIdx.x) + j * THREADS, sum = i / T::W, stream = i % T::W;
            if (sum < MIXED) {
                const float total = add_up<BLOCKS>(f + T::PARTIAL + i, MIXED * T::W);
                const float y = fmaf(total, mixed_scale[j], mixed_bias[j]);
                if (sum < R)
                    f[T::DT + stream * T::DS + sum] = y;
                else
                    f[T::BC + stream * T::BS + sum - R] = y;
            }
        }
        __syncthreads();
    }

    /* ---- scan ------------------------------------------------------------------------------------------------- */

    /* dt_proj of the lane's channel. The upper half of its 32 inputs are zeros. */
    __device__ __forceinline__ float dt_proj(int layer) const
    {
        const unsigned char *chunk = rest_chunk(layer, 3 + my.tile) + lane * 16;
        const float *dt = f + T::DT + (warp / 8 * 8 % T::W + g % T::COLUMNS) * T::DS + 2 * t;
        const float2 low = *reinterpret_cast<const float2 *>(dt), high = *reinterpret_cast<const float2 *>(dt + 8);
        uint32_t b0[T::P], b1[T::P];
        math::split<T::P>(b0, low.x, low.y);
        math::split<T::P>(b1, high.x, high.y);
        uint4 a[T::PW][1];
        uint2 b[T::P][1];
#pragma unroll
        for (int i = 0; i < T::PW; i++)
            a[i][0] = *reinterpret_cast<const uint4 *>(chunk + i * 1024);
#pragma unroll
        for (int i = 0; i < T::P; i++)
            b[i][0] = make_uint2(b0[i], b1[i]);
        float c[4];
        math::block_sum<T::PW, T::P, 1>(c, a, b);
        const float upper = my.pick % 2 ? c[3] : c[2], lower = my.pick % 2 ? c[1] : c[0];
        return fmaf(my.half ? upper : lower, my.dt_scale, my.dt_bias);
    }

    template <bool ZOH> __device__ __forceinline__ void move_states(float delta, const float *B)
    {
#pragma unroll
        for (int n = 0; n < T::STATES; n += 4) {
            const float4 b = *reinterpret_cast<const float4 *>(B + n);
            my.h[n] = math::next_state<ZOH>(my.h[n], my.A[n], delta, my.u, b.x);
            my.h[n + 1] = math::next_state<ZOH>(my.h[n + 1], my.A[n + 1], delta, my.u, b.y);
            my.h[n + 2] = math::next_state<ZOH>(my.h[n + 2], my.A[n + 2], delta, my.u, b.z);
            my.h[n + 3] = math::next_state<ZOH>(my.h[n + 3], my.A[n + 3], delta, my.u, b.w);
        }
    }

    /* <C, h>, the lanes of a channel one after the other; right in the last one. */
    __device__ __forceinline__ float read_out(const float *C) const
    {
        constexpr int apart = T::W == 4 ? 2 : 1; /* lanes */
        float sum = 0;
#pragma unroll
        for (int part = 0; part < T::PARTS; part++) {
            if (part > 0)
                sum = __shfl_up_sync(ALL, sum, apart);
#pragma unroll
            for (int n = 0; n < T::STATES; n += 4) {
                const float4 c = *reinterpret_cast<const float4 *>(C + n);
                sum = fmaf(c.x, my.h[n], sum), sum = fmaf(c.y, my.h[n + 1], sum);
                sum = fmaf(c.z, my.h[n + 2], sum), sum = fmaf(c.w, my.h[n + 3], sum);
            }
        }
        return sum;
    }

    __device__ __forceinline__ void scan(int layer)
    {
        if (warp >= T::SCANNERS)
            return;
        const float *B = f + T::BC + my.stream * T::BS + my.part * T::STATES;
        const float delta = math::time_step(dt_proj(layer), my.elapsed);
        if (p.layer[layer].zoh)
            move_states<true>(delta, B);
        else
            move_states<false>(delta, B);
        const float y = __fmul_rn(fmaf(my.skip, my.u, read_out(B + N)), my.gate);
        send_y(y);
        store_states(layer);
    }

    /* The channels of eight lanes, 4 apart, are neighbours in one stream's row of y. */
    __device__ __forceinline__ void send_y(float y) const
    {
        const uint32_t arrived = ptx::shared_address(box(BOX_Y));
        const bool mine = my.part == T::PARTS - 1;
        if constexpr (T::P == 1) {
            const float other = __shfl_xor_sync(ALL, y, 4);
            const uint32_t pair = g % 2 ? math::pack_bf16(other, y) : math::pack_bf16(y, other);
            const uint4 v = gather4(pair, lane, 8);
            const uint32_t there = ptx::shared_address(f + T::Y + my.stream * T::YS) + uint32_t(my.e / 8 * 16);
            if (mine) {
                cluster::send(cluster::in_block(there, uint32_t(g)), cluster::in_block(arrived, uint32_t(g)), v);
                cluster::send(cluster::in_block(there, uint32_t(g + 8)), cluster::in_block(arrived, uint32_t(g + 8)), v);
            }
        } else {
            const uint4 v = gather4(__float_as_uint(y), lane, 4);
            const uint32_t there = ptx::shared_address(f + T::Y + my.stream * T::YS + my.e / 4 * 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t to = uint32_t(g % 4 * 4 + i);
                if (mine)
                    cluster::send(cluster::in_block(there, to), cluster::in_block(arrived, to), v);
            }
        }
    }

    __device__ __forceinline__ void store_states(int layer) const
    {
        state *to = my.states + p.layer[layer].state_at + (K - 1 + my.part * T::STATES) * E + my.e;
        if (my.live) {
#pragma unroll
            for (int n = 0; n < T::STATES; n++)
                store_state(to + n * E, my.h[n]);
        }
    }

    /* ---- out_proj --------------------------------------------------------------------------------------------- */

    /* The first 16 W threads have an output each. */
    static __device__ __forceinline__ int output()
    {
        return int(threadIdx.x) % OUTS;
    }

    static __device__ __forceinline__ int output_stream()
    {
        return int(threadIdx.x) / OUTS;
    }

    __device__ __forceinline__ void out_proj(int layer)
    {
        uint4 a[T::PW][2];
        wait_rest(layer);
        operands(a, rest_chunk(layer, 5 + warp));
        meet(BOX_Y, layer, layer + 1 < p.layers);
#pragma unroll
        for (int n = 0; n < T::TILES; n++) {
            uint2 b[T::P][2];
            gated_inputs(b, n);
            float c[4];
            math::block_sum<T::PW, T::P>(c, a, b);
            put_sums(f + T::ENDS + warp * T::W * T::ES, T::ES, n, 0, c);
        }
        __syncthreads();
        if (warp == WARPS - 1 && layer + T::REST_SLOTS < p.layers)
            fill_rest(layer + T::REST_SLOTS);
        if (output_stream() < (T::W + 1) / 2 * 2) /* whole warps */
            add_outputs(layer + 1 == p.layers);
    }

    __device__ __forceinline__ void gated_inputs(uint2 (&b)[T::P][2], int n) const
    {
        const float *y = f + T::Y + (n * 8 + g % T::COLUMNS) * T::YS;
        if constexpr (T::P == 1) {
            const uint32_t *pairs = reinterpret_cast<const uint32_t *>(y) + warp * 16 + t;
            b[0][0] = make_uint2(pairs[0], pairs[4]);
            b[0][1] = make_uint2(pairs[8], pairs[12]);
        } else {
            float2 v[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                v[j] = *reinterpret_cast<const float2 *>(y + warp * 32 + 8 * j + 2 * t);
            split_inputs(b, v);
        }
    }

    __device__ __forceinline__ void add_outputs(bool last)
    {
        const int stream = min(output_stream(), T::W - 1);
        const float total = add_up<BLOCKS>(f + T::ENDS + stream * T::ES + output(), T::W * T::ES);
        residual = __fadd_rn(residual, fmaf(total, out_scale, out_bias));
        if (last) {
            if (output_stream() < rows)
                p.x[int64_t(first_row + output_stream()) * D + rank * OUTS + output()] = residual;
            return;
        }
        const uint4 v = gather4(__float_as_uint(residual), lane, 1);
        const uint32_t there = ptx::shared_address(f + T::X + stream * T::XS + rank * OUTS + output() / 4 * 4);
        const uint32_t arrived = ptx::shared_address(box(BOX_X));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t to = uint32_t(output() % 4 * 4 + i);
            if (output_stream() < T::W)
                cluster::send(cluster::in_block(there, to), cluster::in_block(arrived, to), v);
        }
    }
};

template <class T> __global__ void __launch_bounds__(THREADS, 1) advance(const __grid_constant__ params p)
{
    extern __shared__ __align__(128) unsigned char shared[];
    block<T> mine(p, shared);
    mine.start();
    for (int layer = 0; layer < p.layers; layer++) {
        mine.in_proj(layer);
        mine.convolve(layer);
        mine.x_proj(layer);
        mine.mix(layer);
        mine.scan(layer);
        if (layer + 1 < p.layers)
            mine.fetch(layer + 1);
        mine.out_proj(layer);
    }
}

/* ---- launching -------------------------------------------------------------------------------------------------- */

/* How a launch looks. */
struct shape {
    const void *kernel;
    int bytes; /* of shared memory */
};

template <class T> shape shape_of()
{
    static_assert(T::REST_SLOTS >= 1, "a layer must fit");
    return {reinterpret_cast<const void *>(advance<T>), T::BYTES};
}

/* More pieces leave room for fewer streams. */
template <int P, int PW, bool HALF> shape shape_for(int together)
{
    switch (together) {
    case 1: return shape_of<plan<P, PW, 1, HALF>>();
    case 2: return shape_of<plan<P, PW, 2, HALF>>();
    case 4: return shape_of<plan<P, PW, 4, HALF>>();
    case 8: if constexpr (PW <= 2) return shape_of<plan<P, PW, 8, HALF>>(); break;
    case 16: if constexpr (PW == 1) return shape_of<plan<P, PW, 16, HALF>>(); break;
    }
    return {nullptr, 0};
}

/* States are bf16 only where everything is. No kernel: not such a one. */
shape find_shape(int precision, bool exact, bool half, int together)
{
    if (half)
        return precision == PRECISION_BF16 ? shape_for<1, 1, true>(together) : shape{nullptr, 0};
    switch (precision) {
    case PRECISION_BF16: return shape_for<1, 1, false>(together);
    case PRECISION_TF32: return exact ? shape_for<2, 1, false>(together) : shape_for<2, 2, false>(together);
    case PRECISION_FP32: return exact ? shape_for<3, 1, false>(together) : shape_for<3, 3, false>(together);
    default: return {nullptr, 0};
    }
}

bool takes_sizes(const mamba_cuda &w)
{
    return w.D == D && w.E == E && w.N == N && w.K == K && w.R == R;
}

/* Pieces that all the layers' matrices have at least; exact: the one piece of int8. 0: they don't agree. */
int common_pieces(const mamba_cuda *layers, int n, int precision)
{
    int exact = 0, split = 0;
    for (int i = 0; i < n; i++) {
        const struct linear_cuda *all[] = {&layers[i].in_proj, &layers[i].x_proj, &layers[i].dt_proj, &layers[i].out_proj};
        for (const struct linear_cuda *w : all) {
            exact += w->pieces == 1;
            split += w->pieces >= precision;
        }
    }
    return split == 4 * n ? precision : exact == 4 * n ? 1 : 0;
}

bool find_kernel(shape *found, const mamba_cuda *layers, int n, int precision, bool half, int together)
{
    if (n < 1 || n > MAMBA_CLUSTER_LAYERS)
        return false;
    for (int i = 0; i < n; i++)
        if (!takes_sizes(layers[i]))
            return false;
    const int pieces = common_pieces(layers, n, precision);
    *found = pieces ? find_shape(precision, pieces < precision, half, together) : shape{nullptr, 0};
    return found->kernel != nullptr;
}

cudaLaunchConfig_t configure(const shape &s, int clusters, cudaLaunchAttribute (&attributes)[2], cudaStream_t stream)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(clusters) * BLOCKS);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = size_t(s.bytes);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = BLOCKS;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    return config;
}

cudaError_t permit(const shape &s)
{
    const cudaError_t e = cudaFuncSetAttribute(s.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, s.bytes);
    return e ? e : cudaFuncSetAttribute(s.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

/* Clusters that run side by side; 0 with no room for one, or on another kind of device. */
int clusters_at_once(const shape &s)
{
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = configure(s, 1, attributes, nullptr);
    config.numAttrs = 1;
    int clusters = 0;
    if (permit(s) || cudaOccupancyMaxActiveClusters(&clusters, s.kernel, &config)) {
        cudaGetLastError(); /* it is answered, not a fault */
        return 0;
    }
    return clusters;
}

/* The fewest streams a cluster with which all rows run at once, or the most there is a kernel for. */
int pick_together(const mamba_cuda *layers, int n, int precision, bool half, int rows)
{
    shape s;
    if (!find_kernel(&s, layers, n, precision, half, 1))
        return -1;
    const int clusters = clusters_at_once(s);
    int together = 1;
    while (together * clusters < rows && find_kernel(&s, layers, n, precision, half, 2 * together))
        together *= 2;
    return together;
}

} /* namespace */

extern "C" int mamba_cluster_streams(const mamba_cuda *layers, int n, int precision, int state_bf16)
{
    for (int together = 16; together >= 1; together /= 2) {
        shape s;
        if (find_kernel(&s, layers, n, precision, state_bf16 != 0, together))
            return together * clusters_at_once(s);
    }
    return 0;
}

extern "C" int mamba_cluster_step(const mamba_cuda *layers, int n, const step_cuda *step, float *x, int together,
                                  void *stream)
{
    shape s;
    const bool half = step->state_bf16 != 0;
    if (together == 0)
        together = pick_together(layers, n, step->precision, half, step->rows);
    if (step->rows < 0 || !find_kernel(&s, layers, n, step->precision, half, together))
        return -1;
    if (step->rows == 0)
        return 0;
    params p = {};
    for (int i = 0; i < n; i++)
        p.layer[i] = layers[i];
    p.step = *step, p.x = x, p.layers = n;
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config =
        configure(s, (step->rows + together - 1) / together, attributes, static_cast<cudaStream_t>(stream));
    void *values[] = {&p};
    const cudaError_t e = permit(s);
    return e ? e : cudaLaunchKernelExC(&config, s.kernel, values);
}
