/* SPDX-License-Identifier: MIT */
#include "dsp/lines.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct lines {
    size_t n, most;
    bool passing; /* the rest of a line that is too long */
    uint64_t too_long;
    char held[]; /* (most) the beginning of a line */
};

struct lines *lines_create(size_t most)
{
    struct lines *lines = calloc(1, sizeof *lines + most);
    if (lines) {
        lines->most = most;
    }
    return lines;
}

void lines_destroy(struct lines *lines)
{
    free(lines);
}

static void give(lines_take *take, void *context, const char *line, size_t n)
{
    take(context, line, n > 0 && line[n - 1] == '\r' ? n - 1 : n);
}

/* n bytes without a line's end. */
static void hold(struct lines *lines, const char *bytes, size_t n)
{
    if (lines->passing || n > lines->most - lines->n) {
        lines->too_long += !lines->passing;
        lines->passing = true;
        lines->n = 0;
    } else {
        memcpy(lines->held + lines->n, bytes, n);
        lines->n += n;
    }
}

void lines_push(struct lines *lines, const char *bytes, size_t n, lines_take *take, void *context)
{
    for (const char *end = bytes + n, *stop; bytes < end; bytes = stop + 1) {
        stop = memchr(bytes, '\n', (size_t)(end - bytes));
        hold(lines, bytes, (size_t)((stop ? stop : end) - bytes));
        if (!stop) {
            return;
        }
        if (!lines->passing) {
            give(take, context, lines->held, lines->n);
        }
        lines->passing = false;
        lines->n = 0;
    }
}

void lines_finish(struct lines *lines, lines_take *take, void *context)
{
    if (lines->n > 0 && !lines->passing) {
        give(take, context, lines->held, lines->n);
    }
    lines->passing = false;
    lines->n = 0;
}

uint64_t lines_too_long(const struct lines *lines)
{
    return lines->too_long;
}
