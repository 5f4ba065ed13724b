/* SPDX-License-Identifier: MIT */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>

static const char *const level_names[] = {[LOG_ERROR] = "error", [LOG_WARNING] = "warning", [LOG_INFO] = "info", [LOG_DEBUG] = "debug"};
static bool as_json, with_debug;

void log_as_json(void)
{
    as_json = true;
}

void log_debug(void)
{
    with_debug = true;
}

static void print_json_text(const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            fprintf(stderr, "\\%c", c);
        } else if (c < 0x20) {
            fprintf(stderr, "\\u%04x", c);
        } else {
            fputc(c, stderr);
        }
    }
}

void log_line(enum log_level level, const char *format, ...)
{
    if (level == LOG_DEBUG && !with_debug) {
        return;
    }
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    flockfile(stderr);
    if (as_json) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        fprintf(stderr, "{\"time\":%lld.%03ld,\"level\":\"%s\",\"text\":\"", (long long)now.tv_sec, now.tv_nsec / 1000000,
                level_names[level]);
        print_json_text(text);
        fputs("\"}\n", stderr);
    } else {
        fprintf(stderr, "ssmd: %s%s\n", level == LOG_WARNING ? "warning: " : "", text);
    }
    funlockfile(stderr);
}
