/* SPDX-License-Identifier: MIT */

/* A stack of Mamba layers in one launch; mamba_cluster.h says what for, math.cuh in which arithmetic.
 *
 * Block r of a cluster owns channels 32 r .. 32 r + 31 of E and outputs 16 r .. 16 r + 15 of D, so that its channels
 * are exactly block r of 32 in the sums of x_proj and out_proj. Every block holds all streams' rows of x. A layer:
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
 * Weights come by bulk copy, seven a layer, as many layers ahead as fit beside the rest; a layer's slot is filled anew
 * as soon as its last reader is through. The vectors (slices of 32 floats) come a layer ahead by threads' copies, and
 * the lane's states into its registers: all of it asked for while a meeting's bytes are on their way, and none of it
 * waited for where the other blocks wait for this one. */

#include "kernels/cuda/mamba_cluster.h"

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.cuh"

namespace
{

constexpr int D = 256, E = 512, N = 16, K = 4, R = 16;
constexpr int MIXED = R + 2 * N;
constexpr int BLOCKS = 16, WARPS = 16, THREADS = 32 * WARPS;
constexpr int MINE = E / BLOCKS; /* channels a block, and inputs a block of a sum     */
constexpr int OUTS = D / BLOCKS; /* outputs a block, and outputs a tile               */
constexpr int MIXERS = 4;        /* the first warp of x_proj: those before convolve meanwhile */
constexpr int SHARED = 227 * 1024;
constexpr unsigned ALL = 0xffffffffu;

struct params {
    mamba_cuda layer[MAMBA_CLUSTER_LAYERS];
    step_cuda step;
    float *x;
    int layers;
};

/* A layer's vectors in shared memory: slices of 32 floats, the block's part of each. */
enum {
    SLICE_A,
    SLICE_CONV = SLICE_A + N,
    SLICE_NORM = SLICE_CONV + K,
    SLICE_CONV_BIAS = SLICE_NORM + D / 32,
    SLICE_SKIP,
    SLICE_DT_SCALE,
    SLICE_DT_BIAS,
    SLICE_IN_SCALE, /* of x, of z              */
    SLICE_IN_BIAS = SLICE_IN_SCALE + 2,
    SLICE_X_SCALE = SLICE_IN_BIAS + 2, /* one and a half, not a part */
    SLICE_X_BIAS = SLICE_X_SCALE + 2,
    SLICE_OUT_SCALE = SLICE_X_BIAS + 2, /* half a slice             */
    SLICE_OUT_BIAS,
    SLICES
};

/* What a kernel is made for, and where things lie in shared memory, in floats unless said otherwise. Rows are padded so
 * that a warp's accesses fall into different banks. */
template <int P_, int PW_, int W_, bool HALF_> struct plan {
    static constexpr int P = P_, PW = PW_; /* pieces of activations and of weights             */
    static constexpr int W = W_;           /* streams                                          */
    static constexpr bool HALF = HALF_;    /* bf16 states                                      */
    static constexpr int COLUMNS = W;      /* of a tile's 8; the others repeat them            */
    /* The lanes that would have the repeated columns share a channel's states. */
    static constexpr int PARTS = W == 8 ? 1 : W == 4 ? 2 : 4;
    static constexpr int STATES = N / PARTS;
    static constexpr int SCANNERS = W == 1 ? 4 : 8; /* warps */
    static constexpr int YS = P == 1 ? (E + 8) / 2 : E + 8;

    static constexpr int CHUNK = PW * 1024;     /* bytes: a tile of weights by 32 inputs */
    static constexpr int IN = 4 * D / 32;       /* chunks of in_proj                  */
    static constexpr int REST = 3 + 2 + E / 32; /* of x_proj, dt_proj, out_proj       */

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
    static constexpr int VECTORS = (Y + W * YS + 31) / 32 * 32; /* of two layers, in turn */
    static constexpr int END = VECTORS + 2 * SLICES * 32;

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
        int tile, half, pick; /* its tile of 16 and half tile in the block's channels, its register of mma's c */
        bool live;            /* the stream is there */
        state *states;        /* of the slot */
        int ring;             /* phase % (K - 1)     */
        float elapsed;
        float conv[K], conv_bias, skip, dt_scale, dt_bias;
        float scale[2], bias[2];                          /* of in_proj, for x and z */
        float rate[T::STATES], h[T::STATES], history[K - 1]; /* history as it lies, not yet in order */
        float x, z, u, gate;
        uint4 dt_proj[T::PW]; /* the lower halves of the tile's blocks */
    } my;

    float residual; /* of the thread's output */

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

    /* Values of a slice of a layer's vectors. */
    __device__ __forceinline__ float *vector(int layer, int slice) const
    {
        return f + T::VECTORS + (layer % 2 * SLICES + slice) * 32;
    }

    /* Where the i-th chunk of a packed matrix is. */
    static __device__ __forceinline__ const char *packed(const struct linear_cuda &w, int i)
    {
        return static_cast<const char *>(w.tiles) + i * T::CHUNK;
    }

    /* One warp: start filling a layer's slots. Chunks of a tile and of neighbouring tiles lie one after the other. */
    __device__ __forceinline__ void fill_in(int layer)
    {
        uint64_t *arrived = box(BOX_IN + layer % T::IN_SLOTS);
        if (lane == 0)
            ptx::barrier_expect(arrived, T::IN * T::CHUNK);
        __syncwarp();
        if (lane < 2) /* two tiles of x, two of z */
            ptx::bulk_load(in_chunk(layer, lane * T::IN / 2),
                           packed(p.layer[layer].in_proj, (lane * (E / 16) + 2 * rank) * (D / 32)),
                           T::IN / 2 * T::CHUNK, arrived);
    }

    __device__ __forceinline__ void fill_rest(int layer)
    {
        const mamba_cuda &w = p.layer[layer];
        uint64_t *arrived = box(BOX_REST + layer % T::REST_SLOTS);
        if (lane == 0)
            ptx::barrier_expect(arrived, T::REST * T::CHUNK);
        __syncwarp();
        if (lane < 3)
            ptx::bulk_load(rest_chunk(layer, lane), packed(w.x_proj, lane * (E / 32) + rank), T::CHUNK, arrived);
        else if (lane == 3)
            ptx::bulk_load(rest_chunk(layer, 3), packed(w.dt_proj, 2 * rank), 2 * T::CHUNK, arrived);
        else if (lane == 4)
            ptx::bulk_load(rest_chunk(layer, 5), packed(w.out_proj, rank * (E / 32)), E / 32 * T::CHUNK, arrived);
    }

    /* The last threads start copying a layer's vectors, 16 bytes each; they are there for all after wait_for_copies()
     * and a barrier. */
    __device__ __forceinline__ void fill_vectors(int layer)
    {
        const int i = int(threadIdx.x) - (THREADS - SLICES * 8), slice = i / 8, k = i % 8 * 4;
        if (i < 0)
            return;
        const mamba_cuda &w = p.layer[layer];
        const bool half = slice == SLICE_X_SCALE + 1 || slice == SLICE_X_BIAS + 1 || slice >= SLICE_OUT_SCALE;
        const float *from = slice_of(w, slice);
        if (!half || k < 16)
            ptx::copy_16(vector(layer, slice) + k, from ? from + k : w.skip, from != nullptr);
    }

    __device__ __forceinline__ const float *slice_of(const mamba_cuda &w, int slice) const
    {
        const int mine = rank * MINE;
        if (slice < SLICE_CONV)
            return w.A + slice * E + mine;
        if (slice < SLICE_NORM)
            return w.conv_weight + (slice - SLICE_CONV) * E + mine;
        if (slice < SLICE_CONV_BIAS)
            return w.norm + (slice - SLICE_NORM) * 32;
        switch (slice) {
        case SLICE_CONV_BIAS:
            return w.conv_bias ? w.conv_bias + mine : nullptr;
        case SLICE_SKIP:
            return w.skip + mine;
        case SLICE_DT_SCALE:
            return w.dt_proj.scale + mine;
        case SLICE_DT_BIAS:
            return w.dt_proj.bias + mine;
        case SLICE_IN_SCALE:
            return w.in_proj.scale + mine;
        case SLICE_IN_SCALE + 1:
            return w.in_proj.scale + E + mine;
        case SLICE_IN_BIAS:
            return w.in_proj.bias + mine;
        case SLICE_IN_BIAS + 1:
            return w.in_proj.bias + E + mine;
        case SLICE_X_SCALE:
            return w.x_proj.scale;
        case SLICE_X_SCALE + 1:
            return w.x_proj.scale + 32;
        case SLICE_X_BIAS:
            return w.x_proj.bias;
        case SLICE_X_BIAS + 1:
            return w.x_proj.bias + 32;
        case SLICE_OUT_SCALE:
            return w.out_proj.scale + rank * OUTS;
        default:
            return w.out_proj.bias + rank * OUTS;
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

    /* Addresses are worked out where they are used: the compiler would do it once, ahead of the layers, and keep more
     * of them than there are registers. */
    __device__ __forceinline__ void forget_addresses()
    {
        asm volatile("" : "+r"(rank), "+r"(warp), "+r"(lane), "+r"(g), "+r"(t), "+r"(my.channel), "+r"(my.stream));
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
        fill_vectors(0);
        ptx::wait_for_kernels();
        ptx::start_next_kernel();
        stand();
        load_rows();
        ptx::wait_for_copies();
        cluster::wait();
        __syncthreads();
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
        const int c = T::W == 1 ? warp / 2 % 2 * 2 : warp / 2 % 4,
                  column = 2 * t + c % 2; /* 8 warps: one each of mma's c */
        my.tile = warp % 2, my.half = c / 2, my.pick = c;
        my.channel = my.tile * 16 + my.half * 8 + g;
        my.e = rank * MINE + my.channel;
        my.stream = column % T::COLUMNS;
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
        fetch_history(0);
    }

    /* ---- ahead: what goes into a scanner's registers ---------------------------------------------------------- */

    __device__ __forceinline__ void fetch_history(int layer)
    {
        const state *from = my.states + p.layer[layer].state_at + my.e;
#pragma unroll
        for (int k = 0; k < K - 1; k++)
            my.history[k] = my.live ? load_state(from + k * E) : 0.0f;
    }

    __device__ __forceinline__ void fetch_states(int layer)
    {
        const state *from = my.states + p.layer[layer].state_at + (K - 1 + my.part * T::STATES) * E + my.e;
#pragma unroll
        for (int n = 0; n < T::STATES; n++)
            my.h[n] = my.live ? load_state(from + n * E) : 0.0f;
    }

    /* What convolve() needs of its channel. */
    __device__ __forceinline__ void take_input(int layer)
    {
        const float *v = vector(layer, 0) + my.channel;
#pragma unroll
        for (int k = 0; k < K; k++)
            my.conv[k] = v[(SLICE_CONV + k) * 32];
        my.conv_bias = v[SLICE_CONV_BIAS * 32];
#pragma unroll
        for (int i = 0; i < 2; i++)
            my.scale[i] = v[(SLICE_IN_SCALE + i) * 32], my.bias[i] = v[(SLICE_IN_BIAS + i) * 32];
    }

    /* What scan() needs of it. */
    __device__ __forceinline__ void take_channel(int layer)
    {
        const float *v = vector(layer, 0) + my.channel;
        my.skip = v[SLICE_SKIP * 32], my.dt_scale = v[SLICE_DT_SCALE * 32], my.dt_bias = v[SLICE_DT_BIAS * 32];
#pragma unroll
        for (int n = 0; n < T::STATES; n++)
            my.rate[n] = math::rate<T::P>(v[(SLICE_A + my.part * T::STATES + n) * 32], p.layer[layer].zoh);
        const unsigned char *chunk = rest_chunk(layer, 3 + my.tile) + lane * 16;
#pragma unroll
        for (int i = 0; i < T::PW; i++)
            my.dt_proj[i] = *reinterpret_cast<const uint4 *>(chunk + i * 1024);
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
        /* math::row_scale: dividing by a power of two is this product */
        const float mean = __fmul_rn(math::warp_sum(squares), 1.0f / D);
        return __frcp_rn(__fsqrt_rn(__fadd_rn(mean, 1e-5f)));
    }

    /* The scale of the row in the lane's column. One row: each warp for itself, to save a barrier. */
    __device__ __forceinline__ float scale_of_row()
    {
        if constexpr (T::W == 1)
            return row_scale(f + T::X);
        if (warp < T::W) {
            const float mine = row_scale(f + T::X + warp * T::XS);
            if (lane == 0)
                f[T::SCALES + warp] = mine;
        }
        __syncthreads();
        return f[T::SCALES + g % T::COLUMNS];
    }

    __device__ __forceinline__ void in_proj(int layer)
    {
        const int tile = warp % 4, first = warp / 4 * 2;
        uint4 a[2][T::PW][2];
        float2 weight[2][4], x[2][4];
        wait_in(layer);
        operands(a[0], in_chunk(layer, tile * 8 + first));
        operands(a[1], in_chunk(layer, tile * 8 + first + 1));
        if (T::W == 1)
            take_inputs(weight, vector(layer, SLICE_NORM + first));
        if (layer > 0)
            meet(BOX_X, layer - 1, layer + 1 < p.layers);
        take_inputs(x, f + T::X + g % T::COLUMNS * T::XS + 32 * first);
        const float scale = scale_of_row();
        if (T::W > 1) /* fewer registers live at once */
            take_inputs(weight, vector(layer, SLICE_NORM + first));
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++)
                x[i][j] = make_float2(math::normed(x[i][j].x, scale, weight[i][j].x),
                                      math::normed(x[i][j].y, scale, weight[i][j].y));
            uint2 b[T::P][2];
            split_inputs(b, x[i]);
            float c[4];
            math::block_sum<T::PW, T::P>(c, a[i], b);
            put_sums(f + T::SUMS + (first + i) * T::W * T::SS, T::SS, tile * 16, c);
        }
        __syncthreads();
        if (warp == WARPS - 1 && layer + T::IN_SLOTS < p.layers)
            fill_in(layer + T::IN_SLOTS);
        if (layer + 1 < p.layers)
            fill_vectors(layer + 1);
    }

    /* The lane's inputs, as the tensor cores take them, of two blocks of 32. */
    __device__ __forceinline__ void take_inputs(float2 (&v)[2][4], const float *row) const
    {
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i / 4][i % 4] = *reinterpret_cast<const float2 *>(row + 8 * i + 2 * t);
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
    __device__ __forceinline__ void put_sums(float *sums, int stride, int first, const float (&c)[4]) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int column = 2 * t + i % 2;
            if (column < T::COLUMNS)
                sums[column * stride + first + g + i / 2 * 8] = c[i];
        }
    }

    /* ---- convolve --------------------------------------------------------------------------------------------- */

    __device__ __forceinline__ void convolve(int layer)
    {
        take_input(layer);
        const float *sums = f + T::SUMS + my.stream * T::SS + my.channel;
        my.x = fmaf(math::add_up<8>(sums, T::W * T::SS), my.scale[0], my.bias[0]);
        my.z = fmaf(math::add_up<8>(sums + MINE, T::W * T::SS), my.scale[1], my.bias[1]);
        if constexpr (T::P == 1)
            my.x = math::round_bf16(my.x), my.z = math::round_bf16(my.z);
        float u = my.conv_bias;
#pragma unroll
        for (int k = 0; k < K - 1; k++)
            u = fmaf(my.conv[k], past(k), u);
        my.u = math::silu(fmaf(my.conv[K - 1], my.x, u));
        if (my.part == 0)
            f[T::U + my.stream * T::US + my.channel] = my.u;
    }

    /* Row k of the history, the oldest first. */
    __device__ __forceinline__ float past(int k) const
    {
        static_assert(K - 1 == 3, "one of three");
        const float *v = my.history;
        return my.ring == 0 ? v[k] : my.ring == 1 ? v[(k + 1) % 3] : v[(k + 2) % 3];
    }

    /* While the sums of x_proj are on their way: the gate, and what comes next. */
    __device__ __forceinline__ void prepare_scan(int layer)
    {
        fetch_states(layer);
        if (my.live && my.part == 0)
            store_state(my.states + p.layer[layer].state_at + my.ring * E + my.e, my.x);
        if (layer + 1 < p.layers)
            fetch_history(layer + 1);
        my.gate = math::silu(my.z);
        wait_rest(layer);
        take_channel(layer);
    }

    /* ---- x_proj and what comes of it -------------------------------------------------------------------------- */

    /* The last 12 warps: a tile of 16 sums each, to four blocks. Its weights are there before the first have u. */
    __device__ __forceinline__ void x_proj(int layer)
    {
        const int mixer = warp - MIXERS;
        uint4 a[T::PW][2];
        if (mixer >= 0) {
            wait_rest(layer);
            operands(a, rest_chunk(layer, mixer % 3));
        }
        if (warp < T::SCANNERS)
            convolve(layer);
        __syncthreads();
        if (mixer >= 0) {
            const float *u = f + T::U + g % T::COLUMNS * T::US + 2 * t;
            float2 v[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                v[j] = *reinterpret_cast<const float2 *>(u + 8 * j);
            uint2 b[T::P][2];
            split_inputs(b, v);
            float c[4];
            math::block_sum<T::PW, T::P>(c, a, b);
            send_partial(mixer % 3 * 16, mixer / 3 * 4, c);
        }
        if (warp < T::SCANNERS)
            prepare_scan(layer);
    }

    /* A tile's results to blocks to .. to + 3: (sum, stream), as many streams at once as one store takes. Where columns
     * repeat, lanes 2 and 3 of four have what 0 and 1 have, and each pair serves two of the blocks. */
    __device__ __forceinline__ void send_partial(int first, int to, const float (&c)[4]) const
    {
        const int row = first + g + t % 2 * 8;
        const float *place = f + T::PARTIAL + (rank * MIXED + row) * T::W;
        const bool odd = t % 2 != 0;
        const float own[2] = {odd ? c[2] : c[0], odd ? c[3] : c[1]}; /* columns 2t and 2t + 1 of that row */
        if constexpr (T::W == 1) {
            send_each<2>(place, to + t / 2 * 2, __float_as_uint(own[0]));
        } else if constexpr (T::W == 2) {
            send_each<2>(place, to + t / 2 * 2, make_uint2(__float_as_uint(own[0]), __float_as_uint(own[1])));
        } else {
            const float other0 = __shfl_xor_sync(ALL, odd ? c[0] : c[2], 1);
            const float other1 = __shfl_xor_sync(ALL, odd ? c[1] : c[3], 1);
            const uint2 mine = make_uint2(__float_as_uint(own[0]), __float_as_uint(own[1]));
            const uint2 next = make_uint2(__float_as_uint(other0), __float_as_uint(other1));
            const uint4 all =
                odd ? make_uint4(next.x, next.y, mine.x, mine.y) : make_uint4(mine.x, mine.y, next.x, next.y);
            if constexpr (T::W == 4)
                send_each<2>(place, to + t / 2 * 2, all);
            else
                send_each<4>(place + t / 2 * 4, to, all);
        }
    }

    /* To blocks first .. first + count - 1. */
    template <int count, typename V> __device__ __forceinline__ void send_each(const float *place, int first, V v) const
    {
        const uint32_t there = ptx::shared_address(place), arrived = ptx::shared_address(box(BOX_PARTIAL));
#pragma unroll
        for (int i = 0; i < count; i++) {
            const uint32_t to = uint32_t(first + i);
            cluster::send(cluster::in_block(there, to), cluster::in_block(arrived, to), v);
        }
    }

    /* dt, B and C of all streams from all blocks' parts. */
    __device__ __forceinline__ void mix(int layer)
    {
        const float *scale = vector(layer, SLICE_X_SCALE), *bias = vector(layer, SLICE_X_BIAS);
        meet(BOX_PARTIAL, layer, layer + 1 < p.layers);
#pragma unroll
        for (int j = 0; j < (MIXED * T::W + THREADS - 1) / THREADS; j++) {
            const int i = int(threadIdx.x) + j * THREADS, sum = i / T::W, stream = i % T::W;
            if (sum < MIXED) {
                const float total = math::add_up<BLOCKS>(f + T::PARTIAL + i, MIXED * T::W);
                const float y = fmaf(total, scale[sum], bias[sum]);
                if (sum < R)
                    f[T::DT + stream * T::DS + sum] = y;
                else
                    f[T::BC + stream * T::BS + sum - R] = y;
            }
        }
        ptx::wait_for_copies(); /* the next layer's vectors */
        __syncthreads();
    }

    /* ---- scan ------------------------------------------------------------------------------------------------- */

    /* dt_proj of the lane's channel. The upper half of its 32 inputs are zeros. */
    __device__ __forceinline__ float dt_proj() const
    {
        const float *dt = f + T::DT + g % T::COLUMNS * T::DS + 2 * t;
        const float2 low = *reinterpret_cast<const float2 *>(dt), high = *reinterpret_cast<const float2 *>(dt + 8);
        uint32_t b0[T::P], b1[T::P];
        math::split<T::P>(b0, low.x, low.y);
        math::split<T::P>(b1, high.x, high.y);
        uint4 a[T::PW][1];
        uint2 b[T::P][1];
#pragma unroll
        for (int i = 0; i < T::PW; i++)
            a[i][0] = my.dt_proj[i];
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
            my.h[n] = math::next_state<T::P, ZOH>(my.h[n], my.rate[n], delta, my.u, b.x);
            my.h[n + 1] = math::next_state<T::P, ZOH>(my.h[n + 1], my.rate[n + 1], delta, my.u, b.y);
            my.h[n + 2] = math::next_state<T::P, ZOH>(my.h[n + 2], my.rate[n + 2], delta, my.u, b.z);
            my.h[n + 3] = math::next_state<T::P, ZOH>(my.h[n + 3], my.rate[n + 3], delta, my.u, b.w);
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
        const float delta = math::time_step(dt_proj(), my.elapsed);
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
            const uint4 v = cluster::gather4(pair, lane, 8);
            const uint32_t there = ptx::shared_address(f + T::Y + my.stream * T::YS) + uint32_t(my.e / 8 * 16);
            if (mine) {
                cluster::send(cluster::in_block(there, uint32_t(g)), cluster::in_block(arrived, uint32_t(g)), v);
                cluster::send(cluster::in_block(there, uint32_t(g + 8)), cluster::in_block(arrived, uint32_t(g + 8)),
                              v);
            }
        } else {
            const uint4 v = cluster::gather4(__float_as_uint(y), lane, 4);
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
        operands(a, rest_chunk(layer, 5 + warp));
        const float scale = vector(layer, SLICE_OUT_SCALE)[output()], bias = vector(layer, SLICE_OUT_BIAS)[output()];
        meet(BOX_Y, layer, layer + 1 < p.layers);
        uint2 b[T::P][2];
        gated_inputs(b);
        float c[4];
        math::block_sum<T::PW, T::P>(c, a, b);
        put_sums(f + T::ENDS + warp * T::W * T::ES, T::ES, 0, c);
        __syncthreads();
        if (warp == WARPS - 1 && layer + T::REST_SLOTS < p.layers)
            fill_rest(layer + T::REST_SLOTS);
        if (output_stream() < (T::W + 1) / 2 * 2) /* whole warps */
            add_outputs(scale, bias, layer + 1 == p.layers);
    }

    __device__ __forceinline__ void gated_inputs(uint2 (&b)[T::P][2]) const
    {
        const float *y = f + T::Y + g % T::COLUMNS * T::YS;
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

    __device__ __forceinline__ void add_outputs(float scale, float bias, bool last)
    {
        const int stream = min(output_stream(), T::W - 1);
        const float total = math::add_up<BLOCKS>(f + T::ENDS + stream * T::ES + output(), T::W * T::ES);
        residual = __fadd_rn(residual, fmaf(total, scale, bias));
        if (last) {
            if (output_stream() < rows)
                p.x[int64_t(first_row + output_stream()) * D + rank * OUTS + output()] = residual;
            return;
        }
        const uint4 v = cluster::gather4(__float_as_uint(residual), lane, 1);
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
        mine.forget_addresses();
        mine.in_proj(layer);
        mine.x_proj(layer);
        mine.mix(layer);
        mine.scan(layer);
        mine.out_proj(layer);
    }
}

/* ---- launching -------------------------------------------------------------------------------------------------- */

using shape = rows::cluster_kernel;

template <class T> shape shape_of()
{
    static_assert(T::REST_SLOTS >= 1, "a layer must fit");
    return {reinterpret_cast<const void *>(advance<T>), BLOCKS, THREADS, size_t(T::BYTES)};
}

/* More pieces leave room for fewer streams. */
template <int P, int PW, bool HALF> shape shape_for(int together)
{
    switch (together) {
    case 1:
        return shape_of<plan<P, PW, 1, HALF>>();
    case 2:
        return shape_of<plan<P, PW, 2, HALF>>();
    case 4:
        return shape_of<plan<P, PW, 4, HALF>>();
    case 8:
        if constexpr (PW <= 2)
            return shape_of<plan<P, PW, 8, HALF>>();
        break;
    }
    return {};
}

/* States are bf16 only where everything is. No kernel: not such a one. */
shape find_shape(int precision, bool exact, bool half, int together)
{
    if (half)
        return precision == PRECISION_BF16 ? shape_for<1, 1, true>(together) : shape{};
    switch (precision) {
    case PRECISION_BF16:
        return shape_for<1, 1, false>(together);
    case PRECISION_TF32:
        return exact ? shape_for<2, 1, false>(together) : shape_for<2, 2, false>(together);
    case PRECISION_FP32:
        return exact ? shape_for<3, 1, false>(together) : shape_for<3, 3, false>(together);
    default:
        return {};
    }
}

bool takes_sizes(const mamba_cuda &w)
{
    return w.D == D && w.E == E && w.N == N && w.K == K && w.R == R;
}

/* Pieces that all the layers' matrices have: as many as the precision, or the one of int8. 0: they don't agree. */
int common_pieces(const mamba_cuda *layers, int n, int precision)
{
    int exact = 0, split = 0;
    for (int i = 0; i < n; i++) {
        const struct linear_cuda *all[] = {&layers[i].in_proj, &layers[i].x_proj, &layers[i].dt_proj,
                                           &layers[i].out_proj};
        for (const struct linear_cuda *w : all) {
            exact += w->pieces == 1;
            split += w->pieces == precision;
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
    *found = pieces ? find_shape(precision, pieces < precision, half, together) : shape{};
    return found->kernel != nullptr;
}

/* The fewest streams a cluster with which all rows run at once, or the most there is a kernel for. */
int pick_together(const mamba_cuda *layers, int n, int precision, bool half, int rows)
{
    shape s;
    if (!find_kernel(&s, layers, n, precision, half, 1))
        return -1;
    const int clusters = rows::clusters_at_once(s);
    int together = 1;
    while (together * clusters < rows && find_kernel(&s, layers, n, precision, half, 2 * together))
        together *= 2;
    return together;
}

} /* namespace */

extern "C" int mamba_cluster_streams(const mamba_cuda *layers, int n, int precision, int state_bf16)
{
    for (int together = 8; together >= 1; together /= 2) {
        shape s;
        if (find_kernel(&s, layers, n, precision, state_bf16 != 0, together))
            return together * rows::clusters_at_once(s);
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
    return rows::launch_clusters(s, (step->rows + together - 1) / together, stream, p);
}
