/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_LOG_H
#define DAEMON_LOG_H

/* Lines on stderr for a person, or as JSON for a machine. Any thread but the engine's, which counts.
 *
 * What goes wrong again and again doesn't fill the disk: of errors and warnings of one format 40 are told in 10 s, the others
 * counted, and when the 10 s are over it says how many there were, and the last one's words. Nobody waits for who reads: lines that a
 * full pipe doesn't take are counted and told later. */

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

void log_as_json(void); /* from now on; before any thread starts */
void log_debug(void);   /* the same: LOG_DEBUG is told too       */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Now and then, and at the end with all: tell how many were not told, of formats whose 10 s are over, or of all. */
void log_turn(bool all);

#endif
