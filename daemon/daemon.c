/* SPDX-License-Identifier: MIT */
#include "daemon/daemon.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/checkpoint.h"
#include "daemon/control.h"
#include "daemon/engine_thread.h"
#include "daemon/health.h"
#include "daemon/fit.h"
#include "daemon/labels.h"
#include "daemon/log.h"
#include "daemon/loop.h"
#include "daemon/notify.h"
#include "daemon/publish.h"
#include "daemon/rows.h"
#include "daemon/running.h"
#include "daemon/sink.h"
#include "daemon/source.h"
#include "daemon/worker.h"
#include "dsp/clock.h"
#include "model/refuse.h"

enum { STATE_MS = 1000, TICK_MS = 50, STATE_BYTES = 4096, STATE_BYTES_STREAM = 512, ROWS_LEAST = 64 };

/* ---- Opening. ---- */

static bool is_patient(const struct daemon *daemon)
{
    for (int i = 0; i < daemon->n_pipelines; i++) {
        if (daemon->pipelines[i].source->patient) {
            return true;
        }
    }
    return false;
}

static int open_sources(struct daemon *daemon, struct ssm_error *err)
{
    const struct config *config = daemon->config;
    for (int i = 0; i < config->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
        pipeline->config = &config->pipelines[i];
        const struct source_setup setup = {&pipeline->config->source, pipeline->config->name, daemon->reader};
        pipeline->source = source_find(pipeline->config->source.type)->open(&setup, err);
        if (!pipeline->source) {
            return -1;
        }
        pipeline->n_channels = pipeline->source->n_channels;
        daemon->n_streams += pipeline->n_channels;
        daemon->n_pipelines++;
    }
    return 0;
}

static struct model *find_model(struct daemon *daemon, const char *name)
{
    int i = 0;
    while (i < daemon->n_models && strcmp(daemon->models[i].name, name) != 0) {
        i++;
    }
    if (i == daemon->n_models) {
        daemon->models[daemon->n_models++].name = name;
    }
    return &daemon->models[i];
}

static int open_models(struct daemon *daemon, struct ssm_error *err)
{
    for (int i = 0; i < daemon->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
        pipeline->model = find_model(daemon, pipeline->config->model);
        pipeline->model->streams += pipeline->n_channels;
    }
    int threads = daemon->config->threads > 0 ? daemon->config->threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
    for (int i = 0; i < daemon->n_models; i++) {
        struct model *model = &daemon->models[i];
        struct ssm_options options = {.device = daemon->config->device,
                                      .precision = daemon->config->precision,
                                      .streams = model->streams,
                                      .threads = threads,
                                      .max_hops = STREAM_HOPS};
        notify_loading(model->name);
        model->engine = ssm_open(model->name, &options, err);
        if (!model->engine) {
            return -1;
        }
        if (!(model->batch = engine_batch_create(model->engine))) {
            return refuse_memory(err);
        }
        const struct ssm_info *info = ssm_describe(model->engine);
        if (strcmp(info->task, "tag") == 0 && !(model->labels = labels_create(model->engine))) {
            return refuse_memory(err);
        }
        log_line(LOG_INFO, "model %s: %d stream%s at %d Hz in hops of %d on %s (%s)", info->name, model->streams,
                 model->streams == 1 ? "" : "s", info->rate, info->hop, info->device, info->device_why);
    }
    return 0;
}

size_t daemon_state_room(const struct daemon *daemon)
{
    return STATE_BYTES + STATE_BYTES_STREAM * (size_t)daemon->n_streams;
}

static int open_publisher(struct daemon *daemon, struct ssm_error *err)
{
    const struct config *config = daemon->config;
    if (config->publish[0] == '\0') {
        return 0;
    }
    daemon->publisher = publisher_open(config->publish, config->node, daemon->n_streams, err);
    if (!daemon->publisher) {
        return -1;
    }
    daemon->state_topic = publisher_topic(daemon->publisher, "state", NULL, -1, NULL);
    daemon->state_room = daemon_state_room(daemon);
    daemon->state_bytes = malloc(daemon->state_room);
    return daemon->state_topic && daemon->state_bytes ? 0 : refuse_memory(err);
}

static int open_sinks(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    struct source *source = pipeline->source;
    struct sink_setup setup = {.node = daemon->config->node,
                               .pipeline = pipeline->config->name,
                               .model = ssm_describe(pipeline->model->engine),
                               .labels = pipeline->model->labels,
                               .channels = source->channels,
                               .n_channels = source->n_channels,
                               .source_rate = source->rate,
                               .rate = source->sensor ? CADENCE_TICKS : ssm_describe(pipeline->model->engine)->rate,
                               .patient = source->patient,
                               .counters = pipeline->counters,
                               .publisher = daemon->publisher,
                               .stages = &daemon->stages,
                               .writer = daemon->writer,
                               .engine = engine_thread_waker(daemon->engine)};
    for (int i = 0; i < pipeline->config->n_sinks; i++) {
        setup.config = &pipeline->config->sinks[i];
        pipeline->sinks[i] = sink_find(setup.config->type)->open(&setup, err);
        if (!pipeline->sinks[i]) {
            return -1;
        }
        pipeline->n_sinks++;
    }
    return 0;
}

/* How much of the input itself comes out. */
static float share_of(const struct config_pipeline *config)
{
    return config->strength < 100 ? powf(10, -(float)config->strength / 20) : 0;
}

static int open_feed(struct pipeline *pipeline, int i, struct ssm_error *err)
{
    struct source *source = pipeline->source;
    source->feeds[i] = feed_create((size_t)(pipeline->config->source.buffer_s * source->rate));
    pipeline->feeds[i] = source->feeds[i];
    return source->feeds[i] ? 0 : refuse_memory(err);
}

/* A sensor's one stream: the model says what a row is. */
static int open_rows(struct pipeline *pipeline, int i, struct ssm_error *err)
{
    (void)i;
    struct source *source = pipeline->source;
    const struct ssm_info *model = ssm_describe(pipeline->model->engine);
    double hops = pipeline->config->source.buffer_s * model->rate / model->hop;
    source->rate = model->rate;
    if (source->ops->meet(source, pipeline->model->engine, err) < 0) {
        return -1;
    }
    source->rows = pipeline->rows = rows_create((size_t)model->inputs, (size_t)fmax(hops, ROWS_LEAST));
    return source->rows ? 0 : refuse_memory(err);
}

/* After so many ns a hop is late. Who waits for room has all the time it takes. */
static int64_t deadline_of(const struct daemon *daemon, const struct pipeline *pipeline)
{
    const struct ssm_info *model = ssm_describe(pipeline->model->engine);
    double standard = (double)model->hop / model->rate + daemon->config->deadline_s, own = pipeline->config->deadline_s;
    return pipeline->source->patient ? 0 : (int64_t)((own > 0 ? own : standard) * 1e9);
}

static int open_streams(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    struct source *source = pipeline->source;
    source->engine = engine_thread_waker(daemon->engine);
    source->counters = pipeline->counters;
    for (int i = 0; i < source->n_channels; i++) {
        struct stream_setup setup = {.engine = pipeline->model->engine,
                                     .patient = source->patient,
                                     .sinks = pipeline->sinks,
                                     .n_sinks = pipeline->n_sinks,
                                     .channel = i,
                                     .share = share_of(pipeline->config),
                                     .bypass = pipeline->config->bypass,
                                     .deadline = deadline_of(daemon, pipeline),
                                     .counters = &pipeline->counters[i]};
        if ((source->sensor ? open_rows : open_feed)(pipeline, i, err) < 0) {
            return -1;
        }
        setup.feed = source->feeds[i];
        setup.rows = source->rows;
        setup.rate = source->rate;
        pipeline->streams[i] = stream_create(&setup, err);
        if (!pipeline->streams[i] || engine_join(daemon->engine, pipeline->model->batch, pipeline->streams[i], err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int open_pipelines(struct daemon *daemon, struct ssm_error *err)
{
    daemon->engine = engine_thread_create(daemon->config->deadline_s);
    if (!daemon->engine) {
        return refuse_memory(err);
    }
    for (int i = 0; i < daemon->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
        size_t channels = (size_t)pipeline->n_channels;
        pipeline->counters = calloc(channels, sizeof *pipeline->counters);
        pipeline->feeds = calloc(channels, sizeof(struct feed *));
        pipeline->streams = calloc(channels, sizeof(struct stream *));
        pipeline->kept = calloc(channels, sizeof(struct kept *));
        if (!pipeline->counters || !pipeline->feeds || !pipeline->streams || !pipeline->kept) {
            return refuse_memory(err);
        }
        if (fit_pipeline(pipeline->config, pipeline->model->engine, err) < 0 || open_sinks(daemon, pipeline, err) < 0 ||
            open_streams(daemon, pipeline, err) < 0) {
            return -1;
        }
    }
    return 0;
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
            found = at > 0;
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

static int keep_pipeline(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    for (int i = 0; i < pipeline->n_channels; i++) {
        char name[96];
        snprintf(name, sizeof name, "%s.%d", pipeline->config->name, pipeline->source->channels[i]);
        pipeline->kept[i] = checkpoint_keep(daemon->checkpoint, pipeline->streams[i], name, pipeline->source->rate, err);
        if (!pipeline->kept[i]) {
            return -1;
        }
    }
    resume(daemon, pipeline);
    for (int i = 0; i < pipeline->n_channels; i++) {
        checkpoint_join(daemon->checkpoint, pipeline->kept[i]);
    }
    return 0;
}

static int open_checkpoint(struct daemon *daemon, struct ssm_error *err)
{
    if (daemon->config->state_dir[0] == '\0') {
        return 0;
    }
    daemon->checkpoint = checkpoint_open(daemon->config->state_dir, err);
    for (int i = 0; daemon->checkpoint && i < daemon->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
        if (stream_keeps(pipeline->streams[0]) && keep_pipeline(daemon, pipeline, err) < 0) {
            return -1;
        }
    }
    return daemon->checkpoint ? 0 : -1;
}

/* "auto" is one port below the publisher's, of this machine alone. */
static void control_address(const struct config *config, char *address, size_t size)
{
    const char *publish = config->publish, *port = strrchr(publish, ':');
    snprintf(address, size, "%s", strcmp(config->control, "auto") == 0 ? "" : config->control);
    if (strcmp(config->control, "auto") == 0 && strncmp(publish, "ipc://", 6) == 0) {
        snprintf(address, size, "%s.control", publish);
    } else if (strcmp(config->control, "auto") == 0 && port) {
        snprintf(address, size, "tcp://127.0.0.1:%d", atoi(port + 1) - 1);
    }
}

static int open_control(struct daemon *daemon, struct ssm_error *err)
{
    char address[300];
    control_address(daemon->config, address, sizeof address);
    daemon->control = address[0] ? control_open(address, daemon, err) : NULL;
    return address[0] && !daemon->control ? -1 : 0;
}

struct daemon *daemon_open(const struct config *config, struct ssm_error *err)
{
    size_t n = (size_t)(config->n_pipelines > 0 ? config->n_pipelines : 1);
    struct daemon *daemon = calloc(1, sizeof *daemon);
    if (!daemon) {
        refuse_memory(err);
        return NULL;
    }
    daemon->config = config;
    daemon->started = clock_now();
    daemon->started_utc = (double)time(NULL);
    daemon->pipelines = calloc(n, sizeof *daemon->pipelines);
    daemon->models = calloc(n, sizeof *daemon->models);
    daemon->reader = worker_create();
    daemon->writer = worker_create();
    daemon->loop = loop_create();
    if (!daemon->pipelines || !daemon->models || !daemon->reader || !daemon->writer || !daemon->loop) {
        refuse_memory(err);
        goto fail;
    }
    if (open_sources(daemon, err) < 0 || open_models(daemon, err) < 0 || open_publisher(daemon, err) < 0 ||
        open_pipelines(daemon, err) < 0 || open_checkpoint(daemon, err) < 0 || open_control(daemon, err) < 0) {
        goto fail;
    }
    daemon->patient = is_patient(daemon);
    if (config->http[0] && !(daemon->http = http_open(config->http, health_pages, HEALTH_PAGES, daemon, err))) {
        goto fail;
    }
    return daemon;
fail:
    daemon_close(daemon);
    return NULL;
}

/* ---- state/ ---- */

static const char *phase(const struct daemon *daemon)
{
    return engine_running(daemon->engine) == 0 ? "drained" : daemon->draining ? "draining" : "running";
}

static uint64_t counted_all(const struct daemon *daemon, enum counter counter)
{
    uint64_t n = 0;
    for (int i = 0; i < daemon->n_pipelines; i++) {
        n += counted_in(daemon->pipelines[i].counters, daemon->pipelines[i].n_channels, counter);
    }
    return n;
}

static uint64_t hops_out(const struct daemon *daemon)
{
    uint64_t n = 0;
    for (int i = 0; i < daemon->n_pipelines; i++) {
        for (int k = 0; k < daemon->pipelines[i].n_channels; k++) {
            n += stream_hops(daemon->pipelines[i].streams[k]);
        }
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
    wire_put_map(bytes, 9);
    wire_put_pair(bytes, "pipeline", pipeline->config->name);
    wire_put_text(bytes, "channel");
    wire_put_uint(bytes, (uint64_t)pipeline->source->channels[channel]);
    wire_put_pair(bytes, "model", ssm_describe(pipeline->model->engine)->name);
    wire_put_text(bytes, "ended");
    wire_put_bool(bytes, stream_ended(stream));
    wire_put_text(bytes, "hops");
    wire_put_uint(bytes, stream_hops(stream));
    wire_put_text(bytes, "samples");
    wire_put_uint(bytes, stream_samples(stream));
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

void daemon_put_state(const struct daemon *daemon, struct wire_bytes *bytes)
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
    daemon_put_streams(daemon, bytes);
}

void daemon_put_streams(const struct daemon *daemon, struct wire_bytes *bytes)
{
    wire_put_array(bytes, (size_t)daemon->n_streams);
    for (int i = 0; i < daemon->n_pipelines; i++) {
        for (int k = 0; k < daemon->pipelines[i].n_channels; k++) {
            put_stream(bytes, &daemon->pipelines[i], k);
        }
    }
}

static void publish_state(struct daemon *daemon)
{
    if (!daemon->publisher) {
        return;
    }
    struct wire_bytes bytes = {.at = daemon->state_bytes, .room = daemon->state_room};
    daemon_put_state(daemon, &bytes);
    if (!bytes.full) {
        struct wire_header header = {.tm = clock_now(), .dt = "msgpack"};
        publisher_send(daemon->publisher, daemon->state_topic, &header, bytes.at, bytes.n);
    }
}

/* ---- The loop's calls. ---- */

static void serve_sinks(struct daemon *daemon)
{
    for (int i = 0; i < daemon->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
        for (int k = 0; k < pipeline->n_sinks; k++) {
            if (pipeline->sinks[k]->ops->serve) {
                pipeline->sinks[k]->ops->serve(pipeline->sinks[k]);
            }
        }
    }
    if (daemon->patient) {
        waker_wake(engine_thread_waker(daemon->engine)); /* there is room again */
    }
}

static void welcome(struct daemon *daemon)
{
    for (int i = 0; i < daemon->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
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

static void on_control(void *arg)
{
    struct daemon *daemon = arg;
    control_turn(daemon->control);
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
    serve_sinks(daemon);
    serve_publisher(daemon);
    control_turn(daemon->control);
    if (done && (daemon->draining || !daemon->stay)) {
        loop_stop(daemon->loop);
    }
}

static void on_second(void *arg)
{
    struct daemon *daemon = arg;
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

static void on_tick(void *arg)
{
    struct daemon *daemon = arg;
    control_turn(daemon->control); /* it answers a few requests a turn */
    if (daemon->draining && clock_now() > daemon->drain_until) {
        force(daemon, "draining took longer than drain allows");
    }
}

void daemon_drain(struct daemon *daemon)
{
    if (daemon->draining) {
        force(daemon, "told to stop again");
        return;
    }
    daemon->draining = true;
    daemon->drain_until = clock_now() + (int64_t)(daemon->config->drain_s * 1e9);
    log_line(LOG_INFO, "draining");
    notify_stopping(daemon->config->drain_s);
    for (int i = 0; i < daemon->n_pipelines; i++) {
        daemon->pipelines[i].source->ops->stop(daemon->pipelines[i].source);
    }
    on_wake(daemon); /* everything may have ended before */
}

static void on_stop_signal(void *arg)
{
    daemon_drain(arg);
}

/* Engine thread, after each turn. */
static void on_delivered(void *arg)
{
    struct daemon *daemon = arg;
    checkpoint_turn(daemon->checkpoint);
    loop_wake(daemon->loop);
    if (daemon->patient) { /* somebody may be waiting for room, or for something to write */
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

static int start_pipelines(struct daemon *daemon, struct ssm_error *err)
{
    for (int i = 0; i < daemon->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
        for (int k = 0; k < pipeline->n_sinks; k++) {
            const struct sink_ops *ops = pipeline->sinks[k]->ops;
            if (ops->start && ops->start(pipeline->sinks[k], err) < 0) {
                return -1;
            }
        }
    }
    daemon->sources_started = true;
    for (int i = 0; i < daemon->n_pipelines; i++) {
        struct source *source = daemon->pipelines[i].source;
        if (source->ops->start(source, err) < 0) {
            return -1;
        }
    }
    return worker_start(daemon->reader) == 0 ? 0 : refuse(err, 71, "can't start the thread that reads files");
}

static int start(struct daemon *daemon, struct ssm_error *err)
{
    if (start_loop(daemon) < 0 || worker_start(daemon->writer) < 0) {
        return refuse(err, 71, "can't start the event loop or the writing thread");
    }
    if (daemon->checkpoint && checkpoint_start(daemon->checkpoint, err) < 0) {
        return -1;
    }
    if (engine_thread_start(daemon->engine, on_delivered, daemon, err) < 0) {
        return -1;
    }
    return start_pipelines(daemon, err);
}

/* The threads end in the order in which samples travel, so that each finds all there is. */
static void stop(struct daemon *daemon)
{
    for (int i = 0; i < daemon->n_pipelines; i++) {
        struct source *source = daemon->pipelines[i].source;
        if (source && daemon->sources_started) {
            source->ops->stop(source);
        }
    }
    worker_stop(daemon->reader);
    engine_thread_stop(daemon->engine);
    if (daemon->checkpoint) {
        checkpoint_stop(daemon->checkpoint);
    }
    worker_stop(daemon->writer);
}

static void close_sinks(struct daemon *daemon)
{
    for (int i = 0; i < daemon->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
        for (int k = 0; k < pipeline->n_sinks; k++) {
            pipeline->sinks[k]->ops->close(pipeline->sinks[k]);
        }
        pipeline->n_sinks = 0;
    }
}

static void say_goodbye(struct daemon *daemon)
{
    for (int i = 0; i < COUNTERS; i++) {
        uint64_t n = counted_all(daemon, (enum counter)i);
        if (n > 0) {
            log_line(LOG_WARNING, "%llu %s %s: %s", (unsigned long long)n, counter_table[i].unit, counter_table[i].name,
                     counter_table[i].help);
        }
    }
    uint64_t in = 0;
    for (int i = 0; i < daemon->n_pipelines; i++) {
        const struct ssm_info *model = ssm_describe(daemon->pipelines[i].model->engine);
        for (int k = 0; k < daemon->pipelines[i].n_channels; k++) {
            double samples = (double)stream_samples(daemon->pipelines[i].streams[k]);
            in += (uint64_t)(samples * model->rate / daemon->pipelines[i].source->rate / model->hop + 0.999999);
        }
    }
    uint64_t lost = counted_all(daemon, COUNTER_RING_FULL) + counted_all(daemon, COUNTER_DEVICE_LOST) +
                    counted_all(daemon, COUNTER_QUEUE_FULL) +
                    counted_all(daemon, COUNTER_DEVICE_FAULT) +
                    counted_all(daemon, COUNTER_FILE_FULL) + counted_all(daemon, COUNTER_FILE_ERROR);
    char latency[128] = "";
    const struct histogram *total = &daemon->stages.at[STAGE_TOTAL];
    if (histogram_count(total) > 0) {
        snprintf(latency, sizeof latency, "; capture to publish p50 %.2f ms p99 %.2f ms", histogram_quantile(total, 0.5) / 1e6,
                 histogram_quantile(total, 0.99) / 1e6);
    }
    const struct histogram *step = engine_step_times(daemon->engine);
    log_line(LOG_INFO, "%s: %llu hops in, %llu out, %llu samples lost; step p50 %.3f ms p99 %.3f ms%s",
             daemon->forced ? "stopped" : "drained", (unsigned long long)in, (unsigned long long)hops_out(daemon),
             (unsigned long long)lost, histogram_quantile(step, 0.5) / 1e6, histogram_quantile(step, 0.99) / 1e6, latency);
}

static int exit_code(const struct daemon *daemon)
{
    if (daemon->forced) {
        return 75;
    }
    if (counted_all(daemon, COUNTER_FILE_ERROR) > 0) {
        return 74;
    }
    for (int i = 0; i < daemon->n_pipelines; i++) {
        int code = atomic_load(&daemon->pipelines[i].source->code);
        if (code != 0) {
            return code;
        }
    }
    return 0;
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
    char status[320];
    snprintf(status, sizeof status, "%d stream%s%s%s", daemon->n_streams, daemon->n_streams == 1 ? "" : "s",
             daemon->publisher ? ", publishing on " : "", daemon->publisher ? daemon->config->publish : "");
    log_line(LOG_INFO, "ready: %s", status);
    notify_ready(status);
    loop_run(daemon->loop);
    stop(daemon);
    tell_faults(daemon);
    serve_sinks(daemon);
    close_sinks(daemon);
    publish_state(daemon);
    if (daemon->publisher) {
        publisher_hugz(daemon->publisher);
    }
    say_goodbye(daemon);
    return exit_code(daemon);
}

void daemon_close(struct daemon *daemon)
{
    if (!daemon) {
        return;
    }
    http_close(daemon->http);
    for (int i = 0; daemon->pipelines && i < daemon->n_pipelines; i++) {
        daemon->pipelines[i].source->ops->close(daemon->pipelines[i].source);
    }
    close_sinks(daemon);
    engine_thread_destroy(daemon->engine);
    checkpoint_close(daemon->checkpoint);
    for (int i = 0; daemon->pipelines && i < daemon->n_pipelines; i++) {
        struct pipeline *pipeline = &daemon->pipelines[i];
        for (int k = 0; pipeline->feeds && k < pipeline->n_channels; k++) {
            feed_destroy(pipeline->feeds[k]);
        }
        for (int k = 0; pipeline->streams && k < pipeline->n_channels; k++) {
            stream_destroy(pipeline->streams[k]);
        }
        for (int k = 0; pipeline->kept && k < pipeline->n_channels; k++) {
            checkpoint_release(pipeline->kept[k]);
        }
        rows_destroy(pipeline->rows);
        free(pipeline->streams);
        free(pipeline->kept);
        free(pipeline->feeds);
        free(pipeline->counters);
    }
    for (int i = 0; i < daemon->n_models; i++) {
        engine_batch_destroy(daemon->models[i].batch);
        ssm_close(daemon->models[i].engine);
        free(daemon->models[i].labels);
    }
    worker_destroy(daemon->reader);
    worker_destroy(daemon->writer);
    control_close(daemon->control);
    publisher_close(daemon->publisher);
    loop_destroy(daemon->loop);
    free(daemon->state_bytes);
    free(daemon->pipelines);
    free(daemon->models);
    free(daemon);
}
