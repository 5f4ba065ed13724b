/* SPDX-License-Identifier: MIT */
/* What a broken kernel does to a program's GPU context: every later call fails. */

__global__ void trap()
{
    __trap();
}

extern "C" void poison(void)
{
    trap<<<1, 1>>>();
    cudaDeviceSynchronize();
}
