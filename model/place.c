/* SPDX-License-Identifier: MIT */
#include "model/place.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void place_program(char *path, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", path, size - 1);
    path[n > 0 ? n : 0] = '\0';
}

bool place_installed(const char *below, char *path, size_t size)
{
    char program[PATH_MAX];
    place_program(program, sizeof program);
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
