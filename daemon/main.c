/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/portaudio.h"
#include "dsp/spare.h"

enum { OVERRIDES = 64 };

struct arguments {
    const char *config; /* NULL: the one built in */
    const char *overrides[OVERRIDES];
    int n_overrides;
    bool check, stay;
};

static const char help[] =
    "ssmd: keep live signals inside selective state space models\n"
    "\n"
    "  ssmd [--config FILE] [--set KEY=VALUE]...\n"
    "\n"
    "  -c, --config FILE     the pipelines to run (YAML; - is standard input); without it, a built-in configuration\n"
    "  -s, --set KEY=VALUE   a setting over the file's: --set pipelines.mic.source.path=x.wav\n"
    "      --check           read the configuration, say what is wrong with it, and end\n"
    "      --stay            go on when every source has ended\n"
    "      --log-json        messages on stderr as JSON lines\n"
    "      --debug           tell on stderr too what the libraries of sound devices write\n"
    "      --version         print the version and end\n"
    "  -h, --help            print this and end\n"
    "\n"
    "Runs until every source has ended, or SIGTERM or SIGINT: then what is on its way is finished and output files are\n"
    "whole. A second signal cuts that short. SIGHUP reads the configuration again: what is the same in it runs on.\n"
    "\n"
    "Exit codes: 0 done; 64 usage; 65 bad data or model; 66 no input; 69 device or address not to be had; 70 our bug;\n"
    "71 no memory, thread or descriptor to be had; 73, 74 output; 75 cut short; 77 a secret that others may read;\n"
    "78 configuration. `ssm --help` is the tool; `ssm schema` describes the configuration.\n";

/* Gives the exit code. */
static int tell(const char *text)
{
    if (fputs(text, stdout) < 0 || fflush(stdout) != 0) {
        fprintf(stderr, "ssmd: can't write the output: %s\n", strerror(errno));
        return 74;
    }
    return 0;
}

/* Gives the exit code of a program that ends here, or -1 to go on. */
static int parse(int argc, char **argv, struct arguments *args)
{
    enum { CHECK = 256, STAY, LOG_JSON, DEBUG, VERSION };
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'}, {"set", required_argument, NULL, 's'},
        {"check", no_argument, NULL, CHECK},      {"stay", no_argument, NULL, STAY},
        {"log-json", no_argument, NULL, LOG_JSON}, {"debug", no_argument, NULL, DEBUG},
        {"version", no_argument, NULL, VERSION},
        {"help", no_argument, NULL, 'h'},         {0}};
    for (int option; (option = getopt_long(argc, argv, "c:s:h", options, NULL)) != -1;) {
        switch (option) {
        case 'c':
            args->config = optarg;
            break;
        case 's':
            if (args->n_overrides == OVERRIDES) {
                fprintf(stderr, "ssmd: at most %d times --set: write a configuration file\n", OVERRIDES);
                return 64;
            }
            args->overrides[args->n_overrides++] = optarg;
            break;
        case CHECK:
            args->check = true;
            break;
        case STAY:
            args->stay = true;
            break;
        case LOG_JSON:
            log_as_json();
            break;
        case DEBUG:
            log_debug();
            break;
        case VERSION:
            return tell("ssmd " SSM_VERSION "\n");
        case 'h':
            return tell(help);
        default:
            fputs("ssmd: ssmd --help lists the options\n", stderr);
            return 64;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "ssmd: unexpected argument %s: a configuration is given with --config\n", argv[optind]);
        return 64;
    }
    return -1;
}

static struct config *load(void *arg, struct config_errors *errors)
{
    const struct arguments *args = arg;
    const char *text = config_default();
    return args->config ? config_load(args->config, args->overrides, args->n_overrides, errors)
                        : config_parse(text, strlen(text), "built-in", args->overrides, args->n_overrides, errors);
}

static struct config *load_or_say_why(struct arguments *args)
{
    struct config_errors errors = {0};
    struct config *config = load(args, &errors);
    for (int i = 0; !config && i < errors.n; i++) {
        log_line(LOG_ERROR, "%s", errors.at[i].text);
    }
    if (!config && errors.more > 0) {
        log_line(LOG_ERROR, "... and %d more", errors.more);
    }
    return config;
}

/* Standard input can't be read again. */
static int run(const struct config *config, struct arguments *args, struct ssm_error *err)
{
    struct daemon *daemon = daemon_open(config, err);
    if (daemon && args->config && strcmp(args->config, "-") != 0) {
        daemon_reloads(daemon, load, args);
    }
    int code = daemon ? daemon_run(daemon, args->stay, err) : err->code;
    daemon_close(daemon);
    return code;
}

int main(int argc, char **argv)
{
    spare_standard();
    portaudio_main(argc, argv);
    struct arguments args = {0};
    int code = parse(argc, argv, &args);
    if (code >= 0) {
        return code;
    }
    struct config *config = load_or_say_why(&args);
    if (!config) {
        return 78;
    }
    if (args.check) {
        config_destroy(config);
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file at its size limit is like a full disk: told, counted, and the rest runs on */
    struct ssm_error err = {0};
    code = run(config, &args, &err);
    if (err.code != 0) {
        log_line(LOG_ERROR, "%s", err.text);
    }
    config_destroy(config);
    return code;
}
