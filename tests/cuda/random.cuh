/* SPDX-License-Identifier: MIT */
#ifndef TESTS_CUDA_RANDOM_CUH
#define TESTS_CUDA_RANDOM_CUH

/* What the GPU's benchmarks start from: random numbers, the same in every run, on their way to the device and back.
 * A CUDA call that fails ends the program with code 1 and its words. */

#include <cuda_runtime.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

namespace {

using floats = std::vector<float>;

/* error: a cudaError_t, or below 0 for sizes that a kernel's entry refused. */
void must(int error, const char *what)
{
    if (error == 0)
        return;
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what,
            error < 0 ? "sizes refused" : cudaGetErrorString(cudaError_t(error)));
    exit(1);
}

uint64_t seed = 1;

double uniform(double low, double high)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * double(seed >> 11) / 9007199254740992.0;
}

floats random_floats(size_t n, double low, double high)
{
    floats v(n);
    for (float &x : v)
        x = float(uniform(low, high));
    return v;
}

/* Gives device memory, which lasts as long as the program. Never less than 4 elements: an empty vector has a place too. */
template <class T> T *device_copy(const std::vector<T> &v)
{
    T *p = nullptr;
    must(cudaMalloc(&p, std::max<size_t>(v.size(), 4) * sizeof(T)), "cudaMalloc");
    must(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    return p;
}

template <class T> std::vector<T> host_copy(const T *p, size_t n)
{
    std::vector<T> v(n);
    must(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return v;
}

} /* namespace */

#endif
