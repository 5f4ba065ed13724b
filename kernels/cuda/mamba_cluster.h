/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_MAMBA_CLUSTER_H
#define KERNELS_CUDA_MAMBA_CLUSTER_H

/* A whole stack of Mamba layers over one step of a few streams, in one launch: the low-latency twin of mamba_step.h,
 * which says what is computed and how states lie. A stream's result and state are the same bits as there.
 *
 * Grid: a thread block cluster of 16 blocks of 512 threads advances 1, 2, 4 or 8 streams through all layers;
 * clusters share nothing, so as many run side by side as the device has room for (7 on an H100 with 132
 * multiprocessors). Each block holds its sixteenth of every matrix in shared memory and meets the others three times a
 * layer, through distributed shared memory.
 *
 * Bytes: the weights once a cluster, from L2 when they are still there (0.87 MB a layer and piece), and mamba_step.h's
 * states. Its time is not made of bytes, though, but of the latencies one layer's phases have one after the other.
 *
 * Nothing is allocated or synchronised; calls work under graph capture and from any thread. */

#include "kernels/cuda/mamba_step.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MAMBA_CLUSTER_LAYERS = 16 }; /* in one launch */

/* How many streams one launch can advance at once on the current device; more than that take turns. 0: not these
 * layers, not in this precision, or not on this device. Takes D 256, E 512, N 16, K 4, R 16 and 1..16 layers whose
 * weights all have one piece, or all `precision` pieces, and whose vectors are 16-byte aligned. */
int mamba_cluster_streams(const struct mamba_cuda *layers, int n, int precision, int state_bf16);

/* x (rows, 256) in and out, contiguous, 16-byte aligned, through n layers; step->workspace is not used. `together` is
 * how many streams share a cluster, 1, 2, 4 or 8, or 0 for as few as let all rows run at once. May start before what is
 * in front of it in the stream has finished, but until then reads nothing but weights. Gives 0, a
 * cudaError_t, or -1 for what mamba_cluster_streams() doesn't take. */
int mamba_cluster_step(const struct mamba_cuda *layers, int n, const struct step_cuda *step, float *x, int together,
                       void *stream);

#ifdef __cplusplus
}
#endif

#endif
