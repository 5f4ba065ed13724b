/* SPDX-License-Identifier: MIT */
#include "daemon/pipeline.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/card.h"
#include "daemon/checkpoint.h"
#include "daemon/engine_thread.h"
#include "daemon/fit.h"
#include "daemon/labels.h"
#include "daemon/log.h"
#include "daemon/notify.h"
#include "daemon/rows.h"
#include "daemon/running.h"
#include "daemon/sink.h"
#include "daemon/source.h"
#include "model/refuse.h"

enum { ROWS_LEAST = 64, SPARE_MOST = 64 };

static struct settings *hold(struct settings *settings)
{
    settings->users++;
    return settings;
}

static void release(struct settings *settings)
{
    if (settings && --settings->users == 0) {
        free(settings);
    }
}

struct pipeline *pipeline_create(const struct config_pipeline *config)
{
    struct pipeline *pipeline = calloc(1, sizeof *pipeline);
    struct settings *settings = malloc(sizeof *settings);
    if (!pipeline || !settings) {
        free(pipeline);
        free(settings);
        return NULL;
    }
    memcpy(&settings->config, config, sizeof *config);
    settings->users = 1;
    pipeline->settings = settings;
    pipeline->config = &settings->config;
    return pipeline;
}

/* ---- Sources and models. ---- */

/* One that goes and listens where this is to; there is room for one. */
static const struct source *find_before(struct daemon *daemon, const struct config_source *config)
{
    struct pipeline *other = daemon->pipelines;
    while (other &&
           !(other->goes && !other->lends && other->source && config_same_address(&other->config->source, config))) {
        other = other->next;
    }
    if (other) {
        other->lends = true;
    }
    return other ? other->source : NULL;
}

static int open_source(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    const struct config_source *config = &pipeline->config->source;
    const struct source_setup setup = {config, pipeline->config->name, daemon->reader, daemon->gate,
                                       find_before(daemon, config)};
    pipeline->source = source_find(config->type)->open(&setup, err);
    if (!pipeline->source) {
        return fit_blame(&pipeline->config->at.source, err);
    }
    pipeline->source_settings = hold(pipeline->settings);
    pipeline->n_channels = pipeline->source->n_channels;
    return 0;
}

static struct model *find_model(struct model *list, const char *name, int slots)
{
    while (list && (list->stale || strcmp(list->name, name) != 0 ||
                    (list->engine && ssm_describe(list->engine)->streams - list->users < slots))) {
        list = list->next;
    }
    return list;
}

/* One with free slots, or one that is still to be opened. */
static struct model *choose_model(struct daemon *daemon, const char *name, const struct config_place *asked, int slots,
                                  struct model **models, struct ssm_error *err)
{
    struct model *model = find_model(daemon->models, name, slots);
    model = model ? model : find_model(*models, name, slots);
    if (!model) {
        char *copy = strdup(name);
        model = copy ? calloc(1, sizeof *model) : NULL;
        if (!model) {
            free(copy);
            refuse_memory(err);
            return NULL;
        }
        *model = (struct model){.next = *models, .name = copy, .asked = asked};
        *models = model;
    }
    model->users += slots;
    return model;
}

int pipeline_choose_model(struct daemon *daemon, struct pipeline *pipeline, struct model **models,
                          struct ssm_error *err)
{
    pipeline->model = choose_model(daemon, pipeline->config->model, &pipeline->config->at.model, pipeline->n_channels, models, err);
    return pipeline->model ? 0 : -1;
}

static int choose_models(struct daemon *daemon, struct pipeline *pipeline, struct model **models, struct ssm_error *err)
{
    const struct config_pipeline *config = pipeline->config;
    if (pipeline_choose_model(daemon, pipeline, models, err) == 0 && config->fallback[0]) {
        pipeline->fallback = choose_model(daemon, config->fallback, &config->at.fallback, pipeline->n_channels, models, err);
    }
    return pipeline->model && (pipeline->fallback || !config->fallback[0]) ? 0 : -1;
}

/* Those that come one by one to a model that is full get engines that grow with their number. */
static int slots_for(const struct daemon *daemon, const struct model *model)
{
    int slots = model->users;
    for (const struct model *other = daemon->models; other; other = other->next) {
        int full = strcmp(other->name, model->name) == 0 && other->engine ? ssm_describe(other->engine)->streams : 0;
        slots = full > slots && full <= SPARE_MOST ? full : slots;
    }
    return slots;
}

static void find_file(const char *name, struct stat *found)
{
    char path[4096];
    struct ssm_error err;
    if (ssm_model_find(name, path, sizeof path, &err) < 0 || stat(path, found) < 0) {
        *found = (struct stat){0};
    }
}

void models_find_stale(struct model *list)
{
    for (struct model *model = list; model; model = model->next) {
        struct stat found;
        find_file(model->name, &found);
        bool same = found.st_dev == model->file.device && found.st_ino == model->file.inode &&
                    found.st_size == model->file.size && found.st_mtim.tv_sec == model->file.changed.tv_sec &&
                    found.st_mtim.tv_nsec == model->file.changed.tv_nsec;
        model->stale = found.st_ino != 0 && !same;
    }
}

bool models_alike(const struct model *a, const struct model *b)
{
    const struct ssm_info *x = ssm_describe(a->engine), *y = ssm_describe(b->engine);
    bool sound = strcmp(x->task, "tag") != 0 && strcmp(y->task, "tag") != 0;
    return sound && x->rate == y->rate && x->hop == y->hop && x->delay == y->delay && x->inputs == y->inputs &&
           x->outputs == y->outputs;
}

static int open_model(struct daemon *daemon, struct model *model, struct ssm_error *err)
{
    const struct config *config = daemon->config;
    int threads = config->threads > 0 ? config->threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
    const struct ssm_options options = {.device = config->device,
                                        .precision = config->precision,
                                        .streams = slots_for(daemon, model),
                                        .threads = threads,
                                        .max_hops = STREAM_HOPS};
    notify_loading(model->name);
    struct stat found;
    find_file(model->name, &found); /* before: what changes meanwhile is taken for another next time */
    model->file.device = found.st_dev;
    model->file.inode = found.st_ino;
    model->file.size = found.st_size;
    model->file.changed = found.st_mtim;
    model->engine = ssm_open(model->name, &options, err);
    if (!model->engine) {
        return -1;
    }
    const struct ssm_info *info = ssm_describe(model->engine);
    model->batch = engine_batch_create(model->engine);
    bool tags = strcmp(info->task, "tag") == 0;
    if (!model->batch || (tags && !(model->labels = labels_create(model->engine)))) {
        return refuse_memory(err);
    }
    model->cost = admission_measure(&daemon->admission, model->engine);
    model->admission = &daemon->admission;
    log_line(LOG_INFO, "model %s: %d stream%s at %d Hz in hops of %d on %s (%s)", info->name, info->streams,
             info->streams == 1 ? "" : "s", info->rate, info->hop, info->device, info->device_why);
    return 0;
}

/* Live streams take their place; those that may wait take what is left, and connections ask for theirs. */
static int admit(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    struct source *source = pipeline->source;
    source->pass.admission = &daemon->admission;
    source->pass.cost = source->patient && !source->invites ? 0 : pipeline->model->cost.each * pipeline->n_channels;
    if (!source->invites && !admission_enter(&source->pass)) {
        return refuse(err, 75,
                      "pipeline %s: over_capacity: capacity allows %d live streams, and there is no room for %d more",
                      pipeline->config->name, admission_capacity(&daemon->admission), pipeline->n_channels);
    }
    return 0;
}

int pipelines_open_inputs(struct daemon *daemon, struct pipeline *list, struct model **models, struct ssm_error *err)
{
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        if (open_source(daemon, pipeline, err) < 0 || choose_models(daemon, pipeline, models, err) < 0) {
            return -1;
        }
    }
    for (struct model *model = *models; model; model = model->next) {
        if (!model->engine && open_model(daemon, model, err) < 0) {
            return fit_blame(model->asked, err);
        }
    }
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        if (admit(daemon, pipeline, err) < 0) {
            return fit_blame(&pipeline->config->at.source, err);
        }
    }
    return 0;
}

void models_close(struct model *list)
{
    for (struct model *model = list, *next; model; model = next) {
        next = model->next;
        if (model->admission) {
            admission_forget(model->admission, &model->cost);
        }
        engine_batch_destroy(model->batch);
        ssm_close(model->engine);
        free(model->labels);
        free((char *)model->name);
        free(model);
    }
}

/* ---- Sinks and streams. ---- */

static struct sink_setup sink_setup_of(struct daemon *daemon, struct pipeline *pipeline)
{
    struct source *source = pipeline->source;
    const struct ssm_info *model = ssm_describe(pipeline->model->engine);
    return (struct sink_setup){.node = daemon->config->node,
                               .pipeline = pipeline->config->name,
                               .model = model,
                               .labels = pipeline->model->labels,
                               .channels = source->channels,
                               .n_channels = source->n_channels,
                               .source_rate = source->rate,
                               .rate = source->sensor ? CADENCE_TICKS : model->rate,
                               .patient = source->patient,
                               .late = pipeline->before && pipeline->source == pipeline->before->source,
                               .counters = pipeline->counters,
                               .publisher = daemon->publisher,
                               .stages = &daemon->stages,
                               .writer = daemon->writer,
                               .engine = engine_thread_waker(daemon->engine)};
}

static int open_sink(struct pipeline *pipeline, struct sink_setup *setup, int i, struct ssm_error *err)
{
    setup->config = &pipeline->config->sinks[i];
    pipeline->sinks[i] = sink_find(setup->config->type)->open(setup, err);
    if (!pipeline->sinks[i]) {
        return fit_blame(&pipeline->config->at.sinks[i], err);
    }
    pipeline->sink_configs[i] = setup->config;
    pipeline->sink_settings[i] = hold(pipeline->settings);
    return 0;
}

static int open_sinks(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    struct sink_setup setup = sink_setup_of(daemon, pipeline);
    for (int i = 0; i < pipeline->config->n_sinks; i++, pipeline->n_sinks++) {
        if (open_sink(pipeline, &setup, i, err) < 0) {
            return -1;
        }
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
                                     .smaller = pipeline->fallback ? pipeline->fallback->engine : NULL,
                                     .priority = pipeline->config->priority,
                                     .deadline = deadline_of(daemon, pipeline),
                                     .counters = &pipeline->counters[i]};
        if ((source->sensor ? open_rows : open_feed)(pipeline, i, err) < 0) {
            return -1;
        }
        setup.feed = source->feeds[i];
        setup.rows = source->rows;
        setup.rate = source->rate;
        if (!(pipeline->streams[i] = stream_create(&setup, err))) {
            return -1;
        }
    }
    return 0;
}

static int fit(const struct pipeline *pipeline, struct ssm_error *err)
{
    const struct config_pipeline *config = pipeline->config;
    struct ssm_engine *engine = pipeline->model->engine;
    if (fit_pipeline(config, engine, err) < 0) {
        return fit_blame(&config->at.model, err);
    }
    bool fits = !pipeline->fallback || fit_fallback(config, engine, pipeline->fallback->engine, err) == 0;
    return fits ? 0 : fit_blame(&config->at.fallback, err);
}

/* What is live outlives a crash: sound that doesn't wait, and sensors that aren't a pipe, which begins with the daemon. */
static int open_kept(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    const struct source *source = pipeline->source;
    bool keeps = daemon->checkpoint && (source->sensor ? source->endless : !source->patient);
    for (int i = 0; keeps && i < pipeline->n_channels; i++) {
        char name[96];
        snprintf(name, sizeof name, "%s.%d", pipeline->config->name, pipeline->source->channels[i]);
        pipeline->kept[i] =
            checkpoint_keep(daemon->checkpoint, pipeline->streams[i], name, pipeline->source->rate, err);
        if (!pipeline->kept[i]) {
            return -1;
        }
    }
    return 0;
}

static int open_outputs(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    size_t channels = (size_t)pipeline->n_channels;
    pipeline->counters = calloc(channels, sizeof *pipeline->counters);
    pipeline->feeds = calloc(channels, sizeof(struct feed *));
    pipeline->streams = calloc(channels, sizeof(struct stream *));
    pipeline->kept = calloc(channels, sizeof(struct kept *));
    if (!pipeline->counters || !pipeline->feeds || !pipeline->streams || !pipeline->kept) {
        return refuse_memory(err);
    }
    bool ok = fit(pipeline, err) == 0 && open_sinks(daemon, pipeline, err) == 0 &&
              open_streams(daemon, pipeline, err) == 0 && open_kept(daemon, pipeline, err) == 0;
    return ok ? 0 : -1;
}

int pipelines_open_outputs(struct daemon *daemon, struct pipeline *list, struct ssm_error *err)
{
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        if (open_outputs(daemon, pipeline, err) < 0) {
            return -1;
        }
    }
    return 0;
}

/* ---- One that takes another's place. ---- */

/* The running one's sink with the same settings that nobody has taken yet; -1: there is none. */
static int find_sink(const struct pipeline *running, const struct config_sink *config, unsigned taken, bool renamed)
{
    int i = config->type == SINK_PUBLISH && renamed ? -1 : running->n_sinks - 1; /* topics have the model's name */
    while (i >= 0 && ((taken >> i & 1) || memcmp(running->sink_configs[i], config, sizeof *config) != 0)) {
        i--;
    }
    return i;
}

static void keep_sink(struct pipeline *pipeline, int i, const struct pipeline *running, int k)
{
    pipeline->sinks[i] = running->sinks[k];
    pipeline->sink_configs[i] = running->sink_configs[k];
    pipeline->sink_settings[i] = running->sink_settings[k];
    pipeline->kept_sinks[i] = true;
}

static int alter_sinks(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    struct sink_setup setup = sink_setup_of(daemon, pipeline);
    bool renamed = strcmp(setup.model->name, ssm_describe(pipeline->before->model->engine)->name) != 0;
    unsigned taken = 0;
    for (int i = 0; i < pipeline->config->n_sinks; i++, pipeline->n_sinks++) {
        int k = find_sink(pipeline->before, &pipeline->config->sinks[i], taken, renamed);
        if (k >= 0) {
            taken |= 1u << k;
            keep_sink(pipeline, i, pipeline->before, k);
        } else if (open_sink(pipeline, &setup, i, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int create_successors(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    pipeline->successors = calloc((size_t)pipeline->n_channels, sizeof(struct successor *));
    bool ok = pipeline->successors != NULL;
    for (int i = 0; ok && i < pipeline->n_channels; i++) {
        ok = (pipeline->successors[i] = successor_create(pipeline->model->engine)) != NULL;
    }
    if (!ok) {
        return refuse_memory(err);
    }
    return daemon->checkpoint ? checkpoint_fit(daemon->checkpoint, ssm_state_size(pipeline->model->engine), err) : 0;
}

int pipeline_alter(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    struct pipeline *running = pipeline->before;
    pipeline->source = running->source;
    pipeline->fallback = running->fallback;
    pipeline->counters = running->counters;
    pipeline->streams = running->streams;
    pipeline->n_channels = running->n_channels;
    pipeline->model = pipeline->model ? pipeline->model : running->model;
    if (fit(pipeline, err) < 0 || alter_sinks(daemon, pipeline, err) < 0) {
        return -1;
    }
    return pipeline->model != running->model ? create_successors(daemon, pipeline, err) : 0;
}

static void destroy_successors(struct pipeline *pipeline)
{
    for (int i = 0; pipeline->successors && i < pipeline->n_channels; i++) {
        successor_destroy(pipeline->successors[i]);
    }
    free(pipeline->successors);
    pipeline->successors = NULL;
}

void pipeline_abandon(struct pipeline *pipeline)
{
    for (int i = 0; i < pipeline->n_sinks; i++) {
        if (!pipeline->kept_sinks[i]) {
            pipeline->sinks[i]->ops->close(pipeline->sinks[i]);
            release(pipeline->sink_settings[i]);
        }
    }
    if (pipeline->model && pipeline->model != pipeline->before->model) {
        pipeline->model->users -= pipeline->n_channels;
    }
    destroy_successors(pipeline);
    release(pipeline->settings);
    free(pipeline);
}

int pipeline_start_sinks(struct pipeline *pipeline, struct ssm_error *err)
{
    for (int i = 0; i < pipeline->n_sinks; i++) {
        const struct sink_ops *ops = pipeline->sinks[i]->ops;
        if (!pipeline->kept_sinks[i] && ops->start && ops->start(pipeline->sinks[i], err) < 0) {
            return -1;
        }
    }
    return 0;
}

int pipeline_await(struct daemon *daemon, struct pipeline *pipeline, struct ssm_error *err)
{
    for (int i = 0; pipeline->successors && i < pipeline->n_channels; i++) {
        stream_await(pipeline->streams[i], pipeline->successors[i]);
        if (engine_join(daemon->engine, pipeline->model->batch, pipeline->streams[i], err) < 0) {
            stream_await_none(pipeline->streams[i]);
            pipeline_await_none(daemon, pipeline);
            return -1;
        }
        pipeline->n_awaited++;
    }
    return 0;
}

void pipeline_await_none(struct daemon *daemon, struct pipeline *pipeline)
{
    while (pipeline->n_awaited > 0) {
        struct stream *stream = pipeline->streams[--pipeline->n_awaited];
        engine_part(daemon->engine, pipeline->model->batch, stream);
        stream_await_none(stream);
    }
}

static void change_streams(struct daemon *daemon, struct pipeline *pipeline)
{
    const struct stream_change change = {.sinks = pipeline->sinks,
                                         .n_sinks = pipeline->n_sinks,
                                         .share = share_of(pipeline->config),
                                         .switches = pipeline->config->bypass != pipeline->before->config->bypass,
                                         .bypass = pipeline->config->bypass,
                                         .deadline = deadline_of(daemon, pipeline)};
    for (int i = 0; i < pipeline->n_channels; i++) {
        stream_change(pipeline->streams[i], &change);
    }
}

void pipeline_change(struct daemon *daemon, struct pipeline *pipeline)
{
    if (!pipeline->successors) {
        change_streams(daemon, pipeline);
    }
    for (int i = 0; i < pipeline->n_awaited; i++) {
        stream_succeed(pipeline->streams[i]);
    }
}

bool pipeline_changed(const struct pipeline *pipeline)
{
    int n = pipeline->successors ? pipeline->n_channels : 0;
    while (n > 0 && stream_succeeded(pipeline->streams[n - 1])) {
        n--;
    }
    return n == 0;
}

bool pipeline_settle(struct daemon *daemon, struct pipeline *pipeline)
{
    if (!pipeline->successors) {
        return true;
    }
    for (; pipeline->n_awaited > 0; pipeline->n_awaited--) {
        int i = pipeline->n_awaited - 1;
        if (!stream_settle(pipeline->streams[i], pipeline->successors[i])) {
            return false;
        }
        engine_part(daemon->engine, pipeline->before->model->batch, pipeline->streams[i]);
        stream_await_none(pipeline->streams[i]);
    }
    change_streams(daemon, pipeline);
    return true;
}

static bool has_sink(const struct pipeline *pipeline, const struct sink *sink)
{
    int i = pipeline->n_sinks;
    while (i > 0 && pipeline->sinks[i - 1] != sink) {
        i--;
    }
    return i > 0;
}

/* The other keeps the sinks that only it has. */
static void keep_own_sinks(struct pipeline *running, const struct pipeline *pipeline)
{
    int n = 0;
    for (int i = 0; i < running->n_sinks; i++) {
        if (!has_sink(pipeline, running->sinks[i])) {
            running->sinks[n] = running->sinks[i];
            running->sink_settings[n++] = running->sink_settings[i];
        }
    }
    running->n_sinks = n;
}

static void copy_times(struct pipeline *pipeline, const struct pipeline *running)
{
    memcpy(pipeline->seen, running->seen, sizeof pipeline->seen);
    for (int i = 0; i < COUNTERS; i++) {
        atomic_store(&pipeline->risen[i], atomic_load(&running->risen[i]));
    }
}

void pipeline_take_over(struct pipeline *pipeline)
{
    struct pipeline *running = pipeline->before;
    keep_own_sinks(running, pipeline);
    copy_times(pipeline, running);
    destroy_successors(pipeline);
    running->model->users -= running->model != pipeline->model ? running->n_channels : 0;
    memset(pipeline->kept_sinks, 0, sizeof pipeline->kept_sinks);
    pipeline->source_settings = running->source_settings;
    pipeline->feeds = running->feeds;
    pipeline->kept = running->kept;
    pipeline->rows = running->rows;
    pipeline->started = running->started;
    pipeline->lowered = running->lowered;
    pipeline->generation = running->generation;
    pipeline->before = NULL;
    running->source = NULL;
    running->source_settings = NULL;
    running->model = running->fallback = NULL;
    running->counters = NULL;
    running->streams = NULL;
    running->feeds = NULL;
    running->kept = NULL;
    running->rows = NULL;
    running->started = false;
    running->n_channels = 0;
}

/* ---- Closing. ---- */

static void close_sinks(struct pipeline *pipeline)
{
    for (int i = 0; i < pipeline->n_sinks; i++) {
        pipeline->sinks[i]->ops->close(pipeline->sinks[i]);
        release(pipeline->sink_settings[i]);
    }
    pipeline->n_sinks = 0;
}

void pipelines_close_sinks(struct pipeline *list)
{
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        close_sinks(pipeline);
    }
}

void pipeline_leave_models(struct pipeline *pipeline)
{
    if (pipeline->model) {
        pipeline->model->users -= pipeline->n_channels;
    }
    if (pipeline->fallback) {
        pipeline->fallback->users -= pipeline->n_channels;
    }
    pipeline->model = pipeline->fallback = NULL;
}

static void close_one(struct pipeline *pipeline)
{
    close_sinks(pipeline); /* they know the source's channels */
    if (pipeline->source) {
        admission_leave(&pipeline->source->pass);
        pipeline->source->ops->close(pipeline->source);
    }
    for (int i = 0; i < pipeline->n_channels; i++) {
        checkpoint_release(pipeline->kept ? pipeline->kept[i] : NULL);
        stream_destroy(pipeline->streams ? pipeline->streams[i] : NULL);
        feed_destroy(pipeline->feeds ? pipeline->feeds[i] : NULL);
    }
    pipeline_leave_models(pipeline);
    rows_destroy(pipeline->rows);
    free(pipeline->kept);
    free(pipeline->streams);
    free(pipeline->feeds);
    free(pipeline->counters);
    release(pipeline->source_settings);
    release(pipeline->settings);
    free(pipeline);
}

void pipelines_close(struct pipeline *list)
{
    for (struct pipeline *pipeline = list, *next; pipeline; pipeline = next) {
        next = pipeline->next;
        close_one(pipeline);
    }
}

/* ---- Running. ---- */

static void leave_batches(struct engine_thread *engine, const struct pipeline *pipeline, struct stream *stream)
{
    if (pipeline->fallback) {
        engine_part(engine, pipeline->fallback->batch, stream);
    }
    engine_part(engine, pipeline->model->batch, stream);
}

/* -1 with *err: it is in none. */
static int join_batches(struct engine_thread *engine, const struct pipeline *pipeline, struct stream *stream,
                        struct ssm_error *err)
{
    if (engine_join(engine, pipeline->model->batch, stream, err) < 0) {
        return -1;
    }
    if (pipeline->fallback && engine_join(engine, pipeline->fallback->batch, stream, err) < 0) {
        engine_part(engine, pipeline->model->batch, stream);
        return -1;
    }
    return 0;
}

static void part(struct daemon *daemon, struct pipeline *pipeline, int n)
{
    for (int i = 0; i < n; i++) {
        if (pipeline->kept[i]) {
            checkpoint_part(daemon->checkpoint, pipeline->kept[i]);
        }
        leave_batches(daemon->engine, pipeline, pipeline->streams[i]);
        stream_cut(pipeline->streams[i]);
    }
}

void pipelines_part(struct daemon *daemon, struct pipeline *list)
{
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        part(daemon, pipeline, pipeline->n_channels);
    }
}

int pipelines_join(struct daemon *daemon, struct pipeline *list, struct ssm_error *err)
{
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        for (int i = 0; i < pipeline->n_channels; i++) {
            if (join_batches(daemon->engine, pipeline, pipeline->streams[i], err) < 0) {
                part(daemon, pipeline, i);
                for (; list != pipeline; list = list->next) {
                    part(daemon, list, list->n_channels);
                }
                return -1;
            }
            if (pipeline->kept[i]) {
                checkpoint_join(daemon->checkpoint, pipeline->kept[i]);
            }
        }
    }
    return 0;
}

bool pipeline_ended(const struct pipeline *pipeline)
{
    int n = pipeline->n_channels;
    while (n > 0 && stream_ended(pipeline->streams[n - 1])) {
        n--;
    }
    return n == 0;
}

uint64_t pipeline_hops_in(const struct pipeline *pipeline)
{
    uint64_t n = 0;
    for (int i = 0; i < pipeline->n_channels; i++) {
        const struct ssm_info *model = ssm_describe(pipeline->model->engine);
        double samples = (double)stream_samples(pipeline->streams[i]);
        n += (uint64_t)(samples * model->rate / pipeline->source->rate / model->hop + 0.999999);
    }
    return n;
}

uint64_t pipeline_hops_out(const struct pipeline *pipeline)
{
    uint64_t n = 0;
    for (int i = 0; i < pipeline->n_channels; i++) {
        n += stream_hops(pipeline->streams[i]);
    }
    return n;
}

int pipelines_start(struct pipeline *list, struct ssm_error *err)
{
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        if (pipeline_start_sinks(pipeline, err) < 0) {
            return -1;
        }
    }
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        pipeline->started = true;
        if (pipeline->source->ops->start(pipeline->source, err) < 0) {
            return -1;
        }
    }
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        const struct source_ops *ops = pipeline->source->ops;
        if (ops->listen && ops->listen(pipeline->source, err) < 0) {
            return fit_blame(&pipeline->config->at.source, err);
        }
    }
    return 0;
}

static int begin_sinks(struct pipeline *pipeline, struct ssm_error *err)
{
    for (int i = 0; i < pipeline->n_sinks; i++) {
        const struct sink_ops *ops = pipeline->sinks[i]->ops;
        if (!pipeline->kept_sinks[i] && ops->begin && ops->begin(pipeline->sinks[i], err) < 0) {
            return fit_blame(&pipeline->config->at.sinks[i], err);
        }
    }
    return 0;
}

int pipelines_begin(struct pipeline *list, struct ssm_error *err)
{
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        if (begin_sinks(pipeline, err) < 0) {
            return -1;
        }
    }
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        if (pipeline->started && pipeline->source->ops->begin) {
            pipeline->source->ops->begin(pipeline->source);
        }
    }
    return 0;
}

void pipelines_stop(struct pipeline *list)
{
    for (struct pipeline *pipeline = list; pipeline; pipeline = pipeline->next) {
        if (pipeline->started) {
            pipeline->source->ops->stop(pipeline->source);
        }
    }
}

/* ---- Sound devices. ---- */

struct card *pipeline_player(const struct pipeline *pipeline)
{
    struct card *player = NULL;
    for (int i = 0; i < pipeline->n_sinks && card_condition(player) == CONDITION_OK; i++) {
        struct card *card = pipeline->sinks[i]->card;
        player = !player || card_condition(card) != CONDITION_OK ? card : player;
    }
    return player;
}
