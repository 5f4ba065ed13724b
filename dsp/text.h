/* SPDX-License-Identifier: MIT */
#ifndef DSP_TEXT_H
#define DSP_TEXT_H

/* UTF-8 from others, of which nothing may command a terminal. `left` bytes stand at `text`. */

#include <stdbool.h>
#include <stddef.h>

/* The bytes of the character there; 0 if it is none. */
size_t text_character(const void *text, size_t left);
/* The same of a control character alone: C0, DEL or C1. */
size_t text_control(const void *text, size_t left);
/* And of any other. */
size_t text_printable(const void *text, size_t left);
/* All of a text is such. */
bool text_is_plain(const char *text);

#endif
