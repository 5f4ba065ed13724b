/* SPDX-License-Identifier: MIT */
#include "daemon/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/log.h"
#include "daemon/worker.h"
#include "dsp/clock.h"
#include "model/refuse.h"

/* A turn looks at so many streams at most. A state is copied after half a second of its stream, which leaves as long to
 * write it. */
enum { TURN_LOOKS = 256, NAME_BYTES = 96, PATH_BYTES = 1200 };

struct entry {
    char name[NAME_BYTES];
    _Atomic uint64_t *mark; /* in memory shared with a file */
    uint64_t marked;        /* what stood there at start    */
    size_t state_size;
    uint64_t period, due;   /* in samples taken             */
    bool kept;
};

/* A state on its way to the disk. */
struct copy {
    atomic_bool full;
    int stream;
    struct record record;
    uint8_t *bytes; /* the record, its state in place */
};

struct checkpoint {
    char folder[1024];
    struct entry *entries;
    int n, next; /* next: the engine's, the stream to look at */
    size_t room; /* of a copy */
    struct copy copies[CHECKPOINT_COPIES];
    struct worker *worker;
    int lock;  /* the folder's descriptor: one daemon a folder */
    bool told; /* that the disk takes nothing */
};

static void make_path(const struct checkpoint *checkpoint, const struct entry *entry, const char *ending, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%s.%s", checkpoint->folder, entry->name, ending);
}

/* ---- Worker's thread. ---- */

static bool write_file(const char *path, const uint8_t *bytes, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0;
    for (ssize_t n; ok && size > 0; bytes += n, size -= (size_t)n) {
        n = write(fd, bytes, size);
        ok = n > 0;
        n = ok ? n : 0;
    }
    return fd >= 0 && close(fd) == 0 && ok;
}

static void save(struct checkpoint *checkpoint, struct copy *copy)
{
    char path[PATH_BYTES], unfinished[PATH_BYTES];
    const struct entry *entry = &checkpoint->entries[copy->stream];
    make_path(checkpoint, entry, "state", path);
    make_path(checkpoint, entry, "new", unfinished);
    record_encode(&copy->record, clock_utc_offset(), copy->bytes);
    bool ok = write_file(unfinished, copy->bytes, record_size(0, copy->record.state_size)) && rename(unfinished, path) == 0;
    if (!ok && !checkpoint->told) {
        log_line(LOG_ERROR, "%s: states can't be kept: %s; a restart will begin anew", path, strerror(errno));
    }
    checkpoint->told = !ok;
}

static int64_t serve(void *item, int64_t now)
{
    (void)now;
    struct checkpoint *checkpoint = item;
    for (int i = 0; i < CHECKPOINT_COPIES; i++) {
        struct copy *copy = &checkpoint->copies[i];
        if (atomic_load_explicit(&copy->full, memory_order_acquire)) {
            save(checkpoint, copy);
            atomic_store_explicit(&copy->full, false, memory_order_release);
        }
    }
    return INT64_MAX;
}

/* ---- Set-up. ---- */

struct checkpoint *checkpoint_open(const char *folder, int streams, struct ssm_error *err)
{
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) {
        refuse_memory(err);
        return NULL;
    }
    checkpoint->lock = -1;
    snprintf(checkpoint->folder, sizeof checkpoint->folder, "%s", folder);
    checkpoint->n = streams;
    checkpoint->entries = calloc((size_t)streams + 1, sizeof *checkpoint->entries);
    checkpoint->worker = worker_create();
    if (!checkpoint->entries || !checkpoint->worker || worker_add(checkpoint->worker, serve, checkpoint) < 0) {
        refuse_memory(err);
        goto fail;
    }
    if ((mkdir(folder, 0700) < 0 && errno != EEXIST) || access(folder, R_OK | W_OK | X_OK) < 0) {
        refuse(err, 73, "state_dir: %s can't be made or written to: %s", folder, strerror(errno));
        goto fail;
    }
    checkpoint->lock = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (checkpoint->lock < 0 || flock(checkpoint->lock, LOCK_EX | LOCK_NB) < 0) {
        refuse(err, 73, "state_dir: %s is no folder, or another ssmd keeps its states there", folder);
        goto fail;
    }
    return checkpoint;
fail:
    checkpoint_close(checkpoint);
    return NULL;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (!checkpoint) {
        return;
    }
    worker_destroy(checkpoint->worker);
    for (int i = 0; i < CHECKPOINT_COPIES; i++) {
        free(checkpoint->copies[i].bytes);
    }
    for (int i = 0; checkpoint->entries && i < checkpoint->n; i++) {
        if (checkpoint->entries[i].mark) {
            munmap((void *)checkpoint->entries[i].mark, sizeof(uint64_t));
        }
    }
    if (checkpoint->lock >= 0) {
        close(checkpoint->lock);
    }
    free(checkpoint->entries);
    free(checkpoint);
}

static _Atomic uint64_t *map_mark(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return NULL;
    }
    void *at = ftruncate(fd, sizeof(uint64_t)) == 0
                   ? mmap(NULL, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                   : MAP_FAILED;
    close(fd);
    return at == MAP_FAILED ? NULL : at;
}

int checkpoint_add(struct checkpoint *checkpoint, struct engine_thread *engine, int stream, const char *name, int rate,
                   struct ssm_error *err)
{
    struct entry *entry = &checkpoint->entries[stream];
    char path[PATH_BYTES];
    snprintf(entry->name, sizeof entry->name, "%s", name);
    entry->state_size = stream_state_size(engine_stream(engine, stream));
    entry->period = (uint64_t)rate / 2;
    size_t size = record_size(0, entry->state_size);
    for (int i = 0; i < CHECKPOINT_COPIES && size > checkpoint->room; i++) {
        free(checkpoint->copies[i].bytes);
        if (!(checkpoint->copies[i].bytes = malloc(size))) {
            return refuse_memory(err);
        }
    }
    checkpoint->room = size > checkpoint->room ? size : checkpoint->room;
    make_path(checkpoint, entry, "out", path);
    if (!(entry->mark = map_mark(path))) {
        return refuse(err, 73, "state_dir: %s can't be made: %s", path, strerror(errno));
    }
    entry->marked = atomic_load(entry->mark);
    entry->kept = true;
    stream_mark(engine_stream(engine, stream), entry->mark);
    return 0;
}

/* Up to `room` bytes; 0: there is no such file, or it is longer. */
static size_t read_file(const char *path, uint8_t *bytes, size_t room)
{
    size_t n = 0;
    FILE *file = fopen(path, "rb");
    if (file) {
        n = fread(bytes, 1, room, file);
        n = fgetc(file) == EOF ? n : 0;
        fclose(file);
    }
    return n;
}

bool checkpoint_find(struct checkpoint *checkpoint, int stream, struct record *record, double *age_s, struct ssm_error *err)
{
    char path[PATH_BYTES];
    const struct entry *entry = &checkpoint->entries[stream];
    uint8_t *bytes = checkpoint->copies[0].bytes;
    make_path(checkpoint, entry, "state", path);
    size_t size = read_file(path, bytes, checkpoint->room);
    if (size == 0 || record_decode(record, clock_utc_offset(), bytes, size, err) < 0) {
        return false;
    }
    *age_s = (double)(clock_now() - record->captured) / 1e9;
    if (!(*age_s >= 0 && *age_s <= CHECKPOINT_AGE_S)) {
        refuse(err, 65, "a state that is %.0f s old", *age_s);
        return false;
    }
    record->out = entry->marked > record->out ? entry->marked : record->out;
    return true;
}

void checkpoint_forget(struct checkpoint *checkpoint, int stream)
{
    char path[PATH_BYTES];
    make_path(checkpoint, &checkpoint->entries[stream], "state", path);
    unlink(path);
    atomic_store(checkpoint->entries[stream].mark, 0);
}

/* ---- Running. ---- */

int checkpoint_start(struct checkpoint *checkpoint, struct ssm_error *err)
{
    return worker_start(checkpoint->worker) == 0 ? 0 : refuse(err, 71, "can't start the thread that keeps states");
}

void checkpoint_stop(struct checkpoint *checkpoint)
{
    worker_stop(checkpoint->worker);
}

static struct copy *free_copy(struct checkpoint *checkpoint)
{
    for (int i = 0; i < CHECKPOINT_COPIES; i++) {
        if (!atomic_load_explicit(&checkpoint->copies[i].full, memory_order_acquire)) {
            return &checkpoint->copies[i];
        }
    }
    return NULL;
}

/* Copy a stream's state; false: there is no room for it now. */
static bool take(struct checkpoint *checkpoint, struct engine_thread *engine, int stream)
{
    struct copy *copy = free_copy(checkpoint);
    if (!copy) {
        return false;
    }
    struct entry *entry = &checkpoint->entries[stream];
    copy->stream = stream;
    if (stream_copy(engine_stream(engine, stream), &copy->record, copy->bytes + RECORD_HEADER, entry->state_size) == SSM_OK) {
        atomic_store_explicit(&copy->full, true, memory_order_release);
    }
    return true;
}

void checkpoint_turn(struct checkpoint *checkpoint, struct engine_thread *engine)
{
    bool taken = false;
    for (int looks = 0; checkpoint && looks < TURN_LOOKS && looks < checkpoint->n; looks++) {
        struct entry *entry = &checkpoint->entries[checkpoint->next];
        uint64_t samples = stream_samples(engine_stream(engine, checkpoint->next));
        if (entry->kept && samples > 0 && samples >= entry->due && !stream_ended(engine_stream(engine, checkpoint->next))) {
            if (!take(checkpoint, engine, checkpoint->next)) {
                break;
            }
            entry->due = samples + entry->period;
            taken = true;
        }
        checkpoint->next = checkpoint->next + 1 < checkpoint->n ? checkpoint->next + 1 : 0;
    }
    if (taken) {
        worker_wake(checkpoint->worker);
    }
}
