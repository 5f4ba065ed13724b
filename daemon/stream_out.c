/* SPDX-License-Identifier: MIT */
#include "daemon/stream_parts.h"

#include <math.h>
#include <string.h>

#include "daemon/wire.h"

enum { BEARABLE = 2 }; /* hops that wait */

static void measure_input(struct delivery *delivery, const float *hop, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float size = fabsf(hop[i]);
        delivery->in_square += size * size;
        delivery->in_peak = size > delivery->in_peak ? size : delivery->in_peak;
    }
}

int64_t way_out_capture_time(const struct stream *stream, uint64_t sample)
{
    uint64_t in = (uint64_t)stream->rate, out = (uint64_t)stream->model->rate;
    uint64_t part = sample * in % out * SECOND / (in * out); /* of a sample of the feed, in ns */
    return clock_time(&stream->clock, sample * in / out) + (int64_t)part;
}

/* The fit may learn that it was late, and an arrival be sooner than the one before: what is told never goes back. */
static int64_t later(struct stream *stream, int64_t tm)
{
    stream->tm = tm > stream->tm ? tm : stream->tm;
    return stream->tm;
}

/* Samples the failing device left out: a hole, and one more to be told. */
static void note_fault(struct stream *stream, uint64_t from, size_t n)
{
    stream->hole.from = stream->hole.to > stream->hole.from ? stream->hole.from : from;
    stream->hole.to = from + n > stream->hole.to ? from + n : stream->hole.to;
    stream->hole.n += n;
    stream->hole.why = COUNTER_DEVICE_FAULT;
    count(stream->counters, COUNTER_DEVICE_FAULT, n);
}

/* n samples, or scores about them, to the sinks, with the hole they show. */
static void hand_on(struct stream *stream, struct delivery *delivery, const float *out, size_t n)
{
    delivery->n = n;
    delivery->began = stream->began;
    delivery->samples = stream->scores ? NULL : out;
    delivery->scores = stream->scores ? out : NULL;
    bool hole = stream->hole.to > stream->hole.from && delivery->s0 + n > stream->hole.from;
    delivery->hole = hole ? stream->hole : (struct hole){.n = stream->hole.n};
    delivery->flags = (delivery->flags & ~(unsigned)WIRE_GAP) | (hole ? WIRE_GAP : 0);
    for (int i = 0; i < stream->n_sinks; i++) {
        stream->sinks[i]->ops->write(stream->sinks[i], stream->channel, delivery);
    }
    stream->hole.from = hole ? stream->hole.to : stream->hole.from;
    if (stream->mark) {
        atomic_store_explicit(stream->mark, delivery->s0 + n, memory_order_relaxed);
    }
}

/* Give n samples, the first of them `left`, or the scores about them to the sinks; what lies beyond the input's end is only the
 * model's delay. out NULL: the device failed. */
static void emit(struct stream *stream, struct delivery *delivery, int64_t left, const float *out, size_t n)
{
    delivery->s0 = (uint64_t)left + stream->shift;
    if (stream->flushed && delivery->s0 + n > stream->total) {
        n = delivery->s0 < stream->total ? (size_t)(stream->total - delivery->s0) : 0;
    }
    if (n == 0) {
        return;
    }
    if (!out) {
        note_fault(stream, delivery->s0, n);
        return;
    }
    delivery->tm = later(stream, way_out_capture_time(stream, delivery->s0));
    delivery->tm_error = (uint32_t)fmin(clock_error_ns(&stream->clock), UINT32_MAX);
    delivery->ppm = (float)clock_ppm(&stream->clock);
    hand_on(stream, delivery, out, n);
    atomic_fetch_add_explicit(&stream->samples_out, n, memory_order_relaxed);
}

/* Where in a hop that begins with sample `left` the part from sample `from` on is; scores are of all of the hop. */
static const float *part(const struct stream *stream, const float *out, int64_t left, int64_t from)
{
    return out && !stream->scores ? out + (from - left) : out;
}

/* One hop out, NULL for one that wasn't computed: cut off the model's delay at the start, and where a skip's border lies
 * inside, cut there. */
static void deliver_hop(struct stream *stream, struct delivery *delivery, const float *out)
{
    int64_t left = stream->left, end = left + stream->model->hop;
    stream->left = end;
    if (end <= stream->least) {
        return;
    }
    int64_t from = left > stream->least ? left : stream->least;
    struct skip *skip = &stream->skip;
    if (skip->entered && (int64_t)skip->at < end) {
        int64_t border = (int64_t)skip->at;
        if (from < border) {
            emit(stream, delivery, from, part(stream, out, left, from), (size_t)(border - from));
            from = border;
        }
        stream->shift += skip->samples;
        *skip = (struct skip){0};
    }
    emit(stream, delivery, from, part(stream, out, left, from), (size_t)(end - from));
}

static int64_t arrival(const struct stream *stream, int hop)
{
    return stream->rows ? stream->row[hop].arrived : stream->staged_arrived[hop];
}

int64_t way_out_note_delay(struct stream *stream, int64_t now)
{
    uint64_t late = 0;
    for (int i = 0; stream->deadline > 0 && i < stream->hops; i++) {
        late += now - arrival(stream, i) > stream->deadline;
    }
    if (late > 0) {
        atomic_fetch_add_explicit(&stream->late, late, memory_order_relaxed);
    }
    int64_t delay = now - arrival(stream, 0);
    atomic_store_explicit(&stream->delay, delay, memory_order_relaxed);
    int64_t unborne = way_in_backlog(stream) - hops_time(stream, BEARABLE);
    return stream->deadline == 0 || delay <= stream->deadline ? -1 : unborne > 1 ? unborne : 1;
}

/* The part of a delivery that a hop's model tells. */
static struct delivery tell_model(const struct stream *stream, int64_t cap, int64_t enq, int64_t inf)
{
    const struct ladder_side *lead = ladder_lead(&stream->ladder);
    bool lowered = stream->ladder.lead < 0 || stream->ladder.lead == 1, degraded = lead->blown || stream->faulted || lowered;
    struct delivery delivery = {.cap = cap, .enq = enq, .inf = inf, .model = lead->model, .flags = degraded ? WIRE_DEGRADED : 0};
    memcpy(delivery.device, lead->device, sizeof delivery.device);
    return delivery;
}

static void deliver(struct stream *stream, int64_t enq, int64_t inf)
{
    struct ladder *ladder = &stream->ladder;
    size_t hop = (size_t)stream->model->hop, n = (size_t)stream->hops * hop;
    bool bypass = atomic_load_explicit(&stream->bypass, memory_order_relaxed);
    for (int i = 0; i < stream->hops; i++) {
        bool given;
        float *in = stream->staging + (size_t)i * hop, *out = ladder_out(ladder, i, &given);
        struct delivery delivery = tell_model(stream, stream->staged_arrived[i], enq, inf);
        measure_input(&delivery, in, hop);
        if (stream->blend && blend_push(stream->blend, in, out, hop, bypass || ladder_is_dry(ladder))) {
            delivery.flags |= WIRE_BYPASS;
        }
        deliver_hop(stream, &delivery, given ? out : NULL);
        stream->faulted = !given;
    }
    if (stream->blend && blend_is_dry(stream->blend)) {
        ladder_rest(ladder);
    }
    memmove(stream->staging, stream->staging + n, (stream->staged - n) * sizeof(float));
    stream->staged -= n;
    stream->entered += n;
    atomic_store_explicit(&stream->samples_in, stream->position - stream->began_in, memory_order_relaxed);
}

/* A pause, or what found no room before a row: a hole up to it. */
static void note_gap(struct stream *stream, const struct row *row, uint64_t delay)
{
    uint64_t from = stream->ticks > delay ? stream->ticks - delay : 0, to = row->hop.from > delay ? row->hop.from - delay : 0;
    if (row->hop.gap && to > from) {
        stream->hole.from = stream->hole.to > stream->hole.from ? stream->hole.from : from;
        stream->hole.to = to;
        stream->hole.n += to - from;
        stream->hole.why = row->why;
    }
}

/* One row out, NULL for one that wasn't computed, about its readings' time, less the model's delay. */
static void deliver_row(struct stream *stream, struct delivery *delivery, const struct row *row, const float *scores)
{
    uint64_t delay = delay_ticks(stream), least = (uint64_t)stream->least + delay; /* before it all is out */
    uint64_t begin = row->hop.from > least ? row->hop.from : least;
    uint64_t from = begin > delay ? begin - delay : 0, to = row->hop.to > delay ? row->hop.to - delay : 0;
    note_gap(stream, row, delay);
    stream->ticks = row->hop.to;
    stream->time = row->hop.timed ? row->hop.time : NAN;
    stream->arrived = row->arrived;
    delivery->s0 = from;
    int64_t reading = SECOND / stream->model->rate;
    delivery->tm = later(stream, row->arrived + reading - (int64_t)(row->hop.to - from) * (SECOND / CADENCE_TICKS));
    delivery->tm_error = (uint32_t)reading; /* how long it was on its way is not known */
    delivery->sourced = row->hop.timed;
    delivery->origin = cadence_origin(&row->hop, stream->model->rate);
    if (row->hop.to <= least) {
        return;
    }
    if (!scores) {
        note_fault(stream, from, (size_t)(to - from));
    } else {
        hand_on(stream, delivery, scores, (size_t)(to - from));
        atomic_fetch_add_explicit(&stream->samples_out, (uint64_t)stream->model->hop, memory_order_relaxed);
    }
}

static void deliver_rows(struct stream *stream, int64_t enq, int64_t inf)
{
    for (int i = 0; i < stream->hops; i++) {
        bool given;
        const float *out = ladder_out(&stream->ladder, i, &given);
        struct delivery delivery = tell_model(stream, stream->row[i].arrived, enq, inf);
        deliver_row(stream, &delivery, &stream->row[i], given ? out : NULL);
        stream->faulted = !given;
    }
    stream->position += (uint64_t)(stream->hops * stream->model->hop);
    atomic_store_explicit(&stream->samples_in, stream->position - stream->began_in, memory_order_relaxed);
}

void way_out_deliver(struct stream *stream, int64_t enq, int64_t inf)
{
    (stream->rows ? deliver_rows : deliver)(stream, enq, inf);
}
