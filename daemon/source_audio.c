/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "daemon/log.h"
#include "daemon/portaudio.h"
#include "daemon/source.h"
#include "dsp/clock.h"
#include "model/refuse.h"

/* A microphone: each chosen channel is a stream. PortAudio's thread only copies into the feeds and wakes the engine. */
struct audio_source {
    struct source source;
    struct audio *audio;
    int columns; /* channels the device is opened with */
    bool ended;
};

static void capture(void *arg, float *samples, size_t n, bool trouble)
{
    struct audio_source *mic = arg;
    int64_t arrived = clock_now();
    for (int i = 0; i < mic->source.n_channels; i++) {
        const float *first = samples + mic->source.channels[i];
        size_t fits = feed_write(mic->source.feeds[i], first, (size_t)mic->columns, n, arrived);
        count(&mic->source.counters[i], COUNTER_RING_FULL, n - fits);
        count(&mic->source.counters[i], COUNTER_DEVICE_OVERFLOW, trouble);
    }
    waker_wake(mic->source.engine);
}

static struct source *audio_source_open(const struct source_setup *setup, struct ssm_error *err)
{
    const struct config_source *config = setup->config;
    struct audio_source *mic = calloc(1, sizeof *mic);
    if (!mic) {
        refuse_memory(err);
        return NULL;
    }
    mic->source.ops = &source_audio;
    mic->source.endless = true;
    mic->source.n_channels = config->n_channels > 0 ? config->n_channels : 1;
    for (int i = 0; i < mic->source.n_channels; i++) {
        mic->source.channels[i] = config->n_channels > 0 ? config->channels[i] : 0;
        mic->columns = mic->source.channels[i] >= mic->columns ? mic->source.channels[i] + 1 : mic->columns;
    }
    const struct audio_request request = {.device = config->device, .capture = true, .channels = mic->columns,
                                          .rate = config->rate, .call = capture, .arg = mic};
    mic->audio = audio_open(&request, err);
    if (!mic->audio) {
        free(mic);
        return NULL;
    }
    mic->source.rate = audio_rate(mic->audio);
    log_line(LOG_INFO, "pipeline %s captures from %s at %d Hz", setup->pipeline, audio_name(mic->audio), mic->source.rate);
    return &mic->source;
}

static int audio_source_start(struct source *source, struct ssm_error *err)
{
    return audio_start(((struct audio_source *)source)->audio, err);
}

/* The loop thread ends the feeds itself: once audio_stop is back it is their only writer. */
static void audio_source_stop(struct source *source)
{
    struct audio_source *mic = (struct audio_source *)source;
    if (!mic->ended) {
        audio_stop(mic->audio);
        for (int i = 0; i < source->n_channels; i++) {
            feed_end(source->feeds[i]);
        }
        mic->ended = true;
        waker_wake(source->engine);
    }
}

static void audio_source_close(struct source *source)
{
    struct audio_source *mic = (struct audio_source *)source;
    audio_close(mic->audio);
    free(mic);
}

const struct source_ops source_audio = {.name = "audio",
                                        .open = audio_source_open,
                                        .start = audio_source_start,
                                        .stop = audio_source_stop,
                                        .close = audio_source_close};
