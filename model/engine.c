/* SPDX-License-Identifier: MIT */
/* The public library: slots with generations, argument checks, NaN in the output, and state files, over one backend. */
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/backend_cuda.h"
#include "model/engine.h"
#include "model/memory.h"
#include "model/refuse.h"
#include "model/state.h"

enum { STREAMS_MAX = 1 << 20, THREADS_MAX = 1024, MAX_HOPS = 4096, MEMORIES = 8 };
enum {
    AHEAD = 16
}; /* hops of a step that memory is asked for before they are written: a third less time with many thousands */

struct ssm_engine {
    struct model *model;
    struct backend *backend;
    const struct backend *fleet; /* the same when it is one; NULL: the processor, which never fails */
    struct ssm_info info;
    struct ssm_options options;
    uint32_t *generations; /* (streams)  odd while a stream has the slot: opening and closing each count one on */
    uint32_t *stepped;     /* (streams)  the last step a slot stood in, each device's side by side              */
    int *free_slots;       /* a stack of n_free */
    int n_free;
    uint32_t step;         /* counts calls of ssm_step                           */
    struct ssm_hop *asked; /* (n_asked)  of the step in progress, the caller's   */
    int n_asked;
    struct backend_hop *hops; /* (streams)  a step's valid hops, on the processor   */
    float *state;             /* (model->state)                                     */
    struct memory memories[MEMORIES]; /* for hops */
    int n_memories;
    bool severed; /* no device has them any more */
};

static bool is_precision(const char *name)
{
    static const char *const names[] = {"auto", "fp32", "tf32", "bf16", "bf16-state"};
    bool found = !name;
    for (size_t i = 0; i < sizeof names / sizeof *names && !found; i++) {
        found = !strcmp(name, names[i]);
    }
    return found;
}

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
    if (!is_precision(options->precision)) {
        return refuse(err, 64, "precision \"%.20s\" is not one of: auto, fp32, tf32, bf16, bf16-state",
                      options->precision);
    }
    if (isnan(options->copy_s) || isnan(options->patience_s)) {
        return refuse(err, 64, "copy_s and patience_s must be numbers of seconds");
    }
    if (options->max_hops < 1 || options->max_hops > MAX_HOPS) {
        return refuse(err, 64, "max_hops must be 1..%d, got %d", MAX_HOPS, options->max_hops);
    }
    return 0;
}

/* ---- Which device. ---- */

/* What to open, and why. */
struct plan {
    struct fleet_device devices[FLEET_DEVICES];
    int n; /* 0: the processor */
    bool may_fall_back;
    char why[sizeof((struct ssm_info *)0)->device_why];
};

/* "cuda", or "cuda:" and up to four digits. */
static bool is_cuda(const char *name, size_t n)
{
    size_t digits = n > 5 ? strspn(name + 5, "0123456789") : 0;
    return n >= 4 && !strncmp(name, "cuda", 4) && (n == 4 || (name[4] == ':' && n < 10 && n > 5 && digits >= n - 5));
}

static int plan_device(struct plan *plan, const char *name, size_t n, struct ssm_error *err)
{
    if (!is_cuda(name, n)) {
        return refuse(err, 64,
                      "device \"%.*s\" is not one of: auto, cpu, cuda, cuda:<number>, or several cuda:<number>", 20,
                      name);
    }
    if (plan->n == FLEET_DEVICES) {
        return refuse(err, 64, "a model runs on at most %d devices", FLEET_DEVICES);
    }
    struct fleet_device *device = &plan->devices[plan->n];
    snprintf(device->name, sizeof device->name, "cuda:%.*s", (int)(n > 5 ? n - 5 : 1), n > 5 ? name + 5 : "0");
    for (int i = 0; i < plan->n; i++) {
        if (!strcmp(plan->devices[i].name, device->name)) {
            return refuse(err, 64, "device %s stands in the list twice", device->name);
        }
    }
    plan->n++;
    return (device->ops = backend_cuda_find(err)) ? 0 : -1;
}

static int plan_devices(struct plan *plan, const char *device, struct ssm_error *err)
{
    *plan = (struct plan){.why = "asked for"};
    if (!strcmp(device, "cpu")) {
        return 0;
    }
    if (!strcmp(device, "auto")) {
        struct ssm_error none;
        plan->may_fall_back = true;
        plan->devices[0] = (struct fleet_device){backend_cuda_find(&none), "cuda:0"};
        plan->n = plan->devices[0].ops ? 1 : 0;
        snprintf(plan->why, sizeof plan->why, "auto: %.200s", plan->n ? "there is a GPU" : none.text);
        return 0;
    }
    for (const char *at = device;; at++) {
        size_t n = strcspn(at, ",");
        if (plan_device(plan, at, n, err)) {
            return -1;
        }
        at += n;
        if (!*at) {
            return 0;
        }
    }
}

/* Gives the planned backend; the processor's where auto finds that a GPU won't open. */
static struct backend *open_backend(struct ssm_engine *engine, struct plan *plan, struct ssm_error *err)
{
    struct ssm_error no = {0};
    if (plan->n > 0) {
        struct backend *backend = backend_fleet_open(engine->model, &engine->options, plan->devices, plan->n, &no);
        if (backend || !plan->may_fall_back) {
            engine->fleet = backend;
            return backend ? backend : (refuse(err, no.code, "%s", no.text), NULL);
        }
        snprintf(plan->why, sizeof plan->why, "auto: %.200s", no.text);
    }
    return backend_cpu.open(engine->model, &engine->options, err);
}

/* ---- Opening and closing. ---- */

static int take_memory(struct ssm_engine *engine, struct ssm_error *err)
{
    size_t streams = (size_t)engine->options.streams, hops = engine->fleet ? 1 : streams;
    engine->generations = calloc(streams, sizeof *engine->generations);
    engine->stepped = calloc(streams + FLEET_DEVICES, sizeof *engine->stepped);
    engine->free_slots = calloc(streams, sizeof *engine->free_slots);
    engine->hops = calloc(hops, sizeof *engine->hops);
    engine->state = calloc(engine->model->state + 1, sizeof *engine->state);
    if (!engine->generations || !engine->stepped || !engine->free_slots || !engine->hops || !engine->state) {
        return refuse_memory(err);
    }
    for (engine->n_free = 0; engine->n_free < engine->options.streams; engine->n_free++) {
        engine->free_slots[engine->n_free] = engine->options.streams - 1 - engine->n_free;
    }
    engine->info.engine_bytes =
        sizeof *engine + engine->model->bytes + engine->backend->bytes + engine->model->state * sizeof(float) +
        streams * (sizeof *engine->generations + sizeof *engine->stepped + sizeof *engine->free_slots) +
        hops * sizeof *engine->hops;
    return 0;
}

static int open_engine(struct ssm_engine *engine, const char *path, struct plan *plan, struct ssm_error *err)
{
    if (!(engine->model = model_open(path, err)) || !(engine->backend = open_backend(engine, plan, err))) {
        return -1;
    }
    engine->info = engine->model->info;
    snprintf(engine->info.device_why, sizeof engine->info.device_why, "%s", plan->why);
    snprintf(engine->info.device, sizeof engine->info.device, "%s", engine->backend->device);
    engine->info.scan_hops = engine->backend->scan_hops;
    engine->info.streams = engine->options.streams;
    return take_memory(engine, err);
}

static struct ssm_engine *open_planned(const char *model, const struct ssm_options *options, struct plan *plan,
                                       struct ssm_error *err)
{
    char path[PATH_MAX];
    if (ssm_model_find(model, path, sizeof path, err)) {
        return NULL;
    }
    struct ssm_engine *engine = calloc(1, sizeof *engine);
    if (!engine) {
        refuse_memory(err);
        return NULL;
    }
    engine->options = *options;
    if (open_engine(engine, path, plan, err)) {
        ssm_close(engine);
        return NULL;
    }
    engine->options.device = engine->options.precision = NULL; /* the caller's strings, not ours to keep */
    return engine;
}

struct ssm_engine *ssm_open(const char *model, const struct ssm_options *options, struct ssm_error *err)
{
    struct ssm_options read;
    struct plan plan;
    if (err) {
        *err = (struct ssm_error){0};
    }
    if (read_options(&read, options, err) || plan_devices(&plan, read.device, err)) {
        return NULL;
    }
    return open_planned(model, &read, &plan, err);
}

struct ssm_engine *engine_open_on(const char *model, const struct ssm_options *options,
                                  const struct fleet_device *devices, int n, struct ssm_error *err)
{
    struct ssm_options read;
    struct plan plan = {.n = n, .why = "given"};
    memcpy(plan.devices, devices, (size_t)n * sizeof *devices);
    return read_options(&read, options, err) ? NULL : open_planned(model, &read, &plan, err);
}

void ssm_close(struct ssm_engine *engine)
{
    if (engine) {
        bool failed = engine->backend && ssm_health(engine)->faults > 0;
        if (engine->backend) {
            engine->backend->ops->close(engine->backend);
        }
        for (int i = 0; i < engine->n_memories; i++) {
            (failed ? memory_give_up : memory_give_back)(&engine->memories[i]);
        }
        model_close(engine->model);
        free(engine->generations);
        free(engine->stepped);
        free(engine->free_slots);
        free(engine->hops);
        free(engine->state);
        free(engine);
    }
}

void *ssm_take_memory(struct ssm_engine *engine, size_t bytes)
{
    struct memory *memory = &engine->memories[engine->n_memories];
    if (engine->n_memories == MEMORIES || !memory_take(memory, bytes)) {
        return NULL;
    }
    engine->n_memories++;
    if (!engine->severed && engine->backend->ops->reach) {
        engine->backend->ops->reach(engine->backend, memory->at, memory->bytes, false);
    }
    return memory->at;
}

/* A device that hangs may yet write to outputs. It keeps their pages, and we go on in others, out of all devices' reach. */
static void sever(struct ssm_engine *engine)
{
    engine->backend->ops->reach(engine->backend, NULL, 0, false);
    for (int i = 0; i < engine->n_memories; i++) {
        memory_sever(&engine->memories[i]);
    }
    engine->severed = true;
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

bool ssm_describe_channel(const struct ssm_engine *engine, int i, struct ssm_channel *channel)
{
    if (i < 0 || i >= engine->info.channels) {
        return false;
    }
    *channel = engine->model->channels[i];
    return true;
}

bool ssm_describe_label(const struct ssm_engine *engine, int i, struct ssm_label *label)
{
    if (i < 0 || i >= engine->model->n_labels) {
        return false;
    }
    *label = engine->model->labels[i];
    return true;
}

bool ssm_describe_device(const struct ssm_engine *engine, int i, struct ssm_device_info *info)
{
    if (engine->fleet) {
        return backend_fleet_describe(engine->fleet, i, info);
    }
    if (i != 0) {
        return false;
    }
    *info = (struct ssm_device_info){.bytes = engine->backend->bytes};
    memcpy(info->name, engine->info.device, sizeof info->name);
    return true;
}

const struct ssm_health *ssm_health(const struct ssm_engine *engine)
{
    static const struct ssm_health healthy;
    return engine->fleet ? backend_fleet_health(engine->fleet) : &healthy;
}

/* ---- Streams. ---- */

/* The slot of a stream, or -1 when its generation is over. */
static int find_slot(const struct ssm_engine *engine, ssm_stream stream)
{
    uint32_t slot = (uint32_t)stream, generation = (uint32_t)(stream >> 32);
    bool live = slot < (uint32_t)engine->options.streams && generation % 2 && engine->generations[slot] == generation;
    return live ? (int)slot : -1;
}

int ssm_stream_open(struct ssm_engine *engine, ssm_stream *stream)
{
    if (!engine->n_free) {
        return SSM_FULL;
    }
    int slot = engine->free_slots[engine->n_free - 1];
    if (engine->backend->ops->state_put(engine->backend, slot, NULL)) {
        return SSM_FAULT;
    }
    engine->n_free--;
    *stream = (uint64_t)++engine->generations[slot] << 32 | (uint32_t)slot;
    return SSM_OK;
}

int ssm_stream_close(struct ssm_engine *engine, ssm_stream stream)
{
    int slot = find_slot(engine, stream);
    if (slot < 0) {
        return SSM_STALE;
    }
    engine->generations[slot]++;
    engine->free_slots[engine->n_free++] = slot;
    return SSM_OK;
}

int ssm_stream_reset(struct ssm_engine *engine, ssm_stream stream)
{
    int slot = find_slot(engine, stream);
    if (slot < 0) {
        return SSM_STALE;
    }
    return engine->backend->ops->state_put(engine->backend, slot, NULL) ? SSM_FAULT : SSM_OK;
}

int ssm_stream_device(const struct ssm_engine *engine, ssm_stream stream)
{
    return engine->fleet ? backend_fleet_device(engine->fleet, (int)(uint32_t)stream) : 0;
}

/* ---- Running. ---- */

/* NaN and inf are what has every bit of the exponent. In integers, whose sums the compiler may reorder: a sum of floats
 * would wait for each addition, and with many thousands of streams that is most of a hop's time. */
static bool all_finite(const float *x, size_t n)
{
    const uint32_t exponent = 0x7f800000;
    uint32_t odd = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        odd |= (bits & exponent) == exponent;
    }
    return !odd;
}

/* The hop that a part was made of. */
static struct ssm_hop *hop_of(const struct backend_hop *part)
{
    return (struct ssm_hop *)(void *)((char *)part->blown - offsetof(struct ssm_hop, blown));
}

/* Check one asked hop, of a device's share; true when it goes into the step. Writes to the hop only what changes: the
 * next one in memory is another thread's. */
static bool admit(const struct ssm_engine *engine, struct ssm_hop *hop, int shares, uint32_t *stepped,
                  struct backend_hop *part)
{
    int slot = find_slot(engine, hop->stream), status = slot < 0 ? SSM_STALE : SSM_OK;
    int own = shares == 1 ? slot : slot / shares;
    if (slot >= 0 && (hop->count < 1 || hop->count > engine->options.max_hops || stepped[own] == engine->step)) {
        status = SSM_REFUSED;
    }
    if (hop->status != status) {
        hop->status = status;
    }
    if (hop->blown) {
        hop->blown = false;
    }
    if (status != SSM_OK) {
        return false;
    }
    stepped[own] = engine->step;
    *part = (struct backend_hop){.slot = own,
                                 .in = hop->in,
                                 .out = hop->out,
                                 .count = hop->count,
                                 .elapsed = &hop->elapsed,
                                 .elapsed_count = 1,
                                 .blown = &hop->blown};
    return true;
}

/* Those asked for that are of a device's share, as a fleet_share. */
static int admit_share(void *arg, int share, int shares, struct backend_hop *parts)
{
    const struct ssm_engine *engine = arg;
    uint32_t *stepped = engine->stepped + (size_t)share * ((size_t)(engine->options.streams / shares) + 1);
    int admitted = 0;
    for (int i = 0; i < engine->n_asked; i++) {
        struct ssm_hop *hop = &engine->asked[i];
        if (shares == 1 || (uint32_t)hop->stream % (uint32_t)shares == (uint32_t)share) {
            __builtin_prefetch(&parts[admitted + AHEAD], 1); /* past the end is fine */
            admitted += admit(engine, hop, shares, stepped, &parts[admitted]);
        }
    }
    return admitted;
}

/* A hop that went through: silence for what is no number. */
static void check_output(struct ssm_engine *engine, struct ssm_hop *hop)
{
    size_t values = (size_t)hop->count * (size_t)engine->info.outputs;
    hop->blown = hop->blown || (!engine->backend->checks && !all_finite(hop->out, values));
    if (hop->blown) {
        memset(hop->out, 0, values * sizeof *hop->out);
        engine->backend->ops->state_put(engine->backend, (int)(uint32_t)hop->stream, NULL);
    }
}

/* The step failed for a hop: nothing is left in its output to be taken for a result. */
static void mark_failed(const struct ssm_engine *engine, struct ssm_hop *hop)
{
    hop->status = SSM_FAULT;
    memset(hop->out, 0, (size_t)hop->count * (size_t)engine->info.outputs * sizeof *hop->out);
}

/* What came of parts of a step. Gives how many are good. */
static int finish_parts(struct ssm_engine *engine, const struct backend_hop *parts, int n, bool failed)
{
    for (int i = 0; i < n && failed; i++) {
        mark_failed(engine, hop_of(&parts[i]));
    }
    for (int i = 0; i < n && !failed && engine->backend->blown; i++) {
        check_output(engine, hop_of(&parts[i]));
    }
    return failed ? 0 : n;
}

static int step_fleet(struct ssm_engine *engine)
{
    int good = 0, n;
    bool failed;
    const struct backend_hop *parts;
    backend_fleet_step(engine->backend, admit_share, engine);
    if (engine->backend->lingers && !engine->severed) {
        sever(engine);
    }
    for (int i = 0; (parts = backend_fleet_parts(engine->fleet, i, &n, &failed)); i++) {
        good += finish_parts(engine, parts, n, failed);
    }
    return good;
}

static int step_processor(struct ssm_engine *engine)
{
    int n = admit_share(engine, 0, 1, engine->hops);
    if (n > 0) {
        engine->backend->ops->step(engine->backend, engine->hops, n);
    }
    return finish_parts(engine, engine->hops, n, false);
}

int ssm_step(struct ssm_engine *engine, struct ssm_hop *hops, int n)
{
    engine->step += engine->step == UINT32_MAX ? 2 : 1; /* 0 is a slot that was never stepped */
    engine->asked = hops;
    engine->n_asked = n;
    engine->backend->blown = !engine->backend->checks;
    return engine->fleet ? step_fleet(engine) : step_processor(engine);
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

/* How many hops to scan at once behind so many, of which the first were good. A blown hop makes those behind it be scanned
 * again, and seldom comes alone. */
static size_t next_piece(const struct ssm_engine *engine, size_t piece, size_t good)
{
    size_t most = (size_t)engine->backend->scan_hops;
    return good < piece ? 1 : piece < most / 2 ? 2 * piece : most;
}

int ssm_scan(struct ssm_engine *engine, ssm_stream stream, const float *in, float *out, const float *elapsed,
             size_t count, size_t *blown)
{
    int slot = find_slot(engine, stream);
    size_t zeroed = 0, inputs = (size_t)engine->info.inputs, outputs = (size_t)engine->info.outputs;
    int status = SSM_OK;
    if (slot < 0) {
        return SSM_STALE;
    }
    size_t piece = (size_t)engine->backend->scan_hops;
    for (size_t done = 0; done < count;) {
        bool odd = false;
        piece = piece < count - done ? piece : count - done;
        struct backend_hop part = {.slot = slot,
                                   .in = in + done * inputs,
                                   .out = out + done * outputs,
                                   .count = (int)piece,
                                   .elapsed = elapsed ? elapsed + done : NULL,
                                   .elapsed_count = elapsed ? (int)piece : 0,
                                   .blown = &odd};
        if (engine->backend->ops->scan(engine->backend, &part)) {
            memset(part.out, 0, (count - done) * outputs * sizeof *out);
            status = SSM_FAULT;
            break;
        }
        size_t good = engine->backend->checks && !odd ? piece : find_blown(engine, part.out, piece);
        done += good;
        if (good < piece) { /* go on behind the blown hop from the zero state, as a step would */
            memset(out + done * outputs, 0, outputs * sizeof *out);
            engine->backend->ops->state_put(engine->backend, slot, NULL);
            zeroed++;
            done++;
        }
        piece = next_piece(engine, piece, good);
    }
    if (blown) {
        *blown = zeroed;
    }
    return status;
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
    if (engine->backend->ops->state_get(engine->backend, slot, engine->state)) {
        return SSM_FAULT;
    }
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
    return engine->backend->ops->state_put(engine->backend, slot, engine->state)
               ? (refuse(err, 69, "%s", ssm_health(engine)->last), SSM_FAULT)
               : SSM_OK;
}
