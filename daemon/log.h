/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_LOG_H
#define DAEMON_LOG_H

/* Lines on stderr for a person, or as JSON for a machine. Set-up, shut-down and the loop thread only: the hop path counts. */

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

void log_as_json(void); /* from now on; before any thread starts */
void log_debug(void);   /* the same: LOG_DEBUG is told too       */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
