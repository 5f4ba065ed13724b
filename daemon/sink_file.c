/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/feed.h"
#include "daemon/log.h"
#include "daemon/sink.h"
#include "daemon/waker.h"
#include "daemon/worker.h"
#include "dsp/resample.h"
#include "dsp/sound_file.h"
#include "model/refuse.h"

/* The engine thread fills a feed a channel (2 s); the writer thread empties it 20 times a second, or when woken, and
 * makes the file readable for others each second. Until the file may begin, because others still start, it keeps 30 s. */
enum { CHUNK = 1024, FEED_SECONDS = 2, EARLY_SECONDS = 30, PERIOD = 50000000, FLUSH_PERIOD = 1000000000 };

static const float silence[CHUNK];

/* One channel: feed -> resampler -> ready. */
struct lane {
    struct feed *feed;
    uint64_t expected; /* engine's: sample the next hop begins with       */
    uint64_t length;   /* of the input; written before the feed is ended  */

    /* The writer's. */
    struct resampler *resampler;
    float *early;   /* what came before the file began, holes as zeros: early_n of early_room, early_at of them passed on */
    size_t early_at, early_n, early_room;
    uint64_t zeros; /* silence that goes in before the raw samples */
    size_t raw_at, raw_n, ready_n;
    bool flushed;
    float raw[CHUNK], ready[CHUNK];
};

struct file_sink {
    struct sink sink;
    struct counters *counters;
    struct waker *engine;
    struct worker *writer;
    struct sound_file *file;
    int rate, source_rate, model_rate, n;
    uint64_t written;
    int64_t flushed_at;
    bool broken;
    bool late, placed; /* placed: the engine's: first is set */
    uint64_t first;
    const char *path;
    bool patient; /* who gives waits for room: nothing is to be kept */
    atomic_bool begun; /* what was there is replaced  */
    bool cut_off; /* what is there was, and is to be kept */
    char *mark;   /* PATH.recording, which is there as long as the file isn't finished; NULL: none */
    int mark_fd;  /* holds its lock; -1: none */
    float *block; /* (CHUNK, n) */
    struct lane lanes[];
};

static struct lane *lane_of(const struct sink *sink, int channel)
{
    return (struct lane *)&((const struct file_sink *)sink)->lanes[channel];
}

/* ---- Engine thread. ---- */

static size_t file_room(const struct sink *sink, int channel)
{
    return feed_room(lane_of(sink, channel)->feed);
}

/* The sample the file begins with. Where the stream ran before, that is the first one of the first channel to come, for
 * all. */
static uint64_t first_sample(struct file_sink *file, const struct delivery *hop)
{
    if (file->late && !file->placed) {
        file->first = hop->s0;
        file->placed = true;
    }
    return file->late ? file->first : hop->began;
}

static void file_write(struct sink *sink, int channel, const struct delivery *hop)
{
    struct file_sink *file = (struct file_sink *)sink;
    struct lane *lane = lane_of(sink, channel);
    uint64_t first = first_sample(file, hop), s0 = hop->s0 > first ? hop->s0 : first, end = hop->s0 + hop->n;
    if (s0 >= end) {
        return;
    }
    lane->expected = lane->expected > first ? lane->expected : first;
    if (s0 > lane->expected) {
        feed_skip(lane->feed, s0 - lane->expected);
    }
    size_t n = (size_t)(end - s0), fits = feed_write(lane->feed, hop->samples + (s0 - hop->s0), 1, n, hop->inf);
    count(&file->counters[channel], COUNTER_FILE_FULL, n - fits);
    lane->expected = end;
}

static void file_end(struct sink *sink, int channel, const struct hole *hole, uint64_t length)
{
    struct lane *lane = lane_of(sink, channel);
    lane->length = length;
    if (hole->to > lane->expected) {
        feed_skip(lane->feed, hole->to - lane->expected);
    }
    feed_end(lane->feed);
}

/* ---- Writer thread. ---- */

static bool refill(struct lane *lane)
{
    if (lane->zeros > 0 || lane->raw_at < lane->raw_n) {
        return true;
    }
    struct feed_note note;
    lane->raw_at = 0;
    lane->raw_n = feed_read(lane->feed, lane->raw, CHUNK, &note);
    lane->zeros = note.hole;
    return lane->zeros > 0 || lane->raw_n > 0;
}

/* Room for n more; false where memory or the time runs out. */
static bool grow_early(struct lane *lane, uint64_t n, size_t most)
{
    size_t room = lane->early_room > 0 ? lane->early_room : 16 * CHUNK;
    if (n > most - lane->early_n) {
        return false;
    }
    while (room - lane->early_n < n) {
        room *= 2;
    }
    float *early = room > lane->early_room ? realloc(lane->early, room * sizeof *early) : lane->early;
    if (early) {
        lane->early = early;
        lane->early_room = room;
    }
    return early != NULL;
}

/* Take what comes before the file begins: up to `most` samples, the rest stays in the feed. */
static void keep_early(struct lane *lane, size_t most)
{
    while (refill(lane) && grow_early(lane, lane->zeros + lane->raw_n, most)) {
        float *end = lane->early + lane->early_n + lane->zeros;
        memset(end - lane->zeros, 0, (size_t)lane->zeros * sizeof *end);
        memcpy(end, lane->raw, lane->raw_n * sizeof *end);
        lane->early_n += (size_t)lane->zeros + lane->raw_n;
        lane->zeros = 0;
        lane->raw_at = lane->raw_n;
    }
}

static void push_early(struct lane *lane)
{
    size_t used;
    lane->ready_n += resampler_push(lane->resampler, lane->early + lane->early_at, lane->early_n - lane->early_at, &used,
                                    lane->ready + lane->ready_n, CHUNK - lane->ready_n, 0);
    lane->early_at += used;
    if (lane->early_at == lane->early_n) {
        free(lane->early);
        lane->early = NULL;
    }
}

static void push(struct lane *lane)
{
    bool zeros = lane->zeros > 0;
    size_t n = zeros ? (lane->zeros < CHUNK ? (size_t)lane->zeros : CHUNK) : lane->raw_n - lane->raw_at, used;
    const float *in = zeros ? silence : lane->raw + lane->raw_at;
    lane->ready_n +=
        resampler_push(lane->resampler, in, n, &used, lane->ready + lane->ready_n, CHUNK - lane->ready_n, 0);
    lane->zeros -= zeros ? used : 0;
    lane->raw_at += zeros ? 0 : used;
}

/* Have as much ready as there is, up to a chunk. */
static void fill(struct lane *lane)
{
    while (lane->ready_n < CHUNK && (lane->early || refill(lane))) {
        (lane->early ? push_early : push)(lane);
    }
    if (lane->ready_n < CHUNK && !lane->flushed && feed_ended(lane->feed)) {
        size_t used, room = CHUNK - lane->ready_n;
        size_t n = resampler_push(lane->resampler, silence, 0, &used, lane->ready + lane->ready_n, room, 1);
        lane->ready_n += n;
        lane->flushed = n < room;
    }
}

static bool all_flushed(const struct file_sink *file)
{
    for (int i = 0; i < file->n; i++) {
        if (!file->lanes[i].flushed) {
            return false;
        }
    }
    return true;
}

/* The output is as long as the input: resampling there and back may give a few samples more. */
static size_t cut(const struct file_sink *file, size_t n)
{
    uint64_t from = (uint64_t)file->source_rate, to = (uint64_t)file->rate;
    uint64_t length = (file->lanes[0].length * to + from - 1) / from;
    uint64_t left = length > file->written ? length - file->written : 0;
    return n < left ? n : (size_t)left;
}

static void write_block(struct file_sink *file, size_t n)
{
    struct sound_file_error err;
    if (!file->broken && !sound_file_write(file->file, file->block, n, &err)) {
        log_line(LOG_ERROR, "%s; the rest of this file is lost", err.text);
        file->broken = true;
    }
    for (int i = 0; file->broken && i < file->n; i++) {
        count(&file->counters[i], COUNTER_FILE_ERROR, n);
    }
    file->written += n;
}

/* Write what every channel has; gives how much that was. */
static size_t write_ready(struct file_sink *file)
{
    size_t n = CHUNK;
    for (int i = 0; i < file->n; i++) {
        fill(&file->lanes[i]);
        n = file->lanes[i].ready_n < n ? file->lanes[i].ready_n : n;
    }
    for (int i = 0; i < file->n; i++) {
        struct lane *lane = &file->lanes[i];
        for (size_t k = 0; k < n; k++) {
            file->block[k * (size_t)file->n + (size_t)i] = lane->ready[k];
        }
        memmove(lane->ready, lane->ready + n, (lane->ready_n - n) * sizeof(float));
        lane->ready_n -= n;
    }
    if (n > 0) {
        write_block(file, feed_ended(file->lanes[0].feed) ? cut(file, n) : n);
    }
    return n;
}

static int64_t serve(void *item, int64_t now)
{
    struct file_sink *file = item;
    bool some = false;
    if (!atomic_load_explicit(&file->begun, memory_order_acquire)) {
        for (int i = 0; i < file->n && !file->patient; i++) {
            keep_early(&file->lanes[i], EARLY_SECONDS * (size_t)file->model_rate);
        }
        return now + PERIOD;
    }
    while (write_ready(file) > 0) {
        some = true;
    }
    if (some) {
        waker_wake(file->engine);
    }
    if (now - file->flushed_at >= FLUSH_PERIOD && !file->broken) {
        sound_file_flush(file->file);
        file->flushed_at = now;
    }
    return all_flushed(file) ? INT64_MAX : now + PERIOD;
}

/* ---- What kill -9 leaves. ---- */

/* PATH's name with the time it was last written to: clean.20261122T131500Z.wav, then clean.20261122T131500Z.1.wav. */
static bool name_kept(const char *path, const struct stat *was, int number, char *name, size_t size)
{
    const char *base = strrchr(path, '/'), *dot = strrchr(path, '.');
    size_t stem = dot && dot > (base ? base : path) ? (size_t)(dot - path) : strlen(path);
    char date[32], more[16] = "";
    struct tm tm;
    gmtime_r(&was->st_mtime, &tm);
    strftime(date, sizeof date, "%Y%m%dT%H%M%SZ", &tm);
    if (number > 0) {
        snprintf(more, sizeof more, ".%d", number);
    }
    return snprintf(name, size, "%.*s.%s%s%s", (int)stem, path, date, more, path + stem) < (int)size;
}

/* Never over a file. Not every file system (vfat) has links. */
static bool rename_to_free(const char *path, const char *name)
{
    return renameat2(AT_FDCWD, path, AT_FDCWD, name, RENAME_NOREPLACE) == 0 ||
           (errno != EEXIST && link(path, name) == 0 && unlink(path) == 0);
}

/* What was cut off goes on under another name. Where the path is a link it stays one, and the file is renamed. False: it is still
 * there. */
static bool keep_cut_off(const char *given)
{
    char path[PATH_MAX], name[PATH_MAX + 64];
    struct stat was;
    bool found = realpath(given, path) && stat(path, &was) == 0;
    if (!found && errno == ENOENT) {
        return true;
    }
    for (int i = 0; found && i < 1000 && name_kept(path, &was, i, name, sizeof name); i++) {
        if (rename_to_free(path, name)) {
            log_line(LOG_WARNING, "%s was cut off; what there is of it is %s now", given, name);
            return true;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    log_line(LOG_WARNING, "%s was cut off and can't be kept (%s): it is replaced", given, strerror(errno));
    return false;
}

/* Mark the file, which is ours by its lock, as begun, until file_close. A mark that was there is of one that was cut off: it
 * stays where nothing begins. Without a mark (a device, a folder that can't be written to, the mark of a file that has another
 * name by now and is still written) the file is replaced after a crash. */
static void set_mark(struct file_sink *file, bool there)
{
    char mark[1100];
    struct stat status;
    bool special = stat(file->path, &status) == 0 && !S_ISREG(status.st_mode);
    if (special || snprintf(mark, sizeof mark, "%s.recording", file->path) >= (int)sizeof mark) {
        return;
    }
    bool left = access(mark, F_OK) == 0;
    file->mark_fd = open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (file->mark_fd < 0 || flock(file->mark_fd, LOCK_EX | LOCK_NB) != 0) {
        log_line(LOG_WARNING, "%s: %s: what is recorded would be replaced after a crash", mark, strerror(errno));
        return;
    }
    file->cut_off = left && there;
    file->mark = strdup(mark);
}

static void clear_mark(struct file_sink *file)
{
    if (file->mark && (file->begun || !file->cut_off)) {
        unlink(file->mark);
    }
    if (file->mark_fd >= 0) {
        close(file->mark_fd);
    }
    free(file->mark);
}

/* ---- Set-up and the end. ---- */

static void file_close(struct sink *sink)
{
    struct file_sink *file = (struct file_sink *)sink;
    struct sound_file_error err;
    worker_remove(file->writer, file);
    if (file->begun && !file->broken && !sound_file_commit(file->file, &err)) {
        log_line(LOG_ERROR, "%s", err.text);
        count(&file->counters[0], COUNTER_FILE_ERROR, file->written > 0 ? file->written : 1); /* 0 would be no error */
    }
    if (file->begun && sound_file_deleted(file->file)) {
        log_line(LOG_WARNING, "%s: was deleted while it was written: what it held is gone", file->path);
    }
    clear_mark(file); /* before the lock goes: who finds it takes the file for one that was cut off */
    sound_file_close(file->file);
    for (int i = 0; i < file->n; i++) {
        feed_destroy(file->lanes[i].feed);
        resampler_destroy(file->lanes[i].resampler);
        free(file->lanes[i].early);
    }
    free(file->block);
    free(file);
}

static bool lane_init(struct lane *lane, int from, int to)
{
    lane->feed = feed_create((size_t)from * FEED_SECONDS);
    lane->resampler = resampler_create(from, to, RESAMPLER_LIVE);
    return lane->feed && lane->resampler;
}

static struct sound_file_info info_of(const struct file_sink *file)
{
    return (struct sound_file_info){.rate = file->rate, .channels = file->n, .length = -1};
}

static int file_begin(struct sink *sink, struct ssm_error *err)
{
    struct file_sink *file = (struct file_sink *)sink;
    const struct sound_file_info info = info_of(file);
    struct sound_file_error bad = {0};
    if (file->cut_off && keep_cut_off(file->path)) { /* what was reserved has another name now */
        sound_file_close(file->file);
        file->file = sound_file_reserve(file->path, &info, &bad);
        file->cut_off = false;
    }
    if (!file->file || !sound_file_begin(file->file, &bad)) {
        return refuse(err, bad.code, "%s", bad.text);
    }
    atomic_store_explicit(&file->begun, true, memory_order_release); /* the writer takes it from here */
    return 0;
}

static struct sink *file_open(const struct sink_setup *setup, struct ssm_error *err)
{
    size_t n = (size_t)setup->n_channels;
    struct file_sink *file = calloc(1, sizeof *file + n * sizeof *file->lanes);
    if (!file) {
        refuse_memory(err);
        return NULL;
    }
    file->sink.ops = &sink_file;
    file->counters = setup->counters;
    file->engine = setup->engine;
    file->writer = setup->writer;
    file->late = setup->late;
    file->patient = setup->patient;
    file->model_rate = setup->model->rate;
    file->source_rate = setup->source_rate;
    file->rate = setup->config->rate > 0 ? setup->config->rate : setup->source_rate;
    file->n = setup->n_channels;
    file->path = setup->config->path;
    file->mark_fd = -1;
    file->block = calloc(n * CHUNK, sizeof(float));
    bool ok = file->block != NULL;
    for (int i = 0; ok && i < file->n; i++) {
        ok = lane_init(&file->lanes[i], setup->model->rate, file->rate);
    }
    if (!ok) {
        refuse(err, 71, "out of memory for a file sink, or its rate is too far from the model's");
        goto fail;
    }
    const struct sound_file_info info = info_of(file);
    struct sound_file_error bad;
    bool there = access(file->path, F_OK) == 0;
    file->file = sound_file_reserve(file->path, &info, &bad);
    if (!file->file) {
        refuse(err, bad.code, "%s", bad.text);
        goto fail;
    }
    set_mark(file, there);
    if (worker_add(file->writer, serve, file) < 0) {
        refuse_memory(err);
        goto fail;
    }
    return &file->sink;
fail:
    file_close(&file->sink);
    return NULL;
}

const struct sink_ops sink_file = {.name = "file",
                                   .takes = SINK_TAKES_SAMPLES,
                                   .open = file_open,
                                   .begin = file_begin,
                                   .room = file_room,
                                   .write = file_write,
                                   .end = file_end,
                                   .close = file_close};
