/* SPDX-License-Identifier: MIT */
#include "dsp/events.h"

#include <stdlib.h>

struct label {
    float on, off;
    uint64_t min, hold, max; /* samples */
    bool active, told;
    uint64_t from, to;       /* [from, to) belongs to the event for sure; what follows is a dip so far   */
    float peak;
    double sum, weight;      /* of scores times samples and of samples, in [from, to)                    */
    double dip_sum, dip_weight; /* ... and in the dip                                                    */
};

struct events {
    events_told *told;
    void *context;
    bool exclusive;
    int n;
    struct label labels[];
};

struct events *events_create(const struct event_rule *rules, int labels, bool exclusive, int rate, events_told *told,
                             void *context)
{
    struct events *events = calloc(1, sizeof *events + (size_t)labels * sizeof *events->labels);
    if (!events) {
        return NULL;
    }
    events->told = told;
    events->context = context;
    events->exclusive = exclusive;
    events->n = labels;
    for (int i = 0; i < labels; i++) {
        const struct event_rule *rule = &rules[i];
        events->labels[i] = (struct label){.on = rule->on,
                                           .off = rule->off,
                                           .min = (uint64_t)(rule->min_s * rate + 0.5),
                                           .hold = (uint64_t)(rule->hold_s * rate + 0.5),
                                           .max = (uint64_t)(rule->max_s * rate + 0.5)};
    }
    return events;
}

void events_destroy(struct events *events)
{
    free(events);
}

static void tell(struct events *events, const struct label *label, enum event_kind kind)
{
    double mean = label->weight > 0 ? label->sum / label->weight : 0;
    struct event event = {.kind = kind, .label = (int)(label - events->labels), .from = label->from, .to = label->to,
                          .peak = label->peak, .mean = (float)mean};
    events->told(events->context, &event);
}

static void end(struct events *events, struct label *label, enum event_kind kind)
{
    if (label->told) {
        tell(events, label, kind);
    }
    label->active = label->told = false;
}

static void begin(struct label *label, uint64_t s0)
{
    label->active = true;
    label->from = label->to = s0;
    label->peak = 0;
    label->sum = label->weight = label->dip_sum = label->dip_weight = 0;
}

/* A row at `off` or above: the dip before it, if any, was one inside the event. */
static void extend(struct events *events, struct label *label, uint64_t s0, uint64_t n, float score)
{
    label->to = s0 + n;
    label->peak = score > label->peak ? score : label->peak;
    label->sum += label->dip_sum + (double)score * (double)n;
    label->weight += label->dip_weight + (double)n;
    label->dip_sum = label->dip_weight = 0;
    if (!label->told && label->to - label->from >= label->min) {
        tell(events, label, EVENT_BEGIN);
        label->told = true;
    }
    if (label->max > 0 && label->to - label->from >= label->max) {
        end(events, label, EVENT_CUT);
        begin(label, s0 + n);
    }
}

static void step(struct events *events, struct label *label, uint64_t s0, uint64_t n, float score)
{
    if (!label->active && score >= label->on) {
        begin(label, s0);
    }
    if (!label->active) {
        return;
    }
    if (score >= label->off) {
        extend(events, label, s0, n, score);
    } else if (s0 + n - label->to > label->hold) {
        end(events, label, EVENT_END);
    } else {
        label->dip_sum += (double)score * (double)n;
        label->dip_weight += (double)n;
    }
}

/* The only label that may be on in this row: the one that is, unless another has reached its `on` above it. */
static int choose(const struct events *events, const float *scores)
{
    int best = -1;
    for (int i = 0; i < events->n; i++) {
        if (events->labels[i].active) {
            best = i;
        }
    }
    for (int i = 0; i < events->n; i++) {
        if (scores[i] >= events->labels[i].on && (best < 0 || !(scores[i] <= scores[best]))) {
            best = i;
        }
    }
    return best;
}

void events_push(struct events *events, uint64_t s0, uint64_t n, const float *scores)
{
    int only = events->exclusive ? choose(events, scores) : -1;
    for (int i = 0; events->exclusive && i < events->n; i++) { /* ends before beginnings */
        if (i != only && events->labels[i].active) {
            end(events, &events->labels[i], EVENT_END);
        }
    }
    for (int i = 0; i < events->n; i++) {
        if (!events->exclusive || i == only) {
            step(events, &events->labels[i], s0, n, scores[i] >= 0 ? scores[i] : 0);
        }
    }
}

void events_cut(struct events *events)
{
    for (int i = 0; i < events->n; i++) {
        if (events->labels[i].active) {
            end(events, &events->labels[i], EVENT_CUT);
        }
    }
}

uint64_t events_open_since(const struct events *events)
{
    uint64_t since = UINT64_MAX;
    for (int i = 0; i < events->n; i++) {
        const struct label *label = &events->labels[i];
        since = label->active && label->from < since ? label->from : since;
    }
    return since;
}
