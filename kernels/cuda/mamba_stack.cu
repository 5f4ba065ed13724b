/* SPDX-License-Identifier: MIT */

/* Mamba layers over many streams; mamba_stack.h says what for, math.cuh in which arithmetic, three pieces an
 * activation.
 *
 * A block has its multiprocessor to itself and takes its rows of the batch, in tiles of up to TILE, through all layers
 * without meeting another block. Two thirds of its threads make, each a channel, the others scan, each two:
 *
 *   make   out_proj of the layer before, added to x; in_proj, its x and z to the workspace; convolution, x_proj (a
 * warp's channels are one block of its inputs), dt_proj (two tiles of its outputs); u and delta to the workspace scan
 * the tile's rows one after the other; y to the workspace
 *
 * Two tiles go abreast: while one is scanned the other is made. The copy engine brings h, row after row and layer after
 * layer, into a ring in shared memory and takes it away again. What makers and scanners give each other passes through
 * L2, where only this block looks for it. */

#include "kernels/cuda/mamba_stack.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/rows.cuh"

namespace
{

using rows::put;
using rows::to_float;

constexpr int P = PRECISION_FP32; /* pieces of activations */
constexpr int D = 256, E = 512, N = 16, K = 4, R = 16, MIXED = R + 2 * N;
constexpr int HISTORY = (K - 1) * E, STATES = N * E;
constexpr int WARPS = E / 32, THREADS = E;                  /* makers   */
constexpr int SCAN_WARPS = WARPS / 2, SCAN_THREADS = E / 2; /* scanners */
constexpr int TILE = 16, ABREAST = 2, CONVOLVED = 4;
constexpr unsigned ALL = 0xffffffffu;

struct params {
    mamba_cuda layer[MAMBA_STACK_LAYERS];
    step_cuda step;
    float *x;
    float *xz, *y, *u, *delta; /* (rows, 2 E), then (rows, E) each */
    int layers;
    int tiles; /* of a block's rows: a multiple of ABREAST */
};

/* A tile's rows in shared memory: (P, TILE, IN + 8) bf16. The 16 bytes after each row keep the fragments' loads apart.
 */
template <int IN_> struct stage {
    static constexpr int IN = IN_, STRIDE = IN + 8, PIECE = TILE * STRIDE;
};

constexpr int largest(int a, int b)
{
    return a > b ? a : b;
}

/* What a kernel is made for. */
template <int PW_, class S> struct plan {
    static constexpr int PW = PW_; /* pieces of weights */
    using state = S;
    static constexpr int RING = 16 / int(sizeof(S)); /* places for h                      */
    static constexpr int DEPTH = PW == 1 ? 2 : 1;    /* blocks of weights asked for ahead */
};

/* ---- shared memory ------------------------------------------------------------------------------------------ */

constexpr int SUM_ROW = MIXED + 4, CHANNEL_ROW = 36; /* floats; 4 more than needed, against bank conflicts */

/* A row of a tile. */
struct row_place {
    int64_t state; /* element of the states at which the slot begins */
    int oldest;    /* row of the history's ring                      */
    float elapsed;
};

/* What the carrier of states has to do next. */
struct to_come {
    int items;            /* sent for so far                         */
    int pass, layer, row; /* of the next to send for                 */
    int rows, first;      /* the block's in the pass; 0 rows: no more */
    void *home;           /* of h in the ring's last place used      */
};

struct alignas(128) known {
    float mixed[ABREAST][TILE][MIXED]; /* dt, B, C */
    row_place rows[ABREAST][TILE];
    to_come next;
    uint64_t made[ABREAST], scanned[ABREAST], full[8], used[8];
};

/* What the front of a layer needs, in the place of a product's rows. */
struct alignas(128) tile_work {
    float corners[WARPS][TILE * SUM_ROW]; /* a warp's: sums (TILE, MIXED), then dt of its channels (TILE, 32) */
    float u[WARPS][TILE][CHANNEL_ROW];
};

template <class T> struct place {
    static constexpr int WORK = largest(int(sizeof(tile_work)), 2 * P * stage<E>::PIECE) / 128 * 128 + 128;
    static constexpr int H = int(sizeof(known)) + WORK;
    static constexpr int BYTES = H + T::RING * STATES * int(sizeof(typename T::state));
};

/* The i-th of n parts of a whole, as equal as can be. */
struct part {
    int first, rows;

    __device__ __forceinline__ part(int whole, int n, int i)
    {
        const int each = int(unsigned(whole) / unsigned(n)), rest = whole - each * n;
        first = i * each + min(i, rest), rows = each + (i < rest);
    }
};

/* Makers and scanners go pass by pass, layer by layer, through the tiles that are abreast. */
struct visit {
    int number = 0, pass = 0, layer = 0, side = 0; /* number: of the visits to this side */

    __device__ __forceinline__ void next(int layers)
    {
        if (++side < ABREAST)
            return;
        side = 0, number++;
        if (++layer == layers)
            layer = 0, pass++;
    }
};

/* ---- a block ------------------------------------------------------------------------------------------------ */

template <class T> struct block {
    using S = typename T::state;

    const params &p;
    known &shared;
    unsigned char *work;
    S *h;
    int warp, lane, channel; /* of the makers, or of the scanners */

    __device__ __forceinline__ block(const params &p_, unsigned char *memory)
        : p(p_), shared(*reinterpret_cast<known *>(memory)), work(memory + sizeof(known)),
          h(reinterpret_cast<S *>(memory + place<T>::H))
    {
        channel = int(threadIdx.x) % THREADS, warp = channel / 32, lane = channel % 32;
    }

    __device__ __forceinline__ void start() const
    {
        if (threadIdx.x == 0) {
            for (int i = 0; i < ABREAST; i++) {
                ptx::barrier_init(&shared.made[i], WARPS);
                ptx::barrier_init(&shared.scanned[i], SCAN_WARPS);
            }
            for (int i = 0; i < T::RING; i++) {
                ptx::barrier_init(&shared.full[i]);
                ptx::barrier_init(&shared.used[i], SCAN_WARPS);
            }
            ptx::barrier_init_done();
        }
        __syncthreads();
    }

    __device__ __forceinline__ S *place_of(int item) const
    {
        return h + item % T::RING * STATES;
    }

    /* A tile of the batch, with the rows of `count` tiles. */
    __device__ __forceinline__ part tiles_at(int tile, int count = 1) const
    {
        const part own(p.step.rows, int(gridDim.x), int(blockIdx.x));
        part here(own.rows, p.tiles, tile);
        const part last(own.rows, p.tiles, tile + count - 1);
        here.rows = last.first + last.rows - here.first, here.first += own.first;
        return here;
    }

    __device__ __forceinline__ int passes() const
    {
        return p.tiles / ABREAST;
    }

    /* One arrival of a warp, when its lanes are done. */
    __device__ __forceinline__ void warp_arrives(uint64_t *barrier) const
    {
        __syncwarp();
        if (lane == 0)
            ptx::barrier_arrive(barrier);
    }
};

/* ---- products ----------------------------------------------------------------------------------------------- */

/* The lane's weights of one block of inputs for one tile of outputs. */
template <int PW>
__device__ __forceinline__ void load_weights(uint4 (&a)[PW][2], const struct linear_cuda &w, int tile, int block,
                                             int lane)
{
    const uint4 *tiles =
        static_cast<const uint4 *>(w.tiles) + (int64_t(tile) * (w.in / 32) + block) * w.pieces * 64 + lane;
#pragma unroll
    for (int i = 0; i < PW; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            a[i][half] = __ldg(tiles + (2 * i + half) * 32);
}

/* The activations of one block for 8 rows, the first of which is at `xs`. */
template <class A> __device__ __forceinline__ void load_rows(uint2 (&b)[P][2], const uint16_t *xs, int lane)
{
    const uint16_t *row = xs + lane % 8 * A::STRIDE + lane / 8 * 8;
#pragma unroll
    for (int i = 0; i < P; i++) {
        const uint4 v = ptx::load_matrices(row + i * A::PIECE);
        b[i][0] = make_uint2(v.x, v.y);
        b[i][1] = make_uint2(v.z, v.w);
    }
}

/* A warp's part of a product of a tile: TILES x 16 outputs, the warp's from `warp` TILES on. The weights of its blocks
 * of inputs lie one behind the other; DEPTH of them are asked for ahead. */
template <class T, class A, int TILES> struct warp_product {
    static constexpr int BLOCKS = A::IN / 32, ALL_BLOCKS = TILES * BLOCKS, DEPTH = T::DEPTH;
    static_assert(BLOCKS % DEPTH == 0, "weights stay in place");

    uint4 a[DEPTH][T::PW][2];
    const struct linear_cuda &w;
    int warp, lane;

    __device__ __forceinline__ warp_product(const struct linear_cuda &w_, int warp_, int lane_)
        : w(w_), warp(warp_), lane(lane_)
    {
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            load_weights<T::PW>(a[d], w, 0, warp * ALL_BLOCKS + d, lane);
    }

    /* With rows staged at xs, the second 8 of them if there are so many; put(tile, totals) gets each tile's. */
    template <class Put> __device__ __forceinline__ void run(const uint16_t *xs, bool second, Put put)
    {
        const int apart = second ? 8 * A::STRIDE : 0;
#pragma unroll 1
        for (int tile = 0; tile < TILES; tile++) {
            float total[2][4] = {};
#pragma unroll 1
            for (int block = 0; block < BLOCKS; block += DEPTH) {
#pragma unroll
                for (int d = 0; d < DEPTH; d++) {
                    add_block(total, a[d], xs + (block + d) * 32, apart);
                    const int next = tile * BLOCKS + block + d + DEPTH;
                    if (next < ALL_BLOCKS)
                        load_weights<T::PW>(a[d], w, 0, warp * ALL_BLOCKS + next, lane);
                }
            }
            put(warp * TILES + tile, total);
        }
    }

    __device__ __forceinline__ void add_block(float (&total)[2][4], const uint4 (&weights)[T::PW][2],
                                              const uint16_t *xs, int apart) const
    {
        uint2 b[2][P][2];
#pragma unroll
        for (int n = 0; n < 2; n++)
            load_rows<A>(b[n], xs + n * apart, lane);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            float c[4];
            math::block_sum<T::PW, P>(c, weights, b[n]);
#pragma unroll
            for (int i = 0; i < 4; i++)
                total[n][i] = __fadd_rn(total[n][i], c[i]);
        }
    }
};

/* A lane's 2 x 2 results of a tile, outputs g and g + 8 of rows 2t and 2t + 1, as neighbouring outputs of row 2t + g %
 * 2: low has outputs g - g % 2 and the next, high those 8 further. */
__device__ __forceinline__ void neighbours(float2 &low, float2 &high, const float (&y)[4], int lane)
{
    const bool odd = lane / 4 % 2;
    const float from_low = __shfl_xor_sync(ALL, odd ? y[0] : y[1], 4);
    const float from_high = __shfl_xor_sync(ALL, odd ? y[2] : y[3], 4);
    low = odd ? make_float2(from_low, y[1]) : make_float2(y[0], from_low);
    high = odd ? make_float2(from_high, y[3]) : make_float2(y[2], from_high);
}

__device__ __forceinline__ void put_neighbours(float *row, const float2 &low, const float2 &high, int lane, bool real)
{
    float *to = row + lane / 8 * 2;
    if (real) {
        *reinterpret_cast<float2 *>(to) = low;
        *reinterpret_cast<float2 *>(to + 8) = high;
    }
}

/* ---- states coming and going --------------------------------------------------------------------------------- */

/* What one thread of the scanners does beside its channel: sends for h of the rows to come, as far as the ring has
 * places, and sends h of rows that all warps have moved back. Rows come pass by pass, layer by layer. */
template <class T> struct carrier : block<T> {
    using typename block<T>::S;
    using block<T>::p;
    using block<T>::shared;

    __device__ __forceinline__ explicit carrier(const block<T> &b) : block<T>(b)
    {
    }

    __device__ __forceinline__ void enter(int pass) const
    {
        shared.next.pass = pass, shared.next.row = shared.next.layer = shared.next.rows = 0;
        if (pass < this->passes()) {
            const part mine = this->tiles_at(pass * ABREAST, ABREAST);
            shared.next.rows = mine.rows, shared.next.first = mine.first;
        }
    }

    __device__ __forceinline__ void begin() const
    {
        shared.next.items = 0;
        enter(0);
        fill(T::RING);
    }

    /* Sends for all rows up to that item. */
    __device__ __forceinline__ void fill(int items) const
    {
        to_come &next = shared.next;
#pragma unroll 1
        while (next.items < items && next.rows > 0) {
            uint64_t *full = &shared.full[next.items % T::RING];
            ptx::barrier_expect(full, STATES * sizeof(S));
            ptx::bulk_load_once(this->place_of(next.items), home(next.layer, next.first + next.row), STATES * sizeof(S),
                                full);
            next.items++;
            if (++next.row == next.rows) {
                next.row = 0;
                if (++next.layer == p.layers)
                    enter(next.pass + 1);
            }
        }
    }

    /* Where h of a row of the batch lives. */
    __device__ __forceinline__ S *home(int layer, int row) const
    {
        return static_cast<S *>(p.step.states) + p.step.slots[row] * p.step.state_stride + p.layer[layer].state_at +
               HISTORY;
    }

    /* Sends back the h before this item's when all warps have used it. */
    __device__ __forceinline__ void take_away(int item) const
    {
        const int before = item - 1;
        ptx::barrier_wait(&shared.used[before % T::RING], uint32_t(before / T::RING % 2));
        ptx::bulk_store_once(shared.next.home, this->place_of(before), STATES * sizeof(S));
        ptx::bulk_commit();
    }

    /* At the beginning of an item: the one before goes, and as many are sent for as have left but for that one. */
    __device__ __forceinline__ void advance(int layer, int row, int item) const
    {
        if (item > 0) {
            take_away(item);
            ptx::bulk_wait_read<1>();
            fill(item - 1 + T::RING);
        }
        shared.next.home = home(layer, row);
    }

    __device__ __forceinline__ void end(int items) const
    {
        take_away(items);
        ptx::bulk_wait();
    }
};

/* ---- making ------------------------------------------------------------------------------------------------- */

/* A maker's channel of the convolution. */
struct conv_weights {
    float weight[K], bias;

    __device__ __forceinline__ conv_weights(const mamba_cuda &layer, int e)
    {
#pragma unroll
        for (int k = 0; k < K; k++)
            weight[k] = __ldg(layer.conv_weight + k * E + e);
        bias = layer.conv_bias ? __ldg(layer.conv_bias + e) : 0.0f;
    }
};

/* A warp's share of the small products: x_proj's block of inputs and dt_proj's tiles of outputs with its channels. */
template <int PW> struct warp_weights {
    uint4 x[MIXED / 16][PW][2], dt[2][PW][1];

    __device__ __forceinline__ void load(const mamba_cuda &layer, int warp, int lane)
    {
        const uint4 *dt_tiles = static_cast<const uint4 *>(layer.dt_proj.tiles) + lane;
#pragma unroll
        for (int m = 0; m < MIXED / 16; m++)
            load_weights<PW>(x[m], layer.x_proj, m, warp, lane);
#pragma unroll
        for (int i = 0; i < PW; i++)
#pragma unroll
            for (int m = 0; m < 2; m++)
                dt[m][i][0] = __ldg(dt_tiles + ((2 * warp + m) * layer.dt_proj.pieces + i) * 2 * 32);
    }
};

/* The lane's pairs of a row of floats for one half of a block of inputs, as pieces. */
__device__ __forceinline__ void split_half(uint2 (&b)[P], const float *row, int t)
{
    uint32_t low[P], high[P];
    math::split(low, row[2 * t], row[2 * t + 1]);
    math::split(high, row[2 * t + 8], row[2 * t + 9]);
#pragma unroll
    for (int i = 0; i < P; i++)
        b[i] = make_uint2(low[i], high[i]);
}

template <class T> struct maker : block<T> {
    using typename block<T>::S;
    using block<T>::p;
    using block<T>::shared;
    using block<T>::work;
    using block<T>::warp;
    using block<T>::lane;
    using block<T>::channel;
    static constexpr int PW = T::PW;

    __device__ __forceinline__ explicit maker(const block<T> &b) : block<T>(b)
    {
    }

    static __device__ __forceinline__ void sync()
    {
        ptx::sync_threads(1, THREADS);
    }

    template <class A> static __device__ __forceinline__ void put_4(uint16_t *to, const float4 &v)
    {
        uint32_t low[P], high[P];
        math::split(low, v.x, v.y);
        math::split(high, v.z, v.w);
#pragma unroll
        for (int i = 0; i < P; i++)
            *reinterpret_cast<uint2 *>(to + i * A::PIECE) = make_uint2(low[i], high[i]);
    }

    /* The row of the tile of which the lane puts neighbours of its n-th 8 rows. */
    __device__ __forceinline__ int row_of(int n) const
    {
        return 8 * n + 2 * (lane % 4) + lane / 4 % 2;
    }

    /* A lane's results: totals times scale, and the bias. */
    __device__ __forceinline__ void finish(float (&total)[2][4], const struct linear_cuda &w, int tile) const
    {
        const int output = 16 * tile + lane / 4;
        const float scale[2] = {__ldg(w.scale + output), __ldg(w.scale + output + 8)};
        const float bias[2] = {__ldg(w.bias + output), __ldg(w.bias + output + 8)};
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                total[n][i] = fmaf(total[n][i], scale[i / 2], bias[i / 2]);
    }

    /* ---- out_proj ------------------------------------------------------------------------------------------- */

    /* Rows of y as pieces. */
    template <class A> __device__ __forceinline__ void stage_y(const part &tile) const
    {
        uint16_t *xs = reinterpret_cast<uint16_t *>(work);
        const float4 *y = reinterpret_cast<const float4 *>(p.y + int64_t(tile.first) * E);
        constexpr int EACH = TILE * (E / 4) / THREADS;
        float4 v[EACH];
#pragma unroll
        for (int m = 0; m < EACH; m++)
            v[m] = __ldcg(y + min(channel + m * THREADS, tile.rows * (E / 4) - 1));
#pragma unroll
        for (int m = 0; m < EACH; m++) {
            const int i = channel + m * THREADS;
            if (i < tile.rows * (E / 4))
                put_4<A>(xs + i / (E / 4) * A::STRIDE + i % (E / 4) * 4, v[m]);
        }
    }

    __device__ __forceinline__ void out_proj(const mamba_cuda &layer, const part &tile) const
    {
        using A = stage<E>;
        warp_product<T, A, D / 16 / WARPS> product(layer.out_proj, warp, lane);
        stage_y<A>(tile);
        float *x = p.x + int64_t(tile.first) * D + 16 * warp + lane / 8 * 2;
        float2 before[2][2];
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                before[n][i] = __ldcg(reinterpret_cast<const float2 *>(x + min(row_of(n), tile.rows - 1) * D + 8 * i));
        sync();
        product.run(reinterpret_cast<const uint16_t *>(work), tile.rows > 8, [&](int outputs, float(&total)[2][4]) {
            finish(total, layer.out_proj, outputs);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float2 low, high;
                neighbours(low, high, total[n], lane);
                low = make_float2(__fadd_rn(before[n][0].x, low.x), __fadd_rn(before[n][0].y, low.y));
                high = make_float2(__fadd_rn(before[n][1].x, high.x), __fadd_rn(before[n][1].y, high.y));
                put_neighbours(x + row_of(n) * D - lane / 8 * 2, low, high, lane, row_of(n) < tile.rows);
            }
        });
        sync();
    }

    /* ---- in_proj -------------------------------------------------------------------------------------------- */

    /* Rows of x, normed, as pieces: a warp has one. */
    template <class A> __device__ __forceinline__ void stage_normed(const mamba_cuda &layer, const part &tile) const
    {
        static_assert(TILE == WARPS, "a row a warp");
        if (warp >= tile.rows)
            return;
        const float4 *x = reinterpret_cast<const float4 *>(p.x + int64_t(tile.first + warp) * D) + lane;
        const float4 v[2] = {__ldcg(x), __ldcg(x + 32)};
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++)
            squares = fmaf(v[j].w, v[j].w, fmaf(v[j].z, v[j].z, fmaf(v[j].y, v[j].y, fmaf(v[j].x, v[j].x, squares))));
        const float scale = math::row_scale(squares, D);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float4 norm = __ldg(reinterpret_cast<const float4 *>(layer.norm) + 32 * j + lane);
            put_4<A>(reinterpret_cast<uint16_t *>(work) + warp * A::STRIDE + 128 * j + 4 * lane,
                     make_float4(math::normed(v[j].x, scale, norm.x), math::normed(v[j].y, scale, norm.y),
                                 math::normed(v[j].z, scale, norm.z), math::normed(v[j].w, scale, norm.w)));
        }
    }

    __device__ __forceinline__ void in_proj(const mamba_cuda &layer, const part &tile) const
    {
        using A = stage<D>;
        warp_product<T, A, 2 * E / 16 / WARPS> product(layer.in_proj, warp, lane);
        stage_normed<A>(layer, tile);
        sync();
        float *xz = p.xz + int64_t(tile.first) * (2 * E);
        product.run(reinterpret_cast<const uint16_t *>(work), tile.rows > 8, [&](int outputs, float(&total)[2][4]) {
            finish(total, layer.in_proj, outputs);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float2 low, high;
                neighbours(low, high, total[n], lane);
                put_neighbours(xz + row_of(n) * (2 * E) + 16 * outputs, low, high, lane, row_of(n) < tile.rows);
            }
        });
        sync();
    }

    /* ---- front ---------------------------------------------------------------------------------------------- */

    __device__ __forceinline__ tile_work &front_work() const
    {
        return *reinterpret_cast<tile_work *>(work);
    }

    __device__ __forceinline__ S *state_of(const mamba_cuda &layer, const row_place &row) const
    {
        return static_cast<S *>(p.step.states) + row.state + layer.state_at;
    }

    /* Finds the tile's rows, if it's new, and sends their histories on the way into L2. */
    __device__ __forceinline__ void find_rows(const mamba_cuda &layer, row_place *places, const part &tile,
                                              bool fresh) const
    {
        if (channel >= tile.rows)
            return;
        if (fresh) {
            const int slot = p.step.slots[tile.first + channel];
            places[channel] = {slot * p.step.state_stride, int(p.step.phase[slot] % (K - 1)),
                               p.step.elapsed[tile.first + channel]};
        }
        ptx::bulk_prefetch(state_of(layer, places[channel]), HISTORY * sizeof(S));
    }

    /* u of CONVOLVED rows at most from row0 of the tile; each row's input goes over the oldest of its history. */
    __device__ __forceinline__ void convolve(const mamba_cuda &layer, const conv_weights &w, const row_place *places,
                                             const part &tile, int row0) const
    {
        const int rows = tile.rows - row0;
        const float *xz = p.xz + int64_t(tile.first + row0) * (2 * E) + channel;
        float *all_u = p.u + int64_t(tile.first + row0) * E + channel;
        float x[CONVOLVED], past[CONVOLVED][K - 1];
#pragma unroll
        for (int i = 0; i < CONVOLVED; i++) {
            if (i >= rows)
                break;
            const row_place &place = places[row0 + i];
            x[i] = __ldcg(xz + i * 2 * E);
#pragma unroll
            for (int k = 0; k < K - 1; k++) {
                const int row = place.oldest + k < K - 1 ? place.oldest + k : place.oldest + k - (K - 1);
                past[i][k] = to_float(__ldcg(state_of(layer, place) + row * E + channel));
            }
        }
#pragma unroll
        for (int i = 0; i < CONVOLVED; i++) {
            if (i >= rows)
                break;
            float sum = w.bias;
#pragma unroll
            for (int k = 0; k < K - 1; k++)
                sum = fmaf(w.weight[k], past[i][k], sum);
            const float u = math::silu(fmaf(w.weight[K - 1], x[i], sum));
            front_work().u[warp][row0 + i][lane] = u;
            __stcg(all_u + i * E, u);
            put(state_of(layer, places[row0 + i]) + places[row0 + i].oldest * E + channel, x[i]);
        }
    }

    /* The warp's block of x_proj's sums, from its channels' u, into its corner. */
    __device__ __forceinline__ void sum_x_proj(const uint4 (&a)[MIXED / 16][PW][2], int rows) const
    {
        float *corner = front_work().corners[warp];
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            if (8 * n >= rows)
                break;
            const float *u = front_work().u[warp][8 * n + g];
            uint2 half[2][P], b[P][2];
            split_half(half[0], u, t);
            split_half(half[1], u + 16, t);
#pragma unroll
            for (int i = 0; i < P; i++)
                b[i][0] = half[0][i], b[i][1] = half[1][i];
#pragma unroll
            for (int m = 0; m < MIXED / 16; m++) {
                float c[4];
                math::block_sum<PW, P>(c, a[m], b);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    corner[(8 * n + 2 * t + i % 2) * SUM_ROW + 16 * m + g + i / 2 * 8] = c[i];
            }
        }
    }

    /* dt, B and C of the tile's rows out of all warps' sums. */
    __device__ __forceinline__ void add_sums(const struct linear_cuda &x_proj, float (*mixed)[MIXED], int rows) const
    {
        for (int i = channel; i < rows * MIXED; i += THREADS) {
            const int row = i / MIXED, output = i % MIXED;
            float total = 0.0f;
#pragma unroll
            for (int from = 0; from < WARPS; from++)
                total = __fadd_rn(total, front_work().corners[from][row * SUM_ROW + output]);
            mixed[row][output] = fmaf(total, __ldg(x_proj.scale + output), __ldg(x_proj.bias + output));
        }
    }

    /* dt of the warp's channels into its corner: what softplus takes. */
    __device__ __forceinline__ void project_dt(const struct linear_cuda &dt_proj, const uint4 (&a)[2][PW][1],
                                               const float (*mixed)[MIXED], int rows) const
    {
        float *corner = front_work().corners[warp];
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            if (8 * n >= rows)
                break;
            uint2 half[P], b[P][1];
            split_half(half, mixed[8 * n + g], t);
#pragma unroll
            for (int i = 0; i < P; i++)
                b[i][0] = half[i];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                float c[4];
                math::block_sum<PW, P, 1>(c, a[m], b);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int output = 16 * m + g + i / 2 * 8, e = warp * 32 + output;
                    corner[(8 * n + 2 * t + i % 2) * CHANNEL_ROW + output] =
                        fmaf(c[i], __ldg(dt_proj.scale + e), __ldg(dt_proj.bias + e));
                }
            }
        }
        __syncwarp();
    }

    __device__ __forceinline__ void front(const mamba_cuda &layer, const part &tile, int side) const
    {
        const row_place *places = shared.rows[side];
        const conv_weights conv(layer, channel);
#pragma unroll 1
        for (int row = 0; row < tile.rows; row += CONVOLVED)
            convolve(layer, conv, places, tile, row);
        __syncwarp();
        warp_weights<PW> products;
        products.load(layer, warp, lane);
        sum_x_proj(products.x, tile.rows);
        sync();
        add_sums(layer.x_proj, shared.mixed[side], tile.rows);
        sync();
        project_dt(layer.dt_proj, products.dt, shared.mixed[side], tile.rows);
        float *delta = p.delta + int64_t(tile.first) * E + channel;
        for (int i = 0; i < tile.rows; i++)
            __stcg(delta + i * E,
                   math::time_step(front_work().corners[warp][i * CHANNEL_ROW + lane], places[i].elapsed));
    }

    /* Each tile: what is left to do of its last layer when that is scanned, then all in front of the next scan. */
    __device__ __forceinline__ void run() const
    {
        int before = 0;
#pragma unroll 1
        for (visit at; at.pass < this->passes() || (at.pass == this->passes() && at.layer == 0); at.next(p.layers)) {
            const bool more = at.pass < this->passes(), fresh = at.layer == 0;
            const mamba_cuda &layer = p.layer[at.layer];
            const part tile = more ? this->tiles_at(at.pass * ABREAST + at.side) : part(0, 1, 0);
            sync(); /* what the tile before left in shared memory has been read */
            if (more)
                find_rows(layer, shared.rows[at.side], tile, fresh);
            if (at.number > 0) {
                ptx::barrier_wait(&shared.scanned[at.side], uint32_t(at.number - 1) % 2);
                out_proj(p.layer[before], fresh ? this->tiles_at((at.pass - 1) * ABREAST + at.side) : tile);
            }
            if (more) {
                in_proj(layer, tile);
                front(layer, tile, at.side);
                this->warp_arrives(&shared.made[at.side]);
            }
            if (at.side + 1 == ABREAST)
                before = at.layer;
        }
    }
};

/* ---- scanning ----------------------------------------------------------------------------------------------- */

/* Two neighbouring values, as they lie and as numbers. */
__device__ __forceinline__ const float2 *pair_of(const float *p)
{
    return reinterpret_cast<const float2 *>(p);
}
__device__ __forceinline__ const uint32_t *pair_of(const __nv_bfloat16 *p)
{
    return reinterpret_cast<const uint32_t *>(p);
}
__device__ __forceinline__ float2 to_pair(float2 v)
{
    return v;
}
__device__ __forceinline__ float2 to_pair(uint32_t v)
{
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

template <class T> struct scanner : carrier<T> {
    using typename block<T>::S;
    using block<T>::p;
    using block<T>::shared;
    using block<T>::lane;
    using block<T>::channel;

    float2 A[N], skip; /* of the thread's two channels */
    int item, first;   /* of these */

    __device__ __forceinline__ explicit scanner(const block<T> &b) : carrier<T>(b), item(0), first(2 * channel)
    {
    }

    /* The channels' states over the step, in place; gives <C, h>. */
    template <bool ZOH>
    __device__ __forceinline__ float2 walk_states(S *h, const float *B, const float *C, float2 delta, float2 u) const
    {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int n = 0; n < N; n += 4) {
            const float4 b = *reinterpret_cast<const float4 *>(B + n), c = *reinterpret_cast<const float4 *>(C + n);
            const float bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 state = to_pair(*pair_of(h + (n + i) * E));
                state.x = math::next_state<PRECISION_FP32, ZOH>(state.x, A[n + i].x, delta.x, u.x, bs[i]);
                state.y = math::next_state<PRECISION_FP32, ZOH>(state.y, A[n + i].y, delta.y, u.y, bs[i]);
                put_pair(h + (n + i) * E, state);
                sum = make_float2(fmaf(cs[i], state.x, sum.x), fmaf(cs[i], state.y, sum.y));
            }
        }
        return sum;
    }

    /* What a row of the channels takes from the workspace. */
    struct inputs {
        float2 u, delta, z;
    };
    __device__ __forceinline__ inputs inputs_of(int row) const
    {
        const int64_t at = int64_t(row) * E + first;
        return {__ldcg(pair_of(p.u + at)), __ldcg(pair_of(p.delta + at)),
                __ldcg(pair_of(p.xz + at + int64_t(row) * E + E))};
    }

    template <bool ZOH> __device__ __forceinline__ void scan(int layer, const part &tile, const float (*mixed)[MIXED])
    {
        inputs next = inputs_of(tile.first);
#pragma unroll 1
        for (int i = 0; i < tile.rows; i++, item++) {
            const int row = tile.first + i;
            const inputs now = next;
            next = inputs_of(min(row + 1, tile.first + tile.rows - 1));
            if (channel == 0)
                this->advance(layer, row, item);
            ptx::barrier_wait(&shared.full[item % T::RING], uint32_t(item / T::RING % 2));
            const float2 sum =
                walk_states<ZOH>(this->place_of(item) + first, mixed[i] + R, mixed[i] + R + N, now.delta, now.u);
            ptx::shared_written();
            this->warp_arrives(&shared.used[item % T::RING]);
            put_pair(p.y + int64_t(row) * E + first, make_float2(math::gated(sum.x, skip.x, now.u.x, now.z.x),
                                                                 math::gated(sum.y, skip.y, now.u.y, now.z.y)));
        }
    }

    __device__ __forceinline__ void load_weights_of(const mamba_cuda &layer)
    {
#pragma unroll
        for (int n = 0; n < N; n++)
            A[n] = __ldg(pair_of(layer.A + n * E + first));
        skip = __ldg(pair_of(layer.skip + first));
    }

    __device__ __forceinline__ void run()
    {
#pragma unroll 1
        for (visit at; at.pass < this->passes(); at.next(p.layers)) {
            const mamba_cuda &layer = p.layer[at.layer];
            const part tile = this->tiles_at(at.pass * ABREAST + at.side);
            if (at.side == 0)
                load_weights_of(layer);
            ptx::barrier_wait(&shared.made[at.side], uint32_t(at.number) % 2);
            if (layer.zoh)
                scan<true>(at.layer, tile, shared.mixed[at.side]);
            else
                scan<false>(at.layer, tile, shared.mixed[at.side]);
            this->warp_arrives(&shared.scanned[at.side]);
        }
        if (channel == 0)
            this->end(item);
    }
};

/* The next kernel mustn't start early: mamba_step.cu's reads states before it waits. */
template <class T>
__global__ void __launch_bounds__(THREADS + SCAN_THREADS, 1) advance(const __grid_constant__ params p)
{
    extern __shared__ __align__(128) unsigned char memory[];
    const block<T> here(p, memory);
    here.start();
    scanner<T> scans(here);
    ptx::wait_for_kernels();
    if (threadIdx.x == THREADS)
        scans.begin();
    if (threadIdx.x < THREADS)
        maker<T>(here).run();
    else
        scans.run();
}

/* ---- launching ---------------------------------------------------------------------------------------------- */

struct shape {
    void (*kernel)(const params);
    size_t bytes;
};

template <int PW, class S> shape shape_of()
{
    using T = plan<PW, S>;
    static_assert(place<T>::BYTES <= 227 * 1024, "shared memory");
    return {advance<T>, size_t(place<T>::BYTES)};
}

shape shape_for(bool one, bool state_bf16)
{
    if (state_bf16)
        return one ? shape_of<1, __nv_bfloat16>() : shape_of<P, __nv_bfloat16>();
    return one ? shape_of<1, float>() : shape_of<P, float>();
}

int blocks_for(int rows)
{
    return std::min(rows, rows::multiprocessors());
}

/* Of the block with most rows. */
int tiles_for(int rows)
{
    return ABREAST * int(rows::ceil_div(size_t(rows), size_t(blocks_for(rows) * TILE * ABREAST)));
}

/* Every tile reads all weights, so its rows have to be worth it (an H100 says how many). */
bool many(int rows, bool one)
{
    return rows > 0 && rows >= (one ? 8 : 12) * blocks_for(rows) * tiles_for(rows);
}

bool takes(const mamba_cuda &layer, bool one)
{
    for (const struct linear_cuda *w : {&layer.in_proj, &layer.x_proj, &layer.dt_proj, &layer.out_proj})
        if (w->pieces != (one ? 1 : P))
            return false;
    return layer.D == D && layer.E == E && layer.N == N && layer.K == K && layer.R == R;
}

} /* namespace */

/* ---- entry points ------------------------------------------------------------------------------------------- */

bool mamba_stack_takes(const struct mamba_cuda *layers, int n, const struct step_cuda *step)
{
    const bool one = layers[0].x_proj.pieces == 1;
    if (step->precision != P || step->plain || n > MAMBA_STACK_LAYERS || !many(step->rows, one))
        return false;
    return std::all_of(layers, layers + n, [one](const mamba_cuda &layer) { return takes(layer, one); });
}

int mamba_stack_step(const struct mamba_cuda *layers, int n, const struct step_cuda *step, float *x, void *stream)
{
    const shape s = shape_for(layers[0].x_proj.pieces == 1, step->state_bf16);
    const int64_t values = int64_t(step->rows) * E;
    params p = {};
    std::copy_n(layers, n, p.layer);
    p.step = *step, p.x = x, p.layers = n, p.tiles = tiles_for(step->rows);
    p.xz = static_cast<float *>(step->workspace);
    p.y = p.xz + 2 * values, p.u = p.y + values, p.delta = p.u + values;
    return rows::launch(s.kernel, dim3(unsigned(blocks_for(step->rows))), THREADS + SCAN_THREADS, s.bytes, stream, p);
}
