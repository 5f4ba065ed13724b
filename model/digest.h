/* SPDX-License-Identifier: MIT */
#ifndef MODEL_DIGEST_H
#define MODEL_DIGEST_H

#include <stddef.h>
#include <stdint.h>

/* xxh3-64 of some bytes. To hash pieces, give the digest of one as the seed of the next; the first seed is 0. */
uint64_t digest_bytes(const void *bytes, size_t size, uint64_t seed);

#endif
