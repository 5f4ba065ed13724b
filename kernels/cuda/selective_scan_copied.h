/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_COPIED_H
#define KERNELS_CUDA_SELECTIVE_SCAN_COPIED_H

/* The scan forward with a gate where rows are whole pieces of 16 bytes: scan_forward's mapping and walk, but inputs are
 * copied into shared memory, some tiles ahead, and a tile is prepared inside the walk of the one before, a round after
 * each round that is written. So no registers hold what is on its way, the exponentials' pipe is not idle while softplus
 * and gates are found, and a tile takes fewer instructions. TIMED: steps have elapsed times. */

#include "kernels/cuda/selective_scan_forward.h"

namespace scan
{

/* What a lane's K neighbouring channels have at a step, read and written at once. */
template <typename T, int K> struct step_values;
template <> struct step_values<float, 1> {
    float v;
    __device__ __forceinline__ float at(int) const
    {
        return v;
    }
    __device__ __forceinline__ static step_values of(const float (&x)[1])
    {
        return {x[0]};
    }
};
template <> struct step_values<float, 2> {
    float2 v;
    __device__ __forceinline__ float at(int k) const
    {
        return k ? v.y : v.x;
    }
    __device__ __forceinline__ static step_values of(const float (&x)[2])
    {
        return {make_float2(x[0], x[1])};
    }
};
template <> struct step_values<__nv_bfloat16, 1> {
    __nv_bfloat16 v;
    __device__ __forceinline__ float at(int) const
    {
        return to_float(v);
    }
    __device__ __forceinline__ static step_values of(const float (&x)[1])
    {
        return {__float2bfloat16(x[0])};
    }
};
template <> struct step_values<__nv_bfloat16, 2> {
    uint32_t v;
    __device__ __forceinline__ float at(int k) const
    {
        return k ? math::high_bf16(v) : math::low_bf16(v);
    }
    __device__ __forceinline__ static step_values of(const float (&x)[2])
    {
        return {math::pack_bf16(x[0], x[1])};
    }
};

/* How a tile of inputs stands in shared memory, and which pieces of it a thread copies. With four lanes a channel a warp
 * has no more than 16 to 64 bytes of a row, and a copy keeps L1 busy for a cycle a line at the least: 16 rows of 32 bytes
 * take 24, four of 128 bytes 4. So there a block's warps are a team, which copies whole rows, and B and C once. */
template <typename T, int N, int K, int P, bool TIMED> struct copied {
    static constexpr int TEAM = P == 4 ? WARPS : 1, THREADS = 32 * TEAM; /* warps, threads of a team */
    static constexpr int STEPS = ROUNDS * P, PIECE = 16 / int(sizeof(T));
    static constexpr int SHARE = 32 / P * K, CHANNELS = TEAM * SHARE;        /* of a warp, of a team */
    static constexpr int PIECES = CHANNELS / PIECE, ROWS = THREADS / PIECES; /* in a row; copied at once */
    static constexpr bool HALVES = ROWS > STEPS; /* half of the threads copy u, the others dt and z */
    static constexpr int BC_PIECES = N / PIECE, BC_RUN = 8 / BC_PIECES, BC_ROWS = THREADS / 16 * BC_RUN;
    static constexpr bool CONVERTS = sizeof(T) < sizeof(float);
    /* Tiles on their way or prepared: as many as shared memory has room for in forward_blocks. */
    static constexpr int ROOMS = !CONVERTS && K == 2 && P == 4 ? 2 : 3;
    /* fp32: B and C go where they are read, in the tiles that are walked, prepared and on their way. */
    static constexpr int TILES = CONVERTS ? 2 : ROOMS + 1;

    struct tile {
        float4 bc[2][STEPS * N / 4];
        float4 steps[TEAM][STEPS / 2][K][32 / P];
    };
    struct room {
        alignas(16) T rows[3][STEPS * CHANNELS];                          /* u, dt, z */
        alignas(16) T bc[CONVERTS ? 2 * STEPS * N : 16 / int(sizeof(T))]; /* B, then C */
        float elapsed[TIMED ? STEPS : 4];
    };
    struct team {
        tile tiles[TILES];
        room rooms[ROOMS];
    };
    /* A warp's part of a tile, as forward_tile. */
    struct part {
        float4 (&bc)[2][STEPS * N / 4];
        float4 (&steps)[STEPS / 2][K][32 / P];
    };
    /* A row's piece. Rows are turned so that those a warp reads at once are in different banks. */
    __device__ __forceinline__ static int place_of(int row, int piece)
    {
        constexpr int OWN = SHARE / PIECE; /* of a warp in a row */
        const int turn = P == 2 ? (PIECES >= 8 ? row % 2 * 4 : 0) : PIECES >= 8 ? row * OWN % 8 : row * PIECES / 8 % 2;
        return (row * PIECES + (piece ^ turn)) * PIECE;
    }
};

template <typename T, int N, int K, int P, bool TIMED> struct copied_inputs {
    using shape = copied<T, N, K, P, TIMED>;
    using values = step_values<T, K>;
    static constexpr int PLANE = shape::STEPS * shape::CHANNELS;
    column<T> u0, dt0, z0, out0; /* of the thread's pieces; out: of its channels */
    const unsigned char *bc0;    /* B's or C's, of its piece */
    const float *elapsed0;
    int row, to, bc_row, bc_to;  /* the first of its rows, and where in the room they go */
    int bc_step, mine;           /* mine: where the room has its first step */
    bool first_half;             /* of the team's threads */
    values u, dt, z;             /* of the round that is prepared */
    float elapsed;

    __device__ __forceinline__ static int first_channel(const params &p, const place<K, P> &at)
    {
        const int piece = int(threadIdx.x) % shape::PIECES;
        return min(at.first - at.group * K - at.warp % shape::TEAM * shape::SHARE + piece * shape::PIECE,
                   p.s.channels - shape::PIECE);
    }
    __device__ __forceinline__ copied_inputs(const params &p, const place<K, P> &at)
        : u0(p.s.u, p.s.u_row, first_channel(p, at), p, at.batch),
          dt0(p.s.dt, p.s.dt_row, first_channel(p, at), p, at.batch),
          z0(p.s.z, p.s.z_row, first_channel(p, at), p, at.batch),
          out0(p.s.out, p.s.out_row, min(at.first, p.s.channels - K), p, at.batch),
          elapsed0(TIMED ? p.s.elapsed + int64_t(at.batch) * p.s.length : nullptr)
    {
        const int thread = int(threadIdx.x) % shape::THREADS, bc_piece = thread % shape::BC_PIECES;
        const int channel = at.warp % shape::TEAM * shape::SHARE + at.group * K;
        const bool of_c = thread / 8 % 2 != 0;
        row = thread / shape::PIECES % shape::STEPS, to = shape::place_of(row, thread % shape::PIECES);
        first_half = thread / shape::PIECES < shape::STEPS;
        bc_row = thread / 16 * shape::BC_RUN + thread % 8 / shape::BC_PIECES;
        bc_to = ((of_c ? shape::STEPS : 0) + bc_row) * N + bc_piece * shape::PIECE;
        bc_step = ptx::opaque(of_c ? p.C_step : p.B_step);
        bc0 = ptx::opaque(static_cast<const unsigned char *>(of_c ? p.s.C : p.s.B) +
                          int64_t(at.batch) * p.s.length * bc_step + bc_piece * 16);
        mine = shape::place_of(at.part, channel / shape::PIECE) + channel % shape::PIECE;
    }
    /* The tile from t0 on, on its way; past the end, the last step. */
    __device__ __forceinline__ void copy(typename shape::room &room, typename shape::tile &tile, const params &p,
                                         int t0, int end) const
    {
        T *const bc = (shape::CONVERTS ? room.bc : reinterpret_cast<T *>(tile.bc[0])) + bc_to;
#pragma unroll
        for (int i = 0; i < shape::STEPS; i += shape::ROWS) {
            const int t = min(t0 + row + i, end - 1);
            T *const x = room.rows[0] + to + i * shape::CHANNELS;
            if (!shape::HALVES || first_half)
                ptx::copy_16_of_line(x, u0.at(t, p.u_step)); /* neighbours read the rest of it */
            if (!shape::HALVES || !first_half) {
                ptx::copy_16_of_line(x + PLANE, dt0.at(t, p.dt_step));
                ptx::copy_16_of_line(x + 2 * PLANE, z0.at(t, p.z_step));
            }
        }
#pragma unroll
        for (int i = 0; i < shape::STEPS; i += shape::BC_ROWS)
            if (shape::BC_ROWS <= shape::STEPS || bc_row < shape::STEPS)
                ptx::copy_16_kept(bc + i * N, ptx::offset(bc0, min(t0 + bc_row + i, end - 1), bc_step));
        if (TIMED && threadIdx.x % shape::THREADS < shape::STEPS)
            ptx::copy_4_kept(room.elapsed + threadIdx.x % shape::THREADS,
                             elapsed0 + min(t0 + int(threadIdx.x) % shape::THREADS, end - 1));
        ptx::commit_copies();
    }
    /* Round j; and of B and C as many parts into the tile as there are rounds. */
    __device__ __forceinline__ void read(const typename shape::room &room, typename shape::tile &tile, int part, int j)
    {
        constexpr int FOURS = 2 * shape::STEPS * N / 4;
        static_assert(FOURS % shape::THREADS == 0, "all threads convert as much");
        const T *const x = room.rows[0] + mine + j * P * shape::CHANNELS;
        u = *reinterpret_cast<const values *>(x);
        dt = *reinterpret_cast<const values *>(x + PLANE);
        z = *reinterpret_cast<const values *>(x + 2 * PLANE);
        if constexpr (TIMED)
            elapsed = room.elapsed[j * P + part];
        if constexpr (shape::CONVERTS)
#pragma unroll
            for (int i = j * shape::THREADS; i < FOURS; i += ROUNDS * shape::THREADS) {
                quad<T> four;
                four.load(room.bc + 4 * (i + int(threadIdx.x) % shape::THREADS));
                tile.bc[0][i + int(threadIdx.x) % shape::THREADS] = four.floats();
            }
    }
    __device__ __forceinline__ float u_at(int, int k) const
    {
        return u.at(k);
    }
    __device__ __forceinline__ float dt_at(int, int k) const
    {
        return dt.at(k);
    }
    __device__ __forceinline__ float gate(const params &, int, int k) const
    {
        return silu(z.at(k));
    }
    __device__ __forceinline__ float lasting(float delta, int, bool there) const
    {
        if constexpr (TIMED)
            return (there ? elapsed : 0.0f) * delta;
        return there ? delta : 0.0f;
    }
    __device__ __forceinline__ void write(const float (&out)[K], const int (&ends)[K], int t, const params &p) const
    {
        if (t < ends[0])
            *reinterpret_cast<values *>(const_cast<T *>(out0.at(t, p.out_step))) = values::of(out);
    }
};

/* Walk steps begin..end, begin a multiple of TILE; all warps of a team do. */
template <typename T, int N, int K, int P, bool TIMED>
__device__ __forceinline__ void walk_copied(typename copied<T, N, K, P, TIMED>::team &team, forward_lane<N, K, P> &lane,
                                            const params &p, const place<K, P> &at, int begin, int end)
{
    using shape = copied<T, N, K, P, TIMED>;
    constexpr int STEPS = shape::STEPS, TILES = shape::TILES, ROOMS = shape::ROOMS;
    constexpr bool LATE = P == 2; /* put when the next round is prepared: reads after a store wait for what it stores */
    if (begin >= end)
        return;
    copied_inputs<T, N, K, P, TIMED> inputs(p, at);
    outputs<K> outputs;
    float longest[K];
    float2 steps[K];
    const auto meet = [] {
        if constexpr (shape::TEAM == 1)
            __syncwarp();
        else
            __syncthreads();
    };
    const auto own = [&](int tile) -> typename shape::part {
        return {team.tiles[tile].bc, team.tiles[tile].steps[at.warp % shape::TEAM]};
    };
    const auto prepare = [&](int room, int tile, int t0, int j) {
        inputs.read(team.rooms[room], team.tiles[tile], at.part, j);
        prepare_round(steps, longest, outputs, lane, inputs, p, at, t0, end, j);
    };
    const auto put = [&](int tile, int j) {
        auto to = own(tile);
        put_round(to, steps, at, j);
    };
#pragma unroll
    for (int k = 0; k < K; k++)
        outputs.ends[k] = at.has(p, k) ? end : 0;
#pragma unroll
    for (int i = 0; i < ROOMS; i++)
        inputs.copy(team.rooms[i], team.tiles[i % TILES], p, begin + i * STEPS, end);
    ptx::wait_for_groups<ROOMS - 1>();
    meet();
#pragma unroll
    for (int j = 0; j < ROUNDS; j++)
        prepare(0, 0, begin, j), put(0, j);
    bool exactly = remembers_long(lane, longest);
    const int keeps = ptx::opaque(p.s.states != nullptr);
    int room = 0, now = 0;
#pragma unroll 1
    for (int t0 = begin; t0 < end; t0 += STEPS) {
        const int next = now + 1 == TILES ? 0 : now + 1, before = now == 0 ? TILES - 1 : now - 1;
        ptx::wait_for_groups<ROOMS - 2>(); /* the next tile's */
        meet();                            /* and this one is prepared; all have read its room, and the tile before */
        inputs.copy(team.rooms[room], team.tiles[before], p, t0 + ROOMS * STEPS, end);
        if (keeps && (STEPS % TILE == 0 || t0 % TILE == 0))
            store_states<N, K, P>(checkpoint(p, at, t0), lane.h, p, at);
        room = room + 1 == ROOMS ? 0 : room + 1;
        if (exactly) {
            walk_exactly(own(now), lane, outputs, inputs, p, at, t0);
#pragma unroll
            for (int j = 0; j < ROUNDS; j++)
                prepare(room, next, t0 + STEPS, j), put(next, j);
        } else {
            walk_tile(own(now), lane, outputs, inputs, p, at, t0, [&](int j) {
                if (LATE && j > 0)
                    put(next, j - 1);
                prepare(room, next, t0 + STEPS, j);
                if (!LATE)
                    put(next, j);
            });
            if (LATE)
                put(next, ROUNDS - 1);
        }
        exactly = remembers_long(lane, longest);
        now = next;
    }
    ptx::wait_for_copies();
}

/* As scan_forward; d_state is N. */
template <typename T, int N, int K, int P, bool TIMED>
__global__ void __launch_bounds__(32 * WARPS, forward_blocks(N, K, P)) scan_copied(const params p)
{
    using shape = copied<T, N, K, P, TIMED>;
    extern __shared__ __align__(16) unsigned char shared[];
    const place<K, P> at(p.chunks, K == 2 ? lanes::PAIRED : lanes::BRAIDED);
    forward_lane<N, K, P> lane;
    start_lane(lane, p, at);
    ptx::wait_for_kernels();
    follow_maps<T, N, K, P>(lane.h, lane.A2, p, at, -1, p.s.h0);
    const int begin = at.chunk * p.chunk_steps, end = min(p.s.length, begin + p.chunk_steps);
    walk_copied<T, N, K, P, TIMED>(reinterpret_cast<typename shape::team *>(shared)[at.warp / shape::TEAM], lane, p, at,
                                   begin, end);
    store_end<N, K, P>(lane.h, p, at, begin, end);
}

} /* namespace scan */

#endif
