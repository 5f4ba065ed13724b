/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/timex.h>
#include <sysexits.h>
#include <unistd.h>

#include "clients/check.h"
#include "clients/json.h"
#include "clients/verb.h"
#include "daemon/card.h"
#include "daemon/fit.h"
#include "daemon/gate.h"
#include "daemon/socket.h"
#include "dsp/sound_file.h"
#include "kernels/kernels.h"
#include "model/backend_cuda.h"

/* WRONG is what keeps ssmd from running this file; NOTE what is worth knowing. */
enum verdict { FINE, NOTE, WRONG };
static const char *const verdicts[] = {[FINE] = "fine", [NOTE] = "note", [WRONG] = "wrong"};

enum { FINDINGS = 128, DEVICES = 256, GPUS = 64 };

struct finding {
    const char *part;
    enum verdict verdict;
    char text[1200];
};

struct doctor {
    const struct config *config; /* NULL: there is none to look at, or it can't be read */
    const char *part;            /* being looked at                                     */
    struct finding found[FINDINGS];
    int n, code;                 /* code: of the first that is wrong                    */
};

static void tell(struct doctor *doctor, enum verdict verdict, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void tell(struct doctor *doctor, enum verdict verdict, int code, const char *format, ...)
{
    va_list values;
    doctor->code = verdict == WRONG && doctor->code == 0 ? code : doctor->code;
    if (doctor->n < FINDINGS) {
        struct finding *finding = &doctor->found[doctor->n++];
        finding->part = doctor->part;
        finding->verdict = verdict;
        va_start(values, format);
        vsnprintf(finding->text, sizeof finding->text, format, values);
        va_end(values);
    }
}

/* The first line of one of the kernel's files; "" where there is none. */
static void read_line(const char *path, char *line, size_t size)
{
    FILE *file = fopen(path, "r");
    line[0] = '\0';
    if (file && fgets(line, (int)size, file)) {
        line[strcspn(line, "\n")] = '\0';
    }
    if (file) {
        fclose(file);
    }
}

/* ---- The file. ---- */

static void look_at_file(struct doctor *doctor)
{
    struct troubles troubles = {.n = 0};
    if (!doctor->config) {
        return; /* told already, or there is none */
    }
    int models = check_all(doctor->config, &troubles);
    for (int i = 0; i < troubles.n; i++) {
        fit_blame(troubles.at[i].at, &troubles.at[i].err);
        tell(doctor, WRONG, troubles.at[i].err.code, "%s", troubles.at[i].err.text);
    }
    if (troubles.n == 0) {
        tell(doctor, FINE, 0, "%d pipeline%s, %d model%s opened on \"%s\"", doctor->config->n_pipelines,
             doctor->config->n_pipelines == 1 ? "" : "s", models, models == 1 ? "" : "s", doctor->config->device);
    }
}

/* What ssm check leaves to the start: files to read have to be there, those to write nobody else's. */
static void look_at_files(struct doctor *doctor)
{
    int before = doctor->n;
    for (int i = 0; doctor->config && i < doctor->config->n_pipelines; i++) {
        const struct config_pipeline *pipeline = &doctor->config->pipelines[i];
        if (pipeline->source.type == SOURCE_FILE && access(pipeline->source.path, F_OK) != 0) {
            tell(doctor, WRONG, EX_NOINPUT, "%s%s: %s", pipeline->at.source.text, pipeline->source.path, strerror(errno));
        }
        for (int k = 0; k < pipeline->n_sinks; k++) {
            const struct config_sink *sink = &pipeline->sinks[k];
            if (sink->type == SINK_FILE && sound_file_taken(sink->path)) {
                tell(doctor, WRONG, EX_CANTCREAT, "%s%s: is being written by another ssmd", pipeline->at.sinks[k].text, sink->path);
            }
        }
    }
    if (doctor->config && doctor->n == before) {
        tell(doctor, FINE, 0, "what is to be read is there, and what is to be written nobody else's");
    }
}

/* Somewhere to write: the folder itself, or the one it will be made in. */
static void look_at_folder(struct doctor *doctor, const char *what, const char *path)
{
    char folder[1200];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    bool there = access(folder, F_OK) == 0;
    if (!there && slash) {
        slash[slash == folder] = '\0';
    }
    const char *asked = there || slash ? folder : ".";
    if (access(asked, W_OK) != 0) {
        tell(doctor, WRONG, EX_CANTCREAT, "%s: %s can't be written to by this user, or isn't there", what, asked);
    }
}

static void look_at_folders(struct doctor *doctor)
{
    const struct config *config = doctor->config;
    int before = doctor->n;
    if (!config) {
        return;
    }
    if (config->state_dir[0]) {
        look_at_folder(doctor, "state_dir", config->state_dir);
    }
    for (int i = 0; i < config->n_pipelines; i++) {
        for (int k = 0; k < config->pipelines[i].n_sinks; k++) {
            const char *path = config->pipelines[i].sinks[k].path;
            if (path[0] && strcmp(path, "-") != 0) {
                look_at_folder(doctor, config->pipelines[i].name, path);
            }
        }
    }
    if (doctor->n == before) {
        tell(doctor, FINE, 0, "what is to be written can be");
    }
}

/* ---- Ports. ---- */

static void look_at_port(struct doctor *doctor, const char *what, const char *address, bool udp)
{
    char host[300];
    struct ssm_error err = {0};
    const char *bare = strncmp(address, "tcp://", 6) == 0 ? address + 6 : address;
    snprintf(host, sizeof host, "%s%s", bare[0] == '*' ? "0.0.0.0" : "", bare[0] == '*' ? bare + 1 : bare);
    int fd = udp ? socket_bind_udp(host, &err) : socket_listen_tcp(host, &err);
    if (fd < 0) {
        tell(doctor, WRONG, err.code, "%s: %s%s", what, err.text,
             strstr(err.text, "in use") ? "; an ssmd that runs already, or another program, has it" : "");
    } else {
        close(fd);
    }
}

/* An address of any kind, "" for none: is it free? */
static void look_at_address(struct doctor *doctor, const char *what, const char *address, bool udp)
{
    if (strncmp(address, "ipc://", 6) != 0 && address[0]) {
        look_at_port(doctor, what, address, udp);
    } else if (gate_is_taken(address)) {
        tell(doctor, WRONG, EX_UNAVAILABLE,
             "%s: %s is a file, or an ssmd that runs already, or another program, has it", what, address);
    }
}

static void look_at_source(struct doctor *doctor, const struct config_pipeline *pipeline)
{
    const struct config_source *source = &pipeline->source;
    bool pull = strncmp(source->path, "pull:", 5) == 0;
    if (source->type == SOURCE_SENSOR) {
        look_at_address(doctor, pipeline->name, source->listen, source->transport == SENSOR_UDP);
    } else if (source->type == SOURCE_PCM && (pull || strncmp(source->path, "tcp://", 6) == 0)) {
        look_at_address(doctor, pipeline->name, source->path + (pull ? 5 : 0), false);
    }
}

static void look_at_ports(struct doctor *doctor)
{
    const struct config *config = doctor->config;
    char control[300];
    int before = doctor->n;
    if (!config) {
        return;
    }
    config_control(config, control, sizeof control);
    look_at_address(doctor, "publish", config->publish, false);
    look_at_address(doctor, "control", control, false);
    look_at_address(doctor, "http", config->http, false);
    for (int i = 0; i < config->n_pipelines; i++) {
        look_at_source(doctor, &config->pipelines[i]);
    }
    if (doctor->n == before) {
        tell(doctor, FINE, 0, "those of the file are free");
    }
}

/* ---- Sound. ---- */

static void look_at_device(struct doctor *doctor, const char *pipeline, const struct sound_device *list, int n, const char *name,
                           bool capture)
{
    struct ssm_error err = {0};
    if (names_find(list, n, name, capture, &err) < 0) {
        tell(doctor, WRONG, err.code, "%s: %s", pipeline, err.text);
    }
}

/* The devices that the file asks for. */
static void look_at_devices(struct doctor *doctor, const struct sound_device *list, int n)
{
    for (int i = 0; doctor->config && i < doctor->config->n_pipelines; i++) {
        const struct config_pipeline *pipeline = &doctor->config->pipelines[i];
        if (pipeline->source.type == SOURCE_AUDIO) {
            look_at_device(doctor, pipeline->name, list, n, pipeline->source.device, true);
        }
        if (pipeline->source.echo[0]) {
            look_at_device(doctor, pipeline->name, list, n, pipeline->source.echo, true);
        }
        for (int k = 0; k < pipeline->n_sinks; k++) {
            if (pipeline->sinks[k].type == SINK_AUDIO) {
                look_at_device(doctor, pipeline->name, list, n, pipeline->sinks[k].device, false);
            }
        }
    }
}

static void look_at_sound(struct doctor *doctor)
{
    static struct sound_device list[DEVICES];
    char obstacle[200];
    struct ssm_error err = {0};
    int n = card_devices(list, DEVICES, &err);
    names_obstacle(obstacle, sizeof obstacle, "/proc", "/dev");
    if (n > 0) {
        tell(doctor, FINE, 0, "%d sound device%s (ssm devices lists them)", n, n == 1 ? "" : "s");
    } else {
        tell(doctor, NOTE, 0, "no sound device: %s", n < 0 ? err.text : "no card, and no server such as PulseAudio or JACK");
    }
    if (obstacle[0]) {
        tell(doctor, NOTE, 0, "%s", obstacle);
    }
    look_at_devices(doctor, list, n < 0 ? 0 : n < DEVICES ? n : DEVICES);
}

/* ---- The machine. ---- */

static void look_at_processor(struct doctor *doctor)
{
    char governor[64];
    const char *kernels = kernels_best()->name;
    bool slow = strcmp(kernels, "scalar") == 0;
    tell(doctor, slow ? NOTE : FINE, 0, "%ld cores, %s kernels%s", sysconf(_SC_NPROCESSORS_ONLN), kernels,
         slow ? ": without AVX2 a model takes many times as long" : "");
    read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", governor, sizeof governor);
    if (strcmp(governor, "powersave") == 0) {
        tell(doctor, NOTE, 0, "the processor's governor is powersave: a step may take longer after a pause");
    }
}

static void look_at_gpus(struct doctor *doctor)
{
    struct backend_cuda_device gpus[GPUS];
    struct ssm_error err = {0};
    int n = backend_cuda_devices(gpus, GPUS, &err);
    for (int i = 0; i < n && i < GPUS; i++) {
        tell(doctor, gpus[i].runs ? FINE : NOTE, 0, "cuda:%d %s, %.1f of %.1f GiB free%s", gpus[i].index, gpus[i].name,
             (double)gpus[i].bytes_free / (1 << 30), (double)gpus[i].bytes / (1 << 30), gpus[i].runs ? "" : "; too old for this build");
    }
    if (n <= 0) {
        tell(doctor, NOTE, 0, "%s", err.text);
    }
}

static void look_at_limit(struct doctor *doctor, int resource, rlim_t least, const char *what)
{
    struct rlimit limit;
    bool bound = geteuid() != 0 || resource == RLIMIT_NOFILE; /* root may have what it asks for */
    if (bound && getrlimit((__rlimit_resource_t)resource, &limit) == 0 && limit.rlim_cur < least) {
        tell(doctor, NOTE, 0, "%s: the limit is %llu; systemd's unit sets it, else /etc/security/limits.d", what,
             (unsigned long long)limit.rlim_cur);
    }
}

static void look_at_limits(struct doctor *doctor)
{
    int before = doctor->n;
    look_at_limit(doctor, RLIMIT_RTPRIO, 1, "sound can't be given real-time priority (rtprio)");
    look_at_limit(doctor, RLIMIT_MEMLOCK, 64 << 20, "JACK can't lock its memory (memlock, bytes)");
    look_at_limit(doctor, RLIMIT_NOFILE, 1024, "many streams take many open files (nofile)");
    if (doctor->n == before) {
        tell(doctor, FINE, 0, "real-time priority, locked memory, open files: enough");
    }
}

static void look_at_clock(struct doctor *doctor)
{
    char source[64];
    struct timex wall = {0};
    read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", source, sizeof source);
    bool slow = strcmp(source, "hpet") == 0 || strcmp(source, "acpi_pm") == 0 || strcmp(source, "jiffies") == 0;
    tell(doctor, slow ? NOTE : FINE, 0, "clock source %s%s", source[0] ? source : "unknown",
         slow ? ": each look at it takes long" : "");
    if (adjtimex(&wall) == TIME_ERROR) {
        tell(doctor, NOTE, 0, "nobody keeps the wall clock right (NTP): tw may be off, tm isn't");
    }
}

/* ---- All of it. ---- */

static const struct {
    const char *part;
    void (*look)(struct doctor *doctor);
} parts[] = {{"file", look_at_file},   {"files", look_at_files}, {"folders", look_at_folders},
             {"ports", look_at_ports}, {"sound", look_at_sound}, {"gpu", look_at_gpus},
             {"processor", look_at_processor}, {"limits", look_at_limits}, {"clock", look_at_clock}};

static void print_text(const struct doctor *doctor)
{
    for (int i = 0; i < doctor->n; i++) {
        const struct finding *finding = &doctor->found[i];
        printf("%-5s  %-9s  %s\n", verdicts[finding->verdict], finding->part, finding->text);
    }
}

static void print_json(const struct doctor *doctor)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_flag(&json, "ok", doctor->code == 0);
    json_open(&json, "found", '[');
    for (int i = 0; i < doctor->n; i++) {
        json_open(&json, NULL, '{');
        json_text(&json, "part", doctor->found[i].part);
        json_text(&json, "verdict", verdicts[doctor->found[i].verdict]);
        json_text(&json, "text", doctor->found[i].text);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_close(&json, '}');
    putchar('\n');
}

static void read_file(struct doctor *doctor, const char *path, struct config **config)
{
    struct config_errors errors = {0};
    doctor->part = "file";
    *config = config_load(path, NULL, 0, &errors);
    for (int i = 0; !*config && i < errors.n; i++) {
        tell(doctor, WRONG, EX_CONFIG, "%s", errors.at[i].text);
    }
    doctor->config = *config;
}

static int run_doctor(char **arguments, int n)
{
    static struct doctor doctor;
    struct config *config = NULL;
    if (n > 0) {
        read_file(&doctor, arguments[0], &config);
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        doctor.part = parts[i].part;
        parts[i].look(&doctor);
    }
    (verb_json ? print_json : print_text)(&doctor);
    config_destroy(config);
    return doctor.code;
}

const struct verb ssm_doctor = {
    .name = "doctor",
    .arguments = "[FILE]",
    .summary = "say what on this machine is in the way of ssmd",
    .details = "Look at the sound devices and who may open or holds them, GPUs, the processor, limits and clocks; with ssmd's\n"
               "configuration FILE also at all that ssm check does, and whether the files and devices it names are there, its\n"
               "ports free and its folders writable. A line each: fine, note (ssmd runs, but...) or wrong. Nothing is changed. Exits with the\n"
               "code that ssmd would end with for the first that is wrong: 78 for the file, 66 for a source's file that isn't\n"
               "there, 69 for a device or port that can't be had, 73 for what can't be written; else 0.",
    .examples = "  ssm doctor\n"
                "  ssm doctor /etc/ssmd/ssmd.yaml",
    .most = 1,
    .run = run_doctor,
};
