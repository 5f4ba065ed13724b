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

#endif
