/* SPDX-License-Identifier: MIT */
#ifndef DSP_CHUNKS_H
#define DSP_CHUNKS_H

/* How many bytes of samples a WAV (RIFF, RIFX, RF64), W64 or AIFF says it holds, and how many are there: libsndfile takes one that
 * was cut short for whole. */

#include <stdbool.h>
#include <stdint.h>

struct chunks_data {
    uint64_t from;        /* where the samples begin                                                          */
    uint64_t told, there; /* there <= told; or told is 0, of a writer that never came back to say it          */
    bool big;             /* endian                                                                           */
    bool miscounted;      /* told is more, but the file is whole: it says its own length, or told is just that */
};

/* False: no such file, or one whose writer didn't know either, as into a pipe: all ones, or a little below 2^31 or 2^32 or
 * about 0x7f000000 (sox, which rounds to whole blocks; arecord, ffmpeg), and what is there speaks for itself. Only regular files
 * are opened. */
bool chunks_find_data(const char *path, struct chunks_data *data);
/* Could these four bytes begin a chunk? Samples rarely do. */
bool chunks_is_name(const unsigned char *bytes);

#endif
