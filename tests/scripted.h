/* SPDX-License-Identifier: MIT */
#ifndef TESTS_SCRIPTED_H
#define TESTS_SCRIPTED_H

/* Devices that fail as a GPU would, without one: the processor's backend (models with hops of 160 samples), and a script
 * for each device that says which of its calls fails. */

#include "model/backend.h"
#include "tests/test.h"

enum { SCRIPTED_DEVICES = 3, SCRIPTED_SLOTS = 256 };
enum call { STEP, SCAN, GET, PUT, CALLS };

/* What device i does: `at[c]` is the number of the call of kind c that fails, from 1; 0: never. */
static struct script {
    int at[CALLS], done[CALLS];
    bool wont_open, failed;
    int after;          /* calls after it failed: there must be none */
    int steps_of[SCRIPTED_SLOTS]; /* hops since the slot was last got          */
    int oldest;
    long scanned;     /* hops, those that failed too */
    int reaches, pinned, let_go; /* pieces of memory it was given, those that others had pinned, and how often it let go of all */
    const char *memory; /* the piece it was given last */
    size_t bytes;
    long inside, outside; /* hops whose in and out lay there in a step, and others */
    bool lingers;     /* when a step fails           */
    int beside;       /* copies it makes beside the steps, at once; 0: none          */
    long slow_ns, scan_ns; /* that each stream's hop takes in a step and in a scan, by scripted_spend's clock */
} scripts[SCRIPTED_DEVICES];

struct scripted {
    struct backend base;
    struct backend *cpu;
    struct script *script;
    float *copies[2]; /* (beside, states)  of the last begin, and of the one before */
    size_t state;
    int asked;        /* for copies, since they were begun */
};

static inline bool fails(struct scripted *device, enum call call)
{
    struct script *script = device->script;
    script->after += script->failed;
    script->failed = script->failed || ++script->done[call] == script->at[call];
    return script->failed;
}

static const struct backend_ops scripted_ops;

static inline struct backend *scripted_open(const struct model *model, const struct ssm_options *options, struct ssm_error *err)
{
    struct scripted *device = calloc(1, sizeof *device);
    device->script = &scripts[atoi(options->device + 5)];
    if (device->script->wont_open) {
        free(device);
        *err = (struct ssm_error){69, "no such GPU"};
        return NULL;
    }
    device->cpu = backend_cpu.open(model, options, err);
    device->base = *device->cpu;
    device->base.ops = &scripted_ops;
    device->base.scan_hops = 64;
    device->base.copies = device->script->beside;
    device->state = model->state;
    for (int i = 0; i < 2; i++) {
        device->copies[i] = calloc((size_t)device->script->beside * model->state + 1, sizeof *device->copies[i]);
    }
    snprintf(device->base.device, sizeof device->base.device, "%s scripted", options->device);
    return &device->base;
}

static inline void scribble(const struct backend_hop *hop)
{
    for (int i = 0; i < hop->count * 160; i++) {
        hop->out[i] = 1e9f;
    }
}

/* Lets the time of a test's own clock go by. */
static void (*scripted_spend)(int64_t ns);

static inline void spend(const struct script *script, const struct backend_hop *hops, int n)
{
    for (int i = 0; script->slow_ns > 0 && i < n; i++) {
        scripted_spend(hops[i].count * script->slow_ns);
    }
}

static inline bool is_inside(const struct script *script, const float *hop)
{
    return (size_t)((const char *)hop - script->memory) < script->bytes;
}

static inline int scripted_step(struct backend *backend, const struct backend_hop *hops, int n)
{
    struct scripted *device = (struct scripted *)backend;
    device->cpu->ops->step(device->cpu, hops, n);
    spend(device->script, hops, n);
    if (backend->meanwhile && device->script->done[STEP] % 2) { /* as one that works by itself, in every second step */
        backend->meanwhile(backend->meanwhile_arg);
    }
    bool failed = fails(device, STEP);
    for (int i = 0; i < n; i++) {
        struct script *script = device->script;
        script->steps_of[hops[i].slot] += hops[i].count;
        script->oldest = script->steps_of[hops[i].slot] > script->oldest ? script->steps_of[hops[i].slot] : script->oldest;
        bool inside = is_inside(script, hops[i].in) && is_inside(script, hops[i].out);
        script->inside += inside;
        script->outside += !inside;
        if (failed) {
            scribble(&hops[i]);
        }
    }
    backend->lingers = failed && device->script->lingers;
    return failed ? -1 : 0;
}

static inline int scripted_scan(struct backend *backend, const struct backend_hop *hop)
{
    struct scripted *device = (struct scripted *)backend;
    assert_true(hop->count <= backend->scan_hops);
    device->cpu->ops->scan(device->cpu, hop);
    device->script->scanned += hop->count;
    if (device->script->scan_ns > 0) {
        scripted_spend(hop->count * device->script->scan_ns);
    }
    if (fails(device, SCAN)) {
        scribble(hop);
        return -1;
    }
    return 0;
}

static inline int scripted_get(struct backend *backend, int slot, float *state)
{
    struct scripted *device = (struct scripted *)backend;
    device->cpu->ops->state_get(device->cpu, slot, state);
    device->script->steps_of[slot] = 0;
    if (fails(device, GET)) {
        state[0] = 1e9f;
        return -1;
    }
    return 0;
}

static inline int scripted_put(struct backend *backend, int slot, const float *state)
{
    struct scripted *device = (struct scripted *)backend;
    return fails(device, PUT) ? -1 : device->cpu->ops->state_put(device->cpu, slot, state);
}

static inline int scripted_copy_begin(struct backend *backend, const int *slots, int n)
{
    struct scripted *device = (struct scripted *)backend;
    assert_in_range(n, 1, device->base.copies);
    float *copies = device->copies[1];
    device->copies[1] = device->copies[0];
    device->copies[0] = copies;
    device->asked = 0;
    for (int i = 0; i < n; i++) {
        device->cpu->ops->state_get(device->cpu, slots[i], copies + (size_t)i * device->state);
        device->script->steps_of[slots[i]] = 0;
    }
    return fails(device, GET) ? -1 : 0;
}

/* There when asked for the second time. */
static inline int scripted_copy_end(struct backend *backend, const float **states)
{
    struct scripted *device = (struct scripted *)backend;
    device->script->after += device->script->failed;
    *states = device->copies[0];
    return device->asked++;
}

static inline int scripted_reach(struct backend *backend, void *memory, size_t bytes, bool pinned)
{
    struct script *script = ((struct scripted *)backend)->script;
    assert_true(!memory || bytes > 0);
    script->reaches += memory != NULL;
    script->pinned += pinned;
    script->let_go += memory == NULL;
    script->memory = memory;
    script->bytes = bytes;
    return 0;
}

static inline const char *scripted_fault(const struct backend *backend)
{
    return ((const struct scripted *)backend)->script->failed ? "an illegal memory access was encountered" : NULL;
}

static inline void scripted_close(struct backend *backend)
{
    struct scripted *device = (struct scripted *)backend;
    if (device) {
        device->cpu->ops->close(device->cpu);
        free(device->copies[0]);
        free(device->copies[1]);
        free(device);
    }
}

static const struct backend_ops scripted_ops = {.name = "scripted",
                                                .open = scripted_open,
                                                .step = scripted_step,
                                                .scan = scripted_scan,
                                                .state_get = scripted_get,
                                                .state_put = scripted_put,
                                                .copy_begin = scripted_copy_begin,
                                                .copy_end = scripted_copy_end,
                                                .reach = scripted_reach,
                                                .fault = scripted_fault,
                                                .close = scripted_close};

static inline int scripted_clear(void **context)
{
    (void)context;
    memset(scripts, 0, sizeof scripts);
    return 0;
}

#endif
