/* SPDX-License-Identifier: MIT */
#ifndef MODEL_BACKEND_CUDA_H
#define MODEL_BACKEND_CUDA_H

/* The NVIDIA GPUs, through libssm_cuda.so: a library of its own, found when a program asks for a GPU, so that the same
 * program runs where there is none. It is looked for as $SSM_CUDA_LIBRARY names it, or, without that, beside libssm or
 * the program, in the installed libraries, and where the system's loader looks.
 *
 * Threads: any. The library stays open until the program ends. */

#include "model/backend.h"
#include "model/layers.h"

/* One GPU. `index` is the number in "cuda:<number>". */
struct backend_cuda_device {
    int index;
    char name[64];
    size_t bytes, bytes_free;
    int multiprocessors;
    bool runs; /* new enough for what the library was compiled for */
};

/* Gives the GPU backend, or NULL and an error that says what is in the way (code 69). That there is a GPU is seen when
 * the backend opens. */
const struct backend_ops *backend_cuda_find(struct ssm_error *err);

/* Fill in up to `room` GPUs. Gives how many there are, at least 1, or -1 and an error (code 69). */
int backend_cuda_devices(struct backend_cuda_device *devices, int room, struct ssm_error *err);

/* What the library gives for its entry point, `ssm_backend_cuda`, or NULL for another BACKEND_CUDA_ABI. */
struct backend_cuda {
    const struct backend_ops *ops;
    int (*devices)(struct backend_cuda_device *devices, int room, struct ssm_error *err);
};

/* Changes with what library and program share: by hand for a change of meaning, by itself for one of size. */
#define BACKEND_CUDA_ABI                                                                                               \
    ((int)((1u << 16) + sizeof(struct model) + 3 * sizeof(struct layer) + 5 * sizeof(struct layer_ops) +               \
           7 * sizeof(struct mamba) + 11 * sizeof(struct conv) + 13 * sizeof(struct backend_ops) +                     \
           17 * sizeof(struct backend_hop) + 19 * sizeof(struct ssm_options) +                                         \
           23 * sizeof(struct backend_cuda_device) + 29 * sizeof(struct backend)))

#endif
