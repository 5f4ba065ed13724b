/* SPDX-License-Identifier: MIT */
/* Where models are: $SSM_MODEL_PATH, the source tree this was built in, then the installed models: those beside this program, those
 * of the PREFIX it was built for. */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dsp/nearest.h"
#include "model/place.h"
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
    static _Thread_local char folder[PATH_MAX];
    int given = 0;
    for (; part_of(getenv("SSM_MODEL_PATH"), given, folder, sizeof folder); given++) {
        if (given == i) {
            return folder;
        }
    }
    bool beside = place_installed("share/ssmd/models", folder, sizeof folder) && strcmp(folder, SSM_MODELS) != 0 &&
                  !access(folder, F_OK);
    const char *const built_in[] = {SSM_SOURCE_MODELS, beside ? folder : SSM_MODELS, beside ? SSM_MODELS : NULL, NULL};
    return i >= given && i - given < 3 ? built_in[i - given] : NULL;
}

static const char ending[] = ".safetensors";

static bool has_ending(const char *name)
{
    size_t length = strlen(name);
    return length >= sizeof ending - 1 && !strcmp(name + length - (sizeof ending - 1), ending);
}

static bool is_path(const char *model)
{
    return strchr(model, '/') || has_ending(model);
}

struct near {
    const char *wanted;
    char name[NEAREST_FAR + 1];
    int distance;
};

/* A name that begins as the wanted one is near; else one with a slip or two. Of equals the shorter, then the first of the alphabet:
 * folders have no order. */
static void keep_nearer(struct near *near, const char *name)
{
    bool begins = near->wanted[0] && !strncmp(name, near->wanted, strlen(near->wanted));
    int distance = begins ? 0 : nearest_distance(near->wanted, name);
    size_t length = strlen(name), best = strlen(near->name);
    bool first = length < best || (length == best && strcmp(name, near->name) < 0);
    bool close = length <= NEAREST_FAR && distance <= nearest_slips(near->wanted);
    if (close && (distance < near->distance || (distance == near->distance && first))) {
        near->distance = distance;
        snprintf(near->name, sizeof near->name, "%.*s", NEAREST_FAR, name);
    }
}

static void look_in(struct near *near, const char *path)
{
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (has_ending(entry->d_name)) {
            entry->d_name[strlen(entry->d_name) - (sizeof ending - 1)] = '\0';
            keep_nearer(near, entry->d_name);
        }
    }
    if (folder) {
        closedir(folder);
    }
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
    struct near near = {.wanted = model, .distance = NEAREST_FAR};
    for (int i = 0; ssm_model_folder(i); i++) {
        look_in(&near, ssm_model_folder(i));
    }
    bool guessed = near.name[0] != '\0';
    return refuse(err, 66, "no model \"%.64s\"%s%s%s (looked for %.64s.safetensors in %s; SSM_MODEL_PATH adds folders)", model,
                  guessed ? "; did you mean " : "", near.name, guessed ? "?" : "", model, looked);
}
