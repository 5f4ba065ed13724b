/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "clients/json.h"
#include "clients/verb.h"
#include "config/config.h"
#include "daemon/fit.h"
#include "model/ssm.h"

/* A pipeline whose model could not be opened, which is tried once a model, or does not fit. */
struct trouble {
    int pipeline;
    struct ssm_error err;
};
enum { TROUBLES = 16 };

struct troubles {
    struct trouble at[TROUBLES];
    int n;
};

static bool is_first_use(const struct config *config, int i)
{
    for (int j = 0; j < i; j++) {
        if (strcmp(config->pipelines[j].model, config->pipelines[i].model) == 0) {
            return false;
        }
    }
    return true;
}

static void note(struct troubles *troubles, int pipeline, const struct ssm_error *err)
{
    if (troubles->n < TROUBLES) {
        troubles->at[troubles->n++] = (struct trouble){pipeline, *err};
    }
}

static bool same_models(const struct config_pipeline *a, const struct config_pipeline *b)
{
    return strcmp(a->model, b->model) == 0 && strcmp(a->fallback, b->fallback) == 0;
}

/* The fallback of pipeline i, unless one before it has the same two. */
static void try_fallback(const struct config *config, int i, const struct ssm_engine *engine, const struct ssm_options *options,
                         struct troubles *troubles)
{
    const struct config_pipeline *pipeline = &config->pipelines[i];
    struct ssm_error err = {0};
    for (int k = 0; k < i; k++) {
        if (same_models(&config->pipelines[k], pipeline)) {
            return;
        }
    }
    struct ssm_engine *smaller = ssm_open(pipeline->fallback, options, &err);
    if (!smaller || fit_fallback(pipeline, engine, smaller, &err) < 0) {
        note(troubles, i, &err);
    }
    ssm_close(smaller);
}

/* Open the i-th pipeline's model on its device, as ssmd's start does, and see whether it fits every pipeline that has it. */
static void try_model(const struct config *config, int i, struct troubles *troubles)
{
    struct ssm_options options = {.device = config->device, .precision = config->precision};
    struct ssm_error err = {0};
    struct ssm_engine *engine = ssm_open(config->pipelines[i].model, &options, &err);
    if (engine == NULL) {
        note(troubles, i, &err);
        return;
    }
    for (int j = i; j < config->n_pipelines; j++) {
        bool same = strcmp(config->pipelines[j].model, config->pipelines[i].model) == 0;
        if (same && fit_pipeline(&config->pipelines[j], engine, &err) < 0) {
            note(troubles, j, &err);
        } else if (same && config->pipelines[j].fallback[0]) {
            try_fallback(config, j, engine, &options, troubles);
        }
    }
    ssm_close(engine);
}

/* Gives how many models there are. */
static int try_models(const struct config *config, struct troubles *troubles)
{
    int models = 0;
    for (int i = 0; i < config->n_pipelines; i++) {
        if (is_first_use(config, i)) {
            try_model(config, i, troubles);
            models++;
        }
    }
    return models;
}

static void try_capacity(const struct config *config, struct troubles *troubles)
{
    int streams = 0;
    struct ssm_error err = {0};
    for (int i = 0; i < config->n_pipelines; i++) {
        if (fit_capacity(config, &config->pipelines[i], &streams, &err) < 0) {
            note(troubles, i, &err);
        }
    }
}

static void print_json(const char *path, const struct config *config, const struct config_errors *errors,
                       const struct troubles *troubles)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "file", path);
    json_flag(&json, "ok", config != NULL && troubles->n == 0);
    json_whole(&json, "pipelines", config != NULL ? config->n_pipelines : 0);
    json_open(&json, "errors", '[');
    for (int i = 0; config == NULL && i < errors->n; i++) {
        json_open(&json, NULL, '{');
        json_whole(&json, "line", errors->at[i].line);
        json_whole(&json, "column", errors->at[i].column);
        json_text(&json, "path", errors->at[i].path);
        json_text(&json, "text", errors->at[i].text);
        json_close(&json, '}');
    }
    for (int i = 0; i < troubles->n; i++) {
        const struct config_pipeline *pipeline = &config->pipelines[troubles->at[i].pipeline];
        json_open(&json, NULL, '{');
        json_whole(&json, "line", pipeline->line);
        json_text(&json, "pipeline", pipeline->name);
        json_text(&json, "text", troubles->at[i].err.text);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_close(&json, '}');
    putchar('\n');
}

static void print_text(const char *path, const struct config *config, const struct config_errors *errors,
                       const struct troubles *troubles)
{
    for (int i = 0; config == NULL && i < errors->n; i++) {
        fprintf(stderr, "%s\n", errors->at[i].text);
    }
    if (config == NULL && errors->more > 0) {
        fprintf(stderr, "%s: and %d more\n", path, errors->more);
    }
    for (int i = 0; i < troubles->n; i++) {
        const struct config_pipeline *pipeline = &config->pipelines[troubles->at[i].pipeline];
        fprintf(stderr, "%s:%d: pipelines.%s.model: %s\n", path, pipeline->line, pipeline->name, troubles->at[i].err.text);
    }
}

static int run_check(char **arguments, int n)
{
    (void)n;
    struct config_errors errors = {0};
    struct troubles troubles = {.n = 0};
    int models = 0;
    struct config *config = config_load(arguments[0], NULL, 0, &errors);
    if (config != NULL) {
        models = try_models(config, &troubles);
        try_capacity(config, &troubles);
    }
    if (verb_json) {
        print_json(arguments[0], config, &errors, &troubles);
    } else {
        print_text(arguments[0], config, &errors, &troubles);
    }
    int status = config == NULL ? EX_CONFIG : troubles.n > 0 ? troubles.at[0].err.code : 0;
    if (status == 0 && !verb_json) {
        printf("%s is fine: pipelines %d, models opened on \"%s\" %d. Not tried: source files, audio devices, addresses.\n",
               arguments[0], config->n_pipelines, config->device, models);
    }
    config_destroy(config);
    return status;
}

const struct verb ssm_check = {
    .name = "check",
    .arguments = "FILE",
    .summary = "check a configuration file before ssmd runs it",
    .details = "Read ssmd's YAML configuration with the code that ssmd itself starts with, open every model it names on the\n"
               "device it asks for, and see whether it fits its source and sinks. Each error is one line: file:line:column, the\n"
               "key, what is wrong, and the key you may have meant. FILE - is standard input. Exits with 78 for an error in the\n"
               "file, with 65, 66 or 69 for a model that can't be opened. Source files, audio devices and addresses are not tried.",
    .examples = "  ssm check live.yaml && ssmd --config live.yaml\n"
                "  ssm check live.yaml --json",
    .least = 1,
    .most = 1,
    .run = run_check,
};
