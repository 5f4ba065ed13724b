/* SPDX-License-Identifier: MIT */
/* Loaded before a program that runs under valgrind (tests/valgrind.sh): there /proc/self/exe is valgrind for whoever executes it,
 * while who reads the link is told the program. What is started as oneself, a device's helper, is then the program again. */
#include <dlfcn.h>
#include <spawn.h>
#include <string.h>
#include <unistd.h>

typedef int spawn_call(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const *,
                       char *const *);

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                char *const arguments[], char *const environment[])
{
    static char self[4096];
    spawn_call *spawn = (spawn_call *)dlsym(RTLD_NEXT, "posix_spawn");
    if (strcmp(path, "/proc/self/exe") == 0 && readlink(path, self, sizeof self - 1) > 0) {
        path = self;
    }
    return spawn(pid, path, actions, attributes, arguments, environment);
}
