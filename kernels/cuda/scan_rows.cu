/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/scan_rows.h"

#include "kernels/cuda/linear.h"
#include "kernels/cuda/math.cuh"

namespace
{

constexpr int STATES_MAX = 64, LANES = 32;

__device__ __forceinline__ float get(float x)
{
    return x;
}
__device__ __forceinline__ float get(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ void put(float *at, float x)
{
    *at = x;
}
__device__ __forceinline__ void put(__nv_bfloat16 *at, float x)
{
    *at = __float2bfloat16(x);
}

template <bool ZOH>
__device__ __forceinline__ float step(const struct scan_rows_cuda &s, int64_t t, int e, float (*h)[LANES], int lane)
{
    const float u = s.u[t * s.E + e], delta = math::time_step(s.dt[t * s.E + e], s.elapsed[t]);
    float sum = 0.0f;
    for (int n = 0; n < s.N; n++) {
        h[n][lane] = math::next_state<PRECISION_FP32, ZOH>(h[n][lane], s.A[n * s.E + e], delta, u, s.B[t * s.mixed_row + n]);
        sum = fmaf(s.C[t * s.mixed_row + n], h[n][lane], sum);
    }
    return math::gated(sum, s.skip[e], u, s.z[t * s.z_row + e]);
}

/* The state stands in shared memory, a column a lane: its size is known only at run time. */
template <typename STATE, bool ZOH> __global__ void scan_rows(struct scan_rows_cuda s)
{
    __shared__ float h[STATES_MAX][LANES];
    const int lane = int(threadIdx.x), e = int(blockIdx.x) * LANES + lane;
    if (e >= s.E) {
        return;
    }
    STATE *state =
        reinterpret_cast<STATE *>(static_cast<char *>(s.states) + size_t(s.slots[0]) * s.state_stride + s.state_at);
    for (int n = 0; n < s.N; n++) {
        h[n][lane] = get(state[n * s.E + e]);
    }
    for (int64_t t = 0; t < s.rows; t++) {
        s.y[t * s.E + e] = step<ZOH>(s, t, e, h, lane);
    }
    for (int n = 0; n < s.N; n++) {
        put(&state[n * s.E + e], h[n][lane]);
    }
}

template <typename STATE> void launch(const struct scan_rows_cuda &s, cudaStream_t stream)
{
    const unsigned blocks = unsigned((s.E + LANES - 1) / LANES);
    if (s.zoh) {
        scan_rows<STATE, true><<<blocks, LANES, 0, stream>>>(s);
    } else {
        scan_rows<STATE, false><<<blocks, LANES, 0, stream>>>(s);
    }
}

} /* namespace */

int scan_rows_cuda(const struct scan_rows_cuda *scan, void *stream)
{
    if (scan->N < 1 || scan->N > STATES_MAX) {
        return -1;
    }
    if (scan->state_bf16) {
        launch<__nv_bfloat16>(*scan, static_cast<cudaStream_t>(stream));
    } else {
        launch<float>(*scan, static_cast<cudaStream_t>(stream));
    }
    return int(cudaGetLastError());
}
