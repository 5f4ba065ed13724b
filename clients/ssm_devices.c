/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clients/json.h"
#include "clients/verb.h"
#include "daemon/portaudio.h"
#include "kernels/kernels.h"

enum { ROOM = 256 };

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

static const char *describe_defaults(const struct audio_device *device)
{
    return device->default_input && device->default_output ? "default input and output"
           : device->default_input                         ? "default input"
           : device->default_output                        ? "default output"
                                                           : "";
}

static void print_text(const struct audio_device *devices, int n, const char *why_none, const char *processor)
{
    printf("Audio devices, by the name to write after \"device:\" in the YAML:\n");
    for (int i = 0; i < n; i++) {
        const struct audio_device *d = &devices[i];
        printf("  %-40s %2d in %2d out %6d Hz %5.1f ms  %s\n", d->name, d->inputs, d->outputs, d->rate, d->latency_ms,
               describe_defaults(d));
    }
    if (n == 0) {
        printf("  none: %s\n", why_none);
    }
    printf("\nCompute devices, by the name to give to --device:\n");
    printf("  cpu    %s kernels, %ld cores, %s\n", kernels_best()->name, sysconf(_SC_NPROCESSORS_ONLN), processor);
}

static void print_json(const struct audio_device *devices, int n, const char *why_none, const char *processor)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_open(&json, "audio", '[');
    for (int i = 0; i < n; i++) {
        json_open(&json, NULL, '{');
        json_text(&json, "name", devices[i].name);
        json_integer(&json, "inputs", devices[i].inputs);
        json_integer(&json, "outputs", devices[i].outputs);
        json_integer(&json, "rate", devices[i].rate);
        json_number(&json, "latency_ms", devices[i].latency_ms);
        json_flag(&json, "default_input", devices[i].default_input);
        json_flag(&json, "default_output", devices[i].default_output);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    if (n == 0) {
        json_text(&json, "audio_none", why_none);
    }
    json_open(&json, "compute", '[');
    json_open(&json, NULL, '{');
    json_text(&json, "name", "cpu");
    json_text(&json, "kernels", kernels_best()->name);
    json_integer(&json, "cores", sysconf(_SC_NPROCESSORS_ONLN));
    json_text(&json, "processor", processor);
    json_close(&json, '}');
    json_close(&json, ']');
    json_close(&json, '}');
    putchar('\n');
}

static int run_devices(char **arguments, int n_arguments)
{
    (void)arguments, (void)n_arguments;
    static struct audio_device devices[ROOM];
    struct ssm_error err = {0};
    char processor[128];
    int n = audio_devices(devices, ROOM, &err);
    const char *why_none = n < 0 ? err.text : "PortAudio runs, but this host has no sound card and no sound server";
    n = n < 0 ? 0 : n > ROOM ? ROOM : n;
    read_processor(processor, sizeof processor);
    (verb_json ? print_json : print_text)(devices, n, why_none, processor);
    return 0;
}

const struct verb ssm_devices = {
    .name = "devices",
    .arguments = "",
    .summary = "list audio and compute devices by stable name",
    .details = "List the audio devices ssmd can capture from and play to, and what models can run on. A name stays the same\n"
               "over restarts and replugging, so it can stand in a configuration file; a part that fits one name is enough.\n"
               "On a host without sound it says why there is none.",
    .examples = "  ssm devices\n"
                "  ssm devices --json | jq -r '.audio[].name'",
    .run = run_devices,
};
