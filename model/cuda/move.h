/* SPDX-License-Identifier: MIT */
#ifndef MODEL_CUDA_MOVE_H
#define MODEL_CUDA_MOVE_H

/* What crosses the bus. The host writes rows as records, one behind the other, so that one copy (or, for few rows, the
 * kernel itself over the bus) brings in everything a step needs; the outputs go back as they are. */

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

/* A row: a stream's slot and elapsed time, then its input, in a 16-byte grid. */
struct move_record {
    int32_t slot;
    float elapsed;
    int32_t unused[2];
    float samples[1]; /* (inputs) */
};

static inline size_t move_record_bytes(int inputs)
{
    return (16 + 4 * size_t(inputs) + 15) & ~size_t(15);
}

/* records -> slots (rows), elapsed (rows), x (rows, inputs); NaN and inf become 0. Bytes: 8 a value. Grid: a warp a row.
 * The kernel behind it sees all of it, even one that reads before it waits: this one lets no other start early. */
cudaError_t move_in(const void *records, int rows, int inputs, int32_t *slots, float *elapsed, float *x,
                    cudaStream_t stream);

/* A row whose hop the GPU reads and writes where it lies in the host's memory. */
struct move_row {
    const float *in; /* (inputs)  */
    float *out;      /* (outputs) */
    int32_t slot;
    float elapsed;
};

/* Rows of such a table, pinned -> slots (rows), elapsed (rows), x (rows, inputs); NaN and inf become 0. Bytes over the bus:
 * 24 a row and 4 a value. Grid: so few blocks as keep the bus busy. The kernel behind it sees all of it, as with move_in. */
cudaError_t move_fetch(const struct move_row *table, int rows, int inputs, int32_t *slots, float *elapsed, float *x,
                       cudaStream_t stream);

/* And back: from (rows, outputs), device memory -> where the table says. *odd, pinned, becomes 1 when there was NaN or inf;
 * never cleared. */
cudaError_t move_deliver(const struct move_row *table, int rows, int outputs, const float *from, uint32_t *odd,
                         cudaStream_t stream);

/* Count one on in *done, pinned host memory, when all before it on the stream has happened and the host can see it. */
cudaError_t move_done(uint32_t *count, volatile uint32_t *done, cudaStream_t stream);

/* from (n), device memory -> to (n), pinned, both on 16-byte boundaries: by a few blocks that leave the GPU to the
 * kernels beside them, and not by the copy engine, where what a step waits for would stand behind it. */
cudaError_t move_out(const float *from, float *to, size_t n, cudaStream_t stream);

#endif
