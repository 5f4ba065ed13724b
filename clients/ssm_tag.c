/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sysexits.h>

#include "clients/runner.h"
#include "clients/sensor_file.h"
#include "clients/tag_writer.h"
#include "clients/verb.h"
#include "dsp/sound_file.h"

enum { BLOCK = 1 << 16, SENSOR_HOPS = 4096 };

static const char *model, *device = "auto", *precision = "auto", *format = "jsonl", *input = "auto", *fields;
static int threads;
static bool step, scores, whole;
static double threshold = -1, rate;

/* One stream of the model: rows out, in order, each about its samples. */
struct track {
    struct job *job;
    int channel;
    struct events *events;
    uint64_t rows;
    double *sums;  /* (labels) for --whole: each score times its row's samples; the last row's where labels exclude each other */
    uint64_t length, last_to; /* of the rows in it */
};

struct job {
    const char *path;
    struct runner *runner;
    const struct ssm_info *info;
    struct labels *labels;
    struct track *tracks;  /* (streams)                                       */
    int streams;
    struct tag_writer writer;
    bool ended;            /* the input's length is known                     */
    uint64_t total;        /* ... in samples at the model's rate              */
    struct cadence_hop *hops; /* of a sensor: where those in the runner are   */
};

static void tell(void *context, const struct event *event)
{
    struct track *track = context;
    if (event->kind != EVENT_BEGIN) {
        tag_writer_event(&track->job->writer, track->channel, event);
    }
}

/* What excludes the rest was decided over all that came before; what doesn't speaks of its moment alone. */
static void add_to_whole(struct track *track, uint64_t from, uint64_t to, const float *row)
{
    bool decided = track->job->labels->exclusive;
    track->length = to - from + (decided ? 0 : track->length);
    track->last_to = to;
    for (int i = 0; i < track->job->labels->n; i++) {
        track->sums[i] = (double)row[i] * (double)(to - from) + (decided ? 0 : track->sums[i]);
    }
}

/* One row, about samples [from, to). */
static void take_row(struct track *track, uint64_t from, uint64_t to, const float *row)
{
    struct job *job = track->job;
    if (scores) {
        tag_writer_scores(&job->writer, track->channel, from, to, row);
    } else if (whole) {
        add_to_whole(track, from, to, row);
    } else {
        events_push(track->events, from, to - from, row);
    }
}

/* The next row in place: the model answers `delay` samples late, and beyond the input's end there is only silence. */
static void place_row(struct track *track, const float *row)
{
    const struct ssm_info *info = track->job->info;
    int64_t to = (int64_t)(++track->rows) * info->hop - info->delay, from = to - info->hop;
    if (track->job->ended && to > (int64_t)track->job->total) {
        to = (int64_t)track->job->total;
    }
    from = from > 0 ? from : 0;
    if (to > from) {
        take_row(track, (uint64_t)from, (uint64_t)to, row);
    }
}

/* A sensor's row: it is about its readings' time, less the model's delay. */
static void place_sensor_row(struct track *track, const struct cadence_hop *hop, const float *row)
{
    const struct ssm_info *info = track->job->info;
    uint64_t delay = (uint64_t)info->delay * CADENCE_TICKS / (uint64_t)info->rate;
    if (hop->gap) {
        events_cut(track->events);
    }
    if (track->rows++ == 0) {
        track->job->writer.origin = cadence_origin(hop, info->rate);
    }
    if (hop->to > delay && hop->to > hop->from) {
        take_row(track, hop->from > delay ? hop->from - delay : 0, hop->to - delay, row);
    }
}

static int check_output(const struct job *job)
{
    return ferror(job->writer.file) ? verb_fail(EX_IOERR, "can't write the output: %s", strerror(errno)) : 0;
}

static int take_sensor_hops(void *context, size_t hops)
{
    struct job *job = context;
    struct track *track = &job->tracks[0];
    for (size_t i = 0; i < hops; i++) {
        place_sensor_row(track, job->hops++, runner_out(job->runner, 0) + i * (size_t)job->info->outputs);
    }
    tag_writer_pass(&job->writer, events_open_since(track->events));
    return check_output(job);
}

/* Events that begin before this sample have all been told. */
static uint64_t passed(const struct job *job)
{
    uint64_t least = UINT64_MAX;
    for (int k = 0; k < job->streams; k++) {
        uint64_t since = events_open_since(job->tracks[k].events);
        int64_t next = (int64_t)job->tracks[k].rows * job->info->hop - job->info->delay;
        since = next >= 0 && (uint64_t)next < since ? (uint64_t)next : since;
        least = since < least ? since : least;
    }
    return least;
}

static int take_hops(void *context, size_t hops)
{
    struct job *job = context;
    size_t outputs = (size_t)job->info->outputs;
    for (size_t i = 0; i < hops; i++) {
        for (int k = 0; k < job->streams; k++) {
            place_row(&job->tracks[k], runner_out(job->runner, k) + i * outputs);
        }
    }
    tag_writer_pass(&job->writer, passed(job));
    return check_output(job);
}

/* The best label stands for all of the input. */
static void tell_whole(struct track *track)
{
    int best = 0;
    for (int i = 1; i < track->job->labels->n; i++) {
        best = track->sums[i] > track->sums[best] ? i : best;
    }
    if (track->length > 0) {
        float score = (float)(track->sums[best] / (double)track->length);
        struct event event = {.kind = EVENT_END, .label = best, .to = track->last_to, .peak = score, .mean = score};
        tag_writer_event(&track->job->writer, track->channel, &event);
    }
}

/* Push the model's delay out of a sound. */
static int push_end(struct job *job)
{
    int status = 0;
    job->ended = true;
    while (status == 0 && job->tracks[0].rows * (uint64_t)job->info->hop < job->total + (uint64_t)job->info->delay) {
        status = runner_push(job->runner, NULL, (size_t)job->info->hop);
    }
    return status;
}

static void finish(struct job *job)
{
    for (int k = 0; k < job->streams; k++) {
        if (whole) {
            tell_whole(&job->tracks[k]);
        }
        events_cut(job->tracks[k].events);
    }
    tag_writer_finish(&job->writer);
}

static int check_scores(const struct job *job)
{
    if (whole) {
        return verb_fail(EX_USAGE, "--scores is a line a hop, and --whole one label for all of IN: choose one of them");
    }
    return job->writer.format == TAG_JSONL
               ? 0
               : verb_fail(EX_USAGE, "--scores gives lines of JSON; --format %s is for events", format);
}

static int set_format(struct job *job)
{
    static const char *const names[] = {[TAG_JSONL] = "jsonl", [TAG_AUDACITY] = "audacity", [TAG_VTT] = "vtt"};
    format = verb_json ? "jsonl" : format;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(format, names[i]) == 0) {
            job->writer.format = (enum tag_format)i;
            return scores ? check_scores(job) : 0;
        }
    }
    return verb_fail(EX_USAGE, "--format is jsonl, audacity or vtt, not \"%s\"", format);
}

/* --threshold for every label; `off` keeps its share of `on`. */
static void set_thresholds(struct labels *labels)
{
    for (int i = 0; i < labels->n && threshold >= 0; i++) {
        struct ssm_label *label = &labels->at[i];
        float share = label->on > 0 ? label->off / label->on : 1;
        label->on = (float)threshold;
        label->off = share * label->on;
    }
}

static int open_tracks(struct job *job, int ticks)
{
    job->streams = runner_streams(job->runner);
    job->labels = labels_create(runner_engine(job->runner));
    job->tracks = calloc((size_t)job->streams, sizeof *job->tracks);
    bool fine = job->labels != NULL && job->tracks != NULL;
    if (fine) {
        set_thresholds(job->labels);
    }
    for (int k = 0; fine && k < job->streams; k++) {
        struct track *track = &job->tracks[k];
        track->job = job;
        track->channel = k;
        track->events = labels_events(job->labels, ticks, tell, track);
        track->sums = calloc((size_t)job->labels->n, sizeof *track->sums);
        fine = track->events != NULL && track->sums != NULL;
    }
    job->writer.file = stdout;
    job->writer.labels = job->labels;
    job->writer.source = job->path;
    job->writer.channels = job->streams;
    job->writer.rate = ticks;
    return fine ? 0 : verb_fail(EX_OSERR, "out of memory");
}

static void close_job(struct job *job)
{
    for (int k = 0; job->tracks != NULL && k < job->streams; k++) {
        events_destroy(job->tracks[k].events);
        free(job->tracks[k].sums);
    }
    free(job->tracks);
    free(job->labels);
    runner_destroy(job->runner);
}

static int open_runner(struct job *job, int sound_rate, int channels, runner_take *take)
{
    struct ssm_error err = {0};
    struct runner_options options = {.model = model != NULL ? model : "tag-audio", .device = device, .precision = precision, .task = "tag",
                                     .rate = sound_rate, .channels = channels, .threads = threads, .step = step,
                                     .take = take, .context = job};
    job->runner = runner_create(&options, &err);
    if (job->runner == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    job->info = runner_describe(job->runner);
    return 0;
}

/* All of a sound file through the model. A damaged one is tagged up to the damage, which *err then tells. */
static int push_sound(struct job *job, struct sound_file *in, const struct sound_file_info *info,
                      struct sound_file_error *err)
{
    size_t channels = (size_t)info->channels, block = BLOCK / channels + 1, n = block;
    uint64_t taken = 0;
    float *samples = malloc(block * channels * sizeof *samples);
    int status = samples != NULL ? 0 : verb_fail(EX_OSERR, "out of memory");
    while (status == 0 && n == block) {
        n = sound_file_read(in, samples, block, err);
        taken += n;
        status = runner_push(job->runner, samples, n);
    }
    free(samples);
    uint64_t from = (uint64_t)info->rate, to = (uint64_t)job->info->rate;
    job->total = (taken * to + from - 1) / from;
    status = status != 0 ? status : push_end(job);
    finish(job);
    return status;
}

static int tag_opened_sound(struct job *job, struct sound_file *in, const struct sound_file_info *info)
{
    struct sound_file_error damage = {0};
    int status = open_runner(job, info->rate, info->channels, take_hops);
    if (status != 0 || (status = open_tracks(job, job->info->rate)) != 0) {
        return status;
    }
    tag_writer_begin(&job->writer);
    status = push_sound(job, in, info, &damage);
    if (sound_file_bad(in) > 0) {
        verb_note("%s: %llu values were NaN or infinite and were taken as 0", job->path,
                  (unsigned long long)sound_file_bad(in));
    }
    if (status == 0 && damage.code != 0) {
        status = verb_fail(damage.code, "%s; what is before that was tagged", damage.text);
    }
    return status;
}

static int tag_sound(struct job *job)
{
    struct sound_file_info info;
    struct sound_file_error err;
    struct sound_file *in = sound_file_open(job->path, &info, &err);
    if (in == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    if (info.note[0]) {
        verb_note("%s: %s", job->path, info.note);
    }
    int status = tag_opened_sound(job, in, &info);
    sound_file_close(in);
    return status;
}

/* Milliseconds taken for seconds, say: the model would hear something a thousand times as slow. */
static void note_interval(const struct job *job, const struct sensor_file_counts *counts)
{
    double own = 1.0 / job->info->rate;
    if (counts->interval > 10 * own || (counts->interval >= 0 && counts->interval < own / 10)) {
        verb_note("%s: readings come %.6g s apart (median), and %s takes one every %.6g s: are the times in seconds?", job->path,
                  counts->interval, job->info->name, own);
    }
}

/* What a user should know of the lines; no line that could be read is an error. */
static int note_lines(const struct job *job, const struct sensor_file_counts *counts)
{
    note_interval(job, counts);
    if (counts->error != 0) {
        return verb_fail(counts->lines > 0 ? EX_IOERR : EX_NOINPUT, "%s: %s%s", job->path, strerror(counts->error),
                         counts->lines > 0 ? "; what is before that was tagged" : "");
    }
    if (counts->bad > 0 && counts->readings == 0) {
        return verb_fail(EX_DATAERR, "%s:%llu: %s: \"%s\"", job->path, (unsigned long long)counts->first_bad, counts->why,
                         counts->quote);
    }
    if (counts->bad > 0) {
        verb_note("%s: %llu lines were not read; the first is line %llu: %s: \"%s\"", job->path,
                  (unsigned long long)counts->bad, (unsigned long long)counts->first_bad, counts->why, counts->quote);
    }
    if (counts->missing + counts->late > 0) {
        verb_note("%s: %llu readings lack a value and %llu are out of order; the model was told the time over them", job->path,
                  (unsigned long long)counts->missing, (unsigned long long)counts->late);
    }
    return counts->readings > 0 ? 0 : verb_fail(EX_DATAERR, "%s: no readings", job->path);
}

/* All of a sensor's file through the model, a block of hops at a time. */
static int push_sensor(struct job *job, struct sensor_file *in)
{
    size_t inputs = (size_t)job->info->inputs, n = SENSOR_HOPS;
    float *values = malloc(n * inputs * sizeof *values), *elapsed = malloc(n * sizeof *elapsed);
    struct cadence_hop *hops = malloc(n * sizeof *hops);
    int status = values != NULL && elapsed != NULL && hops != NULL ? 0 : verb_fail(EX_OSERR, "out of memory");
    while (status == 0 && n == SENSOR_HOPS) {
        n = sensor_file_read(in, values, elapsed, hops, SENSOR_HOPS);
        job->hops = hops;
        status = runner_push_hops(job->runner, values, elapsed, n);
    }
    finish(job);
    free(values);
    free(elapsed);
    free(hops);
    return status != 0 ? status : note_lines(job, sensor_file_counts(in));
}

static int tag_sensor(struct job *job, enum reading_format lines)
{
    struct ssm_error err = {0};
    if (model == NULL) {
        return verb_fail(EX_USAGE, "%s: a sensor's recording needs a sensor's model: --model motion or vibration-tags", job->path);
    }
    int status = open_runner(job, 0, 0, take_sensor_hops);
    if (status != 0 || (status = open_tracks(job, CADENCE_TICKS)) != 0) {
        return status;
    }
    struct sensor_file_options wanted = {.path = job->path, .format = lines, .fields = fields, .rate = rate};
    struct sensor_file *in = sensor_file_open(&wanted, runner_engine(job->runner), &err);
    if (in == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    tag_writer_begin(&job->writer);
    status = push_sensor(job, in);
    sensor_file_close(in);
    return status;
}

static bool ends_in(const char *path, const char *ending)
{
    size_t n = strlen(path), m = strlen(ending);
    return n > m && strcasecmp(path + n - m, ending) == 0;
}

/* Sound, or a sensor's lines: as --input says, or by the ending. */
static int tag_input(struct job *job)
{
    bool automatic = strcmp(input, "auto") == 0;
    if (strcmp(input, "csv") == 0 || (automatic && ends_in(job->path, ".csv"))) {
        return tag_sensor(job, READING_CSV);
    }
    if (strcmp(input, "jsonl") == 0 || (automatic && ends_in(job->path, ".jsonl"))) {
        return tag_sensor(job, READING_JSONL);
    }
    if (!automatic && strcmp(input, "sound") != 0) {
        return verb_fail(EX_USAGE, "--input is sound, csv or jsonl, not \"%s\"", input);
    }
    return tag_sound(job);
}

static int tag_one(const char *path)
{
    struct job job = {.path = path};
    int status = set_format(&job);
    if (status != 0) {
        return status;
    }
    status = tag_input(&job);
    if (job.runner != NULL && runner_blown(job.runner) > 0) {
        verb_note("%s: the model gave no number for %llu hops; they count as 0", job.path,
                  (unsigned long long)runner_blown(job.runner));
    }
    close_job(&job);
    return status;
}

/* One after the other; the first that fails says the exit status, and the others are tagged all the same. */
static int run_tag(char **arguments, int n)
{
    int first = 0;
    if (n > 1 && strcmp(format, "jsonl") != 0 && !verb_json) {
        return verb_fail(EX_USAGE, "--format %s is of one recording; jsonl tells of which each event is", format);
    }
    for (int i = 0; i < n && first != EX_USAGE && !ferror(stdout); i++) {
        int status = tag_one(arguments[i]);
        first = first != 0 ? first : status;
    }
    return first;
}

static const struct verb_option options[] = {
    {"model", "M", OPTION_TEXT, &model, 0, 0, "a name from \"ssm models\" or a .safetensors file (tag-audio)"},
    {"format", "F", OPTION_TEXT, &format, 0, 0,
     "jsonl: a line of JSON an event; audacity: a label track;\nvtt: WebVTT subtitles (jsonl)"},
    {"threshold", "P", OPTION_REAL, &threshold, 0, 1,
     "the probability at which events begin, for every label\n(each label's own)"},
    {"scores", NULL, OPTION_FLAG, &scores, 0, 0, "no events: a line of JSON a hop with every label's probability"},
    {"whole", NULL, OPTION_FLAG, &whole, 0, 0, "one event for all of IN: the label that is best at its end, or, of\nlabels that don't exclude each other, on average"},
    {"input", "KIND", OPTION_TEXT, &input, 0, 0, "what IN is: sound, csv or jsonl (by its ending)"},
    {"fields", "A,B", OPTION_TEXT, &fields, 0, 0, "a sensor's columns or keys, in the model's order (as the model names them)"},
    {"rate", "N", OPTION_REAL, &rate, 0, 10000000,
     "a sensor's readings a second, where they carry no time (the model's)"},
    {"device", "D", OPTION_TEXT, &device, 0, 0, "auto, cpu, cuda or cuda:1 (auto)"},
    {"precision", "P", OPTION_TEXT, &precision, 0, 0, "of a GPU's products: fp32, tf32, bf16 or bf16-state (auto)"},
    {"step", NULL, OPTION_FLAG, &step, 0, 0,
     "hop by hop as the daemon does it, instead of the parallel scan;\nslower, the same scores to 1e-4"},
    {"threads", "N", OPTION_NUMBER, &threads, 1, 1024, "cores to use (all; 1 with --step)"},
    {0},
};

const struct verb ssm_tag = {
    .name = "tag",
    .arguments = "IN...",
    .summary = "tell what is in a recording, and when",
    .details =
        "Print the events a tag model hears in IN: label, beginning, end, probability. IN is any file libsndfile reads, at\n"
        "any sample rate, or - for a WAV on standard input; each channel is tagged on its own. An event begins where a label's\n"
        "probability reaches its threshold and ends where it falls below a lower one; both, and the shortest event, come with\n"
        "the model. Times are seconds in IN, with the model's delay taken off; p is the highest probability in the event, mean\n"
        "the average, mid the AudioSet id where there is one, and cut is true where an event did not end by itself.\n"
        "Memory stays constant whatever the length (WebVTT waits for the longest event). Several INs are tagged one by one.\n\n"
        "IN may be a sensor's recording too, .csv or .jsonl: columns, or keys, with the names of the model's fields become its\n"
        "channels; t, time or timestamp says when (seconds, or a date), and t0 and t1 are in that time; subtitles\n"
        "and label tracks count from the first reading where that is a date. What is missing, late or irregular becomes elapsed\n"
        "time for the model, never a made-up value; a pause of more than a second ends events. Lines that can't be read are\n"
        "counted, and the first is quoted.\n\n"
        "An IN that is cut short or damaged is tagged up to the damage, and the exit status is 65.",
    .examples = "  ssm tag street.flac\n"
                "  ssm tag talk.wav --model vad --format audacity >talk.txt\n"
                "  ssm tag film.wav --format vtt >film.vtt\n"
                "  ssm tag motor.csv --model vibration-tags\n"
                "  ssm tag *.wav --model digits --whole",
    .options = options,
    .least = 1,
    .most = 1 << 20,
    .run = run_tag,
};
