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

#include "daemon/engine_thread.h"
#include "model/ssm.h"

enum { CHECKPOINT_COPIES = 8, CHECKPOINT_AGE_S = 3600 }; /* older ones are not gone on from */

struct checkpoint;

/* Make the folder if it isn't there. NULL with *err: 73, it can't be made or written to, or another daemon has it. */
struct checkpoint *checkpoint_open(const char *folder, int streams, struct ssm_error *err);
void checkpoint_close(struct checkpoint *checkpoint); /* after the engine's thread has stopped; NULL is fine */

/* Before start: have a stream kept. -1 with *err. */
int checkpoint_add(struct checkpoint *checkpoint, struct engine_thread *engine, int stream, const char *name, int rate,
                   struct ssm_error *err);

/* Before start: a state to go on from. record is borrowed until the next call; *age_s is since its sample `position` was
 * captured. False: there is none, and *err says why if there was something. */
bool checkpoint_find(struct checkpoint *checkpoint, int stream, struct record *record, double *age_s, struct ssm_error *err);

/* Before start: the stream begins anew, whatever was found. */
void checkpoint_forget(struct checkpoint *checkpoint, int stream);

int checkpoint_start(struct checkpoint *checkpoint, struct ssm_error *err);
/* Engine's thread, after each turn: copy what is due, as far as there is room. NULL is fine. */
void checkpoint_turn(struct checkpoint *checkpoint, struct engine_thread *engine);
void checkpoint_stop(struct checkpoint *checkpoint); /* after the engine's thread has stopped: write what was copied */

#endif
