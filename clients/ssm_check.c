/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "clients/json.h"
#include "clients/verb.h"
#include "config/config.h"
#include "model/ssm.h"

/* A pipeline's model that could not be opened; the same model is tried once. */
struct model_trouble {
    int pipeline;
    struct ssm_error err;
};
enum { TROUBLES = 16 };

static bool is_first_use(const struct config *config, int i)
{
    for (int j = 0; j < i; j++) {
        if (strcmp(config->pipelines[j].model, config->pipelines[i].model) == 0) {
            return false;
        }
    }
    return true;
}

/* Open every model the file names, on its device, as ssmd's start does. Gives how many can't be; *models how many there are. */
static int try_models(const struct config *config, struct model_trouble troubles[TROUBLES], int *models)
{
    int n = 0;
    for (int i = 0; i < config->n_pipelines; i++) {
        if (!is_first_use(config, i)) {
            continue;
        }
        struct ssm_options options = {.device = config->device, .precision = config->precision};
        struct ssm_error err = {0};
        struct ssm_engine *engine = ssm_open(config->pipelines[i].model, &options, &err);
        if (engine == NULL && n < TROUBLES) {
            troubles[n++] = (struct model_trouble){i, err};
        }
        ssm_close(engine);
        ++*models;
    }
    return n;
}

static void print_json(const char *path, const struct config *config, const struct config_errors *errors,
                       const struct model_trouble *troubles, int n_troubles)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "file", path);
    json_flag(&json, "ok", config != NULL && n_troubles == 0);
    json_integer(&json, "pipelines", config != NULL ? config->n_pipelines : 0);
    json_open(&json, "errors", '[');
    for (int i = 0; config == NULL && i < errors->n; i++) {
        json_open(&json, NULL, '{');
        json_integer(&json, "line", errors->at[i].line);
        json_integer(&json, "column", errors->at[i].column);
        json_text(&json, "path", errors->at[i].path);
        json_text(&json, "text", errors->at[i].text);
        json_close(&json, '}');
    }
    for (int i = 0; i < n_troubles; i++) {
        const struct config_pipeline *pipeline = &config->pipelines[troubles[i].pipeline];
        json_open(&json, NULL, '{');
        json_integer(&json, "line", pipeline->line);
        json_text(&json, "pipeline", pipeline->name);
        json_text(&json, "text", troubles[i].err.text);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_close(&json, '}');
    putchar('\n');
}

static void print_text(const char *path, const struct config *config, const struct config_errors *errors,
                       const struct model_trouble *troubles, int n_troubles)
{
    for (int i = 0; config == NULL && i < errors->n; i++) {
        fprintf(stderr, "%s\n", errors->at[i].text);
    }
    if (config == NULL && errors->more > 0) {
        fprintf(stderr, "%s: and %d more\n", path, errors->more);
    }
    for (int i = 0; i < n_troubles; i++) {
        const struct config_pipeline *pipeline = &config->pipelines[troubles[i].pipeline];
        fprintf(stderr, "%s:%d: pipelines.%s.model: %s\n", path, pipeline->line, pipeline->name, troubles[i].err.text);
    }
}

static int run_check(char **arguments, int n)
{
    (void)n;
    struct config_errors errors = {0};
    struct model_trouble troubles[TROUBLES];
    int models = 0, n_troubles = 0;
    struct config *config = config_load(arguments[0], NULL, 0, &errors);
    if (config != NULL) {
        n_troubles = try_models(config, troubles, &models);
    }
    if (verb_json) {
        print_json(arguments[0], config, &errors, troubles, n_troubles);
    } else {
        print_text(arguments[0], config, &errors, troubles, n_troubles);
    }
    int status = config == NULL ? EX_CONFIG : n_troubles > 0 ? troubles[0].err.code : 0;
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
    .details = "Read ssmd's YAML configuration with the code that ssmd itself starts with, and open every model it names on\n"
               "the device it asks for. Each error is one line: file:line:column, the key, what is wrong, and the key you\n"
               "may have meant. FILE - is standard input. Exits with 78 for an error in the file, with 65, 66 or 69 for a\n"
               "model that can't be opened. Source files, audio devices and addresses are not tried.",
    .examples = "  ssm check live.yaml && ssmd --config live.yaml\n"
                "  ssm check live.yaml --json",
    .least = 1,
    .most = 1,
    .run = run_check,
};
