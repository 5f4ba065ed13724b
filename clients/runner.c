/* SPDX-License-Identifier: MIT */
#include "clients/runner.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "dsp/resample.h"
#include "model/refuse.h"

/* Values of one stream in flight. 2^18 is 16 s at 16 kHz: long enough for the scan to fill many threads, and a few MiB;
 * a GPU's scan asks for more. A recording of many channels gets shorter blocks, so that all of them together stay below 2^22
 * or what one scan asks for. */
enum { BLOCK_MOST = 1 << 18, BLOCK_LEAST = 1 << 12, BLOCK_ALL = 1 << 22 };

struct lane { /* one stream */
    ssm_stream stream;
    struct resampler *resampler;
    float *in;        /* (block)           at the recording's rate; unused when direct     */
    float *hops;      /* (block, channels) at the model's rate, waiting for a whole hop    */
    float *out;       /* (block / hop, outputs)                                            */
    const float *fed; /* what out was made of: hops, or the caller's                       */
};

struct runner {
    struct runner_options options;
    struct ssm_engine *engine;
    const struct ssm_info *info;
    struct lane *lanes;
    struct ssm_hop *step; /* (streams) one batch, for hop by hop               */
    int streams;
    bool direct;          /* the recording has the model's rate                */
    size_t block;         /* samples of a channel, a multiple of the hop       */
    size_t fill;          /* samples of a channel in lane->hops                */
    uint64_t blown;
};

static size_t width(const struct runner *r)
{
    return (size_t)r->info->channels;
}

static size_t choose_block(const struct runner *r)
{
    size_t hop = (size_t)r->info->hop, inputs = hop * width(r), outputs = (size_t)r->info->outputs;
    size_t values = inputs > outputs ? inputs : outputs, scan = r->options.step ? 0 : (size_t)r->info->scan_hops * values;
    size_t most = scan > BLOCK_MOST ? scan : BLOCK_MOST, all = scan > BLOCK_ALL ? scan : BLOCK_ALL;
    size_t block = all / (size_t)r->streams;
    block = block > most ? most : block < BLOCK_LEAST ? BLOCK_LEAST : block;
    return (block + values - 1) / values * hop;
}

static int open_engine(struct runner *r, struct ssm_error *err)
{
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    struct ssm_options wanted = {.device = r->options.device, .precision = r->options.precision,
                                 .streams = r->options.channels};
    wanted.threads = r->options.threads > 0 ? r->options.threads : r->options.step ? 1 : cores;
    r->engine = ssm_open(r->options.model, &wanted, err);
    if (r->engine == NULL) {
        return -1;
    }
    r->info = ssm_describe(r->engine);
    if (strcmp(r->info->task, r->options.task) != 0) {
        return refuse(err, EX_DATAERR, "the model %s is made for the task \"%s\", not for %s; \"ssm models\" lists all",
                      r->info->name, r->info->task, r->options.task);
    }
    r->options.rate = r->options.rate > 0 ? r->options.rate : r->info->rate;
    r->options.channels = r->options.channels > 0 ? r->options.channels : r->info->channels;
    r->direct = r->options.rate == r->info->rate;
    if (r->options.channels % r->info->channels != 0) {
        return refuse(err, EX_DATAERR, "the recording has %d channels, and the model %s takes %d", r->options.channels,
                      r->info->name, r->info->channels);
    }
    if (!r->direct && r->info->channels > 1) {
        return refuse(err, EX_DATAERR, "the recording has %d Hz, and the model %s takes its %d channels at %d Hz",
                      r->options.rate, r->info->name, r->info->channels, r->info->rate);
    }
    r->streams = r->options.channels / r->info->channels;
    return 0;
}

static int open_lane(struct runner *r, struct lane *lane, struct ssm_error *err)
{
    size_t rows = r->block / (size_t)r->info->hop;
    if (ssm_stream_open(r->engine, &lane->stream) != SSM_OK) {
        return refuse(err, EX_SOFTWARE, "the engine has no slot left for a channel");
    }
    lane->resampler = resampler_create(r->options.rate, r->info->rate, RESAMPLER_BEST);
    lane->in = r->direct ? NULL : malloc(r->block * sizeof(float));
    lane->hops = malloc(r->block * width(r) * sizeof(float));
    lane->out = malloc(rows * (size_t)r->info->outputs * sizeof(float));
    if (!lane->resampler) {
        return refuse(err, EX_DATAERR, "can't convert between the recording's %d Hz and the model's %d Hz", r->options.rate,
                      r->info->rate);
    }
    lane->fed = lane->hops;
    return lane->hops && lane->out && (r->direct || lane->in) ? 0 : refuse_memory(err);
}

struct runner *runner_create(const struct runner_options *options, struct ssm_error *err)
{
    struct runner *r = calloc(1, sizeof *r);
    if (r == NULL) {
        refuse_memory(err);
        return NULL;
    }
    r->options = *options;
    if (open_engine(r, err) != 0) {
        goto fail;
    }
    r->block = choose_block(r);
    r->lanes = calloc((size_t)r->streams, sizeof *r->lanes);
    r->step = calloc((size_t)r->streams, sizeof *r->step);
    if (!r->lanes || !r->step) {
        refuse_memory(err);
        goto fail;
    }
    for (int i = 0; i < r->streams; i++) {
        if (open_lane(r, &r->lanes[i], err) != 0) {
            goto fail;
        }
    }
    return r;
fail:
    runner_destroy(r);
    return NULL;
}

void runner_destroy(struct runner *r)
{
    if (r == NULL) {
        return;
    }
    for (int i = 0; r->lanes != NULL && i < r->streams; i++) {
        resampler_destroy(r->lanes[i].resampler);
        free(r->lanes[i].in);
        free(r->lanes[i].hops);
        free(r->lanes[i].out);
    }
    free(r->lanes);
    free(r->step);
    ssm_close(r->engine);
    free(r);
}

const struct ssm_info *runner_describe(const struct runner *r)
{
    return r->info;
}

const struct ssm_engine *runner_engine(const struct runner *r)
{
    return r->engine;
}

int runner_streams(const struct runner *r)
{
    return r->streams;
}

size_t runner_block(const struct runner *r)
{
    return r->block;
}

uint64_t runner_blown(const struct runner *r)
{
    return r->blown;
}

const float *runner_out(const struct runner *r, int k)
{
    return r->lanes[k].out;
}

size_t runner_fill(const struct runner *r)
{
    return r->fill;
}

static void run_scan(struct runner *r, const float *elapsed, size_t hops)
{
    for (int k = 0; k < r->streams; k++) {
        size_t blown = 0;
        /* no fault to see to: where a device fails, the scan has the processor do it again */
        ssm_scan(r->engine, r->lanes[k].stream, r->lanes[k].fed, r->lanes[k].out, elapsed, hops, &blown);
        r->blown += blown;
    }
}

static void run_steps(struct runner *r, const float *elapsed, size_t hops)
{
    size_t inputs = (size_t)r->info->hop * width(r), outputs = (size_t)r->info->outputs;
    for (size_t i = 0; i < hops; i++) {
        for (int k = 0; k < r->streams; k++) {
            struct lane *lane = &r->lanes[k];
            r->step[k] = (struct ssm_hop){.stream = lane->stream, .in = lane->fed + i * inputs,
                                          .out = lane->out + i * outputs, .count = 1,
                                          .elapsed = elapsed != NULL ? elapsed[i] : 1};
        }
        ssm_step(r->engine, r->step, r->streams);
        for (int k = 0; k < r->streams; k++) {
            r->blown += r->step[k].blown;
        }
    }
}

static int run(struct runner *r, const float *elapsed, size_t hops)
{
    (r->options.step ? run_steps : run_scan)(r, elapsed, hops);
    return r->options.take(r->options.context, hops);
}

/* Every whole hop that waits goes through the model. */
static int run_waiting(struct runner *r)
{
    size_t hops = r->fill / (size_t)r->info->hop, n = hops * (size_t)r->info->hop;
    if (hops == 0) {
        return 0;
    }
    int status = run(r, NULL, hops);
    r->fill -= n;
    for (int k = 0; k < r->streams; k++) {
        memmove(r->lanes[k].hops, r->lanes[k].hops + n * width(r), r->fill * width(r) * sizeof(float));
    }
    return status;
}

/* n samples, at most a block, to where the lanes take them in; silence where samples is NULL. */
static void deinterleave(struct runner *r, const float *samples, size_t n)
{
    size_t channels = (size_t)r->options.channels, wide = width(r);
    for (size_t k = 0; k < (size_t)r->streams; k++) {
        float *to = r->direct ? r->lanes[k].hops + r->fill * wide : r->lanes[k].in;
        if (samples == NULL) {
            memset(to, 0, n * wide * sizeof *to);
        } else if (channels == wide) {
            memcpy(to, samples, n * wide * sizeof *to);
        } else if (wide == 1) {
            for (size_t i = 0; i < n; i++) {
                to[i] = samples[i * channels + k];
            }
        } else {
            for (size_t i = 0; i < n * wide; i++) {
                to[i] = samples[i / wide * channels + k * wide + i % wide];
            }
        }
    }
}

/* At the model's own rate: no more copies than it takes. */
static int push_direct(struct runner *r, const float *samples, size_t n)
{
    int status = 0;
    for (size_t at = 0; at < n && status == 0;) {
        size_t room = r->block - r->fill, piece = n - at < room ? n - at : room;
        deinterleave(r, samples != NULL ? samples + at * (size_t)r->options.channels : NULL, piece);
        r->fill += piece;
        at += piece;
        status = run_waiting(r);
    }
    return status;
}

/* n samples, at most a block, to the model's rate and through. */
static int push_converted(struct runner *r, const float *samples, size_t n)
{
    deinterleave(r, samples, n);
    for (size_t at = 0; at < n;) {
        size_t used = 0, got = 0;
        for (int k = 0; k < r->streams; k++) {
            struct lane *lane = &r->lanes[k];
            got = resampler_push(lane->resampler, lane->in + at, n - at, &used, lane->hops + r->fill, r->block - r->fill, 0);
        }
        at += used;
        r->fill += got;
        int status = run_waiting(r);
        if (status != 0) {
            return status;
        }
    }
    return 0;
}

int runner_push(struct runner *r, const float *samples, size_t n)
{
    int status = 0;
    for (size_t at = 0; at < n && status == 0; at += r->block) {
        size_t piece = n - at < r->block ? n - at : r->block;
        const float *from = samples != NULL ? samples + at * (size_t)r->options.channels : NULL;
        status = (r->direct ? push_direct : push_converted)(r, from, piece);
    }
    return status;
}

int runner_push_hops(struct runner *r, const float *values, const float *elapsed, size_t hops)
{
    size_t most = r->block / (size_t)r->info->hop, inputs = (size_t)r->info->hop * width(r);
    int status = 0;
    for (size_t at = 0; at < hops && status == 0; at += most) {
        r->lanes[0].fed = values + at * inputs;
        status = run(r, elapsed + at, hops - at < most ? hops - at : most);
    }
    r->lanes[0].fed = r->lanes[0].hops;
    return status;
}

int runner_save(const struct runner *r, FILE *file, struct ssm_error *err)
{
    size_t size = ssm_state_size(r->engine), n = r->fill * width(r);
    void *state = malloc(size);
    if (state == NULL) {
        return refuse_memory(err);
    }
    bool fine = true;
    for (int k = 0; fine && k < r->streams; k++) {
        fine = ssm_state_save(r->engine, r->lanes[k].stream, state, size) >= 0 &&
               fwrite(r->lanes[k].hops, sizeof(float), n, file) == n && fwrite(state, size, 1, file) == 1;
    }
    free(state);
    return fine ? 0 : refuse(err, EX_IOERR, "can't write the state: %s", strerror(errno));
}

static int load_lane(struct runner *r, struct lane *lane, size_t n, void *state, size_t size, FILE *file,
                     struct ssm_error *err)
{
    if (fread(lane->hops, sizeof(float), n, file) != n || fread(state, size, 1, file) != 1) {
        return refuse(err, EX_DATAERR, "the state file is cut short; start again from the recording's first part");
    }
    for (size_t i = 0; i < n; i++) {
        lane->hops[i] = isfinite(lane->hops[i]) ? lane->hops[i] : 0.0f;
    }
    return ssm_state_load(r->engine, lane->stream, state, size, err) == SSM_OK ? 0 : -1;
}

int runner_load(struct runner *r, size_t fill, FILE *file, struct ssm_error *err)
{
    size_t size = ssm_state_size(r->engine);
    void *state = malloc(size);
    int status = state != NULL ? 0 : refuse_memory(err);
    for (int k = 0; status == 0 && k < r->streams; k++) {
        status = load_lane(r, &r->lanes[k], fill * width(r), state, size, file, err);
    }
    free(state);
    r->fill = fill;
    return status;
}
