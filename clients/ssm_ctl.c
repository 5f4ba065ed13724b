/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "clients/caller.h"
#include "clients/connection.h"
#include "clients/state_file.h"
#include "clients/verb.h"

static const char *address = "tcp://127.0.0.1:5570";
static const char *state;
static int seconds = 5, generation;

enum { STATE_MOST = 1 << 30 };

/* What the daemon's error codes mean to a shell. */
static int exit_status(const char *code)
{
    static const struct {
        const char *code;
        int status;
    } rows[] = {{"bad_request", EX_USAGE}, {"unknown_op", EX_USAGE}, {"not_found", EX_NOINPUT}, {"busy", EX_TEMPFAIL},
                {"refused", EX_DATAERR},
                {"denied", EX_NOPERM}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (strcmp(code, rows[i].code) == 0) {
            return rows[i].status;
        }
    }
    return EX_SOFTWARE;
}

/* What the operation is about: a stream, a pipeline's JSON to be opened, or a pipeline to be closed. NULL: that it is not. */
static json_t *write_args(const char *op, const char *about)
{
    if (strcmp(op, "stream.open") == 0) {
        return json_pack("{s:o}", "pipeline", about != NULL ? json_loads(about, JSON_REJECT_DUPLICATES, NULL) : NULL);
    }
    if (strcmp(op, "stream.close") == 0) {
        return json_pack("{s:s*, s:i}", "pipeline", about, "generation", generation);
    }
    return json_pack("{s:s*}", "stream", about);
}

/* {"op": ..., "args": {...}}; gives its text, to be freed, or NULL. */
static char *write_request(const char *op, const char *about)
{
    json_t *request = json_pack("{s:s, s:i, s:o}", "op", op, "id", 1, "args", write_args(op, about));
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

/* All of a file, to be freed; NULL with a message. */
static void *read_state(size_t *size)
{
    FILE *file = fopen(state, "rb");
    long n = file != NULL && fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    void *bytes = n > 0 && n < STATE_MOST ? malloc((size_t)n) : NULL;
    if (bytes != NULL && (fseek(file, 0, SEEK_SET) != 0 || fread(bytes, 1, (size_t)n, file) != (size_t)n)) {
        free(bytes);
        bytes = NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    *size = bytes != NULL ? (size_t)n : 0;
    return bytes;
}

/* `file` was created before the stream ended over there. */
static int write_state(struct state_file *file, const struct caller_message *answer)
{
    char why[512];
    if (answer->blob_size == 0) {
        return verb_fail(EX_PROTOCOL, "%s gave no stream", address);
    }
    fwrite(answer->blob, 1, answer->blob_size, file->file);
    if (!state_file_commit(file, why, sizeof why)) {
        return verb_fail(EX_IOERR, "%s: %s; the stream has ended over there", state, why);
    }
    return 0;
}

/* Bytes for stream.import, a file for stream.export; 0 or an exit status. */
static int open_state(const char *op, struct caller_message *request, void **bytes, struct state_file *file)
{
    bool imports = strcmp(op, "stream.import") == 0, exports = strcmp(op, "stream.export") == 0;
    if ((imports || exports) != (state != NULL)) {
        return verb_fail(EX_USAGE, "--state FILE belongs to stream.export and stream.import");
    }
    if (imports && (request->blob = *bytes = read_state(&request->blob_size)) == NULL) {
        return verb_fail(EX_NOINPUT, "%s can't be read, or is empty", state);
    }
    if (exports && !state_file_create(file, state)) {
        return verb_fail(EX_CANTCREAT, "%s: %s", state, strerror(errno));
    }
    return 0;
}

static int ask(struct caller *caller, const struct caller_message *request, struct state_file *file)
{
    struct ssm_error err = {0};
    struct caller_message answer;
    if (caller_ask(caller, request, &answer, seconds * 1000, &err) != 0) {
        return verb_fail(err.code, "%s: %s", address, err.text);
    }
    json_t *root = json_loadb(answer.body, answer.size, 0, NULL);
    bool exported = file->file != NULL && json_is_true(json_object_get(root, "ok"));
    int status = exported ? write_state(file, &answer) : 0, told = print_answer(root);
    json_decref(root);
    return told != 0 ? told : status;
}

static int prepare_and_ask(struct caller *caller, char **arguments, int n)
{
    struct caller_message request = {0};
    void *bytes = NULL;
    struct state_file file = {0};
    char *text = write_request(arguments[0], n > 1 ? arguments[1] : NULL);
    if (text == NULL) {
        return verb_fail(EX_USAGE, "the operation and the stream have to be UTF-8, and a pipeline to be opened JSON");
    }
    request.body = text;
    request.size = strlen(text);
    int status = open_state(arguments[0], &request, &bytes, &file);
    status = status != 0 ? status : ask(caller, &request, &file);
    state_file_close(&file);
    free(text);
    free(bytes);
    return status;
}

static int run_ctl(char **arguments, int n)
{
    struct ssm_error err = {0};
    struct caller *caller = caller_open(address, &err);
    if (caller == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    int status = prepare_and_ask(caller, arguments, n);
    caller_close(caller);
    return status;
}

static const struct verb_option options[] = {
    {"connect", "ADDRESS", OPTION_TEXT, &address, 0, 0, "where ssmd answers: one port below publish (tcp://127.0.0.1:5570)"},
    CONNECTION_OPTIONS,
    {"state", "FILE", OPTION_TEXT, &state, 0, 0, "where stream.export writes the stream, and stream.import reads it"},
    {"generation", "N", OPTION_NUMBER, &generation, 0, 1 << 30, "which one stream.close closes: stream.open's answer says it"},
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
               "    stream.export  end STREAM there and write it to --state, which is as it was if that fails; what comes after the\n"
               "                   sample `taken` is for the next\n"
               "    stream.import  go on with the stream in --state, where nothing has come in yet (source pcm)\n"
               "    stream.open    open a pipeline, given as JSON: its name and what stands below it in a configuration\n"
               "    stream.close   close the pipeline STREAM of that --generation; closing it again does nothing\n"
               "    mem            the memory it uses\n"
               "    reload         read the configuration again; pipelines that are the same in it run on (--wait 60)\n"
               "    drain          stop the sources, let what waits go through, and end\n"
               "STREAM is a pipeline and a channel, mic/0, or just mic where the pipeline has one.",
    .examples = "  ssm ctl stream.list\n"
                "  ssm ctl stream.reset mic/0\n"
                "  ssm ctl stream.export mic --state mic.stream && \\\n"
                "      ssm ctl stream.import mic --state mic.stream --connect tcp://127.0.0.1:5670\n"
                "  ssm ctl mem --json | jq .resident_bytes",
    .options = options,
    .least = 1,
    .most = 2,
    .run = run_ctl,
};
