/* SPDX-License-Identifier: MIT */
/* The model on the processor.
 *
 * A step deals the streams out to the threads; each runs the whole chain of layers on its share, a block of rows at a
 * time, with no word to the others. A scan on several threads splits time: each has a segment of a block, and they meet
 * after every layer (layer.h says how a segment gets its start state). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "model/backend.h"
#include "model/refuse.h"

/* Rows in a block: enough to use each weight many times while it is in cache, few enough that a block's activations
 * (some 16 KiB a row at d_model 256) stay in a 1 or 2 MiB L2 beside the weights. */
enum { ROWS = 32, SCAN_BLOCKS = 32, ELAPSED_MAX = 1000000, LARGE_PAGE = 2 << 20 };

/* One thread's own memory. */
struct bench {
    float *scratch;
    struct layer_item items[ROWS];
    float *outs[ROWS]; /* where an item's rows go */
    float *state;      /* a stream's state within a segment; the warm-up's outputs. Only with threads */
    float *warm_out, *warm_spectrum;
};

struct cpu {
    struct backend base;
    const struct model *model;
    const struct kernels *kernels;
    struct team *team; /* NULL with one thread */
    int threads, streams;
    size_t state_stride;
    float *states;                     /* (streams, state_stride)                                         */
    float *activations[2];             /* (threads * ROWS, widest): layers read one and write the other   */
    float *spectra, *elapsed;          /* (threads * ROWS, 2 bins), (threads * ROWS)                      */
    struct bench *benches;             /* (threads)                                                       */
    const struct layer_block **blocks; /* (threads) what each is at, for layers that share their work */
    void *memory;                      /* all of the above but benches                                    */

    const struct backend_hop *hops; /* the call in progress */
    int n, members;
};

/* Denormals cost a hundred times an ordinary number and come with every fade into silence: flush them for the call. */
static unsigned flush_denormals(void)
{
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* flush to zero, denormals are zero */
    return before;
#else
    return 0;
#endif
}

static void restore_denormals(unsigned before)
{
#if defined(__SSE__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

static float *state_of(const struct cpu *cpu, int slot)
{
    return cpu->states + (size_t)slot * cpu->state_stride;
}

/* Bring `count` hops from hop `done` on into rows of samples x and elapsed times. */
static void gather(const struct cpu *cpu, const struct backend_hop *hop, int done, int count, float *x, float *elapsed)
{
    size_t width = (size_t)cpu->model->info.inputs;
    const float *in = hop->in + (size_t)done * width;
    for (size_t i = 0; i < (size_t)count * width; i++) {
        x[i] = isfinite(in[i]) ? in[i] : 0;
    }
    for (int i = 0; i < count; i++) {
        float value = done + i < hop->elapsed_count ? hop->elapsed[done + i] : 1;
        elapsed[i] = value > 0 ? fminf(value, ELAPSED_MAX) : 1;
    }
}

/* Where a share of the hops has got to. */
struct cursor {
    const struct backend_hop *hop, *end;
    int done; /* hops of *hop */
};

/* Fill a block's rows from the cursor. */
static void fill_block(const struct cpu *cpu, struct cursor *at, struct bench *bench, struct layer_block *block,
                       float *x, float *elapsed)
{
    size_t outputs = (size_t)cpu->model->info.outputs;
    for (block->rows = block->n_items = 0; at->hop < at->end && block->rows < ROWS; block->n_items++) {
        int left = at->hop->count - at->done, room = ROWS - block->rows, count = left < room ? left : room;
        gather(cpu, at->hop, at->done, count, x + block->rows * cpu->model->info.inputs, elapsed + block->rows);
        bench->items[block->n_items] = (struct layer_item){state_of(cpu, at->hop->slot), block->rows, count};
        bench->outs[block->n_items] = at->hop->out + (size_t)at->done * outputs;
        block->rows += count;
        at->done += count;
        if (at->done == at->hop->count) {
            at->hop++;
            at->done = 0;
        }
    }
}

static void run_block(const struct cpu *cpu, struct bench *bench, const struct layer_block *block, float *x, float *y)
{
    size_t outputs = (size_t)cpu->model->info.outputs;
    for (int i = 0; i < cpu->model->n_layers; i++) {
        const struct layer *layer = &cpu->model->layers[i];
        layer->ops->run(layer, block, x, y);
        float *read = x;
        x = y;
        y = read;
    }
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        memcpy(bench->outs[i], x + (size_t)item->first * outputs, (size_t)item->count * outputs * sizeof *x);
    }
}

/* One thread's share of the hops, on its own part of the buffers. */
static void run_hops(const struct cpu *cpu, int member, const struct backend_hop *hops, int n)
{
    const struct model *model = cpu->model;
    struct bench *bench = &cpu->benches[member];
    size_t row = (size_t)member * ROWS;
    float *x = cpu->activations[0] + row * (size_t)model->widest,
          *y = cpu->activations[1] + row * (size_t)model->widest;
    float *spectra = cpu->spectra + row * 2 * (size_t)model->bins, *elapsed = cpu->elapsed + row;
    struct layer_block block = {.kernels = cpu->kernels,
                                .items = bench->items,
                                .elapsed = elapsed,
                                .spectrum = spectra,
                                .new_spectrum = spectra,
                                .scratch = bench->scratch};
    for (struct cursor at = {hops, hops + n, 0}; at.hop < at.end;) {
        fill_block(cpu, &at, bench, &block, x, elapsed);
        run_block(cpu, bench, &block, x, y);
    }
}

/* The hops whose first row lies in this member's part of all rows: whole hops, evenly dealt. */
static void step_member(void *arg, int member)
{
    const struct cpu *cpu = arg;
    unsigned before = flush_denormals();
    int64_t total = 0, at = 0;
    for (int i = 0; i < cpu->n; i++) {
        total += cpu->hops[i].count;
    }
    int first = 0, last;
    while (first < cpu->n && at < total * member / cpu->members) {
        at += cpu->hops[first++].count;
    }
    for (last = first; last < cpu->n && at < total * (member + 1) / cpu->members;) {
        at += cpu->hops[last++].count;
    }
    run_hops(cpu, member, cpu->hops + first, last - first);
    restore_denormals(before);
}

static int cpu_step(struct backend *backend, const struct backend_hop *hops, int n)
{
    struct cpu *cpu = (struct cpu *)backend;
    cpu->hops = hops;
    cpu->n = n;
    cpu->members = n < cpu->threads ? n : cpu->threads;
    if (cpu->members > 1) {
        team_run(cpu->team, cpu->members, step_member, cpu);
    } else {
        step_member(cpu, 0);
    }
    return 0;
}

/* Give a segment its start state: the stream's own for the first one, else what the rows before leave behind. */
static void start_segment(const struct cpu *cpu, const struct layer *layer, int member, const float *x)
{
    const struct bench *bench = &cpu->benches[member];
    float *state = bench->state + layer->state_at;
    if (member == 0) {
        memcpy(state, state_of(cpu, cpu->hops->slot) + layer->state_at, layer->state * sizeof *state);
        return;
    }
    memset(state, 0, layer->state * sizeof *state);
    if (layer->memory) {
        size_t row = (size_t)(member * ROWS - layer->memory);
        struct layer_item item = {bench->state, 0, layer->memory};
        struct layer_block block = {.kernels = cpu->kernels,
                                    .rows = layer->memory,
                                    .items = &item,
                                    .n_items = 1,
                                    .elapsed = cpu->elapsed + row,
                                    .spectrum = cpu->spectra + row * 2 * (size_t)cpu->model->bins,
                                    .new_spectrum = bench->warm_spectrum,
                                    .scratch = bench->scratch};
        layer->ops->run(layer, &block, x + row * (size_t)layer->in, bench->warm_out);
    }
}

/* One layer over this member's segment; everybody is done with it on return. */
static void run_segment(const struct cpu *cpu, const struct layer *layer, int member, const float *x, float *y)
{
    const struct bench *bench = &cpu->benches[member];
    size_t row = (size_t)member * ROWS;
    float *spectra = cpu->spectra + row * 2 * (size_t)cpu->model->bins;
    struct layer_item item = {bench->state, 0, ROWS};
    struct layer_segments segments = {cpu->team, member, cpu->members, cpu->blocks};
    struct layer_block block = {.kernels = cpu->kernels,
                                .rows = ROWS,
                                .items = &item,
                                .n_items = 1,
                                .elapsed = cpu->elapsed + row,
                                .spectrum = spectra,
                                .new_spectrum = spectra,
                                .scratch = bench->scratch,
                                .segments = &segments};
    cpu->blocks[member] = &block;
    start_segment(cpu, layer, member, x);
    layer->ops->run(layer, &block, x + row * (size_t)layer->in, y + row * (size_t)layer->out);
    team_barrier(cpu->team);
    if (member == cpu->members - 1) {
        memcpy(state_of(cpu, cpu->hops->slot) + layer->state_at, bench->state + layer->state_at,
               layer->state * sizeof *bench->state);
    }
}

/* A recording in blocks of members * ROWS rows, each member on its ROWS of them. The barriers: rows before a segment
 * are there when the warm-up reads them, and nobody overwrites rows that another still reads. */
static void scan_member(void *arg, int member)
{
    const struct cpu *cpu = arg;
    const struct model *model = cpu->model;
    const struct backend_hop *hop = cpu->hops;
    size_t row = (size_t)member * ROWS, outputs = (size_t)model->info.outputs;
    unsigned before = flush_denormals();
    for (int done = 0; done < hop->count; done += cpu->members * ROWS) {
        float *x = cpu->activations[0], *y = cpu->activations[1];
        gather(cpu, hop, done + member * ROWS, ROWS, x + row * (size_t)model->info.inputs, cpu->elapsed + row);
        team_barrier(cpu->team);
        for (int i = 0; i < model->n_layers; i++) {
            run_segment(cpu, &model->layers[i], member, x, y);
            float *read = x;
            x = y;
            y = read;
        }
        memcpy(hop->out + ((size_t)done + row) * outputs, x + row * outputs, ROWS * outputs * sizeof *x);
        team_barrier(cpu->team);
    }
    restore_denormals(before);
}

static int cpu_scan(struct backend *backend, const struct backend_hop *hop)
{
    struct cpu *cpu = (struct cpu *)backend;
    struct backend_hop whole = *hop, rest = *hop;
    whole.count = cpu->threads > 1 && cpu->model->memory <= ROWS ? hop->count - hop->count % (cpu->threads * ROWS) : 0;
    rest.count -= whole.count;
    if (whole.count) {
        cpu->hops = &whole;
        cpu->members = cpu->threads;
        team_run(cpu->team, cpu->members, scan_member, cpu);
    }
    if (rest.count) {
        int used = whole.count < hop->elapsed_count ? whole.count : hop->elapsed_count;
        rest.in += (size_t)whole.count * (size_t)cpu->model->info.inputs;
        rest.out += (size_t)whole.count * (size_t)cpu->model->info.outputs;
        rest.elapsed = hop->elapsed ? hop->elapsed + used : NULL;
        rest.elapsed_count -= used;
        cpu_step(backend, &rest, 1);
    }
    return 0;
}

static int cpu_state_get(struct backend *backend, int slot, float *state)
{
    const struct cpu *cpu = (const struct cpu *)backend;
    memcpy(state, state_of(cpu, slot), cpu->model->state * sizeof *state);
    return 0;
}

static int cpu_state_put(struct backend *backend, int slot, const float *state)
{
    const struct cpu *cpu = (const struct cpu *)backend;
    size_t bytes = cpu->model->state * sizeof *state;
    if (state) {
        memcpy(state_of(cpu, slot), state, bytes);
    } else {
        memset(state_of(cpu, slot), 0, bytes);
    }
    return 0;
}

static const char *cpu_fault(const struct backend *backend)
{
    (void)backend;
    return NULL;
}

/* Hands out pieces of one allocation, each on its own cache lines; with no memory yet it only counts. */
struct piece {
    float *memory;
    size_t used;
};

static float *cut(struct piece *piece, size_t floats)
{
    float *at = piece->memory ? piece->memory + piece->used : NULL;
    piece->used += (floats + 15) & ~(size_t)15;
    return at;
}

static size_t largest_scratch(const struct model *model)
{
    size_t largest = 0;
    for (int i = 0; i < model->n_layers; i++) {
        size_t floats = layer_scratch_floats(&model->layers[i], ROWS);
        largest = floats > largest ? floats : largest;
    }
    return largest;
}

/* Gives the floats everything takes; with memory, sets every pointer. */
static size_t lay_out(struct cpu *cpu, float *memory)
{
    const struct model *model = cpu->model;
    struct piece piece = {memory, 0};
    size_t rows = (size_t)cpu->threads * ROWS, widest = (size_t)model->widest, spectrum = 2 * (size_t)model->bins;
    cpu->states = cut(&piece, (size_t)cpu->streams * cpu->state_stride);
    cpu->activations[0] = cut(&piece, rows * widest);
    cpu->activations[1] = cut(&piece, rows * widest);
    cpu->spectra = cut(&piece, rows * spectrum);
    cpu->elapsed = cut(&piece, rows);
    for (int i = 0; i < cpu->threads; i++) {
        cpu->benches[i].scratch = cut(&piece, largest_scratch(model));
    }
    if (cpu->threads > 1) {
        for (int i = 0; i < cpu->threads; i++) {
            cpu->benches[i].state = cut(&piece, cpu->state_stride);
            cpu->benches[i].warm_out = cut(&piece, ROWS * widest);
            cpu->benches[i].warm_spectrum = cut(&piece, ROWS * spectrum);
        }
    }
    return piece.used;
}

static void cpu_close(struct backend *backend)
{
    struct cpu *cpu = (struct cpu *)backend;
    if (cpu) {
        team_destroy(cpu->team);
        free(cpu->benches);
        free(cpu->blocks);
        free(cpu->memory);
        free(cpu);
    }
}

/* Large pages where they are to be had: many streams' states are gigabytes, which the first touch and then every step
 * walk through, and a page of 4 KiB is a fault for the one and a miss in the translation buffer for the other. */
static void *take_pages(size_t *bytes)
{
    size_t page = *bytes < 4 * LARGE_PAGE ? 64 : LARGE_PAGE;
    *bytes = (*bytes + page - 1) & ~(page - 1);
    void *memory = aligned_alloc(page, *bytes);
    if (memory && page == LARGE_PAGE) {
        madvise(memory, *bytes, MADV_HUGEPAGE); /* a wish: where it isn't granted all is as before */
    }
    return memory;
}

static int take_memory(struct cpu *cpu)
{
    cpu->benches = calloc((size_t)cpu->threads, sizeof *cpu->benches);
    cpu->blocks = calloc((size_t)cpu->threads, sizeof *cpu->blocks);
    if (!cpu->benches || !cpu->blocks) {
        return -1;
    }
    cpu->base.bytes = lay_out(cpu, NULL) * sizeof(float);
    cpu->memory = take_pages(&cpu->base.bytes);
    if (!cpu->memory) {
        return -1;
    }
    memset(cpu->memory, 0, cpu->base.bytes); /* the states' zeros; and no page fault on the hop path */
    lay_out(cpu, cpu->memory);
    cpu->base.bytes += sizeof *cpu + (size_t)cpu->threads * sizeof *cpu->benches;
    return 0;
}

static struct backend *cpu_open(const struct model *model, const struct ssm_options *options, struct ssm_error *err)
{
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) {
        refuse_memory(err);
        return NULL;
    }
    cpu->base.ops = &backend_cpu;
    cpu->model = model;
    cpu->kernels = kernels_best();
    cpu->threads = options->threads;
    cpu->streams = options->streams;
    cpu->state_stride = (model->state + 15) & ~(size_t)15;
    cpu->base.scan_hops = cpu->threads * ROWS * SCAN_BLOCKS;
    snprintf(cpu->base.device, sizeof cpu->base.device, "cpu %s", cpu->kernels->name);
    if (take_memory(cpu) || (cpu->threads > 1 && !(cpu->team = team_create(cpu->threads, TEAM_BRIEFLY)))) {
        refuse_memory(err);
        cpu_close(&cpu->base);
        return NULL;
    }
    return &cpu->base;
}

const struct backend_ops backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .step = cpu_step,
    .scan = cpu_scan,
    .state_get = cpu_state_get,
    .state_put = cpu_state_put,
    .fault = cpu_fault,
    .close = cpu_close,
};
