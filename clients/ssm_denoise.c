/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "clients/belt.h"
#include "clients/cleaner.h"
#include "clients/json.h"
#include "clients/state_file.h"
#include "clients/verb.h"
#include "dsp/clock.h"
#include "dsp/sound_file.h"

/* BLOCKS of up to BLOCK values are on the way to the model, and as many behind it. A block is two parts of a GPU's scan at
 * 16 kHz: one comes and goes while the other is computed. */
enum { BLOCKS = 3, BLOCK = 5 << 18, INTERRUPTED = 130, STOPPED = -1 };

static const char *model = "denoise-16k", *device = "auto", *precision = "auto", *state_in, *state_out;
static int threads;
static bool step, quiet;
static double strength = INFINITY;

static volatile sig_atomic_t interrupted;

struct job {
    const char *in_path, *out_path;
    struct sound_file *in, *out;
    struct sound_file_info info;
    struct cleaner *cleaner;
    struct belt *raw, *clean;   /* from the thread that reads, to the thread that writes            */
    struct sound_file_error read_error, write_error; /* these threads'                                */
    pthread_t reader;
    bool reading;               /* it was started      */
    int64_t taken;              /* samples read        */
    double start, told, finish; /* seconds             */
    struct ssm_info model;      /* what there is to tell when the cleaner is gone */
    struct ssm_health health;
    struct cleaner_counts counts;
    double device_mib;          /* of the devices' memory, all of them together; 0 on the processor */
};

static void interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

/* Samples of every channel in a block. */
static size_t block_samples(const struct job *job)
{
    size_t channels = (size_t)job->info.channels;
    return channels < BLOCK ? BLOCK / channels : 1;
}

/* A thread of its own. A damaged IN is read up to the damage. */
static void *read_blocks(void *arg)
{
    struct job *job = arg;
    size_t block = block_samples(job), n = block;
    for (float *room; n == block && (room = belt_room(job->raw)) != NULL;) {
        n = sound_file_read(job->in, room, block, &job->read_error);
        belt_put(job->raw, n * (size_t)job->info.channels);
    }
    belt_stop(job->raw);
    return NULL;
}

/* And another. */
static void *write_blocks(void *arg)
{
    struct job *job = arg;
    size_t values;
    for (const float *samples; (samples = belt_take(job->clean, &values)) != NULL; belt_give_back(job->clean)) {
        if (!sound_file_write(job->out, samples, values / (size_t)job->info.channels, &job->write_error)) {
            belt_stop(job->clean);
            break;
        }
    }
    return NULL;
}

static void print_clock(FILE *file, double seconds)
{
    long whole = (long)seconds;
    if (whole >= 3600) {
        fprintf(file, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    } else {
        fprintf(file, "%ld:%02ld", whole / 60, whole % 60);
    }
}

static void print_progress(struct job *job)
{
    double at = (double)cleaner_counts(job->cleaner)->given / job->info.rate, took;
    double length = (double)job->info.length / job->info.rate;
    if (quiet || verb_json || !isatty(STDERR_FILENO) || clock_seconds() - job->told < 0.2) {
        return;
    }
    job->told = clock_seconds();
    took = job->told - job->start;
    fputc('\r', stderr);
    print_clock(stderr, at);
    if (job->info.length > 0) {
        fprintf(stderr, " of ");
        print_clock(stderr, length);
        fprintf(stderr, ", %.0f %%", 100 * at / length);
    }
    fprintf(stderr, ", %.1f times real time", at / took);
    if (job->info.length > 0 && at > 0) {
        fprintf(stderr, ", ");
        print_clock(stderr, took * (length - at) / at);
        fprintf(stderr, " left");
    }
    fprintf(stderr, "\033[K");
}

static void end_progress(const struct job *job)
{
    if (job->told > job->start) {
        fprintf(stderr, "\r\033[K");
    }
}

/* The cleaner's way out: to the thread that writes, and an end to the run when someone asks for it. */
static int pass_on(void *context, const float *samples, size_t n)
{
    struct job *job = context;
    size_t values = n * (size_t)job->info.channels, block = block_samples(job) * (size_t)job->info.channels;
    if (interrupted) {
        return verb_fail(INTERRUPTED, "interrupted; %s was not written", job->out_path);
    }
    print_progress(job);
    for (size_t at = 0; at < values; at += block) {
        size_t piece = values - at < block ? values - at : block;
        float *room = belt_room(job->clean);
        if (room == NULL) {
            return STOPPED; /* write_error says why */
        }
        memcpy(room, samples + at, piece * sizeof *room);
        belt_put(job->clean, piece);
    }
    return 0;
}

static double peak_mib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024;
}

/* The cleaner has done its part: keep what there is to tell of it. A GPU takes its time to close, and meanwhile the rest
 * is written. */
static void retire_cleaner(struct job *job)
{
    struct ssm_device_info device;
    job->model = *cleaner_describe(job->cleaner);
    job->health = *ssm_health(cleaner_engine(job->cleaner));
    job->counts = *cleaner_counts(job->cleaner);
    for (int i = 0; ssm_describe_device(cleaner_engine(job->cleaner), i, &device); i++) {
        job->device_mib += strncmp(device.name, "cpu", 3) != 0 ? (double)device.bytes / (1 << 20) : 0;
    }
    if (state_out == NULL) { /* else its state is yet to be saved */
        cleaner_destroy(job->cleaner);
        job->cleaner = NULL;
    }
}

static void print_json(const struct job *job)
{
    const struct ssm_info *info = &job->model;
    double audio = (double)job->taken / job->info.rate, took = job->finish - job->start;
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "in", job->in_path);
    json_text(&json, "out", job->out_path);
    json_whole(&json, "rate", job->info.rate);
    json_whole(&json, "channels", job->info.channels);
    json_whole(&json, "samples", job->taken);
    json_number(&json, "audio_s", audio);
    json_number(&json, "took_s", took);
    json_number(&json, "times_real_time", audio / took);
    json_number(&json, "rtf", took / audio);
    json_text(&json, "model", info->name);
    json_text(&json, "digest", info->digest);
    json_text(&json, "device", info->device);
    json_text(&json, "way", step ? "step" : "scan");
    json_number(&json, "peak_mib", peak_mib());
    json_number(&json, "device_mib", job->device_mib);
    json_whole(&json, "device_faults", (long long)job->health.faults);
    json_whole(&json, "not_finite", (long long)sound_file_bad(job->in));
    json_whole(&json, "beyond_full_scale", (long long)sound_file_bad(job->out));
    json_whole(&json, "blown_hops", (long long)job->counts.blown);
    json_close(&json, '}');
    putchar('\n');
}

static void print_summary(const struct job *job)
{
    const struct ssm_info *info = &job->model;
    double audio = (double)job->taken / job->info.rate, took = job->finish - job->start;
    if (job->taken == 0) {
        printf("%s: empty, because %s holds no samples\n", job->out_path, job->in_path);
        return;
    }
    printf("%s: %.2f s of audio, %d channel%s, in %.2f s: %.1f times real time, RTF %.4f (%s, %s, %s", job->out_path,
           audio, job->info.channels, job->info.channels > 1 ? "s" : "", took, audio / took, took / audio, info->name,
           info->device, step ? "hop by hop" : "scan");
    if (job->device_mib > 0) {
        printf(", %.0f MiB of its memory", job->device_mib);
    }
    puts(")");
    if (job->info.rate > info->rate) {
        printf("%s: nothing above %d Hz, because %s works at %d Hz\n", job->out_path, info->rate / 2, info->name,
               info->rate);
    }
}

/* What a user should know of the data even with --quiet. */
static void note_oddities(const struct job *job)
{
    unsigned long long odd = sound_file_bad(job->in), loud = sound_file_bad(job->out);
    unsigned long long blown = job->counts.blown;
    if (job->health.faults > 0) {
        verb_note("%s; the processor did the rest", job->health.last);
    }
    if (odd > 0) {
        verb_note("%s: %llu values were NaN or infinite and were taken as 0", job->in_path, odd);
    }
    if (loud > 0) {
        verb_note("%s: %llu values lie beyond full scale", job->out_path, loud);
    }
    if (blown > 0) {
        verb_note("%s: %llu hops are silent because the model gave no number for them", job->out_path, blown);
    }
}

static void stop_reading(struct job *job)
{
    if (job->reading) {
        belt_stop(job->raw);
        pthread_join(job->reader, NULL);
        job->reading = false;
    }
}

/* Reading begins before the model is open. */
static int start_reading(struct job *job)
{
    size_t values = block_samples(job) * (size_t)job->info.channels;
    job->raw = belt_create(BLOCKS, values);
    job->clean = belt_create(BLOCKS, values);
    if (job->raw == NULL || job->clean == NULL) {
        return verb_fail(EX_OSERR, "out of memory");
    }
    job->reading = pthread_create(&job->reader, NULL, read_blocks, job) == 0;
    return job->reading ? 0 : verb_fail(EX_OSERR, "can't start a thread");
}

/* Everything that is read, through the cleaner. */
static int clean_blocks(struct job *job)
{
    int status = 0;
    size_t values;
    for (const float *samples; status == 0 && (samples = belt_take(job->raw, &values)) != NULL; belt_give_back(job->raw)) {
        size_t n = values / (size_t)job->info.channels;
        job->taken += (int64_t)n;
        status = cleaner_push(job->cleaner, samples, n);
    }
    return status;
}

/* The whole of IN to OUT, reading, computing and writing at the same time. A damaged IN is cleaned up to the damage, which
 * read_error then tells. */
static int run_through(struct job *job)
{
    pthread_t writer;
    if (pthread_create(&writer, NULL, write_blocks, job) != 0) {
        return verb_fail(EX_OSERR, "can't start a thread");
    }
    int status = clean_blocks(job);
    stop_reading(job);
    if (status == 0 && (state_out == NULL || job->read_error.code != 0)) {
        status = cleaner_finish(job->cleaner);
    }
    belt_stop(job->clean);
    retire_cleaner(job);
    pthread_join(writer, NULL);
    end_progress(job);
    return job->write_error.code != 0 ? verb_fail(job->write_error.code, "%s", job->write_error.text) : status;
}

static int load_state(struct job *job)
{
    struct ssm_error err = {0};
    FILE *file = fopen(state_in, "rb");
    if (file == NULL) {
        return verb_fail(EX_NOINPUT, "%s: %s", state_in, strerror(errno));
    }
    int status = cleaner_load(job->cleaner, file, &err);
    fclose(file);
    return status == 0 ? 0 : verb_fail(err.code, "%s: %s", state_in, err.text);
}

static int save_state(struct job *job)
{
    struct ssm_error err = {0};
    struct state_file file;
    char why[512];
    int status = 0;
    if (!state_file_create(&file, state_out)) {
        status = verb_fail(EX_CANTCREAT, "%s: %s", state_out, strerror(errno));
    } else if (cleaner_save(job->cleaner, file.file, &err) != 0) {
        status = verb_fail(err.code, "%s: %s", state_out, err.text);
    } else if (!state_file_commit(&file, why, sizeof why)) {
        status = verb_fail(EX_IOERR, "%s: %s", state_out, why);
    }
    state_file_close(&file);
    return status;
}

/* A link is written in place: one that leads back to IN would eat what is still to be read. */
static bool is_link_to_input(const struct job *job)
{
    struct stat in, out, link;
    return lstat(job->out_path, &link) == 0 && S_ISLNK(link.st_mode) && stat(job->out_path, &out) == 0 &&
           stat(job->in_path, &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino;
}

static bool is_same_file(const char *path, const char *other)
{
    struct stat a, b;
    return strcmp(path, other) == 0 ||
           (stat(path, &a) == 0 && stat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino);
}

static int open_job(struct job *job)
{
    struct sound_file_error file_err;
    struct ssm_error err = {0};
    if (state_out != NULL && (is_same_file(state_out, job->in_path) || is_same_file(state_out, job->out_path))) {
        return verb_fail(EX_USAGE, "--state-out %s would replace the recording of that name; give it a name of its own",
                         state_out);
    }
    if ((state_in != NULL || state_out != NULL) && isfinite(strength)) {
        return verb_fail(EX_USAGE, "--strength can't go from part to part; use --state-in and --state-out without it");
    }
    job->in = sound_file_open(job->in_path, &job->info, &file_err);
    if (job->in == NULL) {
        return verb_fail(file_err.code, "%s", file_err.text);
    }
    if (job->info.note[0]) {
        verb_note("%s: %s", job->in_path, job->info.note);
    }
    if (start_reading(job) != 0) {
        return EX_OSERR;
    }
    struct cleaner_options options = {.model = model, .device = device, .precision = precision, .rate = job->info.rate,
                                      .channels = job->info.channels, .threads = threads, .step = step,
                                      .strength_db = (float)strength, .write = pass_on, .context = job};
    job->cleaner = cleaner_create(&options, &err);
    if (job->cleaner == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    const struct ssm_info *info = cleaner_describe(job->cleaner);
    if ((state_in != NULL || state_out != NULL) && info->rate != job->info.rate) {
        return verb_fail(EX_DATAERR, "%s: --state-in and --state-out need a file at the model's %d Hz, this one has %d Hz",
                         job->in_path, info->rate, job->info.rate);
    }
    if (is_link_to_input(job)) {
        return verb_fail(EX_CANTCREAT, "%s: a link to %s; name the file itself to replace it", job->out_path, job->in_path);
    }
    job->out = sound_file_create(job->out_path, &job->info, true, &file_err);
    if (job->out == NULL) {
        return verb_fail(file_err.code, "%s", file_err.text);
    }
    return 0;
}

static int run_job(struct job *job)
{
    const struct sound_file_error *damage = &job->read_error;
    struct sound_file_error err;
    int status = state_in != NULL ? load_state(job) : 0;
    if (status != 0 || (status = run_through(job)) != 0) {
        return status;
    }
    if (!sound_file_commit(job->out, &err)) {
        return verb_fail(err.code, "%s", err.text);
    }
    job->finish = clock_seconds();
    note_oddities(job);
    if (damage->code != 0) {
        return verb_fail(damage->code, "%s; %s holds the %lld samples before that%s", damage->text, job->out_path,
                         (long long)job->taken, state_out ? ", and no state was saved" : "");
    }
    if (state_out != NULL && (status = save_state(job)) != 0) {
        return status;
    }
    if (verb_json) {
        print_json(job);
    } else if (!quiet) {
        print_summary(job);
    }
    return 0;
}

static int run_denoise(char **arguments, int n)
{
    (void)n;
    struct job job = {.in_path = arguments[0], .out_path = arguments[1], .start = clock_seconds()};
    job.told = job.start;
    struct sigaction action = {.sa_handler = interrupt}, hangup;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) { /* the terminal is closed; with nohup it goes on */
        sigaction(SIGHUP, &action, NULL);
    }
    int status = open_job(&job);
    if (status == 0) {
        status = run_job(&job);
    }
    stop_reading(&job);
    sound_file_close(job.out);
    sound_file_close(job.in);
    cleaner_destroy(job.cleaner);
    belt_destroy(job.raw);
    belt_destroy(job.clean);
    return status;
}

static const struct verb_option options[] = {
    {"model", "M", OPTION_TEXT, &model, 0, 0, "a name from \"ssm models\" or a .safetensors file (denoise-16k)"},
    {"device", "D", OPTION_TEXT, &device, 0, 0, "auto, cpu, cuda or cuda:1 (auto)"},
    {"precision", "P", OPTION_TEXT, &precision, 0, 0, "of a GPU's products: fp32, tf32, bf16 or bf16-state (auto)"},
    {"step", NULL, OPTION_FLAG, &step, 0, 0,
     "hop by hop as the daemon does it, instead of the parallel scan;\nslower, the same samples to 1e-4"},
    {"strength", "DB", OPTION_REAL, &strength, 0, 100,
     "attenuate by at most so many dB: that much of IN stays in OUT\n(no limit)"},
    {"threads", "N", OPTION_NUMBER, &threads, 1, 1024, "cores to use (all; 1 with --step)"},
    {"state-out", "F", OPTION_TEXT, &state_out, 0, 0,
     "IN is not the end: save where it stops to F, and keep what\ncan't be known without the next part out of OUT"},
    {"state-in", "F", OPTION_TEXT, &state_in, 0, 0,
     "go on from the F of the part before; OUT begins with what\nthat part kept back"},
    {"quiet", NULL, OPTION_FLAG, &quiet, 0, 0, "no progress and no summary; warnings and errors remain"},
    {0},
};

const struct verb ssm_denoise = {
    .name = "denoise",
    .arguments = "IN OUT",
    .summary = "take the noise out of a recording",
    .details =
        "Clean a recording. IN is any file libsndfile reads (WAV, FLAC, Ogg, Opus, MP3, AIFF, W64, RF64 and more) at any\n"
        "sample rate; each of its channels is cleaned on its own. OUT gets IN's rate, channels and length, aligned to the\n"
        "sample, and IN's sample format where OUT's container has it; OUT's ending says the container: .wav .flac .ogg\n"
        ".opus .w64 .rf64. Memory stays constant whatever the length. OUT appears only when it is whole, so IN and OUT\n"
        "may be the same file.\n\n"
        "An IN that is cut short or damaged is cleaned up to the damage; OUT then holds that part, and the exit status\n"
        "is 65. Where only its header miscounts, or was never finished, all that is there is taken, and a note says so.\n"
        "A recording in several parts, at the model's own rate, goes through part by part with --state-out and\n"
        "--state-in; the OUTs joined are what the whole would have given.",
    .examples = "  ssm denoise noisy.wav clean.wav\n"
                "  ssm denoise talk.flac talk.ogg --model ./mine.safetensors --threads 4\n"
                "  ssm denoise stage.wav softer.wav --strength 12\n"
                "  ssm denoise part1.wav clean1.wav --state-out talk.state\n"
                "  ssm denoise part2.wav clean2.wav --state-in talk.state",
    .options = options,
    .least = 2,
    .most = 2,
    .run = run_denoise,
};
