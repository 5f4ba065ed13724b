/* SPDX-License-Identifier: MIT */
#include "model/memory.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define LARGE ((size_t)2 << 20)

/* Whole large pages, none of them there yet. NULL: no. */
static void *map(size_t bytes)
{
    char *all = mmap(NULL, bytes + LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) {
        return NULL;
    }
    size_t before = (LARGE - (uintptr_t)all % LARGE) % LARGE;
    if (before > 0) {
        munmap(all, before);
    }
    munmap(all + before + bytes, LARGE - before);
    madvise(all + before, bytes, MADV_HUGEPAGE); /* a wish: fewer addresses for the bus to look up */
    madvise(all + before, bytes, MADV_DONTFORK); /* else its pages could become the child's, with a device still at them */
    return all + before;
}

static void unmap(void *at, size_t bytes)
{
    if (at) {
        munmap(at, bytes);
    }
}

bool memory_take(struct memory *memory, size_t bytes)
{
    *memory = (struct memory){.bytes = (bytes + LARGE - 1) / LARGE * LARGE};
    if (memory->bytes < bytes || memory->bytes == 0) {
        return false;
    }
    memory->at = map(memory->bytes);
    memory->spare = memory->at ? map(memory->bytes) : NULL;
    if (!memory->spare) {
        memory_give_back(memory);
        return false;
    }
    memset(memory->at, 0, memory->bytes); /* now, not in the first step */
    return true;
}

void memory_give_back(struct memory *memory)
{
    unmap(memory->at, memory->bytes);
    unmap(memory->spare, memory->bytes);
    *memory = (struct memory){0};
}

void memory_give_up(struct memory *memory)
{
    const int none = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (memory->at && mmap(memory->at, memory->bytes, PROT_NONE, none, -1, 0) != MAP_FAILED) {
        memory->at = NULL;
    }
    memory_give_back(memory);
}

void memory_sever(struct memory *memory)
{
    if (memory->spare) {
        memcpy(memory->spare, memory->at, memory->bytes);
        void *moved = mremap(memory->spare, memory->bytes, memory->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, memory->at);
        memory->spare = moved == MAP_FAILED ? memory->spare : NULL;
    }
}
