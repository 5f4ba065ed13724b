/* SPDX-License-Identifier: MIT */
#ifndef DSP_CLOCK_H
#define DSP_CLOCK_H

/* When was a sample? The 64-bit sample counter of a source is the truth; this fits it to CLOCK_MONOTONIC.
 *
 * Each block of samples gives a pair: the counter after it, and the moment it arrived. Arrival jitters, so the pairs
 * are filtered by a second-order delay-locked loop (F. Adriaensen, "Using a DLL to filter time", LAC 2005) whose
 * bandwidth narrows from 1 Hz to 0.02 Hz as it settles; outliers pull it by no more than four times the usual error.
 * Late is what it can't see: a constant delay between capture and arrival stays in. One owner; nothing allocated. */

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct clock {
    double nominal; /* ns per sample as the source says */
    /* private from here */
    uint64_t counter; /* the newest pair's */
    int64_t ns;       /* fitted time of `counter`, whole part ... */
    double fraction;  /* ... and the rest, ns */
    double period;    /* fitted ns per sample */
    double age;       /* seconds observed since the first pair or the last jump */
    double since_gap; /* seconds observed since the last step longer than a second */
    double deviation; /* usual distance of an arrival from the fit, ns */
    double gain;      /* share of that which remains in the fit */
    int astray; /* pairs in a row too far off to be jitter */
    uint64_t jumps;
    bool started;
};

/* A source of `rate` Hz nobody heard of yet. */
void clock_init(struct clock *clock, double rate);

/* A pair: `counter` samples had arrived at `ns` of CLOCK_MONOTONIC. Counters must rise; a pair that doesn't is ignored.
 * Samples that were lost still count, so a gap needs nothing special. Where time ran on without samples (suspend, a
 * stalled device) the fit jumps to the new line after eight pairs that agree on it, and keeps its rate. */
void clock_observe(struct clock *clock, uint64_t counter, int64_t ns);

/* The time of a sample in ns of CLOCK_MONOTONIC: when `counter` samples had been captured. Any counter, also ahead of
 * the newest pair; 0 before the first one. */
int64_t clock_time(const struct clock *clock, uint64_t counter);

/* The other way: how many samples had been captured by `ns`, to the nearest; 0 before the first pair. */
uint64_t clock_count(const struct clock *clock, int64_t ns);

double clock_ppm(const struct clock *clock);      /* how much faster than its nominal rate the source runs, 1e-6 */
double clock_error_ns(const struct clock *clock); /* estimated standard error of clock_time near the newest pair  */
uint64_t clock_jumps(const struct clock *clock);  /* times the line was left for a new one                        */

/* UTC - CLOCK_MONOTONIC as it is now, ns: a step of the wall clock shows as it is (dsp/wall.h is for telling times). */
int64_t clock_utc_offset(void);

int64_t clock_now(void);      /* CLOCK_MONOTONIC, ns */
int64_t clock_asleep(void);   /* how long the machine was suspended since it started, ns */
double clock_seconds(void);   /* clock_now in s, to measure spans with */
int64_t clock_utc_now(void);  /* CLOCK_REALTIME, ns since 1970: to show, never to measure with */

/* Time as a test wants it: what these clocks say, ns, and how many of their seconds go into a real one. All that asks for the
 * time or waits goes by it, so that a month passes in minutes. */
struct clock_world {
    int64_t (*now)(void), (*asleep)(void), (*utc)(void);
    double pace;
};
/* Before any thread starts; kept, not copied. NULL: the system's clocks again. */
void clock_replace(const struct clock_world *world);
/* How long `ns` of clock_now really take, 1 at least: for ppoll, or a timer. */
int64_t clock_span(int64_t ns);

#ifdef __cplusplus
}
#endif
#endif
