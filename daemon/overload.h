/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_OVERLOAD_H
#define DAEMON_OVERLOAD_H

/* When a thread that computes too much has to give some of it up, and when it may take it back. It is told how long it was
 * busy and how late what it gave was, and looks at that 40 times a second:
 *
 *   too late for 100 ms, without catching up       OVERLOAD_LOWER, and again each 100 ms
 *   busy for less than 70 % of 5 s, and in time    OVERLOAD_RAISE, and then each second
 *
 * Where a raise ends in another lowering within 30 s, the next one waits twice as long, up to 5 minutes; after as long in peace it
 * is 5 s again. Catching up is a lateness that shrinks by a tenth of the time that goes by. No clock is asked, nothing allocated; one
 * thread. */

#include <stdbool.h>
#include <stdint.h>

enum overload_verdict { OVERLOAD_STAY, OVERLOAD_LOWER, OVERLOAD_RAISE };

struct overload {
    int64_t from, busy, worst; /* this look's begin, and what was noted since             */
    bool noted;
    int64_t lateness;          /* the look before's worst                                 */
    double load;               /* share of the time in which it was busy, of a second or so */
    int64_t late_since, calm_since; /* 0: it isn't                                        */
    int64_t calm, raised, lowered;  /* how long it has to be; when it last was            */
    bool climbing;             /* the last verdict that wasn't to stay was to raise       */
};

void overload_init(struct overload *overload, int64_t now);

/* Busy for so many ns; what was given then came so late (ns; up to 0: in time). */
void overload_note(struct overload *overload, int64_t busy, int64_t lateness);

enum overload_verdict overload_judge(struct overload *overload, int64_t now);

#endif
