/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_OVERLOAD_H
#define DAEMON_OVERLOAD_H

/* When a thread that computes too much has to give some of it up, and when it may take it back. It is told how long it was
 * busy and how much waits that is late already, and looks at that 40 times a second:
 *
 *   late and busy for 100 ms, not catching up      something has to be lowered, and so on
 *   busy for less than 70 % of 5 s, and in time    something may be raised, and then each second
 *
 * Where a raise ends in another lowering within 30 s, the next one waits twice as long, up to 5 minutes; after as long in peace it
 * is 5 s again. Catching up is when what waits would be gone in 3 s at this pace, and shrinks by a tenth of the time at least.
 * No clock is asked, nothing allocated; one thread. */

#include <stdbool.h>
#include <stdint.h>

struct overload {
    int64_t from, busy, waiting; /* this look's begin, and what was noted since; waiting: last */
    int64_t before;            /* what waited at the look before                          */
    double load;               /* share of the time in which it was busy, of a second or so */
    int64_t late_since, calm_since; /* 0: it isn't                                        */
    int64_t calm, raised, lowered;  /* how long it has to be; when it last was            */
    bool climbing;             /* the last verdict that wasn't to stay was to raise       */
};

void overload_init(struct overload *overload, int64_t now);

/* Busy for so many ns. */
void overload_note_busy(struct overload *overload, int64_t busy);
/* So many ns of what is to be done wait and are late now; up to 0: none. */
void overload_note_waiting(struct overload *overload, int64_t waiting);

/* 1: raise; -n: lower n times; 0: stay. */
int overload_judge(struct overload *overload, int64_t now);

#endif
