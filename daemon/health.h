/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_HEALTH_H
#define DAEMON_HEALTH_H

/* How the daemon is, with reasons, and the pages that tell so:
 *
 *   /ping         200: the process answers
 *   /ready        200, or 503 with what is in the way: not all has started, a source ended too early, nothing moves, draining
 *   /health       JSON, 200 or 503 as /ready: {"status": "ok", "degraded" or "failing", "node", "version", "uptime_s",
 *                 "reasons": [{"what", "pipeline", "text"}]}. Degraded: samples were lost or spoilt in the last minute, or a
 *                 device failed, or streams gave way in overload; of many reasons the first 64; `what` is a counter's name, or
 *                 overload, source_ended, device_fault, stalled, starting, draining
 *   /metrics      for Prometheus (daemon/metrics.h)
 *   /schema.json  of the configuration */

#include <stdbool.h>

#include "daemon/http.h"

struct daemon;

enum { HEALTH_PAGES = 5 };
extern const struct http_page health_pages[HEALTH_PAGES]; /* of a struct daemon * */

/* Loop thread, each second: note what was lost and whether the engine's thread turns. True: it did, or has nothing left to
 * turn for. */
bool health_note(struct daemon *daemon);

#endif
