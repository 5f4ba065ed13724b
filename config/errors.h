/* SPDX-License-Identifier: MIT */
#ifndef CONFIG_ERRORS_H
#define CONFIG_ERRORS_H

#include "config/config.h"

/* Where something stands: file:line:column from 1; line 0: in an override, whose text `file` then is. */
struct place {
    const char *file;
    int line, column;
};

/* What a message about something there begins with: "place: path: "; gives its length. */
size_t errors_place(char *text, size_t size, struct place at, const char *path);

/* Put a question mark where text, UTF-8, has control characters or ends of lines: what a message quotes is never a line of its
 * own, nor does it command a terminal. The text gets no longer. */
void errors_one_line(char *text);

/* Add "place: path: sentence" to the errors; path may be "". Beyond the room for them they are only counted. */
__attribute__((format(printf, 4, 5))) void errors_add(struct config_errors *errors, struct place at, const char *path,
                                                      const char *format, ...);

#endif
