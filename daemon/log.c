/* SPDX-License-Identifier: MIT */
#include "daemon/log.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "config/errors.h"
#include "daemon/wire.h"
#include "dsp/clock.h"

/* TOLD is more than the errors of one configuration. */
enum { TEXT = 1024, KINDS = 32, TOLD = 40, SPAN_S = 10 };
static const int64_t span = SPAN_S * INT64_C(1000000000);

static const char *const level_names[] = {
    [LOG_ERROR] = "error", [LOG_WARNING] = "warning", [LOG_INFO] = "info", [LOG_DEBUG] = "debug"};
static bool as_json, with_debug;

/* What was said with one format since `since`. */
struct kind {
    const char *format;
    enum log_level level;
    int64_t since;
    uint64_t said;   /* TOLD of them were told */
    char last[TEXT]; /* of those that weren't  */
};

static struct kind kinds[KINDS];
static uint64_t unheard;                                 /* lines that a full pipe, which nobody reads, didn't take */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of kinds, unheard and stderr */

void log_as_json(void)
{
    setvbuf(stderr, NULL, _IOLBF, 8 * TEXT); /* a line at once, not letter by letter */
    as_json = true;
}

void log_debug(void)
{
    with_debug = true;
}

/* Is there room for a line? A pipe that is ready takes PIPE_BUF bytes without waiting, and so nobody who tells waits
 * for who reads. */
static bool is_heard(void)
{
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    return poll(&out, 1, 0) != 0;
}

static void write_line(enum log_level level, uint64_t more, const char *text)
{
    char repeated[64] = "";
    if (as_json) {
        int64_t ms = clock_utc_now() / 1000000;
        fprintf(stderr, "{\"time\":%lld.%03lld,\"level\":\"%s\",", (long long)(ms / 1000), (long long)(ms % 1000),
                level_names[level]);
        if (more > 0) {
            fprintf(stderr, "\"repeated\":%llu,", (unsigned long long)more);
        }
        fputs("\"text\":", stderr);
        wire_json_text(stderr, text, strlen(text));
        fputs("}\n", stderr);
    } else {
        if (more > 0) {
            snprintf(repeated, sizeof repeated, "repeated %llu times in %d s, the last: ", (unsigned long long)more,
                     SPAN_S);
        }
        fprintf(stderr, "ssmd: %s%s%s\n", level == LOG_WARNING ? "warning: " : "", repeated, text);
    }
}

/* `more`: so many others of its kind were not told. */
static void print(enum log_level level, uint64_t more, const char *text)
{
    char lost[64];
    if (!is_heard()) {
        unheard++;
        return;
    }
    if (unheard > 0) {
        snprintf(lost, sizeof lost, "%llu lines found no room here and are lost", (unsigned long long)unheard);
        unheard = 0;
        write_line(LOG_WARNING, 0, lost);
    }
    write_line(level, more, text);
}

static void settle(struct kind *kind)
{
    if (kind->said > TOLD) {
        print(kind->level, kind->said - TOLD, kind->last);
    }
    *kind = (struct kind){0};
}

/* The format's, or the one that was begun first, for this format from now on. */
static struct kind *find_kind(const char *format, int64_t now)
{
    struct kind *oldest = kinds;
    for (struct kind *kind = kinds; kind < kinds + KINDS; kind++) {
        if (kind->format && now - kind->since > span) {
            settle(kind);
        }
        if (kind->format == format) {
            return kind;
        }
        oldest = kind->since < oldest->since ? kind : oldest;
    }
    settle(oldest);
    oldest->format = format;
    oldest->since = now;
    return oldest;
}

void log_line(enum log_level level, const char *format, ...)
{
    if (level == LOG_DEBUG && !with_debug) {
        return;
    }
    char text[TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!as_json) {
        errors_one_line(text);
    }
    pthread_mutex_lock(&lock);
    struct kind *kind = level == LOG_INFO ? NULL : find_kind(format, clock_now());
    if (kind && ++kind->said > TOLD) {
        kind->level = level;
        snprintf(kind->last, sizeof kind->last, "%s", text);
    } else {
        print(level, 0, text);
    }
    pthread_mutex_unlock(&lock);
}

void log_turn(bool all)
{
    int64_t now = clock_now();
    pthread_mutex_lock(&lock);
    for (struct kind *kind = kinds; kind < kinds + KINDS; kind++) {
        if (kind->format && (all || now - kind->since > span)) {
            settle(kind);
        }
    }
    pthread_mutex_unlock(&lock);
}
