/* SPDX-License-Identifier: MIT */
#ifndef TESTS_ENTRIES_H
#define TESTS_ENTRIES_H

#include <dirent.h>

/* How many a folder has, "." and ".." among them: of /proc/self/fd the descriptors and three, of /proc/self/task the threads and two. */
static inline int count_entries(const char *path)
{
    int n = 0;
    DIR *folder = opendir(path);
    while (readdir(folder)) {
        n++;
    }
    closedir(folder);
    return n;
}

#endif
