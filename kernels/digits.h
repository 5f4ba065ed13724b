/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_DIGITS_H
#define KERNELS_DIGITS_H

/* Products of int8 weights in whole numbers, for processors with AVX-512 VNNI or AMX.
 *
 * A row is scaled so that its largest value is 2^23 - 2 and rounded: 24 bits, as many as a float has. Its three bytes
 * are multiplied with the weights by the byte instructions, whose 32-bit sums are exact, and joined at the end. So a
 * sum needs no order to be reproducible, weights are never converted, and the two functions agree to the bit. What is
 * lost is 2^-24 of the row's largest value. A row with a NaN or an infinity gives NaN; one wholly below 2^-100 counts
 * as zero.
 *
 * Both: some 100 KiB of stack; w->i8 set, w->in at most DIGITS_IN_MAX; otherwise as kernels.h's `linear`. */

#include "kernels/kernels.h"

enum { DIGITS_IN_MAX = 2048 };

void digits_linear_vnni(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                        int rows);
void digits_linear_amx(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                       int rows);

/* Ask the kernel for the tile registers, once a process and before digits_linear_amx; false: this processor or this
 * system hasn't them. Cheap when repeated. */
bool digits_amx_request(void);

#endif
