/* SPDX-License-Identifier: MIT */
#include "daemon/daemon.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/card.h"
#include "daemon/checkpoint.h"
#include "daemon/control.h"
#include "daemon/engine_thread.h"
#include "daemon/health.h"
#include "daemon/fit.h"
#include "daemon/gate.h"
#include "daemon/log.h"
#include "daemon/loop.h"
#include "daemon/notify.h"
#include "daemon/publish.h"
#include "daemon/reload.h"
#include "daemon/running.h"
#include "daemon/sink.h"
#include "daemon/source.h"
#include "daemon/worker.h"
#include "dsp/clock.h"
#include "dsp/spare.h"
#include "model/refuse.h"

enum { STATE_MS = 1000, TICK_MS = 50 };

/* ---- Opening. ---- */

/* One of each that the configuration names. */
static int create_pipelines(struct daemon *daemon, struct ssm_error *err)
{
    struct pipeline **last = &daemon->pipelines;
    for (int i = 0; i < daemon->config->n_pipelines; i++) {
        *last = pipeline_create(&daemon->config->pipelines[i]);
        if (!*last) {
            return refuse_memory(err);
        }
        last = &(*last)->next;
    }
    return 0;
}

static int open_inputs(struct daemon *daemon, struct ssm_error *err)
{
    if (create_pipelines(daemon, err) < 0 || pipelines_open_inputs(daemon, daemon->pipelines, &daemon->models, err) < 0) {
        return -1;
    }
    running_count(daemon);
    return 0;
}


static int open_publisher(struct daemon *daemon, struct ssm_error *err)
{
    const struct config *config = daemon->config;
    if (config->publish[0] == '\0') {
        return 0;
    }
    daemon->publisher = publisher_open(daemon->gate, config->publish, config->node, daemon->n_streams, err);
    if (!daemon->publisher) {
        return -1;
    }
    daemon->state_topic = publisher_topic(daemon->publisher, "state", NULL, -1, NULL);
    return daemon->state_topic && daemon->state_bytes ? 0 : refuse_memory(err);
}

/* The stream's sample, at the source's rate, that a source which ran on is at now. */
static uint64_t sample_now(const struct source *source, int model_rate, const struct record *record, double age_s)
{
    return record->position * (uint64_t)source->rate / (uint64_t)model_rate + (uint64_t)llround(age_s * source->rate);
}

/* A pipeline's streams go on from their states. */
static void resume(struct daemon *daemon, struct pipeline *pipeline)
{
    struct source *source = pipeline->source;
    uint64_t at = 0;
    for (int i = 0; i < pipeline->n_channels; i++) {
        struct ssm_error err = {0};
        struct record record;
        double age_s;
        bool found = checkpoint_find(daemon->checkpoint, pipeline->kept[i], &record, &age_s, &err);
        if (found && source->ops->seek) { /* the channels of a file are where its first one is */
            at = i == 0 ? sample_now(source, ssm_describe(pipeline->model->engine)->rate, &record, age_s) : at;
            at = i > 0 || source->ops->seek(source, at) ? at : 0;
            found = at > 0 || refuse(&err, 66, "its source can't go on where it would be by now") == 0;
        }
        if (found && stream_resume(pipeline->streams[i], &record, at, &err) == 0) {
            log_line(LOG_INFO, "pipeline %s: channel %d goes on from a state of %.3f s ago", pipeline->config->name,
                     source->channels[i], age_s);
            continue;
        }
        checkpoint_forget(daemon->checkpoint, pipeline->kept[i]);
        if (err.code != 0) {
            log_line(LOG_WARNING, "pipeline %s: channel %d begins anew: %s", pipeline->config->name, source->channels[i], err.text);
        }
    }
}

static int open_outputs(struct daemon *daemon, struct ssm_error *err)
{
    const char *folder = daemon->config->state_dir;
    if (folder[0] && !(daemon->checkpoint = checkpoint_open(folder, err))) {
        return -1;
    }
    if (pipelines_open_outputs(daemon, daemon->pipelines, err) < 0 || pipelines_join(daemon, daemon->pipelines, err) < 0) {
        return -1;
    }
    for (struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        if (pipeline->kept[0]) {
            resume(daemon, pipeline);
        }
    }
    return 0;
}

static int open_control(struct daemon *daemon, struct ssm_error *err)
{
    char address[300];
    config_control(daemon->config, address, sizeof address);
    daemon->control = address[0] ? control_open(address, daemon, err) : NULL;
    return address[0] && !daemon->control ? -1 : 0;
}

struct daemon *daemon_open(const struct config *config, struct ssm_error *err)
{
    struct daemon *daemon = calloc(1, sizeof *daemon);
    if (!daemon) {
        refuse_memory(err);
        return NULL;
    }
    daemon->config = config;
    admission_init(&daemon->admission, config->capacity);
    daemon->started = clock_now();
    daemon->started_utc = 1e-9 * (double)clock_utc_now();
    pthread_mutex_init(&daemon->lock, NULL);
    errno = 0;
    daemon->reader = worker_create();
    daemon->writer = worker_create();
    daemon->loop = loop_create();
    daemon->engine = engine_thread_create(config->deadline_s);
    daemon->reload = reload_create(daemon);
    if (!daemon->reload || !daemon->reader || !daemon->writer || !daemon->loop || !daemon->engine) {
        refuse_memory(err);
        goto fail;
    }
    if (!(daemon->gate = gate_open(&config->curve, err))) {
        if (config->curve.secret[0]) {
            fit_blame(&config->curve_at, err);
        }
        goto fail;
    }
    if (open_inputs(daemon, err) < 0 || open_publisher(daemon, err) < 0 || open_outputs(daemon, err) < 0 ||
        open_control(daemon, err) < 0) {
        goto fail;
    }
    if (config->http[0] && !(daemon->http = http_open(config->http, health_pages, HEALTH_PAGES, daemon, err))) {
        goto fail;
    }
    return daemon;
fail:
    daemon_close(daemon);
    return NULL;
}

/* ---- Telling how it is. ---- */

static void publish_state(struct daemon *daemon)
{
    if (!daemon->publisher) {
        return;
    }
    struct wire_bytes bytes = {.at = daemon->state_bytes, .room = daemon->state_room};
    running_put_state(daemon, &bytes);
    if (!bytes.full) {
        struct wire_header header = {.tm = clock_now(), .dt = "msgpack"};
        publisher_send(daemon->publisher, daemon->state_topic, &header, bytes.at, bytes.n);
    }
}

/* ---- The loop's calls. ---- */

static void welcome(struct daemon *daemon)
{
    for (struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        for (int k = 0; k < pipeline->n_sinks; k++) {
            if (pipeline->sinks[k]->ops->welcome) {
                pipeline->sinks[k]->ops->welcome(pipeline->sinks[k]);
            }
        }
    }
}

/* After every wake, timer and send: ZeroMQ's descriptor only tells of changes. Who joins learns at once where it is. */
static void serve_publisher(struct daemon *daemon)
{
    while (daemon->publisher && publisher_turn(daemon->publisher)) {
        welcome(daemon);
        publish_state(daemon);
        publisher_hugz(daemon->publisher);
    }
}

static void on_publisher(void *arg)
{
    serve_publisher(arg);
}

static void drain(struct daemon *daemon);

static void serve_control(struct daemon *daemon)
{
    if (control_turn(daemon->control)) {
        drain(daemon);
    }
}

static void on_control(void *arg)
{
    serve_control(arg);
}

/* The engine thread only notes them. */
static void tell_faults(struct daemon *daemon)
{
    for (const char *text; *(text = engine_fault(daemon->engine, daemon->faults_told)); daemon->faults_told++) {
        log_line(LOG_ERROR, "%s; its streams go on on the processor", text);
    }
}

static void on_wake(void *arg)
{
    struct daemon *daemon = arg;
    tell_faults(daemon);
    bool done = engine_running(daemon->engine) == 0; /* before the sinks: then these have all there is */
    running_serve_sinks(daemon);
    serve_publisher(daemon);
    reload_turn(daemon->reload);
    serve_control(daemon);
    if (done && !reload_busy(daemon->reload) && (daemon->draining || !daemon->stay)) {
        loop_stop(daemon->loop);
    }
}

static void on_second(void *arg)
{
    struct daemon *daemon = arg;
    log_turn(false);
    if (health_note(daemon)) {
        notify_alive();
    }
    if (daemon->publisher) {
        publish_state(daemon);
        publisher_hugz(daemon->publisher);
        serve_publisher(daemon);
    }
}

static void force(struct daemon *daemon, const char *why)
{
    log_line(LOG_WARNING, "%s: what is left is dropped", why);
    daemon->forced = true;
    loop_stop(daemon->loop);
}

/* A sound device is in another condition than when it was told last. */
static bool cards_changed(struct daemon *daemon)
{
    uint64_t changes = 0;
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        changes += card_changes(pipeline->source->card);
        for (int i = 0; i < pipeline->n_sinks; i++) {
            changes += card_changes(pipeline->sinks[i]->card);
        }
    }
    bool changed = changes != daemon->card_changes;
    daemon->card_changes = changes;
    return changed;
}

static void on_tick(void *arg)
{
    struct daemon *daemon = arg;
    reload_turn(daemon->reload);
    if (cards_changed(daemon)) { /* nobody has to wait for a second to know */
        publish_state(daemon);
        serve_publisher(daemon);
    }
    serve_control(daemon); /* it answers a few requests a turn */
    if (daemon->draining && clock_now() > daemon->drain_until) {
        force(daemon, "draining took longer than drain allows");
    }
}

/* Every source stops, what waits goes through, then it ends. A second time: it ends at once. */
static void drain(struct daemon *daemon)
{
    if (daemon->draining) {
        force(daemon, "told to stop again");
        return;
    }
    daemon->draining = true;
    daemon->drain_until = clock_now() + (int64_t)(daemon->config->drain_s * 1e9);
    log_line(LOG_INFO, "draining");
    notify_stopping(daemon->config->drain_s);
    pipelines_stop(daemon->pipelines);
    on_wake(daemon); /* everything may have ended before */
}

static void on_stop_signal(void *arg)
{
    drain(arg);
}

static void on_hangup(void *arg)
{
    struct daemon *daemon = arg;
    if (daemon->reloads.readable) {
        reload_again(daemon->reload);
    } else {
        log_line(LOG_WARNING, "the configuration can't be read again: it is no file");
    }
}

/* Engine thread, after each turn. */
static void on_delivered(void *arg)
{
    struct daemon *daemon = arg;
    checkpoint_turn(daemon->checkpoint);
    loop_wake(daemon->loop);
    if (atomic_load(&daemon->patient)) { /* somebody may be waiting for room, or for something to write */
        worker_wake(daemon->reader);
        worker_wake(daemon->writer);
    }
}

/* ---- Running. ---- */

static int start_loop(struct daemon *daemon)
{
    bool ok = loop_on_wake(daemon->loop, on_wake, daemon) == 0 &&
              loop_signal(daemon->loop, SIGTERM, on_stop_signal, daemon) == 0 &&
              loop_signal(daemon->loop, SIGINT, on_stop_signal, daemon) == 0 &&
              loop_signal(daemon->loop, SIGHUP, on_hangup, daemon) == 0 &&
              loop_every(daemon->loop, STATE_MS, on_second, daemon) == 0 &&
              loop_every(daemon->loop, TICK_MS, on_tick, daemon) == 0;
    if (ok && daemon->publisher) {
        ok = loop_readable(daemon->loop, publisher_fd(daemon->publisher), on_publisher, daemon) == 0;
    }
    if (ok && daemon->control) {
        ok = loop_readable(daemon->loop, control_fd(daemon->control), on_control, daemon) == 0;
    }
    return ok ? 0 : -1;
}

static int start(struct daemon *daemon, struct ssm_error *err)
{
    if (start_loop(daemon) < 0 || worker_start(daemon->writer) < 0) {
        return refuse(err, 71, "can't start the event loop or the writing thread%s",
                      spare_descriptors() ? "" : ": too many open files (ulimit -n)");
    }
    if (daemon->checkpoint && checkpoint_start(daemon->checkpoint, err) < 0) {
        return -1;
    }
    if (engine_thread_start(daemon->engine, on_delivered, daemon, err) < 0) {
        return -1;
    }
    if (pipelines_start(daemon->pipelines, err) < 0) {
        return -1;
    }
    if (worker_start(daemon->reader) < 0) {
        return refuse(err, 71, "can't start the thread that reads files");
    }
    return pipelines_begin(daemon->pipelines, err);
}

/* The threads end in the order in which samples travel, so that each finds all there is. */
static void stop(struct daemon *daemon)
{
    daemon->stuck = !reload_halt(daemon->reload);
    pipelines_stop(daemon->pipelines);
    worker_stop(daemon->reader);
    engine_thread_stop(daemon->engine);
    if (daemon->checkpoint) {
        checkpoint_stop(daemon->checkpoint);
    }
    worker_stop(daemon->writer);
}

static void say_goodbye(struct daemon *daemon)
{
    for (int i = 0; i < COUNTERS; i++) {
        uint64_t n = running_counted(daemon, (enum counter)i);
        if (n > 0) {
            log_line(LOG_WARNING, "%llu %s %s: %s", (unsigned long long)n, counter_table[i].unit, counter_table[i].name,
                     counter_table[i].help);
        }
    }
    uint64_t in = daemon->past_in, out = daemon->past_out;
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        in += pipeline_hops_in(pipeline);
        out += pipeline_hops_out(pipeline);
    }
    uint64_t lost = running_counted(daemon, COUNTER_RING_FULL) + running_counted(daemon, COUNTER_DEVICE_LOST) +
                    running_counted(daemon, COUNTER_QUEUE_FULL) +
                    running_counted(daemon, COUNTER_DEVICE_FAULT) +
                    running_counted(daemon, COUNTER_FILE_FULL) + running_counted(daemon, COUNTER_FILE_ERROR);
    char latency[128] = "";
    const struct histogram *total = &daemon->stages.at[STAGE_TOTAL];
    if (histogram_count(total) > 0) {
        snprintf(latency, sizeof latency, "; capture to publish p50 %.2f ms p99 %.2f ms", histogram_quantile(total, 0.5) / 1e6,
                 histogram_quantile(total, 0.99) / 1e6);
    }
    const struct histogram *step = engine_step_times(daemon->engine);
    log_line(LOG_INFO, "%s: %llu hops in, %llu out, %llu samples lost; step p50 %.3f ms p99 %.3f ms%s",
             daemon->forced ? "stopped" : "drained", (unsigned long long)in, (unsigned long long)out,
             (unsigned long long)lost, histogram_quantile(step, 0.5) / 1e6, histogram_quantile(step, 0.99) / 1e6, latency);
}

static int exit_code(const struct daemon *daemon)
{
    if (daemon->forced) {
        return 75;
    }
    if (running_counted(daemon, COUNTER_FILE_ERROR) > 0) {
        return 74;
    }
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        int code = atomic_load(&pipeline->source->code);
        if (code != 0) {
            return code;
        }
    }
    return 0;
}

void daemon_reloads(struct daemon *daemon, struct config *(*load)(void *arg, struct config_errors *errors), void *arg)
{
    pthread_mutex_lock(&daemon->lock); /* the web server is there already, and tells whether it can be read again */
    reload_from(daemon->reload, load, arg);
    pthread_mutex_unlock(&daemon->lock);
}

int daemon_run(struct daemon *daemon, bool stay, struct ssm_error *err)
{
    daemon->stay = stay;
    if (start(daemon, err) < 0) {
        stop(daemon);
        return err->code;
    }
    atomic_store(&daemon->progress, clock_now());
    atomic_store(&daemon->ready, true);
    log_line(LOG_INFO, "ready: %d stream%s%s%s", daemon->n_streams, daemon->n_streams == 1 ? "" : "s",
             daemon->publisher ? ", publishing on " : "", daemon->publisher ? daemon->config->publish : "");
    running_tell_ready(daemon);
    loop_run(daemon->loop);
    stop(daemon);
    tell_faults(daemon);
    running_serve_sinks(daemon);
    http_close(daemon->http); /* its pages tell of the sinks */
    daemon->http = NULL;
    pipelines_close_sinks(daemon->pipelines);
    publish_state(daemon);
    if (daemon->publisher) {
        publisher_hugz(daemon->publisher);
    }
    say_goodbye(daemon);
    log_turn(true);
    return exit_code(daemon);
}

void daemon_close(struct daemon *daemon)
{
    if (!daemon || daemon->stuck) {
        return;
    }
    http_close(daemon->http);
    engine_thread_stop(daemon->engine);
    reload_destroy(daemon->reload);
    pipelines_close(daemon->pipelines);
    models_close(daemon->models);
    engine_thread_destroy(daemon->engine);
    checkpoint_close(daemon->checkpoint);
    worker_destroy(daemon->reader);
    worker_destroy(daemon->writer);
    control_close(daemon->control);
    publisher_close(daemon->publisher);
    gate_close(daemon->gate);
    loop_destroy(daemon->loop);
    pthread_mutex_destroy(&daemon->lock);
    free(daemon->state_bytes);
    free(daemon);
}
