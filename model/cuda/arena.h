/* SPDX-License-Identifier: MIT */
#ifndef MODEL_CUDA_ARENA_H
#define MODEL_CUDA_ARENA_H

/* One allocation cut into pieces. What is laid out is laid out twice: first with no memory, to count, then with it. */

#include <cuda_runtime.h>
#include <stddef.h>

struct arena {
    char *memory; /* NULL: only counting */
    size_t used;
    cudaError_t error; /* the first that a copy gave */
};

/* Room for `count` of a type, on a 256-byte boundary; NULL while counting. */
template <typename T> T *arena_take(struct arena *arena, size_t count)
{
    T *at = arena->memory ? reinterpret_cast<T *>(arena->memory + arena->used) : nullptr;
    arena->used += (count * sizeof(T) + 255) & ~size_t(255);
    return at;
}

/* The same in device memory, filled with a copy of host values. */
template <typename T> T *arena_put(struct arena *arena, const T *values, size_t count)
{
    T *at = arena_take<T>(arena, count);
    if (at && arena->error == cudaSuccess) {
        arena->error = cudaMemcpy(at, values, count * sizeof(T), cudaMemcpyHostToDevice);
    }
    return at;
}

#endif
