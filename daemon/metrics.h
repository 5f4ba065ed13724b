/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_METRICS_H
#define DAEMON_METRICS_H

/* /metrics: everything that is counted, as Prometheus reads it (text format 0.0.4, names that begin with ssmd_ or process_, base units).
 *
 * Losses are summed over a pipeline's channels: one series a pipeline and cause, from counter_table's rows. Whoever computes
 * is not stopped: what is read are atomics, so numbers of one page may be a hop apart. */

#include <stdio.h>

struct daemon;

void metrics_print(const struct daemon *daemon, FILE *file); /* any thread, under the daemon's lock */

#endif
