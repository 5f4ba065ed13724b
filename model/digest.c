/* SPDX-License-Identifier: MIT */
#include "model/digest.h"

#include <xxhash.h>

uint64_t digest_bytes(const void *bytes, size_t size, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, size, seed);
}
