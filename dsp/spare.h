/* SPDX-License-Identifier: MIT */
#ifndef DSP_SPARE_H
#define DSP_SPARE_H

#include <stdbool.h>

/* Are there as many descriptors to be had as a library needs at once that ends the process where it finds none: libzmq for its
 * first socket and as it binds, libuv for its first loop? False with errno. Any thread; they are had for a moment. */
bool spare_descriptors(void);

/* `code`, or EX_OSERR where errno says that memory or a descriptor lacks. */
int spare_code(int code);

#endif
