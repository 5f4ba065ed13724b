/* SPDX-License-Identifier: MIT */
#ifndef TESTS_HELPER_DEVICE_H
#define TESTS_HELPER_DEVICE_H

/* For test programs that are their own cards' helper (daemon/link.h), with a script instead of PortAudio. */

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "daemon/link.h"
#include "dsp/clock.h"

static inline void sleep_until(int64_t ns)
{
    int64_t left = ns - clock_now();
    if (left > 0) {
        nanosleep(&(struct timespec){left / 1000000000, left % 1000000000}, NULL);
    }
}

/* The link, in a process that doesn't outlive the test. */
static inline struct link *helper_map(int memory)
{
    struct link *link = link_map(memory);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return link;
}

/* Say that the device "TEST:<name>" is open, at `rate` Hz, and begin when told to; ends the process when it isn't. */
static inline void helper_begin(struct link *link, int socket, const char *name, int rate)
{
    char word;
    snprintf(link->name, sizeof link->name, "TEST:%.200s", name);
    link->got_rate = rate;
    link_say(link, socket, LINK_OPENED);
    if (recv(socket, &word, 1, 0) != 1) {
        _exit(0);
    }
    link_begin(link);
    link_say(link, socket, LINK_RUNS);
}

#endif
