/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/labels.h"
#include "daemon/log.h"
#include "daemon/sink.h"
#include "daemon/waker.h"
#include "daemon/worker.h"
#include "model/refuse.h"

/* The engine thread makes events of scores; the writer thread makes lines of them, 20 times a second or when woken. */
enum { QUEUE_LEAST = 256, QUEUE_HOPS = 16, PERIOD = 50000000, LAST_MS = 1000 };

/* One channel's queue of events that ended. */
struct lane {
    struct jsonl_sink *jsonl;
    struct events *events;
    double origin;              /* engine's: of the last row                               */
    _Atomic uint64_t put, taken;
    atomic_bool ended;
    struct queued {
        struct event event;
        double origin;
    } *queue; /* (jsonl->queue) */
};

struct jsonl_sink {
    struct sink sink;
    const struct labels *labels;
    struct counters *counters;
    struct waker *engine;
    struct worker *writer;
    const char *path, *pipeline;
    const int *channels;
    FILE *file;
    int rate, hop, n;
    uint64_t queue; /* events of a lane that find room */
    bool told, torn; /* that it couldn't be written; in the middle of a line */
    bool made;       /* the file, by us */
    atomic_bool begun; /* lines may be added */
    struct lane lanes[];
};

/* ---- Engine thread. ---- */

static uint64_t queue_room(const struct lane *lane)
{
    return lane->jsonl->queue - (atomic_load_explicit(&lane->put, memory_order_relaxed) -
                                   atomic_load_explicit(&lane->taken, memory_order_acquire));
}

static void queue_event(void *context, const struct event *event)
{
    struct lane *lane = context;
    struct jsonl_sink *jsonl = lane->jsonl;
    if (event->kind == EVENT_BEGIN) {
        return;
    }
    if (queue_room(lane) == 0) {
        count(&jsonl->counters[lane - jsonl->lanes], COUNTER_EVENT_FULL, 1);
        return;
    }
    uint64_t put = atomic_load_explicit(&lane->put, memory_order_relaxed);
    lane->queue[put % jsonl->queue] = (struct queued){*event, lane->origin};
    atomic_store_explicit(&lane->put, put + 1, memory_order_release);
}

/* Each label ends one event a hop at most, and one more at the end. */
static size_t jsonl_room(const struct sink *sink, int channel)
{
    const struct jsonl_sink *jsonl = (const struct jsonl_sink *)sink;
    uint64_t hops = queue_room(&jsonl->lanes[channel]) / (uint64_t)jsonl->labels->n;
    return hops > 1 ? (size_t)(hops - 1) * (size_t)jsonl->hop : 0;
}

static void jsonl_write(struct sink *sink, int channel, const struct delivery *hop)
{
    struct lane *lane = &((struct jsonl_sink *)sink)->lanes[channel];
    if (hop->hole.to > hop->hole.from) {
        events_cut(lane->events);
    }
    lane->origin = hop->origin;
    events_push(lane->events, hop->s0, hop->n, hop->scores);
}

static void jsonl_end(struct sink *sink, int channel, const struct hole *hole, uint64_t length)
{
    (void)hole, (void)length;
    struct lane *lane = &((struct jsonl_sink *)sink)->lanes[channel];
    events_cut(lane->events);
    atomic_store_explicit(&lane->ended, true, memory_order_release);
}

/* A pipe that nobody reads is refused rather than waited for; NULL with errno. */
static FILE *open_lines(const char *path)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0666);
    FILE *file = fd >= 0 && fcntl(fd, F_SETFL, O_APPEND) == 0 ? fdopen(fd, "a") : NULL;
    if (fd >= 0 && !file) {
        close(fd);
    }
    return file;
}

/* ---- Writer thread. ---- */

/* Who moved the file away, as logrotate does, gets what comes from now on in a new one. */
static void follow_path(struct jsonl_sink *jsonl)
{
    struct stat open, there;
    bool regular = jsonl->file != stdout && fstat(fileno(jsonl->file), &open) == 0 && S_ISREG(open.st_mode);
    bool same = regular && stat(jsonl->path, &there) == 0 && there.st_ino == open.st_ino && there.st_dev == open.st_dev;
    FILE *file = regular && !same ? open_lines(jsonl->path) : NULL;
    if (file) {
        fclose(jsonl->file);
        jsonl->file = file;
    }
}

/* A regular file's bytes; -1: it is none, or another's. */
static off_t find_size(const struct jsonl_sink *jsonl)
{
    struct stat found;
    bool ours = jsonl->file != stdout && fstat(fileno(jsonl->file), &found) == 0 && S_ISREG(found.st_mode);
    return ours ? found.st_size : -1;
}

/* Whoever finds room later begins a new line: what there is of one goes. */
static void take_back(struct jsonl_sink *jsonl, off_t size)
{
    int error = errno;
    __fpurge(jsonl->file);
    clearerr(jsonl->file);
    if (size < 0 || ftruncate(fileno(jsonl->file), size) != 0) {
        jsonl->torn = true;
    }
    errno = error;
}

static void write_event(struct jsonl_sink *jsonl, int channel, const struct queued *queued)
{
    off_t size = find_size(jsonl);
    uint8_t room[LABELS_EVENT_MAX];
    struct wire_bytes bytes = {.at = room, .room = sizeof room};
    const struct labels_source source = {jsonl->pipeline, jsonl->channels[channel], jsonl->rate, queued->origin};
    labels_put_event(&bytes, jsonl->labels, &queued->event, &source);
    fputs(jsonl->torn ? "\n" : "", jsonl->file);
    wire_json(jsonl->file, bytes.at, bytes.n);
    fputc('\n', jsonl->file);
    bool whole = fflush(jsonl->file) == 0 && !ferror(jsonl->file); /* each line on its own: a crash leaves whole ones */
    jsonl->torn = jsonl->torn && !whole;
    if (whole) {
        return;
    }
    take_back(jsonl, size);
    if (!jsonl->told) {
        log_line(LOG_ERROR, "%s: %s; events are lost", jsonl->path, strerror(errno));
        jsonl->told = true;
    }
    count(&jsonl->counters[channel], COUNTER_FILE_ERROR, 1);
}

/* Whoever reads a pipe may stop: then events wait in their queues, and not this thread, which writes recordings too. A line is
 * shorter than the page that poll promises. */
static bool takes_a_line(const struct jsonl_sink *jsonl, int timeout_ms)
{
    struct pollfd out = {.fd = fileno(jsonl->file), .events = POLLOUT};
    return poll(&out, 1, timeout_ms) != 0;
}

/* Gives how many were written; each may wait for so long. */
static uint64_t write_events(struct jsonl_sink *jsonl, int channel, int timeout_ms)
{
    struct lane *lane = &jsonl->lanes[channel];
    uint64_t put = atomic_load_explicit(&lane->put, memory_order_acquire);
    uint64_t first = atomic_load_explicit(&lane->taken, memory_order_relaxed), taken = first;
    if (taken < put) {
        follow_path(jsonl);
    }
    while (taken < put && takes_a_line(jsonl, timeout_ms)) {
        write_event(jsonl, channel, &lane->queue[taken % jsonl->queue]);
        atomic_store_explicit(&lane->taken, ++taken, memory_order_release);
    }
    return taken - first;
}

static int64_t serve(void *item, int64_t now)
{
    struct jsonl_sink *jsonl = item;
    bool some = false, open = false;
    if (!atomic_load_explicit(&jsonl->begun, memory_order_acquire)) {
        return now + PERIOD;
    }
    for (int i = 0; i < jsonl->n; i++) {
        open = !atomic_load_explicit(&jsonl->lanes[i].ended, memory_order_acquire) || open;
        some = write_events(jsonl, i, 0) > 0 || some;
    }
    if (some) {
        waker_wake(jsonl->engine);
    }
    return open ? now + PERIOD : INT64_MAX;
}

/* Who reads has a last second for what still waits. */
static void finish(struct jsonl_sink *jsonl)
{
    uint64_t left = 0;
    for (int i = 0; i < jsonl->n && jsonl->lanes[i].queue; i++) {
        struct lane *lane = &jsonl->lanes[i];
        write_events(jsonl, i, left > 0 ? 0 : LAST_MS);
        uint64_t n = atomic_load(&lane->put) - atomic_load(&lane->taken);
        count(&jsonl->counters[i], COUNTER_FILE_ERROR, n);
        left += n;
    }
    if (left > 0) {
        log_line(LOG_ERROR, "%s: nobody reads it; %llu events are lost", jsonl->path, (unsigned long long)left);
    }
}

/* ---- Set-up and the end. ---- */

static void jsonl_close(struct sink *sink)
{
    struct jsonl_sink *jsonl = (struct jsonl_sink *)sink;
    worker_remove(jsonl->writer, jsonl);
    if (jsonl->file && jsonl->begun) {
        finish(jsonl);
    } else if (jsonl->made) {
        unlink(jsonl->path);
    }
    for (int i = 0; i < jsonl->n; i++) {
        events_destroy(jsonl->lanes[i].events);
        free(jsonl->lanes[i].queue);
    }
    if (jsonl->file && jsonl->file != stdout) {
        fclose(jsonl->file);
    }
    free(jsonl);
}

static bool lane_init(struct jsonl_sink *jsonl, struct lane *lane)
{
    lane->jsonl = jsonl;
    lane->events = labels_events(jsonl->labels, jsonl->rate, queue_event, lane);
    lane->queue = calloc(jsonl->queue, sizeof *lane->queue);
    return lane->events && lane->queue;
}

static int jsonl_begin(struct sink *sink, struct ssm_error *err)
{
    (void)err;
    atomic_store_explicit(&((struct jsonl_sink *)sink)->begun, true, memory_order_release);
    return 0;
}

static struct sink *jsonl_open(const struct sink_setup *setup, struct ssm_error *err)
{
    size_t n = (size_t)setup->n_channels;
    struct jsonl_sink *jsonl = calloc(1, sizeof *jsonl + n * sizeof *jsonl->lanes);
    if (!jsonl) {
        refuse_memory(err);
        return NULL;
    }
    jsonl->sink.ops = &sink_jsonl;
    jsonl->labels = setup->labels;
    jsonl->counters = setup->counters;
    jsonl->engine = setup->engine;
    jsonl->writer = setup->writer;
    jsonl->path = setup->config->path;
    jsonl->pipeline = setup->pipeline;
    jsonl->channels = setup->channels;
    jsonl->rate = setup->rate;
    jsonl->hop = setup->model->hop;
    jsonl->queue = (uint64_t)jsonl->labels->n * QUEUE_HOPS;
    jsonl->queue = jsonl->queue > QUEUE_LEAST ? jsonl->queue : QUEUE_LEAST;
    jsonl->n = setup->n_channels;
    bool ok = true;
    for (int i = 0; ok && i < jsonl->n; i++) {
        ok = lane_init(jsonl, &jsonl->lanes[i]);
    }
    if (!ok) {
        refuse_memory(err);
        goto fail;
    }
    jsonl->made = strcmp(jsonl->path, "-") != 0 && access(jsonl->path, F_OK) != 0 && errno == ENOENT;
    jsonl->file = strcmp(jsonl->path, "-") == 0 ? stdout : open_lines(jsonl->path);
    jsonl->made = jsonl->made && jsonl->file;
    if (!jsonl->file) {
        refuse(err, 73, "%s: %s", jsonl->path, errno == ENXIO ? "a pipe that nobody reads" : strerror(errno));
        goto fail;
    }
    if (worker_add(setup->writer, serve, jsonl) < 0) {
        refuse_memory(err);
        goto fail;
    }
    return &jsonl->sink;
fail:
    jsonl_close(&jsonl->sink);
    return NULL;
}

const struct sink_ops sink_jsonl = {.name = "jsonl",
                                    .takes = SINK_TAKES_SCORES,
                                    .open = jsonl_open,
                                    .begin = jsonl_begin,
                                    .room = jsonl_room,
                                    .write = jsonl_write,
                                    .end = jsonl_end,
                                    .close = jsonl_close};
