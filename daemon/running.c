/* SPDX-License-Identifier: MIT */
#include "daemon/running.h"

#include <stdlib.h>

#include "daemon/card.h"
#include "daemon/engine_thread.h"
#include "daemon/notify.h"
#include "daemon/publish.h"
#include "daemon/sink.h"
#include "daemon/source.h"
#include "dsp/clock.h"

enum { STATE_BYTES = 4096, STATE_BYTES_STREAM = 512 };

size_t running_state_room(const struct daemon *daemon)
{
    return STATE_BYTES + STATE_BYTES_STREAM * (size_t)daemon->n_streams;
}

void running_count(struct daemon *daemon)
{
    bool patient = false;
    int n = 0;
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        patient = patient || pipeline->source->patient;
        n += pipeline->n_channels;
    }
    pthread_mutex_lock(&daemon->lock);
    daemon->n_streams = n;
    pthread_mutex_unlock(&daemon->lock);
    atomic_store(&daemon->patient, patient);
    size_t room = running_state_room(daemon);
    uint8_t *bytes = room > daemon->state_room ? realloc(daemon->state_bytes, room) : NULL;
    daemon->state_room = bytes ? room : daemon->state_room; /* without memory what is too long isn't told */
    daemon->state_bytes = bytes ? bytes : daemon->state_bytes;
}

/* ---- state/ ---- */

static const char *phase(const struct daemon *daemon)
{
    return engine_running(daemon->engine) == 0 ? "drained" : daemon->draining ? "draining" : "running";
}

uint64_t running_counted(const struct daemon *daemon, enum counter counter)
{
    uint64_t n = daemon->past[counter];
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        n += counted_in(pipeline->counters, pipeline->n_channels, counter);
    }
    return n;
}

/* Only what is not zero: a healthy stream has an empty map. */
static void put_counters(struct wire_bytes *bytes, const struct counters *counters)
{
    size_t n = 0;
    for (int i = 0; i < COUNTERS; i++) {
        n += counted(counters, (enum counter)i) > 0;
    }
    wire_put_map(bytes, n);
    for (int i = 0; i < COUNTERS && n > 0; i++) {
        uint64_t value = counted(counters, (enum counter)i);
        if (value > 0) {
            wire_put_text(bytes, counter_table[i].name);
            wire_put_uint(bytes, value);
            n--;
        }
    }
    for (; n > 0; n--) { /* one went on while it was read: keep the map's length true */
        wire_put_text(bytes, "");
        wire_put_uint(bytes, 0);
    }
}

static void put_stream(struct wire_bytes *bytes, const struct pipeline *pipeline, int channel)
{
    const struct stream *stream = pipeline->streams[channel];
    wire_put_map(bytes, 12);
    wire_put_pair(bytes, "pipeline", pipeline->config->name);
    wire_put_text(bytes, "channel");
    wire_put_uint(bytes, (uint64_t)pipeline->source->channels[channel]);
    wire_put_pair(bytes, "model", ssm_describe(pipeline->model->engine)->name);
    wire_put_pair(bytes, "source", condition_names[source_condition(pipeline->source, channel)]);
    wire_put_pair(bytes, "player", condition_names[card_condition(pipeline_player(pipeline))]);
    wire_put_text(bytes, "ended");
    wire_put_bool(bytes, stream_ended(stream));
    wire_put_text(bytes, "hops");
    wire_put_uint(bytes, stream_hops(stream));
    wire_put_text(bytes, "samples");
    wire_put_uint(bytes, stream_samples(stream));
    wire_put_pair(bytes, "rung", rung_names[stream_rung(stream)]);
    wire_put_text(bytes, "late");
    wire_put_uint(bytes, stream_late(stream));
    wire_put_text(bytes, "delay_ms");
    wire_put_number(bytes, (double)stream_delay(stream) / 1e6);
    wire_put_text(bytes, "lost");
    put_counters(bytes, &pipeline->counters[channel]);
}

static void put_times(struct wire_bytes *bytes, const char *name, const struct histogram *histogram)
{
    static const struct {
        const char *name;
        double share;
    } quantiles[] = {{"p50_ms", 0.5}, {"p99_ms", 0.99}, {"p999_ms", 0.999}};
    wire_put_text(bytes, name);
    wire_put_map(bytes, 4);
    wire_put_text(bytes, "n");
    wire_put_uint(bytes, histogram_count(histogram));
    for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; i++) {
        wire_put_text(bytes, quantiles[i].name);
        wire_put_number(bytes, histogram_quantile(histogram, quantiles[i].share) / 1e6);
    }
}

void running_put_state(const struct daemon *daemon, struct wire_bytes *bytes)
{
    wire_put_map(bytes, 10);
    wire_put_pair(bytes, "node", daemon->config->node);
    wire_put_pair(bytes, "version", SSM_VERSION);
    wire_put_pair(bytes, "state", phase(daemon));
    wire_put_text(bytes, "uptime_s");
    wire_put_number(bytes, (double)(clock_now() - daemon->started) / 1e9);
    wire_put_text(bytes, "batches");
    wire_put_uint(bytes, engine_batches(daemon->engine));
    wire_put_text(bytes, "published");
    wire_put_uint(bytes, daemon->publisher ? publisher_messages(daemon->publisher) : 0);
    wire_put_text(bytes, "device_faults");
    wire_put_uint(bytes, (uint64_t)daemon->faults_told);
    put_times(bytes, "capture_to_publish", &daemon->stages.at[STAGE_TOTAL]);
    put_times(bytes, "step", engine_step_times(daemon->engine));
    wire_put_text(bytes, "streams");
    running_put_streams(daemon, bytes);
}

void running_put_streams(const struct daemon *daemon, struct wire_bytes *bytes)
{
    wire_put_array(bytes, (size_t)daemon->n_streams);
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        for (int i = 0; i < pipeline->n_channels; i++) {
            put_stream(bytes, pipeline, i);
        }
    }
}

/* ---- Sinks. ---- */

static void serve_pipeline(struct pipeline *pipeline)
{
    for (int i = 0; i < pipeline->n_sinks; i++) {
        if (pipeline->sinks[i]->ops->serve) {
            pipeline->sinks[i]->ops->serve(pipeline->sinks[i]);
        }
    }
}

/* What took another's place waits until that one's end, which may stand on the same topics, has been told. */
void running_serve_sinks(struct daemon *daemon)
{
    for (struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        pipeline->held = pipeline->before && !pipeline_ended(pipeline->before);
    }
    for (struct pipeline *pipeline = daemon->leaving; pipeline; pipeline = pipeline->next) {
        serve_pipeline(pipeline);
    }
    for (struct pipeline *pipeline = daemon->changing; pipeline; pipeline = pipeline->next) {
        serve_pipeline(pipeline);
    }
    for (struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        if (!pipeline->held) {
            serve_pipeline(pipeline);
        }
    }
    if (atomic_load(&daemon->patient) || engine_waits(daemon->engine)) {
        waker_wake(engine_thread_waker(daemon->engine)); /* there is room again */
    }
}

void running_tell_ready(const struct daemon *daemon)
{
    char status[320];
    snprintf(status, sizeof status, "%d stream%s%s%s", daemon->n_streams, daemon->n_streams == 1 ? "" : "s",
             daemon->publisher ? ", publishing on " : "", daemon->publisher ? daemon->config->publish : "");
    notify_ready(status);
}
