/* SPDX-License-Identifier: MIT */
#ifndef DSP_PART_H
#define DSP_PART_H

/* A file that isn't whole yet: written beside the path that it is moved to in the end. */

#include <sys/types.h>

/* Make PATH.XXXXXXXX.part, with less of a name that is too long for that; new, and of a name that nobody can guess, so that no
 * link or file of others is written to. Gives the descriptor and *part (to free); or -1 with errno, and NULL. */
int part_create(const char *path, mode_t mode, char **part);

#endif
