/* SPDX-License-Identifier: MIT */
#include "daemon/control.h"

#include <jansson.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/engine_thread.h"
#include "daemon/record.h"
#include "daemon/reload.h"
#include "daemon/router.h"
#include "daemon/running.h"
#include "daemon/source.h"
#include "daemon/wire.h"
#include "dsp/clock.h"
#include "model/refuse.h"

enum { TURN_REQUESTS = 8, ANSWER_BYTES = 8192, MODEL_BYTES = 1024, ERROR_BYTES = 512, ID_BYTES = 64 };

/* The request that is being answered. */
struct request {
    bool json;         /* written as JSON                                  */
    bool numbered;     /* id is a number                                   */
    char text_id[ID_BYTES];
    uint64_t id;
    json_t *root;      /* all of it                                        */
    const json_t *args;
    const void *blob;
    size_t blob_size;
    char code[16], path[64], msg[ERROR_BYTES]; /* code "": nothing is wrong */
    const struct pipeline *pipeline; /* of args.stream */
    struct stream *stream;           /* the same       */
    bool allowed, admin; /* who asks may ask; and may change things */
};

struct control {
    struct daemon *daemon;
    struct router *router;
    struct request request;
    const struct operation *pending; /* its call is with the engine's thread */
    struct engine_call call;
    int status;                      /* what came of the call                     */
    uint64_t awaited;                /* of reloads: it has ended when there were so many */
    struct leaving leave;            /* a stream on its way out                   */
    uint8_t *blob;                   /* the same as bytes, aligned: also of one on its way in */
    size_t blob_room, blob_size;     /* blob_size: of the answer's second frame   */
    size_t waiting_room, state_room; /* bytes in leave                            */
    struct record record;
    struct ssm_error err;
    bool drain;                      /* once the answer is sent */
    struct wire_bytes bytes;         /* the answer */
    char *text;                      /* the same as JSON */
    size_t text_size;
};

/* A row an operation. `run` writes the result's map, or has something wrong with the request; with `finish`, it only begins:
 * the engine's thread is at it, and `finish` writes the result. */
struct operation {
    const char *name, *args, *about;
    bool streams; /* args.stream is needed */
    bool changes; /* only for admins       */
    void (*run)(struct control *control);
    void (*finish)(struct control *control);
    bool (*done)(const struct control *control); /* NULL: when the engine's thread has answered the call */
};

static void wrong(struct control *control, const char *code, const char *path, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void wrong(struct control *control, const char *code, const char *path, const char *format, ...)
{
    struct request *request = &control->request;
    va_list values;
    va_start(values, format);
    vsnprintf(request->msg, sizeof request->msg, format, values);
    va_end(values);
    snprintf(request->code, sizeof request->code, "%s", code);
    snprintf(request->path, sizeof request->path, "%s", path);
}

/* ---- Operations. ---- */

static void put_count(struct wire_bytes *bytes, const char *key, uint64_t value)
{
    wire_put_text(bytes, key);
    wire_put_uint(bytes, value);
}

static void put_model(struct wire_bytes *bytes, const struct model *model)
{
    const struct ssm_info *info = ssm_describe(model->engine);
    wire_put_map(bytes, 9);
    wire_put_pair(bytes, "name", info->name);
    wire_put_pair(bytes, "digest", info->digest);
    wire_put_pair(bytes, "task", info->task);
    wire_put_pair(bytes, "device", info->device);
    put_count(bytes, "rate", (uint64_t)info->rate);
    put_count(bytes, "hop", (uint64_t)info->hop);
    put_count(bytes, "latency", (uint64_t)info->latency);
    put_count(bytes, "streams", (uint64_t)info->streams);
    put_count(bytes, "state_bytes", info->state_bytes);
}

static void run_describe(struct control *control);

static void run_snapshot(struct control *control)
{
    running_put_state(control->daemon, &control->bytes);
}

static void run_list(struct control *control)
{
    wire_put_map(&control->bytes, 1);
    wire_put_text(&control->bytes, "streams");
    running_put_streams(control->daemon, &control->bytes);
}

static uint64_t resident_bytes(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file) {
        pages = fscanf(file, "%*u %lu", &pages) == 1 ? pages : 0;
        fclose(file);
    }
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static size_t count_models(const struct daemon *daemon)
{
    size_t n = 0;
    for (const struct model *model = daemon->models; model; model = model->next) {
        n++;
    }
    return n;
}

static void run_mem(struct control *control)
{
    struct wire_bytes *bytes = &control->bytes;
    const struct daemon *daemon = control->daemon;
    wire_put_map(bytes, 2);
    put_count(bytes, "resident_bytes", resident_bytes());
    wire_put_text(bytes, "models");
    wire_put_array(bytes, count_models(daemon));
    for (const struct model *model = daemon->models; model; model = model->next) {
        const struct ssm_info *info = ssm_describe(model->engine);
        wire_put_map(bytes, 3);
        wire_put_pair(bytes, "name", info->name);
        put_count(bytes, "engine_bytes", info->engine_bytes);
        put_count(bytes, "state_bytes", info->state_bytes);
    }
}

static void await_reload(struct control *control, bool begun)
{
    if (!begun) {
        wrong(control, "busy", "op", control->daemon->draining ? "it is draining" : "a reload is under way");
    }
    control->awaited = reload_count(control->daemon->reload) + 1;
}

static void run_reload(struct control *control)
{
    struct reload *reload = control->daemon->reload;
    if (!control->daemon->reloads.readable) {
        wrong(control, "refused", "op", "the configuration can't be read again: it is no file");
        return;
    }
    await_reload(control, reload_begin(reload));
}

static bool has_reloaded(const struct control *control)
{
    return reload_count(control->daemon->reload) >= control->awaited;
}

static void finish_reload(struct control *control)
{
    const struct reload_result *result = reload_last(control->daemon->reload);
    if (result->err.code != 0) {
        wrong(control, "refused", "", "%s", result->err.text);
        return;
    }
    wire_put_map(&control->bytes, 5);
    put_count(&control->bytes, "unchanged", (uint64_t)result->unchanged);
    put_count(&control->bytes, "changed", (uint64_t)result->changed);
    put_count(&control->bytes, "opened", (uint64_t)result->opened);
    put_count(&control->bytes, "replaced", (uint64_t)result->replaced);
    put_count(&control->bytes, "closed", (uint64_t)result->closed);
}

/* {NAME: {...}} as it stands below `pipelines` in a configuration; NULL with an answer. */
static struct config *read_pipeline(struct control *control, json_t *pipeline)
{
    const struct config *own = control->daemon->config;
    json_t *root = json_pack("{s:i, s:s, s:s, s:b, s:O}", "version", 1, "node", own->node, "publish", own->publish, "insecure",
                             own->insecure, "pipelines", pipeline);
    char *text = root ? json_dumps(root, 0) : NULL;
    struct config_errors errors = {0};
    struct config *config = text ? config_parse(text, strlen(text), "request", NULL, 0, &errors) : NULL;
    if (!config) {
        wrong(control, "bad_request", errors.n > 0 ? errors.at[0].path : "args.pipeline", "%s",
              errors.n > 0 ? errors.at[0].text : "out of memory");
    }
    json_decref(root);
    free(text);
    return config;
}

static void run_open(struct control *control)
{
    json_t *pipeline = json_object_get(control->request.args, "pipeline");
    if (json_object_size(pipeline) != 1) {
        wrong(control, "bad_request", "args.pipeline", "pipeline is a map of one name: {\"mic\": {source, model, sinks}}");
        return;
    }
    struct config *config = read_pipeline(control, pipeline);
    if (config) {
        await_reload(control, reload_open(control->daemon->reload, config));
    }
}

static void finish_open(struct control *control)
{
    const struct reload_result *result = reload_last(control->daemon->reload);
    if (result->err.code != 0) {
        wrong(control, "refused", "args.pipeline", "%s", result->err.text);
        return;
    }
    wire_put_map(&control->bytes, 1);
    put_count(&control->bytes, "generation", result->generation);
}

/* Closing again what is closed, or what another has by now, does nothing. */
static void run_close(struct control *control)
{
    const json_t *generation = json_object_get(control->request.args, "generation");
    const char *name = json_string_value(json_object_get(control->request.args, "pipeline"));
    const struct pipeline *pipeline = control->daemon->pipelines;
    while (name && pipeline && strcmp(pipeline->config->name, name) != 0) {
        pipeline = pipeline->next;
    }
    if (!name || !json_is_integer(generation) || json_integer_value(generation) < 1) {
        wrong(control, "bad_request", "args", "pipeline and generation are missing, as stream.open's answer gave it");
    } else if (pipeline && pipeline->generation == (uint64_t)json_integer_value(generation)) {
        await_reload(control, reload_close(control->daemon->reload, pipeline));
    } else {
        control->awaited = 0;
    }
}

static void finish_close(struct control *control)
{
    wire_put_map(&control->bytes, 1);
    wire_put_text(&control->bytes, "closed");
    wire_put_bool(&control->bytes, control->awaited > 0);
}

static void run_drain(struct control *control)
{
    if (control->daemon->draining) {
        wrong(control, "refused", "op", "it is draining already");
        return;
    }
    wire_put_map(&control->bytes, 1);
    wire_put_text(&control->bytes, "draining");
    wire_put_bool(&control->bytes, true);
    control->drain = true;
}

static void post(struct control *control, void (*run)(struct engine_thread *thread, struct engine_call *call))
{
    control->call.run = run;
    engine_post(control->daemon->engine, &control->call);
}

static struct control *caller(struct engine_call *call)
{
    return (struct control *)((char *)call - offsetof(struct control, call));
}

static void reset_stream(struct engine_thread *thread, struct engine_call *call)
{
    (void)thread;
    struct control *control = caller(call);
    control->status = stream_reset(control->request.stream);
}

static void run_reset(struct control *control)
{
    post(control, reset_stream);
}

static void finish_reset(struct control *control)
{
    if (control->status != SSM_OK) {
        wrong(control, "internal", "op", "the stream's device failed");
        return;
    }
    wire_put_map(&control->bytes, 1);
    put_count(&control->bytes, "samples", stream_samples(control->request.stream));
}

static void switch_bypass(struct control *control, bool on)
{
    if (!stream_bypass(control->request.stream, on)) {
        wrong(control, "refused", "op", "the stream's model gives tags; there is no sound to bypass");
        return;
    }
    wire_put_map(&control->bytes, 1);
    wire_put_text(&control->bytes, "bypass");
    wire_put_bool(&control->bytes, on);
}

static void run_bypass(struct control *control)
{
    switch_bypass(control, true);
}

static void run_unbypass(struct control *control)
{
    switch_bypass(control, false);
}

static void put_moved(struct control *control, const struct record *record)
{
    wire_put_map(&control->bytes, 2);
    put_count(&control->bytes, "taken", record->taken);
    put_count(&control->bytes, "out", record->out);
}

static void run_export(struct control *control)
{
    const struct daemon *daemon = control->daemon;
    const struct pipeline *pipeline = control->request.pipeline;
    struct stream *stream = control->request.stream;
    if (stream_ended(stream) || daemon->draining) {
        wrong(control, "refused", "args.stream", "the stream has ended");
    } else if (pipeline->n_channels > 1 || pipeline->source->sensor) {
        wrong(control, "refused", "args.stream", "only a stream of sound that has its source for itself can move");
    } else {
        control->leave.record.state_size = 0;
        control->leave.state_size = stream_state_size(stream);
        if (pipeline->config->strength < 100 || !stream_leave(stream, &control->leave)) {
            wrong(control, "refused", "args.stream",
                  "a stream in bypass, with strength or whose model fell behind can't move");
            return;
        }
        pipeline->source->ops->stop(pipeline->source);
    }
}

static bool has_left(const struct control *control)
{
    return stream_ended(control->request.stream);
}

static void finish_export(struct control *control)
{
    const struct record *record = &control->leave.record;
    if (record->state_size == 0) {
        wrong(control, "refused", "args.stream", "the stream has ended");
        return;
    }
    control->blob_size = record_size(record->n_waiting, record->state_size);
    record_encode(record, clock_utc_offset(), control->blob);
    put_moved(control, record);
}

static void enter(struct engine_thread *thread, struct engine_call *call)
{
    (void)thread;
    struct control *control = caller(call);
    control->status = stream_enter(control->request.stream, &control->record, &control->err);
}

static void run_import(struct control *control)
{
    const struct request *request = &control->request;
    const struct pipeline *pipeline = request->pipeline;
    if (pipeline->config->source.type != SOURCE_PCM || pipeline->n_channels > 1) {
        wrong(control, "refused", "args.stream", "a stream can only come in where the source is one channel of pcm");
    } else if (!admission_could_enter(&pipeline->source->pass)) {
        wrong(control, "over_capacity", "args.stream", "this machine carries %d streams, and there is no room for one more",
              admission_capacity(&control->daemon->admission));
    } else if (request->blob_size == 0 || request->blob_size > control->blob_room) {
        wrong(control, "bad_request", "", "the stream's state is missing behind the request, or too long");
    } else {
        memcpy(control->blob, request->blob, request->blob_size);
        if (record_decode(&control->record, clock_utc_offset(), control->blob, request->blob_size, &control->err) < 0) {
            wrong(control, "refused", "", "%s", control->err.text);
            return;
        }
        post(control, enter);
    }
}

static void finish_import(struct control *control)
{
    if (control->status < 0) {
        wrong(control, control->err.code == 75 ? "busy" : "refused", "args.stream", "%s", control->err.text);
        return;
    }
    put_moved(control, &control->record);
}

static const struct operation operations[] = {
    {.name = "describe", .about = "this list, and the models that run", .run = run_describe},
    {.name = "snapshot", .about = "what state/ says each second", .run = run_snapshot},
    {.name = "stream.list", .about = "the streams and how far they are", .run = run_list},
    {.name = "stream.reset", .args = "stream", .about = "put a stream's model back to its zero state", .streams = true,
     .changes = true, .run = run_reset, .finish = finish_reset},
    {.name = "stream.bypass", .args = "stream", .about = "give a denoiser's input itself, as late as its output, without a click",
     .streams = true, .changes = true, .run = run_bypass},
    {.name = "stream.unbypass", .args = "stream", .about = "give the denoiser's output again", .streams = true,
     .changes = true, .run = run_unbypass},
    {.name = "stream.export", .args = "stream", .about = "end a stream here and give it, to go on elsewhere", .streams = true,
     .changes = true, .run = run_export, .finish = finish_export, .done = has_left},
    {.name = "stream.import", .args = "stream", .about = "go on with a stream that another daemon gave", .streams = true,
     .changes = true, .run = run_import, .finish = finish_import},
    {.name = "stream.open", .args = "pipeline", .about = "open a pipeline: {NAME: as in the configuration}", .changes = true,
     .run = run_open, .finish = finish_open, .done = has_reloaded},
    {.name = "stream.close", .args = "pipeline, generation", .about = "close a pipeline that stream.open opened", .changes = true,
     .run = run_close, .finish = finish_close, .done = has_reloaded},
    {.name = "mem", .about = "the memory of the process and of its models", .run = run_mem},
    {.name = "reload", .about = "read the configuration again; what is the same in it runs on", .changes = true,
     .run = run_reload, .finish = finish_reload, .done = has_reloaded},
    {.name = "drain", .about = "stop the sources, let what waits go through, and end", .changes = true,
     .run = run_drain},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

static void run_describe(struct control *control)
{
    struct wire_bytes *bytes = &control->bytes;
    const struct daemon *daemon = control->daemon;
    wire_put_map(bytes, 4);
    wire_put_pair(bytes, "node", daemon->config->node);
    wire_put_pair(bytes, "version", SSM_VERSION);
    wire_put_text(bytes, "operations");
    wire_put_array(bytes, OPERATIONS);
    for (int i = 0; i < OPERATIONS; i++) {
        wire_put_map(bytes, 4);
        wire_put_pair(bytes, "op", operations[i].name);
        wire_put_pair(bytes, "args", operations[i].args ? operations[i].args : "");
        wire_put_pair(bytes, "about", operations[i].about);
        wire_put_text(bytes, "admin");
        wire_put_bool(bytes, operations[i].changes);
    }
    wire_put_text(bytes, "models");
    wire_put_array(bytes, count_models(daemon));
    for (const struct model *model = daemon->models; model; model = model->next) {
        put_model(bytes, model);
    }
}

/* ---- Reading a request. ---- */

/* MessagePack by way of JSON: one reader, and its limits, for both. */
static json_t *read_messagepack(const void *body, size_t size)
{
    char *text = NULL;
    size_t length = 0;
    json_t *root = NULL;
    FILE *file = open_memstream(&text, &length);
    bool whole = file && wire_json(file, body, size);
    if (file && fclose(file) == 0 && whole) {
        root = json_loadb(text, length, JSON_REJECT_DUPLICATES, NULL);
    }
    free(text);
    return root;
}

static bool read_id(struct control *control, const json_t *id)
{
    struct request *request = &control->request;
    bool text = json_is_string(id) && json_string_length(id) < sizeof request->text_id;
    request->numbered = json_is_integer(id) && json_integer_value(id) >= 0;
    if (text) {
        snprintf(request->text_id, sizeof request->text_id, "%s", json_string_value(id));
    } else if (request->numbered) {
        request->id = (uint64_t)json_integer_value(id);
    } else if (id) {
        wrong(control, "bad_request", "id", "an id is a text of at most %d bytes, or a number from 0", ID_BYTES - 1);
    }
    return text || request->numbered || !id;
}

static bool read_request(struct control *control, const void *body, size_t size)
{
    struct request *request = &control->request;
    request->json = size > 0 && *(const char *)body == '{';
    if (size <= CONTROL_REQUEST_MOST) {
        request->root = request->json ? json_loadb(body, size, JSON_REJECT_DUPLICATES, NULL) : read_messagepack(body, size);
    }
    if (!json_is_object(request->root)) {
        wrong(control, "bad_request", "", "a request is a map {op, id, args} of at most %d bytes, in MessagePack or JSON",
              CONTROL_REQUEST_MOST);
        return false;
    }
    request->args = json_object_get(request->root, "args");
    if (!read_id(control, json_object_get(request->root, "id"))) {
        return false;
    }
    if (request->args && !json_is_object(request->args)) {
        wrong(control, "bad_request", "args", "args is a map");
        return false;
    }
    return true;
}

static const struct operation *find_operation(struct control *control)
{
    const char *op = json_string_value(json_object_get(control->request.root, "op"));
    for (int i = 0; op && i < OPERATIONS; i++) {
        if (strcmp(operations[i].name, op) == 0) {
            return &operations[i];
        }
    }
    if (op) {
        wrong(control, "unknown_op", "op", "there is no operation %.64s; describe lists them", op);
    } else {
        wrong(control, "bad_request", "op", "op is missing, or no text");
    }
    return NULL;
}

/* "mic/0", or "mic" of a pipeline with one stream. */
static bool find_stream(struct control *control)
{
    const struct daemon *daemon = control->daemon;
    const char *name = json_string_value(json_object_get(control->request.args, "stream"));
    for (const struct pipeline *pipeline = daemon->pipelines; name && pipeline; pipeline = pipeline->next) {
        size_t n = strlen(pipeline->config->name);
        for (int k = 0; strncmp(name, pipeline->config->name, n) == 0 && k < pipeline->n_channels; k++) {
            char channel[16];
            snprintf(channel, sizeof channel, "/%d", pipeline->source->channels[k]);
            if (strcmp(name + n, channel) == 0 || (name[n] == '\0' && pipeline->n_channels == 1)) {
                control->request.pipeline = pipeline;
                control->request.stream = pipeline->streams[k];
                return true;
            }
        }
    }
    if (name) {
        wrong(control, "not_found", "args.stream",
              "there is no stream %.80s; `ssm ctl stream.list` lists those there are", name);
    } else {
        wrong(control, "bad_request", "args.stream", "the stream is missing: pipeline and channel, mic/0");
    }
    return false;
}

/* ---- Writing the answer. ---- */

static void put_error(struct wire_bytes *bytes, const struct request *request)
{
    wire_put_text(bytes, "err");
    wire_put_map(bytes, 3);
    wire_put_pair(bytes, "code", request->code);
    wire_put_pair(bytes, "msg", request->msg);
    wire_put_pair(bytes, "path", request->path);
}

static void put_head(struct control *control, bool ok)
{
    struct wire_bytes *bytes = &control->bytes;
    const struct request *request = &control->request;
    bool identified = request->numbered || request->text_id[0];
    bytes->n = 0;
    bytes->full = false;
    wire_put_map(bytes, identified ? 3 : 2);
    if (request->numbered) {
        put_count(bytes, "id", request->id);
    } else if (identified) {
        wire_put_pair(bytes, "id", request->text_id);
    }
    wire_put_text(bytes, "ok");
    wire_put_bool(bytes, ok);
}

static const void *as_json(struct control *control, size_t *size)
{
    static const char refusal[] = "{\"ok\":false,\"err\":{\"code\":\"internal\",\"msg\":\"out of memory\",\"path\":\"\"}}";
    free(control->text);
    control->text = NULL;
    FILE *file = open_memstream(&control->text, &control->text_size);
    bool whole = file && wire_json(file, control->bytes.at, control->bytes.n);
    bool ok = file && fclose(file) == 0 && whole;
    *size = ok ? control->text_size : sizeof refusal - 1;
    return ok ? control->text : refusal;
}

/* The answer's head, the result by `put`, and, had that to fail, the error instead. */
static const void *write_answer(struct control *control, void (*put)(struct control *control), size_t *size)
{
    struct request *request = &control->request;
    if (put && !request->code[0]) {
        put_head(control, true);
        wire_put_text(&control->bytes, "result");
        put(control);
    }
    if (control->bytes.full && !request->code[0]) {
        wrong(control, "internal", "op", "the answer is longer than there is room for");
    }
    if (request->code[0]) {
        put_head(control, false);
        put_error(&control->bytes, request);
    }
    json_decref(request->root);
    request->root = NULL;
    *size = control->bytes.n;
    return request->json ? as_json(control, size) : control->bytes.at;
}

/* As it is, or moved to where there is room for `size` bytes; *room says whether there was memory. */
static void *grown(void *bytes, size_t *room, size_t size)
{
    void *more = size > *room ? realloc(bytes, size) : NULL;
    *room = more ? size : *room;
    return more ? more : bytes;
}

/* Room for the answer, and for the largest stream, as it leaves and as bytes: models come and go. */
static bool make_room(struct control *control)
{
    size_t waiting = 0, state = 0;
    for (const struct model *model = control->daemon->models; model; model = model->next) {
        size_t inputs = (size_t)ssm_describe(model->engine)->inputs, size = ssm_state_size(model->engine);
        waiting = inputs > waiting ? inputs : waiting;
        state = size > state ? size : state;
    }
    size_t answer = running_state_room(control->daemon) + ANSWER_BYTES + MODEL_BYTES * count_models(control->daemon);
    size_t blob = record_size(waiting, state);
    waiting = (waiting + 1) * sizeof(float);
    control->bytes.at = grown(control->bytes.at, &control->bytes.room, answer);
    control->leave.waiting = grown(control->leave.waiting, &control->waiting_room, waiting);
    control->leave.state = grown(control->leave.state, &control->state_room, state + 1);
    control->blob = grown(control->blob, &control->blob_room, blob);
    return control->bytes.room >= answer && control->waiting_room >= waiting && control->state_room > state &&
           control->blob_room >= blob;
}

static bool is_permitted(struct control *control, const struct operation *operation)
{
    const struct request *request = &control->request;
    bool permitted = request->allowed && (request->admin || !operation->changes);
    if (!request->allowed) {
        wrong(control, "denied", "", "your key is not allowed any more");
    } else if (!permitted) {
        wrong(control, "denied", "op", "%s changes something: that takes a key in curve.admins", operation->name);
    }
    return permitted;
}

const void *control_answer(struct control *control, const struct router_request *asked, size_t *size)
{
    control->request = (struct request){
        .blob = asked->blob, .blob_size = asked->blob_size, .allowed = asked->allowed, .admin = asked->admin};
    control->blob_size = 0;
    const struct operation *operation = read_request(control, asked->body, asked->size) ? find_operation(control) : NULL;
    if (operation && !make_room(control)) {
        wrong(control, "internal", "op", "out of memory");
        operation = NULL;
    }
    bool good = operation && is_permitted(control, operation) && (!operation->streams || find_stream(control));
    if (good && operation->finish) {
        operation->run(control);
        control->pending = control->request.code[0] ? NULL : operation;
        control->daemon->stream_held = control->pending && operation->streams;
        return control->pending ? NULL : write_answer(control, NULL, size);
    }
    return write_answer(control, good ? operation->run : NULL, size);
}

/* ---- The socket. ---- */

static int64_t frame_most(const struct control *control)
{
    return (int64_t)(control->blob_room > CONTROL_REQUEST_MOST ? control->blob_room : CONTROL_REQUEST_MOST);
}

struct control *control_open(const char *address, struct daemon *daemon, struct ssm_error *err)
{
    struct control *control = calloc(1, sizeof *control);
    if (!control) {
        refuse_memory(err);
        return NULL;
    }
    control->daemon = daemon;
    if (!make_room(control)) {
        refuse_memory(err);
        goto fail;
    }
    if (address[0] && !(control->router = router_open(daemon->gate, address, frame_most(control), err))) {
        goto fail;
    }
    return control;
fail:
    control_close(control);
    return NULL;
}

void control_close(struct control *control)
{
    if (control) {
        router_close(control->router);
        json_decref(control->request.root);
        free(control->bytes.at);
        free(control->leave.waiting);
        free(control->leave.state);
        free(control->blob);
        free(control->text);
        free(control);
    }
}

int control_fd(const struct control *control)
{
    return router_fd(control->router);
}

static void send_answer(struct control *control, const void *answer, size_t size)
{
    router_reply(control->router, answer, size, control->blob, control->blob_size);
}

/* False: the engine's thread is still at it. */
static bool finish_pending(struct control *control)
{
    const struct operation *operation = control->pending;
    if (operation && !(operation->done ? operation->done(control) : engine_answered(&control->call))) {
        return false;
    }
    if (operation) {
        size_t size;
        control->pending = NULL;
        control->daemon->stream_held = false;
        const void *answer = write_answer(control, operation->finish, &size);
        send_answer(control, answer, size);
    }
    return true;
}

bool control_turn(struct control *control)
{
    struct router_request request;
    for (int i = 0; control && i < TURN_REQUESTS && finish_pending(control) && router_receive(control->router, &request); i++) {
        size_t size;
        const void *answer = control_answer(control, &request, &size);
        if (answer) {
            send_answer(control, answer, size);
        }
    }
    bool drain = control && control->drain;
    if (drain) {
        control->drain = false;
    }
    return drain;
}
