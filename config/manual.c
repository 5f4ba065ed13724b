/* SPDX-License-Identifier: MIT */
#include <ctype.h>

#include "config/config.h"
#include "config/keys.h"

/* Text for roff: nothing in it is a command. */
static void put_text(FILE *file, const char *text)
{
    if (*text == '.' || *text == '\'') {
        fputs("\\&", file);
    }
    for (; *text; text++) {
        if (*text == '\\' || *text == '-') {
            fputc('\\', file);
        }
        fputc(*text == '\\' ? 'e' : *text, file);
    }
}

static void put_words(FILE *file, const char *const *words)
{
    for (int i = 0; words[i]; i++) {
        fputs(i > 0 ? " | " : "", file);
        put_text(file, words[i]);
    }
}

/* What stands behind the colon. */
static void put_kind(FILE *file, const struct key *key)
{
    static const char *const names[] = {
        [KEY_TEXT] = "text",           [KEY_BOOL] = "true | false", [KEY_INT] = "number",    [KEY_REAL] = "number",
        [KEY_SECONDS] = "time (20ms)", [KEY_WORD] = "word",         [KEY_TEXTS] = "text or list of texts",
        [KEY_INTS] = "list of numbers", [KEY_MAP] = "map",          [KEY_LIST] = "list",     [KEY_NAMED] = "names, each with"};
    if (key->kind == KEY_WORD) {
        put_words(file, key->words);
    } else {
        put_text(file, names[key->kind]);
    }
    if (key->kind == KEY_INT || key->kind == KEY_REAL) {
        fprintf(file, ", %g to %g", key->least, key->most);
    }
}

static void put_types(FILE *file, const struct keys *keys, const struct key *key)
{
    const char *between = " (";
    for (int type = 0; key->types != 0 && keys->types[type]; type++) {
        if (key_has_type(key, type)) {
            fprintf(file, "%s%s", between, keys->types[type]);
            between = ", ";
        }
    }
    fputs(key->types != 0 ? ")" : "", file);
}

static void put_key(FILE *file, const struct keys *keys, const struct key *key)
{
    fputs(".TP\n\\fB", file);
    put_text(file, key->name);
    fputs("\\fR: \\fI", file);
    put_kind(file, key);
    fputs("\\fR", file);
    put_types(file, keys, key);
    fputc('\n', file);
    put_text(file, key->about);
    if (key->required) {
        fputs(" It has to be there.", file);
    } else if (key->standard) {
        fputs(" Default: ", file);
        put_text(file, key->standard);
        fputc('.', file);
    }
    fputc('\n', file);
}

/* This map's keys, then those of the maps in it. */
static void put_keys(FILE *file, const struct keys *keys)
{
    fputs(".SH KEYS OF A ", file);
    for (const char *at = keys->what; *at; at++) {
        fputc(toupper((unsigned char)*at), file);
    }
    fputc('\n', file);
    for (int i = 0; i < keys->n; i++) {
        put_key(file, keys, &keys->at[i]);
    }
    for (int i = 0; i < keys->n; i++) {
        if (keys->at[i].items) {
            put_keys(file, keys->at[i].items);
        }
    }
}

void config_manual(FILE *file)
{
    fprintf(file, ".TH SSMD.YAML 5 \"\" \"ssmd %s\"\n.SH NAME\nssmd.yaml \\- configuration of ssmd\n", SSM_VERSION);
    fputs(".SH DESCRIPTION\nOne YAML file says what\n.BR ssmd (8)\nruns: each pipeline is a line from a source through a model to "
          "sinks.\n.B ssm check\nreads it by the same code as the daemon's start; every error tells line, column, key and the "
          "nearest key there is. Aliases and tags are refused, and so is what YAML 1.1 and 1.2 read differently.\n",
          file);
    put_keys(file, &config_keys);
    fputs(".SH EXAMPLE\n.EX\nversion: 1\nnode: studio\npublish: tcp://127.0.0.1:5571\nhttp: 127.0.0.1:9464\npipelines:\n"
          "  mic:\n    source: {type: audio, device: default, channels: [0]}\n    model: denoise\\-16k\n    sinks:\n"
          "      \\- {type: publish}\n      \\- {type: file, path: clean.flac}\n.EE\n"
          ".SH SEE ALSO\n.BR ssmd (8),\n.BR ssm (1)\n",
          file);
}
