/* SPDX-License-Identifier: MIT */
#include "clients/state_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dsp/part.h"

bool state_file_create(struct state_file *state, const char *path)
{
    struct stat status;
    bool there = stat(path, &status) == 0;
    *state = (struct state_file){.path = there ? realpath(path, NULL) : strdup(path)};
    if (state->path == NULL) {
        return false;
    }
    int fd = there && !S_ISREG(status.st_mode) ? open(path, O_WRONLY | O_CLOEXEC)
                                               : part_create(state->path, 0600, &state->part);
    state->file = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (fd >= 0 && state->file == NULL) {
        close(fd);
    }
    return state->file != NULL;
}

bool state_file_commit(struct state_file *state, char *why, size_t size)
{
    bool fine = !ferror(state->file) && fflush(state->file) == 0 && (state->part == NULL || fsync(fileno(state->file)) == 0);
    int error = errno;
    if (fclose(state->file) != 0 && fine) {
        fine = false;
        error = errno;
    }
    state->file = NULL;
    if (!fine) {
        snprintf(why, size, "%s", strerror(error));
        return false;
    }
    state->whole = true;
    if (state->part != NULL && rename(state->part, state->path) != 0) {
        snprintf(why, size, "%s; it is in %s", strerror(errno), state->part);
        return false;
    }
    free(state->part);
    state->part = NULL;
    return true;
}

void state_file_close(struct state_file *state)
{
    if (state->file != NULL) {
        fclose(state->file);
    }
    if (state->part != NULL && !state->whole) {
        unlink(state->part);
    }
    free(state->part);
    free(state->path);
    *state = (struct state_file){0};
}
