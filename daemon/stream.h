/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_STREAM_H
#define DAEMON_STREAM_H

/* One stream's way through its model, sample by sample accounted for:
 *
 *   feed -> hole? -> resampler -> staging | the engine's step | blend with the input, align -> sinks
 *
 * A stream with several hops waiting gives up to STREAM_HOPS of them to one step, and one that is behind by more gives up to
 * STREAM_PIECE of them to a scan, which goes on from its state: so it catches up. Where samples are
 * missing, whole hops are skipped and the next one carries elapsed = 1 + skipped hops; what is left of a hole (less than a
 * hop, or than the smallest number of samples that is whole hops at both rates) is silence. Sample numbers run on over both.
 * Hops that a failing device did not compute are a hole too, told with the next hop; the stream goes on on the processor.
 * A sensor's stream gets its hops as they are, each with the time since the one before (daemon/rows.h); its deliveries count
 * CADENCE_TICKS a second.
 * A patient stream waits for room in its sinks, and a live one until half of its feed is full.
 * At the end of a stream of sound the model's delay is pushed out with silence, and the output is cut to the input's length.
 *
 * Engine's thread unless said otherwise; before that is started, whoever sets it up. Nothing is allocated after
 * stream_create. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/counters.h"
#include "daemon/feed.h"
#include "daemon/ladder.h"
#include "daemon/record.h"
#include "daemon/rows.h"
#include "daemon/sink.h"
#include "model/ssm.h"

enum { STREAM_HOPS = 8, STREAM_PIECE = 64 };

struct stream;

/* Everything is borrowed until stream_destroy. */
struct stream_setup {
    struct ssm_engine *engine; /* opened with max_hops = STREAM_HOPS; its model fits (daemon/fit.h) */
    struct feed *feed;
    struct rows *rows;         /* of a sensor, instead of a feed; else NULL          */
    int rate;                  /* of the feed, Hz; of rows the model's               */
    bool patient;              /* never loses a hop: waits for room in its sinks     */
    struct sink *const *sinks; /* (n_sinks)                                          */
    int n_sinks;
    int channel;               /* its index in the sinks                             */
    struct counters *counters;
    float share;               /* of the input itself in what comes out; only of a model that gives samples */
    bool bypass;               /* begin in bypass                                    */
    struct ssm_engine *smaller; /* stands in for the other in overload (daemon/ladder.h); NULL: none */
    int priority;              /* in overload the streams of the least give way first */
    int64_t deadline;          /* ns after its last sample came that a hop is late; 0: never */
};

/* Any thread. NULL with *err: out of memory. */
struct stream *stream_create(const struct stream_setup *setup, struct ssm_error *err);
/* Any thread, of a stream that is closed, or whose engine nobody steps any more. NULL is fine. */
void stream_destroy(struct stream *stream);

/* Take a slot of one of its engines, and give it back (safe to repeat). -1 with *err: none is free. */
int stream_open(struct stream *stream, const struct ssm_engine *engine, struct ssm_error *err);
void stream_close(struct stream *stream, const struct ssm_engine *engine);
/* Once it is open: have its hops lie in its slot's room of the engine's. */
void stream_house(struct stream *stream, const struct ssm_engine *engine, const struct rooms *rooms);
/* It is the engine of the stream's model, not of its smaller one. */
bool stream_is_of(const struct stream *stream, const struct ssm_engine *engine);

/* ---- A turn. ---- */

/* What a stream wants of one of its engines' step. PASS: nothing but to be delivered with it. WAITS: it has a hop, but its sinks
 * have no room. */
enum stream_need { STREAM_NOTHING, STREAM_STEP, STREAM_PASS, STREAM_WAITS };

/* Stage what waits, as much as one step takes. */
enum stream_need stream_take(struct stream *stream, const struct ssm_engine *engine, struct ssm_hop *step);
/* What the step gave, begun and ended at these ns, goes to the sinks. False: not yet, another of its engines is to step first.
 * overdue: ns of sound beyond two hops that wait behind what was late, 1 at least; below 0: it was in time. */
bool stream_deliver(struct stream *stream, const struct ssm_hop *step, int64_t enq, int64_t inf, int64_t *overdue);
/* Room for a piece of a stream that catches up, which may be of any stream of one engine. */
struct stream_piece {
    float *staging, *out; /* (STREAM_PIECE, inputs), (STREAM_PIECE, outputs) */
    int64_t arrived[STREAM_PIECE];
};

/* Between a turn's steps: where more than two steps' hops wait and its model alone computes the stream, stage as many as there
 * are, for ssm_scan on their way through. False: there is no need. True: stream_end_scan is to follow. */
bool stream_begin_scan(struct stream *stream, struct stream_piece *piece, struct ssm_hop *scan);
void stream_end_scan(struct stream *stream, struct stream_piece *piece, const struct ssm_hop *scan, int64_t enq, int64_t inf);
/* Tell the sinks of the end once the last hop is out. True: it just ended. */
bool stream_retire(struct stream *stream);

bool stream_has_hop(const struct stream *stream);
/* More will come at a steady pace: worth waiting for. A sensor comes when it comes. */
bool stream_is_fed(const struct stream *stream);
/* Ask the engine where it runs now, for the deliveries to tell. */
void stream_find_device(struct stream *stream);

/* ---- Changes while it runs. ---- */

/* What of a stream_setup may change; the array of sinks is borrowed as there. */
struct stream_change {
    struct sink *const *sinks;
    int n_sinks;
    float share;
    bool switches, bypass; /* switches: to bypass, or from it; else it stays as it is */
    int64_t deadline;
};

/* At the next hop's border: sinks that are gone are told of the end, new ones begin there, shares change in 10 ms. */
void stream_change(struct stream *stream, const struct stream_change *change);

/* Another model in the place of a stream's, on another engine: of the same rate, hop, delay and outputs, for sound. */
struct successor;
struct successor *successor_create(struct ssm_engine *engine); /* any thread; NULL when memory runs out */
void successor_destroy(struct successor *successor);           /* any thread, once no stream has it; NULL is fine */
/* Have it at hand, before it is opened, and no more, once it is closed. */
void stream_await(struct stream *stream, const struct successor *successor);
void stream_await_none(struct stream *stream);
/* Have it run beside the model, on the same input, and come to be heard. */
void stream_succeed(struct stream *stream);
bool stream_succeeded(const struct stream *stream); /* any thread: it is, or nothing is */
/* Let it be the stream's model. What that was is the successor's now, which is to be closed and awaited no more. False: a hop is
 * on its way; none follows it before this is asked again. */
bool stream_settle(struct stream *stream, struct successor *successor);

/* It ends here, whatever waits; its sinks are told. */
void stream_cut(struct stream *stream);

/* ---- Its state. ---- */

/* The model goes back to its zero state; sample numbers run on. Gives a status of ssm.h. */
int stream_reset(struct stream *stream);

size_t stream_state_size(const struct stream *stream);

/* Copy where a stream is and its model's state, without what waits in front of the model. Gives a status of ssm.h: SSM_REFUSED
 * while a step is on its way, or the model stands still in overload, and an older copy is the better one. */
int stream_copy(struct stream *stream, struct record *record, void *state, size_t size);

/* Before start: go on from a copy. The source's first sample is the stream's sample `at` (at the source's rate), or where `at`
 * is 0, the one that its time of arrival makes it, or of a sensor its own time: what it gives again is taken, and comes out no
 * second time. From record->out to it is a hole, which is told. -1 with *err: it is of
 * another model or rate, or damaged; the stream is as before. */
int stream_resume(struct stream *stream, const struct record *record, uint64_t at, struct ssm_error *err);

/* A stream that moves elsewhere. */
struct leaving {
    struct record record; /* what is to be carried there; it points into waiting and state */
    float *waiting;       /* room for a hop                       */
    void *state;          /* room for stream_state_size           */
    size_t state_size;
};

/* Loop thread, before the stream's source is stopped: when its feed is at its end, the stream ends here after the last whole
 * hop, and what is left of it is in *leaving, which stays until stream_ended. A stream that had ended by itself leaves
 * record.state_size at 0. False: it is in bypass and can't leave. */
bool stream_leave(struct stream *stream, struct leaving *leaving);

/* Into a stream that has taken nothing yet: go on with one that left elsewhere; the source's next sample is record->taken. -1
 * with *err: 75, it has begun; 65, it is of another model, or damaged; the stream is then as before. */
int stream_enter(struct stream *stream, const struct record *record, struct ssm_error *err);

/* Before start: keep writing the sample up to which it went out. */
void stream_mark(struct stream *stream, _Atomic uint64_t *mark);

/* ---- In overload. ---- */

/* It waits for room in its sinks, and may wait for others. */
bool stream_is_patient(const struct stream *stream);
/* It is live: its rungs are there to be gone down. */
bool stream_gives_way(const struct stream *stream);
int stream_priority(const struct stream *stream);
/* One rung down or up. False: there is none. */
bool stream_lower(struct stream *stream);
bool stream_raise(struct stream *stream);

/* ---- Any thread. ---- */

/* Have the input itself, as late as the model's output, go out instead of that, from the next hop on; a fade of 10 ms at each
 * switch. The model goes on beside it. False: the model gives scores, there is nothing to bypass. */
bool stream_bypass(struct stream *stream, bool bypass);

uint64_t stream_hops(const struct stream *stream);    /* given out so far               */
uint64_t stream_samples(const struct stream *stream); /* taken in this run, feed's rate */
bool stream_ended(const struct stream *stream);
enum rung stream_rung(const struct stream *stream);
uint64_t stream_late(const struct stream *stream);    /* hops that were out after their deadline               */
int64_t stream_delay(const struct stream *stream);    /* ns from the last step's first hop being there to its being out */

#endif
