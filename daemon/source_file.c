/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <sys/stat.h>

#include "daemon/log.h"
#include "daemon/source.h"
#include "daemon/worker.h"
#include "dsp/clock.h"
#include "dsp/sound_file.h"
#include "model/refuse.h"

/* A block is 10 ms; a fast file gives its place to the next one after 16 of them. */
enum { BLOCKS_A_SECOND = 100, FAST_BLOCKS = 16, SECOND = 1000000000 };

struct file_source {
    struct source source;
    const struct config_source *config;
    struct worker *reader;
    atomic_bool stopping;

    /* The reader thread's once started. */
    struct sound_file *file;
    int columns;       /* channels in the file                */
    size_t block;      /* samples                             */
    float *samples;    /* (block, columns)                    */
    uint64_t length;   /* samples in the file                 */
    uint64_t position; /* samples given out, loops and all    */
    int64_t started;   /* when sample 0 was due; 0: not yet   */
    uint64_t bad;      /* NaNs told to the counter            */
    bool ended, told;  /* told: that it is damaged            */
};

static int choose_channels(struct source *source, const struct config_source *config, int columns, struct ssm_error *err)
{
    source->n_channels = config->n_channels > 0 ? config->n_channels : columns;
    if (source->n_channels > CONFIG_CHANNELS) {
        return refuse(err, 78, "the file has more than 64 channels: choose some with `channels`");
    }
    for (int i = 0; i < source->n_channels; i++) {
        source->channels[i] = config->n_channels > 0 ? config->channels[i] : i;
        if (source->channels[i] >= columns) {
            return refuse(err, 78, "%s has %d channel%s: channel %d is not there (they count from 0)",
                          config->path, columns, columns == 1 ? "" : "s", source->channels[i]);
        }
    }
    return 0;
}

static void file_close(struct source *source)
{
    struct file_source *file = (struct file_source *)source;
    worker_remove(file->reader, file);
    sound_file_close(file->file);
    free(file->samples);
    free(file);
}

/* A pipe may keep its reader waiting for ever, and every other file with it. What isn't there at all is told by the one who
 * opens it. */
static int refuse_pipe(const char *path, struct ssm_error *err)
{
    struct stat found;
    bool pipe = stat(path, &found) == 0 && !S_ISREG(found.st_mode) && !S_ISDIR(found.st_mode);
    return pipe ? refuse(err, 66, "%s: not a file; what comes from a pipe or a device goes in as type pcm", path) : 0;
}

static struct source *file_open(const struct source_setup *setup, struct ssm_error *err)
{
    struct file_source *file = calloc(1, sizeof *file);
    if (!file) {
        refuse_memory(err);
        return NULL;
    }
    struct sound_file_info info;
    struct sound_file_error bad;
    file->source.ops = &source_file;
    file->config = setup->config;
    file->reader = setup->reader;
    if (refuse_pipe(setup->config->path, err) < 0) {
        goto fail;
    }
    file->file = sound_file_open(setup->config->path, &info, &bad);
    if (!file->file) {
        refuse(err, bad.code, "%s", bad.text);
        goto fail;
    }
    if (info.note[0]) {
        log_line(LOG_WARNING, "%s: %s", setup->config->path, info.note);
    }
    file->columns = info.channels;
    file->length = info.length > 0 ? (uint64_t)info.length : 0;
    file->source.rate = info.rate;
    file->source.patient = !setup->config->paced;
    file->source.endless = setup->config->loop;
    file->block = (size_t)(info.rate / BLOCKS_A_SECOND > 0 ? info.rate / BLOCKS_A_SECOND : 1);
    file->samples = calloc(file->block * (size_t)info.channels, sizeof(float));
    if (!file->samples) {
        refuse_memory(err);
        goto fail;
    }
    if (choose_channels(&file->source, setup->config, info.channels, err) < 0) {
        goto fail;
    }
    return &file->source;
fail:
    file_close(&file->source);
    return NULL;
}

static void end(struct file_source *file)
{
    for (int i = 0; i < file->source.n_channels; i++) {
        feed_end(file->source.feeds[i]);
    }
    file->ended = true;
}

static size_t begin_again(struct file_source *file, struct sound_file_error *err)
{
    if (!sound_file_seek(file->file, 0)) {
        err->code = 74;
        snprintf(err->text, sizeof err->text, "%.300s: can't go back to its beginning", file->config->path);
        return 0;
    }
    return sound_file_read(file->file, file->samples, file->block, err);
}

/* Once: the read after it says so again. Where a loop begins again, nothing has ended. */
static void note_damage(struct file_source *file, const struct sound_file_error *err, bool goes_on)
{
    if (err->code != 0 && !file->told) {
        log_line(LOG_WARNING, "%s%s", err->text, goes_on ? "; it begins again there" : "");
        file->told = true;
    }
    if (err->code != 0 && !goes_on) {
        atomic_store(&file->source.code, err->code);
    }
}

/* Read a block; gives its samples, 0 at the end. */
static size_t read_block(struct file_source *file)
{
    struct sound_file_error err;
    size_t n = sound_file_read(file->file, file->samples, file->block, &err);
    note_damage(file, &err, file->config->loop && file->position + n > 0);
    if (n == 0 && file->config->loop && file->position > 0) {
        n = begin_again(file, &err);
        note_damage(file, &err, n > 0);
    }
    uint64_t bad = sound_file_bad(file->file);
    count(&file->source.counters[0], COUNTER_NAN_INPUT, bad - file->bad);
    file->bad = bad;
    return n;
}

static void give_block(struct file_source *file, int64_t arrived)
{
    size_t n = read_block(file);
    for (int i = 0; i < file->source.n_channels; i++) {
        const float *first = file->samples + file->source.channels[i];
        size_t fits = feed_write(file->source.feeds[i], first, (size_t)file->columns, n, arrived);
        count(&file->source.counters[i], COUNTER_RING_FULL, n - fits);
    }
    file->position += n;
    if (n == 0) {
        end(file);
    }
}

static bool room(const struct file_source *file)
{
    for (int i = 0; i < file->source.n_channels; i++) {
        if (feed_room(file->source.feeds[i]) < file->block) {
            return false;
        }
    }
    return true;
}

/* As fast as there is room: again at once, or when the engine made some. */
static int64_t serve_fast(struct file_source *file, int64_t now)
{
    for (int i = 0; i < FAST_BLOCKS; i++) {
        if (file->ended || !room(file)) {
            return INT64_MAX;
        }
        give_block(file, now);
    }
    return now;
}

/* A block is due when its last sample is. */
static int64_t due(const struct file_source *file)
{
    uint64_t samples = file->position + file->block, rate = (uint64_t)file->source.rate;
    return file->started + (int64_t)(samples / rate * SECOND + samples % rate * SECOND / rate);
}

static int64_t serve_paced(struct file_source *file, int64_t now)
{
    file->started = file->started ? file->started : now;
    while (!file->ended && due(file) <= now) {
        give_block(file, due(file));
    }
    return file->ended ? INT64_MAX : due(file);
}

static int64_t serve(void *item, int64_t now)
{
    struct file_source *file = item;
    if (file->ended) {
        return INT64_MAX;
    }
    uint64_t before = file->position;
    int64_t next = INT64_MAX;
    if (atomic_load(&file->stopping)) {
        end(file);
    } else {
        next = file->source.patient ? serve_fast(file, now) : serve_paced(file, now);
    }
    if (file->position != before || file->ended) {
        waker_wake(file->source.engine);
    }
    return next;
}

static bool file_seek(struct source *source, uint64_t at)
{
    struct file_source *file = (struct file_source *)source;
    if (file->length == 0 || (!file->config->loop && at >= file->length)) {
        return false;
    }
    return sound_file_seek(file->file, (int64_t)(at % file->length));
}

static int file_start(struct source *source, struct ssm_error *err)
{
    struct file_source *file = (struct file_source *)source;
    return worker_add(file->reader, serve, file) < 0 ? refuse_memory(err) : 0;
}

static void file_stop(struct source *source)
{
    struct file_source *file = (struct file_source *)source;
    atomic_store(&file->stopping, true);
    worker_wake(file->reader);
}

const struct source_ops source_file = {
    .name = "file", .open = file_open, .seek = file_seek, .start = file_start, .stop = file_stop, .close = file_close};
