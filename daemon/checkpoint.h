/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_CHECKPOINT_H
#define DAEMON_CHECKPOINT_H

/* What outlives a crash: each live stream's state, at most a second old, and where what it gave out ends.
 *
 * The folder holds two files a stream: <pipeline>.<channel>.state (daemon/record.h), replaced as a whole by rename, and
 * <pipeline>.<channel>.out, the sample number up to which the engine gave something to the sinks, which is memory shared with
 * the file and so is never behind. Between two turns the engine's thread copies the states of a few streams; a thread of its
 * own sums and writes them. Nothing is synced to the disk: what a power cut tears is refused by its sum, and a folder in memory
 * (/run) is as good against crashes. Copies wait in CHECKPOINT_COPIES buffers; when the disk is late, states grow old. */

#include <stdbool.h>
#include <stdint.h>

#include "daemon/record.h"
#include "daemon/stream.h"
#include "model/ssm.h"

enum { CHECKPOINT_COPIES = 8, CHECKPOINT_AGE_S = 3600 }; /* older ones are not gone on from */

struct checkpoint;
struct kept; /* a stream whose state is kept */

/* Make the folder if it isn't there. NULL with *err: 73, it can't be made or written to, or another daemon has it. */
struct checkpoint *checkpoint_open(const char *folder, struct ssm_error *err);
void checkpoint_close(struct checkpoint *checkpoint); /* after the engine's thread has stopped; NULL is fine */

/* Any thread but the engine's, one at a time: make room for a stream, which is borrowed, of a source of `rate` Hz. NULL with
 * *err. */
struct kept *checkpoint_keep(struct checkpoint *checkpoint, struct stream *stream, const char *name, int rate,
                             struct ssm_error *err);
void checkpoint_release(struct kept *kept); /* once it has parted, or the engine's thread has stopped; NULL is fine */

/* The same threads: room for states of that many bytes, for a kept stream that changes its model. -1: no memory. */
int checkpoint_fit(struct checkpoint *checkpoint, size_t state_size, struct ssm_error *err);

/* Before start: a state to go on from. record is borrowed until the next call; *age_s is since its sample `position` was
 * captured. False: there is none, and *err says why if there was something. */
bool checkpoint_find(struct checkpoint *checkpoint, const struct kept *kept, struct record *record, double *age_s,
                     struct ssm_error *err);

/* While it isn't kept: the stream begins anew, whatever was found. */
void checkpoint_forget(const struct checkpoint *checkpoint, const struct kept *kept);

/* Before start, or in a call of the engine's thread: it is kept from now on; no more. */
void checkpoint_join(struct checkpoint *checkpoint, struct kept *kept);
void checkpoint_part(struct checkpoint *checkpoint, struct kept *kept);

int checkpoint_start(struct checkpoint *checkpoint, struct ssm_error *err);
void checkpoint_turn(struct checkpoint *checkpoint); /* engine's thread, after each turn: copy what is due, where there is room. NULL is fine */
void checkpoint_stop(struct checkpoint *checkpoint); /* after the engine's thread has stopped: write what was copied */

#endif
