/* SPDX-License-Identifier: MIT */
#ifndef DSP_NEAREST_H
#define DSP_NEAREST_H

/* How many letters to insert, delete or replace, or neighbours to swap, from one word to the other (optimal string alignment);
 * words of more than 40 letters are NEAREST_FAR from all. */
enum { NEAREST_FAR = 40 };
int nearest_distance(const char *a, const char *b);

#endif
