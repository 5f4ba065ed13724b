/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

/* The running whole: a configuration's sources, engines and sinks, their threads, and the loop that publishes.
 *
 * Threads: one for the loop (the caller of daemon_run), one for the engines, one that reads files, one that writes files, one
 * for each PCM input, and PortAudio's own. Sources write feeds, the engine thread reads them and writes outboxes and feeds of
 * the sinks, the loop and the writer read those. Nothing else is shared but counters and flags. */

#include <stdbool.h>

#include "config/config.h"
#include "model/ssm.h"

struct daemon;

/* Open everything a configuration names, in this order: sources, engines, the publisher, sinks. Borrows the configuration.
 * NULL with *err: nothing is left open. */
struct daemon *daemon_open(const struct config *config, struct ssm_error *err);

/* Before daemon_run: what SIGHUP and `ssm ctl reload` read the configuration with (daemon/reload.h); without it they are
 * refused. */
void daemon_reloads(struct daemon *daemon, struct config *(*load)(void *arg, struct config_errors *errors), void *arg);

/* Start, and run until every source has ended (not with `stay`), or SIGTERM or SIGINT. Then drain: sources stop, what waits
 * goes through the models, files are whole, the last state/ says "drained". A second signal, or the configuration's drain
 * time, cuts that short. Gives the exit code: 0; 74 an output file could not take all; 75 cut short; or that of a source that
 * ended too early, or of what could not start, with *err. */
int daemon_run(struct daemon *daemon, bool stay, struct ssm_error *err);

void daemon_close(struct daemon *daemon); /* NULL is fine */

#endif
