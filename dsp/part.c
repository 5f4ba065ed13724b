/* SPDX-License-Identifier: MIT */
#include "dsp/part.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* How much of a path stands in front: all, but of a name for which there is no room, which has no half letter of UTF-8 then. */
static int measure(const char *path)
{
    enum { ROOM = NAME_MAX - sizeof ".01234567.part" + 1 };
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    if (n > ROOM && n <= NAME_MAX) {
        for (n = ROOM; n > 1 && (name[n] & 0xc0) == 0x80; n--) {
        }
    }
    return (int)((size_t)(name - path) + n);
}

int part_create(const char *path, mode_t mode, char **part)
{
    enum { TRIES = 100 };
    int fd = -1, error = EEXIST;
    *part = NULL;
    for (int i = 0; i < TRIES && fd < 0 && error == EEXIST; i++) {
        uint32_t number;
        char *name;
        if (getrandom(&number, sizeof number, 0) != sizeof number ||
            asprintf(&name, "%.*s.%08x.part", measure(path), path, number) < 0) {
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
