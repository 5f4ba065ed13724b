/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/log.h"
#include "daemon/portaudio.h"
#include "daemon/sink.h"
#include "daemon/waker.h"
#include "dsp/clock.h"
#include "dsp/resample.h"
#include "dsp/ring.h"
#include "model/refuse.h"

/* Playback. The engine thread resamples into a ring a channel, the device takes from it. The two clocks drift apart: the ring
 * is kept between nothing and twice its target; beyond that samples are dropped, below it silence is inserted, both counted.
 * (A resampler slewed by a delay-locked loop is to take the place of dropping and inserting.) */
enum { TARGET_MS = 40, BLOCK = 512, DRAIN_MS = 500 };

struct player {
    struct ring *ring;
    struct resampler *resampler;
    bool filling; /* the device's: waiting for the ring to reach its target */
    float samples[BLOCK];
};

struct audio_sink {
    struct sink sink;
    struct audio *audio;
    struct counters *counters;
    struct waker *engine; /* NULL: it doesn't wait for room */
    int n, rate, model_rate;
    size_t target; /* samples at the device's rate */
    bool started;
    atomic_int ended; /* channels */
    float block[BLOCK];
    struct player players[];
};

/* ---- Engine thread. ---- */

/* What fills the ring to twice its target, at the model's rate. */
static size_t audio_room(const struct sink *sink, int channel)
{
    const struct audio_sink *audio = (const struct audio_sink *)sink;
    size_t fill = ring_fill(audio->players[channel].ring);
    size_t room = fill < 2 * audio->target ? 2 * audio->target - fill : 0;
    return room * (size_t)audio->model_rate / (size_t)audio->rate;
}

static void audio_write(struct sink *sink, int channel, const struct delivery *hop)
{
    struct audio_sink *audio = (struct audio_sink *)sink;
    struct player *player = &audio->players[channel];
    for (size_t at = 0, used, n = 1; at < hop->n || n == BLOCK; at += used) {
        n = resampler_push(player->resampler, hop->samples + at, hop->n - at, &used, audio->block, BLOCK, 0);
        size_t fits = ring_write(player->ring, audio->block, n);
        count(&audio->counters[channel], COUNTER_PLAYBACK_DROPPED, n - fits);
    }
}

static void audio_end(struct sink *sink, int channel, const struct hole *hole, uint64_t length)
{
    (void)channel, (void)hole, (void)length;
    atomic_fetch_add(&((struct audio_sink *)sink)->ended, 1);
}

/* ---- PortAudio's thread. ---- */

/* Take up to n samples for one channel; gives how many, the rest is silence. */
static size_t take(struct audio_sink *audio, int channel, size_t n)
{
    struct player *player = &audio->players[channel];
    size_t fill = ring_fill(player->ring);
    bool ended = atomic_load(&audio->ended) > 0;
    if (fill > 2 * audio->target + n) {
        count(&audio->counters[channel], COUNTER_PLAYBACK_DROPPED, ring_skip(player->ring, fill - audio->target - n));
        fill = ring_fill(player->ring);
    }
    player->filling = player->filling && fill < audio->target + n && !ended;
    if (player->filling) {
        return 0;
    }
    if (fill < n && !ended) {
        count(&audio->counters[channel], COUNTER_PLAYBACK_INSERTED, n - fill);
        player->filling = true;
    }
    n = fill < n ? fill : n;
    return ring_read(player->ring, player->samples, n);
}

static void play(void *arg, float *samples, size_t n, bool trouble)
{
    struct audio_sink *audio = arg;
    size_t width = (size_t)audio->n;
    memset(samples, 0, n * width * sizeof *samples);
    for (size_t at = 0, part; at < n; at += part) {
        part = n - at < BLOCK ? n - at : BLOCK;
        for (int i = 0; i < audio->n; i++) {
            size_t got = take(audio, i, part);
            for (size_t k = 0; k < got; k++) {
                samples[(at + k) * width + (size_t)i] = audio->players[i].samples[k];
            }
        }
    }
    count(&audio->counters[0], COUNTER_DEVICE_UNDERFLOW, trouble);
    if (audio->engine) {
        waker_wake(audio->engine);
    }
}

/* ---- Set-up and the end. ---- */

/* Let the device play what is left. */
static void play_out(struct audio_sink *audio)
{
    const struct timespec moment = {.tv_nsec = 5000000};
    int64_t until = clock_now() + (int64_t)DRAIN_MS * 1000000;
    for (int i = 0; i < audio->n; i++) {
        while (ring_fill(audio->players[i].ring) > 0 && clock_now() < until) {
            nanosleep(&moment, NULL);
        }
    }
}

static void audio_sink_close(struct sink *sink)
{
    struct audio_sink *audio = (struct audio_sink *)sink;
    if (audio->started && atomic_load(&audio->ended) == audio->n) {
        play_out(audio);
    }
    audio_close(audio->audio);
    for (int i = 0; i < audio->n; i++) {
        ring_destroy(audio->players[i].ring);
        resampler_destroy(audio->players[i].resampler);
    }
    free(audio);
}

static struct sink *audio_sink_open(const struct sink_setup *setup, struct ssm_error *err)
{
    size_t n = (size_t)setup->n_channels;
    struct audio_sink *audio = calloc(1, sizeof *audio + n * sizeof *audio->players);
    if (!audio) {
        refuse_memory(err);
        return NULL;
    }
    audio->sink.ops = &sink_audio;
    audio->counters = setup->counters;
    audio->engine = setup->patient ? setup->engine : NULL;
    audio->n = setup->n_channels;
    audio->model_rate = setup->model->rate;
    const struct audio_request request = {.device = setup->config->device, .channels = audio->n,
                                          .rate = setup->config->rate, .call = play, .arg = audio};
    audio->audio = audio_open(&request, err);
    if (!audio->audio) {
        goto fail;
    }
    int rate = audio->rate = audio_rate(audio->audio);
    audio->target = (size_t)rate * TARGET_MS / 1000;
    for (int i = 0; i < audio->n; i++) {
        audio->players[i] = (struct player){.ring = ring_create((size_t)rate),
                                            .resampler = resampler_create(setup->model->rate, rate, RESAMPLER_LIVE),
                                            .filling = true};
        if (!audio->players[i].ring || !audio->players[i].resampler) {
            refuse_memory(err);
            goto fail;
        }
    }
    log_line(LOG_INFO, "pipeline %s plays on %s at %d Hz", setup->pipeline, audio_name(audio->audio), rate);
    return &audio->sink;
fail:
    audio_sink_close(&audio->sink);
    return NULL;
}

static int audio_sink_start(struct sink *sink, struct ssm_error *err)
{
    struct audio_sink *audio = (struct audio_sink *)sink;
    audio->started = audio_start(audio->audio, err) == 0;
    return audio->started ? 0 : -1;
}

const struct sink_ops sink_audio = {.name = "audio",
                                    .takes = SINK_TAKES_SAMPLES,
                                    .open = audio_sink_open,
                                    .start = audio_sink_start,
                                    .room = audio_room,
                                    .write = audio_write,
                                    .end = audio_end,
                                    .close = audio_sink_close};
