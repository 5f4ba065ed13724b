/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_MAMBA_TEAM_H
#define KERNELS_CUDA_MAMBA_TEAM_H

/* A whole stack of Mamba layers over one step of many streams, in one launch: mamba_cluster.h's sister for more streams
 * than that one has room for, and mamba_step.h's twin. A stream's result and state are the same bits as there.
 *
 * Grid: a team, a thread block cluster of 8 blocks of 512 threads, takes up to 24 streams (16 at more than one piece)
 * through all layers, then the next ones; as many teams as the device has room for (15 on an H100) share nothing. A
 * block has an eighth of a layer's matrices in shared memory, and meets the others four times a layer, through
 * distributed shared memory.
 *
 * Bytes: the weights once a team and pass, from L2 (0.87 MB a layer), and mamba_step.h's states.
 *
 * Nothing is allocated or synchronised; calls work under graph capture and from any thread. */

#include "kernels/cuda/mamba_step.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MAMBA_TEAM_LAYERS = 16 }; /* in one launch */

/* How many streams one launch can advance at once on the current device; more than that take turns. 0: not these
 * layers, not in this precision, or not on this device. Takes D 256, E 512, N 16, K 4, R 16 and 1..16 layers whose
 * weights have one piece; bf16 states at PRECISION_BF16. */
int mamba_team_streams(const struct mamba_cuda *layers, int n, int precision, int state_bf16);

/* x (rows, 256) in and out, contiguous, 16-byte aligned, through n layers; step->workspace is not used. May start
 * before what is in front of it in the stream has finished, and reads slots, phase and elapsed before it waits for it.
 * Gives 0, a cudaError_t, or -1 for what mamba_team_streams() doesn't take. */
int mamba_team_step(const struct mamba_cuda *layers, int n, const struct step_cuda *step, float *x, void *stream);

#ifdef __cplusplus
}
#endif

#endif
