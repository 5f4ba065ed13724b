/* SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "clients/verb.h"
#include "config/config.h"

static bool manual;

static int run_schema(char **arguments, int n)
{
    (void)arguments, (void)n;
    (manual ? config_manual : config_schema)(stdout);
    return 0;
}

static const struct verb_option options[] = {
    {"man", NULL, OPTION_FLAG, &manual, 0, 0, "print the manual page ssmd.yaml(5) instead"},
    {0},
};

const struct verb ssm_schema = {
    .name = "schema",
    .arguments = "",
    .summary = "print the JSON Schema of the configuration file",
    .details = "Print the JSON Schema (draft-07) of ssmd's YAML configuration: every key, its type, its limits and its\n"
               "default. Editors with a YAML language server use it to complete and check while you type.",
    .examples = "  ssm schema > ssmd.schema.json\n"
                "      then, as the first line of your YAML:  # yaml-language-server: $schema=ssmd.schema.json",
    .options = options,
    .run = run_schema,
};
