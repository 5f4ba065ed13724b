/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_TAG_WRITER_H
#define CLIENTS_TAG_WRITER_H

/* Events and scores as text: JSON lines, an Audacity label track, or WebVTT.
 *
 * Events are written as they end; WebVTT, whose cues have to be in order of their beginnings, holds those back that began
 * after one that is still open. */

#include <stdint.h>
#include <stdio.h>

#include "daemon/labels.h"

enum tag_format { TAG_JSONL, TAG_AUDACITY, TAG_VTT };

struct tag_held { /* an event and its channel */
    struct event event;
    int channel;
};

struct tag_writer {
    FILE *file;
    enum tag_format format;
    const struct labels *labels;
    const char *source;
    int channels;  /* told where there are several              */
    int rate;      /* of sample numbers                         */
    double origin; /* s, of sample 0; a date is left out of WebVTT and label tracks */

    struct tag_held *held; /* (room) of which n, by their beginnings */
    size_t n, room;
    uint64_t events; /* written or held so far */
};

/* Fill in the first block, then begin; finish writes what is held and frees it. */
void tag_writer_begin(struct tag_writer *writer);
void tag_writer_finish(struct tag_writer *writer);

/* An event that ended. */
void tag_writer_event(struct tag_writer *writer, int channel, const struct event *event);
/* No event that begins before `sample` will be told any more. */
void tag_writer_pass(struct tag_writer *writer, uint64_t sample);
/* A line of the scores (labels->n) of samples [from, to): JSON whatever the format. */
void tag_writer_scores(struct tag_writer *writer, int channel, uint64_t from, uint64_t to, const float *scores);

#endif
