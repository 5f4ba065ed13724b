/* SPDX-License-Identifier: MIT */
#include "model/refuse.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

int refuse(struct ssm_error *err, int code, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return -1;
}

int refuse_memory(struct ssm_error *err)
{
    bool files = errno == EMFILE || errno == ENFILE;
    return refuse(
        err, 71, files ? "too many open files (ulimit -n)" : "out of memory: ask for fewer streams or a smaller model");
}
