/* SPDX-License-Identifier: MIT */
#include "daemon/metrics.h"

#include <dirent.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "daemon/card.h"
#include "daemon/engine_thread.h"
#include "daemon/gate.h"
#include "daemon/publish.h"
#include "daemon/running.h"
#include "daemon/source.h"

/* ---- The format. ---- */

struct label {
    const char *name, *value;
};

/* What every process tells has the same names everywhere. */
static const char *prefix(const char *name)
{
    return strncmp(name, "process_", 8) == 0 ? "" : "ssmd_";
}

static void put_family(FILE *file, const char *name, const char *type, const char *help)
{
    fprintf(file, "# HELP %s%s %s\n# TYPE %s%s %s\n", prefix(name), name, help, prefix(name), name, type);
}

/* Names of models and devices come from outside: what would break the line is escaped, other control characters and bytes
 * that may not be UTF-8 become '?'. */
static void put_value(FILE *file, const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            fputc('\\', file);
        }
        fputc(c < 0x20 || c > 0x7e ? '?' : c, file);
    }
}

/* labels end with one without a name; NULL: none. */
static void put_labels(FILE *file, const struct label *labels)
{
    for (int i = 0; labels && labels[i].name; i++) {
        fprintf(file, "%s%s=\"", i == 0 ? "{" : ",", labels[i].name);
        put_value(file, labels[i].value);
        fputc('"', file);
    }
    fputs(labels && labels[0].name ? "}" : "", file);
}

static void put(FILE *file, const char *name, const struct label *labels, double value)
{
    fprintf(file, "%s%s", prefix(name), name);
    put_labels(file, labels);
    fprintf(file, " %.15g\n", value);
}

static void put_one(FILE *file, const char *name, const char *type, const char *help, double value)
{
    put_family(file, name, type, help);
    put(file, name, NULL, value);
}

/* stage NULL: no label. */
static void put_histogram(FILE *file, const char *name, const char *stage, const struct histogram *histogram)
{
    static const double ms[] = {.05, .1, .2, .5, 1, 2, 5, 10, 20, 40, 80, 160};
    enum { EDGES = sizeof ms / sizeof *ms };
    double edges[EDGES];
    uint64_t below[EDGES];
    char series[96], le[24];
    for (int i = 0; i < EDGES; i++) {
        edges[i] = ms[i] * 1e6;
    }
    uint64_t n = histogram_below(histogram, edges, EDGES, below);
    const struct label stage_label[] = {{stage ? "stage" : NULL, stage}, {0}};
    snprintf(series, sizeof series, "%s_bucket", name);
    for (int i = 0; i <= EDGES; i++) {
        snprintf(le, sizeof le, "%g", i < EDGES ? ms[i] / 1000 : 0);
        const struct label labels[] = {{"le", i < EDGES ? le : "+Inf"}, stage_label[0], {0}};
        put(file, series, labels, (double)(i < EDGES ? below[i] : n));
    }
    snprintf(series, sizeof series, "%s_sum", name);
    put(file, series, stage_label, (double)atomic_load_explicit(&histogram->sum, memory_order_relaxed) / 1e9);
    snprintf(series, sizeof series, "%s_count", name);
    put(file, series, stage_label, (double)n);
}

/* ---- The process. ---- */

static double count_files(void)
{
    DIR *folder = opendir("/proc/self/fd");
    double n = -3; /* ".", ".." and the folder itself */
    while (folder && readdir(folder)) {
        n++;
    }
    if (folder) {
        closedir(folder);
    }
    return n > 0 ? n : 0;
}

static void put_process(FILE *file, const struct daemon *daemon)
{
    struct rusage usage;
    struct rlimit files;
    long pages[2] = {0};
    FILE *statm = fopen("/proc/self/statm", "r");
    if (statm) {
        if (fscanf(statm, "%ld %ld", &pages[0], &pages[1]) != 2) {
            pages[0] = pages[1] = 0;
        }
        fclose(statm);
    }
    getrusage(RUSAGE_SELF, &usage);
    getrlimit(RLIMIT_NOFILE, &files);
    double page = (double)sysconf(_SC_PAGESIZE);
    put_one(file, "process_cpu_seconds_total", "counter", "processor time of all threads",
            (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec));
    put_one(file, "process_resident_memory_bytes", "gauge", "memory in use", (double)pages[1] * page);
    put_one(file, "process_virtual_memory_bytes", "gauge", "address space", (double)pages[0] * page);
    put_one(file, "process_open_fds", "gauge", "open file descriptors", count_files());
    put_one(file, "process_max_fds", "gauge", "file descriptors there may be", (double)files.rlim_cur);
    put_one(file, "process_start_time_seconds", "gauge", "when the daemon started, since 1970", daemon->started_utc);
}

/* ---- What runs. ---- */

static void put_models(FILE *file, const struct daemon *daemon)
{
    put_family(file, "backend_info", "gauge", "a model that runs, and what computes it");
    for (const struct model *model = daemon->models; model; model = model->next) {
        const struct ssm_info *info = ssm_describe(model->engine);
        char backend[16];
        snprintf(backend, sizeof backend, "%.*s", (int)strcspn(info->device, " :"), info->device);
        const struct label labels[] = {
            {"backend", backend}, {"device", info->device}, {"model", info->name}, {"digest", info->digest}, {0}};
        put(file, "backend_info", labels, 1);
    }
}

static void put_engine(FILE *file, const struct daemon *daemon)
{
    int faults = 0;
    while (*engine_fault(daemon->engine, faults)) {
        faults++;
    }
    put_one(file, "backend_faults_total", "counter", "devices that failed", faults);
    put_one(file, "streams", "gauge", "streams that were opened", daemon->n_streams);
    put_one(file, "streams_capacity", "gauge", "live streams there may be at once; 0: no limit",
            admission_capacity(&daemon->admission));
    put_one(file, "streams_rejected_total", "counter", "streams that were refused for lack of capacity",
            (double)atomic_load(&daemon->admission.rejected));
    put_one(file, "streams_active", "gauge", "streams that have not ended", engine_running(daemon->engine));
    put_one(file, "batches_total", "counter", "steps of a batch of streams", (double)engine_batches(daemon->engine));
    put_family(file, "batch_step_seconds", "histogram", "how long a batch's step took");
    put_histogram(file, "batch_step_seconds", NULL, engine_step_times(daemon->engine));
    put_one(file, "engine_load_ratio", "gauge", "share of the time in which the engine is at work for live streams",
            engine_load(daemon->engine));
    put_family(file, "hop_delay_seconds", "histogram", "from a hop being there to its being out of the model");
    put_histogram(file, "hop_delay_seconds", NULL, engine_delays(daemon->engine));
}

static void put_published(FILE *file, const struct daemon *daemon)
{
    put_family(file, "clients_denied_total", "counter",
               "connections refused or ended: their key is not allowed, they speak no CURVE, they subscribe to too much");
    put(file, "clients_denied_total", (const struct label[]){{"reason", "key"}, {0}}, (double)gate_denied(daemon->gate));
    put(file, "clients_denied_total", (const struct label[]){{"reason", "handshake"}, {0}}, (double)gate_unspoken(daemon->gate));
    put(file, "clients_denied_total", (const struct label[]){{"reason", "flood"}, {0}}, (double)gate_flooded(daemon->gate));
    if (!daemon->publisher) {
        return;
    }
    put_one(file, "subscribers", "gauge", "connections that subscribed to something", publisher_subscribers(daemon->publisher));
    put_one(file, "pub_messages_total", "counter", "messages sent to subscribers",
            (double)publisher_messages(daemon->publisher));
    put_family(file, "stream_latency_seconds", "histogram",
               "published hops: waiting for the engine, in the step, until published, and in total after capture");
    for (int i = 0; i < STAGES; i++) {
        put_histogram(file, "stream_latency_seconds", stage_names[i], &daemon->stages.at[i]);
    }
}

/* Of the states a source can be in; a device's own come after these. */
enum { RUNNING, ENDED, FAILED, DEVICE };
static const char *const states[] = {"running", "ended", "failed", "silent", "stalled", "lost", "recovering"};
enum { STATES = sizeof states / sizeof *states };

/* Any of its channels that isn't well speaks for the source. */
static int find_state(const struct pipeline *pipeline)
{
    bool ended = true;
    int device = CONDITION_OK;
    for (int k = 0; k < pipeline->n_channels; k++) {
        int condition = (int)source_condition(pipeline->source, k);
        ended = ended && stream_ended(pipeline->streams[k]);
        device = condition > device ? condition : device;
    }
    return atomic_load(&pipeline->source->code) != 0 ? FAILED
           : ended                                   ? ENDED
           : device != CONDITION_OK                  ? DEVICE + device - CONDITION_SILENT
                                                     : RUNNING;
}

static void put_state(FILE *file, const char *name, const struct pipeline *pipeline, const char *type, int state)
{
    for (int k = 0; k < STATES; k++) {
        const struct label labels[] = {{"pipeline", pipeline->config->name}, {"type", type}, {"state", states[k]}, {0}};
        put(file, name, labels, k == state);
    }
}

static void put_sources(FILE *file, const struct daemon *daemon)
{
    put_family(file, "source_state", "gauge", "1 for what a pipeline's source does now");
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        put_state(file, "source_state", pipeline, pipeline->source->ops->name, find_state(pipeline));
    }
}

static void put_ppm(FILE *file, const char *name, const struct pipeline *pipeline, const struct card *card)
{
    const struct label labels[] = {{"pipeline", pipeline->config->name}, {0}};
    if (card) {
        put(file, name, labels, card_ppm(card));
    }
}

static void put_silence(FILE *file, const struct pipeline *pipeline)
{
    for (int k = 0; pipeline->source->card && k < pipeline->n_channels; k++) {
        char channel[16];
        snprintf(channel, sizeof channel, "%d", pipeline->source->channels[k]);
        const struct label labels[] = {{"pipeline", pipeline->config->name}, {"channel", channel}, {0}};
        put(file, "source_silence_seconds", labels, card_silence_s(pipeline->source->card, k));
    }
}

static void put_devices(FILE *file, const struct daemon *daemon)
{
    const struct pipeline *pipeline;
    put_family(file, "sink_state", "gauge", "1 for what the sound device that a pipeline plays on does now");
    for (pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        const struct card *player = pipeline_player(pipeline);
        int condition = (int)card_condition(player);
        if (player) {
            put_state(file, "sink_state", pipeline, "audio", condition ? DEVICE + condition - CONDITION_SILENT : RUNNING);
        }
    }
    put_family(file, "source_silence_seconds", "gauge", "silence a sound device has given so far, 0 after a sound");
    for (pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        put_silence(file, pipeline);
    }
    put_family(file, "source_clock_ppm", "gauge", "how much faster than it says a sound device captures, by this machine's clock");
    for (pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        put_ppm(file, "source_clock_ppm", pipeline, pipeline->source->card);
    }
    put_family(file, "sink_clock_ppm", "gauge", "how much faster than it says a sound device plays, by this machine's clock");
    for (pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        put_ppm(file, "sink_clock_ppm", pipeline, pipeline_player(pipeline));
    }
}

/* Numbers a stream has, each a family. */
static double hops_of(const struct pipeline *pipeline, int channel)
{
    return (double)stream_hops(pipeline->streams[channel]);
}
static double samples_of(const struct pipeline *pipeline, int channel)
{
    return (double)stream_samples(pipeline->streams[channel]);
}
static double fill_of(const struct pipeline *pipeline, int channel)
{
    return pipeline->feeds[channel] ? feed_share(pipeline->feeds[channel]) : 0;
}

static double late_of(const struct pipeline *pipeline, int channel)
{
    return (double)stream_late(pipeline->streams[channel]);
}
static double delay_of(const struct pipeline *pipeline, int channel)
{
    return (double)stream_delay(pipeline->streams[channel]) / 1e9;
}

static double rung_of(const struct pipeline *pipeline, int channel)
{
    return stream_rung(pipeline->streams[channel]);
}

static void put_streams(FILE *file, const struct daemon *daemon)
{
    static const struct {
        const char *name, *type, *help;
        double (*value)(const struct pipeline *pipeline, int channel);
    } families[] = {{"stream_hops_total", "counter", "hops that came out of the model", hops_of},
                    {"source_samples_total", "counter", "samples taken in, at the source's rate", samples_of},
                    {"stream_deadline_misses_total", "counter", "hops that were out after their deadline", late_of},
                    {"stream_rung", "gauge", "0: its model, 1: a smaller one, 2: bypassed, 3: dropped, for lack of time", rung_of},
                    {"stream_delay_seconds", "gauge", "from a hop being there to its being out, the last ones", delay_of},
                    {"ring_fill_ratio", "gauge", "how full the buffer between source and engine is", fill_of}};
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        put_family(file, families[f].name, families[f].type, families[f].help);
        for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
            for (int k = 0; k < pipeline->n_channels; k++) {
                char channel[16];
                snprintf(channel, sizeof channel, "%d", pipeline->source->channels[k]);
                const struct label labels[] = {{"pipeline", pipeline->config->name}, {"channel", channel}, {0}};
                put(file, families[f].name, labels, families[f].value(pipeline, k));
            }
        }
    }
}

/* One counter of every pipeline. */
static void put_cause(FILE *file, const struct daemon *daemon, enum counter counter)
{
    for (const struct pipeline *pipeline = daemon->pipelines; pipeline; pipeline = pipeline->next) {
        const struct label labels[] = {{"pipeline", pipeline->config->name}, {"cause", counter_table[counter].name}, {0}};
        put(file, counter_table[counter].metric, labels,
            (double)counted_in(pipeline->counters, pipeline->n_channels, counter));
    }
}

/* Counters of the same metric stand together, under the first one's place. */
static void put_counters(FILE *file, const struct daemon *daemon)
{
    for (int i = 0; i < COUNTERS; i++) {
        int first = COUNTERS, n = 0;
        for (int k = COUNTERS - 1; k >= 0; k--) {
            bool same = strcmp(counter_table[k].metric, counter_table[i].metric) == 0;
            first = same ? k : first;
            n += same;
        }
        if (first < i) {
            continue;
        }
        put_family(file, counter_table[i].metric, "counter", n == 1 ? counter_table[i].help : "lost or spoilt, by cause");
        for (int k = i; k < COUNTERS; k++) {
            if (strcmp(counter_table[k].metric, counter_table[i].metric) == 0) {
                put_cause(file, daemon, (enum counter)k);
            }
        }
    }
}

static void put_reloads(FILE *file, const struct daemon *daemon)
{
    const struct reloads *reloads = &daemon->reloads;
    if (!reloads->readable) {
        return;
    }
    put_one(file, "config_last_reload_successful", "gauge", "1: the last reload was one, or none was asked for",
            reloads->last_good);
    put_one(file, "config_last_reload_success_timestamp_seconds", "gauge",
            "when what runs was read, since 1970", reloads->good_utc);
    put_family(file, "reloads_total", "counter", "times the configuration was read again");
    put(file, "reloads_total", (const struct label[]){{"result", "success"}, {0}}, (double)reloads->good);
    put(file, "reloads_total", (const struct label[]){{"result", "failure"}, {0}}, (double)reloads->bad);
}

void metrics_print(const struct daemon *daemon, FILE *file)
{
    put_family(file, "build_info", "gauge", "what runs");
    put(file, "build_info", (const struct label[]){{"version", SSM_VERSION}, {"node", daemon->config->node}, {0}}, 1);
    put_process(file, daemon);
    put_reloads(file, daemon);
    put_models(file, daemon);
    put_engine(file, daemon);
    put_published(file, daemon);
    put_sources(file, daemon);
    put_devices(file, daemon);
    put_streams(file, daemon);
    put_counters(file, daemon);
}
