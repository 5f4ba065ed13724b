/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/publish.h"
#include "daemon/sink.h"
#include "daemon/wire.h"
#include "dsp/clock.h"
#include "model/refuse.h"

/* Hops wait here for the loop: about 0.3 s of them. */
enum { SLOTS = 32, METERS_A_SECOND = 10 };

/* One channel's queue from the engine thread to the loop. */
struct outbox {
    _Atomic uint64_t put, taken;
    struct delivery *slots; /* (SLOTS) with samples pointing into `samples` */
    float *samples;         /* (SLOTS, hop)                                 */
    struct hole missed;     /* engine's: what found no room, told with the next hop that does */
    struct hole last;       /* missing at the end; written before `ended`   */
    atomic_bool ended;

    /* The loop's. */
    bool closed; /* the end was published */
    struct topic *audio, *meter, *gap;
    struct counters *counters;
    uint64_t next; /* sample after the last one published */
    struct {
        uint64_t from;
        size_t n;
        double in_square, out_square;
        float in_peak, out_peak;
    } level;
};

struct publish_sink {
    struct sink sink;
    struct publisher *publisher;
    struct histogram *latency;
    int rate, hop, n;
    char mdl[96], st[16];
    struct outbox outboxes[];
};

static struct outbox *outbox_of(const struct sink *sink, int channel)
{
    return (struct outbox *)&((const struct publish_sink *)sink)->outboxes[channel];
}

static void publish_close(struct sink *sink)
{
    struct publish_sink *publish = (struct publish_sink *)sink;
    for (int i = 0; i < publish->n; i++) {
        free(publish->outboxes[i].slots);
        free(publish->outboxes[i].samples);
    }
    free(publish);
}

static bool outbox_init(struct outbox *outbox, const struct sink_setup *setup, int i)
{
    const char *model = setup->model->name;
    size_t hop = (size_t)setup->model->hop;
    outbox->audio = publisher_topic(setup->publisher, "audio", setup->pipeline, setup->channels[i], model);
    outbox->meter = publisher_topic(setup->publisher, "meter", setup->pipeline, setup->channels[i], model);
    outbox->gap = publisher_topic(setup->publisher, "gap", setup->pipeline, setup->channels[i], model);
    outbox->counters = &setup->counters[i];
    outbox->slots = calloc(SLOTS, sizeof *outbox->slots);
    outbox->samples = calloc(SLOTS * hop, sizeof(float));
    for (size_t k = 0; outbox->slots && k < SLOTS; k++) {
        outbox->slots[k].samples = outbox->samples + k * hop;
    }
    return outbox->audio && outbox->meter && outbox->gap && outbox->slots && outbox->samples;
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
        publish->sink.ops = &sink_publish;
        publish->publisher = setup->publisher;
        publish->latency = setup->latency;
        publish->rate = setup->model->rate;
        publish->hop = setup->model->hop;
        publish->n = setup->n_channels;
        snprintf(publish->mdl, sizeof publish->mdl, "%s@%.12s", setup->model->name, setup->model->digest);
        snprintf(publish->st, sizeof publish->st, "%.*s", (int)strcspn(setup->model->device, " "), setup->model->device);
    }
    for (int i = 0; ok && i < setup->n_channels; i++) {
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
        count(outbox->counters, COUNTER_QUEUE_FULL, hop->n);
        join_hole(missed, &(struct hole){.from = hop->s0, .to = hop->s0 + hop->n, .why = COUNTER_QUEUE_FULL});
        missed->n += hop->n;
        return;
    }
    uint64_t put = atomic_load_explicit(&outbox->put, memory_order_relaxed);
    struct delivery *slot = &outbox->slots[put % SLOTS];
    float *samples = outbox->samples + put % SLOTS * (size_t)((struct publish_sink *)sink)->hop;
    *slot = *hop;
    slot->samples = samples;
    slot->hole = *missed;
    slot->hole.n += hop->hole.n;
    memcpy(samples, hop->samples, hop->n * sizeof(float));
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

static struct wire_header header_of(const struct publish_sink *publish, const struct delivery *hop)
{
    struct wire_header header = {.s0 = hop->s0, .n = (uint32_t)hop->n, .sr = (uint32_t)publish->rate, .ch = 1,
                                 .tm = hop->tm, .te = hop->tm_error, .cap = hop->cap - hop->tm,
                                 .enq = hop->enq - hop->tm, .inf = hop->inf - hop->tm, .flags = hop->flags};
    fill_lost(&header.lost, &hop->hole);
    memcpy(header.mdl, publish->mdl, sizeof header.mdl);
    memcpy(header.st, publish->st, sizeof header.st);
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
    struct wire_header header = header_of(publish, hop);
    header.s0 = hop->hole.from;
    header.n = (uint32_t)(hop->hole.to - hop->hole.from);
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
    span.tm -= (int64_t)(hop->s0 - span.s0) * 1000000000 / publish->rate;
    struct wire_header header = header_of(publish, &span);
    header.shp[0] = 4;
    header.n_shp = 1;
    snprintf(header.dt, sizeof header.dt, "f32le");
    send(publish, outbox, outbox->meter, &header, levels, sizeof levels);
    memset(&outbox->level, 0, sizeof outbox->level);
}

static void publish_hop(struct publish_sink *publish, struct outbox *outbox, const struct delivery *hop)
{
    if (hop->hole.to > hop->hole.from) {
        send_gap(publish, outbox, hop);
    }
    struct wire_header header = header_of(publish, hop);
    header.shp[0] = (uint32_t)hop->n;
    header.n_shp = 1;
    snprintf(header.dt, sizeof header.dt, "f32le");
    send(publish, outbox, outbox->audio, &header, hop->samples, hop->n * sizeof(float));
    histogram_add(publish->latency, header.pub - header.cap);
    meter(publish, outbox, hop);
    outbox->next = hop->s0 + hop->n;
}

static void publish_last(struct publish_sink *publish, struct outbox *outbox)
{
    int64_t now = clock_now();
    struct delivery end = {.s0 = outbox->next, .tm = now, .cap = now, .enq = now, .inf = now, .hole = outbox->last,
                           .flags = WIRE_END};
    if (end.hole.to > end.hole.from) {
        send_gap(publish, outbox, &end);
    }
    struct wire_header header = header_of(publish, &end);
    send(publish, outbox, outbox->audio, &header, NULL, 0);
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
                                      .open = publish_open,
                                      .room = publish_room,
                                      .write = publish_write,
                                      .end = publish_end,
                                      .serve = publish_serve,
                                      .close = publish_close};
