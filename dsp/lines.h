/* SPDX-License-Identifier: MIT */
#ifndef DSP_LINES_H
#define DSP_LINES_H

/* Bytes as they come -> lines. A line longer than there is room for is passed over and counted. Nothing is allocated after
 * lines_create; one thread. */

#include <stddef.h>
#include <stdint.h>

struct lines;

/* line (n) without its end, "\n" or "\r\n"; borrowed for the call. */
typedef void lines_take(void *context, const char *line, size_t n);

/* Room for lines of up to `most` bytes. NULL when memory runs out. */
struct lines *lines_create(size_t most);
void lines_destroy(struct lines *lines); /* NULL is fine */

void lines_push(struct lines *lines, const char *bytes, size_t n, lines_take *take, void *context);
/* The bytes end here: what is left is a line too. The next bytes begin one. */
void lines_finish(struct lines *lines, lines_take *take, void *context);

uint64_t lines_too_long(const struct lines *lines);

#endif
