/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_PORTAUDIO_H
#define DAEMON_PORTAUDIO_H

/* Sound cards and sound servers, through PortAudio. Only daemon/portaudio.c includes portaudio.h.
 *
 * A device is known by its name "API:name" ("ALSA:default", "JACK:system"), never by a number. Where a name is asked for:
 * "default", else the exact "API:name", else the exact bare name, else a part of exactly one device's name.
 *
 * The library's start may abort the process on a host without ALSA configuration, so a forked child tries it first; what the
 * probing prints is kept off stderr. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/ssm.h"

struct audio_device {
    char name[256];      /* "JACK:system"                                                               */
    int inputs, outputs; /* channels; 0 when it can't capture or play                                   */
    int rate;            /* its own sample rate, Hz                                                     */
    double latency_ms;   /* the lower of its default capture and playback latencies                     */
    bool default_input, default_output;
};

/* List up to `room` devices. Gives how many there are (maybe more than room, maybe 0), or -1 with *err (code 69). The listing
 * runs wholly in a child process: it can be called at any time and leaves nothing behind. */
int audio_devices(struct audio_device *list, int room, struct ssm_error *err);

/* An open device that is not running yet. */
struct audio;

struct audio_request {
    const char *device;
    bool capture;  /* else playback                                                               */
    int channels;  /* interleaved                                                                 */
    int rate;      /* Hz; 0 = the device's own                                                    */
    /* Called on PortAudio's thread with n interleaved samples a channel, to read (capture) or to fill (playback).
     * trouble: the device lost input, or ran dry, since the last call. */
    void (*call)(void *arg, float *samples, size_t n, bool trouble);
    void *arg;
};

/* Open a device. Gives NULL with *err (69) when it isn't there, is busy, or doesn't do what is asked. Set-up thread. */
struct audio *audio_open(const struct audio_request *request, struct ssm_error *err);
int audio_rate(const struct audio *audio);         /* what it really runs at, Hz */
const char *audio_name(const struct audio *audio); /* "JACK:system"              */
int audio_start(struct audio *audio, struct ssm_error *err); /* 0 or -1 */
void audio_stop(struct audio *audio);  /* no call comes after it returns; safe to repeat */
void audio_close(struct audio *audio); /* stops; NULL is fine */

#endif
