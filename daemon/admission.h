/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_ADMISSION_H
#define DAEMON_ADMISSION_H

/* How many live streams this machine carries, and who comes in. A stream costs a share of the capacity, by its model; who finds
 * none left is turned away at once, rather than that everybody is late.
 *
 * The capacity is told, each stream an equal share of it; or measured as each model is opened: a step of one stream and a step
 * of many tell what a step costs, and what each stream in it. Any thread. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "model/ssm.h"

struct admission {
    int told;               /* streams; 0: no limit, below: measured              */
    _Atomic int64_t taken;  /* of ADMISSION_ALL                                   */
    _Atomic int64_t dearest; /* stream so far                                     */
    _Atomic uint64_t rejected; /* that found no room                              */
};

enum { ADMISSION_ALL = 1000000000 };

/* capacity: of streams; 0: no limit, below: it is measured. */
void admission_init(struct admission *admission, int capacity);

/* What a stream of a model that was just opened, with no streams yet, costs; and what it costs besides, taken at once. */
struct admission_cost {
    int64_t each, besides;
};
struct admission_cost admission_measure(struct admission *admission, struct ssm_engine *engine);
void admission_forget(struct admission *admission, const struct admission_cost *cost); /* the model is closed */

/* One source's streams, or one connection's. */
struct admission_pass {
    struct admission *admission; /* NULL: everybody may */
    int64_t cost;
    atomic_bool in;
};

/* False: there is no room, which is counted. True, also if it is in already: until admission_leave. */
bool admission_enter(struct admission_pass *pass);
void admission_leave(struct admission_pass *pass); /* safe to repeat */
/* It is in, or would find room now; else that is counted. */
bool admission_could_enter(struct admission_pass *pass);

/* How many streams of the dearest model there is room for in all; 0: no limit. */
int admission_capacity(const struct admission *admission);

#endif
