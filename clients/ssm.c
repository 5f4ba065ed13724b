/* SPDX-License-Identifier: MIT */

/* The ssm tool: finds the verb, parses its options from its table, prints the help that the same table makes. */

#include "clients/verb.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "daemon/portaudio.h"
#include "dsp/nearest.h"
#include "dsp/spare.h"

/* A row here is all a new verb needs besides its file. */
static const struct verb *const verbs[] = {
    &ssm_denoise, &ssm_tag,    &ssm_lines,   &ssm_models, &ssm_model_inspect,
    &ssm_check,   &ssm_schema, &ssm_devices, &ssm_doctor, &ssm_watch,
    &ssm_top,     &ssm_ctl,    &ssm_keys,    &ssm_bench,
};
enum { VERBS = sizeof verbs / sizeof *verbs, OPTIONS = 24, HELP_COLUMN = 26 };

bool verb_json;
static bool help_wanted;
static const char *verb_name; /* in front of every message */

static const struct verb_option common_options[] = {
    {"json", NULL, OPTION_FLAG, &verb_json, 0, 0, "print JSON for programs instead of text"},
    {"help", NULL, OPTION_FLAG, &help_wanted, 0, 0, "print this"},
    {0},
};

static void print_message(const char *format, va_list values)
{
    fflush(stdout);
    fprintf(stderr, "ssm%s%s: ", verb_name ? " " : "", verb_name ? verb_name : "");
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
}

int verb_fail(int code, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    print_message(format, values);
    va_end(values);
    return code;
}

void verb_note(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    print_message(format, values);
    va_end(values);
}

/* Keep `name` in *best if it is nearer to `word` than what stood there, and near. */
static void keep_nearest(const char *word, const char *name, const char **best, int *best_distance)
{
    int d = nearest_distance(word, name);
    if (d < *best_distance && d <= nearest_slips(word)) {
        *best = name;
        *best_distance = d;
    }
}

/* The verb that args[0] (and args[1], for a name of two words) spell; *words is how many. */
static const struct verb *find_verb(char **args, int n, int *words)
{
    for (int i = 0; i < VERBS; i++) {
        const char *name = verbs[i]->name, *space = strchr(name, ' ');
        size_t first = space ? (size_t)(space - name) : strlen(name);
        if (n < 1 || strlen(args[0]) != first || strncmp(args[0], name, first) != 0) {
            continue;
        }
        if (space == NULL || (n > 1 && strcmp(args[1], space + 1) == 0)) {
            *words = space ? 2 : 1;
            return verbs[i];
        }
    }
    return NULL;
}

static int fail_unknown_verb(const char *word)
{
    const char *best = NULL;
    int best_distance = 99;
    for (int i = 0; i < VERBS; i++) {
        keep_nearest(word, verbs[i]->name, &best, &best_distance);
        if (*word && strncmp(verbs[i]->name, word, strlen(word)) == 0) { /* "model" for "model inspect" */
            best = verbs[i]->name;
            best_distance = 0;
        }
    }
    if (best != NULL) {
        return verb_fail(EX_USAGE, "there is no command \"%s\"; did you mean \"ssm %s\"?", word, best);
    }
    return verb_fail(EX_USAGE, "there is no command \"%s\"; \"ssm --help\" lists them", word);
}

static void print_overview(FILE *file)
{
    fprintf(file, "Usage: ssm COMMAND [ARGUMENTS] [OPTIONS]\n\n"
                  "Sound and sensor streams through selective state space models.\n\nCommands:\n");
    for (int i = 0; i < VERBS; i++) {
        fprintf(file, "  %-15s %s\n", verbs[i]->name, verbs[i]->summary);
    }
    fprintf(file, "\nTry it:\n"
                  "  ssm denoise noisy.wav clean.wav     take the noise out of a recording\n"
                  "  ssm tag street.wav                  what is in it, and when\n"
                  "  ssm models                          what models there are\n"
                  "  ssm help denoise                    everything about one command\n\n"
                  "Every command takes --json and --help. Errors are one sentence on stderr and an exit status:\n"
                  "  0 done   64 wrong use   65 bad data or model   66 no input   69 device or service missing\n"
                  "  70 our bug   71 out of memory   73 can't create   74 can't read or write   75 try again\n"
                  "  76 something else answers   77 not allowed   78 wrong configuration\n");
}

static void print_option(const struct verb_option *option)
{
    int width = printf("  --%s%s%s", option->name, option->argument ? " " : "", option->argument ? option->argument : "");
    if (width > HELP_COLUMN - 2) {
        putchar('\n');
        width = 0;
    }
    printf("%*s", HELP_COLUMN - width, "");
    for (const char *at = option->help; *at; at++) {
        putchar(*at);
        if (*at == '\n') {
            printf("%*s", HELP_COLUMN, "");
        }
    }
    putchar('\n');
}

static void print_help(const struct verb *verb)
{
    printf("Usage: ssm %s%s%s [OPTIONS]\n\n%s\n\nOptions:\n", verb->name, *verb->arguments ? " " : "", verb->arguments,
           verb->details);
    for (const struct verb_option *o = verb->options; o != NULL && o->name != NULL; o++) {
        print_option(o);
    }
    for (const struct verb_option *o = common_options; o->name != NULL; o++) {
        print_option(o);
    }
    printf("\nExamples:\n%s\n", verb->examples);
}

/* The verb's options and the common ones in one array; gives how many. */
static int gather_options(const struct verb *verb, const struct verb_option *all[OPTIONS])
{
    int n = 0;
    for (const struct verb_option *o = verb->options; o != NULL && o->name != NULL; o++) {
        all[n++] = o;
    }
    for (const struct verb_option *o = common_options; o->name != NULL; o++) {
        all[n++] = o;
    }
    return n;
}

static int set_real(const struct verb_option *option, const char *text)
{
    char *end;
    double number = strtod(text, &end);
    if (end == text || *end != '\0' || !(number >= option->least && number <= option->most)) {
        return verb_fail(EX_USAGE, "--%s takes a number from %d to %d, got \"%s\"", option->name, option->least,
                         option->most, text);
    }
    *(double *)option->value = number;
    return 0;
}

static int set_option(const struct verb_option *option, const char *text)
{
    if (option->type == OPTION_FLAG) {
        *(bool *)option->value = true;
    } else if (option->type == OPTION_TEXT) {
        *(const char **)option->value = text;
    } else if (option->type == OPTION_REAL) {
        return set_real(option, text);
    } else {
        char *end;
        errno = 0;
        long number = strtol(text, &end, 10);
        if (end == text || *end != '\0' || errno != 0 || number < option->least || number > option->most) {
            return verb_fail(EX_USAGE, "--%s takes a whole number from %d to %d, got \"%s\"", option->name,
                             option->least, option->most, text);
        }
        *(int *)option->value = (int)number;
    }
    return 0;
}

static int fail_unknown_option(const struct verb_option *const *all, int n, const char *word)
{
    const char *best = NULL;
    int best_distance = 99;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    for (int i = 0; i < n; i++) {
        keep_nearest(name + strspn(name, "-"), all[i]->name, &best, &best_distance);
    }
    if (best_distance == 0 && word[strcspn(word, "=")] == '=') {
        return verb_fail(EX_USAGE, "%s takes no value", name);
    }
    if (best != NULL) {
        return verb_fail(EX_USAGE, "there is no option %s; did you mean --%s?", name, best);
    }
    return verb_fail(EX_USAGE, "there is no option %s; \"ssm %s --help\" lists them", name, verb_name);
}

/* Options into their places, arguments to the front. Gives 0 and the arguments' place in *first, or an exit status. */
static int parse(const struct verb *verb, int argc, char **argv, int *first)
{
    const struct verb_option *all[OPTIONS];
    struct option table[OPTIONS + 1] = {0};
    int n = gather_options(verb, all);
    for (int i = 0; i < n; i++) {
        table[i] = (struct option){.name = all[i]->name, .has_arg = all[i]->type != OPTION_FLAG};
    }
    opterr = 0;
    for (;;) {
        int at = -1, before = optind;
        int c = getopt_long(argc, argv, ":h", table, &at);
        if (c == -1) {
            *first = optind;
            return 0;
        }
        if (c == 'h') {
            help_wanted = true;
        } else if (c == ':') {
            return verb_fail(EX_USAGE, "%s needs a value after it; see \"ssm %s --help\"", argv[optind - 1], verb_name);
        } else if (c == '?') {
            return fail_unknown_option(all, n, argv[optind > before ? optind - 1 : optind]);
        } else if (set_option(all[at], optarg) != 0) {
            return EX_USAGE;
        }
    }
}

static int run(const struct verb *verb, int argc, char **argv)
{
    int first = 0;
    verb_name = verb->name;
    int status = parse(verb, argc, argv, &first);
    if (status != 0) {
        return status;
    }
    if (help_wanted) {
        print_help(verb);
        return 0;
    }
    int n = argc - first;
    if (n < verb->least) {
        return verb_fail(EX_USAGE, "an argument is missing: the command is \"ssm %s %s\"; \"ssm %s --help\" explains",
                         verb->name, verb->arguments, verb->name);
    }
    if (n > verb->most) {
        return verb_fail(EX_USAGE, "\"%s\" is one argument too many: the command is \"ssm %s%s%s\"",
                         argv[first + verb->most], verb->name, *verb->arguments ? " " : "", verb->arguments);
    }
    return verb->run(argv + first, n);
}

static int main_verb(int argc, char **argv)
{
    int words = 0;
    if (argc < 2) {
        print_overview(stderr);
        return EX_USAGE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("ssm %s\n", SSM_VERSION);
        return 0;
    }
    bool help = strcmp(argv[1], "help") == 0;
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || (help && argc == 2)) {
        print_overview(stdout);
        return 0;
    }
    const struct verb *verb = find_verb(argv + 1 + help, argc - 1 - help, &words);
    if (verb == NULL) {
        return fail_unknown_verb(argv[1 + help]);
    }
    if (help) {
        print_help(verb);
        return 0;
    }
    return run(verb, argc - words, argv + words);
}

int main(int argc, char **argv)
{
    spare_standard();
    portaudio_main(argc, argv);
    signal(SIGXFSZ, SIG_IGN); /* a file at its size limit is like a full disk: told, and nothing half done is left */
    int status = main_verb(argc, argv);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0) {
        status = verb_fail(EX_IOERR, "can't write the output: %s", strerror(errno));
    }
    return status;
}
