/* SPDX-License-Identifier: MIT */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "clients/json.h"
#include "clients/verb.h"
#include "dsp/clock.h"
#include "model/ssm.h"

/* SIGNAL: seconds of sound that every stream begins somewhere else of. RING: hops of it a stream has for itself and steps
 * through again and again, so that a step's input is cold memory, as it is where sound comes from outside. SCAN: seconds of
 * audio in one scan, or more where the device likes more; SCAN_FOR: seconds of clock a scan's speed is measured over;
 * WARM_UP: of steps before those that count. */
enum { WARM_UP = 1, SIGNAL = 8, RING = 16, SCAN = 30, SCAN_FOR = 2, MOST_STREAMS = 1 << 20 };

/* Steps of a trial in the search for the most streams, and before them; and a p99.9 is one of at least so many. The number
 * found is held up to HOLDS times, AGAIN times before it is lowered: what disturbs the machine for a moment isn't too much. */
enum { TRIAL_STEPS = 40, TRIAL_WARM_UP = 10, SURE_STEPS = 1000, HOLDS = 16, AGAIN = 2, TRIALS = 64 };
enum { GPU_FIRST = 8192 }; /* streams of a GPU that the search begins with: fewer say little about what one more costs */

static const char *model = "denoise-16k", *device = "auto", *precision = "auto", *streams_text = "auto";
static int threads, seconds = 10;
static bool paced;

/* Where a step's time went: struct ssm_spent's spans, what was spent around the device (the engine, copies of states), and how
 * long the device was busy. */
enum { FIRST, FEED, WAIT, HAND, AROUND, BUSY, STAGES };
static const char *const stage_names[STAGES] = {"first", "feed", "wait", "hand", "around", "busy"};

struct step { /* seconds */
    double took, stages[STAGES];
};

struct timing { /* of one step, seconds */
    int streams, room, threads, steps;
    double p50, p90, p99, p999, mean;
    double stages[STAGES], late_stages[STAGES]; /* the means of all steps, and of the slowest 1 of 100 */
    double stolen;       /* of the time that processors ran, what the machine's owner gave to others */
    long preempted;      /* times the stepping thread had to make room */
    double copy_s;       /* age of the oldest copy of a state that a failure is survived with */
    double device_mib;   /* of GPUs' memory; 0: the processor */
    int gpus;
    bool in_time;        /* p99.9 within the hop */
};

struct load { /* an engine full of streams, each with its own samples */
    struct ssm_engine *engine;
    const struct ssm_info *info;
    struct ssm_hop *hops;
    float *in, *out; /* (room, RING, inputs), (room, outputs)  the engine's memory */
    int room, n, turn; /* n: streams that are stepped */
    double due;        /* paced: when the next step is, by the clock */
};

struct trial { /* what a search went by */
    int streams, steps;
    double p50, p999;
    bool in_time;
};

struct report {
    struct ssm_info info;
    struct timing one, many;
    struct trial trials[TRIALS]; /* the first so many */
    int n_trials;
    double scan_one, scan_all; /* times real time */
    int cores;
    double peak_mib;
};

static float *signal_samples; /* SIGNAL seconds */
static size_t signal_length;

/* splitmix64, uniform in [0, 1) */
static double draw(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* Something like speech in noise: low-passed noise that swells four times a second, over a steady floor. */
static int make_signal(const struct ssm_info *info)
{
    size_t least = 2 * RING * (size_t)info->inputs;
    double rate = (double)info->rate * info->channels;
    uint64_t seed = 1;
    double low = 0;
    signal_length = (size_t)(SIGNAL * rate) > least ? (size_t)(SIGNAL * rate) : least;
    signal_samples = malloc(signal_length * sizeof *signal_samples);
    for (size_t i = 0; signal_samples != NULL && i < signal_length; i++) {
        double swell = sin(4 * M_PI * (double)i / rate);
        low += 0.1 * (2 * draw(&seed) - 1 - low);
        signal_samples[i] = (float)(low * swell * swell + 0.02 * (2 * draw(&seed) - 1));
    }
    return signal_samples != NULL ? 0 : EX_OSERR;
}

static void unload(struct load *load)
{
    ssm_close(load->engine);
    free(load->hops);
}

/* Everybody his own RING hops of the signal. */
static void give_sound(struct load *load)
{
    size_t ring = RING * (size_t)load->info->inputs;
    uint64_t seed = 7;
    for (size_t i = 0; i < (size_t)load->room; i++) {
        size_t from = (size_t)(draw(&seed) * (double)(signal_length - ring));
        memcpy(load->in + i * ring, signal_samples + from, ring * sizeof(float));
    }
}

/* Gives 0, or an exit status with *err. */
static int fill(struct load *load, int n, int n_threads, struct ssm_error *err)
{
    struct ssm_options options = {.device = device, .precision = precision, .streams = n, .threads = n_threads};
    *load = (struct load){.engine = ssm_open(model, &options, err), .room = n, .n = n};
    if (load->engine == NULL) {
        return err->code;
    }
    load->info = ssm_describe(load->engine);
    size_t inputs = (size_t)load->info->inputs, outputs = (size_t)load->info->outputs, rows = (size_t)n;
    load->hops = calloc(rows, sizeof *load->hops);
    load->in = ssm_take_memory(load->engine, rows * RING * inputs * sizeof(float));
    load->out = ssm_take_memory(load->engine, rows * outputs * sizeof(float));
    if (!load->hops || !load->in || !load->out) {
        unload(load);
        *err = (struct ssm_error){EX_OSERR, "out of memory"};
        return EX_OSERR;
    }
    give_sound(load);
    for (size_t i = 0; i < rows; i++) {
        load->hops[i] = (struct ssm_hop){.out = load->out + i * outputs, .count = 1};
        ssm_stream_open(load->engine, &load->hops[i].stream);
    }
    return 0;
}

/* The device that took longest; the rest is the engine's and, with several, the fleet's. */
static void tell_stages(const struct ssm_engine *engine, struct step *step)
{
    struct ssm_device_info info;
    double most = 0;
    for (int i = 0; ssm_describe_device(engine, i, &info); i++) {
        const struct ssm_spent *spent = &info.spent;
        double all = spent->first + spent->feed + spent->wait + spent->hand;
        if (all > most) {
            double stages[STAGES] = {spent->first, spent->feed, spent->wait, spent->hand, step->took - all, spent->busy};
            memcpy(step->stages, stages, sizeof stages);
            most = all;
        }
    }
}

/* Until the next hop has come, where steps are paced; gives when the step could begin. */
static double wait_for_hop(struct load *load)
{
    if (!paced) {
        return clock_seconds();
    }
    struct timespec due = {.tv_sec = (time_t)load->due, .tv_nsec = (long)(1e9 * fmod(load->due, 1))};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    double start = load->due;
    load->due += (double)load->info->hop / load->info->rate;
    return start;
}

/* One batched step on new samples, from where they are in memory to where they are wanted. */
static struct step time_step(struct load *load)
{
    size_t inputs = (size_t)load->info->inputs, turn = (size_t)load->turn++ % RING;
    for (size_t i = 0; i < (size_t)load->n; i++) {
        load->hops[i].in = load->in + (i * RING + turn) * inputs;
    }
    double due = wait_for_hop(load), start = clock_seconds();
    ssm_step(load->engine, load->hops, load->n);
    struct step step = {.took = clock_seconds() - start};
    tell_stages(load->engine, &step);
    step.took += start - due;
    return step;
}

static int compare(const void *a, const void *b)
{
    double x = ((const struct step *)a)->took, y = ((const struct step *)b)->took;
    return (x > y) - (x < y);
}

/* The q-quantile by nearest rank: with fewer than 1000 steps p99.9 is the slowest one. */
static double quantile(const struct step *sorted, int n, double q)
{
    int rank = (int)ceil(q * n) - 1;
    return sorted[rank < 0 ? 0 : rank].took;
}

static void mean_stages(const struct step *steps, int n, double *means)
{
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < STAGES; k++) {
            means[k] += steps[i].stages[k] / n;
        }
    }
}

static struct timing summarise(struct step *steps, int n)
{
    struct timing timing = {.steps = n};
    int slowest = 1 + (n - 1) / 100;
    qsort(steps, (size_t)n, sizeof *steps, compare);
    for (int i = 0; i < n; i++) {
        timing.mean += steps[i].took / n;
    }
    timing.p50 = quantile(steps, n, .5);
    timing.p90 = quantile(steps, n, .9);
    timing.p99 = quantile(steps, n, .99);
    timing.p999 = quantile(steps, n, .999);
    mean_stages(steps, n, timing.stages);
    mean_stages(steps + n - slowest, slowest, timing.late_stages);
    return timing;
}

/* What others take of the processors under the system's feet shows here only: ticks they were ready to run but didn't, and
 * ticks they ran. */
static void read_ticks(double *stolen, double *ran)
{
    double user = 0, nice = 0, system = 0, irq = 0, softirq = 0;
    FILE *file = fopen("/proc/stat", "r");
    *stolen = *ran = 0;
    if (file != NULL) {
        if (fscanf(file, "cpu %lf %lf %lf %*f %*f %lf %lf %lf", &user, &nice, &system, &irq, &softirq, stolen) == 6) {
            *ran = user + nice + system + irq + softirq + *stolen;
        }
        fclose(file);
    }
}

static long times_preempted(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nivcsw;
}

/* Of the devices: their memory (0 on the processor) and how old the oldest copy of a state is. */
static void tell_devices(const struct ssm_engine *engine, struct timing *timing)
{
    struct ssm_device_info info;
    for (int i = 0; ssm_describe_device(engine, i, &info); i++) {
        bool gpu = strncmp(info.name, "cpu", 3) != 0;
        timing->device_mib += gpu ? (double)info.bytes / (1 << 20) : 0;
        timing->gpus += gpu;
        timing->copy_s = fmax(timing->copy_s, info.copy_s);
    }
}

/* What a step takes isn't what is measured where a device failed on the way. */
static int check_health(const struct load *load, struct ssm_error *err)
{
    const struct ssm_health *health = ssm_health(load->engine);
    if (health->faults > 0) {
        *err = (struct ssm_error){.code = EX_UNAVAILABLE};
        snprintf(err->text, sizeof err->text, "a device failed under way: %s", health->last);
    }
    return health->faults > 0 ? EX_UNAVAILABLE : 0;
}

/* Time up to `planned` steps; over as soon as more than `tolerated` were late. Gives how many there were. */
static int take_steps(struct load *load, struct step *steps, int planned, int tolerated)
{
    double hop_s = (double)load->info->hop / load->info->rate;
    int n = 0, late = 0;
    load->due = clock_seconds();
    while (n < planned && late <= tolerated) {
        steps[n] = time_step(load);
        late += steps[n++].took > hop_s;
    }
    return n;
}

/* Steps that don't count, for so long. */
static void warm_up(struct load *load, double time)
{
    load->due = clock_seconds();
    for (double start = clock_seconds(); clock_seconds() - start < time;) {
        time_step(load);
    }
}

/* Step the load's streams up to `planned` times; in time when that many were and their p99.9 is. */
static int measure_load(struct load *load, int planned, int tolerated, struct timing *timing, struct ssm_error *err)
{
    struct step *steps = malloc((size_t)planned * sizeof *steps);
    double stolen[2], ran[2];
    if (steps == NULL) {
        *err = (struct ssm_error){EX_OSERR, "out of memory"};
        return EX_OSERR;
    }
    read_ticks(&stolen[0], &ran[0]);
    long preempted = times_preempted();
    *timing = summarise(steps, take_steps(load, steps, planned, tolerated));
    timing->preempted = times_preempted() - preempted;
    read_ticks(&stolen[1], &ran[1]);
    timing->stolen = ran[1] > ran[0] ? (stolen[1] - stolen[0]) / (ran[1] - ran[0]) : 0;
    timing->in_time = timing->steps == planned && timing->p999 <= (double)load->info->hop / load->info->rate;
    timing->streams = load->n;
    timing->room = load->room;
    tell_devices(load->engine, timing);
    free(steps);
    return check_health(load, err);
}

/* Step n streams for `seconds` of audio. */
static int measure(int n, int n_threads, struct timing *timing, struct ssm_error *err)
{
    struct load load;
    int status = fill(&load, n, n_threads, err);
    if (status != 0) {
        return status;
    }
    int planned = (int)fmin(INT_MAX, fmax(1, (double)seconds * load.info->rate / load.info->hop));
    warm_up(&load, WARM_UP);
    status = measure_load(&load, planned, planned, timing, err);
    timing->threads = n_threads;
    unload(&load);
    return status;
}

static void note_trial(struct report *report, const struct timing *trial, bool in_time)
{
    if (report->n_trials < TRIALS) {
        report->trials[report->n_trials++] =
            (struct trial){trial->streams, trial->steps, trial->p50, trial->p999, in_time};
    }
    if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r%d streams: p50 %.2f ms, p99.9 %.2f ms, %s\033[K", trial->streams, 1e3 * trial->p50,
                1e3 * trial->p999, in_time ? "in time" : "too late");
    }
}

/* A search for the most streams, on one engine as far as its room goes. */
struct search {
    struct load load;
    struct timing trial; /* the last */
    struct report *report;
    double hop_s;
    int n_threads, good, bad; /* the most that were in time, and the fewest that weren't; 0: none yet */
};

/* In time is what nine of ten steps keep to, the work alone; what disturbs the tenth shows when the number is held. */
static int try_streams(struct search *search, int n, struct ssm_error *err)
{
    struct load *load = &search->load;
    load->n = n;
    for (int i = 0; i < TRIAL_WARM_UP; i++) {
        time_step(load);
    }
    int status = measure_load(load, TRIAL_STEPS, TRIAL_STEPS, &search->trial, err);
    bool in_time = search->trial.p90 <= 0.98 * search->hop_s;
    *(in_time ? &search->good : &search->bad) = n;
    note_trial(search->report, &search->trial, in_time);
    return status;
}

/* As many streams as fit if each costs what it did in the last trial. */
static double as_many(const struct search *search)
{
    return 0.97 * search->hop_s / search->trial.p90 * search->trial.streams;
}

/* An engine with room for n streams; where there is no memory for so many, for half as many more than `good`, and so on. */
static int make_room(struct search *search, int n, struct ssm_error *err)
{
    int status = fill(&search->load, n, search->n_threads, err);
    while ((status == EX_OSERR || status == EX_UNAVAILABLE) && n > 1 && n > search->good) {
        n = search->good + (n - search->good) / 2;
        status = fill(&search->load, n, search->n_threads, err);
    }
    return status;
}

/* Go on to engines with more room, until one has room for too many streams or there is no memory for more. */
static int grow(struct search *search, int n, struct ssm_error *err)
{
    int status = make_room(search, n, err);
    if (status != 0) {
        return status;
    }
    while ((status = try_streams(search, search->load.room, err)) == 0 && search->bad == 0) {
        n = (int)fmin(fmin(1.15 * as_many(search), 8.0 * search->good), MOST_STREAMS);
        if (n <= search->good) {
            break;
        }
        unload(&search->load);
        if ((status = make_room(search, n, err)) != 0 || search->load.room == search->good) {
            return status;
        }
    }
    if (status != 0) {
        unload(&search->load);
    }
    return status;
}

/* To 2 %, with fewer streams than there is room for. */
static int narrow(struct search *search, struct ssm_error *err)
{
    int status = 0;
    while (status == 0 && search->bad - search->good > 1 + search->good / 50) {
        int step = 1 + search->good / 100;
        double n = fmax(search->good + step, fmin(as_many(search), search->bad - step));
        status = try_streams(search, (int)n, err);
    }
    return status;
}

/* Hold the number for SURE_STEPS at least, each time it failed AGAIN times with fewer streams: 1/64 less, then 2/64 and so on,
 * which halves them in the end. Trials end with the first steps that are late, so some time has to pass between them. */
static int hold(struct search *search, struct ssm_error *err)
{
    struct timing *best = &search->report->many;
    int planned = (int)(seconds / search->hop_s), status = 0;
    planned = planned < SURE_STEPS ? SURE_STEPS : planned;
    for (int i = 1, n = search->good; i <= HOLDS && n > 0 && status == 0 && !best->in_time; i++) {
        search->load.n = n;
        warm_up(&search->load, WARM_UP);
        status = measure_load(&search->load, planned, planned / 1000, best, err);
        note_trial(search->report, best, best->in_time);
        n -= i % AGAIN == 0 ? 1 + (int)(n * (i / AGAIN) / 64.0) : 0;
    }
    return status;
}

/* The most streams whose p99.9 stays within the hop; one alone is known. */
static int find_most(int n_threads, double hop_s, struct report *report, struct ssm_error *err)
{
    struct search search = {.report = report, .hop_s = hop_s, .n_threads = n_threads};
    const struct timing *one = &report->one;
    struct timing *best = &report->many;
    double first = one->gpus > 0 ? one->gpus * (double)GPU_FIRST : hop_s / one->p50 * n_threads / 4;
    int status = grow(&search, (int)fmax(1, fmin(first, MOST_STREAMS)), err);
    if (status == 0) {
        status = narrow(&search, err);
        status = status == 0 && search.good > 0 ? hold(&search, err) : status;
        unload(&search.load);
    }
    best->threads = n_threads;
    best->streams = best->in_time ? best->streams : 0;
    if (isatty(STDERR_FILENO)) {
        fputs("\r\033[K", stderr);
    }
    return status;
}

/* Times real time of the scan over one long recording. */
static int measure_scan(int n_threads, double *speed, struct ssm_error *err)
{
    struct load load;
    int status = fill(&load, 1, n_threads, err);
    if (status != 0) {
        return status;
    }
    size_t hop = (size_t)load.info->hop, hops = (size_t)(SCAN * load.info->rate) / hop, likes = (size_t)load.info->scan_hops;
    hops = hops < likes ? likes : hops - hops % likes;
    size_t n = hops * (size_t)load.info->inputs;
    float *in = malloc(n * sizeof *in), *out = malloc(hops * (size_t)load.info->outputs * sizeof *out);
    for (size_t i = 0; in != NULL && i < n; i++) {
        in[i] = signal_samples[i % signal_length];
    }
    double audio = 0, start = 0;
    for (int round = -1; in != NULL && out != NULL && (round < 1 || clock_seconds() - start < SCAN_FOR); round++) {
        start = round == 0 ? clock_seconds() : start;
        audio += round < 0 ? 0 : (double)(hops * hop) / load.info->rate; /* round -1 warms up */
        ssm_scan(load.engine, load.hops[0].stream, in, out, NULL, hops, NULL);
    }
    *speed = audio / (clock_seconds() - start);
    status = check_health(&load, err);
    free(in);
    free(out);
    unload(&load);
    return status;
}

static double peak_mib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024;
}

static void print_timing(const char *label, const struct timing *t)
{
    printf("  %-26s p50 %8.1f us   p99 %8.1f us   p99.9 %8.1f us", label, 1e6 * t->p50, 1e6 * t->p99, 1e6 * t->p999);
}

static const char *plural(int n)
{
    return n == 1 ? "" : "s";
}

/* Where the time went, of a device that tells. */
static void print_stages(const char *label, const double *stages)
{
    if (stages[FIRST] + stages[WAIT] > 0) {
        printf("    %-24s", label);
        for (int i = 0; i < STAGES; i++) {
            printf(" %s %.0f%s", stage_names[i], 1e6 * stages[i], i + 1 < STAGES ? "," : " us\n");
        }
    }
}

static void print_many(const struct timing *many)
{
    char label[64];
    if (many->streams == 0) {
        printf("  streams carried            none: even one stream's p99.9 is beyond the hop; is the machine busy?\n");
        return;
    }
    snprintf(label, sizeof label, "%d stream%s, %d thread%s", many->streams, plural(many->streams), many->threads,
             plural(many->threads));
    print_timing(label, many);
    printf("   %s\n", many->in_time ? "in time" : "TOO LATE: p99.9 is beyond the hop");
    print_stages("mean step", many->stages);
    print_stages("slowest 1 of 100", many->late_stages);
    printf("    %-24s %.1f %% of the time that processors ran; the stepping thread made room %ld times\n", "given to others",
           100 * many->stolen, many->preempted);
    if (strcmp(streams_text, "auto") == 0) {
        printf("  %-26s %d: the most whose p99.9 stays within the hop\n", "streams carried", many->streams);
    }
}

/* n_threads 0: not by the processor's threads. */
static void print_scan(int n_threads, double speed)
{
    char label[64] = "scan";
    if (n_threads > 0) {
        snprintf(label, sizeof label, "scan, %d thread%s", n_threads, plural(n_threads));
    }
    printf("  %-26s %.0f times real time\n", label, speed);
}

static void print_text(const struct report *report)
{
    const struct ssm_info *info = &report->info;
    double hop_s = (double)info->hop / info->rate;
    printf("%s on %s, %d core%s; a hop is %.3g ms; every number is from samples in memory to samples in memory\n", info->name,
           info->device, report->cores, plural(report->cores), 1e3 * hop_s);
    print_timing("1 stream, 1 thread", &report->one);
    printf("   RTF %.4f\n", report->one.mean / hop_s);
    print_many(&report->many);
    print_scan(report->many.device_mib > 0 ? 0 : 1, report->scan_one);
    if (report->scan_all > 0) {
        print_scan(report->many.threads, report->scan_all);
    }
    printf("  %-26s %.1f KiB a stream; the program's peak %.0f MiB\n", "state", (double)info->state_bytes / 1024,
           report->peak_mib);
    if (report->many.device_mib > 0) {
        printf("  %-26s %.0f MiB for %d stream%s, taken when the model is opened\n", "GPU memory", report->many.device_mib,
               report->many.room, plural(report->many.room));
        printf("  %-26s %.2f s at the oldest\n", "copies of states", report->many.copy_s);
    }
}

static void print_stages_json(struct json *json, const char *key, const double *stages)
{
    json_open(json, key, '{');
    for (int i = 0; i < STAGES; i++) {
        json_number(json, stage_names[i], 1e6 * stages[i]);
    }
    json_close(json, '}');
}

static void print_timing_json(struct json *json, const char *key, const struct timing *t)
{
    json_open(json, key, '{');
    json_whole(json, "streams", t->streams);
    json_whole(json, "threads", t->threads);
    json_whole(json, "steps", t->steps);
    json_number(json, "p50_us", 1e6 * t->p50);
    json_number(json, "p99_us", 1e6 * t->p99);
    json_number(json, "p99_9_us", 1e6 * t->p999);
    json_number(json, "mean_us", 1e6 * t->mean);
    print_stages_json(json, "mean_stages_us", t->stages);
    print_stages_json(json, "slowest_hundredth_stages_us", t->late_stages);
    json_number(json, "stolen", t->stolen);
    json_whole(json, "preempted", t->preempted);
    json_number(json, "oldest_copy_s", t->copy_s);
    json_number(json, "device_mib", t->device_mib);
    json_whole(json, "room", t->room);
    json_flag(json, "in_time", t->in_time);
    json_close(json, '}');
}

static void print_trials_json(struct json *json, const struct report *report)
{
    json_open(json, "trials", '[');
    for (int i = 0; i < report->n_trials; i++) {
        const struct trial *trial = &report->trials[i];
        json_open(json, NULL, '{');
        json_whole(json, "streams", trial->streams);
        json_whole(json, "steps", trial->steps);
        json_number(json, "p50_us", 1e6 * trial->p50);
        json_number(json, "p99_9_us", 1e6 * trial->p999);
        json_flag(json, "in_time", trial->in_time);
        json_close(json, '}');
    }
    json_close(json, ']');
}

static void print_json(const struct report *report)
{
    const struct ssm_info *info = &report->info;
    double hop_s = (double)info->hop / info->rate;
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "model", info->name);
    json_text(&json, "digest", info->digest);
    json_text(&json, "device", info->device);
    json_text(&json, "precision", precision);
    json_whole(&json, "cores", report->cores);
    json_number(&json, "hop_ms", 1e3 * hop_s);
    json_number(&json, "rtf", report->one.mean / hop_s);
    print_timing_json(&json, "one", &report->one);
    print_timing_json(&json, "many", &report->many);
    print_trials_json(&json, report);
    json_number(&json, "scan_one_thread", report->scan_one);
    json_number(&json, "scan_all_threads", report->scan_all);
    json_whole(&json, "state_bytes", (long long)info->state_bytes);
    json_number(&json, "peak_mib", report->peak_mib);
    json_close(&json, '}');
    putchar('\n');
}

/* How many streams --streams asks for; 0 = auto, -1 = neither. */
static int read_streams(void)
{
    char *end;
    long n = strtol(streams_text, &end, 10);
    return strcmp(streams_text, "auto") == 0 ? 0 : *end != '\0' || n < 1 || n > MOST_STREAMS ? -1 : (int)n;
}

static int measure_all(struct report *report, int streams, struct ssm_error *err)
{
    double hop_s = (double)report->info.hop / report->info.rate;
    int n_threads = threads > 0 ? threads : report->cores;
    int status = measure(1, 1, &report->one, err);
    if (status == 0 && streams > 0) {
        status = measure(streams, n_threads, &report->many, err);
    } else if (status == 0) {
        status = find_most(n_threads, hop_s, report, err);
    }
    report->peak_mib = peak_mib();
    if (status == 0) {
        status = measure_scan(1, &report->scan_one, err);
    }
    bool cores_scan = n_threads > 1 && report->many.device_mib == 0;
    return status == 0 && cores_scan ? measure_scan(n_threads, &report->scan_all, err) : status;
}

static int run_bench(char **arguments, int n)
{
    (void)arguments, (void)n;
    struct report report = {.cores = (int)sysconf(_SC_NPROCESSORS_ONLN)};
    struct ssm_error err = {0};
    struct ssm_options options = {.device = device, .precision = precision};
    int streams = read_streams();
    if (streams < 0) {
        return verb_fail(EX_USAGE, "--streams takes \"auto\" or a number from 1 to %d, got \"%s\"", MOST_STREAMS,
                         streams_text);
    }
    struct ssm_engine *engine = ssm_open(model, &options, &err);
    if (engine == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    report.info = *ssm_describe(engine);
    ssm_close(engine);
    if (make_signal(&report.info) != 0) {
        return verb_fail(EX_OSERR, "out of memory");
    }
    int status = measure_all(&report, streams, &err);
    free(signal_samples);
    if (status != 0) {
        return verb_fail(status, "%s", err.text);
    }
    (verb_json ? print_json : print_text)(&report);
    return 0;
}

static const struct verb_option options[] = {
    {"model", "M", OPTION_TEXT, &model, 0, 0, "a name from \"ssm models\" or a .safetensors file (denoise-16k)"},
    {"device", "D", OPTION_TEXT, &device, 0, 0, "auto, cpu, cuda, cuda:1 or cuda:0,cuda:1 (auto)"},
    {"precision", "P", OPTION_TEXT, &precision, 0, 0, "of a GPU's products: fp32, tf32, bf16 or bf16-state (auto)"},
    {"streams", "N", OPTION_TEXT, &streams_text, 0, 0, "how many streams to step together, or \"auto\" to look for\nthe most"},
    {"paced", NULL, OPTION_FLAG, &paced, 0, 0, "a step each hop, as live sound comes, timed from when the hop is there;\nnot one right behind the other"},
    {"threads", "N", OPTION_NUMBER, &threads, 1, 1024, "for the many streams and the scan (all cores)"},
    {"seconds", "S", OPTION_NUMBER, &seconds, 1, 3600,
     "of audio a stream in each measurement (10); p99.9 is the\nslowest step when that is fewer than 1000 hops"},
    {0},
};

const struct verb ssm_bench = {
    .name = "bench",
    .arguments = "",
    .summary = "measure this machine: latency, streams it carries, scan speed",
    .details = "Measure how fast a model runs here: the time of one stream's step on one core (p50, p99, p99.9), how many\n"
               "streams this machine steps together before p99.9 goes beyond the hop, and how many times faster than real\n"
               "time the parallel scan goes through a recording. Every step gets new samples, and the way from the caller's memory\n"
               "to the device and back is counted, and so are the copies of the states that a GPU's failure is survived with.\n"
               "\"auto\" looks for the number by short trials and then holds it for 1000 hops or more, with fewer streams as long\n"
               "as p99.9 is too late, which takes a minute or two; other work on the machine shows in the numbers.",
    .examples = "  ssm bench\n"
                "  ssm bench --streams 64 --threads 2 --json\n"
                "  ssm bench --model ./mine.safetensors --seconds 60",
    .options = options,
    .run = run_bench,
};
