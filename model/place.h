/* SPDX-License-Identifier: MIT */
#ifndef MODEL_PLACE_H
#define MODEL_PLACE_H

#include <stdbool.h>
#include <stddef.h>

/* This program's own path; "": it can't be told. */
void place_program(char *path, size_t size);

/* PREFIX/below, where this program is in PREFIX/bin, wherever the installed tree was carried to. False: it can't be told, or is too
 * long. */
bool place_installed(const char *below, char *path, size_t size);

#endif
