/* SPDX-License-Identifier: MIT */
/* Where models are: $SSM_MODEL_PATH, the source tree this was built in, then the installed models. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/refuse.h"

/* The i-th part of a colon-separated path. */
static bool part_of(const char *list, int i, char *folder, size_t size)
{
    for (; list && *list; list += strcspn(list, ":"), list += *list == ':') {
        size_t length = strcspn(list, ":");
        if (length && i-- == 0) {
            snprintf(folder, size, "%.*s", (int)length, list);
            return true;
        }
    }
    return false;
}

const char *ssm_model_folder(int i)
{
    static const char *const built_in[] = {SSM_SOURCE_MODELS, SSM_MODELS, NULL};
    static _Thread_local char folder[PATH_MAX];
    int given = 0;
    for (; part_of(getenv("SSM_MODEL_PATH"), given, folder, sizeof folder); given++) {
        if (given == i) {
            return folder;
        }
    }
    return i >= given && i - given < 2 ? built_in[i - given] : NULL;
}

static bool is_path(const char *model)
{
    static const char ending[] = ".safetensors";
    size_t length = strlen(model);
    return strchr(model, '/') || (length >= sizeof ending - 1 && !strcmp(model + length - (sizeof ending - 1), ending));
}

int ssm_model_find(const char *model, char *path, size_t size, struct ssm_error *err)
{
    char looked[384] = "";
    size_t at = 0;
    if (is_path(model)) {
        if ((size_t)snprintf(path, size, "%s", model) >= size) {
            return refuse(err, 66, "the path of the model is longer than %zu letters", size);
        }
        return access(path, R_OK) ? refuse(err, 66, "%s: there is no such file, or it can't be read", model) : 0;
    }
    for (int i = 0; ssm_model_folder(i); i++) {
        const char *folder = ssm_model_folder(i);
        if ((size_t)snprintf(path, size, "%s/%s.safetensors", folder, model) < size && !access(path, R_OK)) {
            return 0;
        }
        if (at < sizeof looked) {
            at += (size_t)snprintf(looked + at, sizeof looked - at, "%s%s", i ? ", " : "", folder);
        }
    }
    return refuse(err, 66, "no model \"%.64s\": looked for %.64s.safetensors in %s (set SSM_MODEL_PATH to add folders)",
                  model, model, looked);
}
