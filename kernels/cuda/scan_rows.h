/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SCAN_ROWS_H
#define KERNELS_CUDA_SCAN_ROWS_H

/* The selective scan of one stream over rows of time, in a stream's own state: for the discretisations that
 * selective_scan.h does not take. One thread walks a channel through all rows, so this is bound by how long one step
 * takes, some 40 ns a state and row, not by bytes. Twin: `selective_scan` in kernels/; arithmetic: math.cuh's.
 *
 * Grid: (E / 32) blocks of 32 threads. Asynchronous; gives 0, a cudaError_t, or -1 for N outside 1..64. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct scan_rows_cuda {
    int32_t rows, E, N;
    int32_t zoh, state_bf16;
    const float *A, *skip; /* (N, E), (E)                                      */
    const float *u, *dt;   /* (rows, E), dt with its bias                      */
    const float *z;        /* (rows, E), z_row apart                           */
    const float *B, *C;    /* (rows, N), mixed_row apart                       */
    int64_t z_row, mixed_row;
    const float *elapsed; /* (rows)                                           */
    const int32_t *slots; /* (1)                                              */
    void *states;
    size_t state_stride, state_at; /* bytes; h (N, E) at state_at of the slot, in and out */
    float *y;                      /* (rows, E)                                        */
};

int scan_rows_cuda(const struct scan_rows_cuda *scan, void *stream);

#ifdef __cplusplus
}
#endif

#endif
