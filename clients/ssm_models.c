/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/json.h"
#include "clients/verb.h"
#include "model/ssm.h"

static const char ending[] = ".safetensors";

static int is_model(const struct dirent *entry)
{
    size_t n = strlen(entry->d_name);
    return n >= sizeof ending && strcmp(entry->d_name + n - (sizeof ending - 1), ending) == 0;
}

static void print_text(const char *path, const struct ssm_info *info)
{
    printf("%-18s %-9s %6d Hz %6.1f ms %8.2f M  %s\n", info->name, info->task, info->rate,
           1e3 * info->latency / info->rate, (double)info->parameters / 1e6, path);
}

static void print_json(struct json *json, const char *path, const struct ssm_info *info)
{
    json_open(json, NULL, '{');
    json_text(json, "name", info->name);
    json_text(json, "version", info->version);
    json_text(json, "task", info->task);
    json_whole(json, "rate", info->rate);
    json_number(json, "latency_ms", 1e3 * info->latency / info->rate);
    json_whole(json, "parameters", info->parameters);
    json_text(json, "licence", info->licence);
    json_text(json, "path", path);
    json_close(json, '}');
}

/* A model that can't be opened is listed as such: finding out is what the list is for. */
static void print_broken(struct json *json, const char *path, const struct ssm_error *err)
{
    if (!verb_json) {
        printf("can't be opened: %s\n", err->text);
        return;
    }
    json_open(json, NULL, '{');
    json_text(json, "path", path);
    json_text(json, "error", err->text);
    json_close(json, '}');
}

static void list_model(struct json *json, const char *path)
{
    struct ssm_error err = {0};
    struct ssm_options options = {.device = "cpu"};
    struct ssm_engine *engine = ssm_open(path, &options, &err);
    if (engine == NULL) {
        print_broken(json, path, &err);
    } else if (verb_json) {
        print_json(json, path, ssm_describe(engine));
    } else {
        print_text(path, ssm_describe(engine));
    }
    ssm_close(engine);
}

/* Gives how many models the folder holds. */
static int list_folder(struct json *json, const char *folder)
{
    struct dirent **entries;
    int n = scandir(folder, &entries, is_model, alphasort);
    for (int i = 0; i < n; i++) {
        char path[2048];
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        list_model(json, path);
        free(entries[i]);
    }
    if (n >= 0) {
        free(entries);
    }
    return n > 0 ? n : 0;
}

static int run_models(char **arguments, int n_arguments)
{
    (void)arguments, (void)n_arguments;
    struct json json = {.file = stdout};
    int n = 0;
    const char *folder;
    if (verb_json) {
        json_open(&json, NULL, '[');
    }
    for (int i = 0; (folder = ssm_model_folder(i)) != NULL; i++) {
        n += list_folder(&json, folder);
    }
    if (verb_json) {
        json_close(&json, ']');
        putchar('\n');
    }
    for (int i = 0; n == 0 && (folder = ssm_model_folder(i)) != NULL; i++) {
        verb_note("no model in %s", folder);
    }
    return 0;
}

const struct verb ssm_models = {
    .name = "models",
    .arguments = "",
    .summary = "list the models that --model and the YAML can name",
    .details = "List every model (*.safetensors) in the folders of the environment variable SSM_MODEL_PATH (separated by ':'),\n"
               "then in the source tree's model/pretrained, then among the installed ones: name, task, sample rate,\n"
               "algorithmic latency, millions of parameters, file. Of two with one name the first is used.",
    .examples = "  ssm models\n"
                "  SSM_MODEL_PATH=$HOME/models ssm models --json",
    .run = run_models,
};
