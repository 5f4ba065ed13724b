/* SPDX-License-Identifier: MIT */
#include "model/cuda/device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "model/refuse.h"

namespace
{

constexpr int CAPABILITY = 9; /* what the kernels are compiled for: Hopper */

/* How many GPUs, at least 1; or -1 and an error. */
int count_devices(struct ssm_error *err)
{
    int count = 0, driver = 0, runtime = 0;
    cudaGetLastError(); /* what an earlier call was refused must not be taken for a later one's failure */
    const cudaError_t error = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) {
        return refuse(err, 69, "no GPU: this machine has no NVIDIA driver (libcuda.so.1)");
    }
    if (error == cudaErrorInsufficientDriver) {
        return refuse(err, 69,
                      "no GPU: the NVIDIA driver is for CUDA %d.%d, too old for this library's %d.%d: update it",
                      driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
        return refuse(err, 69, "no GPU: the NVIDIA driver finds none (or CUDA_VISIBLE_DEVICES hides it)");
    }
    return error ? refuse(err, 69, "no GPU: %s", cudaGetErrorString(error)) : count;
}

int describe(int index, struct backend_cuda_device *device)
{
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
        return -1;
    }
    *device = {};
    device->index = index;
    snprintf(device->name, sizeof device->name, "%.63s", properties.name);
    device->bytes = properties.totalGlobalMem;
    device->multiprocessors = properties.multiProcessorCount;
    device->runs = properties.major == CAPABILITY;
    return 0;
}

/* The number in "cuda" or "cuda:<number>", or -1. */
int parse_index(const char *name)
{
    char *end;
    if (!strcmp(name, "cuda")) {
        return 0;
    }
    if (strncmp(name, "cuda:", 5) || name[5] < '0' || name[5] > '9') {
        return -1;
    }
    const long index = strtol(name + 5, &end, 10);
    return *end || index > 1023 ? -1 : int(index);
}

} /* namespace */

int device_list(struct backend_cuda_device *devices, int room, struct ssm_error *err)
{
    const int count = count_devices(err);
    for (int i = 0; i < count && i < room; i++) {
        size_t total;
        if (describe(i, &devices[i]) || cudaSetDevice(i) != cudaSuccess ||
            cudaMemGetInfo(&devices[i].bytes_free, &total) != cudaSuccess) {
            return refuse(err, 69, "cuda:%d: %s", i, cudaGetErrorString(cudaGetLastError()));
        }
    }
    return count;
}

int device_open(const char *name, struct backend_cuda_device *device, struct ssm_error *err)
{
    const int index = parse_index(name), count = index < 0 ? 0 : count_devices(err);
    if (index < 0) {
        return refuse(err, 64, "device \"%.20s\" is not one of: cuda, cuda:<number>", name);
    }
    if (count < 0) {
        return -1;
    }
    if (index >= count) {
        return refuse(err, 69, "there is no cuda:%d: this machine has %d GPU%s, from cuda:0 on", index, count,
                      count > 1 ? "s" : "");
    }
    if (describe(index, device)) {
        return refuse(err, 69, "cuda:%d: %s", index, cudaGetErrorString(cudaGetLastError()));
    }
    if (!device->runs) {
        return refuse(err, 69,
                      "cuda:%d (%s) is of another generation than this library was compiled for (Hopper, "
                      "sm_90): use device cpu",
                      index, device->name);
    }
    /* Spin: a step's end is told in 2 us, not 20; the thread that waits has nothing else to do. */
    cudaError_t error = cudaInitDevice(index, cudaDeviceScheduleSpin, cudaInitDeviceFlagsAreValid);
    error = error ? error : cudaSetDevice(index);
    size_t total;
    error = error ? error : cudaMemGetInfo(&device->bytes_free, &total);
    return error ? refuse(err, 69, "cuda:%d (%s): %s", index, device->name, cudaGetErrorString(error)) : index;
}
