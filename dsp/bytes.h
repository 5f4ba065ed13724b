/* SPDX-License-Identifier: MIT */
#ifndef DSP_BYTES_H
#define DSP_BYTES_H

/* Whole numbers of 1 to 8 bytes in files, the lowest first, or the highest (big). Inline: states are written float by float. */

#include <stdint.h>

static inline void bytes_put(unsigned char *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        at[i] = (unsigned char)(value >> 8 * i);
    }
}

static inline uint64_t bytes_get(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) {
        value |= (uint64_t)at[i] << 8 * i;
    }
    return value;
}

static inline uint64_t bytes_get_big(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

#endif
