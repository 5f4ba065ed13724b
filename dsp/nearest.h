/* SPDX-License-Identifier: MIT */
#ifndef DSP_NEAREST_H
#define DSP_NEAREST_H

/* How many letters to insert, delete or replace, or neighbours to swap, from one word to the other (optimal string alignment);
 * words of more than 40 letters are NEAREST_FAR from all. */
enum { NEAREST_FAR = 40 };
int nearest_distance(const char *a, const char *b);

/* How far from `word` another may be for its writer to have meant that: one slip, and one more for each five letters. Beyond it is a
 * guess. */
int nearest_slips(const char *word);

#endif
