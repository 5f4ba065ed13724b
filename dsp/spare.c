/* SPDX-License-Identifier: MIT */
#include "dsp/spare.h"

#include <errno.h>
#include <fcntl.h>
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

void spare_standard(void)
{
    for (int fd = 0; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) { /* the lowest that is free: this */
            return;
        }
    }
}

bool spare_input(void)
{
    int flags = fcntl(STDIN_FILENO, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_WRONLY;
}

int spare_code(int code)
{
    return errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS ? EX_OSERR : code;
}
