/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clients/json.h"
#include "clients/verb.h"
#include "daemon/card.h"
#include "kernels/kernels.h"
#include "model/backend_cuda.h"

enum { ROOM = 256, GPUS = 64 };

/* What there is, and why there is none of a kind. */
struct found {
    struct sound_device audio[ROOM];
    struct backend_cuda_device gpus[GPUS];
    int n_audio, n_gpus;
    char audio_none[512], gpu_none[512];
    char processor[128];
};

/* The processor's name as Linux tells it, or "". */
static void read_processor(char *name, size_t size)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    *name = '\0';
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':') != NULL) {
            const char *value = strchr(line, ':') + 1;
            value += strspn(value, " \t");
            snprintf(name, size, "%.*s", (int)strcspn(value, "\n"), value);
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

static const char *describe_defaults(const struct sound_device *device)
{
    return device->default_input && device->default_output ? "default input and output"
           : device->default_input                         ? "default input"
           : device->default_output                        ? "default output"
                                                           : "";
}

static void print_text(const struct found *found)
{
    printf("Audio devices, by the name to write after \"device:\" in the YAML:\n");
    for (int i = 0; i < found->n_audio; i++) {
        const struct sound_device *d = &found->audio[i];
        printf("  %-40s %2d in %2d out %6d Hz %5.1f ms  %s%s%s\n", d->id[0] ? d->id : d->name, d->inputs, d->outputs, d->rate,
               d->latency_ms, d->id[0] ? d->name : "", d->id[0] ? "  " : "", describe_defaults(d));
    }
    if (found->n_audio == 0) {
        printf("  none: %s\n", found->audio_none);
    }
    printf("\nCompute devices, by the name to give to --device:\n");
    printf("  cpu    %s kernels, %ld cores, %s\n", kernels_best()->name, sysconf(_SC_NPROCESSORS_ONLN), found->processor);
    for (int i = 0; i < found->n_gpus; i++) {
        const struct backend_cuda_device *gpu = &found->gpus[i];
        printf("  cuda:%d %s, %d multiprocessors, %.1f of %.1f GiB free%s\n", gpu->index, gpu->name, gpu->multiprocessors,
               (double)gpu->bytes_free / (1 << 30), (double)gpu->bytes / (1 << 30),
               gpu->runs ? "" : "; too old for this build");
    }
    if (found->n_gpus == 0) {
        printf("  %s\n", found->gpu_none);
    }
}

static void print_audio_json(struct json *json, const struct sound_device *device)
{
    json_open(json, NULL, '{');
    json_text(json, "device", device->id[0] ? device->id : device->name);
    json_text(json, "name", device->name);
    json_whole(json, "inputs", device->inputs);
    json_whole(json, "outputs", device->outputs);
    json_whole(json, "rate", device->rate);
    json_number(json, "latency_ms", device->latency_ms);
    json_flag(json, "default_input", device->default_input);
    json_flag(json, "default_output", device->default_output);
    json_close(json, '}');
}

static void print_gpu_json(struct json *json, const struct backend_cuda_device *gpu)
{
    char name[24];
    snprintf(name, sizeof name, "cuda:%d", gpu->index);
    json_open(json, NULL, '{');
    json_text(json, "name", name);
    json_text(json, "processor", gpu->name);
    json_whole(json, "multiprocessors", gpu->multiprocessors);
    json_whole(json, "bytes", (long long)gpu->bytes);
    json_whole(json, "bytes_free", (long long)gpu->bytes_free);
    json_flag(json, "runs", gpu->runs);
    json_close(json, '}');
}

static void print_json(const struct found *found)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_open(&json, "audio", '[');
    for (int i = 0; i < found->n_audio; i++) {
        print_audio_json(&json, &found->audio[i]);
    }
    json_close(&json, ']');
    if (found->n_audio == 0) {
        json_text(&json, "audio_none", found->audio_none);
    }
    json_open(&json, "compute", '[');
    json_open(&json, NULL, '{');
    json_text(&json, "name", "cpu");
    json_text(&json, "kernels", kernels_best()->name);
    json_whole(&json, "cores", sysconf(_SC_NPROCESSORS_ONLN));
    json_text(&json, "processor", found->processor);
    json_close(&json, '}');
    for (int i = 0; i < found->n_gpus; i++) {
        print_gpu_json(&json, &found->gpus[i]);
    }
    json_close(&json, ']');
    if (found->n_gpus == 0) {
        json_text(&json, "gpu_none", found->gpu_none);
    }
    json_close(&json, '}');
    putchar('\n');
}

static int at_most(int n, int room)
{
    return n < 0 ? 0 : n > room ? room : n;
}

static int run_devices(char **arguments, int n_arguments)
{
    (void)arguments, (void)n_arguments;
    static struct found found = {.audio_none = "PortAudio runs, but this host has no sound card and no sound server"};
    struct ssm_error err = {0};
    int n = card_devices(found.audio, ROOM, &err);
    if (n < 0) {
        snprintf(found.audio_none, sizeof found.audio_none, "%s", err.text);
    }
    found.n_audio = at_most(n, ROOM);
    char obstacle[200];
    names_obstacle(obstacle, sizeof obstacle, "/proc", "/dev");
    if (n == 0 && obstacle[0]) {
        snprintf(found.audio_none, sizeof found.audio_none, "PortAudio found none: %s", obstacle);
    }
    found.n_gpus = at_most(backend_cuda_devices(found.gpus, GPUS, &err), GPUS);
    snprintf(found.gpu_none, sizeof found.gpu_none, "%s", err.text);
    read_processor(found.processor, sizeof found.processor);
    (verb_json ? print_json : print_text)(&found);
    return 0;
}

const struct verb ssm_devices = {
    .name = "devices",
    .arguments = "",
    .summary = "list audio and compute devices by stable name",
    .details = "List the audio devices ssmd can capture from and play to, and what models can run on. What stands first means the\n"
               "same device after restarts and replugging, so it can stand in a configuration file: of a sound card by USB's\n"
               "numbers, else where it is plugged in, else ALSA's name of it. A part that fits one name is enough.\n"
               "On a host without sound, or without a GPU, it says why there is none.",
    .examples = "  ssm devices\n"
                "  ssm devices --json | jq -r '.audio[].device'",
    .run = run_devices,
};
