/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_HTTP_H
#define DAEMON_HTTP_H

/* A small web server for who watches the daemon: GET and HEAD of a few pages, on a thread of its own. Only daemon/http.c
 * includes microhttpd.h.
 *
 * It owes nothing to its clients: at most HTTP_CONNECTIONS of them, where the oldest makes room for one more; each has some
 * kilobytes of memory, and 5 s to say something. Its thread yields to all others. */

#include <stdio.h>

#include "model/ssm.h"

enum { HTTP_CONNECTIONS = 16 };

/* One page. `print` writes its body on the server's thread, a call at a time, and gives the HTTP status. */
struct http_page {
    const char *path, *type;
    int (*print)(void *arg, FILE *file);
};

struct http;

/* Listen on "HOST:PORT" and serve pages (n), which are borrowed; `arg` goes to every print. NULL with *err (69: the address
 * is taken, 78: it is no address). */
struct http *http_open(const char *address, const struct http_page *pages, int n, void *arg, struct ssm_error *err);
/* No print runs afterwards. NULL is fine. */
void http_close(struct http *http);

#endif
