/* SPDX-License-Identifier: MIT */
#include "daemon/card.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/link.h"
#include "daemon/log.h"
#include "daemon/waker.h"
#include "dsp/clock.h"
#include "dsp/ring.h"
#include "model/refuse.h"

enum { BLOCK = 1024, LOOK_MS = 50, LISTING_MS = 20000 };
static const int64_t most_wait = 500000000, most_wait_for_news = 5000000000; /* between two tries, ns */
static const int64_t most_delay = 50000000;                                  /* of an arrival, ns     */
static const double most_ppm = 2000;

/* How far the first opening has come, for who waits for it. */
enum phase { PHASE_OPENING, PHASE_OPENED, PHASE_RUNNING, PHASE_FAILED };

/* What others may ask of a channel. */
struct channel {
    struct ear ear; /* the thread's */
    atomic_bool silent;
    _Atomic double silence_s;
};

struct card {
    struct card_setup setup;
    struct link *link;
    int memory;
    char name[LINK_NAME + LINK_NAME / 2 + 8];
    pthread_t thread;
    bool threaded;
    struct waker waker; /* of the thread */
    atomic_bool stopping, starting;

    pthread_mutex_t lock; /* phase, error, why, since */
    pthread_cond_t changed;
    enum phase phase;
    struct ssm_error error;
    char why[sizeof((struct ssm_error *)0)->text];
    int64_t since;

    /* The thread's. */
    struct helper helper;
    struct hotplug *hotplug;
    struct tending tending;
    enum stage_of_opening opening;
    bool opened, nudged, anew; /* anew: the next block is the first one of a helper */
    struct clock clock;
    uint64_t position; /* samples captured or lost; frames played */
    int64_t arrived;   /* the last of them, ns */
    uint64_t troubles, dropped, inserted; /* of the link's, told so far */
    char said[256]; /* on the helper's stderr, up to a whole line */
    size_t n_said;
    float block[BLOCK];

    _Atomic int condition;
    _Atomic double ppm;
    _Atomic uint64_t changes;
    atomic_bool playing; /* there is a helper that takes what is written */
    struct channel channels[];
};

/* ---- Listing. ---- */

static bool read_all(int fd, void *bytes, size_t size)
{
    for (size_t n = 0; n < size;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        ssize_t got = poll(&ready, 1, LISTING_MS) > 0 ? recv(fd, (char *)bytes + n, size - n, 0) : 0;
        if (got <= 0) {
            return false;
        }
        n += (size_t)got;
    }
    return true;
}

/* A link that only lists has no rings. */
static int list(struct link *link, int memory, struct sound_device *devices, int room, struct ssm_error *err)
{
    struct helper helper;
    struct sound_device device;
    int n = -1;
    link->task = LINK_LIST;
    if (link_start_helper(&helper, link, memory, err) < 0) {
        return -1;
    }
    bool ok = read_all(helper.socket, &n, sizeof n) && n >= 0 && n <= LINK_DEVICES;
    for (int i = 0; ok && i < n; i++) {
        ok = read_all(helper.socket, &device, sizeof device);
        if (ok && i < room) {
            devices[i] = device;
        }
    }
    link_end_helper(&helper);
    return ok ? n : refuse(err, 69, "the audio library can't start on this machine: is there an ALSA configuration "
                                    "(/usr/share/alsa/alsa.conf, package libasound2-data)?");
}

int card_devices(struct sound_device *devices, int room, struct ssm_error *err)
{
    int memory;
    struct link *link = link_create(0, &memory);
    if (!link) {
        return refuse_memory(err);
    }
    int n = list(link, memory, devices, room, err);
    link_unmap(link);
    close(memory);
    return n;
}

/* ---- What others see. ---- */

static void set_phase(struct card *card, enum phase phase, const struct ssm_error *error)
{
    pthread_mutex_lock(&card->lock);
    card->phase = phase;
    card->error = error ? *error : card->error;
    pthread_cond_broadcast(&card->changed);
    pthread_mutex_unlock(&card->lock);
}

static enum phase wait_beyond(struct card *card, enum phase phase, struct ssm_error *err)
{
    pthread_mutex_lock(&card->lock);
    while (card->phase <= phase) {
        pthread_cond_wait(&card->changed, &card->lock);
    }
    phase = card->phase;
    if (phase == PHASE_FAILED) {
        *err = card->error;
    }
    pthread_mutex_unlock(&card->lock);
    return phase;
}

static void note_why(struct card *card, const char *why)
{
    pthread_mutex_lock(&card->lock);
    snprintf(card->why, sizeof card->why, "%s", why);
    pthread_mutex_unlock(&card->lock);
}

static void tell_condition(struct card *card, enum condition before, int64_t lasted)
{
    enum condition now = card->tending.condition;
    const char *pipeline = card->setup.pipeline;
    pthread_mutex_lock(&card->lock);
    card->since = card->tending.since;
    pthread_mutex_unlock(&card->lock);
    if (now == CONDITION_LOST) {
        log_line(LOG_WARNING, "pipeline %s: audio device %s is lost: %s", pipeline, card->name, card->why);
    } else if (now == CONDITION_STALLED) {
        log_line(LOG_WARNING, "pipeline %s: audio device %s has stalled", pipeline, card->name);
    } else if (now == CONDITION_OK && before == CONDITION_STALLED) {
        log_line(LOG_INFO, "pipeline %s: audio device %s goes on after %.1f s", pipeline, card->name, (double)lasted / 1e9);
    } else if (now == CONDITION_OK && card->why[0]) {
        log_line(LOG_INFO, "pipeline %s: audio device %s is back", pipeline, card->name);
    }
}

static void show_condition(struct card *card)
{
    enum condition before = (enum condition)atomic_load(&card->condition);
    if (before != card->tending.condition) {
        tell_condition(card, before, card->tending.since - card->since);
        atomic_store(&card->condition, card->tending.condition);
        atomic_fetch_add(&card->changes, 1);
    }
}

/* ---- What comes from the helper. ---- */

static void hear(struct card *card, int i, const float *samples, size_t n)
{
    struct channel *channel = &card->channels[i];
    struct heard heard = ear_hear(&channel->ear, samples, n);
    card->setup.tell(card->setup.arg, i, COUNTER_CLIPPED, heard.clipped);
    card->setup.tell(card->setup.arg, i, COUNTER_OFFSET, heard.offset);
    atomic_store_explicit(&channel->silence_s, channel->ear.silence_s, memory_order_relaxed);
    if (atomic_load_explicit(&channel->silent, memory_order_relaxed) != channel->ear.silent) {
        log_line(channel->ear.silent ? LOG_WARNING : LOG_INFO, "pipeline %s: channel %d of %s %s", card->setup.pipeline,
                 card->link->channels[i], card->name, channel->ear.silent ? "gives nothing but silence" : "is heard again");
        atomic_store(&channel->silent, channel->ear.silent);
        atomic_fetch_add(&card->changes, 1);
    }
}

static void lose(struct card *card, uint64_t n, enum counter why)
{
    if (n > 0) {
        card->position += n;
        card->setup.lose(card->setup.arg, n, why);
    }
}

/* Samples that the device should have given by `now`, and didn't: since its last one's time by its clock. What a server gives in
 * bursts at first can lead a clock far astray, so both that time and the rate are held near what they have to be. */
static uint64_t missing(const struct card *card, int64_t now)
{
    int64_t last = clock_time(&card->clock, card->position);
    last = last > card->arrived ? card->arrived : last < card->arrived - most_delay ? card->arrived - most_delay : last;
    double rate = card_rate(card) * (1 + fmax(-most_ppm, fmin(most_ppm, clock_ppm(&card->clock))) * 1e-6);
    return card->clock.started && now > last ? (uint64_t)llround((double)(now - last) * 1e-9 * rate) : 0;
}

static void take_part(struct card *card, size_t n, int64_t arrived)
{
    for (int i = 0; i < card->link->n_channels; i++) {
        ring_read(link_ring(card->link, i), card->block, n);
        hear(card, i, card->block, n);
        card->setup.take(card->setup.arg, i, card->block, n, arrived);
    }
    card->position += n;
}

static void take_block(struct card *card, const struct link_block *block)
{
    int64_t sample = 1000000000 / card_rate(card);
    lose(card, block->lost, COUNTER_RING_FULL);
    if (card->anew) {
        lose(card, missing(card, block->arrived - (int64_t)block->n * sample), COUNTER_DEVICE_LOST);
    }
    card->anew = false;
    for (size_t at = 0, n; at < block->n; at += n) {
        n = block->n - at < BLOCK ? block->n - at : BLOCK;
        take_part(card, n, block->arrived - (int64_t)(block->n - at - n) * sample);
    }
    card->arrived = block->arrived;
    clock_observe(&card->clock, card->position, block->arrived);
}

static void observe_playing(struct card *card)
{
    struct link_position position;
    if (link_find_position(card->link, &position)) {
        clock_observe(&card->clock, position.frames, position.at);
    }
}

static void tell_risen(struct card *card, const _Atomic uint64_t *count, uint64_t *told, enum counter counter)
{
    uint64_t now = atomic_load_explicit(count, memory_order_relaxed);
    card->setup.tell(card->setup.arg, 0, counter, now - *told);
    *told = now;
}

static void take_all(struct card *card)
{
    struct link *link = card->link;
    struct link_block block;
    while (card->setup.capture && link_next_block(link, &block)) {
        take_block(card, &block);
    }
    if (!card->setup.capture) {
        observe_playing(card);
    }
    enum counter trouble = card->setup.capture ? COUNTER_DEVICE_OVERFLOW : COUNTER_DEVICE_UNDERFLOW;
    tell_risen(card, &link->troubles, &card->troubles, trouble);
    tell_risen(card, &link->dropped, &card->dropped, COUNTER_PLAYBACK_DROPPED);
    tell_risen(card, &link->inserted, &card->inserted, COUNTER_PLAYBACK_INSERTED);
    atomic_store_explicit(&card->ppm, clock_ppm(&card->clock), memory_order_relaxed);
    card->setup.turned(card->setup.arg);
}

static void log_said(struct card *card)
{
    card->said[card->n_said] = '\0';
    card->n_said = 0;
    log_line(LOG_DEBUG, "pipeline %s: audio device %s: %s", card->setup.pipeline, card->setup.device, card->said);
}

/* What ALSA and JACK write. */
static void take_errors(struct card *card)
{
    char text[1024];
    ssize_t n = read(card->helper.errors, text, sizeof text);
    for (ssize_t i = 0; i < n; i++) {
        if (text[i] == '\n') {
            log_said(card);
        } else if (card->n_said < sizeof card->said - 1) {
            card->said[card->n_said++] = text[i];
        }
    }
    if (n == 0) { /* its end is told by the socket */
        close(card->helper.errors);
        card->helper.errors = -1;
    }
}

static void take_word(struct card *card, char word)
{
    switch (word) {
    case LINK_OPENED:
        card->opened = true;
        break;
    case LINK_RUNS:
        card->opening = OPENING_DONE;
        atomic_store(&card->playing, true);
        break;
    case LINK_FAILED:
        card->opening = OPENING_FAILED;
        break;
    default:
        break; /* a wake: there may be samples */
    }
}

/* Its end is a failure without words. */
static void take_words(struct card *card)
{
    char words[64];
    atomic_exchange(&card->link->pending, false);
    ssize_t n = recv(card->helper.socket, words, sizeof words, MSG_DONTWAIT);
    for (ssize_t i = 0; i < n; i++) {
        take_word(card, words[i]);
    }
    if ((n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) && card->opening != OPENING_FAILED) {
        refuse(&card->link->error, 69, card->opened ? "its helper process ended" : "audio device %s: its helper process ended",
               card->setup.device);
        card->opening = OPENING_FAILED;
    }
}

/* Wait until something comes, or for a while; take it. */
static void attend(struct card *card, int timeout_ms)
{
    struct pollfd fds[] = {{.fd = card->waker.fd, .events = POLLIN},
                           {.fd = card->helper.socket, .events = POLLIN},
                           {.fd = card->helper.errors, .events = POLLIN},
                           {.fd = card->hotplug ? hotplug_fd(card->hotplug) : -1, .events = POLLIN}};
    if (poll(fds, 4, timeout_ms) <= 0) {
        return;
    }
    if (fds[0].revents) {
        waker_wait(&card->waker, 0);
    }
    if (fds[2].revents) {
        take_errors(card);
    }
    if (fds[1].revents) {
        take_words(card);
    }
    card->nudged = fds[3].revents && hotplug_seen(card->hotplug);
}

/* ---- The thread. ---- */

static void open_helper(struct card *card, bool start)
{
    card->opened = false;
    card->link->error = (struct ssm_error){0};
    bool ok = link_start_helper(&card->helper, card->link, card->memory, &card->link->error) == 0;
    card->opening = ok ? OPENING_BEGUN : OPENING_FAILED;
    if (ok && start) {
        send(card->helper.socket, "s", 1, MSG_NOSIGNAL);
    }
}

static void close_helper(struct card *card)
{
    atomic_store(&card->playing, false);
    link_end_helper(&card->helper);
    take_all(card);
    link_drop_rest(card->link);
    card->anew = true;
    card->opening = OPENING_NONE;
}

/* Attend until `done`, which is the helper's to set, or it failed. */
static bool wait_for_helper(struct card *card, const bool *done)
{
    int64_t until = clock_now() + (int64_t)LISTING_MS * 1000000;
    while (!*done && card->opening == OPENING_BEGUN && !atomic_load(&card->stopping)) {
        attend(card, LOOK_MS);
        if (clock_now() > until) {
            refuse(&card->link->error, 69, "audio device %s takes too long to open", card->setup.device);
            card->opening = OPENING_FAILED;
        }
    }
    return *done || card->opening == OPENING_DONE;
}

/* The first opening: whoever asked for it waits for each step. */
static bool open_first(struct card *card)
{
    static const bool never = false;
    open_helper(card, false);
    if (wait_for_helper(card, &card->opened)) {
        set_phase(card, PHASE_OPENED, NULL);
        while (!atomic_load(&card->starting) && !atomic_load(&card->stopping)) {
            attend(card, -1);
        }
        send(card->helper.socket, "s", 1, MSG_NOSIGNAL);
        if (wait_for_helper(card, &never)) {
            set_phase(card, PHASE_RUNNING, NULL);
            return true;
        }
    }
    set_phase(card, PHASE_FAILED, &card->link->error);
    return false;
}

static struct sight look(const struct card *card)
{
    return (struct sight){.now = clock_now(), .asleep = clock_asleep(), .opening = card->opening,
                          .calls = atomic_load_explicit(&card->link->calls, memory_order_relaxed), .nudged = card->nudged};
}

static void follow(struct card *card, enum order order)
{
    if (order == ORDER_CLOSE) {
        note_why(card, card->tending.why ? card->tending.why : card->link->error.text);
        close_helper(card);
    } else if (order == ORDER_OPEN) {
        open_helper(card, true);
    }
}

static void *tend(void *arg)
{
    struct card *card = arg;
    if (open_first(card)) {
        struct sight sight = look(card);
        card->hotplug = card->link->id[0] ? hotplug_open() : NULL; /* a sound server's devices aren't told of there */
        tending_init(&card->tending, &sight, card->hotplug ? most_wait_for_news : most_wait);
        while (!atomic_load(&card->stopping)) {
            sight = look(card);
            follow(card, tending_turn(&card->tending, &sight));
            show_condition(card);
            attend(card, LOOK_MS);
            take_all(card);
        }
        if (card->opening != OPENING_DONE) {
            lose(card, missing(card, clock_now()), COUNTER_DEVICE_LOST);
        }
    }
    hotplug_close(card->hotplug);
    link_end_helper(&card->helper);
    return NULL;
}

/* ---- Set-up and the end. ---- */

static int set_up_link(struct card *card, struct ssm_error *err)
{
    const struct card_setup *setup = &card->setup;
    struct link *link = card->link = link_create(setup->n_channels, &card->memory);
    if (!link) {
        card->memory = -1;
        return refuse_memory(err);
    }
    link->task = setup->capture ? LINK_CAPTURE : LINK_PLAY;
    link->rate = setup->rate;
    snprintf(link->device, sizeof link->device, "%s", setup->device);
    for (int i = 0; i < setup->n_channels; i++) {
        link->channels[i] = setup->capture ? setup->channels[i] : i;
        link->width = link->channels[i] >= link->width ? link->channels[i] + 1 : link->width;
    }
    return 0;
}

/* The rate is known now, and stays: should the device come back with another one, it's asked for this. */
static void set_up_rate(struct card *card)
{
    struct link *link = card->link;
    const struct card_setup *setup = &card->setup;
    link->rate = link->got_rate;
    link->target = (size_t)(setup->target_s * link->rate);
    clock_init(&card->clock, link->rate);
    for (int i = 0; i < link->n_channels; i++) {
        ear_init(&card->channels[i].ear, setup->floor_db, setup->silence_s, link->rate);
    }
    snprintf(card->name, sizeof card->name, link->id[0] ? "%s (%s)" : "%s", link->name, link->id);
}

struct card *card_open(const struct card_setup *setup, struct ssm_error *err)
{
    struct card *card = calloc(1, sizeof *card + (size_t)setup->n_channels * sizeof *card->channels);
    if (!card) {
        refuse_memory(err);
        return NULL;
    }
    card->setup = *setup;
    card->helper = (struct helper){.socket = -1, .errors = -1};
    card->since = clock_now();
    atomic_init(&card->condition, CONDITION_RECOVERING);
    pthread_mutex_init(&card->lock, NULL);
    pthread_cond_init(&card->changed, NULL);
    if (waker_init(&card->waker) < 0 || set_up_link(card, err) < 0) {
        refuse(err, 71, "can't share memory with a process for a sound device: %s", strerror(errno));
        goto fail;
    }
    card->threaded = pthread_create(&card->thread, NULL, tend, card) == 0;
    if (!card->threaded) {
        refuse(err, 71, "the thread of a sound device can't be started");
        goto fail;
    }
    if (wait_beyond(card, PHASE_OPENING, err) == PHASE_FAILED) {
        goto fail;
    }
    set_up_rate(card);
    return card;
fail:
    card_close(card);
    return NULL;
}

int card_start(struct card *card, struct ssm_error *err)
{
    atomic_store(&card->starting, true);
    waker_wake(&card->waker);
    return wait_beyond(card, PHASE_OPENED, err) == PHASE_FAILED ? -1 : 0;
}

void card_stop(struct card *card)
{
    if (card->threaded) {
        atomic_store(&card->stopping, true);
        waker_wake(&card->waker);
        pthread_join(card->thread, NULL);
        card->threaded = false;
    }
}

void card_close(struct card *card)
{
    if (!card) {
        return;
    }
    card_stop(card);
    link_unmap(card->link);
    if (card->memory >= 0) {
        close(card->memory);
    }
    waker_finish(&card->waker);
    pthread_cond_destroy(&card->changed);
    pthread_mutex_destroy(&card->lock);
    free(card);
}

int card_rate(const struct card *card)
{
    return card->link->rate;
}

const char *card_name(const struct card *card)
{
    return card->name;
}

/* ---- Playing. ---- */

size_t card_play(struct card *card, int channel, const float *samples, size_t n)
{
    return atomic_load(&card->playing) ? ring_write(link_ring(card->link, channel), samples, n) : 0;
}

size_t card_waiting(const struct card *card, int channel)
{
    return ring_fill(link_ring(card->link, channel));
}

void card_play_out(struct card *card)
{
    atomic_store(&card->link->ended, true);
}

bool card_plays(const struct card *card)
{
    return atomic_load(&card->playing) && !atomic_load(&card->link->filling);
}

bool card_find_position(struct card *card, int channel, struct card_position *position)
{
    struct link *link = card->link;
    struct link_position now;
    struct ring *ring = link_ring(link, channel);
    if (!link_find_position(link, &now)) {
        return false;
    }
    *position = (struct card_position){.frames = now.frames, .next = ring_end(ring) + (uint64_t)now.slip, .at = now.at};
    return true;
}

/* ---- Any thread. ---- */

enum condition card_condition(const struct card *card)
{
    return card ? (enum condition)atomic_load(&card->condition) : CONDITION_OK;
}

enum condition card_channel_condition(const struct card *card, int i)
{
    enum condition condition = card_condition(card);
    return card && condition == CONDITION_OK && atomic_load(&card->channels[i].silent) ? CONDITION_SILENT : condition;
}

double card_silence_s(const struct card *card, int i)
{
    return atomic_load_explicit(&card->channels[i].silence_s, memory_order_relaxed);
}

double card_ppm(const struct card *card)
{
    return atomic_load_explicit(&card->ppm, memory_order_relaxed);
}

uint64_t card_changes(const struct card *card)
{
    return card ? atomic_load(&card->changes) : 0;
}

double card_why(struct card *card, char *text, size_t size)
{
    pthread_mutex_lock(&card->lock);
    snprintf(text, size, "%s", card->why);
    int64_t since = card->since;
    pthread_mutex_unlock(&card->lock);
    return (double)(clock_now() - since) / 1e9;
}
