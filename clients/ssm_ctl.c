/* SPDX-License-Identifier: MIT */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "clients/caller.h"
#include "clients/verb.h"

static const char *address = "tcp://127.0.0.1:5570";
static int seconds = 5;

/* What the daemon's error codes mean to a shell. */
static int exit_status(const char *code)
{
    static const struct {
        const char *code;
        int status;
    } rows[] = {{"bad_request", EX_USAGE}, {"unknown_op", EX_USAGE}, {"not_found", EX_NOINPUT}, {"busy", EX_TEMPFAIL},
                {"refused", EX_DATAERR}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (strcmp(code, rows[i].code) == 0) {
            return rows[i].status;
        }
    }
    return EX_SOFTWARE;
}

/* {"op": ..., "args": {"stream": ...}}; gives its text, to be freed, or NULL. */
static char *write_request(const char *op, const char *stream)
{
    json_t *request = json_pack("{s:s, s:i, s:{s:s*}}", "op", op, "id", 1, "args", "stream", stream);
    char *text = request != NULL ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    return text;
}

/* As text, two spaces a level; with --json a line. */
static int print_answer(const json_t *root)
{
    const json_t *result = json_object_get(root, "result"), *err = json_object_get(root, "err");
    if (json_is_true(json_object_get(root, "ok"))) {
        json_dumpf(result, stdout, JSON_REAL_PRECISION(9) | (verb_json ? JSON_COMPACT : JSON_INDENT(2)));
        putchar('\n');
        return 0;
    }
    const char *code = json_string_value(json_object_get(err, "code")), *msg = json_string_value(json_object_get(err, "msg"));
    if (code == NULL || msg == NULL) {
        return verb_fail(EX_PROTOCOL, "what answers at %s is not ssmd", address);
    }
    return verb_fail(exit_status(code), "%s", msg);
}

static int ask(struct caller *caller, char **arguments, int n)
{
    struct ssm_error err = {0};
    struct caller_message answer;
    char *text = write_request(arguments[0], n > 1 ? arguments[1] : NULL);
    if (text == NULL) {
        return verb_fail(EX_USAGE, "the operation and the stream have to be UTF-8");
    }
    const struct caller_message request = {.body = text, .size = strlen(text)};
    int status = caller_ask(caller, &request, &answer, seconds * 1000, &err);
    free(text);
    if (status != 0) {
        return verb_fail(err.code, "%s: %s", address, err.text);
    }
    json_t *root = json_loadb(answer.body, answer.size, 0, NULL);
    status = print_answer(root);
    json_decref(root);
    return status;
}

static int run_ctl(char **arguments, int n)
{
    struct ssm_error err = {0};
    struct caller *caller = caller_open(address, &err);
    if (caller == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    int status = ask(caller, arguments, n);
    caller_close(caller);
    return status;
}

static const struct verb_option options[] = {
    {"connect", "ADDRESS", OPTION_TEXT, &address, 0, 0, "where ssmd answers: one port below publish (tcp://127.0.0.1:5570)"},
    {"wait", "S", OPTION_NUMBER, &seconds, 1, 600, "seconds to wait for the answer (5)"},
    {0},
};

const struct verb ssm_ctl = {
    .name = "ctl",
    .arguments = "OP [STREAM]",
    .summary = "ask a running ssmd, or tell it something",
    .details = "Send one request to a running ssmd and print its answer. OP is one of\n"
               "    describe       the operations there are, and the models that run\n"
               "    snapshot       counters, latencies and streams, as state/ tells them each second\n"
               "    stream.list    the streams and how far they are\n"
               "    stream.reset   put STREAM's model back to its zero state\n"
               "    stream.bypass  give a denoiser's input itself, as late as its output; stream.unbypass ends it\n"
               "    mem            the memory it uses\n"
               "    drain          stop the sources, let what waits go through, and end\n"
               "STREAM is a pipeline and a channel, mic/0, or just mic where the pipeline has one.",
    .examples = "  ssm ctl stream.list\n"
                "  ssm ctl stream.reset mic/0\n"
                "  ssm ctl mem --json | jq .resident_bytes",
    .options = options,
    .least = 1,
    .most = 2,
    .run = run_ctl,
};
