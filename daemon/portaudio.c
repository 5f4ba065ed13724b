/* SPDX-License-Identifier: MIT */
#include "daemon/portaudio.h"

#include <poll.h>
#include <portaudio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/link.h"
#include "daemon/names.h"
#include "dsp/clock.h"
#include "model/refuse.h"

enum { LOOK_MS = 20 };

struct opened {
    struct link *link;
    int socket;
    PaStream *stream;
};

/* PortAudio says "JACK Audio Connection Kit". */
static const char *api_name(const PaHostApiInfo *api)
{
    return api->type == paJACK ? "JACK" : api->type == paALSA ? "ALSA" : api->name;
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

static void describe(PaDeviceIndex i, struct sound_device *device)
{
    const PaDeviceInfo *info = Pa_GetDeviceInfo(i);
    *device = (struct sound_device){.inputs = info->maxInputChannels,
                                    .outputs = info->maxOutputChannels,
                                    .rate = (int)info->defaultSampleRate,
                                    .default_input = i == find_default(true),
                                    .default_output = i == find_default(false)};
    double in = info->maxInputChannels > 0 ? info->defaultLowInputLatency : 1e9;
    double out = info->maxOutputChannels > 0 ? info->defaultLowOutputLatency : 1e9;
    device->latency_ms = 1000 * (in < out ? in : out);
    names_fill(device, api_name(Pa_GetHostApiInfo(info->hostApi)), info->name);
}

static int describe_all(struct sound_device *list)
{
    int n = Pa_GetDeviceCount();
    n = n < 0 ? 0 : n < LINK_DEVICES ? n : LINK_DEVICES;
    for (int i = 0; i < n; i++) {
        describe(i, &list[i]);
    }
    return n;
}

/* What names_find says, and what may be in the way. */
static PaDeviceIndex find_device(const struct link *link, struct sound_device *device, struct ssm_error *err)
{
    static struct sound_device list[LINK_DEVICES];
    int n = describe_all(list), i = names_find(list, n, link->device, link->task == LINK_CAPTURE, err);
    *device = i >= 0 ? list[i] : (struct sound_device){0};
    return i >= 0 ? i : paNoDevice;
}

/* ---- The stream. ---- */

static int on_buffer(const void *in, void *out, unsigned long n, const PaStreamCallbackTimeInfo *time,
                     PaStreamCallbackFlags flags, void *arg)
{
    (void)time; /* zero or wrong on too many hosts */
    struct opened *opened = arg;
    if (in) {
        link_capture(opened->link, opened->socket, in, n, flags & paInputOverflow, clock_now());
    } else if (out) {
        link_play(opened->link, opened->socket, out, n, flags & paOutputUnderflow, clock_now());
    }
    return paContinue;
}

static int refuse_open(const struct link *link, PaError error, double rate, struct ssm_error *err)
{
    const PaHostErrorInfo *host = Pa_GetLastHostErrorInfo();
    bool told = error == paUnanticipatedHostError;
    return refuse(err, 69, "audio device %s can't be opened for %d channel%s at %.0f Hz: %s%s%s", link->name, link->width,
                  link->width == 1 ? "" : "s", rate, Pa_GetErrorText(error), told ? ": " : "", told ? host->errorText : "");
}

static int open_stream(struct opened *opened, struct ssm_error *err)
{
    struct link *link = opened->link;
    struct sound_device device;
    PaDeviceIndex i = find_device(link, &device, err);
    if (i == paNoDevice) {
        return -1;
    }
    bool capture = link->task == LINK_CAPTURE;
    memcpy(link->name, device.name, sizeof link->name);
    memcpy(link->id, device.id, sizeof link->id);
    const PaDeviceInfo *info = Pa_GetDeviceInfo(i);
    PaStreamParameters parameters = {.device = i,
                                     .channelCount = link->width,
                                     .sampleFormat = paFloat32,
                                     .suggestedLatency = capture ? info->defaultLowInputLatency : info->defaultLowOutputLatency};
    double rate = link->rate > 0 ? link->rate : info->defaultSampleRate;
    PaError error = Pa_OpenStream(&opened->stream, capture ? &parameters : NULL, capture ? NULL : &parameters, rate,
                                  paFramesPerBufferUnspecified, paNoFlag, on_buffer, opened);
    if (error != paNoError) {
        return refuse_open(link, error, rate, err);
    }
    link->got_rate = (int)(Pa_GetStreamInfo(opened->stream)->sampleRate + 0.5);
    return 0;
}

/* ---- The process. ---- */

_Noreturn static void end(const struct opened *opened, const struct ssm_error *err)
{
    if (err->code != 0) {
        char obstacle[256];
        names_obstacle(obstacle, sizeof obstacle, "/proc", "/dev");
        opened->link->error = *err;
        if (obstacle[0]) {
            refuse(&opened->link->error, err->code, "%s (%s)", err->text, obstacle);
        }
        link_say(opened->link, opened->socket, LINK_FAILED);
    }
    _exit(0); /* closing a device that failed may hang */
}

/* Until the daemon says so; it being gone ends us. */
static void wait_for_start(const struct opened *opened)
{
    char word;
    struct pollfd fd = {.fd = opened->socket, .events = POLLIN};
    while (poll(&fd, 1, -1) < 0) {
    }
    if (recv(opened->socket, &word, 1, 0) != 1) {
        _exit(0);
    }
}

static void run_stream(struct opened *opened)
{
    struct ssm_error err = {0};
    struct pollfd fd = {.fd = opened->socket, .events = POLLIN};
    link_begin(opened->link);
    PaError error = Pa_StartStream(opened->stream);
    if (error != paNoError) {
        refuse(&err, 69, "audio device %s can't be started: %s", opened->link->name, Pa_GetErrorText(error));
        end(opened, &err);
    }
    link_say(opened->link, opened->socket, LINK_RUNS);
    while (Pa_IsStreamActive(opened->stream) == 1) {
        if (poll(&fd, 1, LOOK_MS) != 0) { /* nothing but its end is to be heard from there */
            end(opened, &err);
        }
    }
    refuse(&err, 69, "it stopped");
    end(opened, &err);
}

/* A count, and the devices. */
static void send_list(int socket)
{
    static struct sound_device list[LINK_DEVICES];
    int n = describe_all(list);
    size_t size = (size_t)n * sizeof *list;
    const char *at = (const char *)list;
    if (send(socket, &n, sizeof n, MSG_NOSIGNAL) != sizeof n) {
        return;
    }
    for (ssize_t sent; size > 0 && (sent = send(socket, at, size, MSG_NOSIGNAL)) > 0; size -= (size_t)sent) {
        at += sent;
    }
}

/* The daemon's signals reach its whole group, or what systemd calls its control group: only its socket ends us. */
static void belong_to(const struct link *link)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (getppid() != link->daemon) { /* it ended before we asked to be told */
        _exit(0);
    }
}

void portaudio_main(int argc, char **argv)
{
    int memory, socket;
    if (!link_is_helper(argc, argv, &memory, &socket)) {
        return;
    }
    struct opened opened = {.link = link_map(memory), .socket = socket};
    struct ssm_error err = {0};
    if (!opened.link) {
        fprintf(stderr, "%s is for ssmd's own use\n", LINK_ARGUMENT);
        _exit(64);
    }
    belong_to(opened.link);
    setenv("JACK_NO_START_SERVER", "1", 0);
    PaError error = Pa_Initialize();
    if (error != paNoError) {
        refuse(&err, 69, "the audio library can't start: %s", Pa_GetErrorText(error));
        end(&opened, &err);
    }
    if (opened.link->task == LINK_LIST) {
        send_list(socket);
        _exit(0);
    }
    if (open_stream(&opened, &err) < 0) {
        end(&opened, &err);
    }
    link_say(opened.link, socket, LINK_OPENED);
    wait_for_start(&opened);
    run_stream(&opened);
}
