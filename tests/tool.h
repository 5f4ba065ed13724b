/* SPDX-License-Identifier: MIT */
#ifndef TESTS_TOOL_H
#define TESTS_TOOL_H

/* The real ssm, run as a user runs it ($SSM, or build/release/ssm), in a folder of its own; and sounds to give it. */

#include "tests/folder.h"
#include "tests/test.h"

#include <sys/wait.h>
#include <unistd.h>

#include "dsp/sound_file.h"

static char said[65536]; /* stdout and stderr of the last run, in this order */

struct sound {
    int rate, channels;
    size_t n;
    float *samples; /* (n, channels) */
    int format;
};

static inline void read_said(const char *name, size_t *at)
{
    FILE *file = fopen(in_folder(name), "rb");
    *at += fread(said + *at, 1, sizeof said - 1 - *at, file);
    said[*at] = '\0';
    fclose(file);
}

__attribute__((constructor)) static void use_models_of_tests(void)
{
    setenv("SSM_MODEL_PATH", "tests/data", 1);
}

/* Run `ssm <arguments>`, where % stands for the folder of this test; gives the exit status, 1000 for a crash. */
static inline int ssm(const char *arguments)
{
    const char *program = getenv("SSM") ? getenv("SSM") : "build/release/ssm";
    char command[4096], expanded[2048] = "";
    for (const char *a = arguments; *a; a++) {
        size_t n = strlen(expanded);
        snprintf(expanded + n, sizeof expanded - n, "%.*s", *a == '%' ? (int)strlen(folder) : 1, *a == '%' ? folder : a);
    }
    snprintf(command, sizeof command, "%s %s >%s/stdout 2>%s/stderr", program, expanded, folder, folder);
    int status = system(command);
    size_t at = 0;
    read_said("stdout", &at);
    read_said("stderr", &at);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

#define assert_runs(arguments) assert_says(0, arguments, "")
static inline void assert_says(int status, const char *arguments, const char *fragment)
{
    int got = ssm(arguments);
    if (got != status || strstr(said, fragment) == NULL) {
        fail_msg("ssm %s\nexits with %d, not %d, or does not say \"%s\" but:\n%s", arguments, got, status, fragment, said);
    }
}

/* Low-passed noise, another in each channel: all of it below 3 kHz or so, whatever the rate. */
static inline struct sound make_sound(int rate, int channels, size_t n)
{
    struct sound sound = {.rate = rate, .channels = channels, .n = n};
    uint64_t seed = 5;
    float step = fminf(1, 6000.0f / (float)rate);
    sound.samples = calloc(n * (size_t)channels + 1, sizeof(float));
    for (size_t k = 0; k < (size_t)channels; k++) {
        float a = 0, b = 0;
        for (size_t i = 0; i < n; i++) {
            a += step * (test_uniform(&seed) - a);
            b += step * (a - b);
            sound.samples[i * (size_t)channels + k] = 0.5f * b;
        }
    }
    return sound;
}

enum { FLOAT_WAV = 0x10006, WAV_16 = 0x10002 }; /* libsndfile's numbers */

static inline void write_sound(const char *name, const struct sound *sound)
{
    struct sound_file_error err;
    struct sound_file_info info = {.rate = sound->rate, .channels = sound->channels, .length = (int64_t)sound->n,
                                   .format = sound->format ? sound->format : FLOAT_WAV};
    struct sound_file *file = sound_file_create(in_folder(name), &info, false, &err);
    if (file == NULL) {
        fail_msg("%s", err.text);
    }
    assert_true(sound_file_write(file, sound->samples, sound->n, &err));
    assert_true(sound_file_commit(file, &err));
    sound_file_close(file);
}

static inline struct sound read_sound(const char *name)
{
    struct sound_file_error err;
    struct sound_file_info info;
    struct sound_file *file = sound_file_open(in_folder(name), &info, &err);
    if (file == NULL) {
        fail_msg("%s", err.text);
    }
    struct sound sound = {.rate = info.rate, .channels = info.channels, .format = info.format};
    size_t room = (size_t)info.length + 1;
    sound.samples = calloc(room * (size_t)info.channels, sizeof(float));
    sound.n = sound_file_read(file, sound.samples, room, &err);
    sound_file_close(file);
    return sound;
}

static inline float at(const struct sound *sound, size_t i, int channel)
{
    return sound->samples[i * (size_t)sound->channels + (size_t)channel];
}

static inline double largest_difference(const struct sound *a, const struct sound *b)
{
    double most = a->n == b->n && a->channels == b->channels ? 0 : INFINITY;
    for (size_t i = 0; most < INFINITY && i < a->n * (size_t)a->channels; i++) {
        double d = fabs((double)a->samples[i] - (double)b->samples[i]);
        most = d <= most ? most : d;
    }
    return most;
}

#endif
