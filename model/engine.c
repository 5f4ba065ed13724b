/* SPDX-License-Identifier: MIT */
/* The public library: slots with generations, argument checks, NaN in the output, and state files, over one backend. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/backend.h"
#include "model/refuse.h"
#include "model/state.h"

enum { STREAMS_MAX = 1 << 20, THREADS_MAX = 1024, MAX_HOPS = 4096 };

/* A slot's generation is odd while a stream has it: opening and closing each count one on. */
struct slot {
    uint32_t generation;
    uint32_t stepped; /* the last step this stream stood in */
};

struct ssm_engine {
    struct model *model;
    struct backend *backend;
    struct ssm_info info;
    struct ssm_options options;
    struct slot *slots;
    int *free_slots; /* a stack of n_free */
    int n_free;
    uint32_t step;            /* counts calls of ssm_step           */
    struct backend_hop *hops; /* (streams)  a step's valid hops     */
    struct ssm_hop **asked;   /* (streams)  and where they came from */
    float *state;             /* (model->state)                     */
};

static int read_options(struct ssm_options *options, const struct ssm_options *given, struct ssm_error *err)
{
    *options = given ? *given : (struct ssm_options){0};
    options->device = options->device ? options->device : "auto";
    options->streams = options->streams ? options->streams : 1;
    options->threads = options->threads ? options->threads : 1;
    options->max_hops = options->max_hops ? options->max_hops : 1;
    if (options->streams < 1 || options->streams > STREAMS_MAX) {
        return refuse(err, 64, "streams must be 1..%d, got %d", STREAMS_MAX, options->streams);
    }
    if (options->threads < 1 || options->threads > THREADS_MAX) {
        return refuse(err, 64, "threads must be 1..%d, got %d", THREADS_MAX, options->threads);
    }
    if (options->max_hops < 1 || options->max_hops > MAX_HOPS) {
        return refuse(err, 64, "max_hops must be 1..%d, got %d", MAX_HOPS, options->max_hops);
    }
    return 0;
}

/* Give the backend a device's name asks for and say why; NULL and an error. */
static const struct backend_ops *choose_backend(const char *device, char *why, size_t size, struct ssm_error *err)
{
    if (!strcmp(device, "cpu")) {
        snprintf(why, size, "asked for");
        return &backend_cpu;
    }
    if (!strcmp(device, "auto")) {
        snprintf(why, size, "auto: this build has no GPU backend");
        return &backend_cpu;
    }
    if (!strncmp(device, "cuda", 4)) {
        refuse(err, 69, "device \"%.20s\": this build has no CUDA backend; use cpu or auto", device);
    } else {
        refuse(err, 64, "device \"%.20s\" is not one of: auto, cpu, cuda, cuda:<number>", device);
    }
    return NULL;
}

static int take_memory(struct ssm_engine *engine, struct ssm_error *err)
{
    size_t streams = (size_t)engine->options.streams;
    engine->slots = calloc(streams, sizeof *engine->slots);
    engine->free_slots = calloc(streams, sizeof *engine->free_slots);
    engine->hops = calloc(streams, sizeof *engine->hops);
    engine->asked = calloc(streams, sizeof *engine->asked);
    engine->state = calloc(engine->model->state + 1, sizeof *engine->state);
    if (!engine->slots || !engine->free_slots || !engine->hops || !engine->asked || !engine->state) {
        return refuse_memory(err);
    }
    for (engine->n_free = 0; engine->n_free < engine->options.streams; engine->n_free++) {
        engine->free_slots[engine->n_free] = engine->options.streams - 1 - engine->n_free;
    }
    engine->info.engine_bytes =
        sizeof *engine + engine->model->bytes + engine->backend->bytes + engine->model->state * sizeof(float) +
        streams * (sizeof *engine->slots + sizeof *engine->free_slots + sizeof *engine->hops + sizeof *engine->asked);
    return 0;
}

static int open_engine(struct ssm_engine *engine, const char *path, struct ssm_error *err)
{
    const struct backend_ops *ops =
        choose_backend(engine->options.device, engine->info.device_why, sizeof engine->info.device_why, err);
    char why[sizeof engine->info.device_why];
    memcpy(why, engine->info.device_why, sizeof why);
    if (!ops || !(engine->model = model_open(path, err)) ||
        !(engine->backend = ops->open(engine->model, &engine->options, err))) {
        return -1;
    }
    engine->info = engine->model->info;
    memcpy(engine->info.device_why, why, sizeof why);
    snprintf(engine->info.device, sizeof engine->info.device, "%s", engine->backend->device);
    return take_memory(engine, err);
}

struct ssm_engine *ssm_open(const char *model, const struct ssm_options *options, struct ssm_error *err)
{
    char path[PATH_MAX];
    struct ssm_options read;
    if (err) {
        *err = (struct ssm_error){0};
    }
    if (read_options(&read, options, err) || ssm_model_find(model, path, sizeof path, err)) {
        return NULL;
    }
    struct ssm_engine *engine = calloc(1, sizeof *engine);
    if (!engine) {
        refuse_memory(err);
        return NULL;
    }
    engine->options = read;
    if (open_engine(engine, path, err)) {
        ssm_close(engine);
        return NULL;
    }
    engine->options.device = NULL; /* the caller's string, not ours to keep */
    return engine;
}

void ssm_close(struct ssm_engine *engine)
{
    if (engine) {
        if (engine->backend) {
            engine->backend->ops->close(engine->backend);
        }
        model_close(engine->model);
        free(engine->slots);
        free(engine->free_slots);
        free(engine->hops);
        free(engine->asked);
        free(engine->state);
        free(engine);
    }
}

const struct ssm_info *ssm_describe(const struct ssm_engine *engine)
{
    return &engine->info;
}

bool ssm_describe_layer(const struct ssm_engine *engine, int i, struct ssm_layer_info *info)
{
    if (i < 0 || i >= engine->model->n_layers) {
        return false;
    }
    const struct layer *layer = &engine->model->layers[i];
    *info = (struct ssm_layer_info){.type = layer->ops->type,
                                    .name = layer->name,
                                    .in = layer->in,
                                    .out = layer->out,
                                    .parameters = layer->parameters,
                                    .macs_per_hop = layer->macs,
                                    .state_bytes = layer->state * sizeof(float)};
    return true;
}

/* The slot of a stream, or -1 when its generation is over. */
static int find_slot(const struct ssm_engine *engine, ssm_stream stream)
{
    uint32_t slot = (uint32_t)stream, generation = (uint32_t)(stream >> 32);
    bool live =
        slot < (uint32_t)engine->options.streams && generation % 2 && engine->slots[slot].generation == generation;
    return live ? (int)slot : -1;
}

int ssm_stream_open(struct ssm_engine *engine, ssm_stream *stream)
{
    if (!engine->n_free) {
        return SSM_FULL;
    }
    int slot = engine->free_slots[--engine->n_free];
    engine->backend->ops->state_put(engine->backend, slot, NULL);
    *stream = (uint64_t)++engine->slots[slot].generation << 32 | (uint32_t)slot;
    return SSM_OK;
}

int ssm_stream_close(struct ssm_engine *engine, ssm_stream stream)
{
    int slot = find_slot(engine, stream);
    if (slot < 0) {
        return SSM_STALE;
    }
    engine->slots[slot].generation++;
    engine->free_slots[engine->n_free++] = slot;
    return SSM_OK;
}

int ssm_stream_reset(struct ssm_engine *engine, ssm_stream stream)
{
    int slot = find_slot(engine, stream);
    if (slot < 0) {
        return SSM_STALE;
    }
    engine->backend->ops->state_put(engine->backend, slot, NULL);
    return SSM_OK;
}

static bool all_finite(const float *x, size_t n)
{
    /* x * 0 is 0 for every finite x and NaN for all others; sums of them need no branch. */
    float sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += x[i] * 0;
    }
    return sum == 0;
}

/* Check one asked hop; true when it goes into the step. */
static bool admit(struct ssm_engine *engine, struct ssm_hop *hop, struct backend_hop *part)
{
    int slot = find_slot(engine, hop->stream);
    hop->blown = false;
    hop->status = slot < 0 ? SSM_STALE : SSM_OK;
    if (slot >= 0 &&
        (hop->count < 1 || hop->count > engine->options.max_hops || engine->slots[slot].stepped == engine->step)) {
        hop->status = SSM_REFUSED;
    }
    if (hop->status != SSM_OK) {
        return false;
    }
    engine->slots[slot].stepped = engine->step;
    *part = (struct backend_hop){.slot = slot,
                                 .in = hop->in,
                                 .out = hop->out,
                                 .count = hop->count,
                                 .elapsed = &hop->elapsed,
                                 .elapsed_count = 1};
    return true;
}

int ssm_step(struct ssm_engine *engine, struct ssm_hop *hops, int n)
{
    int admitted = 0;
    engine->step += engine->step == UINT32_MAX ? 2 : 1; /* 0 is a slot that was never stepped */
    for (int i = 0; i < n; i++) {
        if (admit(engine, &hops[i], &engine->hops[admitted])) {
            engine->asked[admitted++] = &hops[i];
        }
    }
    if (admitted) {
        engine->backend->ops->step(engine->backend, engine->hops, admitted);
    }
    for (int i = 0; i < admitted; i++) {
        struct ssm_hop *hop = engine->asked[i];
        size_t values = (size_t)hop->count * (size_t)engine->info.outputs;
        if (!all_finite(hop->out, values)) {
            hop->blown = true;
            memset(hop->out, 0, values * sizeof *hop->out);
            engine->backend->ops->state_put(engine->backend, engine->hops[i].slot, NULL);
        }
    }
    return admitted;
}

/* The first of `count` hops with NaN or inf, or count. */
static size_t find_blown(const struct ssm_engine *engine, const float *out, size_t count)
{
    size_t outputs = (size_t)engine->info.outputs, i = 0;
    if (all_finite(out, count * outputs)) {
        return count;
    }
    while (all_finite(out + i * outputs, outputs)) {
        i++;
    }
    return i;
}

int ssm_scan(struct ssm_engine *engine, ssm_stream stream, const float *in, float *out, const float *elapsed,
             size_t count, size_t *blown)
{
    int slot = find_slot(engine, stream);
    size_t zeroed = 0, hop = (size_t)engine->info.hop, outputs = (size_t)engine->info.outputs;
    if (slot < 0) {
        return SSM_STALE;
    }
    for (size_t done = 0; done < count;) {
        size_t piece = count - done, most = (size_t)engine->backend->scan_hops;
        piece = piece < most ? piece : most;
        struct backend_hop part = {.slot = slot,
                                   .in = in + done * hop,
                                   .out = out + done * outputs,
                                   .count = (int)piece,
                                   .elapsed = elapsed ? elapsed + done : NULL,
                                   .elapsed_count = elapsed ? (int)piece : 0};
        engine->backend->ops->scan(engine->backend, &part);
        size_t good = find_blown(engine, part.out, piece);
        done += good;
        if (good < piece) { /* go on behind the blown hop from the zero state, as a step would */
            memset(out + done * outputs, 0, outputs * sizeof *out);
            engine->backend->ops->state_put(engine->backend, slot, NULL);
            zeroed++;
            done++;
        }
    }
    if (blown) {
        *blown = zeroed;
    }
    return SSM_OK;
}

size_t ssm_state_size(const struct ssm_engine *engine)
{
    return state_bytes(engine->model);
}

int ssm_state_save(struct ssm_engine *engine, ssm_stream stream, void *bytes, size_t size)
{
    int slot = find_slot(engine, stream);
    if (slot < 0) {
        return SSM_STALE;
    }
    if (size < state_bytes(engine->model)) {
        return SSM_REFUSED;
    }
    engine->backend->ops->state_get(engine->backend, slot, engine->state);
    state_encode(engine->model, engine->state, bytes);
    return (int)state_bytes(engine->model);
}

int ssm_state_load(struct ssm_engine *engine, ssm_stream stream, const void *bytes, size_t size, struct ssm_error *err)
{
    int slot = find_slot(engine, stream);
    if (slot < 0) {
        refuse(err, 64, "the stream is closed");
        return SSM_STALE;
    }
    if (state_decode(engine->model, bytes, size, engine->state, err)) {
        return SSM_BAD_STATE;
    }
    engine->backend->ops->state_put(engine->backend, slot, engine->state);
    return SSM_OK;
}
