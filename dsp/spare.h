/* SPDX-License-Identifier: MIT */
#ifndef DSP_SPARE_H
#define DSP_SPARE_H

#include <stdbool.h>

/* Are there as many descriptors to be had as a library needs at once that ends the process where it finds none: libzmq for its
 * first socket and as it binds, libuv for its first loop? False with errno. Any thread; they are had for a moment. */
bool spare_descriptors(void);

/* First of all in main: of standard input, output and error each that is closed becomes a descriptor that can't be read or written
 * (EBADF), so that no file and no socket gets its number: what is printed would go there, and libuv ends the process. */
void spare_standard(void);
/* Standard input is there, and can be read. */
bool spare_input(void);

/* `code`, or EX_OSERR where errno says that memory or a descriptor lacks. */
int spare_code(int code);

#endif
