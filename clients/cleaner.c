/* SPDX-License-Identifier: MIT */
#include "clients/cleaner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "dsp/resample.h"
#include "model/refuse.h"

/* Samples of one channel in flight. 2^18 is 16 s at 16 kHz: long enough for the scan to fill many threads, and a few MiB;
 * a GPU's scan asks for more. A recording of many channels gets shorter blocks, so that all of them together stay below 2^22
 * or what one scan asks for. */
enum { BLOCK_MOST = 1 << 18, BLOCK_LEAST = 1 << 12, BLOCK_ALL = 1 << 22 };

struct lane { /* one channel */
    ssm_stream stream;
    struct resampler *to_model, *from_model;
    float *in;    /* (block)  at the recording's rate; unused when direct */
    float *hops;  /* (block)  at the model's rate, waiting for a whole hop */
    float *clean; /* (block)  what the model made of them                 */
    float *out;   /* (block)  at the recording's rate again; as in        */
};

struct cleaner {
    struct cleaner_options options;
    struct ssm_engine *engine;
    const struct ssm_info *info;
    struct lane *lanes;
    struct ssm_hop *step; /* (channels) one batch, for hop by hop */
    float *interleaved;   /* (block, channels)                    */
    bool direct;          /* the recording has the model's rate   */
    size_t block;         /* samples, a multiple of the hop       */
    size_t fill;          /* samples in lane->hops                */
    size_t skip;          /* the model's delay, not yet dropped   */
    struct cleaner_counts counts;
};

static int open_lane(struct cleaner *c, struct lane *lane, struct ssm_error *err)
{
    int rate = c->options.rate, model_rate = c->info->rate;
    if (ssm_stream_open(c->engine, &lane->stream) != SSM_OK) {
        return refuse(err, EX_SOFTWARE, "the engine has no slot left for a channel");
    }
    lane->to_model = resampler_create(rate, model_rate, RESAMPLER_BEST);
    lane->from_model = resampler_create(model_rate, rate, RESAMPLER_BEST);
    lane->in = c->direct ? NULL : malloc(c->block * sizeof(float));
    lane->hops = malloc(c->block * sizeof(float));
    lane->clean = malloc(c->block * sizeof(float));
    lane->out = c->direct ? NULL : malloc(c->block * sizeof(float));
    if (!lane->to_model || !lane->from_model) {
        return refuse(err, EX_DATAERR, "can't convert between the recording's %d Hz and the model's %d Hz", rate,
                      model_rate);
    }
    bool fine = lane->hops && lane->clean && (c->direct || (lane->in && lane->out));
    return fine ? 0 : refuse_memory(err);
}

static size_t choose_block(int channels, const struct ssm_info *info, bool step)
{
    size_t hop = (size_t)info->hop, scan = step ? 0 : (size_t)info->scan_hops * hop;
    size_t most = scan > BLOCK_MOST ? scan : BLOCK_MOST, all = scan > BLOCK_ALL ? scan : BLOCK_ALL;
    size_t block = all / (size_t)channels;
    block = block > most ? most : block < BLOCK_LEAST ? BLOCK_LEAST : block;
    return (block + hop - 1) / hop * hop;
}

static int open_engine(struct cleaner *c, struct ssm_error *err)
{
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    struct ssm_options wanted = {
        .device = c->options.device, .precision = c->options.precision, .streams = c->options.channels};
    wanted.threads = c->options.threads > 0 ? c->options.threads : c->options.step ? 1 : cores;
    c->engine = ssm_open(c->options.model, &wanted, err);
    if (c->engine == NULL) {
        return -1;
    }
    c->info = ssm_describe(c->engine);
    if (strcmp(c->info->task, "denoise") != 0 || c->info->outputs != c->info->hop) {
        return refuse(err, EX_DATAERR, "the model %s is made for the task \"%s\", not for denoise; \"ssm models\" lists all",
                      c->info->name, c->info->task);
    }
    return 0;
}

struct cleaner *cleaner_create(const struct cleaner_options *options, struct ssm_error *err)
{
    struct cleaner *c = calloc(1, sizeof *c);
    if (c == NULL) {
        refuse_memory(err);
        return NULL;
    }
    c->options = *options;
    if (open_engine(c, err) != 0) {
        goto fail;
    }
    size_t channels = (size_t)options->channels;
    c->direct = options->rate == c->info->rate;
    c->block = choose_block(options->channels, c->info, options->step);
    c->skip = (size_t)c->info->delay;
    c->lanes = calloc(channels, sizeof *c->lanes);
    c->step = calloc(channels, sizeof *c->step);
    c->interleaved = malloc(c->block * channels * sizeof(float));
    if (!c->lanes || !c->step || !c->interleaved) {
        refuse_memory(err);
        goto fail;
    }
    for (size_t i = 0; i < channels; i++) {
        if (open_lane(c, &c->lanes[i], err) != 0) {
            goto fail;
        }
    }
    return c;
fail:
    cleaner_destroy(c);
    return NULL;
}

void cleaner_destroy(struct cleaner *c)
{
    if (c == NULL) {
        return;
    }
    for (int i = 0; c->lanes != NULL && i < c->options.channels; i++) {
        resampler_destroy(c->lanes[i].to_model);
        resampler_destroy(c->lanes[i].from_model);
        free(c->lanes[i].in);
        free(c->lanes[i].hops);
        free(c->lanes[i].clean);
        free(c->lanes[i].out);
    }
    free(c->lanes);
    free(c->step);
    free(c->interleaved);
    ssm_close(c->engine);
    free(c);
}

const struct ssm_info *cleaner_describe(const struct cleaner *c)
{
    return c->info;
}

const struct ssm_engine *cleaner_engine(const struct cleaner *c)
{
    return c->engine;
}

const struct cleaner_counts *cleaner_counts(const struct cleaner *c)
{
    return &c->counts;
}

/* n samples of every channel in one; one channel is that already. */
static const float *interleave(struct cleaner *c, size_t at, size_t n)
{
    size_t channels = (size_t)c->options.channels;
    for (size_t k = 0; k < channels; k++) {
        const float *from = (c->direct ? c->lanes[k].clean : c->lanes[k].out) + at;
        if (channels == 1) {
            return from;
        }
        for (size_t i = 0; i < n; i++) {
            c->interleaved[i * channels + k] = from[i];
        }
    }
    return c->interleaved;
}

/* n samples of lane->out (direct: lane->clean) from `at` on to the writer, as far as they are owed: resamplers round up, and
 * the end is pushed with zeros. */
static int write_out(struct cleaner *c, size_t at, size_t n)
{
    uint64_t owed = c->counts.taken - c->counts.given;
    n = n < owed ? n : (size_t)owed;
    c->counts.given += n;
    return n > 0 ? c->options.write(c->options.context, interleave(c, at, n), n) : 0;
}

/* n samples of lane->clean, on their way back to the recording's rate. The channels go in lockstep: equal counts in give
 * equal counts out. */
static int give_back(struct cleaner *c, size_t n)
{
    size_t at = c->skip < n ? c->skip : n;
    c->skip -= at;
    if (c->direct) {
        return write_out(c, at, n - at);
    }
    while (at < n) {
        size_t used = 0, got = 0;
        for (int k = 0; k < c->options.channels; k++) {
            struct lane *lane = &c->lanes[k];
            got = resampler_push(lane->from_model, lane->clean + at, n - at, &used, lane->out, c->block, 0);
        }
        at += used;
        int status = write_out(c, 0, got);
        if (status != 0) {
            return status;
        }
    }
    return 0;
}

static void run_scan(struct cleaner *c, size_t hops)
{
    for (int k = 0; k < c->options.channels; k++) {
        size_t blown = 0;
        /* no fault to see to: where a device fails, the scan has the processor do it again */
        ssm_scan(c->engine, c->lanes[k].stream, c->lanes[k].hops, c->lanes[k].clean, NULL, hops, &blown);
        c->counts.blown += blown;
    }
}

static void run_steps(struct cleaner *c, size_t hops)
{
    size_t hop = (size_t)c->info->hop;
    for (size_t i = 0; i < hops; i++) {
        for (int k = 0; k < c->options.channels; k++) {
            struct lane *lane = &c->lanes[k];
            c->step[k] = (struct ssm_hop){
                .stream = lane->stream, .in = lane->hops + i * hop, .out = lane->clean + i * hop, .count = 1};
        }
        ssm_step(c->engine, c->step, c->options.channels);
        for (int k = 0; k < c->options.channels; k++) {
            c->counts.blown += c->step[k].blown;
        }
    }
}

/* Every whole hop that waits goes through the model. */
static int run_model(struct cleaner *c)
{
    size_t hop = (size_t)c->info->hop, hops = c->fill / hop, n = hops * hop;
    if (hops == 0) {
        return 0;
    }
    if (c->options.step) {
        run_steps(c, hops);
    } else {
        run_scan(c, hops);
    }
    c->fill -= n;
    for (int k = 0; k < c->options.channels; k++) {
        memmove(c->lanes[k].hops, c->lanes[k].hops + n, c->fill * sizeof(float));
    }
    return give_back(c, n);
}

/* n samples, at most a block, to where the lanes take them in; silence where samples is NULL. */
static void deinterleave(struct cleaner *c, const float *samples, size_t n)
{
    size_t channels = (size_t)c->options.channels;
    for (size_t k = 0; k < channels; k++) {
        float *to = c->direct ? c->lanes[k].hops + c->fill : c->lanes[k].in;
        if (samples != NULL && channels == 1) {
            memcpy(to, samples, n * sizeof *to);
            continue;
        }
        for (size_t i = 0; i < n; i++) {
            to[i] = samples != NULL ? samples[i * channels + k] : 0.0f;
        }
    }
}

/* push_block at the model's own rate: no more copies than it takes. */
static int push_direct(struct cleaner *c, const float *samples, size_t n)
{
    int status = 0;
    for (size_t at = 0; at < n && status == 0;) {
        size_t room = c->block - c->fill, piece = n - at < room ? n - at : room;
        deinterleave(c, samples != NULL ? samples + at * (size_t)c->options.channels : NULL, piece);
        c->fill += piece;
        at += piece;
        status = run_model(c);
    }
    return status;
}

/* n samples, at most a block, to the model's rate and through. */
static int push_block(struct cleaner *c, const float *samples, size_t n)
{
    if (c->direct) {
        return push_direct(c, samples, n);
    }
    deinterleave(c, samples, n);
    for (size_t at = 0; at < n;) {
        size_t used = 0, got = 0;
        for (int k = 0; k < c->options.channels; k++) {
            struct lane *lane = &c->lanes[k];
            got = resampler_push(lane->to_model, lane->in + at, n - at, &used, lane->hops + c->fill, c->block - c->fill, 0);
        }
        at += used;
        c->fill += got;
        int status = run_model(c);
        if (status != 0) {
            return status;
        }
    }
    return 0;
}

int cleaner_push(struct cleaner *c, const float *samples, size_t n)
{
    int status = 0;
    while (n > 0 && status == 0) {
        size_t piece = n < c->block ? n : c->block;
        c->counts.taken += piece;
        status = push_block(c, samples, piece);
        samples += piece * (size_t)c->options.channels;
        n -= piece;
    }
    return status;
}

int cleaner_finish(struct cleaner *c)
{
    int status = 0;
    while (c->counts.given < c->counts.taken && status == 0) {
        status = push_block(c, NULL, BLOCK_LEAST);
    }
    return status;
}

/* The file that goes from part to part: this, then for each channel `fill` samples and the stream's state (which names its
 * model and carries its own sum). Little-endian, as every machine this runs on. */
struct saved {
    char magic[8];
    uint32_t channels, rate;
    uint64_t fill, skip, owed, state_bytes;
};
static const char saved_magic[8] = "ssmpart1";

static struct saved describe_saved(const struct cleaner *c)
{
    struct saved saved = {.channels = (uint32_t)c->options.channels, .rate = (uint32_t)c->options.rate};
    memcpy(saved.magic, saved_magic, sizeof saved.magic);
    saved.fill = c->fill;
    saved.skip = c->skip;
    saved.owed = c->counts.taken - c->counts.given;
    saved.state_bytes = ssm_state_size(c->engine);
    return saved;
}

static int refuse_other_rate(const struct cleaner *c, struct ssm_error *err)
{
    return refuse(err, EX_DATAERR,
                  "a state goes from part to part only at the model's own rate: the recording has %d Hz, %s wants %d Hz",
                  c->options.rate, c->info->name, c->info->rate);
}

int cleaner_save(const struct cleaner *c, FILE *file, struct ssm_error *err)
{
    if (c->options.rate != c->info->rate) {
        return refuse_other_rate(c, err);
    }
    struct saved saved = describe_saved(c);
    void *state = malloc(saved.state_bytes);
    if (state == NULL) {
        return refuse_memory(err);
    }
    bool fine = fwrite(&saved, sizeof saved, 1, file) == 1;
    for (int k = 0; fine && k < c->options.channels; k++) {
        fine = ssm_state_save(c->engine, c->lanes[k].stream, state, saved.state_bytes) >= 0 &&
               fwrite(c->lanes[k].hops, sizeof(float), c->fill, file) == c->fill &&
               fwrite(state, saved.state_bytes, 1, file) == 1;
    }
    free(state);
    return fine ? 0 : refuse(err, EX_IOERR, "can't write the state");
}

/* Does the saved header fit this recording and this model? */
static int check_saved(const struct cleaner *c, const struct saved *saved, struct ssm_error *err)
{
    if (memcmp(saved->magic, saved_magic, sizeof saved->magic) != 0) {
        return refuse(err, EX_DATAERR, "this is not a state that --state-out wrote");
    }
    if (c->options.rate != c->info->rate) {
        return refuse_other_rate(c, err);
    }
    if (saved->channels != (uint32_t)c->options.channels || saved->rate != (uint32_t)c->options.rate) {
        return refuse(err, EX_DATAERR, "the state is of a recording with %u channels at %u Hz, this one has %d at %d Hz",
                      saved->channels, saved->rate, c->options.channels, c->options.rate);
    }
    if (saved->state_bytes != ssm_state_size(c->engine)) {
        return refuse(err, EX_DATAERR, "the state is of another model than %s", c->info->name);
    }
    if (saved->fill >= (uint64_t)c->info->hop || saved->skip > (uint64_t)c->info->delay ||
        saved->owed > (uint64_t)(c->info->delay + c->info->hop)) {
        return refuse(err, EX_DATAERR, "the state file is damaged; start again from the recording's first part");
    }
    return 0;
}

static int load_lane(struct cleaner *c, struct lane *lane, const struct saved *saved, void *state, FILE *file,
                     struct ssm_error *err)
{
    if (fread(lane->hops, sizeof(float), saved->fill, file) != saved->fill ||
        fread(state, saved->state_bytes, 1, file) != 1) {
        return refuse(err, EX_DATAERR, "the state file is cut short; start again from the recording's first part");
    }
    for (size_t i = 0; i < saved->fill; i++) {
        lane->hops[i] = isfinite(lane->hops[i]) ? lane->hops[i] : 0.0f;
    }
    return ssm_state_load(c->engine, lane->stream, state, saved->state_bytes, err) == SSM_OK ? 0 : -1;
}

int cleaner_load(struct cleaner *c, FILE *file, struct ssm_error *err)
{
    struct saved saved;
    if (fread(&saved, sizeof saved, 1, file) != 1) {
        return refuse(err, EX_DATAERR, "this is not a state that --state-out wrote");
    }
    if (check_saved(c, &saved, err) != 0) {
        return -1;
    }
    void *state = malloc(saved.state_bytes);
    int status = state != NULL ? 0 : refuse_memory(err);
    for (int k = 0; status == 0 && k < c->options.channels; k++) {
        status = load_lane(c, &c->lanes[k], &saved, state, file, err);
    }
    free(state);
    c->fill = (size_t)saved.fill;
    c->skip = (size_t)saved.skip;
    c->counts.taken = saved.owed; /* as if the earlier parts' unfinished end had just come in */
    return status;
}
