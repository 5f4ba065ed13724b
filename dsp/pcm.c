/* SPDX-License-Identifier: MIT */
#include "dsp/pcm.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

static const struct {
    const char *name;
    size_t bytes;
    double full_scale; /* of the integers; 0 for float */
} formats[PCM_FORMATS] = {
    [PCM_F32LE] = {.name = "f32le", .bytes = 4, .full_scale = 0},
    [PCM_S16LE] = {.name = "s16le", .bytes = 2, .full_scale = 0x1p15},
    [PCM_S24LE] = {.name = "s24le", .bytes = 3, .full_scale = 0x1p23},
    [PCM_S32LE] = {.name = "s32le", .bytes = 4, .full_scale = 0x1p31},
};

const char *pcm_name(enum pcm_format format)
{
    return formats[format].name;
}

size_t pcm_bytes(enum pcm_format format)
{
    return formats[format].bytes;
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

static void store(unsigned char *bytes, size_t size, uint32_t value)
{
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (unsigned char)(value >> (8 * i));
    }
}

size_t pcm_decode(enum pcm_format format, const void *bytes, size_t channels, size_t channel, float *samples, size_t n)
{
    size_t size = formats[format].bytes, bad = 0;
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

/* To the nearest integer within [-full_scale, full_scale); *bad counts what lay beyond. */
static int32_t quantise(float sample, double full_scale, size_t *bad)
{
    double value = rint((double)sample * full_scale);
    *bad += !(fabs(value) <= full_scale) ? 1 : 0;
    return isnan(value) ? 0 : (int32_t)fmin(fmax(value, -full_scale), full_scale - 1);
}

size_t pcm_encode(enum pcm_format format, const float *samples, void *bytes, size_t channels, size_t channel, size_t n)
{
    size_t size = formats[format].bytes, bad = 0;
    unsigned char *to = (unsigned char *)bytes + channel * size;
    for (size_t i = 0; i < n; i++, to += channels * size) {
        uint32_t value;
        if (format == PCM_F32LE) {
            float sample = isnan(samples[i]) ? 0.0f : samples[i];
            bad += isnan(samples[i]) ? 1 : 0;
            memcpy(&value, &sample, sizeof value);
        } else {
            value = (uint32_t)quantise(samples[i], formats[format].full_scale, &bad);
        }
        store(to, size, value);
    }
    return bad;
}
