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

static inline const char *folder_text(const char *before, const char *name)
{
    static _Thread_local char texts[8][512];
    static _Thread_local int next;
    char *text = texts[next++ % 8];
    snprintf(text, sizeof texts[0], "%s%s/%s", before, folder, name);
    return text;
}

/* A path, or an address, in it: one of the last eight of the thread. */
static inline const char *in_folder(const char *name)
{
    return folder_text("", name);
}
static inline const char *ipc_in_folder(const char *name)
{
    return folder_text("ipc://", name);
}

#endif
