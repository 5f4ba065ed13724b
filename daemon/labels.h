/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_LABELS_H
#define DAEMON_LABELS_H

/* A model's names: of its channels, of a tag model's labels, and its events in words: the same map as a message of event/, as a line of a jsonl sink and as what
 * `ssm tag` prints. */

#include <stdbool.h>

#include "daemon/wire.h"
#include "dsp/events.h"
#include "model/ssm.h"

struct labels {
    char model[64];
    bool exclusive;
    int n;
    struct ssm_label at[];
};

/* The labels of a model of task "tag"; to free(). NULL when memory runs out. */
struct labels *labels_create(const struct ssm_engine *engine);

/* events_create with the labels' own thresholds and times; `rate` is of the sample numbers. */
struct events *labels_events(const struct labels *labels, int rate, events_told *told, void *context);

enum { LABELS_FIELDS_MAX = 64 * 65 };

/* The names of a model's channels, joined by commas: "ax,ay,az"; false where it doesn't name them. */
bool labels_fields(const struct ssm_engine *engine, char text[LABELS_FIELDS_MAX]);

/* Where an event is from. */
struct labels_source {
    const char *name; /* a file or a pipeline                      */
    int channel;      /* below 0: the only one, not told           */
    int rate;         /* of the event's sample numbers             */
    double origin;    /* s, of sample 0                            */
};

enum { LABELS_EVENT_MAX = 5120 }; /* bytes of the map, with a source's name of up to 4096 */

/* {"event": "begin" or "end", "t0", "t1": s, "source", "channel", "label", "mid", "p": peak, "mean", "model", "cut": true}.
 * t1 of a beginning is how far it is known to last; mid is left out where the model has none, cut where the score fell. */
void labels_put_event(struct wire_bytes *bytes, const struct labels *labels, const struct event *event,
                      const struct labels_source *source);

#endif
