/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_LINEAR_H
#define KERNELS_CUDA_LINEAR_H

/* y = W x + b over rows of streams or of time steps, on the tensor cores; math.cuh says exactly what is computed.
 *
 * Twin: `linear` in kernels/. A row's result is the same bits however many rows are in the call.
 *
 * Nothing is allocated or synchronised; calls work under graph capture. Calls give 0, a cudaError_t, or -1 for sizes or
 * a precision outside what is said here. A kernel may be started before the one in front of it in the stream has
 * finished (programmatic dependent launch); it waits for it before it reads anything but weights. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How many bf16 pieces of each fp32 value take part in a product. */
enum { PRECISION_BF16 = 1, PRECISION_TF32 = 2, PRECISION_FP32 = 3 };

/* Packed weights in device memory. Outputs are padded to 16, inputs to 32, with zeros.
 *
 *   tiles  (out / 16, in / 32, pieces, 2)  of 16 outputs x 16 inputs: 512 bytes, in which lane l of a warp finds at
 *          16 l its eight bf16 of mma.m16n8k16's A operand: with g = l / 4, t = l % 4 the outputs, inputs
 *          (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1), (g, 2t+8), (g, 2t+9), (g+8, 2t+8), (g+8, 2t+9)
 *   scale  (out padded)  1 for fp32 weights
 *   bias   (out padded)  0 for none */
struct linear_cuda {
    int32_t in, out, pieces;
    const void *tiles; /* 16-byte aligned */
    const float *scale, *bias;
};

/* Bytes of a packed matrix (a multiple of 16), its packing into host memory, and the view of a copy of it in device
 * memory (16-byte aligned). weight (out, in) is fp32, packed as 1 to 3 pieces; or the integers of int8 weights with their scale (out), for
 * which 1 piece is exact at any precision. scale and bias may be NULL. */
size_t linear_cuda_bytes(int in, int out, int pieces);
void linear_cuda_pack(void *packed, int in, int out, int pieces, const float *weight, const float *scale,
                      const float *bias);
struct linear_cuda linear_cuda_at(const void *device, int in, int out, int pieces);

/* One call's rows, in device memory; strides in elements. */
struct linear_cuda_rows {
    int32_t rows;            /* >= 0                                                                            */
    int32_t precision;       /* PRECISION_*; weights have 1 piece or at least this many                         */
    int32_t x_bf16, y_bf16;  /* x, y hold bf16 instead of fp32. bf16 x needs PRECISION_BF16                     */
    const void *x;           /* (rows, in)                                                                      */
    int64_t x_stride;
    const float *norm;       /* (in)  RMSNorm each row of x with this weight first; NULL: don't                 */
    void *y;                 /* (rows, out)                                                                     */
    int64_t y_stride;
    const float *residual;   /* (rows, out)  added to y; may be y itself; NULL: none                            */
    int64_t residual_stride;
    int32_t ahead;           /* 1: the next kernel in the stream may start at once, beside what came before this one */
    int32_t y_kept;          /* 1: y is read soon, while much passes L2 that won't be: last to leave, where wgmma makes bf16 y  */
    int32_t together;        /* linear_cuda_pair: 1: one launch where it can be, for when few multiprocessors are free */
};

int linear_cuda(const struct linear_cuda *w, const struct linear_cuda_rows *rows, void *stream);

/* The same as one call after the other, to the bit; if rows->together says so, in one launch between two layers of a stack: 512
 * inputs, 256 outputs added to x, 1024 outputs of normed x, at PRECISION_BF16. */
int linear_cuda_pair(const struct linear_cuda *w, const struct linear_cuda_rows *rows, const struct linear_cuda *next,
                     const struct linear_cuda_rows *next_rows, void *stream);

#ifdef __cplusplus
}
#endif

#endif
