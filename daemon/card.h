/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_CARD_H
#define DAEMON_CARD_H

/* A sound device as the daemon has it: a helper process that holds it (daemon/link.h), and a thread that takes what comes from
 * there, judges how the device is (daemon/condition.h), and opens it anew, by its name, when it was lost. Opening one device
 * anew touches no other.
 *
 * Captured samples are numbered by time: those that went by while the device was away are told as lost, as many as its clock
 * makes them (CLOCK_MONOTONIC: time that the machine was suspended isn't among it). */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/condition.h"
#include "daemon/counters.h"
#include "daemon/names.h"
#include "model/ssm.h"

/* List up to `room` devices. Gives how many there are (maybe more than room, maybe 0), or -1 with *err (69). */
int card_devices(struct sound_device *list, int room, struct ssm_error *err);

struct card;

/* Calls come on the card's thread, after card_start. */
struct card_setup {
    const char *device, *pipeline; /* borrowed; the pipeline's name is for messages */
    bool capture;                  /* else playback                                 */
    int rate;                      /* Hz; 0 = the device's own                      */
    const int *channels;           /* (n_channels) of the device, to capture; playing uses the first n_channels */
    int n_channels;
    double floor_db, silence_s;    /* capture: see struct ear                                            */
    double target_s;               /* playing: begins once so much waits; beyond twice that it's dropped */

    /* Capture: samples of the i-th channel, the last of which arrived at `arrived` ns; then n missing ones of every channel. */
    void (*take)(void *arg, int i, const float *samples, size_t n, int64_t arrived);
    void (*lose)(void *arg, uint64_t n, enum counter why);
    /* Of the i-th channel. */
    void (*tell)(void *arg, int i, enum counter counter, uint64_t n);
    /* All of a call is told; or the device has played some. */
    void (*turned)(void *arg);
    void *arg;
};

/* Open a device. Gives NULL with *err (69) when it isn't there, is busy, or doesn't do what is asked. */
struct card *card_open(const struct card_setup *setup, struct ssm_error *err);
int card_start(struct card *card, struct ssm_error *err); /* 0 or -1 */
void card_stop(struct card *card);  /* no call comes after it returns; safe to repeat */
void card_close(struct card *card); /* stops; NULL is fine */

int card_rate(const struct card *card);         /* what it really runs at, Hz */
const char *card_name(const struct card *card); /* "JACK:system", "ALSA:USB Audio (usb:046d:0825:A1B2C3,0)" */

/* Playing, one thread: offer samples of a channel; gives how many were taken, 0 while the device is away. */
size_t card_play(struct card *card, int channel, const float *samples, size_t n);
size_t card_waiting(const struct card *card, int channel); /* samples that were not played yet */
void card_play_out(struct card *card);                     /* nothing follows                  */
/* It plays what is offered: it isn't away and doesn't wait for its target. */
bool card_plays(const struct card *card);
/* Which frame of the device the sample that is offered next to a channel will be, and when, ns, it was at which frame. False: ask
 * again, it is just going on. */
struct card_position {
    uint64_t frames, next;
    int64_t at;
};
bool card_find_position(struct card *card, int channel, struct card_position *position);

/* ---- Any thread. A card that is NULL is no sound device, and as well as can be. ---- */

enum condition card_condition(const struct card *card);
/* The i-th captured channel's: CONDITION_SILENT too. */
enum condition card_channel_condition(const struct card *card, int i);
double card_silence_s(const struct card *card, int i);
double card_ppm(const struct card *card); /* how much faster than its nominal rate the device runs */
uint64_t card_changes(const struct card *card); /* of any of the conditions so far */
/* Why it was lost the last time, and how long its condition lasts; "" when it never was. */
double card_why(struct card *card, char *text, size_t size);

#endif
