/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_NAMES_H
#define DAEMON_NAMES_H

/* What sound devices are called, so that a name means the same device after a restart and in another socket order.
 *
 * A device has up to two names. `id`, of a card's own devices: "usb:046d:0825:A1B2C3,0" where its USB tells a serial number,
 * else "path:pci-0000:00:14.0-usb-0:2:1.0,0" where udev knows the place it is plugged into, else "card:PCH,0" by ALSA's id; the
 * last number is the device on the card. `name`: "ALSA:USB Audio", "JACK:system", without the numbers (hw:1,0), which change.
 *
 * What is asked for is "default" or "", else an id in full, a name in full, a name without its "API:", else a part of
 * exactly one device's name. */

#include <stdbool.h>
#include <stddef.h>

#include "model/ssm.h"

struct sound_device {
    char name[256], id[128]; /* id "": it has none, the name is stable       */
    int inputs, outputs;     /* channels; 0 when it can't capture or play    */
    int rate;                /* its own sample rate, Hz                      */
    double latency_ms;       /* the lower of its default capture and playback latencies */
    bool default_input, default_output;
};

/* The device that is asked for, by its place in the list (n); -1 with *err (69). */
int names_find(const struct sound_device *list, int n, const char *wanted, bool capture, struct ssm_error *err);

/* Fill in name and id from what PortAudio says: "USB Audio (hw:1,0)" of the host API "ALSA". */
void names_fill(struct sound_device *device, const char *api, const char *name);

/* Why a device that should be there may not be: who holds it (/proc/asound), or whose group may open it (/dev/snd); "" when
 * nothing is seen. roots: "/proc" and "/dev". */
void names_obstacle(char *text, size_t size, const char *proc, const char *dev);

/* Sound cards that come and go. NULL: there is no udev here. One thread. */
struct hotplug;
struct hotplug *hotplug_open(void);
void hotplug_close(struct hotplug *hotplug); /* NULL is fine */
int hotplug_fd(const struct hotplug *hotplug); /* readable: there is something to be seen */
bool hotplug_seen(struct hotplug *hotplug);    /* a sound card came, since the last call */

#endif
