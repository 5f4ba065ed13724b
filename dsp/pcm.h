/* SPDX-License-Identifier: MIT */
#ifndef DSP_PCM_H
#define DSP_PCM_H

/* Interleaved PCM bytes -> one channel of float samples, full scale = +-1. Little-endian on any host. */

#include <stddef.h>

enum pcm_format { PCM_F32LE, PCM_S16LE, PCM_S24LE, PCM_S32LE, PCM_FORMATS };

size_t pcm_bytes(enum pcm_format format); /* of one sample */

/* Channel `channel` of interleaved bytes.
 *   bytes    in   (n, channels) samples of pcm_bytes each
 *   samples  out  (n)           integers divided by their full scale: s16le is exact, s24le too, s32le to 24 bits
 * Gives how many samples were NaN or inf and became 0 (f32le only). */
size_t pcm_decode(enum pcm_format format, const void *bytes, size_t channels, size_t channel, float *samples, size_t n);

#endif
