/* SPDX-License-Identifier: MIT */
#include "dsp/part.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

int part_create(const char *path, mode_t mode, char **part)
{
    enum { TRIES = 100 };
    int fd = -1;
    *part = NULL;
    for (int i = 0; i < TRIES && fd < 0; i++) {
        uint32_t number;
        free(*part);
        *part = NULL;
        if (getrandom(&number, sizeof number, 0) != sizeof number || asprintf(part, "%s.%08x.part", path, number) < 0) {
            *part = NULL;
            return -1;
        }
        fd = open(*part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (fd < 0 && errno != EEXIST) {
            break;
        }
    }
    if (fd < 0) {
        int error = errno;
        free(*part);
        *part = NULL;
        errno = error;
    }
    return fd;
}
