/* SPDX-License-Identifier: MIT */
#include "dsp/pcm.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

static const size_t sizes[PCM_FORMATS] = {[PCM_F32LE] = 4, [PCM_S16LE] = 2, [PCM_S24LE] = 3, [PCM_S32LE] = 4};

size_t pcm_bytes(enum pcm_format format)
{
    return sizes[format];
}

/* 2..4 bytes to the top of 32 bits: the sign is in place whatever the size. */
static uint32_t load(const unsigned char *bytes, size_t size)
{
    uint32_t value = 0;
    for (size_t i = 0; i < size; i++) {
        value |= (uint32_t)bytes[i] << (8 * (4 - size + i));
    }
    return value;
}

size_t pcm_decode(enum pcm_format format, const void *bytes, size_t channels, size_t channel, float *samples, size_t n)
{
    size_t size = sizes[format], bad = 0;
    const unsigned char *from = (const unsigned char *)bytes + channel * size;
    for (size_t i = 0; i < n; i++, from += channels * size) {
        uint32_t value = load(from, size);
        if (format == PCM_F32LE) {
            memcpy(&samples[i], &value, sizeof value);
            if (!isfinite(samples[i])) {
                samples[i] = 0;
                bad++;
            }
        } else {
            samples[i] = (float)((double)(int32_t)value * 0x1p-31);
        }
    }
    return bad;
}
