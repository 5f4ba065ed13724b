/* SPDX-License-Identifier: MIT */
#ifndef DSP_WALL_H
#define DSP_WALL_H

/* UTC of moments of CLOCK_MONOTONIC, which goes on where those do.
 *
 * It is what the host's clock says to 10 us, and goes ahead with it at once, from the moment on at which that was seen. Where that was set
 * back by up to two hours, time here runs at half its pace until the other has caught up; where by more, it was never right, and
 * what it says now is told from then on, though that is a step back. Never subtract two UTC times. One owner; nothing allocated. */

#include <stdbool.h>
#include <stdint.h>

enum { WALL_LOOKS = 64 };
#define WALL_BEARABLE (INT64_C(7200) * 1000000000) /* ns */

/* From `from` on UTC is ahead by `offset`, which shrinks by half of the time that goes by until it is `goal`. */
struct wall_look {
    int64_t from, offset, goal;
};

struct wall {
    struct wall_look looks[WALL_LOOKS]; /* a ring: moments that are told late have the time they would have had */
    uint64_t n;
};

/* Look at the host's clock: first of all, and then every second or so. False: it was set back by more than two hours. */
bool wall_look(struct wall *wall);

/* UTC ns since 1970 of `ns` of CLOCK_MONOTONIC, which is no later than the last look and, where the clock was set meanwhile, not
 * older than WALL_LOOKS of them: else it may be told otherwise the next time. */
int64_t wall_utc(const struct wall *wall, int64_t ns);

#endif
