/* SPDX-License-Identifier: MIT */
#include "daemon/stream.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/ladder.h"
#include "daemon/wire.h"
#include "dsp/blend.h"
#include "dsp/clock.h"
#include "dsp/resample.h"
#include "model/refuse.h"

/* BEARABLE: hops that wait. LATE_MOST: more readings in a row don't come late, but by a clock that was set back. */
enum { RAW = 1024, SECOND = 1000000000, BEARABLE = 2, LATE_MOST = 16 };

static const float silence[RAW];

/* Whole hops that are left out of the stream: `samples` of them before the sample that is the `at`th to enter the model. */
struct skip {
    uint64_t at, samples;
    bool entered; /* the input is past it; the output follows `delay` samples later */
};

/* A state from another process that the stream goes on from. */
struct resume {
    bool pending;     /* until the source's first sample came                            */
    uint64_t position, out; /* as in struct record                                       */
    int64_t captured;
    uint64_t at;      /* the feed's rate: number of the source's first sample; 0: by its time */
    double time;      /* of a sensor: as in struct record                                */
    int late;         /* and its readings that were from before that                     */
};

struct stream {
    struct feed *feed; /* NULL: it has rows */
    struct rows *rows;
    struct sink *const *sinks;
    int n_sinks, channel, rate;
    bool patient;
    bool waits;  /* for room in its sinks */
    bool halts;  /* no further hop begins before its models have settled: with much to do there is always one on its way */
    bool scores; /* the model gives scores about each hop, not samples */
    struct counters *counters;
    int hop;                    /* the model's, for other threads: it stays as models change */
    const struct ssm_info *model;
    struct ladder ladder;
    int priority;
    struct resume resume;
    struct resampler *resampler;
    uint64_t unit_in, unit_out; /* the smallest hole to skip: samples of the feed, samples (whole hops) of the model */

    /* The way in: feed -> raw -> resampler -> staging. Positions count samples from the stream's start, holes among them,
     * unless they say "entered": samples that went into the model. */
    float *raw, *staging;
    size_t raw_at, raw_n, staged;
    int64_t arrived, *staged_arrived, own_arrived[STREAM_HOPS];
    struct clock clock;        /* the feed's samples and their arrivals                                      */
    int64_t tm;                /* when the last hop out was captured                                      */
    uint64_t position;         /* the feed's rate: of the next raw sample                                   */
    uint64_t zeros;            /* the feed's rate: silence that goes in before the raw samples              */
    uint64_t skipped;          /* the feed's rate: left out so far                                          */
    uint64_t dropped;          /* the feed's rate: behind the zeros, because there was no time for them     */
    int hops;                  /* whole ones in staging that are on their way through the models            */
    uint64_t entered;          /* entered: staging[0]                                                       */
    float elapsed;             /* of the next step                                                          */
    struct row row[STREAM_HOPS]; /* of a sensor: those in staging                                           */
    uint64_t ticks;            /* of a sensor: end of the last row                                          */
    double time;               /* of a sensor: the last reading's, by its own clock; NaN: it has none       */
    double passed;             /* of a sensor: hops that were passed over in overload                       */
    struct skip skip;
    struct hole hole;          /* to be told with the next hop that goes out                                */
    bool faulted;              /* the device failed in the hop before                                       */
    bool flushed;              /* the feed ended and the resampler's tail is out                            */
    uint64_t total;            /* the input's length at the model's rate, once flushed                      */

    /* The way out. */
    struct blend *blend; /* NULL: the model gives scores */
    atomic_bool bypass;
    int64_t left;    /* entered: the sample that out[0] belongs to; below 0 while the model's delay runs in */
    uint64_t shift;  /* position = left + shift                                                             */

    int64_t least;               /* entered: nothing before it comes out                                    */
    _Atomic(struct leaving *) leave; /* where the stream goes when its feed ends; NULL: nowhere        */
    bool leaves;                 /* it does, and has no tail                                                */
    uint64_t began, began_in;    /* the first sample of this run, and the same at the feed's rate           */
    _Atomic uint64_t *mark;      /* outlives a crash: where what went out ends. NULL: nobody wants to know  */

    _Atomic uint64_t samples_in, samples_out; /* `position` and what was given to the sinks, for others to read */
    int64_t deadline;            /* ns; 0: none                                                             */
    _Atomic uint64_t late;
    _Atomic int64_t delay;
    atomic_bool ended;
};

/* ---- Set-up. ---- */

static uint64_t gcd(uint64_t a, uint64_t b)
{
    return b == 0 ? a : gcd(b, a % b);
}

/* rm / g samples of the model last as long as rs / g of the feed; enough of them to be whole hops. */
static void find_unit(struct stream *stream)
{
    uint64_t in = (uint64_t)stream->rate, out = (uint64_t)stream->model->rate, hop = (uint64_t)stream->model->hop;
    uint64_t common = gcd(in, out);
    uint64_t times = hop / gcd(hop, out / common);
    stream->unit_in = in / common * times;
    stream->unit_out = out / common * times;
}

/* Whose state is the stream's. */
static const struct ladder_side *main_of(const struct stream *stream)
{
    return &stream->ladder.sides[0];
}

/* Room for the way in and the way out. */
static int stream_allocate(struct stream *stream, const struct stream_setup *setup, struct ssm_error *err)
{
    const struct ssm_info *model = stream->model;
    stream->staging = calloc((size_t)model->inputs * STREAM_HOPS, sizeof(float));
    stream->staged_arrived = stream->own_arrived;
    stream->blend = stream->scores ? NULL : blend_create(model->delay, model->rate, setup->share, setup->bypass);
    stream->resampler = stream->rows ? NULL : resampler_create(stream->rate, model->rate, RESAMPLER_LIVE);
    stream->raw = stream->rows ? NULL : calloc(RAW, sizeof(float));
    bool ok = ladder_init(&stream->ladder, setup->engine, setup->smaller, STREAM_HOPS) == 0;
    ok = ok && stream->staging && (stream->blend || stream->scores);
    ok = ok && (stream->rows || (stream->resampler && stream->raw));
    return ok ? 0 : refuse(err, 71, "out of memory for a stream, or the source's rate is too far from the model's");
}

static int stream_init(struct stream *stream, const struct stream_setup *setup, struct ssm_error *err)
{
    const struct ssm_info *model = ssm_describe(setup->engine);
    *stream = (struct stream){.feed = setup->feed, .rows = setup->rows, .sinks = setup->sinks, .n_sinks = setup->n_sinks,
                              .channel = setup->channel, .rate = setup->rate, .patient = setup->patient,
                              .counters = setup->counters, .model = model, .hop = model->hop, .time = NAN,
                              .priority = setup->priority, .elapsed = 1,
                              .left = -(int64_t)model->delay, .scores = strcmp(model->task, "tag") == 0,
                              .bypass = setup->bypass, .deadline = setup->deadline};
    find_unit(stream);
    clock_init(&stream->clock, stream->rate);
    return stream_allocate(stream, setup, err);
}

struct stream *stream_create(const struct stream_setup *setup, struct ssm_error *err)
{
    struct stream *stream = malloc(sizeof *stream);
    if (!stream) {
        refuse_memory(err);
    } else if (stream_init(stream, setup, err) < 0) {
        stream_destroy(stream);
        return NULL;
    }
    return stream;
}

void stream_destroy(struct stream *stream)
{
    if (!stream) {
        return;
    }
    for (int i = 0; i < LADDER_SIDES; i++) {
        stream_close(stream, stream->ladder.sides[i].engine);
    }
    ladder_finish(&stream->ladder);
    resampler_destroy(stream->resampler);
    blend_destroy(stream->blend);
    free(stream->raw);
    free(stream->staging);
    free(stream);
}

int stream_open(struct stream *stream, const struct ssm_engine *engine, struct ssm_error *err)
{
    return ladder_open(&stream->ladder, engine, err);
}

void stream_close(struct stream *stream, const struct ssm_engine *engine)
{
    ladder_close(&stream->ladder, engine);
}

bool stream_is_of(const struct stream *stream, const struct ssm_engine *engine)
{
    return stream->ladder.sides[0].engine == engine;
}

void stream_find_device(struct stream *stream)
{
    ladder_find_devices(&stream->ladder);
}

/* ---- The way in. ---- */

static uint64_t scale_up(uint64_t n, int from, int to)
{
    return (n * (uint64_t)to + (uint64_t)from - 1) / (uint64_t)from;
}

/* `hole` samples are missing at the feed's position: leave out whole units, from a hop's border on, and fill up the rest with
 * silence. One skip at a time: while one is still on its way through, silence is all there is. */
static void note_hole(struct stream *stream, uint64_t hole, enum counter why)
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
        note_hole(stream, stream->dropped, COUNTER_OVERLOAD);
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
        note_hole(stream, note.hole, note.why);
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

/* ---- The way in, of a sensor. ---- */

static uint64_t delay_ticks(const struct stream *stream)
{
    return (uint64_t)stream->model->delay * CADENCE_TICKS / (uint64_t)stream->model->rate;
}

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

static int64_t hops_time(const struct stream *stream, int hops)
{
    return (int64_t)SECOND * hops * stream->model->hop / stream->model->rate;
}

/* ---- A turn. ---- */

/* What has come and isn't in this step, ns. */
static int64_t backlog(const struct stream *stream)
{
    if (stream->rows) {
        return hops_time(stream, (int)rows_waiting(stream->rows));
    }
    size_t waiting = feed_fill(stream->feed) + stream->raw_n - stream->raw_at;
    return (int64_t)waiting * SECOND / stream->rate;
}

/* Sound, by more than two steps take. It goes on as fast as its sinks let it. */
static bool is_behind(const struct stream *stream)
{
    return stream->feed && backlog(stream) > 2 * hops_time(stream, STREAM_HOPS);
}

/* Hops that all sinks worth waiting for take, up to `most`. */
static size_t room_in_sinks(const struct stream *stream, size_t most)
{
    size_t room = most;
    for (int i = 0; i < stream->n_sinks; i++) {
        if (stream->sinks[i]->ops->paced && !stream->patient) {
            continue;
        }
        size_t hops = stream->sinks[i]->ops->room(stream->sinks[i], stream->channel) / (size_t)stream->model->hop;
        room = hops < room ? hops : room;
    }
    return room;
}

/* What has come in is passed over: it is a hole once the stream goes on. */
static void drop(struct stream *stream)
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

/* There is no time for the stream, and it is in the bypass already: nothing that fades is cut off. */
static bool is_dropping(struct stream *stream)
{
    bool drops = ladder_rung(&stream->ladder) == RUNG_DROP && !stream->resume.pending;
    if (drops && (stream->rows ? rows_ended(stream->rows) : feed_ended(stream->feed))) { /* the end is to be heard */
        while (ladder_raise(&stream->ladder)) {
        }
        drops = false;
    }
    return drops;
}

/* Stage what waits, where this engine steps on it, or none does and it is the stream's own. Gives hops. */
static int begin(struct stream *stream, const struct ssm_engine *engine)
{
    if (stream->halts) {
        return 0;
    }
    bool rests = !ladder_plan(&stream->ladder);
    if (rests ? !stream_is_of(stream, engine) : !ladder_runs(&stream->ladder, engine)) {
        return 0;
    }
    if (rests && is_dropping(stream)) {
        drop(stream);
        return 0;
    }
    size_t room = room_in_sinks(stream, STREAM_HOPS);
    if (room < STREAM_HOPS && !stream->patient && (stream->rows || feed_share(stream->feed) > 0.5)) {
        room = STREAM_HOPS; /* something will be lost, and here it's counted where */
    }
    stream->waits = room == 0;
    return room == 0 ? 0 : (int)(stream->rows ? fill_rows : fill)(stream, room);
}

enum stream_need stream_take(struct stream *stream, const struct ssm_engine *engine, struct ssm_hop *step)
{
    if (stream->hops == 0 && !atomic_load_explicit(&stream->ended, memory_order_relaxed)) {
        stream->hops = begin(stream, engine);
    }
    if (stream->hops > 0 && ladder_runs(&stream->ladder, engine)) {
        *step = ladder_step(&stream->ladder, engine, stream->staging, stream->hops, stream->elapsed);
        return STREAM_STEP;
    }
    *step = (struct ssm_hop){.count = stream->hops};
    bool own = stream_is_of(stream, engine), passes = stream->hops > 0 && stream->ladder.steps == 0 && own;
    return passes ? STREAM_PASS : own && stream->waits ? STREAM_WAITS : STREAM_NOTHING;
}

static bool has_hop(const struct stream *stream)
{
    size_t hop = (size_t)scale_up((uint64_t)stream->model->hop, stream->model->rate, stream->rate);
    return stream->staged + stream->raw_n - stream->raw_at + feed_fill(stream->feed) >= hop;
}

bool stream_has_hop(const struct stream *stream)
{
    return stream->rows ? rows_front(stream->rows) != NULL : has_hop(stream);
}

bool stream_is_fed(const struct stream *stream)
{
    return stream->feed && !feed_ended(stream->feed);
}

/* ---- The way out. ---- */

static void measure_input(struct delivery *delivery, const float *hop, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float size = fabsf(hop[i]);
        delivery->in_square += size * size;
        delivery->in_peak = size > delivery->in_peak ? size : delivery->in_peak;
    }
}

static int64_t capture_time(const struct stream *stream, uint64_t sample)
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
    delivery->tm = later(stream, capture_time(stream, delivery->s0));
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

/* `hops` staged ones are out. Gives how much more waits behind the first than can be borne, or 1,
 * where that was late. */
static int64_t note_delay(struct stream *stream, int hops, int64_t now)
{
    uint64_t late = 0;
    for (int i = 0; stream->deadline > 0 && i < hops; i++) {
        late += now - arrival(stream, i) > stream->deadline;
    }
    if (late > 0) {
        atomic_fetch_add_explicit(&stream->late, late, memory_order_relaxed);
    }
    int64_t delay = now - arrival(stream, 0);
    atomic_store_explicit(&stream->delay, delay, memory_order_relaxed);
    int64_t unborne = backlog(stream) - hops_time(stream, BEARABLE);
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

bool stream_deliver(struct stream *stream, const struct ssm_hop *step, int64_t enq, int64_t inf, int64_t *overdue)
{
    struct ladder *ladder = &stream->ladder;
    if (step->stream && !ladder_stepped(ladder, step)) {
        return false;
    }
    *overdue = note_delay(stream, stream->hops, inf);
    (stream->rows ? deliver_rows : deliver)(stream, enq, inf);
    count(stream->counters, COUNTER_BLOWN, ladder_lead(ladder)->blown ? (uint64_t)stream->hops : 0);
    ladder_end(ladder, stream->hops, stream->elapsed);
    stream->elapsed = 1;
    stream->hops = 0;
    return true;
}

/* ---- Catching up. ---- */

/* The stream works in the piece's room, or in its own again, where what is staged moves along. */
static void change_rooms(struct stream *stream, struct stream_piece *piece)
{
    float *staging = stream->staging;
    bool goes = stream->staged_arrived == stream->own_arrived;
    memcpy(piece->staging, staging, stream->staged * sizeof(float));
    stream->staging = piece->staging;
    piece->staging = staging;
    stream->staged_arrived = goes ? piece->arrived : stream->own_arrived;
    ladder_swap_out(&stream->ladder, &piece->out);
}

bool stream_begin_scan(struct stream *stream, struct stream_piece *piece, struct ssm_hop *scan)
{
    size_t room = is_behind(stream) && stream->hops == 0 ? room_in_sinks(stream, STREAM_PIECE) : 0;
    if (room <= STREAM_HOPS || !ladder_is_settled(&stream->ladder)) {
        return false;
    }
    change_rooms(stream, piece);
    stream->hops = (int)fill(stream, room);
    if (stream->hops == 0) {
        change_rooms(stream, piece);
        return false;
    }
    ladder_plan(&stream->ladder);
    *scan = ladder_step(&stream->ladder, main_of(stream)->engine, stream->staging, stream->hops, stream->elapsed);
    return true;
}

void stream_end_scan(struct stream *stream, struct stream_piece *piece, const struct ssm_hop *scan, int64_t enq, int64_t inf)
{
    int64_t overdue;
    stream_deliver(stream, scan, enq, inf, &overdue);
    change_rooms(stream, piece);
}

/* Where in the stream staging begins. */
static uint64_t position_of(const struct stream *stream)
{
    return stream->entered + stream->shift + (stream->skip.entered ? stream->skip.samples : 0);
}

/* Everything whole is out: give the rest to who goes on with it. What has yet to come out from before a hole doesn't. */
static void leave(struct stream *stream)
{
    struct leaving *leave = atomic_load(&stream->leave);
    int64_t left = stream->left > stream->least ? stream->left : stream->least;
    uint64_t position = position_of(stream), out = (uint64_t)left + stream->shift;
    bool hole = stream->skip.samples > 0;
    int got = ssm_state_save(main_of(stream)->engine, main_of(stream)->slot, leave->state, leave->state_size);
    memcpy(leave->waiting, stream->staging, stream->staged * sizeof(float));
    leave->record = (struct record){.position = position, .out = hole ? position : out, .taken = stream->position,
                                    .captured = capture_time(stream, position), .rate = (uint32_t)stream->rate,
                                    .n_waiting = stream->staged, .waiting = leave->waiting, .state = leave->state,
                                    .state_size = got > 0 ? (size_t)got : 0};
    if (hole) {
        stream->hole = (struct hole){stream->hole.n + position - out, out, position, COUNTER_RING_FULL};
    }
    stream->position = stream->began_in + (out - stream->began) * (uint64_t)stream->rate / (uint64_t)stream->model->rate;
}

static void end_sink(struct stream *stream, struct sink *sink, uint64_t length)
{
    sink->ops->end(sink, stream->channel, &stream->hole, length);
}

static void end(struct stream *stream)
{
    for (int i = 0; i < stream->n_sinks; i++) {
        end_sink(stream, stream->sinks[i], stream->position - stream->began_in);
    }
    atomic_store(&stream->ended, true);
}

bool stream_retire(struct stream *stream)
{
    size_t most = stream->leaves ? (size_t)stream->model->hop - 1 : 0;
    bool ended = atomic_load_explicit(&stream->ended, memory_order_relaxed);
    if (!stream->flushed || stream->staged > most || stream->hops > 0 || ended) {
        return false;
    }
    if (stream->leaves) {
        leave(stream);
    }
    end(stream);
    return true;
}

/* ---- Changes while it runs. ---- */

/* How much of the input what came out so far is, at the feed's rate. */
static uint64_t length_out(const struct stream *stream)
{
    int64_t left = stream->left > stream->least ? stream->left : stream->least;
    uint64_t out = left > 0 ? (uint64_t)left + stream->shift : 0;
    return out > stream->began ? (out - stream->began) * (uint64_t)stream->rate / (uint64_t)stream->model->rate : 0;
}

static bool is_among(struct sink *const *sinks, int n, const struct sink *sink)
{
    while (n > 0 && sinks[n - 1] != sink) {
        n--;
    }
    return n > 0;
}

/* Those of `sinks` that are not among the others end. */
static void end_others(struct stream *stream, struct sink *const *sinks, int n, struct sink *const *others, int n_others)
{
    for (int i = 0; i < n; i++) {
        if (!is_among(others, n_others, sinks[i])) {
            end_sink(stream, sinks[i], length_out(stream));
        }
    }
}

void stream_change(struct stream *stream, const struct stream_change *change)
{
    if (!stream_ended(stream)) {
        end_others(stream, stream->sinks, stream->n_sinks, change->sinks, change->n_sinks);
    } else {
        end_others(stream, change->sinks, change->n_sinks, stream->sinks, stream->n_sinks);
    }
    stream->sinks = change->sinks;
    stream->n_sinks = change->n_sinks;
    stream->deadline = change->deadline;
    if (stream->blend) {
        blend_limit(stream->blend, change->share);
    }
    atomic_store_explicit(&stream->bypass, change->bypass, memory_order_relaxed);
}

struct successor {
    struct ladder_side side;
};

struct successor *successor_create(struct ssm_engine *engine)
{
    struct successor *successor = calloc(1, sizeof *successor);
    if (successor && ladder_side_init(&successor->side, engine, STREAM_HOPS) < 0) {
        free(successor);
        return NULL;
    }
    return successor;
}

void successor_destroy(struct successor *successor)
{
    if (successor) {
        free(successor->side.out);
        free(successor);
    }
}

void stream_await(struct stream *stream, const struct successor *successor)
{
    ladder_await(&stream->ladder, &successor->side);
}

void stream_await_none(struct stream *stream)
{
    ladder_await_none(&stream->ladder);
}

void stream_succeed(struct stream *stream)
{
    ladder_succeed(&stream->ladder);
}

bool stream_succeeded(const struct stream *stream)
{
    return ladder_succeeded(&stream->ladder) || stream_ended(stream);
}

bool stream_settle(struct stream *stream, struct successor *successor)
{
    stream->halts = stream->hops > 0;
    if (stream->halts) {
        return false;
    }
    ladder_settle(&stream->ladder);
    successor->side = stream->ladder.sides[2];
    stream->model = main_of(stream)->model;
    return true;
}

void stream_cut(struct stream *stream)
{
    if (!stream_ended(stream)) {
        stream->position = stream->began_in + length_out(stream);
        end(stream);
    }
}

/* ---- What others ask for. ---- */

int stream_reset(struct stream *stream)
{
    return ladder_reset(&stream->ladder);
}

size_t stream_state_size(const struct stream *stream)
{
    return ssm_state_size(main_of(stream)->engine);
}

/* At which rate a record of it counts its source's samples. */
static uint32_t record_rate(const struct stream *stream)
{
    return stream->rows ? CADENCE_TICKS : (uint32_t)stream->rate;
}

int stream_copy(struct stream *stream, struct record *record, void *state, size_t size)
{
    if (stream->hops > 0 || main_of(stream)->away > 0) { /* not all of its models have stepped on what came so far */
        return SSM_REFUSED;
    }
    bool rows = stream->rows != NULL;
    uint64_t position = rows ? stream->ticks : position_of(stream);
    uint64_t delay = rows ? delay_ticks(stream) : (uint64_t)stream->model->delay;
    int got = ssm_state_save(main_of(stream)->engine, main_of(stream)->slot, state, size);
    *record = (struct record){.position = position, .out = position > delay ? position - delay : 0,
                              .taken = stream->position, .captured = rows ? stream->arrived : capture_time(stream, position),
                              .rate = record_rate(stream), .time = stream->time, .state = state,
                              .state_size = got > 0 ? (size_t)got : 0};
    return got > 0 ? SSM_OK : got;
}

int stream_resume(struct stream *stream, const struct record *record, uint64_t at, struct ssm_error *err)
{
    if (record->rate != record_rate(stream)) {
        return refuse(err, 65, "a stream's state from a source of %u Hz, and this one has %u", record->rate, record_rate(stream));
    }
    if (ssm_state_load(main_of(stream)->engine, main_of(stream)->slot, record->state, record->state_size, err) != SSM_OK) {
        return -1;
    }
    stream->resume = (struct resume){.pending = true, .position = record->position, .out = record->out,
                                     .captured = record->captured, .at = at, .time = record->time};
    return 0;
}

bool stream_leave(struct stream *stream, struct leaving *leaving)
{
    bool can = !atomic_load_explicit(&stream->bypass, memory_order_relaxed) && ladder_rung(&stream->ladder) == RUNG_MODEL;
    atomic_store(&stream->leave, can ? leaving : NULL);
    return can;
}

int stream_enter(struct stream *stream, const struct record *record, struct ssm_error *err)
{
    uint64_t in = (uint64_t)stream->rate, out = (uint64_t)stream->model->rate, hop = (uint64_t)stream->model->hop;
    bool begun = stream->position > 0 || stream->raw_n > 0 || stream->staged > 0 || stream->flushed;
    if (!stream->feed || begun || stream->resume.pending) {
        return refuse(err, 75, "the stream here has begun already");
    }
    if (record->rate != (uint32_t)stream->rate) {
        return refuse(err, 65, "a stream's state from a source of %u Hz, and this one has %d", record->rate, stream->rate);
    }
    if (record->position % hop != 0 || record->n_waiting >= hop) {
        return refuse(err, 65, "a stream's state with hops of another size");
    }
    if (ssm_state_load(main_of(stream)->engine, main_of(stream)->slot, record->state, record->state_size, err) != SSM_OK) {
        return -1;
    }
    uint64_t units = record->position / stream->unit_out, end = record->position + record->n_waiting;
    uint64_t taken = scale_up(record->taken, stream->rate, stream->model->rate);
    uint64_t hole = taken > end ? (taken - end) * in / out : 0;
    stream->skipped = units * stream->unit_in;
    stream->shift = units * stream->unit_out;
    stream->entered = record->position - stream->shift;
    stream->left = (int64_t)stream->entered - stream->model->delay;
    stream->least = (int64_t)record->out - (int64_t)stream->shift;
    stream->began = record->out;
    stream->began_in = scale_up(record->out, stream->model->rate, stream->rate);
    stream->position = record->taken - hole;
    memcpy(stream->staging, record->waiting, record->n_waiting * sizeof(float));
    stream->staged = record->n_waiting;
    if (hole > 0) {
        note_hole(stream, hole, COUNTER_RING_FULL);
    }
    return 0;
}

void stream_mark(struct stream *stream, _Atomic uint64_t *mark)
{
    stream->mark = mark;
}

bool stream_bypass(struct stream *stream, bool bypass)
{
    atomic_store_explicit(&stream->bypass, bypass, memory_order_relaxed);
    return stream->blend != NULL;
}

uint64_t stream_hops(const struct stream *stream)
{
    uint64_t hop = (uint64_t)stream->hop;
    return (atomic_load_explicit(&stream->samples_out, memory_order_relaxed) + hop - 1) / hop;
}

uint64_t stream_samples(const struct stream *stream)
{
    return atomic_load_explicit(&stream->samples_in, memory_order_relaxed);
}

bool stream_ended(const struct stream *stream)
{
    return atomic_load(&stream->ended);
}

uint64_t stream_late(const struct stream *stream)
{
    return atomic_load_explicit(&stream->late, memory_order_relaxed);
}

int64_t stream_delay(const struct stream *stream)
{
    return atomic_load_explicit(&stream->delay, memory_order_relaxed);
}

/* ---- In overload. ---- */

bool stream_gives_way(const struct stream *stream)
{
    return stream->deadline > 0 && !atomic_load_explicit(&stream->ended, memory_order_relaxed);
}

bool stream_is_patient(const struct stream *stream)
{
    return stream->patient;
}

int stream_priority(const struct stream *stream)
{
    return stream->priority;
}

enum rung stream_rung(const struct stream *stream)
{
    return ladder_rung(&stream->ladder);
}

bool stream_lower(struct stream *stream)
{
    return ladder_lower(&stream->ladder);
}

bool stream_raise(struct stream *stream)
{
    return ladder_raise(&stream->ladder);
}
