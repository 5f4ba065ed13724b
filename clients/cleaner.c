/* SPDX-License-Identifier: MIT */
#include "clients/cleaner.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "clients/runner.h"
#include "dsp/resample.h"
#include "model/refuse.h"

/* The end of a recording is pushed out with silence, so much at a time. */
enum { TAIL = 1 << 12 };

/* One channel's way back to the recording's rate. */
struct lane {
    struct resampler *resampler;
    float *out; /* (block); unused when direct */
};

/* The samples that went in and have not come out yet, for `strength`: (n, channels) from `at` on. */
struct memory {
    float *samples;
    size_t at, n, room; /* samples of every channel */
};

struct cleaner {
    struct cleaner_options options;
    struct runner *runner;
    const struct ssm_info *info;
    struct lane *lanes;
    float *interleaved; /* (block, channels)                    */
    bool direct;        /* the recording has the model's rate   */
    size_t block;       /* samples                              */
    size_t skip;        /* the model's delay, not yet dropped   */
    float dry_share;    /* of the recording itself in what comes out */
    struct memory dry;  /* unused when dry_share is 0           */
    struct cleaner_counts counts;
};

static int take_hops(void *context, size_t hops);

static int open_runner(struct cleaner *c, struct ssm_error *err)
{
    const struct cleaner_options *o = &c->options;
    const struct runner_options wanted = {.model = o->model, .device = o->device, .precision = o->precision,
                                          .task = "denoise", .rate = o->rate, .channels = o->channels, .threads = o->threads,
                                          .step = o->step, .take = take_hops, .context = c};
    c->runner = runner_create(&wanted, err);
    if (c->runner == NULL) {
        return -1;
    }
    c->info = runner_describe(c->runner);
    c->direct = o->rate == c->info->rate;
    c->block = runner_block(c->runner);
    c->skip = (size_t)c->info->delay;
    c->dry_share = powf(10, -o->strength_db / 20);
    return 0;
}

static int open_lane(struct cleaner *c, struct lane *lane, struct ssm_error *err)
{
    lane->resampler = resampler_create(c->info->rate, c->options.rate, RESAMPLER_BEST);
    lane->out = c->direct ? NULL : malloc(c->block * sizeof(float));
    return lane->resampler && (c->direct || lane->out) ? 0 : refuse_memory(err);
}

/* What is owed at most between pushes: the model's delay, a hop begun, and what two resamplers hold; and a block. */
static int open_memory(struct cleaner *c, struct ssm_error *err)
{
    double ratio = (double)c->options.rate / c->info->rate, held = 2 * resampler_delay(c->lanes[0].resampler);
    c->dry.room = c->block + (size_t)(ratio * (c->info->delay + c->info->hop) + held) + TAIL;
    c->dry.samples = malloc(c->dry.room * (size_t)c->options.channels * sizeof(float));
    return c->dry.samples != NULL ? 0 : refuse_memory(err);
}

struct cleaner *cleaner_create(const struct cleaner_options *options, struct ssm_error *err)
{
    struct cleaner *c = calloc(1, sizeof *c);
    if (c == NULL) {
        refuse_memory(err);
        return NULL;
    }
    c->options = *options;
    if (open_runner(c, err) != 0) {
        goto fail;
    }
    size_t channels = (size_t)options->channels;
    c->lanes = calloc(channels, sizeof *c->lanes);
    c->interleaved = malloc(c->block * channels * sizeof(float));
    if (!c->lanes || !c->interleaved) {
        refuse_memory(err);
        goto fail;
    }
    for (size_t i = 0; i < channels; i++) {
        if (open_lane(c, &c->lanes[i], err) != 0) {
            goto fail;
        }
    }
    if (c->dry_share > 0 && open_memory(c, err) != 0) {
        goto fail;
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
        resampler_destroy(c->lanes[i].resampler);
        free(c->lanes[i].out);
    }
    free(c->lanes);
    free(c->interleaved);
    free(c->dry.samples);
    runner_destroy(c->runner);
    free(c);
}

const struct ssm_info *cleaner_describe(const struct cleaner *c)
{
    return c->info;
}

const struct ssm_engine *cleaner_engine(const struct cleaner *c)
{
    return runner_engine(c->runner);
}

const struct cleaner_counts *cleaner_counts(const struct cleaner *c)
{
    return &c->counts;
}

/* Keep n samples of every channel until they are due. */
static void remember(struct cleaner *c, const float *samples, size_t n)
{
    struct memory *dry = &c->dry;
    size_t channels = (size_t)c->options.channels;
    assert(dry->n + n <= dry->room);
    memmove(dry->samples, dry->samples + dry->at * channels, dry->n * channels * sizeof(float));
    memcpy(dry->samples + dry->n * channels, samples, n * channels * sizeof(float));
    dry->at = 0;
    dry->n += n;
}

/* n samples of every channel in one, with the share of the recording itself that strength leaves in. */
static const float *interleave(struct cleaner *c, size_t at, size_t n)
{
    size_t channels = (size_t)c->options.channels;
    for (size_t k = 0; k < channels; k++) {
        const float *from = (c->direct ? runner_out(c->runner, (int)k) : c->lanes[k].out) + at;
        if (channels == 1 && c->dry_share == 0) {
            return from;
        }
        for (size_t i = 0; i < n; i++) {
            c->interleaved[i * channels + k] = from[i];
        }
    }
    const float *dry = c->dry.samples + c->dry.at * channels;
    for (size_t i = 0; c->dry_share > 0 && i < n * channels; i++) {
        c->interleaved[i] = c->dry_share * dry[i] + (1 - c->dry_share) * c->interleaved[i];
    }
    return c->interleaved;
}

/* n samples of lane->out (direct: the model's) from `at` on to the writer, as far as they are owed: resamplers round up, and
 * the end is pushed with zeros. */
static int write_out(struct cleaner *c, size_t at, size_t n)
{
    uint64_t owed = c->counts.taken - c->counts.given;
    n = n < owed ? n : (size_t)owed;
    if (n == 0) {
        return 0;
    }
    const float *samples = interleave(c, at, n);
    c->counts.given += n;
    if (c->dry_share > 0) {
        c->dry.at += n;
        c->dry.n -= n;
    }
    return c->options.write(c->options.context, samples, n);
}

/* What the model gave, on its way back to the recording's rate. The channels go in lockstep: equal counts in give equal
 * counts out. */
static int take_hops(void *context, size_t hops)
{
    struct cleaner *c = context;
    size_t n = hops * (size_t)c->info->hop, at = c->skip < n ? c->skip : n;
    c->skip -= at;
    if (c->direct) {
        return write_out(c, at, n - at);
    }
    while (at < n) {
        size_t used = 0, got = 0;
        for (int k = 0; k < c->options.channels; k++) {
            got = resampler_push(c->lanes[k].resampler, runner_out(c->runner, k) + at, n - at, &used, c->lanes[k].out, c->block,
                                 0);
        }
        at += used;
        int status = write_out(c, 0, got);
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
        if (c->dry_share > 0) {
            remember(c, samples, piece);
        }
        status = runner_push(c->runner, samples, piece);
        samples += piece * (size_t)c->options.channels;
        n -= piece;
    }
    c->counts.blown = runner_blown(c->runner);
    return status;
}

int cleaner_finish(struct cleaner *c)
{
    int status = 0;
    while (c->counts.given < c->counts.taken && status == 0) {
        status = runner_push(c->runner, NULL, TAIL);
    }
    c->counts.blown = runner_blown(c->runner);
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
    saved.fill = runner_fill(c->runner);
    saved.skip = c->skip;
    saved.owed = c->counts.taken - c->counts.given;
    saved.state_bytes = ssm_state_size(cleaner_engine(c));
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
    if (fwrite(&saved, sizeof saved, 1, file) != 1) {
        return refuse(err, EX_IOERR, "can't write the state: %s", strerror(errno));
    }
    return runner_save(c->runner, file, err);
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
    if (saved->state_bytes != ssm_state_size(cleaner_engine(c))) {
        return refuse(err, EX_DATAERR, "the state is of another model than %s", c->info->name);
    }
    if (saved->fill >= (uint64_t)c->info->hop || saved->skip > (uint64_t)c->info->delay ||
        saved->owed > (uint64_t)(c->info->delay + c->info->hop)) {
        return refuse(err, EX_DATAERR, "the state file is damaged; start again from the recording's first part");
    }
    return 0;
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
    c->skip = (size_t)saved.skip;
    c->counts.taken = saved.owed; /* as if the earlier parts' unfinished end had just come in */
    return runner_load(c->runner, (size_t)saved.fill, file, err);
}
