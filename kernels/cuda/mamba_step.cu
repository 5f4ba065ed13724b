/* SPDX-License-Identifier: MIT */

/* A Mamba layer's step on the GPU; mamba_step.h says what is computed, math.cuh in which arithmetic.
 *
 * Three kernels: in_proj with the norm in front of it and out_proj with the residual are linear.cu's, beside other steps
 * out_proj and the next layer's in_proj in one launch; `mix` between them does all that touches the state, and is what
 * takes the time: 72 KiB a stream through device memory. A block of mix
 * has its multiprocessor to itself and takes neighbouring rows of the batch in tiles of 8, the rows of a tensor core's
 * product. The copy engine brings a tile's convolution histories and, into a ring of RING places, one stream's h after
 * the other; neither depends on in_proj, so the first are under way before in_proj is done, and the next tile's while
 * this one is computed. Up to dt a thread is a channel, a warp 32 of them: exactly one block of x_proj's inputs and two
 * tiles of dt_proj's outputs, so that only x_proj's sums cross from warp to warp. Then each half of the threads takes
 * every second row, a thread two channels, so that B and C are read half as often, and writes h back itself. States pass
 * through L2 as what won't be touched again soon: they would drive out what goes from kernel to kernel. Up to dt a block asks
 * for no states, so every second block has its short tile first: not all are there at once.
 *
 * Grid of mix: at most one block a multiprocessor, 512 threads. Bytes a stream: 73,728 of state (half in bf16), x, z and
 * y 3,072 in bf16 or 6,144 through L2, and 1/8 of 64 KiB of weights (bf16) from L2.
 *
 * Other sizes run the same arithmetic as one kernel a line of the algorithm. */

#include "kernels/cuda/mamba_step.h"

#include <cuda_runtime.h>

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/rows.cuh"

namespace {

using rows::pair_at;
using rows::put;
using rows::put_once;
using rows::put_pair;
using rows::put_pair_once;
using rows::to_float;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* What every kernel gets. */
struct params {
    mamba_cuda layer;
    step_cuda step;
    void *xz, *y;         /* (rows, 2 E), (rows, E)  bf16 at PRECISION_BF16, else fp32 */
    float *u, *dt, *mixed; /* (rows, E), (rows, E), (rows, R + 2 N)  plain path only    */
    int per_block;        /* rows a block of mix takes                                 */
    bool alone;           /* nobody's products go beside this mix                      */
};

/* Activations between kernels. */
template <int P> struct activation { using type = float; };
template <> struct activation<1> { using type = __nv_bfloat16; };

/* ---- mix ---------------------------------------------------------------------------------------------------- */

constexpr int D = 256, E = 512, N = 16, K = 4, R = 16, MIXED = R + 2 * N;
constexpr int TILE = 8, THREADS = E, WARPS = THREADS / 32;
constexpr int CORNER = TILE * (MIXED + 4); /* floats a warp exchanges through: sums (TILE, MIXED), or channels (TILE, 32); */
constexpr int SUM_ROW = MIXED + 4, CHANNEL_ROW = 36; /* rows 4 longer than needed, against bank conflicts */

constexpr int PLACES = 64; /* rows whose places are known at a time */

/* A row of the batch. */
struct row_place {
    int64_t state;  /* element of the states at which the layer's part begins */
    int oldest;     /* row of the history's ring                              */
    float elapsed;
};

struct alignas(128) mix_shared {
    float corners[WARPS][CORNER];
    float mixed[TILE][MIXED]; /* dt, B, C */
    float u[TILE][E];
    row_place rows[PLACES];   /* by row % PLACES */
    float x_scale[MIXED], x_bias[MIXED], dt_scale[E], dt_bias[E];
    uint64_t history_full, full[TILE];
};

/* Places for h: enough that some are on their way in while two are computed; in bf16 they are half as large. */
template <class S> constexpr unsigned RING = sizeof(S) == 4 ? 4 : 8;

/* histories (TILE, K - 1, E), then h (RING, N, E), behind mix_shared */
constexpr int HISTORY = (K - 1) * E, STATES = N * E;

/* A small batch leaves room: other kernels may start beside it. */
template <class S> size_t mix_bytes(int per_block)
{
    const size_t places = per_block < int(RING<S>) ? size_t(per_block) : RING<S>;
    return sizeof(mix_shared) + (TILE * HISTORY + places * STATES) * sizeof(S);
}

/* What the threads of a block know. */
template <class S> struct mix_block {
    const params &p;
    mix_shared &shared;
    S *histories, *h;
    S *states;
    int row0, rows; /* of the batch */
    int warp, lane, channel;

    __device__ __forceinline__ mix_block(const params &p_, unsigned char *memory)
        : p(p_), shared(*reinterpret_cast<mix_shared *>(memory))
    {
        histories = reinterpret_cast<S *>(memory + sizeof(mix_shared));
        h = histories + TILE * HISTORY;
        states = static_cast<S *>(p.step.states);
        row0 = int(blockIdx.x) * p.per_block;
        rows = min(p.per_block, p.step.rows - row0);
        channel = int(threadIdx.x), warp = channel / 32, lane = channel % 32;
    }
    /* Rows that the first tile has less. */
    __device__ __forceinline__ int pad() const { return blockIdx.x % 2 ? -rows & (TILE - 1) : 0; }
    __device__ __forceinline__ row_place &place(unsigned row) const { return shared.rows[row % PLACES]; }
    __device__ __forceinline__ int64_t state_of_slot(int slot) const { return slot * p.step.state_stride + p.layer.state_at; }
    __device__ __forceinline__ S *state_of(unsigned row) const { return h + row % RING<S> * STATES; }
    __device__ __forceinline__ S *home_of(unsigned row) const { return states + place(row).state + HISTORY; }
    __device__ __forceinline__ uint64_t *full(unsigned row) const { return &shared.full[row % RING<S>]; }
};

/* One thread: a row's place; past the end nobody's. */
template <class S> __device__ __forceinline__ void find_row(const mix_block<S> &block, int row, int slot)
{
    const step_cuda &step = block.p.step;
    row_place place = {};
    if (row < block.rows)
        place = {block.state_of_slot(slot), int(step.phase[slot] % (K - 1)), step.elapsed[block.row0 + row]};
    block.place(row) = place;
}

template <class S> __device__ __forceinline__ int slot_of(const mix_block<S> &block, int row)
{
    return row < block.rows ? block.p.step.slots[block.row0 + row] : 0;
}

/* A warp: send for the tile's histories, each lane for the one of a row whose part of the states begins at `state`. */
template <class S> __device__ __forceinline__ void load_histories(const mix_block<S> &block, int64_t state, int rows)
{
    const int lane = block.lane;
    if (lane == 0)
        ptx::barrier_expect(&block.shared.history_full, uint32_t(rows * HISTORY * int(sizeof(S))));
    __syncwarp();
    if (lane < rows)
        ptx::bulk_load_once(block.histories + lane * HISTORY, block.states + state, HISTORY * sizeof(S),
                            &block.shared.history_full);
}

/* The last warp, which has no sums to add meanwhile: send for the next tile's histories; and before the known rows run
 * out find 32 more, over such as no one reads any longer. at: the tile's row, were the first tile whole. */
template <class S> __device__ __forceinline__ void load_next(const mix_block<S> &block, int at, int tile_row)
{
    constexpr int MORE = 32, AHEAD = PLACES - MORE - 2 * TILE;
    load_histories(block, block.place(tile_row + block.lane % TILE).state, min(TILE, block.rows - tile_row));
    if (at > 2 * TILE && at % MORE == 2 * TILE)
        find_row(block, at + AHEAD + block.lane, slot_of(block, at + AHEAD + block.lane));
}

/* One thread: send for a row's h, which lives at `home`. */
template <class S> __device__ __forceinline__ void load_h(const mix_block<S> &block, int row, const S *home)
{
    if (row >= block.rows)
        return;
    ptx::barrier_expect(block.full(row), STATES * sizeof(S));
    ptx::bulk_load_once(block.state_of(row), home, STATES * sizeof(S), block.full(row));
}

/* Scales and biases of the small products, so that who needs one waits for no cache. */
struct table_share {
    float dt_scale, dt_bias, x_scale, x_bias;

    __device__ __forceinline__ table_share(const mamba_cuda &layer, int i)
    {
        const int x = min(i, MIXED - 1);
        dt_scale = __ldg(layer.dt_proj.scale + i), dt_bias = __ldg(layer.dt_proj.bias + i);
        x_scale = __ldg(layer.x_proj.scale + x), x_bias = __ldg(layer.x_proj.bias + x);
    }
    __device__ __forceinline__ void put(mix_shared &shared, int i) const
    {
        shared.dt_scale[i] = dt_scale, shared.dt_bias[i] = dt_bias;
        if (i < MIXED)
            shared.x_scale[i] = x_scale, shared.x_bias[i] = x_bias;
    }
};

/* What a thread keeps of its channel up to dt. */
struct conv_weights {
    float conv[K], bias;

    __device__ __forceinline__ conv_weights(const mamba_cuda &layer, int e)
    {
#pragma unroll
        for (int k = 0; k < K; k++)
            conv[k] = __ldg(layer.conv_weight + k * E + e);
        bias = layer.conv_bias ? __ldg(layer.conv_bias + e) : 0.0f;
    }
};

/* And of its two channels in the scan. */
struct scan_weights {
    float2 rate[N], skip;

    template <int P> __device__ __forceinline__ void load(const mamba_cuda &layer, int e, bool zoh)
    {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 A = pair_at(layer.A + n * E + e);
            rate[n] = make_float2(math::rate<P>(A.x, zoh), math::rate<P>(A.y, zoh));
        }
        skip = pair_at(layer.skip + e);
    }
};

/* A warp's share of the small products: x_proj's block of inputs and dt_proj's tiles of outputs with its channels. */
template <int PW> struct warp_weights {
    uint4 x[MIXED / 16][PW][2], dt[2][PW][1];

    __device__ __forceinline__ void load_x_proj(const struct linear_cuda &w, int warp, int lane)
    {
        const int apart = WARPS * w.pieces * 64;
        const uint4 *tiles = static_cast<const uint4 *>(w.tiles) + warp * w.pieces * 64 + lane;
#pragma unroll
        for (int i = 0; i < PW; i++)
#pragma unroll
            for (int m = 0; m < MIXED / 16; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    x[m][i][half] = __ldg(tiles + m * apart + i * 64 + half * 32);
    }
    __device__ __forceinline__ void load_dt_proj(const struct linear_cuda &w, int warp, int lane)
    {
        const uint4 *tiles = static_cast<const uint4 *>(w.tiles) + lane;
#pragma unroll
        for (int i = 0; i < PW; i++)
#pragma unroll
            for (int m = 0; m < 2; m++)
                dt[m][i][0] = __ldg(tiles + ((2 * warp + m) * w.pieces + i) * 2 * 32);
    }
};

/* x of the tile's rows, zeros past its end. */
template <class T, class S>
__device__ __forceinline__ void load_x(T (&x)[TILE], const mix_block<S> &block, int tile_row, int rows)
{
    const T *xz = static_cast<const T *>(block.p.xz) + int64_t(block.row0 + tile_row) * (2 * E) + block.channel;
#pragma unroll
    for (int i = 0; i < TILE; i++)
        x[i] = i < rows ? xz[i * 2 * E] : T(0.0f);
}

/* u of the tile's rows from their x, zeros past its end; each row's input goes over the oldest of its history. */
template <class T, class S>
__device__ __forceinline__ void convolve(float (&u)[TILE], const T (&x)[TILE], const mix_block<S> &block,
                                         const conv_weights &w, int tile_row, int rows)
{
    const int e = block.channel;
#pragma unroll
    for (int i = 0; i < TILE; i++) {
        const row_place &place = block.place(tile_row + i);
        const float input = to_float(x[i]);
        float sum = w.bias;
#pragma unroll
        for (int k = 0; k < K - 1; k++) {
            const int row = place.oldest + k < K - 1 ? place.oldest + k : place.oldest + k - (K - 1);
            sum = fmaf(w.conv[k], to_float(block.histories[i * HISTORY + row * E + e]), sum);
        }
        u[i] = i < rows ? math::silu(fmaf(w.conv[K - 1], input, sum)) : 0.0f;
        if (i < rows)
            put_once(block.states + place.state + place.oldest * E + e, input);
    }
}

/* The lane's pairs of a (TILE, ..) table of floats for one half of a block of inputs, as pieces. */
template <int P> __device__ __forceinline__ void split_rows(uint2 (&b)[P], const float *row, int t)
{
    uint32_t low[P], high[P];
    math::split(low, row[2 * t], row[2 * t + 1]);
    math::split(high, row[2 * t + 8], row[2 * t + 9]);
#pragma unroll
    for (int i = 0; i < P; i++)
        b[i] = make_uint2(low[i], high[i]);
}

/* The warp's block of x_proj's sums, from its channels' u, into its corner. */
template <int PW, int P, class S>
__device__ __forceinline__ void sum_x_proj(const mix_block<S> &block, const float (&u)[TILE], const uint4 (&a)[MIXED / 16][PW][2])
{
    float *corner = block.shared.corners[block.warp];
    const int g = block.lane / 4, t = block.lane % 4;
#pragma unroll
    for (int i = 0; i < TILE; i++)
        corner[i * CHANNEL_ROW + block.lane] = block.shared.u[i][block.channel] = u[i];
    __syncwarp();
    uint2 half[2][P], b[P][2];
    split_rows<P>(half[0], corner + g * CHANNEL_ROW, t);
    split_rows<P>(half[1], corner + g * CHANNEL_ROW + 16, t);
#pragma unroll
    for (int i = 0; i < P; i++)
        b[i][0] = half[0][i], b[i][1] = half[1][i];
    __syncwarp(); /* the corner has been read */
#pragma unroll
    for (int m = 0; m < MIXED / 16; m++) {
        float c[4];
        math::block_sum<PW, P>(c, a[m], b);
#pragma unroll
        for (int i = 0; i < 4; i++)
            corner[(2 * t + i % 2) * SUM_ROW + 16 * m + g + i / 2 * 8] = c[i];
    }
}

/* dt, B and C of the tile's rows out of all warps' sums. */
__device__ __forceinline__ void add_sums(mix_shared &shared)
{
    const int i = int(threadIdx.x), row = i / MIXED, output = i % MIXED;
    if (i >= TILE * MIXED)
        return;
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++)
        total = __fadd_rn(total, shared.corners[warp][row * SUM_ROW + output]);
    shared.mixed[row][output] = fmaf(total, shared.x_scale[output], shared.x_bias[output]);
}

/* dt of the warp's channels into its corner: what softplus takes. */
template <int PW, int P, class S>
__device__ __forceinline__ void project_dt(const mix_block<S> &block, const uint4 (&a)[2][PW][1])
{
    float *corner = block.shared.corners[block.warp];
    const int g = block.lane / 4, t = block.lane % 4;
    uint2 half[P], b[P][1];
    split_rows<P>(half, block.shared.mixed[g], t);
#pragma unroll
    for (int i = 0; i < P; i++)
        b[i][0] = half[i];
#pragma unroll
    for (int m = 0; m < 2; m++) {
        float c[4];
        math::block_sum<PW, P, 1>(c, a[m], b);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int channel = 16 * m + g + i / 2 * 8, e = block.warp * 32 + channel;
            corner[(2 * t + i % 2) * CHANNEL_ROW + channel] = fmaf(c[i], block.shared.dt_scale[e], block.shared.dt_bias[e]);
        }
    }
    __syncwarp();
}

/* Two channels' states over the step, from h to where they live; gives <C, h>. */
template <int P, bool ZOH, class S>
__device__ __forceinline__ float2 walk_states(S *to, const S *h, const float2 (&rate)[N], const float *B, const float *C,
                                              float2 delta, float2 u)
{
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int n = 0; n < N; n += 4) {
        const float4 b = *reinterpret_cast<const float4 *>(B + n), c = *reinterpret_cast<const float4 *>(C + n);
        const float bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 before = pair_at(h + (n + i) * E);
            const float2 next = make_float2(math::next_state<P, ZOH>(before.x, rate[n + i].x, delta.x, u.x, bs[i]),
                                            math::next_state<P, ZOH>(before.y, rate[n + i].y, delta.y, u.y, bs[i]));
            put_pair_once(to + (n + i) * E, next);
            sum = make_float2(fmaf(cs[i], next.x, sum.x), fmaf(cs[i], next.y, sum.y));
        }
    }
    return sum;
}

/* The tile's rows: a half of the threads has every second one. A row's delta is ready before the one in front of it is
 * out of the way. A barrier is all that the copy engine needs to take a place that threads have read. */
template <int P, bool ZOH, class S>
__device__ __forceinline__ void scan_rows(const mix_block<S> &block, const scan_weights &w, int tile_row, int rows)
{
    using T = typename activation<P>::type;
    const int e = block.channel % (E / 2) * 2, half = block.warp / (WARPS / 2);
    const T *z = static_cast<const T *>(block.p.xz) + int64_t(block.row0 + tile_row) * (2 * E) + E + e;
    T *y = static_cast<T *>(block.p.y) + int64_t(block.row0 + tile_row) * E + e;
    const float *dts = &block.shared.corners[e / 32][e % 32];
    const auto delta_of = [&](int i) {
        const float2 dt = pair_at(dts + i * CHANNEL_ROW);
        const float elapsed = block.place(tile_row + i).elapsed;
        return make_float2(math::time_step(dt.x, elapsed), math::time_step(dt.y, elapsed));
    };
    float2 next_z = pair_at(z + min(half, rows - 1) * 2 * E), delta = delta_of(half);
#pragma unroll 1
    for (int i = half; i < rows; i += 2) {
        const int row = tile_row + i;
        const float2 gate = next_z, u = pair_at(&block.shared.u[i][e]);
        const float *mixed = block.shared.mixed[i];
        if (i + 2 < rows)
            next_z = pair_at(z + (i + 2) * 2 * E);
        ptx::barrier_wait(block.full(row), unsigned(row) / RING<S> % 2);
        const float2 sum =
            walk_states<P, ZOH>(block.home_of(row) + e, block.state_of(row) + e, w.rate, mixed + R, mixed + R + N, delta, u);
        ptx::sync_threads(uint32_t(1 + half), THREADS / 2);
        if (threadIdx.x % (THREADS / 2) == 0)
            load_h(block, row + RING<S>, block.home_of(row + RING<S>));
        put_pair(y + i * E, make_float2(math::gated(sum.x, w.skip.x, u.x, gate.x), math::gated(sum.y, w.skip.y, u.y, gate.y)));
        if (i + 2 < rows)
            delta = delta_of(i + 2);
    }
}

/* The first two warps find the first rows, and half of the ring is sent for: more would stand in front of what comes before
 * any row's scan. */
template <class S> __device__ __forceinline__ void start(const mix_block<S> &block, int pad)
{
    const int row = int(threadIdx.x);
    if (row >= PLACES)
        return;
    if (row == 0) {
        ptx::barrier_init(&block.shared.history_full);
        for (unsigned i = 0; i < RING<S>; i++)
            ptx::barrier_init(block.full(i));
        ptx::barrier_init_done();
    }
    __syncwarp();
    const int slot = slot_of(block, row);
    const int64_t state = block.state_of_slot(slot);
    if (block.warp == 0)
        load_histories(block, state, min(TILE - pad, block.rows));
    if (row < int(RING<S> / 2))
        load_h(block, row, block.states + state + HISTORY);
    find_row(block, row, slot);
}

/* Warp 0: the other half, when the first histories are there. */
template <class S> __device__ __forceinline__ void fill_ring(const mix_block<S> &block)
{
    ptx::barrier_wait(&block.shared.history_full, 0);
    if (block.lane >= int(RING<S> / 2) && block.lane < int(RING<S>))
        load_h(block, block.lane, block.home_of(unsigned(block.lane)));
}

template <int PW, int P, class S, bool ZOH> __global__ void __launch_bounds__(THREADS, 1) mix(const __grid_constant__ params p)
{
    using T = typename activation<P>::type;
    extern __shared__ __align__(128) unsigned char memory[];
    const mix_block<S> block(p, memory);
    start(block, block.pad());
    const table_share tables(p.layer, block.channel);
    const conv_weights conv(p.layer, block.channel);
    scan_weights w; /* stays where a tile's weights are one piece; several take its registers */
    if (PW == 1)
        w.load<P>(p.layer, block.channel % (E / 2) * 2, ZOH);
    T x[TILE];
    for (int at = 0; at < block.rows + block.pad(); at += TILE) {
        const int row = max(at - block.pad(), 0), next = at + TILE - block.pad(), rows = min(next, block.rows) - row;
        warp_weights<PW> products;
        /* Nowhere else: what comes from two places is spilled. */
        products.load_x_proj(p.layer.x_proj, block.warp, block.lane);
        if (at == 0) {
            tables.put(block.shared, block.channel);
            __syncthreads(); /* barriers, places and tables are there */
            if (block.warp == 0 && block.rows > int(RING<S> / 2))
                fill_ring(block);
            ptx::wait_for_kernels();
            if (!p.step.beside) /* else out_proj would wait in multiprocessors that the steps beside need */
                ptx::start_next_kernel();
            load_x(x, block, 0, rows);
        }
        float u[TILE];
        ptx::barrier_wait(&block.shared.history_full, uint32_t(at / TILE % 2));
        convolve(u, x, block, conv, row, rows);
        if (row > 0)
            __syncthreads(); /* all have scanned the tile before */
        sum_x_proj<PW, P>(block, u, products.x);
        products.load_dt_proj(p.layer.dt_proj, block.warp, block.lane); /* not before: x_proj's take the registers */
        if (PW > 1)
            w.load<P>(p.layer, block.channel % (E / 2) * 2, ZOH);
        __syncthreads();
        if (block.warp == WARPS - 1 && next < block.rows)
            load_next(block, at + TILE, next);
        add_sums(block.shared);
        load_x(x, block, next, min(TILE, block.rows - next));
        __syncthreads();
        project_dt<PW, P>(block, products.dt);
        __syncthreads(); /* dt of all channels is there */
        scan_rows<P, ZOH>(block, w, row, rows);
    }
    if (p.step.beside)
        ptx::start_next_kernel();
}

/* ---- any sizes ---------------------------------------------------------------------------------------------- */

/* What a thread of the plain kernels stands for: a channel of a row. Grid: (rows, ceil(E / 128)), 128 threads. */
template <class S> struct plain_place {
    int row, e, slot;
    S *state;

    __device__ __forceinline__ explicit plain_place(const params &p)
    {
        row = int(blockIdx.x), e = int(blockIdx.y) * 128 + int(threadIdx.x);
        slot = p.step.slots[row];
        state = static_cast<S *>(p.step.states) + slot * p.step.state_stride + p.layer.state_at + e;
    }
};

template <class T, class S> __global__ void __launch_bounds__(128) plain_convolve(const params p)
{
    const plain_place<S> at(p);
    const mamba_cuda &layer = p.layer;
    const int channels = layer.E, e = at.e, past = layer.K - 1;
    if (e >= channels)
        return;
    const float x = to_float(static_cast<const T *>(p.xz)[int64_t(at.row) * 2 * channels + e]);
    float sum = layer.conv_bias ? layer.conv_bias[e] : 0.0f;
    const int oldest = past > 0 ? int(p.step.phase[at.slot] % unsigned(past)) : 0;
    for (int k = 0; k < past; k++)
        sum = fmaf(layer.conv_weight[k * channels + e], to_float(at.state[(oldest + k) % past * channels]), sum);
    p.u[int64_t(at.row) * channels + e] = math::silu(fmaf(layer.conv_weight[past * channels + e], x, sum));
    if (past > 0)
        put(at.state + oldest * channels, x);
}

/* Of the step: one where activations are bf16, else any other number. */
template <class T> constexpr int PIECES = sizeof(T) == 2 ? PRECISION_BF16 : PRECISION_FP32;

template <class T, class S, bool ZOH> __global__ void __launch_bounds__(128) plain_scan(const params p)
{
    const plain_place<S> at(p);
    const mamba_cuda &layer = p.layer;
    const int channels = layer.E, e = at.e, states = layer.N;
    if (e >= channels)
        return;
    const int64_t i = int64_t(at.row) * channels + e;
    const float *B = p.mixed + int64_t(at.row) * (layer.R + 2 * states) + layer.R, *C = B + states;
    const float delta = math::time_step(p.dt[i], p.step.elapsed[at.row]), u = p.u[i];
    S *h = at.state + (layer.K - 1) * channels;
    float sum = 0.0f;
    for (int n = 0; n < states; n++, h += channels) {
        const float rate = math::rate<PIECES<T>>(layer.A[n * channels + e], ZOH);
        const float next = math::next_state<PIECES<T>, ZOH>(to_float(*h), rate, delta, u, B[n]);
        put(h, next);
        sum = fmaf(C[n], next, sum);
    }
    const float z = to_float(static_cast<const T *>(p.xz)[int64_t(at.row) * 2 * channels + channels + e]);
    put(static_cast<T *>(p.y) + i, math::gated(sum, layer.skip[e], u, z));
}

/* ---- launches ----------------------------------------------------------------------------------------------- */

/* What mix may take: beside other steps three of four, since the products of those need the rest to pass meanwhile. */
int multiprocessors(const params &p) { return p.alone ? rows::multiprocessors() : rows::multiprocessors() * 3 / 4; }

template <int PW, int P, class S, bool ZOH> cudaError_t launch_mix(params p, void *stream)
{
    p.per_block = ceil_div(p.step.rows, multiprocessors(p));
    const dim3 grid(unsigned(ceil_div(p.step.rows, p.per_block)));
    return cudaError_t(rows::launch(mix<PW, P, S, ZOH>, grid, THREADS, mix_bytes<S>(p.per_block), stream, p));
}

template <class T, class S, bool ZOH> cudaError_t launch_plain(const params &p, void *stream)
{
    const mamba_cuda &layer = p.layer;
    const dim3 grid(unsigned(p.step.rows), unsigned(ceil_div(layer.E, 128)));
    const int64_t mixed = layer.R + 2 * layer.N;
    struct linear_cuda_rows rows = {};
    rows.rows = p.step.rows, rows.precision = p.step.precision;
    plain_convolve<T, S><<<grid, 128, 0, static_cast<cudaStream_t>(stream)>>>(p);
    rows.x = p.u, rows.x_stride = layer.E, rows.y = p.mixed, rows.y_stride = mixed;
    int error = linear_cuda(&layer.x_proj, &rows, stream);
    rows.x = p.mixed, rows.x_stride = mixed, rows.y = p.dt, rows.y_stride = layer.E;
    if (error == 0)
        error = linear_cuda(&layer.dt_proj, &rows, stream);
    if (error == 0)
        plain_scan<T, S, ZOH><<<grid, 128, 0, static_cast<cudaStream_t>(stream)>>>(p);
    return error ? cudaError_t(error) : cudaGetLastError();
}

bool tuned(const mamba_cuda &layer)
{
    return layer.D == D && layer.E == E && layer.N == N && layer.K == K && layer.R == R;
}

/* The middle of the layer: from x, z to y. */
template <int PW, int P, class S, bool ZOH> cudaError_t middle(const params &p, void *stream)
{
    if (tuned(p.layer) && !p.step.plain)
        return launch_mix<PW, P, S, ZOH>(p, stream);
    return launch_plain<typename activation<P>::type, S, ZOH>(p, stream);
}

template <int PW, int P> cudaError_t middle_of(const params &p, void *stream)
{
    if (p.step.state_bf16)
        return p.layer.zoh ? middle<PW, P, __nv_bfloat16, true>(p, stream) : middle<PW, P, __nv_bfloat16, false>(p, stream);
    return p.layer.zoh ? middle<PW, P, float, true>(p, stream) : middle<PW, P, float, false>(p, stream);
}

cudaError_t middle_any(const params &p, void *stream)
{
    const bool one = p.layer.x_proj.pieces == 1 && p.layer.dt_proj.pieces == 1;
    switch (p.step.precision) {
    case PRECISION_BF16: return middle_of<1, 1>(p, stream);
    case PRECISION_TF32: return one ? middle_of<1, 2>(p, stream) : middle_of<2, 2>(p, stream);
    default: return one ? middle_of<1, 3>(p, stream) : middle_of<3, 3>(p, stream);
    }
}

bool pieces_valid(const struct linear_cuda &w, int precision, bool one)
{
    return one ? w.pieces == 1 : w.pieces >= precision && w.pieces <= 3;
}

bool valid(const mamba_cuda &layer, const step_cuda &step)
{
    const bool one = layer.x_proj.pieces == 1;
    return layer.D >= 1 && layer.E >= 1 && layer.N >= 1 && layer.N <= 64 && layer.K >= 1 && layer.K <= 16 &&
           layer.R >= 1 && step.rows >= 0 && step.precision >= 1 && step.precision <= 3 &&
           pieces_valid(layer.x_proj, step.precision, one) && pieces_valid(layer.dt_proj, step.precision, one) &&
           step.state_stride % 8 == 0 && layer.state_at % 8 == 0;
}

/* The workspace's parts, each 16-byte aligned; `workspace` may be NULL, for its size alone. */
size_t carve(params &p, void *workspace)
{
    const size_t rows = size_t(p.step.rows), E_ = size_t(p.layer.E);
    size_t used = 0;
    const auto take = [&](size_t floats) {
        float *here = workspace ? static_cast<float *>(workspace) + used : nullptr;
        used += (rows * floats + 3) / 4 * 4;
        return here;
    };
    p.xz = take(2 * E_);
    p.y = take(E_);
    p.u = take(E_);
    p.dt = take(E_);
    p.mixed = take(size_t(p.layer.R + 2 * p.layer.N));
    return used * sizeof(float);
}

/* From so many rows on the products between two layers go in one launch where other steps leave them few multiprocessors:
 * two launches take several waves there, and with all multiprocessors they are the faster. */
constexpr int TOGETHER = 1536;

bool together(const step_cuda &step) { return step.beside && step.rows >= TOGETHER; }

params params_of(const mamba_cuda &layer, const step_cuda &step)
{
    params p = {};
    p.layer = layer, p.step = step, p.alone = !step.beside;
    carve(p, step.workspace);
    return p;
}

/* What goes through a layer's first and its last product. */
struct linear_cuda_rows rows_in(const mamba_cuda &layer, const step_cuda &step, const float *x)
{
    struct linear_cuda_rows in = {};
    in.rows = step.rows, in.precision = step.precision, in.y_bf16 = step.precision == PRECISION_BF16;
    in.x = x, in.x_stride = layer.D, in.norm = layer.norm, in.y = params_of(layer, step).xz, in.y_stride = 2 * layer.E;
    in.ahead = tuned(layer) && !step.plain;
    in.y_kept = together(step) && !step.state_bf16; /* with bf16 states, half as much passing, it takes more than it gives */
    return in;
}

struct linear_cuda_rows rows_out(const mamba_cuda &layer, const step_cuda &step, float *x)
{
    struct linear_cuda_rows out = {};
    out.rows = step.rows, out.precision = step.precision, out.x_bf16 = step.precision == PRECISION_BF16;
    out.x = params_of(layer, step).y, out.x_stride = layer.E, out.y = x, out.y_stride = layer.D;
    out.residual = x, out.residual_stride = layer.D;
    out.together = together(step);
    return out;
}

} /* namespace */

/* ---- entry points ------------------------------------------------------------------------------------------- */

size_t mamba_cuda_state(const struct mamba_cuda *layer)
{
    return size_t(layer->K - 1 + layer->N) * size_t(layer->E);
}

size_t mamba_cuda_workspace_bytes(const struct mamba_cuda *layer, int rows)
{
    params p = {};
    p.layer = *layer, p.step.rows = rows, p.step.plain = 1;
    return carve(p, nullptr);
}

int mamba_cuda_step(const struct mamba_cuda *layers, int n, const struct step_cuda *step, float *x, void *stream)
{
    for (int i = 0; i < n; i++)
        if (!valid(layers[i], *step))
            return -1;
    if (step->rows == 0 || n == 0)
        return 0;
    struct linear_cuda_rows in = rows_in(layers[0], *step, x);
    int error = linear_cuda(&layers[0].in_proj, &in, stream);
    if (error == 0 && step->begun)
        error = cudaEventRecord(static_cast<cudaEvent_t>(step->begun), static_cast<cudaStream_t>(stream));
    for (int i = 0; i < n && error == 0; i++) {
        const struct linear_cuda_rows out = rows_out(layers[i], *step, x);
        params p = params_of(layers[i], *step);
        p.alone = p.alone || (step->beside == STEP_LAST && i + 1 == n);
        error = middle_any(p, stream);
        if (i + 1 < n)
            in = rows_in(layers[i + 1], *step, x);
        if (error == 0)
            error = i + 1 < n ? linear_cuda_pair(&layers[i].out_proj, &out, &layers[i + 1].in_proj, &in, stream)
                              : linear_cuda(&layers[i].out_proj, &out, stream);
    }
    return error;
}
