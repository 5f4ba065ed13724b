/* SPDX-License-Identifier: MIT */
/* Any bytes are a sound file that is read to its end, or to a sentence why not further. Corpus: corpus_sound_file. */
#include "dsp/sound_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* Some formats make an hour of a few bytes: what is read is bounded. */
enum { BLOCK = 1000, BLOCKS = 200, VALUES_MOST = 1 << 20 };

static void read_through(struct sound_file *file, const struct sound_file_info *info)
{
    float *samples = malloc((size_t)BLOCK * (size_t)info->channels * sizeof *samples);
    int64_t length = 0;
    size_t n = BLOCK;
    for (int i = 0; i < BLOCKS && n == BLOCK && length * info->channels < VALUES_MOST; i++) {
        struct sound_file_error err;
        n = sound_file_read(file, samples, BLOCK, &err);
        length += (int64_t)n;
        for (size_t k = 0; k < n * (size_t)info->channels; k++) {
            if (!(samples[k] * 0 == 0)) {
                abort(); /* NaN or inf got past us */
            }
        }
        if (n > BLOCK || (n < BLOCK && length < info->length && err.code == 0) || (err.code != 0 && !err.text[0])) {
            abort(); /* more than was asked for, or fewer than the file promised, without a word */
        }
    }
    free(samples);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    char path[64];
    struct sound_file_info info;
    struct sound_file_error err;
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, bytes, size) != (ssize_t)size) {
        abort();
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    struct sound_file *file = sound_file_open(path, &info, &err);
    if (!file && (err.code == 0 || strncmp(err.text, path, strlen(path)) != 0)) {
        abort();
    }
    if (file) {
        if (info.rate < 1 || info.channels < 1) {
            abort();
        }
        read_through(file, &info);
        if (sound_file_seek(file, 0)) {
            read_through(file, &info);
        }
    }
    sound_file_close(file);
    close(fd);
    return 0;
}
