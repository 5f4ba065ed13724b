/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_VERB_H
#define CLIENTS_VERB_H

/* What the ssm tool is made of: one row a verb.
 *
 * A verb's file (ssm_denoise.c) exports one `const struct verb`; the row in ssm.c's table gives it its place in
 * `ssm --help`, its own help, the parsing of its options and the answer to a misspelt name. */

#include <stdbool.h>

enum option_type {
    OPTION_FLAG,  /* bool *        no argument                */
    OPTION_TEXT,  /* const char ** borrowed from argv         */
    OPTION_NUMBER, /* int *        a whole number, least..most */
    OPTION_REAL    /* double *     a number, least..most       */
};

struct verb_option {
    const char *name;     /* without the dashes; NULL ends a table                                      */
    const char *argument; /* how help shows what follows: "N"                                           */
    enum option_type type;
    void *value; /* where it goes; what stands there before is the default                      */
    int least, most;
    const char *help; /* '\n' starts a new line                                                    */
};

struct verb {
    const char *name;      /* "denoise", "model inspect"                                                */
    const char *arguments; /* "IN OUT"                                                                  */
    const char *summary;   /* its line in `ssm --help`                                                  */
    const char *details;   /* what it does, in its own help                                             */
    const char *examples;  /* command lines, at the end of it                                           */
    const struct verb_option *options; /* besides --json and --help, which every verb has; NULL for none */
    int least, most;                   /* arguments it takes                                            */
    int (*run)(char **arguments, int n); /* gives the exit status, by sysexits.h                         */
};

extern const struct verb ssm_denoise, ssm_tag, ssm_lines, ssm_check, ssm_schema, ssm_devices, ssm_doctor, ssm_models, ssm_model_inspect,
    ssm_watch, ssm_top, ssm_ctl, ssm_keys, ssm_bench;

extern bool verb_json; /* --json was given */

/* Print one sentence to stderr behind the verb's name; gives code, so that a verb can return it. */
int verb_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for what is worth knowing but ends nothing. */
void verb_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
