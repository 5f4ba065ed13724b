/* SPDX-License-Identifier: MIT */
#include "daemon/health.h"

#include <stdarg.h>
#include <string.h>

#include "daemon/card.h"
#include "daemon/engine_thread.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/running.h"
#include "daemon/source.h"
#include "daemon/wire.h"
#include "dsp/clock.h"

enum { REASONS = 64 };
static const int64_t second = 1000000000, recent = 60 * second, stalled_after = 5 * second;

/* ---- Noting. ---- */

struct rungs {
    int at[RUNGS], lowered;
};

static struct rungs rungs_of(const struct pipeline *pipeline)
{
    struct rungs rungs = {.lowered = 0};
    for (int i = 0; i < pipeline->n_channels; i++) {
        bool ended = stream_ended(pipeline->streams[i]);
        enum rung rung = stream_rung(pipeline->streams[i]);
        rungs.at[rung] += !ended;
        rungs.lowered += !ended && rung != RUNG_MODEL;
    }
    return rungs;
}

static void print_rungs(char *text, size_t size, const struct rungs *rungs)
{
    snprintf(text, size, "%d of %d streams gave way: to a smaller model %d, to their input itself %d, dropped %d", rungs->lowered,
             rungs->lowered + rungs->at[RUNG_MODEL], rungs->at[RUNG_SMALLER], rungs->at[RUNG_BYPASS], rungs->at[RUNG_DROP]);
}

/* Tell of changes, a second's together. */
static void note_rungs(struct pipeline *pipeline)
{
    struct rungs rungs = rungs_of(pipeline);
    char text[160];
    print_rungs(text, sizeof text, &rungs);
    if (rungs.lowered != pipeline->lowered) {
        log_line(LOG_WARNING, "pipeline %s: overload: %s", pipeline->config->name, text);
    }
    pipeline->lowered = rungs.lowered;
}

static void note_counters(struct pipeline *pipeline, int64_t now)
{
    for (int i = 0; i < COUNTERS; i++) {
        uint64_t n = counted_in(pipeline->counters, pipeline->n_channels, (enum counter)i);
        if (n > pipeline->seen[i]) {
            atomic_store_explicit(&pipeline->risen[i], now, memory_order_relaxed);
        }
        pipeline->seen[i] = n;
    }
}

/* The wake makes an idle thread turn, so that the next second has something to see. */
static bool has_turned(struct daemon *daemon)
{
    uint64_t turns = engine_turns(daemon->engine);
    bool turned = turns != daemon->turns || engine_running(daemon->engine) == 0;
    daemon->turns = turns;
    waker_wake(engine_thread_waker(daemon->engine));
    return turned;
}

bool health_note(struct daemon *daemon)
{
    int64_t now = clock_now();
    for (struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        note_counters(pipeline, now);
        note_rungs(pipeline);
    }
    bool turned = has_turned(daemon);
    if (turned) {
        atomic_store_explicit(&daemon->progress, now, memory_order_relaxed);
    }
    return turned;
}

/* ---- Reasons. ---- */

struct reason {
    bool failing; /* else degraded */
    const char *what, *pipeline;
    char text[256];
};

struct reasons {
    struct reason at[REASONS];
    int n, failing;
};

static void add(struct reasons *reasons, bool failing, const char *what, const char *pipeline, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
static void add(struct reasons *reasons, bool failing, const char *what, const char *pipeline, const char *format, ...)
{
    reasons->failing += failing;
    if (reasons->n == REASONS) {
        return;
    }
    struct reason *reason = &reasons->at[reasons->n++];
    *reason = (struct reason){.failing = failing, .what = what, .pipeline = pipeline};
    va_list values;
    va_start(values, format);
    vsnprintf(reason->text, sizeof reason->text, format, values);
    va_end(values);
}

static void find_whole(const struct daemon *daemon, int64_t now, struct reasons *reasons)
{
    bool draining = atomic_load(&daemon->draining), ready = atomic_load(&daemon->ready);
    double quiet = (double)(now - atomic_load_explicit(&daemon->progress, memory_order_relaxed)) / 1e9;
    if (draining) {
        add(reasons, true, "draining", NULL, "told to stop; what has come in is being finished");
    } else if (!ready) {
        add(reasons, true, "starting", NULL, "not everything has started yet");
    } else if (quiet * 1e9 > (double)stalled_after) {
        add(reasons, true, "stalled", NULL, "the engine or the event loop has not moved for %.0f s", quiet);
    }
    for (int i = 0; *engine_fault(daemon->engine, i); i++) {
        add(reasons, false, "device_fault", NULL, "%s; its streams go on on the processor", engine_fault(daemon->engine, i));
    }
}

static void find_ended(const struct pipeline *pipeline, struct reasons *reasons)
{
    int code = atomic_load(&pipeline->source->code);
    if (code != 0) {
        add(reasons, true, "source_ended", pipeline->config->name, "the source ended too early, with code %d", code);
    }
}

static void find_device(const struct pipeline *pipeline, const char *what, struct card *card, struct reasons *reasons)
{
    enum condition condition = card_condition(card);
    char why[256];
    if (condition != CONDITION_OK) {
        double lasts = card_why(card, why, sizeof why);
        add(reasons, false, what, pipeline->config->name, "the sound device %s is %s for %.1f s%s%s", card_name(card),
            condition_names[condition], lasts, why[0] ? "; it was lost: " : "", why);
    }
}

static void find_broker(const struct pipeline *pipeline, struct reasons *reasons)
{
    if (atomic_load(&pipeline->source->lost)) {
        add(reasons, false, "source_broker", pipeline->config->name, "%s is not connected", pipeline->config->source.connect);
    }
}

static void find_silence(const struct pipeline *pipeline, struct reasons *reasons)
{
    struct card *card = pipeline->source->card;
    for (int i = 0; card && i < pipeline->n_channels; i++) {
        if (card_channel_condition(card, i) == CONDITION_SILENT) {
            add(reasons, false, "silent", pipeline->config->name, "channel %d of %s gives nothing but silence for %.0f s",
                pipeline->source->channels[i], card_name(card), card_silence_s(card, i));
        }
    }
}

static void find_overload(const struct pipeline *pipeline, struct reasons *reasons)
{
    struct rungs rungs = rungs_of(pipeline);
    char text[160];
    print_rungs(text, sizeof text, &rungs);
    if (rungs.lowered > 0) {
        add(reasons, false, "overload", pipeline->config->name, "%s", text);
    }
}

static void find_losses(const struct pipeline *pipeline, int64_t now, struct reasons *reasons)
{
    for (int i = 0; i < COUNTERS; i++) {
        int64_t risen = atomic_load_explicit(&pipeline->risen[i], memory_order_relaxed);
        if (risen > 0 && now - risen < recent) {
            uint64_t n = counted_in(pipeline->counters, pipeline->n_channels, (enum counter)i);
            add(reasons, false, counter_table[i].name, pipeline->config->name, "%llu %s so far, the last %.0f s ago: %s",
                (unsigned long long)n, counter_table[i].unit, (double)(now - risen) / 1e9, counter_table[i].help);
        }
    }
}

/* What fails comes first: there is room for so many. */
static void find_reasons(struct daemon *daemon, struct reasons *reasons)
{
    int64_t now = clock_now();
    *reasons = (struct reasons){.n = 0};
    find_whole(daemon, now, reasons);
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        find_ended(pipeline, reasons);
    }
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        find_device(pipeline, "source_device", pipeline->source->card, reasons);
        find_broker(pipeline, reasons);
        find_device(pipeline, "sink_device", pipeline_player(pipeline), reasons);
        find_silence(pipeline, reasons);
        find_overload(pipeline, reasons);
        find_losses(pipeline, now, reasons);
    }
}

/* ---- Pages. ---- */

static int print_ping(void *arg, FILE *file)
{
    (void)arg;
    fputs("pong\n", file);
    return 200;
}

static int print_ready(void *arg, FILE *file)
{
    struct daemon *daemon = arg;
    struct reasons reasons;
    pthread_mutex_lock(&daemon->lock); /* until the reasons' names are printed */
    find_reasons(daemon, &reasons);
    for (int i = 0; i < reasons.n; i++) {
        const struct reason *reason = &reasons.at[i];
        if (reason->failing) {
            fprintf(file, "%s%s%s\n", reason->pipeline ? reason->pipeline : "", reason->pipeline ? ": " : "", reason->text);
        }
    }
    pthread_mutex_unlock(&daemon->lock);
    if (reasons.failing == 0) {
        fputs("ready\n", file);
    }
    return reasons.failing > 0 ? 503 : 200;
}

static void print_pair(FILE *file, const char *before, const char *key, const char *text)
{
    fprintf(file, "%s\"%s\": ", before, key);
    wire_json_text(file, text, strlen(text));
}

static int print_health(void *arg, FILE *file)
{
    struct daemon *daemon = arg;
    struct reasons reasons;
    pthread_mutex_lock(&daemon->lock); /* until the reasons' names are printed */
    find_reasons(daemon, &reasons);
    print_pair(file, "{", "status", reasons.failing > 0 ? "failing" : reasons.n > 0 ? "degraded" : "ok");
    print_pair(file, ", ", "node", daemon->config->node);
    print_pair(file, ", ", "version", SSM_VERSION);
    fprintf(file, ", \"uptime_s\": %.3f, \"reasons\": [", (double)(clock_now() - daemon->started) / 1e9);
    for (int i = 0; i < reasons.n; i++) {
        const struct reason *reason = &reasons.at[i];
        print_pair(file, i > 0 ? ", {" : "{", "what", reason->what);
        if (reason->pipeline) {
            print_pair(file, ", ", "pipeline", reason->pipeline);
        }
        print_pair(file, ", ", "text", reason->text);
        fputc('}', file);
    }
    fputs("]}\n", file);
    pthread_mutex_unlock(&daemon->lock);
    return reasons.failing > 0 ? 503 : 200;
}

static int print_metrics(void *arg, FILE *file)
{
    struct daemon *daemon = arg;
    pthread_mutex_lock(&daemon->lock);
    metrics_print(daemon, file);
    pthread_mutex_unlock(&daemon->lock);
    return 200;
}

static int print_schema(void *arg, FILE *file)
{
    (void)arg;
    config_schema(file);
    return 200;
}

const struct http_page health_pages[HEALTH_PAGES] = {
    {"/ping", "text/plain; charset=utf-8", print_ping},
    {"/ready", "text/plain; charset=utf-8", print_ready},
    {"/health", "application/json", print_health},
    {"/metrics", "text/plain; version=0.0.4; charset=utf-8", print_metrics},
    {"/schema.json", "application/schema+json", print_schema},
};
