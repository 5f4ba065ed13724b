/* SPDX-License-Identifier: MIT */
#include "daemon/link.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dsp/ring.h"
#include "model/refuse.h"

enum { LINE = 64, FD_MEMORY = 3, FD_SOCKET = 4, FD_FIRST_OTHER = 5, FD_OUT_OF_THE_WAY = 10 };

static bool can_help;

/* ---- Memory. ---- */

static size_t head_bytes(void)
{
    return (sizeof(struct link) + LINE - 1) / LINE * LINE;
}

static size_t bytes_for(int n_channels)
{
    return head_bytes() + (size_t)n_channels * ring_bytes(LINK_SAMPLES);
}

static void *map(int fd, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

struct ring *link_ring(struct link *link, int channel)
{
    return (struct ring *)((char *)link + head_bytes() + (size_t)channel * ring_bytes(LINK_SAMPLES));
}

struct link *link_create(int n_channels, int *fd)
{
    size_t bytes = bytes_for(n_channels);
    *fd = memfd_create("ssmd-sound", MFD_CLOEXEC);
    struct link *link = *fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0 ? map(*fd, bytes) : NULL;
    if (!link) {
        if (*fd >= 0) {
            close(*fd);
        }
        return NULL;
    }
    link->n_channels = n_channels;
    for (int i = 0; i < n_channels; i++) {
        ring_place(link_ring(link, i), LINK_SAMPLES);
    }
    return link;
}

struct link *link_map(int fd)
{
    struct stat stat;
    bool fits = fstat(fd, &stat) == 0 && (size_t)stat.st_size >= bytes_for(0);
    struct link *link = fits ? map(fd, (size_t)stat.st_size) : NULL;
    if (link && (size_t)stat.st_size != bytes_for(link->n_channels)) {
        munmap(link, (size_t)stat.st_size);
        return NULL;
    }
    return link;
}

void link_unmap(struct link *link)
{
    if (link) {
        munmap(link, bytes_for(link->n_channels));
    }
}

/* ---- Helpers. ---- */

bool link_is_helper(int argc, char **argv, int *memory, int *socket)
{
    can_help = true;
    *memory = FD_MEMORY;
    *socket = FD_SOCKET;
    return argc == 2 && strcmp(argv[1], LINK_ARGUMENT) == 0;
}

/* Above those that a helper has, so that no dup2 closes what a later one needs. */
static int out_of_the_way(int fd)
{
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, FD_OUT_OF_THE_WAY);
    close(fd);
    return moved;
}

static int spawn(struct helper *helper, int memory, int socket, int errors)
{
    char *const arguments[] = {"ssmd-sound", LINK_ARGUMENT, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&actions, 0, 1);
    posix_spawn_file_actions_adddup2(&actions, errors, 2);
    posix_spawn_file_actions_adddup2(&actions, memory, FD_MEMORY);
    posix_spawn_file_actions_adddup2(&actions, socket, FD_SOCKET);
    posix_spawn_file_actions_addclosefrom_np(&actions, FD_FIRST_OTHER);
    int error = posix_spawn(&helper->pid, "/proc/self/exe", &actions, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    helper->pid = error == 0 ? helper->pid : 0;
    errno = error;
    return error == 0 ? 0 : -1;
}

int link_start_helper(struct helper *helper, struct link *link, int fd, struct ssm_error *err)
{
    int sockets[2] = {-1, -1}, errors[2] = {-1, -1}, memory = fcntl(fd, F_DUPFD_CLOEXEC, FD_OUT_OF_THE_WAY);
    *helper = (struct helper){.socket = -1, .errors = -1};
    if (!can_help) {
        close(memory);
        return refuse(err, 70, "this program opens no sound devices");
    }
    link->daemon = getpid();
    atomic_store(&link->pending, false);
    bool ok = memory >= 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0 &&
              pipe2(errors, O_CLOEXEC | O_NONBLOCK) == 0;
    sockets[1] = ok ? out_of_the_way(sockets[1]) : sockets[1];
    errors[1] = ok ? out_of_the_way(errors[1]) : errors[1];
    helper->socket = sockets[0];
    helper->errors = errors[0];
    ok = ok && spawn(helper, memory, sockets[1], errors[1]) == 0;
    int error = errno;
    close(memory);
    close(sockets[1]);
    close(errors[1]);
    if (!ok) {
        link_end_helper(helper);
        return refuse(err, 71, "can't start a process for a sound device: %s", strerror(error));
    }
    return 0;
}

void link_end_helper(struct helper *helper)
{
    if (helper->pid > 0) {
        kill(helper->pid, SIGKILL);
        waitpid(helper->pid, NULL, 0);
    }
    if (helper->socket >= 0) {
        close(helper->socket);
    }
    if (helper->errors >= 0) {
        close(helper->errors);
    }
    *helper = (struct helper){.socket = -1, .errors = -1};
}

/* ---- The device's thread. ---- */

void link_say(struct link *link, int socket, enum link_word word)
{
    char byte = (char)word;
    if (word != LINK_WAKE || !atomic_exchange(&link->pending, true)) {
        ssize_t n = send(socket, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)n; /* who isn't there needs no wake */
    }
}

static void add(_Atomic uint64_t *count, uint64_t n)
{
    atomic_fetch_add_explicit(count, n, memory_order_relaxed);
}

void link_begin(struct link *link)
{
    for (int i = 0; link->task == LINK_PLAY && i < link->n_channels; i++) {
        ring_skip(link_ring(link, i), SIZE_MAX); /* from before it was away */
    }
    atomic_store(&link->filling, true);
    atomic_store(&link->sequence, (atomic_load(&link->sequence) + 1) / 2 * 2); /* the one before may have ended in between */
}

static bool has_room(struct link *link, size_t n)
{
    bool room = atomic_load_explicit(&link->blocks_written, memory_order_relaxed) -
                    atomic_load_explicit(&link->blocks_read, memory_order_acquire) < LINK_BLOCKS;
    for (int i = 0; room && i < link->n_channels; i++) {
        room = ring_room(link_ring(link, i)) >= n;
    }
    return room;
}

void link_capture(struct link *link, int socket, const float *samples, size_t n, bool trouble, int64_t now)
{
    uint64_t blocks = atomic_load_explicit(&link->blocks_written, memory_order_relaxed);
    if (has_room(link, n)) { /* all channels or none: they stay abreast */
        for (int i = 0; i < link->n_channels; i++) {
            ring_write_strided(link_ring(link, i), samples + link->channels[i], (size_t)link->width, n);
        }
        link->blocks[blocks % LINK_BLOCKS] = (struct link_block){.lost = link->lost, .arrived = now, .n = n};
        atomic_store_explicit(&link->blocks_written, blocks + 1, memory_order_release);
        link->lost = 0;
    } else {
        link->lost += n;
    }
    add(&link->troubles, trouble);
    add(&link->calls, 1);
    link_say(link, socket, LINK_WAKE);
}

/* Before it takes n: drop what is beyond twice the target, wait until the target is there. True: it plays. */
static bool settle(struct link *link, size_t n)
{
    size_t least = SIZE_MAX;
    bool ended = atomic_load_explicit(&link->ended, memory_order_acquire);
    for (int i = 0; i < link->n_channels; i++) {
        struct ring *ring = link_ring(link, i);
        if (ring_fill(ring) > 2 * link->target + n) {
            add(&link->dropped, ring_skip(ring, ring_fill(ring) - link->target - n));
        }
        least = ring_fill(ring) < least ? ring_fill(ring) : least;
    }
    if (ended || least >= link->target + n) {
        atomic_store_explicit(&link->filling, false, memory_order_relaxed);
    }
    return !atomic_load_explicit(&link->filling, memory_order_relaxed);
}

static void take_column(struct link *link, int channel, float *samples, size_t n)
{
    float part[512];
    struct ring *ring = link_ring(link, channel);
    for (size_t at = 0, k; at < n; at += k) {
        k = n - at < 512 ? n - at : 512;
        size_t fill = ring_fill(ring), got = ring_read(ring, part, fill < k ? fill : k);
        for (size_t i = 0; i < got; i++) {
            samples[(at + i) * (size_t)link->width + (size_t)channel] = part[i];
        }
        if (got < k && !atomic_load_explicit(&link->ended, memory_order_relaxed)) {
            add(&link->inserted, k - got);
            atomic_store_explicit(&link->filling, true, memory_order_relaxed);
        }
    }
}

/* The device has asked for n more. */
static void note_position(struct link *link, size_t n, int64_t now)
{
    uint64_t sequence = atomic_load_explicit(&link->sequence, memory_order_relaxed);
    atomic_store_explicit(&link->sequence, sequence + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    uint64_t frames = atomic_load_explicit(&link->frames, memory_order_relaxed) + n;
    atomic_store_explicit(&link->frames, frames, memory_order_relaxed);
    atomic_store_explicit(&link->slip, (int64_t)(frames - ring_position(link_ring(link, 0))), memory_order_relaxed);
    atomic_store_explicit(&link->at, now, memory_order_relaxed);
    atomic_store_explicit(&link->sequence, sequence + 2, memory_order_release);
}

void link_play(struct link *link, int socket, float *samples, size_t n, bool trouble, int64_t now)
{
    memset(samples, 0, n * (size_t)link->width * sizeof *samples);
    if (settle(link, n)) {
        for (int i = 0; i < link->n_channels; i++) {
            take_column(link, i, samples, n);
        }
    }
    note_position(link, n, now);
    add(&link->troubles, trouble);
    add(&link->calls, 1);
    link_say(link, socket, LINK_WAKE);
}

/* ---- In the daemon. ---- */

bool link_next_block(struct link *link, struct link_block *block)
{
    uint64_t read = atomic_load_explicit(&link->blocks_read, memory_order_relaxed);
    if (read == atomic_load_explicit(&link->blocks_written, memory_order_acquire)) {
        return false;
    }
    *block = link->blocks[read % LINK_BLOCKS];
    atomic_store_explicit(&link->blocks_read, read + 1, memory_order_release);
    return true;
}

void link_drop_rest(struct link *link)
{
    for (int i = 0; link->task == LINK_CAPTURE && i < link->n_channels; i++) {
        ring_skip(link_ring(link, i), SIZE_MAX);
    }
}

/* One try: who is refused asks again with the next hop. */
bool link_find_position(const struct link *link, struct link_position *position)
{
    uint64_t before = atomic_load_explicit(&link->sequence, memory_order_acquire);
    *position = (struct link_position){.frames = atomic_load_explicit(&link->frames, memory_order_relaxed),
                                       .slip = atomic_load_explicit(&link->slip, memory_order_relaxed),
                                       .at = atomic_load_explicit(&link->at, memory_order_relaxed)};
    atomic_thread_fence(memory_order_acquire);
    uint64_t after = atomic_load_explicit(&link->sequence, memory_order_relaxed);
    return before == after && before > 0 && before % 2 == 0;
}
