/* SPDX-License-Identifier: MIT */
#include "daemon/canceller.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/card.h"
#include "dsp/clock.h"
#include "dsp/echo.h"
#include "model/refuse.h"

static const double tail_s = 0.25, kept_s = 1;
/* The reference is looked at so long ago: it comes in pieces too, and the echo is later. */
static const int64_t behind_ns = 20000000;

struct lane {
    struct echo *echo;
    float *waiting; /* (hop) */
    size_t n;
    uint64_t position; /* of the next sample to come */
};

struct canceller {
    struct canceller_setup setup;
    struct card *card;
    size_t hop;
    struct clock clock; /* the microphone's, by its first lane */
    float *reference;   /* (hop) */

    pthread_mutex_t lock; /* of the reference's clock and samples: its card's thread writes them, the microphone's reads them */
    struct clock played_clock;
    float *played;        /* (kept) a ring: sample i lies at i % kept */
    uint64_t kept, position;
    bool ready;           /* the lock was made */
    struct lane lanes[];
};

/* ---- The reference's thread. ---- */

static void put(struct canceller *canceller, float sample)
{
    canceller->played[canceller->position++ % canceller->kept] = sample;
}

static void take(void *arg, int i, const float *samples, size_t n, int64_t arrived)
{
    struct canceller *canceller = arg;
    (void)i;
    pthread_mutex_lock(&canceller->lock);
    for (size_t k = 0; k < n; k++) {
        put(canceller, samples[k]);
    }
    clock_observe(&canceller->played_clock, canceller->position, arrived);
    pthread_mutex_unlock(&canceller->lock);
}

static void lose(void *arg, uint64_t n, enum counter why)
{
    struct canceller *canceller = arg;
    (void)why;
    pthread_mutex_lock(&canceller->lock);
    for (uint64_t k = 0; k < n && k < canceller->kept; k++) {
        put(canceller, 0);
    }
    canceller->position += n > canceller->kept ? n - canceller->kept : 0; /* it is all silence by now */
    pthread_mutex_unlock(&canceller->lock);
}

static void tell(void *arg, int i, enum counter counter, uint64_t n)
{
    (void)arg, (void)i, (void)counter, (void)n; /* the microphone's losses are what counts */
}

static void turned(void *arg)
{
    (void)arg;
}

/* ---- The microphone's thread. ---- */

static float played_at(const struct canceller *canceller, int64_t i)
{
    bool there = i >= 0 && (uint64_t)i < canceller->position && (uint64_t)i + canceller->kept > canceller->position;
    return there ? canceller->played[(uint64_t)i % canceller->kept] : 0;
}

/* Between samples i and i + 1: Catmull and Rom's cubic. */
static float played_between(const struct canceller *canceller, int64_t i, float part)
{
    float a = played_at(canceller, i - 1), b = played_at(canceller, i);
    float c = played_at(canceller, i + 1), d = played_at(canceller, i + 2);
    return b + part * 0.5F * (c - a + part * (2 * a - 5 * b + 4 * c - d + part * (3 * (b - c) + d - a)));
}

/* What was played over the time of a piece that begins with the microphone's sample `position`. */
static void find_reference(struct canceller *canceller, uint64_t position)
{
    int64_t begin = clock_time(&canceller->clock, position) - behind_ns;
    double rate = canceller->setup.rate;
    pthread_mutex_lock(&canceller->lock);
    const struct clock *clock = &canceller->played_clock;
    uint64_t first = clock_count(clock, begin);
    double at = (double)(begin - clock_time(clock, first)) * 1e-9 * rate; /* of a sample after the first, or before */
    double step = (1 + clock_ppm(clock) * 1e-6) / (1 + clock_ppm(&canceller->clock) * 1e-6);
    for (size_t k = 0; k < canceller->hop; k++, at += step) {
        double whole = floor(at);
        canceller->reference[k] = played_between(canceller, (int64_t)first + (int64_t)whole, (float)(at - whole));
    }
    pthread_mutex_unlock(&canceller->lock);
}

static void cancel(struct canceller *canceller, int i, int64_t arrived)
{
    struct lane *lane = &canceller->lanes[i];
    find_reference(canceller, lane->position - canceller->hop);
    echo_cancel(lane->echo, lane->waiting, canceller->reference, lane->waiting);
    canceller->setup.give(canceller->setup.arg, i, lane->waiting, canceller->hop, arrived);
    lane->n = 0;
}

void canceller_push(struct canceller *canceller, int i, const float *samples, size_t n, int64_t arrived)
{
    struct lane *lane = &canceller->lanes[i];
    if (i == 0) {
        clock_observe(&canceller->clock, lane->position + n, arrived);
    }
    for (size_t at = 0, part; at < n; at += part) {
        size_t room = canceller->hop - lane->n;
        part = n - at < room ? n - at : room;
        memcpy(lane->waiting + lane->n, samples + at, part * sizeof *samples);
        lane->n += part;
        lane->position += part;
        if (lane->n == canceller->hop) {
            cancel(canceller, i, arrived - (int64_t)(n - at - part) * 1000000000 / canceller->setup.rate);
        }
    }
}

void canceller_flush(struct canceller *canceller, uint64_t n)
{
    for (int i = 0; i < canceller->setup.n_channels; i++) {
        struct lane *lane = &canceller->lanes[i];
        if (lane->n > 0) {
            int64_t arrived = clock_time(&canceller->clock, lane->position);
            canceller->setup.give(canceller->setup.arg, i, lane->waiting, lane->n, arrived);
        }
        lane->n = 0;
        lane->position += n;
    }
}

/* ---- Set-up and the end. ---- */

static int open_lanes(struct canceller *canceller, struct ssm_error *err)
{
    const struct canceller_setup *setup = &canceller->setup;
    canceller->hop = echo_hop(setup->rate);
    canceller->kept = (uint64_t)(kept_s * setup->rate);
    canceller->reference = calloc(canceller->hop, sizeof(float));
    canceller->played = calloc(canceller->kept, sizeof(float));
    bool ok = canceller->reference && canceller->played;
    for (int i = 0; ok && i < setup->n_channels; i++) {
        struct lane *lane = &canceller->lanes[i];
        *lane = (struct lane){.echo = echo_create(setup->rate, tail_s), .waiting = calloc(canceller->hop, sizeof(float))};
        ok = lane->echo && lane->waiting;
    }
    clock_init(&canceller->clock, setup->rate);
    clock_init(&canceller->played_clock, setup->rate);
    return ok ? 0 : refuse_memory(err);
}

struct canceller *canceller_open(const struct canceller_setup *setup, struct ssm_error *err)
{
    static const int first[] = {0};
    struct canceller *canceller = calloc(1, sizeof *canceller + (size_t)setup->n_channels * sizeof *canceller->lanes);
    if (!canceller) {
        refuse_memory(err);
        return NULL;
    }
    canceller->setup = *setup;
    canceller->ready = pthread_mutex_init(&canceller->lock, NULL) == 0;
    const struct card_setup card = {.device = setup->device, .pipeline = setup->pipeline, .capture = true, .rate = setup->rate,
                                    .channels = first, .n_channels = 1, .floor_db = -200, .take = take, .lose = lose,
                                    .tell = tell, .turned = turned, .arg = canceller};
    canceller->card = open_lanes(canceller, err) == 0 ? card_open(&card, err) : NULL;
    if (canceller->card && card_rate(canceller->card) != setup->rate) {
        refuse(err, 69, "pipeline %s: the echo's device %s runs at %d Hz, the source at %d: give the source that rate",
               setup->pipeline, card_name(canceller->card), card_rate(canceller->card), setup->rate);
    }
    if (!canceller->card || err->code != 0) {
        canceller_close(canceller);
        return NULL;
    }
    return canceller;
}

int canceller_start(struct canceller *canceller, struct ssm_error *err)
{
    return card_start(canceller->card, err);
}

void canceller_close(struct canceller *canceller)
{
    if (!canceller) {
        return;
    }
    card_close(canceller->card);
    for (int i = 0; i < canceller->setup.n_channels; i++) {
        echo_destroy(canceller->lanes[i].echo);
        free(canceller->lanes[i].waiting);
    }
    if (canceller->ready) {
        pthread_mutex_destroy(&canceller->lock);
    }
    free(canceller->reference);
    free(canceller->played);
    free(canceller);
}
