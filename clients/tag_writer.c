/* SPDX-License-Identifier: MIT */
#include "clients/tag_writer.h"

#include <stdlib.h>
#include <string.h>

#include "clients/json.h"

static struct labels_source source_of(const struct tag_writer *w, int channel)
{
    return (struct labels_source){w->source, w->channels > 1 ? channel : -1, w->rate, w->origin};
}

static double seconds(const struct tag_writer *w, uint64_t sample)
{
    return w->origin + (double)sample / w->rate;
}

/* Of a recording's own: players and editors begin at 0. */
static double on_track(const struct tag_writer *w, uint64_t sample)
{
    const double date = 1e8; /* 1973; no recording lasts so long */
    return w->origin < date ? seconds(w, sample) : (double)sample / w->rate;
}

static void print_line(const struct tag_writer *w, int channel, const struct event *event)
{
    uint8_t room[LABELS_EVENT_MAX];
    struct wire_bytes bytes = {.at = room, .room = sizeof room};
    struct labels_source source = source_of(w, channel);
    labels_put_event(&bytes, w->labels, event, &source);
    wire_json(w->file, bytes.at, bytes.n);
    fputc('\n', w->file);
}

static void print_name(const struct tag_writer *w, int channel, const struct event *event)
{
    fputs(w->labels->at[event->label].name, w->file);
    if (w->channels > 1) {
        fprintf(w->file, " (channel %d)", channel);
    }
}

static void print_track(const struct tag_writer *w, int channel, const struct event *event)
{
    fprintf(w->file, "%.6f\t%.6f\t", on_track(w, event->from), on_track(w, event->to));
    print_name(w, channel, event);
    fputc('\n', w->file);
}

/* 01:02:03.456 */
static void print_clock(FILE *file, double seconds)
{
    long long ms = (long long)(seconds * 1000 + 0.5);
    fprintf(file, "%02lld:%02lld:%02lld.%03lld", ms / 3600000, ms / 60000 % 60, ms / 1000 % 60, ms % 1000);
}

static void print_cue(const struct tag_writer *w, int channel, const struct event *event)
{
    print_clock(w->file, on_track(w, event->from));
    fputs(" --> ", w->file);
    print_clock(w->file, on_track(w, event->to));
    fputc('\n', w->file);
    print_name(w, channel, event);
    fprintf(w->file, " %.0f %%\n\n", 100 * (double)event->peak);
}

void tag_writer_begin(struct tag_writer *w)
{
    if (w->format == TAG_VTT) {
        fputs("WEBVTT\n\n", w->file);
    }
}

/* Into its place by its beginning; false when memory runs out. */
static bool hold(struct tag_writer *w, int channel, const struct event *event)
{
    if (w->n == w->room) {
        size_t room = w->room * 2 + 16;
        struct tag_held *more = realloc(w->held, room * sizeof *more);
        if (more == NULL) {
            return false;
        }
        w->held = more;
        w->room = room;
    }
    size_t i = w->n++;
    for (; i > 0 && w->held[i - 1].event.from > event->from; i--) {
        w->held[i] = w->held[i - 1];
    }
    w->held[i] = (struct tag_held){*event, channel};
    return true;
}

void tag_writer_event(struct tag_writer *w, int channel, const struct event *event)
{
    w->events++;
    if (w->format == TAG_JSONL) {
        print_line(w, channel, event);
    } else if (w->format == TAG_AUDACITY) {
        print_track(w, channel, event);
    } else if (!hold(w, channel, event)) {
        print_cue(w, channel, event); /* out of its order rather than not at all */
    }
}

void tag_writer_pass(struct tag_writer *w, uint64_t sample)
{
    size_t n = 0;
    for (; n < w->n && w->held[n].event.from < sample; n++) {
        print_cue(w, w->held[n].channel, &w->held[n].event);
    }
    if (n > 0) {
        memmove(w->held, w->held + n, (w->n - n) * sizeof *w->held);
        w->n -= n;
    }
}

void tag_writer_scores(struct tag_writer *w, int channel, uint64_t from, uint64_t to, const float *scores)
{
    struct json json = {.file = w->file};
    json_open(&json, NULL, '{');
    fprintf(json_raw(&json, "t0"), "%.6f", seconds(w, from));
    fprintf(json_raw(&json, "t1"), "%.6f", seconds(w, to));
    json_text(&json, "source", w->source);
    if (w->channels > 1) {
        json_whole(&json, "channel", channel);
    }
    json_open(&json, "scores", '{');
    for (int i = 0; i < w->labels->n; i++) {
        fprintf(json_raw(&json, w->labels->at[i].name), "%.6g", (double)scores[i]);
    }
    json_close(&json, '}');
    json_close(&json, '}');
    fputc('\n', w->file);
}

void tag_writer_finish(struct tag_writer *w)
{
    tag_writer_pass(w, UINT64_MAX);
    free(w->held);
    w->held = NULL;
}
