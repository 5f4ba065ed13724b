/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_AHEAD_H
#define KERNELS_CUDA_SELECTIVE_SCAN_AHEAD_H

/* What long chunks hand on, forward: scan_map's sums, by blocks whose threads copy u and dt of all their channels into
 * shared memory, some tiles ahead.
 *
 * DRAM gives 64 bytes at a time, two warps' channels. Where each warp reads for itself they are soon apart, and half of
 * it comes twice: 590 MB, not 538, of (1, 512) 2^17 in fp32, and 845 MB with twice as many steps on their way. Blocks
 * walk at the pace of their slowest warp, though, which costs more than it saves where few long chunks have many
 * channels. */

#include "kernels/cuda/selective_scan_chunks.h"

namespace scan
{

constexpr int AHEAD_CHANNELS = GROUPS * WARPS, AHEAD_STEPS = 32; /* of a block, of a tile */
constexpr int STAGES = 4;                                        /* tiles that are walked or on their way */

/* What a block has in shared memory. */
template <typename T, int N> struct ahead_block {
    static constexpr int PIECE = 16 / int(sizeof(T)), PIECES = AHEAD_CHANNELS / PIECE; /* of 16 bytes, in a row */
    alignas(16) T rows[STAGES][2][AHEAD_STEPS * AHEAD_CHANNELS];                       /* u, dt */
    float4 B[2][AHEAD_STEPS * N / 4], elapsed[2][AHEAD_STEPS / 4];
    uint32_t remember[2]; /* a byte for each warp that does */

    /* Where a tile has a step's channel: pieces move with every eighth step, so that slots read from other banks. */
    __device__ __forceinline__ static int at(int step, int channel)
    {
        return step * AHEAD_CHANNELS + (channel / PIECE + step / 8 * (PIECES / 4)) % PIECES * PIECE + channel % PIECE;
    }
};

/* A block's tiles, from the chunk's end on. A warp whose channels are forgotten goes on copying for the others. */
template <typename T, int N> struct ahead_tiles {
    using block_type = ahead_block<T, N>;
    static constexpr int PIECE = block_type::PIECE, PIECES = block_type::PIECES;
    static constexpr int ROWS = 32 * WARPS / PIECES; /* that threads copy at once */
    block_type &block;
    const params &p;
    column<T> u0, dt0; /* of the thread's piece */
    const float *elapsed0;
    int piece; /* which it is of a row */
    bool has;  /* the row has it */
    staged_bc<T, N, false, 32 * WARPS, 1, AHEAD_STEPS> B;
    float elapsed;
    int begin, last;          /* of the chunk */
    int copied, walked, tile; /* before which step all is; tiles walked */

    __device__ __forceinline__ ahead_tiles(block_type &block, const params &p, int batch, int channel0, int begin,
                                           int end)
        : block(block), p(p), u0(p.s.u, p.s.u_row, first_channel(channel0), p, batch),
          dt0(p.s.dt, p.s.dt_row, first_channel(channel0), p, batch),
          elapsed0(p.s.elapsed ? p.s.elapsed + int64_t(batch) * p.s.length : &one_and_only),
          piece(int(threadIdx.x) % PIECES), has(first_channel(channel0) < p.s.channels), B(p, batch), begin(begin),
          last(end - 1), copied(end), walked(end), tile(0)
    {
#pragma unroll
        for (int stage = 0; stage < STAGES - 1; stage++)
            copy(stage, true);
        load();
    }
    __device__ __forceinline__ static int first_channel(int channel0)
    {
        return channel0 + int(threadIdx.x) % PIECES * PIECE;
    }
    /* The first step of the tile that ends before this one. */
    __device__ __forceinline__ int first(int end) const
    {
        return max(end - AHEAD_STEPS, begin);
    }
    __device__ __forceinline__ void copy(int stage, bool wanted)
    {
        const int row0 = int(threadIdx.x) / PIECES, t0 = first(copied);
        if (copied > begin && wanted && has)
#pragma unroll
            for (int i = 0; i < AHEAD_STEPS; i += ROWS) {
                const int t = min(t0 + row0 + i, last), to = block_type::at(row0 + i, piece * PIECE);
                ptx::copy_16(block.rows[stage][0] + to, u0.at(t, p.u_step), true);
                ptx::copy_16(block.rows[stage][1] + to, dt0.at(t, p.dt_step), true);
            }
        ptx::commit_copies();
        B.prefetch(t0, last);
        copied = t0;
    }
    /* B and the elapsed times of the next tile. */
    __device__ __forceinline__ void load()
    {
        const int t0 = first(walked), t = t0 + int(threadIdx.x) % AHEAD_STEPS;
        B.load(p, t0, last + 1);
        elapsed = t < walked ? elapsed0[t & p.elapsed_mask] : 0.0f;
    }
    /* On to the next tile, by all threads of the block; remembers: this warp does. False: there is none, or no warp
     * remembers. */
    __device__ __forceinline__ bool next(bool remembers)
    {
        const int now = tile & 1;
        if (walked == begin)
            return false;
        ptx::wait_for_groups<STAGES - 2>();
        B.put(block.B[now], 0);
        if (threadIdx.x < AHEAD_STEPS)
            reinterpret_cast<float *>(block.elapsed[now])[threadIdx.x] = elapsed;
        if (threadIdx.x % 32 == 0)
            reinterpret_cast<uint8_t *>(&block.remember[now])[threadIdx.x / 32] = remembers;
        __syncthreads(); /* the tile is there, and all have read the one before */
        const uint32_t remember = block.remember[now];
        if (remember == 0)
            return false;
        copy((tile + STAGES - 1) % STAGES, (remember >> 16 * (piece * PIECE / 16) & 0xffff) != 0); /* 64 bytes' warps */
        walked = first(walked);
        if (walked > begin)
            load();
        tile++;
        return true;
    }
    /* Of the tile: u (0) or dt (1), B, elapsed times. */
    __device__ __forceinline__ const T *row(int tensor, int step, int channel) const
    {
        return block.rows[(tile - 1) % STAGES][tensor] + block_type::at(step, channel);
    }
    __device__ __forceinline__ const float4 *states(int step) const
    {
        return block.B[(tile - 1) & 1] + step * (N / 4);
    }
    __device__ __forceinline__ const float *elapsed_at(int step) const
    {
        return reinterpret_cast<const float *>(block.elapsed[(tile - 1) & 1]) + step;
    }
};

/* As prepare_tile(). */
template <typename T, int N, int P, int STEPS>
__device__ __forceinline__ float prepare_ahead(float (&x)[STEPS], float (&away)[STEPS], float sum,
                                               const ahead_tiles<T, N> &tiles, int slot, int channel, float bias2)
{
    const T *const u = tiles.row(0, slot * STEPS, channel), *const dt = tiles.row(1, slot * STEPS, channel);
    float elapsed[STEPS], mine = 0.0f;
    load<STEPS>(elapsed, tiles.elapsed_at(slot * STEPS));
#pragma unroll
    for (int i = STEPS - 1; i >= 0; i--) {
        const float delta = elapsed[i] * softplus(fmaf(to_float(dt[i * AHEAD_CHANNELS]), LOG2E, bias2));
        x[i] = delta * to_float(u[i * AHEAD_CHANNELS]);
        away[i] = mine;
        mine += delta;
    }
    return place_steps<false, P>(away, mine, sum, slot);
}

/* Walk until no more than `few` channels of the warp remember. Gives those that do, a bit each. */
template <typename T, int N, int P>
__device__ __forceinline__ unsigned walk_ahead(map_lane<N> &lane, ahead_tiles<T, N> &tiles, const params &p,
                                               const place<1, P> &at, int few)
{
    constexpr int STEPS = AHEAD_STEPS / P;
    const int channel = at.channel(p, 0) % AHEAD_CHANNELS;
    unsigned remember = (1u << 32 / P) - 1;
#pragma unroll 1
    while (__popc(remember) > few && tiles.next(true)) {
        float x[STEPS], away[STEPS];
        const float tile_sum = prepare_ahead<T, N, P>(x, away, lane.sum.sum, tiles, at.part, channel, lane.bias2);
        remember = add_tile<T>(lane, p, at, x, away, tiles.states(at.part * STEPS), tile_sum);
    }
    return remember;
}

/* Walk with 8 channels a warp, then with those 4 that still remember. */
template <typename T, int N>
__device__ __forceinline__ void walk_narrowing(map_lane<N> &lane, ahead_tiles<T, N> &tiles, const params &p,
                                               const place<1> &at)
{
    const unsigned remember = walk_ahead<T, N, 4>(lane, tiles, p, at, 4);
    const bool goes_on = tiles.walked > tiles.begin && remember != 0;
    finish_map<N>(lane, p, at, 0, !goes_on || !(remember >> at.group & 1));
    if (!goes_on)
        return;
    place<1, 8> half(1, lanes::APART);
    gather(lane, half, p, at, remember);
    walk_ahead<T, N, 8>(lane, tiles, p, half, 0);
    finish_map<N>(lane, p, half, 0, true);
}

/* The map of each chunk but the last; rows are whole pieces of 16 bytes, N is not more than 16. Grid (channel groups x
 * (chunks - 1), batch). */
template <typename T, int N> __global__ void __launch_bounds__(32 * WARPS, 4) scan_map_ahead(const params p)
{
    __shared__ ahead_block<T, N> block;
    const place<1> at(p.chunks - 1, lanes::APART);
    const int begin = at.chunk * p.chunk_steps, c = at.channel(p, 0);
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    ahead_tiles<T, N> tiles(block, p, at.batch, at.first / AHEAD_CHANNELS * AHEAD_CHANNELS, begin,
                            min(p.s.length, begin + p.chunk_steps));
    map_lane<N> lane = {};
    lane.start(p, c, 0);
    walk_narrowing<T, N>(lane, tiles, p, at);
    while (tiles.next(false))
        ;
}

} /* namespace scan */

#endif
