/* SPDX-License-Identifier: MIT */
#include "daemon/engine_thread.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/wire.h"
#include "dsp/blend.h"
#include "dsp/clock.h"
#include "dsp/resample.h"
#include "model/refuse.h"

enum { RAW = 1024, SECOND = 1000000000 };

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
};

struct stream {
    struct feed *feed; /* NULL: it has rows */
    struct rows *rows;
    struct sink *const *sinks;
    int n_sinks, channel, rate;
    bool patient;
    bool scores; /* the model gives scores about each hop, not samples */
    struct counters *counters;
    const struct ssm_info *model;
    struct ssm_engine *engine;
    ssm_stream slot;
    struct resume resume;
    struct resampler *resampler;
    uint64_t unit_in, unit_out; /* the smallest hole that can be skipped: samples of the feed, samples (whole hops) of the model */

    /* The way in: feed -> raw -> resampler -> staging. Positions count samples from the stream's start, holes among them,
     * unless they say "entered": samples that went into the model. */
    float *raw, *staging;
    size_t raw_at, raw_n, staged;
    int64_t arrived, staged_arrived[ENGINE_HOPS];
    struct clock clock;        /* the feed's samples and their arrivals                                      */
    uint64_t position;         /* the feed's rate: of the next raw sample                                   */
    uint64_t zeros;            /* the feed's rate: silence that goes in before the raw samples              */
    uint64_t skipped;          /* the feed's rate: left out so far                                          */
    uint64_t entered;          /* entered: staging[0]                                                       */
    float elapsed;             /* of the next step                                                          */
    struct row row[ENGINE_HOPS]; /* of a sensor: those in staging                                           */
    uint64_t ticks;            /* of a sensor: end of the last row                                          */
    struct skip skip;
    struct hole hole;          /* to be told with the next hop that goes out                                */
    bool faulted;              /* the device failed in the hop before                                       */
    char device[sizeof((struct delivery *)0)->device];
    bool flushed;              /* the feed ended and the resampler's tail is out                            */
    uint64_t total;            /* the input's length at the model's rate, once flushed                      */

    /* The way out. */
    struct blend *blend; /* NULL: the model gives scores */
    atomic_bool bypass;
    float *out;          /* (ENGINE_HOPS, outputs) */
    int64_t left;    /* entered: the sample that out[0] belongs to; below 0 while the model's delay runs in */
    uint64_t shift;  /* position = left + shift                                                             */

    int64_t least;               /* entered: nothing before it comes out                                    */
    _Atomic(struct engine_leave *) leave; /* where the stream goes when its feed ends; NULL: nowhere        */
    bool leaves;                 /* it does, and has no tail                                                */
    uint64_t began, began_in;    /* the first sample of this run, and the same at the feed's rate           */
    _Atomic uint64_t *mark;      /* outlives a crash: where what went out ends. NULL: nobody wants to know  */

    _Atomic uint64_t samples_in, samples_out; /* `position` and what was given to the sinks, for others to read */
    atomic_bool ended;
};

/* The streams of one engine. */
struct batch {
    struct ssm_engine *engine;
    struct stream **streams, **taken; /* (n), (n) those in this step */
    struct ssm_hop *hops;             /* (n)                         */
    int n;
    uint64_t faults;                  /* of the engine, seen so far  */
};

struct engine_thread {
    struct waker waker;
    int64_t deadline;
    struct batch *batches;
    struct stream *streams;
    int n_batches, n_streams, room;
    atomic_int running;
    _Atomic uint64_t n_steps, n_turns;
    struct histogram step_times;
    char faults[ENGINE_FAULTS][sizeof((struct ssm_health *)0)->last];
    atomic_int n_faults; /* those of them that are written */

    pthread_t thread;
    bool started;
    atomic_bool stopping;
    void (*delivered)(void *arg);
    void *arg;
    _Atomic(struct engine_call *) posted;
};

/* ---- Set-up. ---- */

struct engine_thread *engine_thread_create(int streams, double deadline_s)
{
    struct engine_thread *thread = calloc(1, sizeof *thread);
    if (!thread) {
        return NULL;
    }
    size_t n = (size_t)(streams > 0 ? streams : 1);
    thread->waker.fd = -1;
    thread->room = streams;
    thread->deadline = (int64_t)(deadline_s * SECOND);
    thread->streams = calloc(n, sizeof *thread->streams);
    thread->batches = calloc(n, sizeof *thread->batches);
    if (!thread->streams || !thread->batches || waker_init(&thread->waker) < 0) {
        engine_thread_destroy(thread);
        return NULL;
    }
    return thread;
}

static void stream_finish(struct stream *stream)
{
    resampler_destroy(stream->resampler);
    blend_destroy(stream->blend);
    free(stream->raw);
    free(stream->staging);
    free(stream->out);
}

void engine_thread_destroy(struct engine_thread *thread)
{
    if (!thread) {
        return;
    }
    engine_thread_stop(thread);
    for (int i = 0; i < thread->n_batches; i++) {
        struct batch *batch = &thread->batches[i];
        for (int k = 0; k < batch->n; k++) {
            ssm_stream_close(batch->engine, batch->streams[k]->slot);
        }
        free(batch->streams);
        free(batch->taken);
        free(batch->hops);
    }
    for (int i = 0; i < thread->n_streams; i++) {
        stream_finish(&thread->streams[i]);
    }
    waker_finish(&thread->waker);
    free(thread->streams);
    free(thread->batches);
    free(thread);
}

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

/* Room for the way in and the way out. */
static int stream_allocate(struct stream *stream, const struct stream_setup *setup, struct ssm_error *err)
{
    const struct ssm_info *model = stream->model;
    stream->staging = calloc((size_t)model->inputs * ENGINE_HOPS, sizeof(float));
    stream->out = calloc((size_t)model->outputs * ENGINE_HOPS, sizeof(float));
    stream->blend = stream->scores ? NULL : blend_create(model->delay, model->rate, setup->share, setup->bypass);
    stream->resampler = stream->rows ? NULL : resampler_create(stream->rate, model->rate, RESAMPLER_LIVE);
    stream->raw = stream->rows ? NULL : calloc(RAW, sizeof(float));
    bool ok = stream->staging && stream->out && (stream->blend || stream->scores);
    ok = ok && (stream->rows || (stream->resampler && stream->raw));
    return ok ? 0 : refuse(err, 71, "out of memory for a stream, or the source's rate is too far from the model's");
}

/* "cuda:1" for a stream on "cuda:1 NVIDIA ...". */
static void name_device(struct stream *stream, const struct ssm_engine *engine)
{
    struct ssm_device_info info = {.name = "cpu"};
    ssm_describe_device(engine, ssm_stream_device(engine, stream->slot), &info);
    snprintf(stream->device, sizeof stream->device, "%.*s", (int)strcspn(info.name, " "), info.name);
}

static int stream_init(struct stream *stream, const struct stream_setup *setup, struct ssm_error *err)
{
    const struct ssm_info *model = ssm_describe(setup->engine);
    *stream = (struct stream){.feed = setup->feed, .rows = setup->rows, .sinks = setup->sinks, .n_sinks = setup->n_sinks,
                              .channel = setup->channel, .rate = setup->rate, .patient = setup->patient,
                              .counters = setup->counters, .model = model, .engine = setup->engine, .elapsed = 1,
                              .left = -(int64_t)model->delay, .scores = strcmp(model->task, "tag") == 0,
                              .bypass = setup->bypass};
    if (stream_allocate(stream, setup, err) < 0) {
        return -1;
    }
    if (ssm_stream_open(setup->engine, &stream->slot) != SSM_OK) {
        return refuse(err, 70, "the engine has no free slot for the stream");
    }
    name_device(stream, setup->engine);
    find_unit(stream);
    clock_init(&stream->clock, stream->rate);
    return 0;
}

static struct batch *find_batch(struct engine_thread *thread, struct ssm_engine *engine)
{
    for (int i = 0; i < thread->n_batches; i++) {
        if (thread->batches[i].engine == engine) {
            return &thread->batches[i];
        }
    }
    struct batch *batch = &thread->batches[thread->n_batches];
    size_t room = (size_t)thread->room;
    *batch = (struct batch){.engine = engine,
                            .streams = calloc(room, sizeof *batch->streams),
                            .taken = calloc(room, sizeof *batch->taken),
                            .hops = calloc(room, sizeof *batch->hops)};
    thread->n_batches++;
    return batch->streams && batch->taken && batch->hops ? batch : NULL;
}

int engine_thread_add(struct engine_thread *thread, const struct stream_setup *setup, struct ssm_error *err)
{
    if (thread->n_streams == thread->room) {
        return refuse(err, 70, "more streams than the engine thread was made for");
    }
    struct batch *batch = find_batch(thread, setup->engine);
    if (!batch) {
        return refuse(err, 71, "out of memory for a batch");
    }
    struct stream *stream = &thread->streams[thread->n_streams];
    if (stream_init(stream, setup, err) < 0) {
        stream_finish(stream);
        return -1;
    }
    batch->streams[batch->n++] = stream;
    atomic_fetch_add(&thread->running, 1);
    return thread->n_streams++;
}

/* ---- The way in. ---- */

static uint64_t scale_up(uint64_t n, int from, int to)
{
    return (n * (uint64_t)to + (uint64_t)from - 1) / (uint64_t)from;
}

/* `hole` samples are missing at the feed's position: leave out whole units, from a hop's border on, and fill up the rest with
 * silence. One skip at a time: while one is still on its way through, silence is all there is. */
static void note_hole(struct stream *stream, uint64_t hole)
{
    int in = stream->rate, out = stream->model->rate;
    uint64_t from = scale_up(stream->position, in, out), to = scale_up(stream->position + hole, in, out);
    stream->hole.from = stream->hole.to > stream->hole.from ? stream->hole.from : from;
    stream->hole.to = to;
    stream->hole.n += to - from;
    stream->hole.why = COUNTER_RING_FULL;

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
    struct feed_note note;
    stream->raw_at = 0;
    stream->raw_n = feed_read(stream->feed, stream->raw, RAW, &note);
    if (stream->resume.pending && stream->raw_n > 0) {
        go_on(stream, stream->raw_n + note.rest, note.arrived);
    }
    if (note.hole > 0) {
        note_hole(stream, note.hole);
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

/* Of a sensor: stage as many rows as one step may take: only the first may be told of time. */
static size_t fill_rows(struct stream *stream, size_t hops)
{
    size_t n = 0, inputs = (size_t)stream->model->inputs;
    for (const struct row *row; n < hops && (row = rows_front(stream->rows)) && (n == 0 || row->hop.elapsed == 1);) {
        memcpy(stream->staging + n * inputs, row->hop.values, inputs * sizeof(float));
        stream->row[n++] = *row;
        rows_pass(stream->rows);
    }
    stream->elapsed = n > 0 ? stream->row[0].hop.elapsed : 1;
    stream->flushed = rows_ended(stream->rows);
    return n;
}

static size_t room_in_sinks(const struct stream *stream)
{
    size_t room = ENGINE_HOPS;
    for (int i = 0; stream->patient && i < stream->n_sinks; i++) {
        size_t hops = stream->sinks[i]->ops->room(stream->sinks[i], stream->channel) / (size_t)stream->model->hop;
        room = hops < room ? hops : room;
    }
    return room;
}

static int gather(struct batch *batch)
{
    int n = 0;
    for (int i = 0; i < batch->n; i++) {
        struct stream *stream = batch->streams[i];
        if (atomic_load_explicit(&stream->ended, memory_order_relaxed)) {
            continue;
        }
        size_t room = room_in_sinks(stream);
        size_t hops = room == 0 ? 0 : (stream->rows ? fill_rows : fill)(stream, room);
        if (hops > 0) {
            batch->taken[n] = stream;
            batch->hops[n++] = (struct ssm_hop){.stream = stream->slot, .in = stream->staging, .out = stream->out,
                                                .count = (int)hops, .elapsed = stream->elapsed};
        }
    }
    return n;
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
    delivery->tm = capture_time(stream, delivery->s0);
    delivery->tm_error = (uint32_t)fmin(clock_error_ns(&stream->clock), UINT32_MAX);
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

static void deliver(struct stream *stream, const struct ssm_hop *step, int64_t enq, int64_t inf)
{
    size_t hop = (size_t)stream->model->hop, n = (size_t)step->count * hop, outputs = (size_t)stream->model->outputs;
    bool failed = step->status != SSM_OK, bypass = atomic_load_explicit(&stream->bypass, memory_order_relaxed);
    for (size_t i = 0; i < (size_t)step->count; i++) {
        struct delivery delivery = {.cap = stream->staged_arrived[i], .enq = enq, .inf = inf};
        memcpy(delivery.device, stream->device, sizeof delivery.device);
        delivery.flags = step->blown || stream->faulted ? WIRE_DEGRADED : 0;
        float *in = stream->staging + i * hop, *out = stream->out + i * outputs;
        measure_input(&delivery, in, hop);
        if (stream->blend && blend_push(stream->blend, in, out, hop, bypass)) {
            delivery.flags |= WIRE_BYPASS;
        }
        deliver_hop(stream, &delivery, failed ? NULL : out);
        stream->faulted = failed;
    }
    count(stream->counters, COUNTER_BLOWN, step->blown ? (uint64_t)step->count : 0);
    memmove(stream->staging, stream->staging + n, (stream->staged - n) * sizeof(float));
    stream->staged -= n;
    stream->entered += n;
    stream->elapsed = 1;
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
        stream->hole.why = row->lost > 0 ? COUNTER_RING_FULL : COUNTER_MISSING_READING;
    }
}

/* One row out, NULL for one that wasn't computed, about its readings' time, less the model's delay. */
static void deliver_row(struct stream *stream, struct delivery *delivery, const struct row *row, const float *scores)
{
    uint64_t delay = (uint64_t)stream->model->delay * CADENCE_TICKS / (uint64_t)stream->model->rate;
    uint64_t from = row->hop.from > delay ? row->hop.from - delay : 0, to = row->hop.to > delay ? row->hop.to - delay : 0;
    note_gap(stream, row, delay);
    stream->ticks = row->hop.to;
    delivery->s0 = from;
    int64_t reading = SECOND / stream->model->rate;
    delivery->tm = row->arrived + reading - (int64_t)(row->hop.to - from) * (SECOND / CADENCE_TICKS);
    delivery->tm_error = (uint32_t)reading; /* how long it was on its way is not known */
    delivery->sourced = row->hop.timed;
    delivery->origin = cadence_origin(&row->hop, stream->model->rate);
    if (!scores) {
        note_fault(stream, from, (size_t)(to - from));
    } else if (row->hop.to > delay) {
        hand_on(stream, delivery, scores, (size_t)(to - from));
        atomic_fetch_add_explicit(&stream->samples_out, (uint64_t)stream->model->hop, memory_order_relaxed);
    }
}

static void deliver_rows(struct stream *stream, const struct ssm_hop *step, int64_t enq, int64_t inf)
{
    bool failed = step->status != SSM_OK;
    for (int i = 0; i < step->count; i++) {
        struct delivery delivery = {.cap = stream->row[i].arrived, .enq = enq, .inf = inf};
        memcpy(delivery.device, stream->device, sizeof delivery.device);
        delivery.flags = step->blown || stream->faulted ? WIRE_DEGRADED : 0;
        deliver_row(stream, &delivery, &stream->row[i], failed ? NULL : stream->out + i * stream->model->outputs);
        stream->faulted = failed;
    }
    count(stream->counters, COUNTER_BLOWN, step->blown ? (uint64_t)step->count : 0);
    stream->position += (uint64_t)(step->count * stream->model->hop);
    atomic_store_explicit(&stream->samples_in, stream->position - stream->began_in, memory_order_relaxed);
}

/* Where in the stream staging begins. */
static uint64_t position_of(const struct stream *stream)
{
    return stream->entered + stream->shift + (stream->skip.entered ? stream->skip.samples : 0);
}

/* Everything whole is out: give the rest to who goes on with it. What has yet to come out from before a hole doesn't. */
static void leave(struct stream *stream)
{
    struct engine_leave *leave = atomic_load(&stream->leave);
    int64_t left = stream->left > stream->least ? stream->left : stream->least;
    uint64_t position = position_of(stream), out = (uint64_t)left + stream->shift;
    bool hole = stream->skip.samples > 0;
    int got = ssm_state_save(stream->engine, stream->slot, leave->state, leave->state_size);
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

/* Streams whose last hop is out tell their sinks so. */
static size_t retire(struct engine_thread *thread)
{
    size_t n = 0;
    for (int i = 0; i < thread->n_streams; i++) {
        struct stream *stream = &thread->streams[i];
        size_t most = stream->leaves ? (size_t)stream->model->hop - 1 : 0;
        if (!stream->flushed || stream->staged > most || atomic_load_explicit(&stream->ended, memory_order_relaxed)) {
            continue;
        }
        if (stream->leaves) {
            leave(stream);
        }
        for (int k = 0; k < stream->n_sinks; k++) {
            stream->sinks[k]->ops->end(stream->sinks[k], stream->channel, &stream->hole, stream->position - stream->began_in);
        }
        atomic_store(&stream->ended, true);
        n++;
    }
    if (n > 0) {
        atomic_fetch_sub(&thread->running, (int)n);
    }
    return n;
}

/* Keep what a device that failed said, for who may print it, and where its streams are now. */
static void note_health(struct engine_thread *thread, struct batch *batch)
{
    const struct ssm_health *health = ssm_health(batch->engine);
    int n = atomic_load_explicit(&thread->n_faults, memory_order_relaxed);
    if (health->faults > batch->faults && n < ENGINE_FAULTS) {
        memcpy(thread->faults[n], health->last, sizeof health->last);
        atomic_store_explicit(&thread->n_faults, n + 1, memory_order_release);
    }
    for (int i = 0; health->faults > batch->faults && i < batch->n; i++) {
        name_device(batch->streams[i], batch->engine);
    }
    batch->faults = health->faults;
}

size_t engine_turn(struct engine_thread *thread)
{
    size_t hops = 0;
    for (int b = 0; b < thread->n_batches; b++) {
        struct batch *batch = &thread->batches[b];
        int n = gather(batch);
        if (n == 0) {
            continue;
        }
        int64_t enq = clock_now();
        ssm_step(batch->engine, batch->hops, n);
        int64_t inf = clock_now();
        for (int i = 0; i < n; i++) {
            (batch->taken[i]->rows ? deliver_rows : deliver)(batch->taken[i], &batch->hops[i], enq, inf);
            hops += (size_t)batch->hops[i].count;
        }
        histogram_add(&thread->step_times, inf - enq);
        note_health(thread, batch);
        atomic_fetch_add_explicit(&thread->n_steps, 1, memory_order_relaxed);
    }
    return hops + retire(thread);
}

/* ---- The thread. ---- */

static bool has_hop(const struct stream *stream)
{
    size_t hop = (size_t)scale_up((uint64_t)stream->model->hop, stream->model->rate, stream->rate);
    return stream->staged + stream->raw_n - stream->raw_at + feed_fill(stream->feed) >= hop;
}

/* Some streams have a hop and others, that have not ended, are still to get theirs. */
static bool some_are_late(struct engine_thread *thread)
{
    bool ready = false, late = false;
    for (int i = 0; i < thread->n_streams; i++) {
        const struct stream *stream = &thread->streams[i];
        bool has = stream->rows ? rows_front(stream->rows) != NULL : has_hop(stream);
        ready = ready || has;
        late = late || (!has && stream->feed && !feed_ended(stream->feed)); /* a sensor comes when it comes */
    }
    return ready && late;
}

static void wait_for_more(struct engine_thread *thread)
{
    int64_t now = clock_now(), until = now + thread->deadline;
    while (now < until && some_are_late(thread) && !atomic_load(&thread->stopping)) {
        waker_wait(&thread->waker, until - now);
        now = clock_now();
    }
}

/* Run what was posted, if anything was. */
static bool answer(struct engine_thread *thread)
{
    struct engine_call *call = atomic_load_explicit(&thread->posted, memory_order_acquire);
    if (call) {
        call->run(thread, call);
        atomic_store_explicit(&thread->posted, NULL, memory_order_release);
    }
    return call != NULL;
}

static void *run(void *arg)
{
    struct engine_thread *thread = arg;
    while (!atomic_load(&thread->stopping)) {
        bool answered = answer(thread);
        size_t n = engine_turn(thread);
        atomic_fetch_add_explicit(&thread->n_turns, 1, memory_order_relaxed);
        if (n > 0 || answered) {
            thread->delivered(thread->arg);
        } else {
            waker_wait(&thread->waker, -1);
            if (thread->deadline > 0) {
                wait_for_more(thread);
            }
        }
    }
    return NULL;
}

int engine_thread_start(struct engine_thread *thread, void (*delivered)(void *arg), void *arg, struct ssm_error *err)
{
    thread->delivered = delivered;
    thread->arg = arg;
    if (pthread_create(&thread->thread, NULL, run, thread) != 0) {
        return refuse(err, 71, "the engine's thread can't be started: too many threads or too little memory");
    }
    thread->started = true;
    return 0;
}

void engine_thread_stop(struct engine_thread *thread)
{
    if (thread->started) {
        atomic_store(&thread->stopping, true);
        waker_wake(&thread->waker);
        pthread_join(thread->thread, NULL);
        thread->started = false;
    }
}

void engine_post(struct engine_thread *thread, struct engine_call *call)
{
    atomic_store_explicit(&thread->posted, call, memory_order_release);
    waker_wake(&thread->waker);
}

bool engine_answered(const struct engine_thread *thread)
{
    return atomic_load_explicit(&thread->posted, memory_order_acquire) == NULL;
}

int engine_stream_reset(struct engine_thread *thread, int stream)
{
    struct stream *s = &thread->streams[stream];
    return ssm_stream_reset(s->engine, s->slot);
}

bool engine_stream_keeps(const struct engine_thread *thread, int stream)
{
    return thread->streams[stream].feed && !thread->streams[stream].patient;
}

size_t engine_stream_state_size(const struct engine_thread *thread, int stream)
{
    return ssm_state_size(thread->streams[stream].engine);
}

int engine_stream_copy(struct engine_thread *thread, int stream, struct record *record, void *state, size_t size)
{
    struct stream *s = &thread->streams[stream];
    uint64_t position = position_of(s), delay = (uint64_t)s->model->delay;
    int got = ssm_state_save(s->engine, s->slot, state, size);
    *record = (struct record){.position = position, .out = position > delay ? position - delay : 0,
                              .taken = s->position, .captured = capture_time(s, position), .rate = (uint32_t)s->rate,
                              .state = state, .state_size = got > 0 ? (size_t)got : 0};
    return got > 0 ? SSM_OK : got;
}

int engine_stream_resume(struct engine_thread *thread, int stream, const struct record *record, uint64_t at,
                         struct ssm_error *err)
{
    struct stream *s = &thread->streams[stream];
    if (record->rate != (uint32_t)s->rate) {
        return refuse(err, 65, "a stream's state from a source of %u Hz, and this one has %d", record->rate, s->rate);
    }
    if (ssm_state_load(s->engine, s->slot, record->state, record->state_size, err) != SSM_OK) {
        return -1;
    }
    s->resume = (struct resume){true, record->position, record->out, record->captured, at};
    return 0;
}

bool engine_stream_leave(struct engine_thread *thread, int stream, struct engine_leave *leave)
{
    bool can = !atomic_load_explicit(&thread->streams[stream].bypass, memory_order_relaxed);
    atomic_store(&thread->streams[stream].leave, can ? leave : NULL);
    return can;
}

int engine_stream_enter(struct engine_thread *thread, int stream, const struct record *record, struct ssm_error *err)
{
    struct stream *s = &thread->streams[stream];
    uint64_t in = (uint64_t)s->rate, out = (uint64_t)s->model->rate, hop = (uint64_t)s->model->hop;
    if (!s->feed || s->position > 0 || s->raw_n > 0 || s->staged > 0 || s->resume.pending || s->flushed) {
        return refuse(err, 75, "the stream here has begun already");
    }
    if (record->rate != (uint32_t)s->rate) {
        return refuse(err, 65, "a stream's state from a source of %u Hz, and this one has %d", record->rate, s->rate);
    }
    if (record->position % hop != 0 || record->n_waiting >= hop) {
        return refuse(err, 65, "a stream's state with hops of another size");
    }
    if (ssm_state_load(s->engine, s->slot, record->state, record->state_size, err) != SSM_OK) {
        return -1;
    }
    uint64_t units = record->position / s->unit_out, end = record->position + record->n_waiting;
    uint64_t taken = scale_up(record->taken, s->rate, s->model->rate), hole = taken > end ? (taken - end) * in / out : 0;
    s->skipped = units * s->unit_in;
    s->shift = units * s->unit_out;
    s->entered = record->position - s->shift;
    s->left = (int64_t)s->entered - s->model->delay;
    s->least = (int64_t)record->out - (int64_t)s->shift;
    s->began = record->out;
    s->began_in = scale_up(record->out, s->model->rate, s->rate);
    s->position = record->taken - hole;
    memcpy(s->staging, record->waiting, record->n_waiting * sizeof(float));
    s->staged = record->n_waiting;
    if (hole > 0) {
        note_hole(s, hole);
    }
    return 0;
}

void engine_stream_mark(struct engine_thread *thread, int stream, _Atomic uint64_t *mark)
{
    thread->streams[stream].mark = mark;
}

int engine_running(const struct engine_thread *thread)
{
    return atomic_load(&thread->running);
}

struct waker *engine_thread_waker(struct engine_thread *thread)
{
    return &thread->waker;
}

bool engine_stream_bypass(struct engine_thread *thread, int stream, bool bypass)
{
    atomic_store_explicit(&thread->streams[stream].bypass, bypass, memory_order_relaxed);
    return thread->streams[stream].blend != NULL;
}

uint64_t engine_stream_hops(const struct engine_thread *thread, int stream)
{
    const struct stream *s = &thread->streams[stream];
    uint64_t hop = (uint64_t)s->model->hop;
    return (atomic_load_explicit(&s->samples_out, memory_order_relaxed) + hop - 1) / hop;
}

uint64_t engine_stream_samples(const struct engine_thread *thread, int stream)
{
    return atomic_load_explicit(&thread->streams[stream].samples_in, memory_order_relaxed);
}

bool engine_stream_ended(const struct engine_thread *thread, int stream)
{
    return atomic_load(&thread->streams[stream].ended);
}

uint64_t engine_batches(const struct engine_thread *thread)
{
    return atomic_load_explicit(&thread->n_steps, memory_order_relaxed);
}

uint64_t engine_turns(const struct engine_thread *thread)
{
    return atomic_load_explicit(&thread->n_turns, memory_order_relaxed);
}

const struct histogram *engine_step_times(const struct engine_thread *thread)
{
    return &thread->step_times;
}

const char *engine_fault(const struct engine_thread *thread, int i)
{
    return i < atomic_load_explicit(&thread->n_faults, memory_order_acquire) ? thread->faults[i] : "";
}
