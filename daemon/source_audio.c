/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "daemon/canceller.h"
#include "daemon/card.h"
#include "daemon/log.h"
#include "daemon/source.h"
#include "model/refuse.h"

/* A microphone: each chosen channel is a stream. The card's thread only copies into the feeds and wakes the engine. */
struct audio_source {
    struct source source;
    struct canceller *canceller; /* NULL: the loudspeakers stay in */
    bool ended;
};

static void give(void *arg, int i, const float *samples, size_t n, int64_t arrived)
{
    struct source *source = arg;
    count(&source->counters[i], COUNTER_RING_FULL, n - feed_write(source->feeds[i], samples, 1, n, arrived));
}

static void take(void *arg, int i, const float *samples, size_t n, int64_t arrived)
{
    struct audio_source *mic = arg;
    if (mic->canceller) {
        canceller_push(mic->canceller, i, samples, n, arrived);
    } else {
        give(mic, i, samples, n, arrived);
    }
}

static void lose(void *arg, uint64_t n, enum counter why)
{
    struct audio_source *mic = arg;
    struct source *source = &mic->source;
    if (mic->canceller) {
        canceller_flush(mic->canceller, n);
    }
    for (int i = 0; i < source->n_channels; i++) {
        feed_lose(source->feeds[i], n, why);
        count(&source->counters[i], why, n);
    }
}

static void tell(void *arg, int i, enum counter counter, uint64_t n)
{
    struct source *source = arg;
    count(&source->counters[i], counter, n);
}

static void turned(void *arg)
{
    struct source *source = arg;
    waker_wake(source->engine);
}

static int open_canceller(struct audio_source *mic, const struct source_setup *setup, struct ssm_error *err)
{
    const struct canceller_setup canceller = {.device = setup->config->echo, .pipeline = setup->pipeline,
                                              .rate = card_rate(mic->source.card), .n_channels = mic->source.n_channels,
                                              .give = give, .arg = mic};
    mic->canceller = canceller_open(&canceller, err);
    return mic->canceller ? 0 : -1;
}

static struct source *audio_source_open(const struct source_setup *setup, struct ssm_error *err)
{
    const struct config_source *config = setup->config;
    struct audio_source *mic = calloc(1, sizeof *mic);
    if (!mic) {
        refuse_memory(err);
        return NULL;
    }
    struct source *source = &mic->source;
    source->ops = &source_audio;
    source->endless = true;
    source->n_channels = config->n_channels > 0 ? config->n_channels : 1;
    for (int i = 0; i < config->n_channels; i++) {
        source->channels[i] = config->channels[i];
    }
    const struct card_setup card = {.device = config->device, .pipeline = setup->pipeline, .capture = true,
                                    .rate = config->rate, .channels = source->channels, .n_channels = source->n_channels,
                                    .floor_db = config->floor_db, .silence_s = config->silence_s,
                                    .take = take, .lose = lose, .tell = tell, .turned = turned, .arg = source};
    source->card = card_open(&card, err);
    if (!source->card || (config->echo[0] && open_canceller(mic, setup, err) < 0)) {
        card_close(source->card);
        free(mic);
        return NULL;
    }
    source->rate = card_rate(source->card);
    log_line(LOG_INFO, "pipeline %s captures from %s at %d Hz", setup->pipeline, card_name(source->card), source->rate);
    return source;
}

static int audio_source_start(struct source *source, struct ssm_error *err)
{
    struct audio_source *mic = (struct audio_source *)source;
    if (mic->canceller && canceller_start(mic->canceller, err) < 0) {
        return -1;
    }
    return card_start(source->card, err);
}

/* The loop thread ends the feeds itself: once card_stop is back it is their only writer. */
static void audio_source_stop(struct source *source)
{
    struct audio_source *mic = (struct audio_source *)source;
    if (!mic->ended) {
        card_stop(source->card);
        if (mic->canceller) {
            canceller_flush(mic->canceller, 0);
        }
        for (int i = 0; i < source->n_channels; i++) {
            feed_end(source->feeds[i]);
        }
        mic->ended = true;
        waker_wake(source->engine);
    }
}

static void audio_source_close(struct source *source)
{
    card_close(source->card);
    canceller_close(((struct audio_source *)source)->canceller);
    free(source);
}

const struct source_ops source_audio = {.name = "audio",
                                        .open = audio_source_open,
                                        .start = audio_source_start,
                                        .stop = audio_source_stop,
                                        .close = audio_source_close};
