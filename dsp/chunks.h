/* SPDX-License-Identifier: MIT */
#ifndef DSP_CHUNKS_H
#define DSP_CHUNKS_H

/* How many bytes of samples a WAV (RIFF, RIFX, RF64), W64 or AIFF says it holds, and how many are there: libsndfile takes one that
 * was cut short for whole. */

#include <stdbool.h>
#include <stdint.h>

struct chunks_data {
    uint64_t told, there; /* there <= told */
};

/* False: no such file, or one whose writer didn't know either, as into a pipe: 0, all ones, or a little below 2^31 or 2^32 or
 * about 0x7f000000 (sox, which rounds to whole blocks; arecord, ffmpeg), and what is there speaks for itself. Only regular files are opened. */
bool chunks_find_data(const char *path, struct chunks_data *data);

#endif
