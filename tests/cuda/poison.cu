/* SPDX-License-Identifier: MIT */
/* What broken kernels do to a program: every later call fails, on all of its GPUs. */

__global__ void trap()
{
    __trap();
}

/* Holds every multiprocessor, with all of its shared memory, until a time of the GPU's clock. */
__global__ void hold(unsigned long long ns)
{
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < ns);
}

/* Nothing else runs on the GPU for so long, or a little longer; gives 0 when that has begun. */
extern "C" int stall(int device, int ms)
{
    int shared = 0, processors = 0;
    cudaError_t error = cudaSetDevice(device);
    error = error ? error : cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    error = error ? error : cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    error = error ? error : cudaFuncSetAttribute(hold, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (!error) {
        hold<<<processors, 1024, size_t(shared)>>>(1000000ull * ms);
        error = cudaGetLastError();
    }
    cudaSetDevice(0);
    return error;
}

extern "C" int stall_end(int device)
{
    cudaError_t error = cudaSetDevice(device);
    error = error ? error : cudaDeviceSynchronize();
    cudaSetDevice(0);
    return error;
}

extern "C" void poison(int device)
{
    cudaSetDevice(device);
    trap<<<1, 1>>>();
    cudaDeviceSynchronize();
    cudaSetDevice(0);
}
