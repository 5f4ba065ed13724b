/* SPDX-License-Identifier: MIT */

/* The selective scan on the GPU; selective_scan.h says what it computes. Twin: `selective_scan` in kernels/. This file
 * plans and launches; the kernels are in selective_scan_forward.h and selective_scan_backward.h. */

#include "kernels/cuda/selective_scan_backward.h"
#include "kernels/cuda/selective_scan_forward.h"

#include <algorithm>
#include <cuda_runtime.h>

namespace
{

using namespace scan;

int ceil_div(int64_t a, int64_t b)
{
    return int((a + b - 1) / b);
}

int multiprocessors()
{
    int device = 0, count = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1)
        return 132;
    return count;
}

/* States a channel as the kernels take them: the rest are zero. */
int padded(int N)
{
    return N <= 4 ? 4 : N <= 8 ? 8 : N <= 16 ? 16 : N <= 32 ? 32 : 64;
}

/* Channels a lane, warps a block, chunks of time. */
struct plan {
    int K, warps, chunks, chunk_steps;
};

/* Measured on an H100 (132 multiprocessors). Chunks cost a second pass over the inputs, so time is split only where
 * channels give a multiprocessor fewer than ENOUGH warps, and then into FULL; blocks are of two warps below FULL, which
 * spreads them evener. Chunks are no shorter than MIN_CHUNK steps (a launch costs as much), than MIN_CHUNK_2 with two
 * channels a lane, and no longer than MAX_CHUNK. */
constexpr int ENOUGH = 5, FULL = 12, MIN_CHUNK = 64, MIN_CHUNK_2 = 256, MAX_CHUNK = 12288;

int64_t warps_of(const selective_scan_cuda &s, int K)
{
    return int64_t(s.batch) * ceil_div(s.channels, GROUPS * K);
}

bool fills(const selective_scan_cuda &s, int K, int64_t sms)
{
    return warps_of(s, K) >= ENOUGH * sms;
}

/* Steps a chunk that give FULL warps a multiprocessor. */
int filling_steps(const selective_scan_cuda &s, int K, int64_t sms)
{
    int64_t chunks = FULL * sms / warps_of(s, K);
    chunks = chunks > 1 ? chunks : 1;
    while (s.length > chunks * MAX_CHUNK)
        chunks *= 2;
    return ceil_div(s.length, chunks);
}

void split(plan &plan, const selective_scan_cuda &s, int64_t sms)
{
    int steps = s.chunk_steps ? s.chunk_steps : s.length;
    if (!s.chunk_steps && !fills(s, plan.K, sms))
        steps = std::max(filling_steps(s, plan.K, sms), MIN_CHUNK);
    plan.chunk_steps = ceil_div(steps, TILE) * TILE;
    plan.chunks = ceil_div(s.length, plan.chunk_steps);
}

plan plan_forward(const selective_scan_cuda &s)
{
    const int64_t sms = multiprocessors();
    plan plan = {1, WARPS, 1, 0};
    const bool good = fills(s, 2, sms) || (!fills(s, 1, sms) && filling_steps(s, 2, sms) >= MIN_CHUNK_2);
    if (padded(s.d_state) == 16 && (s.channels_per_lane == 2 || (!s.channels_per_lane && good)))
        plan.K = 2;
    split(plan, s, sms);
    if (warps_of(s, plan.K) * plan.chunks < (FULL - 1) * sms)
        plan.warps = 2;
    return plan;
}

plan plan_backward(const selective_scan_cuda &s)
{
    plan plan = {1, WARPS, 1, 0};
    split(plan, s, multiprocessors());
    return plan;
}

plan plan_scan(const selective_scan_cuda &s, bool backward)
{
    return backward ? plan_backward(s) : plan_forward(s);
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
    p.groups = ceil_div(s.channels, GROUPS * WARPS), p.a_row = (s.channels * (s.d_state + 2) + 3) / 4 * 4;
    set_rows(p);
    float *at = static_cast<float *>(s.workspace);
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
        float *here = at ? at + used : nullptr;
        used += (floats + 3) / 4 * 4; /* keep 16-byte alignment */
        return here;
    };
    if (p.chunks > 1) {
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

/* ---- launches ----------------------------------------------------------------------------------------------- */

/* overlaps: the kernel may start before the one before it is over; it waits itself. */
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, bool overlaps, void *stream,
                   Arguments... arguments)
{
    const void *const function = reinterpret_cast<const void *>(kernel);
    if (shared > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
        if (error != cudaSuccess)
            return error;
    }
    void *values[] = {static_cast<void *>(&arguments)...};
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = shared, config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute, config.numAttrs = overlaps ? 1 : 0;
    return cudaLaunchKernelExC(&config, function, values);
}

template <typename T, int N, int K> cudaError_t forward(const params &p, const plan &plan, void *stream)
{
    const int groups = ceil_div(p.s.channels, GROUPS * K * plan.warps), threads = 32 * plan.warps;
    const size_t shared = size_t(plan.warps) * sizeof(forward_tile<N, K>);
    const auto grid = [&](int chunks) { return dim3(unsigned(groups * chunks), unsigned(p.s.batch)); };
    cudaError_t error = cudaSuccess;
    if (p.chunks > 1)
        error = launch(scan_map<T, N, K>, grid(p.chunks - 1), threads, shared, false, stream, p);
    if (error == cudaSuccess)
        error = launch(scan_forward<T, N, K>, grid(p.chunks), threads, shared, p.chunks > 1, stream, p);
    return error;
}

template <typename T> cudaError_t forward_of(const params &p, const plan &plan, void *stream)
{
    switch (padded(p.s.d_state)) {
    case 4:
        return forward<T, 4, 1>(p, plan, stream);
    case 8:
        return forward<T, 8, 1>(p, plan, stream);
    case 32:
        return forward<T, 32, 1>(p, plan, stream);
    case 64:
        return forward<T, 64, 1>(p, plan, stream);
    default:
        return plan.K == 2 ? forward<T, 16, 2>(p, plan, stream) : forward<T, 16, 1>(p, plan, stream);
    }
}

template <typename T, int N, int BLOCKS> cudaError_t backward(const params &p, void *stream)
{
    constexpr int PARTS = sizeof(T) == 2 ? 1 : 2;
    const size_t shared = sizeof(backward_block<N>);
    const auto grid = [&](int chunks) { return dim3(unsigned(p.groups * chunks), unsigned(p.s.batch)); };
    const int64_t elements = int64_t(p.s.batch) * p.s.length * 2 * N, width = int64_t(p.s.channels) * (p.s.d_state + 2);
    cudaError_t error = cudaSuccess;
    if (p.chunks > 1)
        error = launch(scan_backward_map<T, N>, grid(p.chunks - 1), 32 * WARPS, shared, false, stream, p);
    if (error == cudaSuccess)
        error = launch(scan_backward<T, N, PARTS, BLOCKS>, grid(p.chunks), 32 * WARPS, shared, false, stream, p);
    if (error == cudaSuccess)
        error = launch(reduce_bc<T, N>, dim3(unsigned(ceil_div(elements, 128))), 128, 0, false, stream, p);
    if (error == cudaSuccess)
        error = launch(reduce_a, dim3(unsigned(ceil_div(width, 32))), 256, 0, false, stream, p);
    return error;
}

template <typename T> cudaError_t backward_of(const params &p, void *stream)
{
    switch (padded(p.s.d_state)) {
    case 4:
        return backward<T, 4, 3>(p, stream);
    case 8:
        return backward<T, 8, 3>(p, stream);
    case 32:
        return backward<T, 32, 2>(p, stream);
    case 64:
        return backward<T, 64, 1>(p, stream);
    default:
        return backward<T, 16, 3>(p, stream);
    }
}

bool sizes_valid(const selective_scan_cuda &s)
{
    return s.batch >= 1 && s.batch <= 65535 && s.length >= 1 && s.channels >= 1 && s.chunk_steps >= 0 &&
           s.d_state >= 1 && s.d_state <= 64 && s.channels_per_lane >= 0 && s.channels_per_lane <= 2;
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
    if (!sizes_valid(*scan))
        return -1;
    const plan plan = plan_scan(*scan, false);
    const params p = make_params(*scan, plan, false, &bytes);
    return scan->bf16 ? forward_of<__nv_bfloat16>(p, plan, stream) : forward_of<float>(p, plan, stream);
}

int selective_scan_cuda_backward(const struct selective_scan_cuda *scan, void *stream)
{
    size_t bytes;
    if (!sizes_valid(*scan) || !scan->states)
        return -1;
    const params p = make_params(*scan, plan_scan(*scan, true), true, &bytes);
    return scan->bf16 ? backward_of<__nv_bfloat16>(p, stream) : backward_of<float>(p, stream);
}

const char *selective_scan_cuda_error(int result)
{
    return result == -1 ? "sizes this scan does not take" : cudaGetErrorString(cudaError_t(result));
}
