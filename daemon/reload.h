/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_RELOAD_H
#define DAEMON_RELOAD_H

/* Another configuration without stopping: what is new is opened beside what runs, then changes places with it.
 *
 * Pipelines are told apart by their names. One whose settings are the same goes on untouched. One whose source and model are
 * the same keeps these and its stream's state; its settings and its sinks change, and sinks whose settings are the same go on.
 * Where only the model is another, or its file was written anew, both run for a second on the same input, if they are alike
 * (models_alike), and then the sound fades from one to the other. Any other is opened anew, all of it, and once it
 * runs the old one's source is stopped and what waits there goes through; of the new one nothing is published before the old
 * one's end. Where the new one is to listen at the address of one that goes, both do meanwhile: who is connected to the old one
 * has to come again. What goes wrong until everything new runs leaves everything as it
 * was. Keys outside of pipelines can't change, nor may a file be written that is being written.
 *
 * Opening, starting and closing have a thread of their own meanwhile; streams change between two turns of the engine's. */

#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"
#include "model/ssm.h"

struct daemon;
struct pipeline;
struct reload;

struct reload *reload_create(struct daemon *daemon); /* NULL when memory runs out */
/* Before the loop runs: load(arg) reads the configuration again; what it gives is the caller's. Without it that can't be done. */
void reload_from(struct reload *reload, struct config *(*load)(void *arg, struct config_errors *errors), void *arg);
/* Loop thread, at the end, before the other threads stop: whatever is under way stops here. False: something takes too long to
 * open, and is still at it: nothing of the daemon may be freed. */
bool reload_halt(struct reload *reload);
void reload_destroy(struct reload *reload); /* after all threads; NULL is fine */

/* How one ended. */
struct reload_result {
    int unchanged, changed, opened, replaced, closed; /* pipelines                                    */
    uint64_t generation;                              /* of what reload_open opened                   */
    struct ssm_error err;                             /* code not 0: nothing changed, and this is why */
};

/* Loop thread. */
bool reload_begin(struct reload *reload); /* false: one is under way, or the daemon drains */
void reload_again(struct reload *reload); /* begin, or once more when the one under way has ended */
/* In the same way, but for these pipelines alone: takes the configuration, of which only the pipelines count; it must hold no
 * name that runs. What was opened so has a generation of its own, and reloads leave it alone. */
bool reload_open(struct reload *reload, struct config *config);
/* Close a pipeline that reload_open opened. */
bool reload_close(struct reload *reload, const struct pipeline *pipeline);
bool reload_busy(const struct reload *reload);
void reload_turn(struct reload *reload);  /* after each turn of the engine, wake and tick: go on with it. NULL is fine */
uint64_t reload_count(const struct reload *reload); /* how many have ended          */
const struct reload_result *reload_last(const struct reload *reload); /* of the last one that ended */

#endif
