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
#include "dsp/spare.h"
#include "model/refuse.h"

/* A turn looks at so many streams at most. A state is copied after half a second of its stream, which leaves as long to
 * write it. */
enum { TURN_LOOKS = 256, NAME_BYTES = 96, PATH_BYTES = 1200 };

struct kept {
    struct kept *next, *before; /* the engine's: a ring              */
    struct stream *stream;
    char name[NAME_BYTES];
    _Atomic uint64_t *mark; /* in memory shared with a file          */
    uint64_t marked;        /* what stood there at start             */
    uint64_t period, due;   /* in samples taken                      */
};

/* A state on its way to the disk. */
struct copy {
    atomic_bool full;
    char name[NAME_BYTES];
    struct record record;
    uint8_t *bytes; /* the record, its state in place */
};

/* Buffers of one size. Larger ones go in front; what waits in the others is still written. */
struct copies {
    struct copies *next;
    size_t room;
    struct copy at[CHECKPOINT_COPIES];
};

struct checkpoint {
    char folder[1024];
    struct kept *next; /* the engine's: to look at; NULL: none */
    int n;             /* the same: how many                   */
    _Atomic(struct copies *) copies;
    struct worker *worker;
    int lock;  /* the folder's descriptor: one daemon a folder */
    bool told; /* that the disk takes nothing */
};

static void make_path(const struct checkpoint *checkpoint, const char *name, const char *ending, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%s.%s", checkpoint->folder, name, ending);
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
    make_path(checkpoint, copy->name, "state", path);
    make_path(checkpoint, copy->name, "new", unfinished);
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
    for (struct copies *copies = atomic_load(&checkpoint->copies); copies; copies = copies->next) {
        for (int i = 0; i < CHECKPOINT_COPIES; i++) {
            struct copy *copy = &copies->at[i];
            if (atomic_load_explicit(&copy->full, memory_order_acquire)) {
                save(checkpoint, copy);
                atomic_store_explicit(&copy->full, false, memory_order_release);
            }
        }
    }
    return INT64_MAX;
}

/* ---- Set-up. ---- */

struct checkpoint *checkpoint_open(const char *folder, struct ssm_error *err)
{
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) {
        refuse_memory(err);
        return NULL;
    }
    checkpoint->lock = -1;
    snprintf(checkpoint->folder, sizeof checkpoint->folder, "%s", folder);
    checkpoint->worker = worker_create();
    if (!checkpoint->worker || worker_add(checkpoint->worker, serve, checkpoint) < 0) {
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

static void copies_destroy(struct copies *copies)
{
    for (int i = 0; copies && i < CHECKPOINT_COPIES; i++) {
        free(copies->at[i].bytes);
    }
    free(copies);
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (!checkpoint) {
        return;
    }
    worker_destroy(checkpoint->worker);
    for (struct copies *copies = atomic_load(&checkpoint->copies), *next; copies; copies = next) {
        next = copies->next;
        copies_destroy(copies);
    }
    if (checkpoint->lock >= 0) {
        close(checkpoint->lock);
    }
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

int checkpoint_fit(struct checkpoint *checkpoint, size_t state_size, struct ssm_error *err)
{
    struct copies *now = atomic_load(&checkpoint->copies);
    size_t size = record_size(0, state_size);
    if (now && now->room >= size) {
        return 0;
    }
    struct copies *copies = calloc(1, sizeof *copies);
    bool ok = copies != NULL;
    for (int i = 0; ok && i < CHECKPOINT_COPIES; i++) {
        ok = (copies->at[i].bytes = malloc(size)) != NULL;
    }
    if (!ok) {
        copies_destroy(copies);
        return refuse_memory(err);
    }
    copies->room = size;
    copies->next = now;
    atomic_store(&checkpoint->copies, copies);
    return 0;
}

struct kept *checkpoint_keep(struct checkpoint *checkpoint, struct stream *stream, const char *name, int rate,
                             struct ssm_error *err)
{
    char path[PATH_BYTES];
    struct kept *kept = checkpoint_fit(checkpoint, stream_state_size(stream), err) == 0 ? calloc(1, sizeof *kept) : NULL;
    if (!kept) {
        refuse_memory(err);
        return NULL;
    }
    kept->stream = stream;
    snprintf(kept->name, sizeof kept->name, "%s", name);
    kept->period = (uint64_t)rate / 2;
    make_path(checkpoint, name, "out", path);
    if (!(kept->mark = map_mark(path))) {
        refuse(err, 73, "state_dir: %s can't be made: %s", path, strerror(errno));
        free(kept);
        return NULL;
    }
    kept->marked = atomic_load(kept->mark);
    return kept;
}

void checkpoint_release(struct kept *kept)
{
    if (kept) {
        munmap((void *)kept->mark, sizeof(uint64_t));
        free(kept);
    }
}

/* Up to `room` bytes; 0: there is no such file, it is longer, or it can't be read, with *err. */
static size_t read_file(const char *path, uint8_t *bytes, size_t room, struct ssm_error *err)
{
    FILE *file = fopen(path, "rb");
    size_t n = file ? fread(bytes, 1, room, file) : 0;
    n = file && fgetc(file) == EOF ? n : 0;
    if (file ? ferror(file) : errno != ENOENT) {
        refuse(err, spare_code(66), "%s can't be read: %s", path, strerror(errno));
        n = 0;
    }
    if (file) {
        fclose(file);
    }
    return n;
}

bool checkpoint_find(struct checkpoint *checkpoint, const struct kept *kept, struct record *record, double *age_s,
                     struct ssm_error *err)
{
    char path[PATH_BYTES];
    struct copies *copies = atomic_load(&checkpoint->copies);
    uint8_t *bytes = copies->at[0].bytes;
    make_path(checkpoint, kept->name, "state", path);
    size_t size = read_file(path, bytes, copies->room, err);
    if (size == 0 || record_decode(record, clock_utc_offset(), bytes, size, err) < 0) {
        return false;
    }
    *age_s = (double)(clock_now() - record->captured) / 1e9;
    if (!(*age_s >= 0 && *age_s <= CHECKPOINT_AGE_S)) {
        refuse(err, 65, "a state that is %.0f s old", *age_s);
        return false;
    }
    record->out = kept->marked > record->out ? kept->marked : record->out;
    return true;
}

void checkpoint_forget(const struct checkpoint *checkpoint, const struct kept *kept)
{
    char path[PATH_BYTES];
    make_path(checkpoint, kept->name, "state", path);
    unlink(path);
    atomic_store(kept->mark, 0);
}

/* ---- Running. ---- */

void checkpoint_join(struct checkpoint *checkpoint, struct kept *kept)
{
    struct kept *next = checkpoint->next ? checkpoint->next : kept;
    kept->next = next;
    kept->before = next == kept ? kept : next->before;
    kept->before->next = next->before = kept;
    checkpoint->next = next;
    checkpoint->n++;
    stream_mark(kept->stream, kept->mark);
}

void checkpoint_part(struct checkpoint *checkpoint, struct kept *kept)
{
    stream_mark(kept->stream, NULL);
    kept->before->next = kept->next;
    kept->next->before = kept->before;
    checkpoint->next = kept->next == kept ? NULL : kept->next;
    checkpoint->n--;
}

int checkpoint_start(struct checkpoint *checkpoint, struct ssm_error *err)
{
    return worker_start(checkpoint->worker) == 0 ? 0 : refuse(err, 71, "can't start the thread that keeps states");
}

void checkpoint_stop(struct checkpoint *checkpoint)
{
    worker_stop(checkpoint->worker);
}

static struct copy *free_copy(struct copies *copies)
{
    for (int i = 0; i < CHECKPOINT_COPIES; i++) {
        if (!atomic_load_explicit(&copies->at[i].full, memory_order_acquire)) {
            return &copies->at[i];
        }
    }
    return NULL;
}

/* Copy a stream's state; false: there is no room for it now. */
static bool take(struct copies *copies, const struct kept *kept)
{
    struct copy *copy = free_copy(copies);
    if (!copy) {
        return false;
    }
    memcpy(copy->name, kept->name, sizeof copy->name);
    if (stream_copy(kept->stream, &copy->record, copy->bytes + RECORD_HEADER, copies->room - RECORD_HEADER) == SSM_OK) {
        atomic_store_explicit(&copy->full, true, memory_order_release);
    }
    return true;
}

void checkpoint_turn(struct checkpoint *checkpoint)
{
    bool taken = false;
    for (int looks = 0; checkpoint && looks < TURN_LOOKS && looks < checkpoint->n; looks++) {
        struct kept *kept = checkpoint->next;
        uint64_t samples = stream_samples(kept->stream);
        if (samples > 0 && samples >= kept->due && !stream_ended(kept->stream)) {
            if (!take(atomic_load(&checkpoint->copies), kept)) {
                break;
            }
            kept->due = samples + kept->period;
            taken = true;
        }
        checkpoint->next = kept->next;
    }
    if (taken) {
        worker_wake(checkpoint->worker);
    }
}
