/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_LADDER_H
#define DAEMON_LADDER_H

/* What computes one stream: its model, or, when there is more to do than time, a smaller one, none (sound then goes by as it
 * came in), or nothing is even passed on. Between two models the one that comes in first runs beside the other for some hops,
 * then the output goes over within one; into and out of the bypass the stream fades (dsp/blend.h).
 *
 *   RUNG_MODEL -> RUNG_SMALLER (where there is one) -> RUNG_BYPASS (of sound) -> RUNG_DROP
 *
 * A model that stood still is told of the time when it goes on, as behind a gap. Engine's thread unless said otherwise; nothing
 * is allocated after ladder_init. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "model/ssm.h"

enum { LADDER_SIDES = 3 };
enum rung { RUNG_MODEL, RUNG_SMALLER, RUNG_BYPASS, RUNG_DROP, RUNGS };
extern const char *const rung_names[RUNGS];

/* One model of a stream. */
struct ladder_side {
    struct ssm_engine *engine; /* NULL: there is none              */
    const struct ssm_info *model;
    ssm_stream slot;           /* 0: not open                      */
    float *out;                /* (hops, outputs) of the last step */
    float *own;                /* where that is without rooms      */
    float *in;                 /* the engine's room for a step's input; NULL: none */
    double away;               /* hops that went by without it     */
    bool ran, failed, blown;   /* at all; in the last step         */
    char device[16];
};

/* For the hops of each slot of an engine, within reach of its devices. */
struct rooms {
    float *memory;          /* (slots, inputs + outputs); NULL: none */
    size_t inputs, outputs; /* of all the hops of a step             */
};

struct ladder {
    struct ladder_side sides[LADDER_SIDES]; /* the model, the smaller one, and the one that is to take the model's place */
    bool scores;     /* the models give scores, not samples */
    bool comes;      /* the third is to                     */
    int lead, next;  /* whose output goes out, and whose is to, once it is warm: 0, 1, 2; -1: none's */
    int warm;        /* hops until then                     */
    int from, fading; /* over so many hops yet the output comes from this one, too */
    unsigned steps;  /* bits of those that step this turn   */
    unsigned waits;  /* and of those that have yet to       */
    atomic_int rung; /* where it is to be                   */
    atomic_bool succeeded; /* the one that comes is heard, or none of them is */
};

/* smaller: NULL or another engine whose model is of the same rate, hop, delay and outputs. hops: at most so many a step. 0, or
 * -1 when memory runs out. */
int ladder_init(struct ladder *ladder, struct ssm_engine *engine, struct ssm_engine *smaller, int hops);
void ladder_finish(struct ladder *ladder);

/* Take a slot of one of its engines, and give it back (safe to repeat). -1 with *err: none is free. */
int ladder_open(struct ladder *ladder, const struct ssm_engine *engine, struct ssm_error *err);
void ladder_close(struct ladder *ladder, const struct ssm_engine *engine);
/* Once it is open, until it is closed: what goes to this engine and comes from it lies in its slot's room of these. */
void ladder_house(struct ladder *ladder, const struct ssm_engine *engine, const struct rooms *rooms);

/* Another engine with a model of the same rate, hop, delay and outputs, which is to be opened; taken back, once it is closed.
 * Its `out` stays the caller's. */
int ladder_side_init(struct ladder_side *side, struct ssm_engine *engine, int hops); /* any thread; -1: no memory */
void ladder_await(struct ladder *ladder, const struct ladder_side *side);
void ladder_await_none(struct ladder *ladder);
/* Have it take the model's place: it runs beside it for a second, then they fade over 50 ms. */
void ladder_succeed(struct ladder *ladder);
bool ladder_succeeded(const struct ladder *ladder); /* any thread: it may be put there, and the other closed */
/* With no hop on its way: put it there, faded or not. The other stands where it stood, to be closed. */
void ladder_settle(struct ladder *ladder);

/* Ask the engines where the stream runs now. */
void ladder_find_devices(struct ladder *ladder);
/* Back to the models' zero state. Gives a status of ssm.h. */
int ladder_reset(struct ladder *ladder);

/* One rung down or up. False: there is none. */
bool ladder_lower(struct ladder *ladder);
bool ladder_raise(struct ladder *ladder);
enum rung ladder_rung(const struct ladder *ladder); /* any thread */

/* Its model alone computes it, and is to. */
bool ladder_is_settled(const struct ladder *ladder);
/* Another place for the output of its model, as large as the steps to come. */
void ladder_swap_out(struct ladder *ladder, float **out);

/* ---- A turn. ---- */

/* With nothing to wait for: what is to step now. False: no model. */
bool ladder_plan(struct ladder *ladder);
/* Whether this engine is to step now, or still is. */
bool ladder_runs(const struct ladder *ladder, const struct ssm_engine *engine);
/* Its part of a step of `count` hops. */
struct ssm_hop ladder_step(struct ladder *ladder, const struct ssm_engine *engine, const float *in, int count, float elapsed);
/* That was done. True: by all that were to. */
bool ladder_stepped(struct ladder *ladder, const struct ssm_hop *step);
/* Then, hop by hop: what goes out, which the caller may change. given: false where the device failed. */
float *ladder_out(struct ladder *ladder, int hop, bool *given);
/* The input itself is to go out, or a fade goes there. */
bool ladder_is_dry(const struct ladder *ladder);
/* The fade to the input is through: the model need not run on. */
void ladder_rest(struct ladder *ladder);
/* All hops are out. */
void ladder_end(struct ladder *ladder, int count, float elapsed);

/* Whose output it is; in bypass the model's that isn't bypassed otherwise. */
const struct ladder_side *ladder_lead(const struct ladder *ladder);

#endif
