/* SPDX-License-Identifier: MIT */
#include "dsp/spare.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sysexits.h>
#include <unistd.h>

/* libzmq's two threads begin with a descriptor and an epoll each, a socket has one; who binds asks for the interfaces with one.
 * libuv has a pipe, an epoll and an eventfd. */
enum { SPARE = 8 };

bool spare_descriptors(void)
{
    int fds[SPARE], n = 0;
    while (n < SPARE && (fds[n] = eventfd(0, EFD_CLOEXEC)) >= 0) {
        n++;
    }
    int error = errno;
    for (int i = 0; i < n; i++) {
        close(fds[i]);
    }
    errno = error;
    return n == SPARE;
}

int spare_code(int code)
{
    return errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS ? EX_OSERR : code;
}
