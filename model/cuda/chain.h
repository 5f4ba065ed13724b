/* SPDX-License-Identifier: MIT */
#ifndef MODEL_CUDA_CHAIN_H
#define MODEL_CUDA_CHAIN_H

/* A model's layers on one GPU: their weights in its memory, where each keeps its state in a slot, and the launches that
 * take rows of samples through all of them. Knows nothing of hops, copies or graphs. */

#include "model/cuda/arena.h"
#include "model/model.h"

struct chain;

/* The states of all streams, in device memory. */
struct chain_slots {
    void *states;    /* (slots, chain_state_bytes)                                               */
    uint32_t *phase; /* (slots)  rows done, modulo a common multiple of the lengths of all rings */
};

/* What a call in progress works on, in device memory; calls side by side have one each. */
struct chain_bench {
    int32_t *slots;   /* (rows)  of a sequence the first only                     */
    float *elapsed;   /* (rows)                                                   */
    float *values[2]; /* (rows, widest)  layers read one and write the other      */
    float *spectrum;  /* (rows, 2 bins)                                           */
    uint8_t *blown;   /* (rows)                                                   */
    void *workspace;  /* what layers need besides                                 */
    size_t workspace_bytes;
    int beside;       /* other calls are on their way beside this one: 0 or mamba_step.h's STEP_* */
};

/* Lay out a model's weights in the precision (PRECISION_*; mamba layers' states in bf16 if asked for); done twice:
 * arena.h. Gives a chain, which borrows the model and the arena's memory, or NULL and an error. chain_destroy frees
 * what isn't the arena's. */
struct chain *chain_create(const struct model *model, int precision, bool state_bf16, struct arena *arena,
                           struct ssm_error *err);
void chain_destroy(struct chain *chain); /* NULL is fine */

size_t chain_state_bytes(const struct chain *chain); /* of a slot */

/* Room for calls of up to `steps` rows of different streams and of sequences of up to `sequence` rows. */
struct chain_bench chain_take_bench(const struct chain *chain, int steps, int sequence, struct arena *arena);

/* Take rows through every layer on `stream`, asynchronously. bench->values[0] (rows, inputs) holds the samples,
 * bench->slots and elapsed are set; out (rows, outputs), contiguous, is device memory or pinned host memory. The rows
 * are of different streams (sequence false), or one stream's in order of time. Phases move on. */
cudaError_t chain_run(const struct chain *chain, const struct chain_slots *slots, const struct chain_bench *bench,
                      int rows, bool sequence, float *out, cudaStream_t stream);

/* A stream's state, as the CPU lays it out (model->state floats, pinned host memory) -> slot, and back. NULL: zeros. */
cudaError_t chain_state_put(const struct chain *chain, const struct chain_slots *slots, int slot, const float *state,
                            cudaStream_t stream);
cudaError_t chain_state_get(const struct chain *chain, const struct chain_slots *slots, int slot, float *state,
                            cudaStream_t stream);
/* Those of `count` slots; which and states in device or pinned memory. */
cudaError_t chain_state_get_all(const struct chain *chain, const struct chain_slots *slots, const int32_t *which,
                                int count, float *states, cudaStream_t stream);

#endif
