/* SPDX-License-Identifier: MIT */
#include "dsp/text.h"

#include <string.h>

size_t text_character(const void *text, size_t left)
{
    const unsigned char *at = text;
    if (left == 0) {
        return 0;
    }
    size_t n = at[0] < 0x80 ? 1 : at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : at[0] >= 0xc2 ? 2 : 0;
    if (n > left || at[0] > 0xf4) {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((at[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return n;
}

size_t text_control(const void *text, size_t left)
{
    const unsigned char *at = text;
    size_t n = text_character(text, left);
    bool control = (n == 1 && (at[0] < 0x20 || at[0] == 0x7f)) || (n == 2 && at[0] == 0xc2 && at[1] < 0xa0);
    return control ? n : 0;
}

size_t text_printable(const void *text, size_t left)
{
    return text_control(text, left) > 0 ? 0 : text_character(text, left);
}

bool text_is_plain(const char *text)
{
    size_t left = strlen(text), n;
    while ((n = text_printable(text, left)) > 0) {
        text += n;
        left -= n;
    }
    return left == 0;
}
