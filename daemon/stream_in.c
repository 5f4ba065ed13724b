/* SPDX-License-Identifier: MIT */
#include "daemon/stream_parts.h"

#include <math.h>
#include <string.h>

/* LATE_MOST: more readings in a row don't come late, but by a clock that was set back. */
enum { LATE_MOST = 16 };

static const float silence[RAW];

/* ---- Of sound. ---- */

/* `hole` samples are missing at the feed's position: leave out whole units, from a hop's border on, and fill up the rest with
 * silence. One skip at a time: while one is still on its way through, silence is all there is. */
void way_in_note_hole(struct stream *stream, uint64_t hole, enum counter why)
{
    int in = stream->rate, out = stream->model->rate;
    uint64_t from = scale_up(stream->position, in, out), to = scale_up(stream->position + hole, in, out);
    stream->hole.from = stream->hole.to > stream->hole.from ? stream->hole.from : from;
    stream->hole.to = to;
    stream->hole.n += to - from;
    stream->hole.why = why;

    uint64_t enters = scale_up(stream->position - stream->skipped, in, out), hop = (uint64_t)stream->model->hop;
    uint64_t to_border = (hop - enters % hop) % hop;
    uint64_t units = stream->skip.samples > 0 ? 0 : hole / stream->unit_in;
    if (units > 0 && hole - units * stream->unit_in < scale_up(to_border, out, in)) {
        units--;
    }
    stream->zeros = hole - units * stream->unit_in;
    stream->skip = units > 0 ? (struct skip){enters + to_border, units * stream->unit_out, false} : stream->skip;
    stream->skipped += units * stream->unit_in;
    stream->position += units * stream->unit_in;
}

static size_t silence_bad_samples(float *samples, size_t n)
{
    size_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        bool good = isfinite(samples[i]);
        samples[i] = good ? samples[i] : 0;
        bad += !good;
    }
    return bad;
}

/* The source's first `n` samples of this run have arrived: what went by since the state was taken is a hole. The stream goes on
 * in it as behind any other: whole units are left out, of which the model is told as time, and the rest is silence. */
static void go_on(struct stream *stream, size_t n, int64_t arrived)
{
    const struct resume *resume = &stream->resume;
    int in = stream->rate, out = stream->model->rate;
    double away = (double)(arrived - resume->captured) * 1e-9 * in - (double)n;
    uint64_t at = resume->at > 0 ? resume->at : scale_up(resume->position, out, in) + (uint64_t)fmax(round(away), 0);
    uint64_t units = at / stream->unit_in, to = scale_up(at, in, out);
    stream->began_in = stream->position = stream->skipped = units * stream->unit_in;
    stream->began = stream->shift = units * stream->unit_out;
    stream->zeros = at - stream->position;
    if (stream->began > resume->position) {
        stream->elapsed = (float)fmin(1 + (double)(stream->began - resume->position) / stream->model->hop, 1e6);
    }
    if (to > resume->out) {
        stream->hole = (struct hole){.n = to - resume->out, .from = resume->out, .to = to, .why = COUNTER_RESTART};
        count(stream->counters, COUNTER_RESTART, to - resume->out);
    }
    stream->resume.pending = false;
}

/* Have raw samples or silence at hand; false when there are none now. */
static bool refill(struct stream *stream)
{
    if (stream->raw_at < stream->raw_n || stream->zeros > 0) {
        return true;
    }
    if (stream->dropped > 0) {
        way_in_note_hole(stream, stream->dropped, COUNTER_OVERLOAD);
        stream->dropped = 0;
        if (stream->zeros > 0) {
            return true;
        }
    }
    struct feed_note note;
    stream->raw_at = 0;
    stream->raw_n = feed_read(stream->feed, stream->raw, RAW, &note);
    if (stream->resume.pending && stream->raw_n > 0) {
        go_on(stream, stream->raw_n + note.rest, note.arrived);
    }
    if (note.hole > 0) {
        way_in_note_hole(stream, note.hole, note.why);
    }
    if (stream->raw_n > 0) {
        clock_observe(&stream->clock, stream->position + stream->zeros + stream->raw_n + note.rest, note.arrived);
        stream->arrived = note.arrived;
        count(stream->counters, COUNTER_NAN_INPUT, silence_bad_samples(stream->raw, stream->raw_n));
    }
    return stream->raw_n > 0 || stream->zeros > 0;
}

/* Count `n` more samples into staging; hops that become whole have arrived now. */
static void staged(struct stream *stream, size_t n)
{
    size_t hop = (size_t)stream->model->hop;
    for (size_t i = stream->staged / hop; i < (stream->staged + n) / hop; i++) {
        stream->staged_arrived[i] = stream->arrived;
    }
    stream->staged += n;
}

/* Push silence first, then raw samples, up to `limit` samples in staging. */
static void push(struct stream *stream, size_t limit)
{
    bool zeros = stream->zeros > 0;
    size_t n = zeros ? (stream->zeros < RAW ? (size_t)stream->zeros : RAW) : stream->raw_n - stream->raw_at, used;
    const float *in = zeros ? silence : stream->raw + stream->raw_at;
    staged(stream, resampler_push(stream->resampler, in, n, &used, stream->staging + stream->staged,
                                  limit - stream->staged, 0));
    stream->zeros -= zeros ? used : 0;
    stream->raw_at += zeros ? 0 : used;
    stream->position += used;
}

/* The feed ended: the resampler's tail, then silence until the model's delay is out and the hop is whole. */
static void push_tail(struct stream *stream, size_t limit)
{
    size_t used, hop = (size_t)stream->model->hop;
    staged(stream, resampler_push(stream->resampler, silence, 0, &used, stream->staging + stream->staged,
                                  limit - stream->staged, 1));
    if (stream->staged == limit) {
        return;
    }
    stream->flushed = true;
    stream->leaves = atomic_load(&stream->leave) != NULL;
    if (stream->leaves) { /* the rest goes on elsewhere */
        stream->total = UINT64_MAX;
        return;
    }
    stream->total = scale_up(stream->position, stream->rate, stream->model->rate);
    uint64_t skipped = stream->skipped / stream->unit_in * stream->unit_out;
    uint64_t goal = stream->total - skipped + (uint64_t)stream->model->delay;
    goal = (goal + hop - 1) / hop * hop;
    uint64_t at = stream->entered + stream->staged;
    size_t more = goal > at ? (size_t)(goal - at) : 0, room = limit - stream->staged;
    if (more > room) {
        stream->flushed = false; /* the rest next time: the flush gives nothing twice */
        more = room;
    }
    memset(stream->staging + stream->staged, 0, more * sizeof(float));
    staged(stream, more);
}

/* A skip's border is reached with nothing staged: time jumps. Else no sample beyond it may be staged yet. */
static size_t limit_to_skip(struct stream *stream, size_t limit)
{
    struct skip *skip = &stream->skip;
    if (skip->samples == 0 || skip->entered) {
        return limit;
    }
    if (stream->entered == skip->at) {
        skip->entered = true;
        stream->elapsed = 1 + (float)(skip->samples / (uint64_t)stream->model->hop);
        return limit;
    }
    uint64_t left = skip->at - stream->entered;
    return left < limit ? (size_t)left : limit;
}

/* Stage up to `hops` hops; gives the whole ones there are. */
static size_t fill(struct stream *stream, size_t hops)
{
    size_t hop = (size_t)stream->model->hop, limit = limit_to_skip(stream, hops * hop);
    while (stream->staged < limit && refill(stream)) {
        limit = limit_to_skip(stream, hops * hop); /* refill may have met a hole */
        if (stream->staged < limit) {
            push(stream, limit);
        }
    }
    if (stream->staged < limit && !stream->flushed && feed_ended(stream->feed)) {
        push_tail(stream, limit);
    }
    return stream->staged / hop;
}

/* ---- Of a sensor. ---- */

/* A sensor's first row in this run: it is as far from the one that the state has seen as its time says, by the source's clock or,
 * where that tells none, by its arrival. False: it is from before. */
static bool go_on_with(struct stream *stream, struct row *row)
{
    struct resume *resume = &stream->resume;
    double length = (double)stream->model->hop / stream->model->rate;
    double away = row->hop.timed ? row->hop.time - resume->time : NAN;
    away = isfinite(away) ? away : (double)(row->arrived - resume->captured) * 1e-9;
    if (!(away > 0) && ++resume->late <= LATE_MOST) {
        count(stream->counters, COUNTER_LATE_READING, (uint64_t)stream->model->hop);
        return false;
    }
    away = fmin(fmax(away, stream->model->hop == 1 && away > 0 ? 0 : length), 1e6 * length);
    uint64_t to = resume->position + (uint64_t)llround(away * CADENCE_TICKS);
    stream->shift = to - row->hop.to;
    row->hop.elapsed = (float)(away / length);
    stream->least = (int64_t)resume->out;
    stream->ticks = resume->out + delay_ticks(stream);
    uint64_t lost = row->hop.from + stream->shift - stream->ticks, hop = (uint64_t)(length * CADENCE_TICKS);
    row->hop.gap = lost >= hop && lost < UINT64_MAX / 2;
    row->why = COUNTER_RESTART;
    count(stream->counters, COUNTER_RESTART, row->hop.gap ? lost / hop * (uint64_t)stream->model->hop : 0);
    resume->pending = false;
    return true;
}

/* A row as it is in the stream. False: it isn't. */
static bool place_row(struct stream *stream, struct row *row)
{
    if (stream->resume.pending && !go_on_with(stream, row)) {
        return false;
    }
    if (stream->passed > 0) {
        row->hop.elapsed = (float)fmin(row->hop.elapsed + stream->passed, 1e6);
        row->hop.gap = true;
        row->why = COUNTER_OVERLOAD;
        stream->passed = 0;
    }
    row->hop.from += stream->shift;
    row->hop.to += stream->shift;
    return true;
}

/* Stage as many rows as one step may take: only the first may be told of time. */
static size_t fill_rows(struct stream *stream, size_t hops)
{
    size_t n = 0, inputs = (size_t)stream->model->inputs;
    const struct row *row;
    for (; n < hops && (row = rows_front(stream->rows)) && (n == 0 || row->hop.elapsed == 1); rows_pass(stream->rows)) {
        stream->row[n] = *row;
        if (place_row(stream, &stream->row[n])) {
            memcpy(stream->staging + n++ * inputs, row->hop.values, inputs * sizeof(float));
        }
    }
    stream->elapsed = n > 0 ? stream->row[0].hop.elapsed : 1;
    stream->flushed = rows_ended(stream->rows);
    return n;
}

/* ---- What others ask for. ---- */

size_t way_in_fill(struct stream *stream, size_t hops)
{
    return (stream->rows ? fill_rows : fill)(stream, hops);
}

void way_in_drop(struct stream *stream)
{
    if (stream->rows) {
        for (const struct row *row; (row = rows_front(stream->rows)); rows_pass(stream->rows)) {
            stream->passed += row->hop.elapsed;
            count(stream->counters, COUNTER_OVERLOAD, (uint64_t)stream->model->hop);
        }
        return;
    }
    struct feed_note note = {0};
    uint64_t n = stream->raw_n - stream->raw_at, holes = 0;
    for (size_t got; (got = feed_read(stream->feed, stream->raw, RAW, &note)) > 0; n += got) {
        holes += note.hole;
    }
    stream->raw_at = stream->raw_n = 0;
    stream->dropped += n + holes;
    count(stream->counters, COUNTER_OVERLOAD, n);
}

bool stream_has_hop(const struct stream *stream)
{
    size_t hop = (size_t)scale_up((uint64_t)stream->model->hop, stream->model->rate, stream->rate);
    return stream->rows ? rows_front(stream->rows) != NULL
                        : stream->staged + stream->raw_n - stream->raw_at + feed_fill(stream->feed) >= hop;
}

int64_t way_in_backlog(const struct stream *stream)
{
    if (stream->rows) {
        return hops_time(stream, (int)rows_waiting(stream->rows));
    }
    size_t waiting = feed_fill(stream->feed) + stream->raw_n - stream->raw_at;
    return (int64_t)waiting * SECOND / stream->rate;
}
