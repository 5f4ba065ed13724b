/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

/* Tell systemd how the service is (sd_notify's protocol, Type=notify), where it asks to be told: NOTIFY_SOCKET is set.
 * Without it every call does nothing. Nothing here blocks, fails or is of the hop path. Loop thread and set-up. */

#include <stdbool.h>

void notify_loading(const char *what); /* STATUS, and 30 s more until READY: once for each slow thing */
void notify_ready(const char *status); /* READY */
void notify_reloading(void);           /* RELOADING, until READY again */
void notify_stopping(double seconds);  /* STOPPING, which may take that long */
void notify_alive(void);               /* WATCHDOG, where WatchdogSec= asks for it of this process */

#endif
