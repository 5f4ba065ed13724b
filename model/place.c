/* SPDX-License-Identifier: MIT */
#include "model/place.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool place_installed(const char *below, char *path, size_t size)
{
    char program[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = '\0';
    bool told = true;
    for (int i = 0; i < 2 && told; i++) { /* the program's name, bin */
        char *slash = strrchr(program, '/');
        told = slash != NULL;
        if (told) {
            *slash = '\0';
        }
    }
    return told && (size_t)snprintf(path, size, "%s/%s", program, below) < size;
}
