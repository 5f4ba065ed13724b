/* SPDX-License-Identifier: MIT */
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
#include "model/ssm.h"

/* SIGNAL: seconds of sound that every stream begins somewhere else of. RING: hops of it a stream has for itself and steps
 * through again and again, so that a step's input is cold memory, as it is where sound comes from outside. SCAN: seconds of
 * audio in one scan, or more where the device likes more; SCAN_FOR: seconds of clock a scan's speed is measured over;
 * WARM_UP: of steps before those that count. */
enum { WARM_UP = 1, SIGNAL = 8, RING = 16, SCAN = 30, SCAN_FOR = 2, MOST_STREAMS = 1 << 20 };

/* Steps of a trial in the search for the most streams, and before them; and a p99.9 is one of at least so many. */
enum { TRIAL_STEPS = 150, TRIAL_WARM_UP = 30, SURE_STEPS = 1000 };

static const char *model = "denoise-16k", *device = "auto", *precision = "auto", *streams_text = "auto";
static int threads, seconds = 10;

struct timing { /* of one step, seconds */
    int streams, threads, steps;
    double p50, p99, p999, mean;
    double device_mib; /* of GPUs' memory; 0: the processor */
    bool in_time; /* p99.9 within the hop */
};

struct load { /* an engine full of streams, each with its own samples */
    struct ssm_engine *engine;
    const struct ssm_info *info;
    struct ssm_hop *hops;
    float *in, *out; /* (n, RING, inputs), (n, outputs) */
    int n, turn;
};

struct report {
    struct ssm_info info;
    struct timing one, many;
    double scan_one, scan_all; /* times real time */
    int cores;
    double peak_mib;
};

static float *signal_samples; /* SIGNAL seconds */
static size_t signal_length;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

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
    free(load->in);
    free(load->out);
}

/* Everybody his own RING hops of the signal. */
static void give_sound(struct load *load)
{
    size_t ring = RING * (size_t)load->info->inputs;
    uint64_t seed = 7;
    for (size_t i = 0; i < (size_t)load->n; i++) {
        size_t from = (size_t)(draw(&seed) * (double)(signal_length - ring));
        memcpy(load->in + i * ring, signal_samples + from, ring * sizeof(float));
    }
}

/* Gives 0, or an exit status with *err. */
static int fill(struct load *load, int n, int n_threads, struct ssm_error *err)
{
    struct ssm_options options = {.device = device, .precision = precision, .streams = n, .threads = n_threads};
    *load = (struct load){.engine = ssm_open(model, &options, err), .n = n};
    if (load->engine == NULL) {
        return err->code;
    }
    load->info = ssm_describe(load->engine);
    size_t inputs = (size_t)load->info->inputs, outputs = (size_t)load->info->outputs, rows = (size_t)n;
    load->hops = calloc(rows, sizeof *load->hops);
    load->in = malloc(rows * RING * inputs * sizeof(float));
    load->out = malloc(rows * outputs * sizeof(float));
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

/* One batched step on new samples, from where they are in memory to where they are wanted. Gives seconds. */
static double time_step(struct load *load)
{
    size_t inputs = (size_t)load->info->inputs, turn = (size_t)load->turn++ % RING;
    for (size_t i = 0; i < (size_t)load->n; i++) {
        load->hops[i].in = load->in + (i * RING + turn) * inputs;
    }
    double start = now();
    ssm_step(load->engine, load->hops, load->n);
    return now() - start;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The q-quantile by nearest rank: with fewer than 1000 steps p99.9 is the slowest one. */
static double quantile(const double *sorted, int n, double q)
{
    int rank = (int)ceil(q * n) - 1;
    return sorted[rank < 0 ? 0 : rank];
}

static struct timing summarise(double *took, int n, int planned, double hop_s)
{
    struct timing timing = {.steps = n};
    qsort(took, (size_t)n, sizeof *took, compare);
    for (int i = 0; i < n; i++) {
        timing.mean += took[i] / n;
    }
    timing.p50 = quantile(took, n, .5);
    timing.p99 = quantile(took, n, .99);
    timing.p999 = quantile(took, n, .999);
    timing.in_time = n == planned && timing.p999 <= hop_s;
    return timing;
}

/* Of the devices' memory; 0 on the processor. */
static double device_mib(const struct ssm_engine *engine)
{
    struct ssm_device_info info;
    double bytes = 0;
    for (int i = 0; ssm_describe_device(engine, i, &info); i++) {
        bytes += strncmp(info.name, "cpu", 3) != 0 ? (double)info.bytes : 0;
    }
    return bytes / (1 << 20);
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

/* Steps that don't count: of a trial so many, else for WARM_UP seconds. */
static void warm_up(struct load *load, bool trial)
{
    double start = now();
    for (int i = 0; trial ? i < TRIAL_WARM_UP : now() - start < WARM_UP; i++) {
        time_step(load);
    }
}

/* Time up to `planned` steps; over as soon as more than 1 of `tolerated` was late. tolerated 0: all are. */
static int take_steps(struct load *load, double *took, int planned, int tolerated)
{
    double hop_s = (double)load->info->hop / load->info->rate;
    int steps = 0, late = 0;
    while (steps < planned && !(tolerated > 0 && late > planned / tolerated)) {
        took[steps] = time_step(load);
        late += took[steps] > hop_s;
        steps++;
    }
    return steps;
}

/* ALL: for `seconds` of audio. TRIAL: a few steps, in time when p99 is. SURE: as ALL and SURE_STEPS at least, over when p99.9
 * can't be in time any more. */
enum measuring { ALL, TRIAL, SURE };

/* Step n streams. */
static int measure(int n, int n_threads, enum measuring how, struct timing *timing, struct ssm_error *err)
{
    struct load load;
    int status = fill(&load, n, n_threads, err);
    if (status != 0) {
        return status;
    }
    double hop_s = (double)load.info->hop / load.info->rate;
    int planned = how == TRIAL ? TRIAL_STEPS : (int)(seconds / hop_s);
    planned = how == SURE && planned < SURE_STEPS ? SURE_STEPS : planned;
    double *took = malloc((size_t)planned * sizeof *took);
    if (took != NULL) {
        warm_up(&load, how == TRIAL);
        int steps = take_steps(&load, took, planned, how == ALL ? 0 : how == TRIAL ? 100 : 1000);
        *timing = summarise(took, steps, planned, hop_s);
        timing->in_time = how == TRIAL ? steps == planned && timing->p99 <= hop_s : timing->in_time;
        timing->streams = n;
        timing->threads = n_threads;
        timing->device_mib = device_mib(load.engine);
    }
    status = check_health(&load, err);
    free(took);
    unload(&load);
    return status;
}

static void print_trial(const struct timing *trial)
{
    if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r%d streams: p99.9 %.2f ms, %s\033[K", trial->streams, 1e3 * trial->p999,
                trial->in_time ? "in time" : "too late");
    }
}

/* The next number to try: as many as fit if each costs what it did in the last trial, between what was good and what was too
 * many, or up to eight times as many while none was. */
static int next_trial(const struct timing *last, int good, int bad, double hop_s)
{
    double n = 0.98 * hop_s / last->p99 * last->streams, step = 1 + good / 32;
    double least = good + step, most = bad > 0 ? bad - step : fmin(8.0 * good, MOST_STREAMS);
    if (bad > 0 && !last->in_time) {
        n = fmin(n, good + (bad - good) / 2.0);
    }
    return (int)fmax(least, fmin(n, most));
}

/* The most streams whose p99 stays within the hop, by short trials, to 3 %; 0: none. Streams that find no memory are too
 * many. */
static int search(int n, int n_threads, double hop_s, int *most, struct ssm_error *err)
{
    int good = 0, bad = 0;
    while (n <= MOST_STREAMS && n > good && (bad == 0 || n < bad)) {
        struct timing trial = {.streams = n};
        int status = measure(n, n_threads, TRIAL, &trial, err);
        bool no_room = status == EX_OSERR || (status == EX_UNAVAILABLE && trial.steps == 0);
        if (status != 0 && !(no_room && good > 0)) {
            return status;
        }
        print_trial(&trial);
        *(trial.in_time ? &good : &bad) = n;
        n = trial.steps > 0 ? next_trial(&trial, good, bad, hop_s) : good + (bad - good) / 2;
        n = bad > 0 && bad - good <= 1 + good / 32 ? good : n;
    }
    *most = good;
    return 0;
}

/* The most streams whose p99.9 stays within the hop: from what the trials found downwards, 3 % a time. */
static int find_most(int n_threads, double one_s, double hop_s, struct timing *best, struct ssm_error *err)
{
    int n = (int)(hop_s / one_s * n_threads / 4);
    int status = search(n < 1 ? 1 : n > MOST_STREAMS ? MOST_STREAMS : n, n_threads, hop_s, &n, err);
    *best = (struct timing){.threads = n_threads};
    for (; status == 0 && n > 0 && !best->in_time; n -= 1 + n / 32) {
        status = measure(n, n_threads, SURE, best, err);
        print_trial(best);
    }
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
    for (int round = -1; in != NULL && out != NULL && (round < 1 || now() - start < SCAN_FOR); round++) {
        start = round == 0 ? now() : start;
        audio += round < 0 ? 0 : (double)(hops * hop) / load.info->rate; /* round -1 warms up */
        ssm_scan(load.engine, load.hops[0].stream, in, out, NULL, hops, NULL);
    }
    *speed = audio / (now() - start);
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
        printf("  %-26s %.0f MiB with %d stream%s, taken when the model is opened\n", "GPU memory", report->many.device_mib,
               report->many.streams, plural(report->many.streams));
    }
}

static void print_timing_json(struct json *json, const char *key, const struct timing *t)
{
    json_open(json, key, '{');
    json_integer(json, "streams", t->streams);
    json_integer(json, "threads", t->threads);
    json_integer(json, "steps", t->steps);
    json_number(json, "p50_us", 1e6 * t->p50);
    json_number(json, "p99_us", 1e6 * t->p99);
    json_number(json, "p99_9_us", 1e6 * t->p999);
    json_number(json, "mean_us", 1e6 * t->mean);
    json_number(json, "device_mib", t->device_mib);
    json_flag(json, "in_time", t->in_time);
    json_close(json, '}');
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
    json_integer(&json, "cores", report->cores);
    json_number(&json, "hop_ms", 1e3 * hop_s);
    json_number(&json, "rtf", report->one.mean / hop_s);
    print_timing_json(&json, "one", &report->one);
    print_timing_json(&json, "many", &report->many);
    json_number(&json, "scan_one_thread", report->scan_one);
    json_number(&json, "scan_all_threads", report->scan_all);
    json_integer(&json, "state_bytes", (long long)info->state_bytes);
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
    int status = measure(1, 1, ALL, &report->one, err);
    if (status == 0 && streams > 0) {
        status = measure(streams, n_threads, ALL, &report->many, err);
    } else if (status == 0) {
        status = find_most(n_threads, report->one.p50, hop_s, &report->many, err);
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
