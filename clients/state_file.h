/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_STATE_FILE_H
#define CLIENTS_STATE_FILE_H

/* A state on its way to a file that may be the only copy of another: written beside the path, and moved there once it is whole
 * and on the disk. For its owner's eyes: what was said can be heard in a state. */

#include <stdbool.h>
#include <stdio.h>

struct state_file {
    FILE *file; /* to write to */
    char *path, *part;
    bool whole; /* part is, and on the disk */
};

/* The path is as it was until commit; one that is no regular file, as a device, is written in place, and what a link leads to
 * stays where it is. False: errno says why not; only close then. */
bool state_file_create(struct state_file *state, const char *path);
/* All of it is there, or false, and `why` says so: "No space left on device", or "Is a directory; it is in F.3f09ab1c.part" where it is
 * whole and stays there. Right after writing; close afterwards. */
bool state_file_commit(struct state_file *state, char *why, size_t size);
/* What is not whole is removed. */
void state_file_close(struct state_file *state);

#endif
