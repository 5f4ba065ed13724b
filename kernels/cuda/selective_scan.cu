/* SPDX-License-Identifier: MIT */

/* The selective scan on the GPU; selective_scan.h says what it computes. Twin: `selective_scan` in kernels/. This file
 * plans and launches; the kernels are in selective_scan_forward.h, selective_scan_copied.h, selective_scan_chunks.h,
 * selective_scan_ahead.h, selective_scan_together.h, selective_scan_backward.h and selective_scan_fed.h. */

#include "kernels/cuda/selective_scan_ahead.h"
#include "kernels/cuda/selective_scan_copied.h"
#include "kernels/cuda/selective_scan_fed.h"
#include "kernels/cuda/selective_scan_together.h"

#include <algorithm>
#include <cuda_runtime.h>

namespace
{

using namespace scan;

int ceil_div(int64_t a, int64_t b)
{
    return int((a + b - 1) / b);
}

/* States a channel as the kernels take them: the rest are zero. */
int padded(int N)
{
    return N <= 4 ? 4 : N <= 8 ? 8 : N <= 16 ? 16 : N <= 32 ? 32 : 64;
}

/* How channels and time are laid out: K channels a lane, P lanes a channel, blocks a multiprocessor holds. */
struct plan {
    int K, P, blocks, chunks, chunk_steps;
    bool together;    /* chunks are a cluster's blocks, of 32 steps a warp */
    bool fed = false; /* backward, by blocks of scan_backward_fed */
};

/* Measured on an H100 (132 multiprocessors). Chunks cost a second walk of the steps that a state remembers, so time is
 * cut where channels give a multiprocessor fewer than ENOUGH warps, into as many chunks as it holds at once: no longer
 * than MAX_CHUNK, and no shorter than MIN_FORWARD or a sixteenth, MIN_BACKWARD (a launch costs as much), MIN_WIDE with
 * two channels a lane. And where so many LONG_ chunks fill the machine with a mapping that takes fewer cycles an
 * element: with two lanes a channel, else four. */
constexpr int ENOUGH = 7, MIN_FORWARD = 32, MIN_BACKWARD = 64, MIN_WIDE = 192, MAX_CHUNK = 16384, LONG_2 = 12288,
              LONG_4 = 4096;

/* Chunks of fewer steps have maps of four steps a lane at a time, not eight: (1, 512) 2^10 takes 14 us so, 19 with
 * eight; (1, 512) 2^20 takes 5 % less with eight. */
constexpr int MIN_EIGHT = 128;

/* Chunks so long and so many have scan_map_ahead: (1, 512) 2^17 takes 7 % less in fp32, 6 % in bf16. 2^14, whose chunks
 * have 256 steps, would take 2 % more, and so would (8, 1536) 2^14, two chunks a sequence, in fp32. */
constexpr int LONG_AHEAD = 1024, MANY_AHEAD = 8;

/* Steps from which on inputs are copied ahead: (1, 512) 2048, 64 steps a chunk, would take 10 % more, (64, 512) 512 in
 * fp32 4 %. */
constexpr int SHORT_COPIED = 128, LONG_COPIED = 1024;

/* Warps of a block of scan_together: one thread a state of its channels. */
constexpr int FEWEST_TOGETHER = 4;

int64_t warps_of(const selective_scan_cuda &s, const plan &plan)
{
    return int64_t(s.batch) * ceil_div(s.channels, 32 / plan.P * plan.K);
}

/* Warps the machine holds at once. */
int64_t wave_of(const plan &plan, int64_t sms)
{
    return plan.blocks * WARPS * sms;
}

/* How full the waves are that so many warps need. */
double fill(const plan &plan, int64_t warps, int64_t sms)
{
    const int64_t wave = wave_of(plan, sms);
    return double(warps) / double(wave * ceil_div(warps, wave));
}

/* Whole sequences fill three quarters of the waves they need. */
bool fills(const selective_scan_cuda &s, const plan &plan, int64_t sms)
{
    return fill(plan, warps_of(s, plan), sms) >= 0.75;
}

/* The fewest chunks of `shortest` steps and more that fill nine tenths of their waves; 0: there are none. */
int filling_chunks(const selective_scan_cuda &s, const plan &plan, int64_t sms, int shortest)
{
    for (int chunks = 1; chunks == 1 || s.length / chunks >= shortest; chunks++)
        if (fill(plan, warps_of(s, plan) * chunks, sms) >= 0.9)
            return chunks;
    return 0;
}

/* Steps a chunk that fill one wave. */
int filling_steps(const selective_scan_cuda &s, const plan &plan, int64_t sms)
{
    int64_t chunks = std::max<int64_t>(wave_of(plan, sms) / warps_of(s, plan), 1);
    while (s.length > chunks * MAX_CHUNK)
        chunks *= 2;
    return ceil_div(s.length, chunks);
}

bool needs_cut(const selective_scan_cuda &s, const plan &plan, int64_t sms)
{
    return warps_of(s, plan) < ENOUGH * sms;
}

void split(plan &plan, const selective_scan_cuda &s, int64_t sms, int shortest)
{
    int steps = s.chunk_steps ? s.chunk_steps : ceil_div(s.length, plan.chunks);
    if (!s.chunk_steps && plan.chunks == 1 && needs_cut(s, plan, sms))
        steps = std::max(filling_steps(s, plan, sms), shortest);
    plan.chunk_steps = ceil_div(steps, TILE) * TILE;
    plan.chunks = ceil_div(s.length, plan.chunk_steps);
}

/* Two channels a lane (wide) take fewer instructions an element: where they fill the machine, and where time is cut
 * anyway. */
bool goes_wide(const selective_scan_cuda &s, const plan &wide, const plan &narrow, int64_t sms)
{
    return fills(s, wide, sms) || (needs_cut(s, narrow, sms) && filling_steps(s, wide, sms) >= MIN_WIDE);
}

/* The layout, and chunks where they are more than one but time needn't be cut. */
plan layout_forward(const selective_scan_cuda &s, int64_t sms)
{
    const int N = padded(s.d_state);
    const auto layout = [N](int K, int P, int chunks = 1) {
        return plan{K, P, forward_blocks(N, K, P), chunks, 0, false};
    };
    const plan narrow = layout(1, 4), two = layout(2, 2), four = layout(2, 4);
    const plan thin = {1, 4, 3, 1, 0, false}; /* narrow, three blocks a multiprocessor: (8, 1536) needn't be cut so */
    if (N != 16)
        return narrow;
    if (s.channels_per_lane)
        return s.channels_per_lane == 1 ? narrow : s.lanes_per_channel == 4 ? four : two;
    if (needs_cut(s, narrow, sms))
        return goes_wide(s, two, narrow, sms) ? two : fills(s, four, sms) ? four : narrow;
    if (const int chunks = filling_chunks(s, two, sms, LONG_2))
        return layout(2, 2, chunks);
    if (fills(s, two, sms))
        return two;
    if (fills(s, four, sms))
        return four;
    if (fill(thin, warps_of(s, thin), sms) >= 0.9)
        return narrow;
    if (const int chunks = filling_chunks(s, four, sms, LONG_4))
        return layout(2, 4, chunks);
    return narrow;
}

/* Blocks of scan_backward_fed, one a multiprocessor, fill nine tenths of their waves, which are no more than narrow's,
 * and three quarters of their warps have channels: (8, 1536) 2^13 takes 15 % less by them, bf16 20 %. */
bool fills_fed(const selective_scan_cuda &s, const plan &narrow, int64_t sms)
{
    const int64_t blocks = int64_t(s.batch) * ceil_div(s.channels, FED_CHANNELS), warps = warps_of(s, narrow);
    const int waves = ceil_div(blocks, sms);
    return double(blocks) >= 0.9 * double(sms * waves) && waves <= ceil_div(warps, wave_of(narrow, sms)) &&
           4 * warps >= 3 * WALKERS * blocks;
}

/* fp32 goes wide in LONG_4 chunks too, which takes 5 % less: 2 % less of states that remember some thousand steps, 2 %
 * more where nothing is forgotten. bf16 takes 1 % more. */
plan layout_backward(const selective_scan_cuda &s, int64_t sms)
{
    const int N = padded(s.d_state);
    plan wide = {2, 4, backward_blocks(N), 1, 0, false};
    const plan narrow = {1, 4, backward_blocks(N), 1, 0, false};
    const bool fed =
        s.channels_per_lane ? s.channels_per_lane == 1 && s.lanes_per_channel == 4 : fills_fed(s, narrow, sms);
    if (N == 16 && fed && rows::has_shared(sizeof(fed_block<16>)))
        return {1, 4, backward_blocks(N), 1, 0, false, true};
    if (N != 16 || s.channels_per_lane == 1)
        return narrow;
    if (s.channels_per_lane == 2 || goes_wide(s, wide, narrow, sms))
        return wide;
    wide.chunks = s.bf16 || s.chunk_steps || needs_cut(s, narrow, sms) ? 0 : filling_chunks(s, wide, sms, LONG_4);
    return wide.chunks ? wide : narrow;
}

int together_warps(const selective_scan_cuda &s, int blocks)
{
    return std::max(ceil_div(s.length, int64_t(blocks) * TOGETHER_STEPS), FEWEST_TOGETHER);
}

/* Clusters that the machine holds at once, a block a multiprocessor: larger ones than pairs leave some unused. */
int64_t clusters_at_once(int blocks, int64_t sms)
{
    return (blocks > 2 ? sms / 2 : sms) / blocks;
}

/* Blocks of a cluster where a sequence is so short that it goes through the machine at once; 0: it isn't. */
int blocks_together(const selective_scan_cuda &s, int64_t sms)
{
    const int64_t clusters = int64_t(s.batch) * ceil_div(s.channels, GROUPS);
    int blocks = 1;
    if (padded(s.d_state) != 16 || s.chunk_steps || s.channels_per_lane)
        return 0;
    while (blocks < MAX_BLOCKS && clusters <= clusters_at_once(2 * blocks, sms) &&
           together_warps(s, blocks) > FEWEST_TOGETHER)
        blocks *= 2;
    return clusters <= clusters_at_once(blocks, sms) && together_warps(s, blocks) <= TOGETHER_WARPS ? blocks : 0;
}

plan plan_scan(const selective_scan_cuda &s, bool backward)
{
    const int64_t sms = rows::multiprocessors();
    if (const int blocks = backward ? 0 : blocks_together(s, sms))
        return {1, 4, 1, blocks, together_warps(s, blocks) * TOGETHER_STEPS, true};
    plan plan = backward ? layout_backward(s, sms) : layout_forward(s, sms);
    split(plan, s, sms, backward ? MIN_BACKWARD : std::min(std::max(s.length / 16, MIN_FORWARD), 2 * MIN_FORWARD));
    return plan;
}

bool vectors(const void *x, int64_t row, int size)
{
    return uintptr_t(x) % (4 * unsigned(size)) == 0 && row % 4 == 0;
}

void set_rows(params &p)
{
    const selective_scan_cuda &s = p.s;
    const int size = s.bf16 ? 2 : 4;
    p.u_step = int(s.u_row) * size, p.dt_step = int(s.dt_row) * size;
    p.z_step = s.z ? int(s.z_row) * size : p.u_step;
    p.B_step = int(s.B_row) * size, p.C_step = int(s.C_row) * size, p.out_step = int(s.out_row) * size;
    p.dout_step = int(s.dout_row) * size, p.du_step = int(s.du_row) * size;
    p.ddt_step = int(s.ddt_row) * size, p.dz_step = int(s.dz_row) * size;
    p.vector_bc = s.d_state == padded(s.d_state) && vectors(s.B, s.B_row, size) && vectors(s.C, s.C_row, size);
    p.elapsed_mask = s.elapsed ? -1 : 0;
}

params make_params(const selective_scan_cuda &s, const plan &plan, bool backward, size_t *bytes)
{
    const int N = padded(s.d_state);
    params p = {};
    p.s = s;
    p.chunks = plan.chunks, p.chunk_steps = plan.chunk_steps, p.tiles = ceil_div(s.length, TILE);
    p.groups = ceil_div(s.channels, GROUPS * plan.K * (plan.fed ? WALKERS : WARPS));
    p.a_row = (s.channels * (s.d_state + 2) + 3) / 4 * 4;
    set_rows(p);
    float *at = static_cast<float *>(s.workspace);
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
        float *here = at ? at + used : nullptr;
        used += (floats + 3) / 4 * 4; /* keep 16-byte alignment */
        return here;
    };
    if (p.chunks > 1 && !plan.together) {
        p.maps = take(int64_t(s.batch) * p.chunks * s.channels * N);
        p.sums = take(int64_t(s.batch) * p.chunks * s.channels);
    }
    if (backward) {
        p.partial_bc = take(int64_t(p.groups) * s.batch * s.length * 2 * N);
        p.partial_a = take(int64_t(s.batch) * p.chunks * p.a_row);
    }
    *bytes = size_t(used) * sizeof(float);
    return p;
}

/* Rows of channels are whole pieces of 16 bytes. */
bool pieces(const void *x, int64_t row, int channels, int size)
{
    return uintptr_t(x) % 16 == 0 && row * size % 16 == 0 && channels * size % 16 == 0;
}

/* ---- launches ----------------------------------------------------------------------------------------------- */

/* overlaps: the kernel may start before the one before it is over; it waits itself. together: blocks of a cluster. */
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, bool overlaps, int together,
                   void *stream, Arguments... arguments)
{
    const void *const function = reinterpret_cast<const void *>(kernel);
    if (shared > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
        if (error != cudaSuccess)
            return error;
    }
    void *values[] = {static_cast<void *>(&arguments)...};
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {unsigned(together), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = shared, config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes, config.numAttrs = overlaps ? 2 : 1;
    return cudaLaunchKernelExC(&config, function, values);
}

template <typename T, int N, bool BACK> cudaError_t map_chunks(const params &p, void *stream)
{
    if (p.chunks == 1)
        return cudaSuccess;
    const int blocks = ceil_div(p.s.channels, GROUPS * WARPS) * (p.chunks - 1) * (N / SPAN<N>);
    return launch(p.chunk_steps < MIN_EIGHT ? scan_map<T, N, BACK, 4> : scan_map<T, N, BACK, 8>,
                  dim3(unsigned(blocks), unsigned(p.s.batch)), 32 * WARPS, 0, true, 1, stream, p);
}

bool goes_ahead(const params &p, int size)
{
    return p.chunk_steps >= LONG_AHEAD && p.chunks >= MANY_AHEAD && pieces(p.s.u, p.s.u_row, p.s.channels, size) &&
           pieces(p.s.dt, p.s.dt_row, p.s.channels, size);
}

template <typename T, int N> cudaError_t map_forward(const params &p, void *stream)
{
    if constexpr (N == 16)
        if (goes_ahead(p, int(sizeof(T)))) {
            const int blocks = ceil_div(p.s.channels, AHEAD_CHANNELS) * (p.chunks - 1);
            return launch(scan_map_ahead<T, N>, dim3(unsigned(blocks), unsigned(p.s.batch)), 32 * WARPS, 0, true, 1,
                          stream, p);
        }
    return map_chunks<T, N, false>(p, stream);
}

/* scan_copied takes it, with K channels a lane, and less time than scan_forward. It asks for three tiles at once when
 * it begins, which whole fp32 sequences of 512 steps wait for in vain; chunks' inputs are in L2 already. */
bool copies(const params &p, int K, int size)
{
    const selective_scan_cuda &s = p.s;
    const auto whole = [size](const void *x, int64_t row, int width) { return pieces(x, row, width, size); };
    return p.chunk_steps >= (p.chunks > 1 || s.bf16 ? SHORT_COPIED : LONG_COPIED) && s.d_state == 16 && s.z &&
           whole(s.u, s.u_row, s.channels) && whole(s.dt, s.dt_row, s.channels) && whole(s.z, s.z_row, s.channels) &&
           whole(s.B, s.B_row, 16) && whole(s.C, s.C_row, 16) && uintptr_t(s.out) % unsigned(K * size) == 0 &&
           s.out_row % K == 0;
}

template <typename T, int N, int K, int P, bool TIMED> cudaError_t forward_copied(const params &p, void *stream)
{
    using shape = copied<T, N, K, P, TIMED>;
    const int blocks = ceil_div(p.s.channels, 32 / P * K * WARPS) * p.chunks;
    return launch(scan_copied<T, N, K, P, TIMED>, dim3(unsigned(blocks), unsigned(p.s.batch)), 32 * WARPS,
                  WARPS / shape::TEAM * sizeof(typename shape::team), p.chunks > 1, 1, stream, p);
}

template <typename T, int N, int K, int P> cudaError_t forward(const params &p, void *stream)
{
    const int blocks = ceil_div(p.s.channels, 32 / P * K * WARPS) * p.chunks;
    const cudaError_t error = map_forward<T, N>(p, stream);
    if (error != cudaSuccess)
        return error;
    if constexpr (N == 16)
        if (copies(p, K, int(sizeof(T))))
            return p.s.elapsed ? forward_copied<T, N, K, P, true>(p, stream)
                               : forward_copied<T, N, K, P, false>(p, stream);
    return launch(scan_forward<T, N, K, P>, dim3(unsigned(blocks), unsigned(p.s.batch)), 32 * WARPS,
                  WARPS * sizeof(forward_tile<N, K, P>), p.chunks > 1, 1, stream, p);
}

template <typename T> cudaError_t forward_together(const params &p, void *stream)
{
    const int blocks = ceil_div(p.s.channels, GROUPS) * p.chunks;
    return launch(scan_together<T, 16>, dim3(unsigned(blocks), unsigned(p.s.batch)), p.chunk_steps,
                  together_block<16>::bytes(p.chunk_steps / TOGETHER_STEPS), true, p.chunks, stream, p);
}

template <typename T> cudaError_t forward_of(const params &p, const plan &plan, void *stream)
{
    if (plan.together)
        return forward_together<T>(p, stream);
    switch (padded(p.s.d_state)) {
    case 4:
        return forward<T, 4, 1, 4>(p, stream);
    case 8:
        return forward<T, 8, 1, 4>(p, stream);
    case 32:
        return forward<T, 32, 1, 4>(p, stream);
    case 64:
        return forward<T, 64, 1, 4>(p, stream);
    default:
        if (plan.K == 1)
            return forward<T, 16, 1, 4>(p, stream);
        return plan.P == 2 ? forward<T, 16, 2, 2>(p, stream) : forward<T, 16, 2, 4>(p, stream);
    }
}

template <typename T, int N, int K, bool FED = false> cudaError_t backward(const params &p, void *stream)
{
    const int64_t elements = int64_t(p.s.batch) * p.s.length * 2 * N, width = int64_t(p.s.channels) * (p.s.d_state + 2);
    cudaError_t error = map_chunks<T, N, true>(p, stream);
    if (error == cudaSuccess) {
        const dim3 grid(unsigned(p.groups * p.chunks), unsigned(p.s.batch));
        if constexpr (FED)
            error =
                launch(scan_backward_fed<T, N>, grid, FED_THREADS, sizeof(fed_block<N>), p.chunks > 1, 1, stream, p);
        else
            error = launch(scan_backward<T, N, K>, grid, 32 * WARPS, sizeof(backward_block<N, K>), p.chunks > 1, 1,
                           stream, p);
    }
    if (error == cudaSuccess)
        error = launch(reduce_bc<T, N>, dim3(unsigned(ceil_div(elements, 128))), 128, 0, false, 1, stream, p);
    if (error == cudaSuccess)
        error = launch(reduce_a, dim3(unsigned(ceil_div(width, 32))), 256, 0, false, 1, stream, p);
    return error;
}

template <typename T> cudaError_t backward_of(const params &p, const plan &plan, void *stream)
{
    switch (padded(p.s.d_state)) {
    case 4:
        return backward<T, 4, 1>(p, stream);
    case 8:
        return backward<T, 8, 1>(p, stream);
    case 32:
        return backward<T, 32, 1>(p, stream);
    case 64:
        return backward<T, 64, 1>(p, stream);
    default:
        return plan.fed      ? backward<T, 16, 1, true>(p, stream)
               : plan.K == 2 ? backward<T, 16, 2>(p, stream)
                             : backward<T, 16, 1>(p, stream);
    }
}

/* A chunk's begin and steps are added in 32 bits. */
constexpr int LONGEST = 1 << 30;

bool sizes_valid(const selective_scan_cuda &s)
{
    return s.batch >= 1 && s.batch <= 65535 && s.length >= 1 && s.length <= LONGEST && s.channels >= 1 &&
           s.chunk_steps >= 0 && s.chunk_steps <= LONGEST && s.d_state >= 1 && s.d_state <= 64 &&
           s.channels_per_lane >= 0 && s.channels_per_lane <= 2;
}

/* The bytes between rows are numbers of 32 bits. */
bool rows_valid(const selective_scan_cuda &s, bool backward)
{
    const int64_t most = INT32_MAX / (s.bf16 ? 2 : 4);
    const auto valid = [most](int64_t row) { return row >= 0 && row <= most; };
    return valid(s.u_row) && valid(s.dt_row) && (!s.z || valid(s.z_row)) && valid(s.B_row) && valid(s.C_row) &&
           (backward ? valid(s.dout_row) && valid(s.du_row) && valid(s.ddt_row) && (!s.z || valid(s.dz_row))
                     : valid(s.out_row));
}

} /* namespace */

size_t selective_scan_cuda_workspace_bytes(const struct selective_scan_cuda *scan, int backward)
{
    size_t bytes = 0;
    if (sizes_valid(*scan))
        make_params(*scan, plan_scan(*scan, backward != 0), backward != 0, &bytes);
    return bytes;
}

size_t selective_scan_cuda_states_bytes(const struct selective_scan_cuda *scan)
{
    const int64_t states = int64_t(scan->channels) * scan->d_state;
    return size_t(scan->batch) * size_t(ceil_div(scan->length, TILE)) * size_t(states) * sizeof(float);
}

int selective_scan_cuda_forward(const struct selective_scan_cuda *scan, void *stream)
{
    size_t bytes;
    if (!sizes_valid(*scan) || !rows_valid(*scan, false))
        return -1;
    const plan plan = plan_scan(*scan, false);
    const params p = make_params(*scan, plan, false, &bytes);
    return scan->bf16 ? forward_of<__nv_bfloat16>(p, plan, stream) : forward_of<float>(p, plan, stream);
}

int selective_scan_cuda_backward(const struct selective_scan_cuda *scan, void *stream)
{
    size_t bytes;
    if (!sizes_valid(*scan) || !rows_valid(*scan, true) || !scan->states)
        return -1;
    const plan plan = plan_scan(*scan, true);
    const params p = make_params(*scan, plan, true, &bytes);
    return scan->bf16 ? backward_of<__nv_bfloat16>(p, plan, stream) : backward_of<float>(p, plan, stream);
}

const char *selective_scan_cuda_error(int result)
{
    return result == -1 ? "sizes this scan does not take" : cudaGetErrorString(cudaError_t(result));
}
