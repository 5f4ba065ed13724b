/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "clients/check.h"
#include "clients/json.h"
#include "clients/verb.h"
#include "daemon/cert.h"
#include "daemon/fit.h"
#include "daemon/gate.h"
#include "daemon/source.h"
#include "daemon/worker.h"
#include "model/refuse.h"
#include "model/ssm.h"

/* A model by its name, opened once; NULL engine: it can't be. */
struct opened {
    const char *name;
    struct ssm_engine *engine;
};

struct models {
    const struct config *config;
    struct opened *at; /* (n) of at most two a pipeline */
    int n;
};

static void note(struct troubles *troubles, const struct config_place *at, const struct ssm_error *err)
{
    if (troubles->n < TROUBLES) {
        troubles->at[troubles->n++] = (struct trouble){at, *err};
    }
}

/* What a pipeline's source gives; rate 0: shows only at the start. */
struct given {
    int rate, channels;
};

/* A file that is there; one that isn't may still come. */
static void try_file(const struct config_pipeline *pipeline, struct given *given, struct troubles *troubles)
{
    struct worker *reader = worker_create();
    const struct source_setup setup = {&pipeline->source, pipeline->name, reader, NULL, NULL};
    struct ssm_error err = {0};
    struct source *source = reader ? source_file.open(&setup, &err) : NULL;
    if (source) {
        *given = (struct given){source->rate, source->n_channels};
        source->ops->close(source);
    } else {
        if (!reader) {
            refuse_memory(&err);
        }
        note(troubles, &pipeline->at.source, &err);
    }
    worker_destroy(reader);
}

static void try_source(const struct config_pipeline *pipeline, struct given *given, struct troubles *troubles)
{
    char key[CERT_KEY];
    struct ssm_error err = {0};
    int channels = pipeline->source.type == SOURCE_PCM ? pipeline->source.pcm_channels : pipeline->source.n_channels;
    *given = (struct given){pipeline->source.rate, channels > 0 ? channels : 1};
    if (pipeline->source.type == SOURCE_FILE && access(pipeline->source.path, F_OK) == 0) {
        try_file(pipeline, given, troubles);
    }
    if (pipeline->source.server_key[0] && cert_public(pipeline->source.server_key, key, &err) < 0) {
        note(troubles, &pipeline->at.source, &err);
    }
}

/* Our own key, and those who are allowed. */
static void try_keys(const struct config *config, struct troubles *troubles)
{
    struct ssm_error err = {0};
    struct gate *gate = config->curve.secret[0] ? gate_open(&config->curve, &err) : NULL;
    if (!gate && err.code != 0) {
        note(troubles, &config->curve_at, &err);
    }
    gate_close(gate);
}

/* NULL: not tried. */
static const struct opened *find_model(const struct models *models, const char *name)
{
    for (int i = 0; i < models->n; i++) {
        if (strcmp(models->at[i].name, name) == 0) {
            return &models->at[i];
        }
    }
    return NULL;
}

static struct ssm_engine *engine_of(const struct models *models, const char *name)
{
    const struct opened *opened = find_model(models, name);
    return opened ? opened->engine : NULL;
}

/* Open a model on its device, as ssmd's start does, unless that was tried. */
static void try_model(struct models *models, const char *name, const struct config_place *at, struct troubles *troubles)
{
    const struct ssm_options options = {.device = models->config->device, .precision = models->config->precision};
    struct ssm_error err = {0};
    if (!name[0] || find_model(models, name)) {
        return;
    }
    struct ssm_engine *engine = ssm_open(name, &options, &err);
    models->at[models->n++] = (struct opened){name, engine};
    if (!engine) {
        note(troubles, at, &err);
    }
}

static void try_fit(const struct models *models, const struct config_pipeline *pipeline, struct troubles *troubles)
{
    struct ssm_engine *engine = engine_of(models, pipeline->model), *smaller = engine_of(models, pipeline->fallback);
    struct ssm_error err = {0};
    if (engine && fit_pipeline(pipeline, engine, &err) < 0) {
        note(troubles, &pipeline->at.model, &err);
    } else if (engine && smaller && fit_fallback(pipeline, engine, smaller, &err) < 0) {
        note(troubles, &pipeline->at.fallback, &err);
    }
}

static void try_sinks(const struct config_pipeline *pipeline, const struct given *given, struct troubles *troubles)
{
    struct ssm_error err = {0};
    for (int i = 0; i < pipeline->n_sinks; i++) {
        if (fit_file(&pipeline->sinks[i], given->rate, given->channels, &err) < 0) {
            note(troubles, &pipeline->at.sinks[i], &err);
        }
    }
}

static void try_capacity(const struct config *config, struct troubles *troubles)
{
    int streams = 0;
    struct ssm_error err = {0};
    for (int i = 0; i < config->n_pipelines; i++) {
        if (fit_capacity(config, &config->pipelines[i], &streams, &err) < 0) {
            note(troubles, &config->pipelines[i].at.source, &err);
        }
    }
}

int check_all(const struct config *config, struct troubles *troubles)
{
    try_keys(config, troubles);
    struct models models = {.config = config, .at = calloc(2 * (size_t)config->n_pipelines, sizeof *models.at)};
    struct given *given = calloc((size_t)config->n_pipelines, sizeof *given);
    if (!models.at || !given) {
        free(models.at);
        free(given);
        struct ssm_error err;
        refuse_memory(&err);
        note(troubles, &config->pipelines[0].at.model, &err);
        return 0;
    }
    for (int i = 0; i < config->n_pipelines; i++) {
        try_source(&config->pipelines[i], &given[i], troubles);
    }
    for (int i = 0; i < config->n_pipelines; i++) {
        const struct config_pipeline *pipeline = &config->pipelines[i];
        try_model(&models, pipeline->model, &pipeline->at.model, troubles);
        try_model(&models, pipeline->fallback, &pipeline->at.fallback, troubles);
    }
    try_capacity(config, troubles);
    for (int i = 0; i < config->n_pipelines; i++) {
        try_fit(&models, &config->pipelines[i], troubles);
        try_sinks(&config->pipelines[i], &given[i], troubles);
    }
    for (int i = 0; i < models.n; i++) {
        ssm_close(models.at[i].engine);
    }
    free(models.at);
    free(given);
    return models.n;
}

static void print_json(const char *path, const struct config *config, const struct config_errors *errors,
                       struct troubles *troubles)
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
        struct trouble *trouble = &troubles->at[i];
        json_open(&json, NULL, '{');
        json_whole(&json, "line", trouble->at->line);
        json_whole(&json, "column", trouble->at->column);
        fit_blame(trouble->at, &trouble->err);
        json_text(&json, "text", trouble->err.text);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_close(&json, '}');
    putchar('\n');
}

static void print_text(const char *path, const struct config *config, const struct config_errors *errors,
                       struct troubles *troubles)
{
    for (int i = 0; config == NULL && i < errors->n; i++) {
        fprintf(stderr, "%s\n", errors->at[i].text);
    }
    if (config == NULL && errors->more > 0) {
        fprintf(stderr, "%s: and %d more\n", path, errors->more);
    }
    for (int i = 0; i < troubles->n; i++) {
        fit_blame(troubles->at[i].at, &troubles->at[i].err);
        fprintf(stderr, "%s\n", troubles->at[i].err.text);
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
        models = check_all(config, &troubles);
    }
    if (verb_json) {
        print_json(arguments[0], config, &errors, &troubles);
    } else {
        print_text(arguments[0], config, &errors, &troubles);
    }
    int status = config == NULL ? EX_CONFIG : troubles.n > 0 ? troubles.at[0].err.code : 0;
    if (status == 0 && !verb_json) {
        printf("%s is fine: pipelines %d, models opened on \"%s\" %d. Not tried: audio devices, addresses.\n",
               arguments[0], config->n_pipelines, config->device, models);
    }
    config_destroy(config);
    return status;
}

const struct verb ssm_check = {
    .name = "check",
    .arguments = "FILE",
    .summary = "check a configuration file before ssmd runs it",
    .details =
        "Read ssmd's YAML configuration with the code that ssmd itself starts with, open every model it names on the\n"
        "device it asks for, and see whether it fits its source and sinks. Each error is one line: file:line:column, "
        "the\n"
        "key, what is wrong, and the key you may have meant. FILE - is standard input. Exits with 78 for an error in "
        "the\n"
        "file, with 65, 66, 69 or 77 for a model, keys or a source file that can't be opened, with 73 for a sink's file whose\n"
        "format doesn't take the source's rate. Source files that aren't there (yet), audio devices and addresses are not "
        "tried.",
    .examples = "  ssm check live.yaml && ssmd --config live.yaml\n"
                "  ssm check live.yaml --json",
    .least = 1,
    .most = 1,
    .run = run_check,
};
