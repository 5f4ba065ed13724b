/* SPDX-License-Identifier: MIT */
#ifndef DSP_EVENTS_H
#define DSP_EVENTS_H

/* Scores -> events: one row of probabilities a hop in, "label i from sample a to sample b" out.
 *
 * Each label on its own: it begins with the first row at `on` or above and lasts while rows stay at `off` or above. A dip
 * below `off` of at most hold_s is bridged; a longer one ended the event where the dip began. What lasted less than min_s is
 * never told; what lasted is told twice: its beginning as soon as min_s is reached, and its end. Where labels exclude each
 * other at most one is on: the others wait until one of them reaches its own `on` and is above it, which ends it at once.
 *
 * Times are sample numbers and run over gaps. An event never reaches over a gap: the caller cuts there. Nothing is allocated
 * after events_create; one thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct events;

struct event_rule {
    float on, off;         /* off <= on                                                          */
    double min_s, hold_s;  /* shortest event; longest dip inside one                             */
    double max_s;          /* a longer event is cut, and goes on as another; 0 = any length      */
};

enum event_kind {
    EVENT_BEGIN, /* `to` is how far it is known to last by now                                   */
    EVENT_END,
    EVENT_CUT    /* the same, but not because the score fell: a gap, the end, max_s              */
};

struct event {
    enum event_kind kind;
    int label;
    uint64_t from, to; /* samples [from, to)                                                     */
    float peak, mean;  /* of the scores in [from, to), each by its samples; at BEGIN so far      */
};

/* Called from inside the functions below; must not call back into the same events. */
typedef void events_told(void *context, const struct event *event);

/* rules (labels); borrowed for the call. NULL when memory runs out. */
struct events *events_create(const struct event_rule *rules, int labels, bool exclusive, int rate, events_told *told,
                             void *context);
void events_destroy(struct events *events); /* NULL is fine */

/* One row: scores (labels) that speak of the n samples from s0 on, s0 not before the end of the row before; between the two
 * there may be time of which none speaks. A NaN counts as 0. */
void events_push(struct events *events, uint64_t s0, uint64_t n, const float *scores);

/* A gap, or the end: what is on ends where the last row that belongs to it did. Rows may follow. */
void events_cut(struct events *events);

/* The first sample of the earliest event that is on, told or not yet; no event told later begins before it, but with a later
 * row. UINT64_MAX when none is on. */
uint64_t events_open_since(const struct events *events);

#endif
