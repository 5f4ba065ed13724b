/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/labels.h"
#include "daemon/publish.h"
#include "daemon/sink.h"
#include "daemon/wire.h"
#include "dsp/clock.h"
#include "model/refuse.h"

/* Hops wait here for the loop: about 0.3 s of them. */
enum { SLOTS = 32, METERS_A_SECOND = 10, META_MAX = 1 << 16, SECOND = 1000000000 };

/* A source's time beyond this, in 1973, is a date rather than its uptime. */
static const double DATE_LEAST = 1e8;

/* One channel's queue from the engine thread to the loop. */
struct outbox {
    _Atomic uint64_t put, taken;
    struct delivery *slots; /* (SLOTS) with samples or scores pointing into `values` */
    float *values;          /* (SLOTS, width)                               */
    struct hole missed;     /* engine's: what found no room, told with the next hop that does */
    struct hole last;       /* missing at the end; written before `ended`   */
    atomic_bool ended;

    /* The loop's. */
    struct publish_sink *publish;
    bool closed; /* the end was published */
    struct topic *hops, *gap; /* hops: audio/ or tags/                        */
    struct topic *meter;      /* of sound                                     */
    struct topic *event, *meta; /* of tags                                    */
    struct events *events;
    struct counters *counters;
    uint64_t next; /* sample after the last one published */
    int64_t tm;    /* of the last hop published           */
    char device[16]; /* that it ran on */
    char digest[sizeof((struct ssm_info *)0)->digest], mdl[sizeof((struct wire_header *)0)->mdl]; /* of the model it came of */
    struct delivery told; /* the last hop published: of its times are the events' */
    struct {
        uint64_t from;
        int64_t tm;
        size_t n;
        double in_square, out_square;
        float in_peak, out_peak;
    } level;
};

struct publish_sink {
    struct sink sink;
    struct publisher *publisher;
    struct stages *stages;
    const struct labels *labels; /* NULL: sound */
    const char *pipeline;
    const int *channels;
    int rate, hop, n;
    size_t width; /* values a hop: samples or scores */
    struct outbox outboxes[];
};

static void publish_event(void *context, const struct event *event);

static struct outbox *outbox_of(const struct sink *sink, int channel)
{
    return (struct outbox *)&((const struct publish_sink *)sink)->outboxes[channel];
}

static void publish_close(struct sink *sink)
{
    struct publish_sink *publish = (struct publish_sink *)sink;
    for (int i = 0; i < publish->n; i++) {
        struct outbox *outbox = &publish->outboxes[i];
        struct topic *const topics[] = {outbox->hops, outbox->gap, outbox->meter, outbox->event, outbox->meta};
        for (size_t k = 0; k < sizeof topics / sizeof *topics; k++) {
            publisher_release(publish->publisher, topics[k]);
        }
        free(outbox->slots);
        free(outbox->values);
        events_destroy(outbox->events);
    }
    free(publish);
}

static struct topic *open_topic(const struct sink_setup *setup, const char *kind, int i)
{
    return publisher_topic(setup->publisher, kind, setup->pipeline, setup->channels[i], setup->model->name);
}

static bool open_topics(struct outbox *outbox, const struct sink_setup *setup, int i)
{
    outbox->hops = open_topic(setup, setup->labels ? "tags" : "audio", i);
    outbox->gap = open_topic(setup, "gap", i);
    if (setup->labels) {
        outbox->event = open_topic(setup, "event", i);
        outbox->meta = open_topic(setup, "meta", i);
        outbox->events = labels_events(setup->labels, setup->rate, publish_event, outbox);
    } else {
        outbox->meter = open_topic(setup, "meter", i);
    }
    bool tags = outbox->event && outbox->meta && outbox->events;
    return outbox->hops && outbox->gap && (setup->labels ? tags : outbox->meter != NULL);
}

/* What comes from now on comes of this model. */
static void note_model(struct outbox *outbox, const struct ssm_info *model)
{
    if (model && memcmp(outbox->digest, model->digest, sizeof outbox->digest) != 0) {
        memcpy(outbox->digest, model->digest, sizeof outbox->digest);
        snprintf(outbox->mdl, sizeof outbox->mdl, "%s@%.12s", model->name, model->digest);
    }
}

static bool outbox_init(struct outbox *outbox, const struct sink_setup *setup, int i)
{
    size_t width = outbox->publish->width;
    outbox->counters = &setup->counters[i];
    snprintf(outbox->device, sizeof outbox->device, "%.*s", (int)strcspn(setup->model->device, " "), setup->model->device);
    note_model(outbox, setup->model);
    outbox->slots = calloc(SLOTS, sizeof *outbox->slots);
    outbox->values = calloc(SLOTS * width, sizeof(float));
    return outbox->slots && outbox->values && open_topics(outbox, setup, i);
}

static void publish_init(struct publish_sink *publish, const struct sink_setup *setup)
{
    const struct ssm_info *model = setup->model;
    publish->sink.ops = &sink_publish;
    publish->publisher = setup->publisher;
    publish->stages = setup->stages;
    publish->labels = setup->labels;
    publish->pipeline = setup->pipeline;
    publish->channels = setup->channels;
    publish->rate = setup->rate;
    publish->hop = model->hop;
    publish->n = setup->n_channels;
    publish->width = (size_t)(setup->labels ? model->outputs : model->hop);
}

static struct sink *publish_open(const struct sink_setup *setup, struct ssm_error *err)
{
    if (!setup->publisher) {
        refuse(err, 78, "pipeline %s has a publish sink, but there is no publish address: set publish", setup->pipeline);
        return NULL;
    }
    size_t n = (size_t)setup->n_channels;
    struct publish_sink *publish = calloc(1, sizeof *publish + n * sizeof *publish->outboxes);
    bool ok = publish != NULL;
    if (ok) {
        publish_init(publish, setup);
    }
    for (int i = 0; ok && i < setup->n_channels; i++) {
        publish->outboxes[i].publish = publish;
        ok = outbox_init(&publish->outboxes[i], setup, i);
    }
    if (!ok) {
        refuse_memory(err);
        if (publish) {
            publish_close(&publish->sink);
        }
        return NULL;
    }
    return &publish->sink;
}

/* ---- Engine thread. ---- */

static uint64_t slots_free(const struct outbox *outbox)
{
    return SLOTS - (atomic_load_explicit(&outbox->put, memory_order_relaxed) -
                    atomic_load_explicit(&outbox->taken, memory_order_acquire));
}

static size_t publish_room(const struct sink *sink, int channel)
{
    const struct publish_sink *publish = (const struct publish_sink *)sink;
    return (size_t)slots_free(outbox_of(sink, channel)) * (size_t)publish->hop;
}

static void join_hole(struct hole *to, const struct hole *from)
{
    if (from->to > from->from) {
        to->from = to->to > to->from && to->from < from->from ? to->from : from->from;
        to->to = from->to > to->to ? from->to : to->to;
        to->why = from->why;
    }
}

static void publish_write(struct sink *sink, int channel, const struct delivery *hop)
{
    struct outbox *outbox = outbox_of(sink, channel);
    struct hole *missed = &outbox->missed;
    join_hole(missed, &hop->hole);
    if (slots_free(outbox) == 0) {
        count(outbox->counters, COUNTER_QUEUE_FULL, hop->scores ? (uint64_t)outbox->publish->hop : hop->n);
        join_hole(missed, &(struct hole){.from = hop->s0, .to = hop->s0 + hop->n, .why = COUNTER_QUEUE_FULL});
        missed->n += hop->n;
        return;
    }
    uint64_t put = atomic_load_explicit(&outbox->put, memory_order_relaxed);
    struct delivery *slot = &outbox->slots[put % SLOTS];
    float *values = outbox->values + put % SLOTS * outbox->publish->width;
    *slot = *hop;
    slot->samples = hop->samples ? values : NULL;
    slot->scores = hop->scores ? values : NULL;
    slot->hole = *missed;
    slot->hole.n += hop->hole.n;
    memcpy(values, hop->samples ? hop->samples : hop->scores,
           (hop->samples ? hop->n : outbox->publish->width) * sizeof(float));
    atomic_store_explicit(&outbox->put, put + 1, memory_order_release);
    missed->from = missed->to;
}

static void publish_end(struct sink *sink, int channel, const struct hole *hole, uint64_t length)
{
    (void)length;
    struct outbox *outbox = outbox_of(sink, channel);
    outbox->last = outbox->missed;
    join_hole(&outbox->last, hole);
    outbox->last.n += hole->n;
    atomic_store_explicit(&outbox->ended, true, memory_order_release);
}

/* ---- Loop thread. ---- */

static void fill_lost(struct wire_lost *lost, const struct hole *hole)
{
    lost->n = hole->n;
    if (hole->to > hole->from) {
        lost->from = hole->from;
        lost->to = hole->to;
        snprintf(lost->why, sizeof lost->why, "%s", counter_table[hole->why].name);
    }
}

/* So many samples in ns. */
static int64_t time_of(const struct publish_sink *publish, int64_t samples)
{
    return samples / publish->rate * SECOND + samples % publish->rate * SECOND / publish->rate;
}

static uint32_t narrow(uint64_t n)
{
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

static struct wire_header header_of(const struct publish_sink *publish, const struct outbox *outbox, const struct delivery *hop)
{
    struct wire_header header = {.s0 = hop->s0, .n = narrow(hop->n), .sr = (uint32_t)publish->rate, .ch = 1,
                                 .tm = hop->tm, .te = hop->tm_error, .cap = hop->cap - hop->tm,
                                 .enq = hop->enq - hop->tm, .inf = hop->inf - hop->tm, .flags = hop->flags};
    fill_lost(&header.lost, &hop->hole);
    memcpy(header.mdl, outbox->mdl, sizeof header.mdl);
    memcpy(header.st, outbox->device, sizeof header.st);
    if (hop->sourced && hop->origin > DATE_LEAST) {
        header.tw = llround((hop->origin + (double)hop->s0 / publish->rate) * SECOND);
        snprintf(header.clk, sizeof header.clk, "src");
    }
    return header;
}

static void send(const struct publish_sink *publish, struct outbox *outbox, struct topic *topic,
                 struct wire_header *header, const void *payload, size_t size)
{
    if (!publisher_send(publish->publisher, topic, header, payload, size)) {
        count(outbox->counters, COUNTER_SUBSCRIBER_FULL, 1);
    }
}

static void send_gap(const struct publish_sink *publish, struct outbox *outbox, const struct delivery *hop)
{
    struct wire_header header = header_of(publish, outbox, hop);
    header.s0 = hop->hole.from;
    header.n = narrow(hop->hole.to - hop->hole.from);
    header.flags |= WIRE_GAP;
    send(publish, outbox, outbox->gap, &header, NULL, 0);
}

static float decibels(double square)
{
    return (float)(10 * log10(square > 1e-12 ? square : 1e-12));
}

/* Rms and peak of what came in and what went out, each tenth of a second. */
static void meter(const struct publish_sink *publish, struct outbox *outbox, const struct delivery *hop)
{
    if (outbox->level.n == 0) {
        outbox->level.from = hop->s0;
        outbox->level.tm = hop->tm;
    }
    for (size_t i = 0; i < hop->n; i++) {
        float size = fabsf(hop->samples[i]);
        outbox->level.out_square += (double)size * size;
        outbox->level.out_peak = fmaxf(outbox->level.out_peak, size);
    }
    outbox->level.in_square += hop->in_square;
    outbox->level.in_peak = fmaxf(outbox->level.in_peak, hop->in_peak);
    outbox->level.n += hop->n;
    if (outbox->level.n * METERS_A_SECOND < (size_t)publish->rate) {
        return;
    }
    double n = (double)outbox->level.n;
    float levels[4] = {decibels(outbox->level.in_square / n),
                       decibels((double)outbox->level.in_peak * outbox->level.in_peak),
                       decibels(outbox->level.out_square / n),
                       decibels((double)outbox->level.out_peak * outbox->level.out_peak)};
    struct delivery span = *hop;
    span.s0 = outbox->level.from;
    span.n = outbox->level.n;
    span.tm = outbox->level.tm;
    struct wire_header header = header_of(publish, outbox, &span);
    header.shp[0] = 4;
    header.n_shp = 1;
    snprintf(header.dt, sizeof header.dt, "f32le");
    send(publish, outbox, outbox->meter, &header, levels, sizeof levels);
    memset(&outbox->level, 0, sizeof outbox->level);
}

/* A begin or end, with the times of the hop that showed it. */
static void publish_event(void *context, const struct event *event)
{
    struct outbox *outbox = context;
    struct publish_sink *publish = outbox->publish;
    uint8_t room[LABELS_EVENT_MAX];
    struct wire_bytes bytes = {.at = room, .room = sizeof room};
    const struct labels_source source = {publish->pipeline, publish->channels[outbox - publish->outboxes], publish->rate,
                                         outbox->told.origin};
    labels_put_event(&bytes, publish->labels, event, &source);
    struct delivery span = outbox->told;
    span.s0 = event->from;
    span.n = (size_t)(event->to - event->from);
    span.tm -= time_of(publish, (int64_t)(outbox->told.s0 - event->from));
    span.hole = (struct hole){.n = outbox->told.hole.n};
    struct wire_header header = header_of(publish, outbox, &span);
    snprintf(header.dt, sizeof header.dt, "msgpack");
    send(publish, outbox, outbox->event, &header, bytes.at, bytes.n);
}

/* {"task", "rate", "hop", "exclusive", "labels": [{"name", "mid", "on", "off"}]}: what stands in which place of tags/. */
static void publish_meta(struct publish_sink *publish, struct outbox *outbox)
{
    uint8_t room[META_MAX];
    struct wire_bytes bytes = {.at = room, .room = sizeof room};
    wire_put_map(&bytes, 5);
    wire_put_pair(&bytes, "task", "tag");
    wire_put_text(&bytes, "rate");
    wire_put_uint(&bytes, (uint64_t)publish->rate);
    wire_put_text(&bytes, "hop");
    wire_put_uint(&bytes, (uint64_t)publish->hop);
    wire_put_text(&bytes, "exclusive");
    wire_put_bool(&bytes, publish->labels->exclusive);
    wire_put_text(&bytes, "labels");
    wire_put_array(&bytes, (size_t)publish->labels->n);
    for (int i = 0; i < publish->labels->n; i++) {
        const struct ssm_label *label = &publish->labels->at[i];
        wire_put_map(&bytes, 4);
        wire_put_pair(&bytes, "name", label->name);
        wire_put_pair(&bytes, "mid", label->mid);
        wire_put_text(&bytes, "on");
        wire_put_number(&bytes, (double)label->on);
        wire_put_text(&bytes, "off");
        wire_put_number(&bytes, (double)label->off);
    }
    struct delivery now = {.s0 = outbox->next, .tm = clock_now()};
    now.cap = now.enq = now.inf = now.tm;
    struct wire_header header = header_of(publish, outbox, &now);
    snprintf(header.dt, sizeof header.dt, "msgpack");
    if (!bytes.full) {
        send(publish, outbox, outbox->meta, &header, bytes.at, bytes.n);
    }
}

static void publish_welcome(struct sink *sink)
{
    struct publish_sink *publish = (struct publish_sink *)sink;
    for (int i = 0; publish->labels && i < publish->n; i++) {
        publish_meta(publish, &publish->outboxes[i]);
    }
}

/* The row's events; none reaches over a hole. */
static void publish_events(struct outbox *outbox, const struct delivery *hop)
{
    if (hop->hole.to > hop->hole.from) {
        events_cut(outbox->events);
    }
    outbox->told = *hop;
    events_push(outbox->events, hop->s0, hop->n, hop->scores);
}

static void publish_hop(struct publish_sink *publish, struct outbox *outbox, const struct delivery *hop)
{
    if (hop->hole.to > hop->hole.from) {
        send_gap(publish, outbox, hop); /* of the device from before */
    }
    memcpy(outbox->device, hop->device, sizeof outbox->device);
    note_model(outbox, hop->model);
    struct wire_header header = header_of(publish, outbox, hop);
    size_t values = publish->labels ? publish->width : hop->n;
    header.shp[0] = (uint32_t)values;
    header.n_shp = 1;
    snprintf(header.dt, sizeof header.dt, "f32le");
    send(publish, outbox, outbox->hops, &header, publish->labels ? hop->scores : hop->samples, values * sizeof(float));
    stages_add(publish->stages, header.cap, header.enq, header.inf, header.pub);
    if (publish->labels) {
        publish_events(outbox, hop);
    } else {
        meter(publish, outbox, hop);
    }
    outbox->next = hop->s0 + hop->n;
    outbox->tm = hop->tm;
}

static void publish_last(struct publish_sink *publish, struct outbox *outbox)
{
    int64_t now = clock_now();
    now = now > outbox->tm ? now : outbox->tm; /* which is a fit's, and may be ahead */
    struct delivery end = {.s0 = outbox->next, .tm = now, .cap = now, .enq = now, .inf = now, .hole = outbox->last,
                           .flags = WIRE_END};
    if (end.hole.to > end.hole.from) {
        send_gap(publish, outbox, &end);
    }
    if (outbox->events) {
        events_cut(outbox->events);
    }
    struct wire_header header = header_of(publish, outbox, &end);
    send(publish, outbox, outbox->hops, &header, NULL, 0);
    outbox->closed = true;
}

static void publish_serve(struct sink *sink)
{
    struct publish_sink *publish = (struct publish_sink *)sink;
    for (int i = 0; i < publish->n; i++) {
        struct outbox *outbox = &publish->outboxes[i];
        bool ended = atomic_load_explicit(&outbox->ended, memory_order_acquire);
        uint64_t put = atomic_load_explicit(&outbox->put, memory_order_acquire);
        uint64_t taken = atomic_load_explicit(&outbox->taken, memory_order_relaxed);
        while (taken < put) {
            publish_hop(publish, outbox, &outbox->slots[taken % SLOTS]);
            atomic_store_explicit(&outbox->taken, ++taken, memory_order_release);
        }
        if (ended && !outbox->closed) {
            publish_last(publish, outbox);
        }
    }
}

const struct sink_ops sink_publish = {.name = "publish",
                                      .takes = SINK_TAKES_SAMPLES | SINK_TAKES_SCORES,
                                      .open = publish_open,
                                      .room = publish_room,
                                      .write = publish_write,
                                      .end = publish_end,
                                      .serve = publish_serve,
                                      .welcome = publish_welcome,
                                      .close = publish_close};
