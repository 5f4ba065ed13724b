/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_MAMBA_STACK_H
#define KERNELS_CUDA_MAMBA_STACK_H

/* Mamba layers over one step of many streams, a whole stack in one launch: what mamba_step.h does, bit for bit, at its
 * tuned sizes and PRECISION_FP32. There the products take their time, and here it passes beside that of the states.
 *
 * Grid: at most one block a multiprocessor, 768 threads; a block takes its share of the streams, up to 32 at a time,
 * through all layers. Bytes: mamba_step.h's states; through L2 the weights once a block for each 16 of its streams (0.8
 * MB a layer and piece), and 30 KB a stream and layer.
 *
 * Nothing is allocated or synchronised; calls work under graph capture and from any thread. */

#include <stdbool.h>

#include "kernels/cuda/mamba_step.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MAMBA_STACK_LAYERS = 16 }; /* in one launch */

/* Whether these n >= 1 layers can take this step together, and faster than one by one: rows enough, D 256, E 512, N 16,
 * K 4, R 16, weights that all have one piece or all three. */
bool mamba_stack_takes(const struct mamba_cuda *layers, int n, const struct step_cuda *step);

/* x (rows, 256) in and out, contiguous, 16-byte aligned, through n layers for which mamba_stack_takes() is true. It
 * reads nothing before what is in front of it in the stream has finished. Gives 0 or a cudaError_t. */
int mamba_stack_step(const struct mamba_cuda *layers, int n, const struct step_cuda *step, float *x, void *stream);

#ifdef __cplusplus
}
#endif

#endif
