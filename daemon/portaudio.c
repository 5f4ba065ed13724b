/* SPDX-License-Identifier: MIT */
#include "daemon/portaudio.h"

#include <errno.h>
#include <fcntl.h>
#include <portaudio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/refuse.h"

enum { CHILD_SECONDS = 20, LIST_MAX = 256 };

struct audio {
    PaStream *stream;
    struct audio_request request;
    char name[256];
    bool running;
};

/* ---- Starting the library, in a child and here. ---- */

/* ALSA and JACK write what they did not find to stderr. Gives the real stderr's copy, for give_back_stderr. */
static int silence_stderr(void)
{
    fflush(stderr);
    int saved = dup(2), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, 2);
        close(null);
    }
    return saved;
}

static void give_back_stderr(int saved)
{
    if (saved >= 0) {
        dup2(saved, 2);
        close(saved);
    }
}

static PaError initialize(void)
{
    setenv("JACK_NO_START_SERVER", "1", 0);
    int saved = silence_stderr();
    PaError error = Pa_Initialize();
    give_back_stderr(saved);
    return error;
}

/* PortAudio says "JACK Audio Connection Kit". */
static const char *api_name(const PaHostApiInfo *api)
{
    return api->type == paJACK ? "JACK" : api->type == paALSA ? "ALSA" : api->name;
}

static void describe(PaDeviceIndex i, struct audio_device *device)
{
    const PaDeviceInfo *info = Pa_GetDeviceInfo(i);
    const PaHostApiInfo *api = Pa_GetHostApiInfo(info->hostApi);
    *device = (struct audio_device){.inputs = info->maxInputChannels,
                                    .outputs = info->maxOutputChannels,
                                    .rate = (int)info->defaultSampleRate,
                                    .default_input = i == Pa_GetDefaultInputDevice(),
                                    .default_output = i == Pa_GetDefaultOutputDevice()};
    double in = info->maxInputChannels > 0 ? info->defaultLowInputLatency : 1e9;
    double out = info->maxOutputChannels > 0 ? info->defaultLowOutputLatency : 1e9;
    device->latency_ms = 1000 * (in < out ? in : out);
    snprintf(device->name, sizeof device->name, "%.31s:%s", api_name(api), info->name);
}

/* The child: its answer is a count and the devices, or nothing if the library brought it down. */
static void list_in_child(int fd)
{
    alarm(CHILD_SECONDS);
    if (initialize() != paNoError) {
        _exit(1);
    }
    int n = Pa_GetDeviceCount();
    n = n < 0 ? 0 : n < LIST_MAX ? n : LIST_MAX;
    bool ok = write(fd, &n, sizeof n) == sizeof n;
    for (int i = 0; ok && i < n; i++) {
        struct audio_device device;
        describe(i, &device);
        ok = write(fd, &device, sizeof device) == sizeof device;
    }
    _exit(ok ? 0 : 1);
}

static bool read_all(int fd, void *bytes, size_t size)
{
    for (size_t n = 0; n < size;) {
        ssize_t got = read(fd, (char *)bytes + n, size - n);
        if (got <= 0 && !(got < 0 && errno == EINTR)) {
            return false;
        }
        n += got > 0 ? (size_t)got : 0;
    }
    return true;
}

int audio_devices(struct audio_device *list, int room, struct ssm_error *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) {
        return refuse(err, 71, "can't list audio devices: %s", strerror(errno));
    }
    fflush(NULL); /* or the child might print what is still in our buffers */
    pid_t child = fork();
    if (child == 0) {
        list_in_child(ends[1]);
    }
    close(ends[1]);
    int n = -1;
    bool ok = child > 0 && read_all(ends[0], &n, sizeof n);
    for (int i = 0; ok && i < n; i++) {
        struct audio_device device;
        ok = read_all(ends[0], &device, sizeof device);
        if (ok && i < room) {
            list[i] = device;
        }
    }
    close(ends[0]);
    if (child > 0) {
        waitpid(child, NULL, 0);
    }
    return ok ? n : refuse(err, 69, "the audio library can't start on this machine: is there an ALSA configuration "
                                    "(/usr/share/alsa/alsa.conf, package libasound2-data)?");
}

/* Start the library for good, once it was seen to survive. It stays until the program ends: stopping it stops every stream. */
static int start_library(struct ssm_error *err)
{
    static bool started;
    if (started) {
        return 0;
    }
    if (audio_devices(NULL, 0, err) < 0) {
        return -1;
    }
    PaError error = initialize();
    if (error != paNoError) {
        return refuse(err, 69, "the audio library can't start: %s", Pa_GetErrorText(error));
    }
    started = true;
    return 0;
}

/* ---- Finding a device by its name. ---- */

static bool fits(const struct audio_device *device, bool capture)
{
    return (capture ? device->inputs : device->outputs) > 0;
}

static PaDeviceIndex find_default(bool capture)
{
    PaDeviceIndex i = capture ? Pa_GetDefaultInputDevice() : Pa_GetDefaultOutputDevice();
    for (PaHostApiIndex api = 0; i == paNoDevice && api < Pa_GetHostApiCount(); api++) {
        const PaHostApiInfo *info = Pa_GetHostApiInfo(api);
        i = capture ? info->defaultInputDevice : info->defaultOutputDevice;
    }
    return i;
}

/* How well a device's name matches: 3 in full, 2 without the API, 1 in part, 0 not. */
static int match(const char *name, const char *wanted)
{
    const char *bare = strchr(name, ':') + 1;
    return strcmp(name, wanted) == 0 ? 3 : strcmp(bare, wanted) == 0 ? 2 : strcasestr(name, wanted) ? 1 : 0;
}

static PaDeviceIndex find_device(const char *wanted, bool capture, struct ssm_error *err)
{
    const char *kind = capture ? "capture" : "playback";
    if (strcmp(wanted, "default") == 0 || wanted[0] == '\0') {
        PaDeviceIndex i = find_default(capture);
        return i != paNoDevice ? i : refuse(err, 69, "there is no audio device for %s: ssm devices lists what there is", kind);
    }
    PaDeviceIndex best = paNoDevice;
    int best_match = 0, same = 0;
    for (PaDeviceIndex i = 0; i < Pa_GetDeviceCount(); i++) {
        struct audio_device device;
        describe(i, &device);
        int how = fits(&device, capture) ? match(device.name, wanted) : 0;
        same = how > best_match ? 1 : same + (how == best_match && how > 0);
        best = how > best_match ? i : best;
        best_match = how > best_match ? how : best_match;
    }
    if (best == paNoDevice) {
        return refuse(err, 69, "no audio device for %s is called %s: ssm devices lists what there is", kind, wanted);
    }
    return same == 1 ? best : refuse(err, 69, "%d audio devices for %s match %s: give the full name that ssm devices prints",
                                     same, kind, wanted);
}

/* ---- Streams. ---- */

static int on_buffer(const void *in, void *out, unsigned long n, const PaStreamCallbackTimeInfo *time,
                     PaStreamCallbackFlags flags, void *arg)
{
    (void)time; /* zero or wrong on too many hosts */
    const struct audio *audio = arg;
    bool trouble = flags & (audio->request.capture ? paInputOverflow : paOutputUnderflow);
    float *samples = audio->request.capture ? (float *)in : out;
    if (samples) {
        audio->request.call(audio->request.arg, samples, n, trouble);
    }
    return paContinue;
}

struct audio *audio_open(const struct audio_request *request, struct ssm_error *err)
{
    struct audio *audio = NULL;
    if (start_library(err) < 0) {
        return NULL;
    }
    PaDeviceIndex i = find_device(request->device, request->capture, err);
    if (i < 0) {
        return NULL;
    }
    audio = calloc(1, sizeof *audio);
    if (!audio) {
        refuse_memory(err);
        return NULL;
    }
    struct audio_device device;
    describe(i, &device);
    memcpy(audio->name, device.name, sizeof audio->name);
    audio->request = *request;
    const PaDeviceInfo *info = Pa_GetDeviceInfo(i);
    PaStreamParameters parameters = {.device = i,
                                     .channelCount = request->channels,
                                     .sampleFormat = paFloat32,
                                     .suggestedLatency = request->capture ? info->defaultLowInputLatency
                                                                          : info->defaultLowOutputLatency};
    double rate = request->rate > 0 ? request->rate : info->defaultSampleRate;
    int saved = silence_stderr();
    PaError error = Pa_OpenStream(&audio->stream, request->capture ? &parameters : NULL,
                                  request->capture ? NULL : &parameters, rate, paFramesPerBufferUnspecified, paNoFlag,
                                  on_buffer, audio);
    give_back_stderr(saved);
    if (error != paNoError) {
        const PaHostErrorInfo *host = Pa_GetLastHostErrorInfo();
        refuse(err, 69, "audio device %s can't be opened for %d channel%s at %.0f Hz: %s%s%s", audio->name,
               request->channels, request->channels == 1 ? "" : "s", rate, Pa_GetErrorText(error),
               error == paUnanticipatedHostError ? ": " : "", error == paUnanticipatedHostError ? host->errorText : "");
        free(audio);
        return NULL;
    }
    return audio;
}

int audio_rate(const struct audio *audio)
{
    return (int)(Pa_GetStreamInfo(audio->stream)->sampleRate + 0.5);
}

const char *audio_name(const struct audio *audio)
{
    return audio->name;
}

int audio_start(struct audio *audio, struct ssm_error *err)
{
    PaError error = Pa_StartStream(audio->stream);
    if (error != paNoError) {
        return refuse(err, 69, "audio device %s can't be started: %s", audio->name, Pa_GetErrorText(error));
    }
    audio->running = true;
    return 0;
}

void audio_stop(struct audio *audio)
{
    if (audio->running) {
        Pa_AbortStream(audio->stream);
        audio->running = false;
    }
}

void audio_close(struct audio *audio)
{
    if (audio) {
        audio_stop(audio);
        Pa_CloseStream(audio->stream);
        free(audio);
    }
}
