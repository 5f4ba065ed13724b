/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_LINK_H
#define DAEMON_LINK_H

/* What the daemon and a helper process share about one sound device: memory with rings of samples, and a socket.
 *
 * PortAudio lives in helpers (daemon/portaudio.c), one for each device that is open: when it hangs, crashes or has to be started
 * anew, nothing else notices. A helper is this same program, started again with LINK_ARGUMENT; it ends with the thread that
 * started it, whatever became of that.
 *
 * A link outlives its helpers: the next one goes on in the same rings. Rings are wait-free (dsp/ring.h), so that an audio
 * callback never waits for the other process. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "config/config.h"
#include "model/ssm.h"

#define LINK_ARGUMENT "--sound-helper"

enum { LINK_SAMPLES = 65536, LINK_BLOCKS = 1024, LINK_DEVICES = 256, LINK_NAME = 256 };
enum link_task { LINK_LIST, LINK_CAPTURE, LINK_PLAY };

/* What a helper says, a byte each. */
enum link_word { LINK_OPENED = 'o', LINK_RUNS = 'r', LINK_FAILED = 'f', LINK_WAKE = 'w' };

/* One callback's capture. */
struct link_block {
    uint64_t lost;   /* samples for which there was no room right before it */
    int64_t arrived; /* ns                                                  */
    size_t n;        /* samples a channel                                   */
};

/* By `at` ns (CLOCK_MONOTONIC) the device had asked for so many frames; the rings' sample i is its frame i + slip. */
struct link_position {
    uint64_t frames;
    int64_t slip, at;
};

struct link {
    /* The daemon's wishes, there before a helper starts. */
    enum link_task task;
    char device[LINK_NAME];
    int rate;                      /* Hz; 0: the device's own                          */
    int width;                     /* channels the device is opened with               */
    int channels[CONFIG_CHANNELS]; /* (n_channels) those of them that have a ring      */
    int n_channels;
    size_t target;                 /* playing: samples to wait for before it begins    */
    pid_t daemon;

    /* The helper's answers, there before it says so. */
    char name[LINK_NAME], id[LINK_NAME / 2]; /* daemon/names.h */
    int got_rate;
    struct ssm_error error; /* LINK_FAILED */

    /* Counted by helpers, never reset. */
    _Atomic uint64_t calls;             /* of the device                                       */
    _Atomic uint64_t troubles;          /* the device lost input, or ran dry                   */
    _Atomic uint64_t dropped, inserted; /* playing: samples that came too early, and too late  */

    /* Where playing is: struct link_position behind a sequence lock, odd while it is written. */
    _Atomic uint64_t sequence, frames;
    _Atomic int64_t slip, at;

    atomic_bool pending; /* a wake is on its way                    */
    atomic_bool filling; /* playing waits for `target`              */
    atomic_bool ended;   /* the daemon's: nothing follows to play   */
    _Atomic uint64_t blocks_written, blocks_read;
    uint64_t lost; /* the helper's */
    struct link_block blocks[LINK_BLOCKS];
};

/* The daemon's: memory for n_channels rings. Gives NULL when there is none; *fd is the memory's, to be closed by the caller. */
struct link *link_create(int n_channels, int *fd);
/* The helper's: the same memory. NULL: it isn't such memory. */
struct link *link_map(int fd);
void link_unmap(struct link *link); /* NULL is fine */

struct ring *link_ring(struct link *link, int channel); /* index, not number */

/* A helper process, and the daemon's ends of its socket and its stderr (which doesn't block). */
struct helper {
    pid_t pid; /* 0: there is none */
    int socket, errors;
};

/* Start a helper for this link; it ends when the calling thread does. 0, or -1 with *err. */
int link_start_helper(struct helper *helper, struct link *link, int fd, struct ssm_error *err);
/* End it now, if it is there. */
void link_end_helper(struct helper *helper);

/* In main, before anything else, by each program that opens sound devices: says so, and in a helper gives the descriptors of
 * its memory and socket. */
bool link_is_helper(int argc, char **argv, int *memory, int *socket);

/* ---- A device's thread, in the helper. Each wakes the daemon through the socket. ---- */

/* n samples for each of `width` channels, interleaved, the last of which arrived at `now`. */
void link_capture(struct link *link, int socket, const float *samples, size_t n, bool trouble, int64_t now);
/* The same to be filled; what isn't there in time is silence. */
void link_play(struct link *link, int socket, float *samples, size_t n, bool trouble, int64_t now);
/* Before a helper's first of these. */
void link_begin(struct link *link);
void link_say(struct link *link, int socket, enum link_word word);

/* ---- In the daemon. ---- */

/* The next block, whose samples then wait in the rings; false: there is none. */
bool link_next_block(struct link *link, struct link_block *block);
/* A helper is gone: drop what it had begun. */
void link_drop_rest(struct link *link);
/* Where playing is; false: nowhere yet, or it is just being written. */
bool link_find_position(const struct link *link, struct link_position *position);

#endif
