/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_FED_H
#define KERNELS_CUDA_SELECTIVE_SCAN_FED_H

/* The scan backward where channels fill the machine by blocks of 96, one a multiprocessor: twelve warps walk, and four
 * feed them. These read and prepare the tile that is next, and sum the walkers' dB and dC of one before, so that
 * walkers wait neither for memory nor for each other, and a third of the partial sums goes through memory. An element
 * takes 410 instructions of those who walk (490 in fp32) and 80 of those who feed. */

#include "kernels/cuda/selective_scan_backward.h"

namespace scan
{

constexpr int WALKERS = 12, FEEDERS = WARPS; /* warps */
constexpr int FED_CHANNELS = WALKERS * GROUPS;

/* Registers that a thread of either gets: 65536 in all. */
constexpr int WALKER_REGISTERS = 144, FEEDER_REGISTERS = 80;
constexpr int FED_THREADS = 32 * (WALKERS + FEEDERS);

/* Tiles that are prepared, walked, or whose sums are written. */
constexpr int TILES_BACK = 3;

template <int N> struct fed_block {
    float4 bc[2][TILES_BACK][TILE * N / 4]; /* B, then C */
    backward_steps<1, WALKERS> tile[TILES_BACK];
    warp_sums<N> dbc[TILES_BACK][WALKERS];
    segment_starts<N, 1> starts[2][WALKERS];           /* the first: the state before the tile */
    uint64_t prepared[TILES_BACK], walked[TILES_BACK]; /* barriers: a tile is there; its sums are */
};

/* Tiles from the end of a chunk to its begin; past that, the last again. */
struct tiles_back {
    int begin, end, count;

    __device__ __forceinline__ tiles_back(const params &p, int chunk)
        : begin(chunk * p.chunk_steps), end(min(p.s.length, begin + p.chunk_steps)), count((end - 1 - begin) / TILE + 1)
    {
    }
    __device__ __forceinline__ int at(int i) const
    {
        return begin + max(count - 1 - i, 0) * TILE;
    }
};

/* x, but not before y is there: loads share one count of what is on its way, so who reads y after more has been sent
 * for waits for that too. none: zero, which the compiler doesn't know. */
__device__ __forceinline__ int after(int x, float y, int none)
{
    return x + (__float_as_int(y) & none);
}

/* One thread of the warps that feed: rows of a tile four apart, channels 32 apart. */
template <typename T, int N> struct feeder {
    static constexpr int EACH = FED_CHANNELS / 32;
    backward_inputs<T> inputs;
    staged_bc<T, N, true, 32 * FEEDERS, TILES_BACK> bc;
    backward_step<T, EACH> next;
    int lane, warp, apart[EACH];
    unsigned has = 0; /* a bit a channel */
    float bias2[EACH];

    __device__ __forceinline__ feeder(const params &p, int batch, int channel)
        : inputs(p, min(channel, p.s.channels - 1), batch), bc(p, batch), lane(int(threadIdx.x) % 32),
          warp(int(threadIdx.x) / 32 % FEEDERS)
    {
        const int last = p.s.channels - 1;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int mine = min(channel + 32 * k, last);
            apart[k] = mine - min(channel, last);
            has |= channel + 32 * k <= last ? 1u << k : 0;
            bias2[k] = p.s.dt_bias ? LOG2E * p.s.dt_bias[mine] : 0.0f;
        }
    }
    __device__ __forceinline__ void load(const params &p, int t)
    {
        next.template load<ALONE_FED<T>>(inputs, p, apart, t);
    }
    /* The tile at t0; sends for its later rows, and then for the first of the tile at t1. */
    __device__ __forceinline__ void prepare(backward_steps<1, WALKERS> &tile, const params &p, int t0, int t1, int end)
    {
#pragma unroll 2
        for (int row = warp, j = 0; j < TILE / FEEDERS; j++, row += FEEDERS) {
            const backward_step<float, EACH> now = next.floats();
            const int t = min(j < TILE / FEEDERS - 1 ? t0 + row + FEEDERS : t1 + warp, end - 1);
            load(p, after(t, now.dout[0], p.s.batch >> 31));
#pragma unroll
            for (int k = 0; k < EACH; k++)
                now.prepare(tile.steps[row][lane + 32 * k], tile.rest[row][lane + 32 * k], p, k, bias2[k],
                            t0 + row < end && (has >> k & 1));
        }
    }
};

template <typename T, int N>
__device__ __forceinline__ void feed(fed_block<N> &block, const params &p, const tiles_back &tiles, int batch,
                                     int group)
{
    feeder<T, N> mine(p, batch, group * FED_CHANNELS + int(threadIdx.x) % 32);
    mine.load(p, min(tiles.at(0) + mine.warp, tiles.end - 1));
    turn<TILES_BACK> turns;
#pragma unroll 1
    for (int i = 0; i < tiles.count + TILES_BACK; i++, turns.next()) {
        const int now = turns.place;
        mine.bc.load(p, tiles.at(i), tiles.end);
        if (i >= TILES_BACK) {
            ptx::barrier_wait(&block.walked[now], turns.parity ^ 1);
            write_partial_bc<N, WALKERS>(block.dbc[now], p, batch, group, tiles.at(i - TILES_BACK), tiles.end);
        }
        if (i >= tiles.count)
            continue;
        mine.bc.put(block.bc[0][0], now);
        mine.prepare(block.tile[now], p, tiles.at(i), tiles.at(i + 1), tiles.end);
        ptx::barrier_arrive(&block.prepared[now]);
    }
}

/* Send for the lane's states before a tile. */
template <int N> __device__ __forceinline__ void load_start(float *start, const params &p, const place<1> &at, int t0)
{
    static_assert(N == 16, "16 bytes of a lane");
    const int n = at.part * 4;
    const float *from = checkpoint(p, at, t0) + int64_t(at.channel(p, 0)) * p.s.d_state + n;
    if (p.s.d_state == N)
        ptx::copy_16(start, from, true);
    else
#pragma unroll
        for (int s = 0; s < 4; s++)
            start[s] = n + s < p.s.d_state ? from[s] : 0.0f;
}

template <typename T, int N>
__device__ __forceinline__ void walk_fed(fed_block<N> &block, const params &p, const place<1> &at,
                                         const tiles_back &tiles)
{
    constexpr int S = N / 4;
    const int lane = int(threadIdx.x) % 32;
    backward_lane<S, 1> walker = {};
    start_lane<T, N, 1>(walker, p, at);
    float is[8];
    pick_rows(is);
    const gradient_rows<T> rows(p, at.channel(p, 0), at.batch);
    load_start<N>(block.starts[0][at.warp][0][0] + lane * S, p, at, tiles.at(0));
    turn<TILES_BACK> turns;
#pragma unroll 1
    for (int i = 0; i < tiles.count; i++, turns.next()) {
        const int odd = i & 1, now = turns.place;
        float start[1][S];
        ptx::wait_for_copies();
        load<S>(start[0], block.starts[odd][at.warp][0][0] + lane * S);
        if (i + 1 < tiles.count)
            load_start<N>(block.starts[odd ^ 1][at.warp][0][0] + lane * S, p, at, tiles.at(i + 1));
        ptx::barrier_wait(&block.prepared[now], turns.parity);
        tile_back<T, N, 1, WALKERS, TILES_BACK>(walker, start, block.tile[now], block.bc[0][now],
                                                block.dbc[now][at.warp], block.starts[odd][at.warp], is, rows, p, at,
                                                tiles.at(i), tiles.end);
        ptx::barrier_arrive(&block.walked[now]);
    }
    if (p.s.dh0 && tiles.begin == 0)
        store_states<N, 1, 4>(p.s.dh0 + int64_t(at.batch) * p.s.channels * p.s.d_state, walker.carry, p, at);
    write_partial_a<N, 1>(walker, p, at);
}

/* The backward of a chunk, or of all there is. Grid (channel groups x chunks, batch). */
template <typename T, int N> __global__ void __launch_bounds__(FED_THREADS, 1) scan_backward_fed(const params p)
{
    extern __shared__ __align__(16) unsigned char shared[];
    fed_block<N> &block = *reinterpret_cast<fed_block<N> *>(shared);
    const place<1> at(p.chunks, lanes::APART, WALKERS);
    const tiles_back tiles(p, at.chunk);
    if (threadIdx.x == 0) {
        for (int i = 0; i < TILES_BACK; i++) {
            ptx::barrier_init(&block.prepared[i], 32 * FEEDERS);
            ptx::barrier_init(&block.walked[i], 32 * WALKERS);
        }
        ptx::barrier_init_done();
    }
    __syncthreads();
    ptx::wait_for_kernels();
    if (at.warp < WALKERS) {
        ptx::more_registers<WALKER_REGISTERS>();
        walk_fed<T, N>(block, p, at, tiles);
    } else {
        ptx::fewer_registers<FEEDER_REGISTERS>();
        feed<T, N>(block, p, tiles, at.batch, int(blockIdx.x) / p.chunks);
    }
}

} /* namespace scan */

#endif
