/* SPDX-License-Identifier: MIT */
#include "daemon/labels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct labels *labels_create(const struct ssm_engine *engine)
{
    const struct ssm_info *info = ssm_describe(engine);
    struct labels *labels = calloc(1, sizeof *labels + (size_t)info->outputs * sizeof *labels->at);
    if (!labels) {
        return NULL;
    }
    memcpy(labels->model, info->name, sizeof labels->model);
    labels->exclusive = info->exclusive;
    while (labels->n < info->outputs && ssm_describe_label(engine, labels->n, &labels->at[labels->n])) {
        labels->n++;
    }
    return labels;
}

struct events *labels_events(const struct labels *labels, int rate, events_told *told, void *context)
{
    struct event_rule *rules = calloc((size_t)labels->n + 1, sizeof *rules);
    for (int i = 0; rules && i < labels->n; i++) {
        const struct ssm_label *label = &labels->at[i];
        rules[i] = (struct event_rule){
            .on = label->on, .off = label->off, .min_s = (double)label->min_s, .hold_s = (double)label->hold_s};
    }
    struct events *events = rules ? events_create(rules, labels->n, labels->exclusive, rate, told, context) : NULL;
    free(rules);
    return events;
}

bool labels_fields(const struct ssm_engine *engine, char text[LABELS_FIELDS_MAX])
{
    struct ssm_channel channel = {.field = ""};
    size_t n = 0;
    for (int i = 0; ssm_describe_channel(engine, i, &channel) && channel.field[0]; i++) {
        n += (size_t)snprintf(text + n, LABELS_FIELDS_MAX - n, "%s%s", i > 0 ? "," : "", channel.field);
    }
    return n > 0 && channel.field[0];
}

/* A probability in the digits it has. */
static double rounded(float p)
{
    return rint((double)p * 1e4) / 1e4;
}

/* Seconds to the microsecond. */
static double seconds(const struct labels_source *source, uint64_t sample)
{
    return rint((source->origin + (double)sample / source->rate) * 1e6) / 1e6;
}

static void put_number(struct wire_bytes *bytes, const char *key, double value)
{
    wire_put_text(bytes, key);
    wire_put_number(bytes, value);
}

void labels_put_event(struct wire_bytes *bytes, const struct labels *labels, const struct event *event,
                      const struct labels_source *source)
{
    const struct ssm_label *label = &labels->at[event->label];
    bool mid = label->mid[0] != '\0', cut = event->kind == EVENT_CUT, channel = source->channel >= 0;
    wire_put_map(bytes, 8u + channel + mid + cut);
    wire_put_pair(bytes, "event", event->kind == EVENT_BEGIN ? "begin" : "end");
    put_number(bytes, "t0", seconds(source, event->from));
    put_number(bytes, "t1", seconds(source, event->to));
    wire_put_pair(bytes, "source", source->name);
    if (channel) {
        wire_put_text(bytes, "channel");
        wire_put_uint(bytes, (uint64_t)source->channel);
    }
    wire_put_pair(bytes, "label", label->name);
    if (mid) {
        wire_put_pair(bytes, "mid", label->mid);
    }
    put_number(bytes, "p", rounded(event->peak));
    put_number(bytes, "mean", rounded(event->mean));
    wire_put_pair(bytes, "model", labels->model);
    if (cut) {
        wire_put_text(bytes, "cut");
        wire_put_bool(bytes, true);
    }
}
