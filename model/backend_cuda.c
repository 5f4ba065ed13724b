/* SPDX-License-Identifier: MIT */
#include "model/backend_cuda.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/place.h"
#include "model/refuse.h"

static const char name[] = "libssm_cuda.so", entry[] = "ssm_backend_cuda";

/* name beside `file`; empty when that is too long. */
static void put_beside(char *path, size_t size, const char *file)
{
    const char *slash = strrchr(file, '/');
    int folder = slash ? (int)(slash - file) : 0;
    if (!slash || (size_t)snprintf(path, size, "%.*s/%s", folder, file, name) >= size) {
        path[0] = 0;
    }
}

/* The i-th place to look in; false past the last. */
static bool place_at(int i, char *path, size_t size)
{
    const char *given = getenv("SSM_CUDA_LIBRARY");
    char program[PATH_MAX];
    Dl_info self;
    if (given && *given) {
        return i == 0 && (size_t)snprintf(path, size, "%s", given) < size;
    }
    path[0] = 0;
    switch (i) {
    case 0:
        if (dladdr(name, &self) && self.dli_fname) {
            put_beside(path, size, self.dli_fname);
        }
        return true;
    case 1:
        place_program(program, sizeof program);
        put_beside(path, size, program);
        return true;
    case 2:
        if (!place_installed("lib/libssm_cuda.so", path, size)) {
            path[0] = 0;
        }
        return true;
    case 3:
        snprintf(path, size, "%s/%s", SSM_LIBRARIES, name);
        return true;
    case 4:
        snprintf(path, size, "%s", name);
        return true;
    default:
        return false;
    }
}

/* A library that is there but can't be opened is an answer; one that isn't there means looking on. */
static void *open_library(struct ssm_error *err)
{
    char path[PATH_MAX + 64];
    for (int i = 0; place_at(i, path, sizeof path); i++) {
        void *library = path[0] ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
        if (library) {
            return library;
        }
        if (strchr(path, '/') && !access(path, F_OK)) {
            refuse(err, 69, "no GPU: %s can't be opened: %s", path, dlerror());
            return NULL;
        }
    }
    if (getenv("SSM_CUDA_LIBRARY")) {
        refuse(err, 69, "no GPU: there is no %s, which SSM_CUDA_LIBRARY names", getenv("SSM_CUDA_LIBRARY"));
    } else {
        refuse(err, 69,
               "no GPU: no %s beside the program or in %s; `make cuda` builds it, or say SSM_CUDA_LIBRARY=FILE", name,
               SSM_LIBRARIES);
    }
    return NULL;
}

static const struct backend_cuda *find(struct ssm_error *err)
{
    void *library = open_library(err), *symbol = library ? dlsym(library, entry) : NULL;
    const struct backend_cuda *(*get)(int abi);
    if (!library) {
        return NULL;
    }
    memcpy(&get, &symbol, sizeof get);
    const struct backend_cuda *cuda = symbol ? get(BACKEND_CUDA_ABI) : NULL;
    if (!cuda) {
        refuse(err, 69, "no GPU: the %s found is of another version of ssmd; build both together (make all cuda)",
               name);
    }
    return cuda;
}

const struct backend_ops *backend_cuda_find(struct ssm_error *err)
{
    const struct backend_cuda *cuda = find(err);
    return cuda ? cuda->ops : NULL;
}

int backend_cuda_devices(struct backend_cuda_device *devices, int room, struct ssm_error *err)
{
    const struct backend_cuda *cuda = find(err);
    return cuda ? cuda->devices(devices, room, err) : -1;
}
