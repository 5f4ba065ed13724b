/* SPDX-License-Identifier: MIT */
#ifndef TESTS_FOLDER_H
#define TESTS_FOLDER_H

/* A folder of the test program's own, from its start to its end. */

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char folder[] = "/tmp/ssmd-test-XXXXXX";
static pid_t folder_owner;

__attribute__((constructor)) static void make_folder(void)
{
    folder_owner = getpid();
    if (!mkdtemp(folder)) {
        perror(folder);
        exit(1);
    }
}

/* Not by a child of it that ends. */
__attribute__((destructor)) static void remove_folder(void)
{
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", folder);
    if (getpid() == folder_owner && system(command) != 0) {
        fprintf(stderr, "%s is left\n", folder);
    }
}

/* Its path, or an address in it: one of the last eight. */
static inline const char *in_folder(const char *name)
{
    static _Thread_local char paths[8][512];
    static _Thread_local int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static inline const char *ipc_in_folder(const char *name)
{
    static _Thread_local char addresses[4][512];
    static _Thread_local int next;
    char *address = addresses[next++ % 4];
    snprintf(address, sizeof addresses[0], "ipc://%s/%s", folder, name);
    return address;
}

#endif
