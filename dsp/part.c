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
    int fd = -1, error = EEXIST;
    *part = NULL;
    for (int i = 0; i < TRIES && fd < 0 && error == EEXIST; i++) {
        uint32_t number;
        char *name;
        if (getrandom(&number, sizeof number, 0) != sizeof number || asprintf(&name, "%s.%08x.part", path, number) < 0) {
            return -1;
        }
        fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        error = errno;
        *part = fd >= 0 ? name : NULL;
        free(fd >= 0 ? NULL : name);
    }
    errno = error;
    return fd;
}
