/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_MAMBA_STEP_H
#define KERNELS_CUDA_MAMBA_STEP_H

/* Mamba layers over one step of many streams, on the GPU (Gu & Dao, arXiv 2312.00752; layer_mamba.c says what it is):
 *
 *   x, z = in_proj(rms_norm(input));  u = silu(conv1d(x));  dt, B, C = x_proj(u);  delta = elapsed softplus(dt_proj(dt))
 *   h <- exp(delta A) h + B-bar u;    y = <C, h> + D u;     output = input + out_proj(y silu(z))
 *
 * D 256, E 512, N 16, K 4, R 16 are tuned (and some hundred streams are mamba_team.h's, thousands at PRECISION_FP32
 * mamba_stack.h's); other sizes take a plain path. math.cuh says in which arithmetic. A stream's result and state are the
 * same bits in any batch, row and slot.
 *
 * Bytes of device memory a stream and layer: the state read and written, 4 (2 N E + K E) with fp32 states, half with
 * bf16: 73,728 at E 512, N 16, K 4. At the 3.0 TB/s an H100 copies, 24.6 ns; half with bf16 states.
 *
 * Nothing is allocated or synchronised; calls work under graph capture. They give 0, a cudaError_t, or -1 for sizes or
 * a precision outside what is said here. */

#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* phase counts to here and begins again: a multiple of every K - 1, so that no ring jumps. */
enum { MAMBA_CUDA_PHASES = 360360 };

/* Beside others: leave room for their products; the last of them to begin takes all of the GPU at its end. */
enum { STEP_BESIDE = 1, STEP_LAST = 2 };

/* A layer's weights in device memory. */
struct mamba_cuda {
    int32_t D, E, N, K, R;       /* d_model, d_inner, d_state 1..64, d_conv 1..16, dt_rank                          */
    int32_t zoh;              /* discretisation of B: 0 Euler, 1 zero-order hold                                     */
    struct linear_cuda in_proj;  /* D -> 2 E: x, then z                                                             */
    struct linear_cuda x_proj;   /* E -> R + 2 N: dt, B, C                                                          */
    struct linear_cuda dt_proj;  /* R -> E, with dt_proj.bias as its bias                                           */
    struct linear_cuda out_proj; /* E -> D                                                                          */
    const float *norm;        /* (D)                                                                                */
    const float *conv_weight; /* (K, E)                                                                             */
    const float *conv_bias;   /* (E), or NULL for none                                                              */
    const float *A;           /* (N, E)  -exp(A_log), transposed                                                    */
    const float *skip;        /* (E)     D of the equations above                                                   */
    int64_t state_at;         /* where the layer's part of a slot begins, in elements; a multiple of 8              */
};

/* One step of a batch: the same for all its layers. Device pointers.
 *
 * A slot's part for a layer is layer_mamba.c's: history (K - 1, E), then h (N, E), in fp32 or bf16; but the history is a
 * ring. With phase[slot] steps done so far, the input of k steps ago (1 <= k < K) is in row (phase + K - 1 - k) % (K - 1), and
 * this step's goes over the oldest, in row phase % (K - 1). So row (phase + k) % (K - 1) is row k of the CPU's history.
 * The caller advances phase when all layers are done. */
struct step_cuda {
    int32_t rows;            /* streams, in different slots                                                          */
    int32_t precision;       /* PRECISION_*                                                                          */
    int32_t state_bf16;      /* states hold bf16 instead of fp32                                                     */
    int32_t plain;           /* 1: take the plain path at the tuned sizes too, for tests                             */
    int32_t beside;          /* other steps run beside this one, on other streams: 0 or STEP_*                       */
    const int32_t *slots;    /* (rows)                                                                               */
    const uint32_t *phase;   /* by slot                                                                              */
    const float *elapsed;    /* (rows)  hops of time since the stream's previous step, 1 = no gap                    */
    void *states;            /* 16-byte aligned                                                                      */
    int64_t state_stride;    /* elements from slot to slot; a multiple of 8                                          */
    void *workspace;         /* mamba_cuda_workspace_bytes(), 16-byte aligned; shared by layers that run in turn     */
    void *begun;             /* a cudaEvent_t to record when the first product is done, or NULL. A step beside this one
                              * that waits for it lets this one's states pass as soon as they can                    */
};

/* Elements of a slot's part for this layer: (K - 1 + N) E. Bytes of workspace for up to `rows` rows in any precision. */
size_t mamba_cuda_state(const struct mamba_cuda *layer);
size_t mamba_cuda_workspace_bytes(const struct mamba_cuda *layer, int rows);

/* x (rows, D) in and out, contiguous, 16-byte aligned, through n layers that follow each other. Three launches a layer on `stream`
 * at the tuned sizes, or two beside other steps. They may start before what is in front of them in the stream has finished,
 * and read slots, phase, elapsed and states before they wait for it; so if that is a kernel which lets others start early, it
 * mustn't write those. */
int mamba_cuda_step(const struct mamba_cuda *layers, int n, const struct step_cuda *step, float *x, void *stream);

#ifdef __cplusplus
}
#endif

#endif
