/* SPDX-License-Identifier: MIT */
#include "config/errors.h"

#include <stdarg.h>
#include <string.h>

/* Append to text of `size` bytes, cut where it ends. */
__attribute__((format(printf, 4, 0))) static size_t append(char *text, size_t size, size_t at, const char *format,
                                                           va_list args)
{
    int n = at < size ? vsnprintf(text + at, size - at, format, args) : 0;
    return n < 0 ? at : at + (size_t)n;
}

__attribute__((format(printf, 4, 5))) static size_t appendf(char *text, size_t size, size_t at, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    at = append(text, size, at, format, args);
    va_end(args);
    return at;
}

/* Bytes of what begins there and would end a line or command a terminal: control characters and Unicode's line ends. */
static size_t length_of_control(const char *at)
{
    unsigned char byte = (unsigned char)*at;
    bool next_line = strncmp(at, "\xc2\x85", 2) == 0;
    bool separator = strncmp(at, "\xe2\x80\xa8", 3) == 0 || strncmp(at, "\xe2\x80\xa9", 3) == 0;
    return byte < ' ' || byte == 0x7f ? 1 : next_line ? 2 : separator ? 3 : 0;
}

void errors_one_line(char *text)
{
    char *to = text;
    for (const char *from = text; *from != '\0';) {
        size_t control = length_of_control(from);
        *to++ = control > 0 ? '?' : *from;
        from += control > 0 ? control : 1;
    }
    *to = '\0';
}

size_t errors_place(char *text, size_t size, struct place at, const char *path)
{
    size_t end = at.line > 0 ? appendf(text, size, 0, "%.160s:%d:%d: ", at.file, at.line, at.column)
                             : appendf(text, size, 0, "--set %.160s: ", at.file);
    return path[0] ? appendf(text, size, end, "%s: ", path) : end;
}

void errors_add(struct config_errors *errors, struct place at, const char *path, const char *format, ...)
{
    if (errors->n == CONFIG_ERRORS) {
        errors->more++;
        return;
    }
    struct config_error *error = &errors->at[errors->n++];
    *error = (struct config_error){.line = at.line, .column = at.column};
    snprintf(error->path, sizeof error->path, "%s", path);
    size_t size = sizeof error->text, end = errors_place(error->text, size, at, path);
    va_list args;
    va_start(args, format);
    append(error->text, size, end, format, args);
    va_end(args);
    errors_one_line(error->text);
}
