/* SPDX-License-Identifier: MIT */
#include "daemon/reload.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "daemon/checkpoint.h"
#include "daemon/engine_thread.h"
#include "daemon/log.h"
#include "daemon/loop.h"
#include "daemon/notify.h"
#include "daemon/running.h"
#include "daemon/sink.h"
#include "daemon/source.h"
#include "dsp/clock.h"
#include "model/refuse.h"

/* What takes longer to open is given up: the one who asked is told, and what did come of it is closed. */
static const int64_t open_limit = 30000000000, halt_limit = 1000000000; /* halt: where the daemon ends meanwhile */

enum phase {
    IDLE,
    OPENING,  /* job: all that is new                                                   */
    JOINING,  /* call: its streams join                                                 */
    STARTING, /* job: its sinks and sources start; from here on nothing fails           */
    CHANGING, /* call: streams change; then what is replaced or gone comes to its end   */
    PARTING,  /* call: its streams part                                                 */
    CLOSING,  /* job: it is closed                                                      */
    UNDOING,  /* call: something failed, the new streams part again; then CLOSING       */
};

enum task { READ, OPEN, CLOSE };

struct reload {
    struct engine_call call; /* first: the engine's thread finds the rest by it */
    struct daemon *daemon;
    struct config *(*load)(void *arg, struct config_errors *errors);
    void *arg;
    enum task task;
    struct config *given; /* OPEN: its pipelines are to be opened              */
    char closes[64];      /* CLOSE: the name of the pipeline that is to go     */
    uint64_t generations;
    enum phase phase;
    bool again, late; /* late: given up while it was opening */
    bool settled;     /* the call for PARTING could do it    */
    int64_t since;
    uint64_t count;
    struct reload_result result, last;

    struct pipeline *fresh;    /* opened anew        */
    struct pipeline *changing; /* by pipeline_alter  */
    struct pipeline *swapping; /* those with another model that it may do; before it is known */
    struct pipeline *leaving;
    struct model *models;      /* opened for the fresh ones; at the end: those that nobody uses any more */

    pthread_t thread;
    bool threaded;
    void (*job)(struct reload *reload);
    atomic_bool done; /* the job */
};

struct reload *reload_create(struct daemon *daemon)
{
    struct reload *reload = calloc(1, sizeof *reload);
    if (reload) {
        reload->daemon = daemon;
        daemon->reloads = (struct reloads){.last_good = true, .good_utc = 1e-9 * (double)clock_utc_now()};
    }
    return reload;
}

void reload_from(struct reload *reload, struct config *(*load)(void *arg, struct config_errors *errors), void *arg)
{
    reload->load = load;
    reload->arg = arg;
    reload->daemon->reloads.readable = true;
}

static void abandon_all(struct pipeline *list)
{
    for (struct pipeline *next; list; list = next) {
        next = list->next;
        pipeline_abandon(list);
    }
}

/* Everything on its own lists, which it leaves empty. */
static void close_all(struct reload *reload)
{
    abandon_all(reload->changing);
    abandon_all(reload->swapping);
    pipelines_close(reload->fresh);
    pipelines_close(reload->leaving);
    models_close(reload->models);
    reload->changing = reload->swapping = reload->fresh = reload->leaving = NULL;
    reload->models = NULL;
}

void reload_destroy(struct reload *reload)
{
    for (struct pipeline *pipeline = reload ? reload->changing : NULL; pipeline; pipeline = pipeline->next) {
        pipeline_await_none(reload->daemon, pipeline);
    }
    if (reload) {
        close_all(reload);
        config_destroy(reload->given);
        free(reload);
    }
}

/* ---- Jobs. ---- */

static void *run(void *arg)
{
    struct reload *reload = arg;
    reload->job(reload);
    atomic_store(&reload->done, true);
    loop_wake(reload->daemon->loop);
    return NULL;
}

static void begin_job(struct reload *reload, enum phase phase, void (*job)(struct reload *reload))
{
    reload->phase = phase;
    reload->job = job;
    atomic_store(&reload->done, false);
    reload->threaded = pthread_create(&reload->thread, NULL, run, reload) == 0;
    if (!reload->threaded) { /* then the loop waits for it */
        run(reload);
    }
}

static bool end_job(struct reload *reload)
{
    if (!atomic_load(&reload->done)) {
        return false;
    }
    if (reload->threaded) {
        pthread_join(reload->thread, NULL);
        reload->threaded = false;
    }
    return true;
}

static void begin_call(struct reload *reload, enum phase phase, void (*run)(struct engine_thread *, struct engine_call *))
{
    reload->phase = phase;
    reload->call.run = run;
    engine_post(reload->daemon->engine, &reload->call);
}

/* A file that is a pipe, or on a machine that is away, may hold a job up for ever; recordings are to be finished all the same. */
bool reload_halt(struct reload *reload)
{
    const struct timespec moment = {.tv_nsec = (long)clock_span(5000000)};
    int64_t until = clock_now() + halt_limit;
    while (reload && reload->threaded && !end_job(reload)) {
        if (clock_now() > until) {
            return false;
        }
        nanosleep(&moment, NULL);
    }
    if (reload) {
        pipelines_stop(reload->fresh);
    }
    return true;
}

/* ---- What becomes of whom. ---- */

static struct pipeline *find_running(const struct daemon *daemon, const char *name)
{
    struct pipeline *pipeline = daemon->pipelines;
    while (pipeline && strcmp(pipeline->config->name, name) != 0) {
        pipeline = pipeline->next;
    }
    return pipeline;
}

/* Places in the file don't count. */
static bool same_settings(const struct config_pipeline *a, const struct config_pipeline *b)
{
    return memcmp(a, b, offsetof(struct config_pipeline, at)) == 0;
}

static bool same_source(const struct config_pipeline *a, const struct config_pipeline *b)
{
    return strcmp(a->fallback, b->fallback) == 0 && a->priority == b->priority &&
           memcmp(&a->source, &b->source, sizeof a->source) == 0;
}

/* The same model out of the same file. */
static bool same_model(const struct config_pipeline *config, const struct pipeline *running)
{
    return strcmp(config->model, running->config->model) == 0 && !running->model->stale;
}

static void append(struct pipeline **list, struct pipeline *pipeline)
{
    while (*list) {
        list = &(*list)->next;
    }
    *list = pipeline;
}

static bool is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static bool has_file(const struct config_sink *sink, struct stat *found)
{
    bool file = sink->type == SINK_FILE || (sink->type == SINK_JSONL && strcmp(sink->path, "-") != 0);
    return file && stat(sink->path, found) == 0 && S_ISREG(found->st_mode);
}

/* A file that is being written, or read, isn't written by another; but lines are added to lines. stays: the running one's source
 * goes on, and with it the sinks whose settings are the same. */
static int refuse_written(const struct daemon *daemon, const struct pipeline *pipeline, bool stays, struct ssm_error *err)
{
    for (int i = 0; i < pipeline->config->n_sinks; i++) {
        const struct config_sink *sink = &pipeline->config->sinks[i];
        struct stat wanted, written;
        if (!has_file(sink, &wanted)) {
            continue;
        }
        for (const struct pipeline *other = daemon->pipelines; other; other = other->next) {
            const struct config_source *source = &other->config->source;
            if (source->type == SOURCE_FILE && stat(source->path, &written) == 0 && is_same_file(&written, &wanted)) {
                return refuse(err, 73, "pipelines.%s.sinks: %.300s is being read by pipeline %s; take another file",
                              pipeline->config->name, sink->path, other->config->name);
            }
            for (int k = 0; k < other->n_sinks; k++) {
                const struct config_sink *theirs = other->sink_configs[k];
                bool kept = stays && other == pipeline->before && memcmp(sink, theirs, sizeof *sink) == 0;
                bool lines = sink->type == SINK_JSONL && theirs->type == SINK_JSONL;
                if (!kept && !lines && has_file(theirs, &written) && is_same_file(&written, &wanted)) {
                    return refuse(err, 73, "pipelines.%s.sinks: %.300s is being written by pipeline %s; take another file",
                                  pipeline->config->name, sink->path, other->config->name);
                }
            }
        }
    }
    return 0;
}

static const char *find_heard(const struct config_source *source)
{
    return config_reads_input(source) ? "standard input" : config_socket(source);
}

/* A socket that is bound anew takes the place of what goes, and of nobody else; and so it is with standard input. */
static int refuse_heard(const struct reload *reload, struct ssm_error *err)
{
    for (const struct pipeline *pipeline = reload->fresh; pipeline; pipeline = pipeline->next) {
        const char *wanted = find_heard(&pipeline->config->source);
        for (const struct pipeline *other = reload->daemon->pipelines; other && wanted; other = other->next) {
            const char *taken = find_heard(&other->config->source);
            if (!other->goes && taken && strcmp(taken, wanted) == 0) {
                return refuse(err, 69, "pipelines.%s.source: pipeline %s listens on %.300s; take another address",
                              pipeline->config->name, other->config->name, taken);
            }
        }
    }
    return 0;
}

static int alter(struct reload *reload, struct pipeline *pipeline, struct ssm_error *err)
{
    append(&reload->changing, pipeline);
    reload->result.changed++;
    return refuse_written(reload->daemon, pipeline, true, err) < 0 ? -1 : pipeline_alter(reload->daemon, pipeline, err);
}

/* Which it is to be shows once the model is open. */
static int swap(struct reload *reload, struct pipeline *pipeline, struct ssm_error *err)
{
    append(&reload->swapping, pipeline);
    pipeline->n_channels = pipeline->before->n_channels;
    return pipeline_choose_model(reload->daemon, pipeline, &reload->models, err);
}

static int renew(struct reload *reload, struct pipeline *pipeline, struct ssm_error *err)
{
    append(&reload->fresh, pipeline);
    pipeline->generation = reload->task == OPEN ? ++reload->generations : 0;
    reload->result.generation = pipeline->generation;
    reload->result.replaced += pipeline->before != NULL;
    reload->result.opened += pipeline->before == NULL;
    if (pipeline->before) {
        pipeline->before->goes = true;
    }
    return refuse_written(reload->daemon, pipeline, false, err);
}

static int compare_pipeline(struct reload *reload, const struct config_pipeline *config, struct ssm_error *err)
{
    struct pipeline *running = find_running(reload->daemon, config->name);
    if (running && (reload->task == OPEN || running->generation > 0)) {
        return refuse(err, 73, "pipelines.%s: one of that name runs already%s", config->name,
                      running->generation > 0 ? ", opened by stream.open" : "");
    }
    bool source = running && same_source(config, running->config), model = running && same_model(config, running);
    if (running) {
        running->goes = !source;
    }
    if (source && model && same_settings(config, running->config)) {
        reload->result.unchanged++;
        return 0;
    }
    struct pipeline *pipeline = pipeline_create(config);
    if (!pipeline) {
        return refuse_memory(err);
    }
    pipeline->before = running;
    return (!source ? renew : model ? alter : swap)(reload, pipeline, err);
}

/* Those without one in the new configuration go. */
static void count_gone(struct reload *reload)
{
    const struct reload_result *result = &reload->result;
    int gone = 0;
    for (const struct pipeline *pipeline = reload->daemon->pipelines; pipeline; pipeline = pipeline->next) {
        gone += pipeline->goes;
    }
    reload->result.closed = gone - result->replaced;
}

/* Who goes for the task alone. */
static bool is_to_go(const struct reload *reload, const struct pipeline *pipeline)
{
    return reload->task == READ ? pipeline->generation == 0
                                : reload->task == CLOSE && strcmp(pipeline->config->name, reload->closes) == 0;
}

static int compare(struct reload *reload, const struct config *config, struct ssm_error *err)
{
    const char *key = reload->task == READ ? config_differs(reload->daemon->config, config) : NULL;
    if (key) {
        return refuse(err, 78, "%s has changed: that takes a restart; nothing was changed", key);
    }
    for (struct pipeline *pipeline = reload->daemon->pipelines; pipeline; pipeline = pipeline->next) {
        pipeline->goes = is_to_go(reload, pipeline);
        pipeline->lends = false;
    }
    models_find_stale(reload->daemon->models);
    for (int i = 0; config && i < config->n_pipelines; i++) {
        if (compare_pipeline(reload, &config->pipelines[i], err) < 0) {
            return -1;
        }
    }
    return 0;
}

/* ---- Opening: the job's thread. ---- */

static struct config *load(struct reload *reload, struct ssm_error *err)
{
    struct config_errors errors = {0};
    struct config *config = reload->load(reload->arg, &errors);
    if (!config && errors.n > 0) {
        refuse(err, 78, "%s", errors.at[0].text);
    } else if (!config) {
        refuse_memory(err);
    }
    for (int i = 0; !config && i < errors.n; i++) {
        log_line(LOG_ERROR, "%s", errors.at[i].text);
    }
    return config;
}

/* What was kept under the same names by others is not theirs. */
static void forget_kept(struct reload *reload)
{
    for (struct pipeline *pipeline = reload->fresh; pipeline; pipeline = pipeline->next) {
        for (int i = 0; i < pipeline->n_channels && !pipeline->before; i++) {
            if (pipeline->kept[i]) {
                checkpoint_forget(reload->daemon->checkpoint, pipeline->kept[i]);
            }
        }
    }
}

/* The models are open: those alike change places, others take a pipeline of their own. */
static int decide_swaps(struct reload *reload, struct ssm_error *err)
{
    struct pipeline *others = NULL;
    int opened = 0;
    for (struct pipeline *pipeline; opened == 0 && (pipeline = reload->swapping);) {
        reload->swapping = pipeline->next;
        pipeline->next = NULL;
        if (models_alike(pipeline->model, pipeline->before->model)) {
            opened = alter(reload, pipeline, err);
            continue;
        }
        pipeline_leave_models(pipeline);
        pipeline->n_channels = 0;
        pipeline->before->goes = true;
        reload->result.replaced++;
        append(&others, pipeline);
    }
    for (const struct pipeline *pipeline = others; pipeline && opened == 0; pipeline = pipeline->next) {
        opened = refuse_written(reload->daemon, pipeline, false, err);
    }
    opened = opened < 0 ? opened : pipelines_open_inputs(reload->daemon, others, &reload->models, err);
    append(&reload->fresh, others);
    return opened;
}

static void open_all(struct reload *reload)
{
    struct ssm_error *err = &reload->result.err;
    struct config *config = reload->task == READ ? load(reload, err) : reload->given;
    reload->given = NULL;
    bool ok = (config || reload->task == CLOSE) && compare(reload, config, err) == 0 &&
              refuse_heard(reload, err) == 0 &&
              pipelines_open_inputs(reload->daemon, reload->fresh, &reload->models, err) == 0 &&
              decide_swaps(reload, err) == 0 && pipelines_open_outputs(reload->daemon, reload->fresh, err) == 0;
    config_destroy(config);
    if (ok) {
        count_gone(reload);
        forget_kept(reload);
    } else {
        close_all(reload);
    }
}

/* ---- Joining and starting. ---- */

static void await_none(struct reload *reload)
{
    for (struct pipeline *pipeline = reload->changing; pipeline; pipeline = pipeline->next) {
        pipeline_await_none(reload->daemon, pipeline);
    }
}

static void join(struct engine_thread *thread, struct engine_call *call)
{
    (void)thread;
    struct reload *reload = (struct reload *)call;
    struct ssm_error *err = &reload->result.err;
    bool ok = true;
    for (struct pipeline *pipeline = reload->changing; ok && pipeline; pipeline = pipeline->next) {
        ok = pipeline_await(reload->daemon, pipeline, err) == 0;
    }
    if (!ok || pipelines_join(reload->daemon, reload->fresh, err) < 0) {
        await_none(reload);
    }
}

static int refuse_draining(struct ssm_error *err)
{
    return refuse(err, 75, "the daemon drains");
}

static void start_all(struct reload *reload)
{
    struct ssm_error *err = &reload->result.err;
    for (struct pipeline *pipeline = reload->changing; pipeline; pipeline = pipeline->next) {
        if (pipeline_start_sinks(pipeline, err) < 0) {
            return;
        }
    }
    bool started = pipelines_start(reload->fresh, err) == 0;
    if (started && atomic_load(&reload->daemon->draining)) { /* before a file is replaced */
        refuse_draining(err);
    } else if (started && pipelines_begin(reload->changing, err) == 0) {
        pipelines_begin(reload->fresh, err);
    }
}

static void part_fresh(struct engine_thread *thread, struct engine_call *call)
{
    (void)thread;
    struct reload *reload = (struct reload *)call;
    pipelines_part(reload->daemon, reload->fresh);
    await_none(reload);
}

/* ---- Taking its place. ---- */

static void take_out_gone(struct reload *reload)
{
    for (struct pipeline **link = &reload->daemon->pipelines; *link;) {
        struct pipeline *pipeline = *link;
        if (pipeline->goes) {
            *link = pipeline->next;
            pipeline->next = NULL;
            append(&reload->leaving, pipeline);
        } else {
            link = &pipeline->next;
        }
    }
}

static void add_models(struct daemon *daemon, struct model *models)
{
    struct model **last = &daemon->models;
    while (*last) {
        last = &(*last)->next;
    }
    *last = models;
}

static void change(struct engine_thread *thread, struct engine_call *call)
{
    (void)thread;
    struct reload *reload = (struct reload *)call;
    for (struct pipeline *pipeline = reload->changing; pipeline; pipeline = pipeline->next) {
        pipeline_change(reload->daemon, pipeline);
    }
}

/* All that is new runs: it is on the lists now, and who goes is on its way. */
static void commit(struct reload *reload)
{
    struct daemon *daemon = reload->daemon;
    pthread_mutex_lock(&daemon->lock);
    take_out_gone(reload);
    append(&daemon->pipelines, reload->fresh);
    add_models(daemon, reload->models);
    pthread_mutex_unlock(&daemon->lock);
    reload->fresh = NULL;
    reload->models = NULL;
    daemon->leaving = reload->leaving;
    daemon->changing = reload->changing;
    running_count(daemon);
    pipelines_stop(reload->leaving);
    reload->since = clock_now();
    begin_call(reload, CHANGING, change);
}

static bool all_ended(const struct reload *reload)
{
    bool ended = true;
    for (const struct pipeline *pipeline = reload->changing; pipeline; pipeline = pipeline->next) {
        ended = ended && pipeline_changed(pipeline);
    }
    for (const struct pipeline *pipeline = reload->leaving; pipeline; pipeline = pipeline->next) {
        ended = ended && pipeline_ended(pipeline);
    }
    return ended;
}

/* All models have changed, or else now is the time. */
static void part_leaving(struct engine_thread *thread, struct engine_call *call)
{
    (void)thread;
    struct reload *reload = (struct reload *)call;
    reload->settled = true;
    for (struct pipeline *pipeline = reload->changing; pipeline && reload->settled; pipeline = pipeline->next) {
        reload->settled = pipeline->settled || pipeline_settle(reload->daemon, pipeline);
        pipeline->settled = reload->settled;
    }
    if (reload->settled) {
        pipelines_part(reload->daemon, reload->leaving);
    }
}

/* What they counted stays counted. */
static void add_past(struct daemon *daemon, const struct pipeline *pipeline)
{
    for (int i = 0; i < COUNTERS; i++) {
        daemon->past[i] += counted_in(pipeline->counters, pipeline->n_channels, (enum counter)i);
    }
    daemon->past_in += pipeline_hops_in(pipeline);
    daemon->past_out += pipeline_hops_out(pipeline);
}

/* The pipelines that changed stand where those stood whose streams they have; these leave with what is left of them. */
static void take_over(struct reload *reload)
{
    for (struct pipeline *pipeline = reload->changing, *next; pipeline; pipeline = next) {
        struct pipeline **link = &reload->daemon->pipelines;
        next = pipeline->next;
        while (*link != pipeline->before) {
            link = &(*link)->next;
        }
        struct pipeline *before = *link;
        pipeline_take_over(pipeline);
        pipeline->next = before->next;
        *link = pipeline;
        before->next = NULL;
        append(&reload->leaving, before);
    }
    reload->changing = NULL;
}

static void take_out_unused_models(struct reload *reload)
{
    for (struct model **link = &reload->daemon->models; *link;) {
        struct model *model = *link;
        if (model->users == 0) {
            *link = model->next;
            model->next = reload->models;
            reload->models = model;
        } else {
            link = &model->next;
        }
    }
}

/* The streams of who goes have parted. */
static void clear_up(struct reload *reload)
{
    struct daemon *daemon = reload->daemon;
    if (!reload->settled) {
        begin_call(reload, PARTING, part_leaving);
        return;
    }
    running_serve_sinks(daemon); /* of their end */
    daemon->leaving = daemon->changing = NULL;
    for (struct pipeline *pipeline = reload->leaving; pipeline; pipeline = pipeline->next) {
        add_past(daemon, pipeline);
        for (int i = 0; i < pipeline->n_channels; i++) {
            if (pipeline->kept[i] && !find_running(daemon, pipeline->config->name)) {
                checkpoint_forget(daemon->checkpoint, pipeline->kept[i]);
            }
        }
        pipeline_leave_models(pipeline);
    }
    pthread_mutex_lock(&daemon->lock);
    for (struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        pipeline->before = NULL;
    }
    take_over(reload);
    take_out_unused_models(reload);
    pthread_mutex_unlock(&daemon->lock);
    running_count(daemon);
    begin_job(reload, CLOSING, close_all);
}

/* ---- The course of it. ---- */

static void tell(struct reload *reload, const struct reload_result *result)
{
    bool good = result->err.code == 0;
    reload->last = *result;
    reload->count++;
    running_tell_ready(reload->daemon); /* models that were opened have said that they load */
    if (reload->task != READ) {
        return;
    }
    if (good) {
        log_line(LOG_INFO, "reloaded: pipelines: %d unchanged, %d changed, %d opened, %d replaced, %d closed", result->unchanged,
                 result->changed, result->opened, result->replaced, result->closed);
    } else {
        log_line(LOG_ERROR, "not reloaded, what ran goes on: %s", result->err.text);
    }
    struct reloads *reloads = &reload->daemon->reloads;
    pthread_mutex_lock(&reload->daemon->lock);
    reloads->good += good;
    reloads->bad += !good;
    reloads->last_good = good;
    reloads->good_utc = good ? 1e-9 * (double)clock_utc_now() : reloads->good_utc;
    pthread_mutex_unlock(&reload->daemon->lock);
}

static void finish(struct reload *reload)
{
    reload->phase = IDLE;
    if (!reload->late) {
        tell(reload, &reload->result);
    }
    if (reload->again && !reload->daemon->draining) {
        reload_begin(reload);
    }
}

/* Undone by closing what there is; the streams of the fresh ones have parted, or never joined. */
static void fail(struct reload *reload)
{
    begin_job(reload, CLOSING, close_all);
}

static void end_opening(struct reload *reload)
{
    if (reload->result.err.code != 0) {
        finish(reload);
    } else if (reload->late || reload->daemon->draining) {
        refuse_draining(&reload->result.err);
        fail(reload);
    } else {
        begin_call(reload, JOINING, join);
    }
}

static void end_starting(struct reload *reload)
{
    if (reload->result.err.code == 0) {
        commit(reload);
        if (reload->daemon->draining) { /* since it had begun: the new ones drain with the others */
            pipelines_stop(reload->daemon->pipelines);
        }
    } else {
        pipelines_stop(reload->fresh);
        begin_call(reload, UNDOING, part_fresh);
    }
}

static void end_joining(struct reload *reload)
{
    if (reload->result.err.code == 0) {
        begin_job(reload, STARTING, start_all);
    } else {
        fail(reload);
    }
}

/* Who goes has its time to come to its end. */
static void wait_for_ends(struct reload *reload)
{
    int64_t limit = reload->since + (int64_t)(reload->daemon->config->drain_s * 1e9);
    if ((all_ended(reload) || clock_now() > limit) && !reload->daemon->stream_held) {
        begin_call(reload, PARTING, part_leaving);
    }
}

static void give_up(struct reload *reload)
{
    if (!reload->late && clock_now() - reload->since > open_limit) {
        struct reload_result result = {0};
        refuse(&result.err, 75, "something took more than %d s to open", (int)(open_limit / 1000000000));
        reload->late = true;
        tell(reload, &result);
    }
}

void reload_turn(struct reload *reload)
{
    enum phase phase = reload ? reload->phase : IDLE;
    bool job = phase == OPENING || phase == STARTING || phase == CLOSING;
    if (phase == IDLE || !(job ? end_job(reload) : engine_answered(&reload->call))) {
        if (phase == OPENING) {
            give_up(reload);
        }
        return;
    }
    static void (*const next[])(struct reload *) = {[OPENING] = end_opening, [JOINING] = end_joining,
                                                    [STARTING] = end_starting, [CHANGING] = wait_for_ends,
                                                    [PARTING] = clear_up, [CLOSING] = finish, [UNDOING] = fail};
    next[phase](reload);
}

static bool begin(struct reload *reload, enum task task)
{
    if (reload_busy(reload) || reload->daemon->draining) {
        return false;
    }
    reload->task = task;
    reload->late = false;
    reload->result = (struct reload_result){0};
    reload->since = clock_now();
    return true;
}

bool reload_begin(struct reload *reload)
{
    if (!begin(reload, READ)) {
        return false;
    }
    reload->again = false;
    notify_reloading();
    begin_job(reload, OPENING, open_all);
    return true;
}

bool reload_open(struct reload *reload, struct config *config)
{
    if (!begin(reload, OPEN)) {
        config_destroy(config);
        return false;
    }
    reload->given = config;
    begin_job(reload, OPENING, open_all);
    return true;
}

bool reload_close(struct reload *reload, const struct pipeline *pipeline)
{
    if (!begin(reload, CLOSE)) {
        return false;
    }
    snprintf(reload->closes, sizeof reload->closes, "%s", pipeline->config->name);
    begin_job(reload, OPENING, open_all);
    return true;
}

void reload_again(struct reload *reload)
{
    if (!reload_begin(reload)) {
        reload->again = true;
    }
}

bool reload_busy(const struct reload *reload)
{
    return reload && reload->phase != IDLE;
}

uint64_t reload_count(const struct reload *reload)
{
    return reload->count;
}

const struct reload_result *reload_last(const struct reload *reload)
{
    return &reload->last;
}
