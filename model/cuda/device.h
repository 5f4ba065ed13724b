/* SPDX-License-Identifier: MIT */
#ifndef MODEL_CUDA_DEVICE_H
#define MODEL_CUDA_DEVICE_H

/* Which GPUs there are, and what is in the way of using one. */

#include <cuda_runtime.h>

#include "model/backend_cuda.h"

/* As backend_cuda_devices says. */
int device_list(struct backend_cuda_device *devices, int room, struct ssm_error *err);

/* Make the GPU that "cuda" or "cuda:<number>" names the calling thread's, ready to use. Gives its number, or -1 and an
 * error. */
int device_open(const char *name, struct backend_cuda_device *device, struct ssm_error *err);

#endif
