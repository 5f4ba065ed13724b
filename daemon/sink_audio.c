/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <time.h>

#include "daemon/card.h"
#include "daemon/log.h"
#include "daemon/sink.h"
#include "daemon/waker.h"
#include "dsp/clock.h"
#include "dsp/resample.h"
#include "dsp/slew.h"
#include "model/refuse.h"

/* Playback. The engine thread resamples into the card's rings, whose helper takes from them as its device asks. The source and
 * the device have clocks of their own; the resamplers follow both of them (dsp/slew.h), so that the delay stays as it is. Should
 * that fail, samples beyond twice the target are dropped and silence is inserted where there are none, both counted.
 * A source that waits for room follows the device by that. */
enum { BLOCK = 512, DRAIN_MS = 500, RATIOS = 64 };
static const double target_s = 0.04;

/* What a hop was resampled with: the same for all channels, or they would drift apart. */
struct ratio {
    uint64_t s0;
    double ratio;
};

struct audio_sink {
    struct sink sink;
    struct counters *counters;
    struct waker *engine; /* NULL: it doesn't wait for room */
    int n, model_rate;
    size_t target; /* samples at the device's rate */
    bool started;
    int ended; /* channels */
    struct clock clock; /* the device's */
    struct slew slew;
    struct ratio ratios[RATIOS]; /* of the newest hops */
    uint64_t n_ratios;
    float block[BLOCK];
    struct resampler *resamplers[]; /* (n) */
};

/* ---- Engine thread. ---- */

/* What fills the ring to twice its target, at the model's rate. */
static size_t audio_room(const struct sink *sink, int channel)
{
    const struct audio_sink *audio = (const struct audio_sink *)sink;
    size_t fill = card_waiting(sink->card, channel);
    size_t room = fill < 2 * audio->target ? 2 * audio->target - fill : 0;
    return room * (size_t)audio->model_rate / (size_t)card_rate(sink->card);
}

static double next_ratio(struct audio_sink *audio, int channel, const struct delivery *hop)
{
    struct card_position position;
    if (!card_plays(audio->sink.card)) {
        slew_release(&audio->slew);
    } else if (card_find_position(audio->sink.card, channel, &position)) {
        clock_observe(&audio->clock, position.frames, position.at);
        const struct slew_sight sight = {.delay_s = (double)(clock_time(&audio->clock, position.next) - hop->tm) * 1e-9,
                                         .source_ppm = (double)hop->ppm,
                                         .player_ppm = clock_ppm(&audio->clock),
                                         .seconds = (double)hop->n / audio->model_rate};
        return slew_turn(&audio->slew, &sight);
    }
    return audio->slew.ratio;
}

/* The first channel that comes with a hop finds it. */
static double ratio_of(struct audio_sink *audio, int channel, const struct delivery *hop)
{
    uint64_t kept = audio->n_ratios < RATIOS ? audio->n_ratios : RATIOS;
    for (uint64_t i = 1; i <= kept; i++) {
        const struct ratio *known = &audio->ratios[(audio->n_ratios - i) % RATIOS];
        if (known->s0 == hop->s0) {
            return known->ratio;
        }
    }
    struct ratio *ratio = &audio->ratios[audio->n_ratios++ % RATIOS];
    *ratio = (struct ratio){hop->s0, next_ratio(audio, channel, hop)};
    return ratio->ratio;
}

static void audio_write(struct sink *sink, int channel, const struct delivery *hop)
{
    struct audio_sink *audio = (struct audio_sink *)sink;
    if (!audio->engine) {
        resampler_slew(audio->resamplers[channel], ratio_of(audio, channel, hop));
    }
    for (size_t at = 0, used, n = 1; at < hop->n || n == BLOCK; at += used) {
        n = resampler_push(audio->resamplers[channel], hop->samples + at, hop->n - at, &used, audio->block, BLOCK, 0);
        size_t fits = card_play(sink->card, channel, audio->block, n);
        count(&audio->counters[channel], COUNTER_PLAYBACK_DROPPED, n - fits);
    }
}

static void audio_end(struct sink *sink, int channel, const struct hole *hole, uint64_t length)
{
    (void)channel, (void)hole, (void)length;
    struct audio_sink *audio = (struct audio_sink *)sink;
    if (++audio->ended == audio->n) {
        card_play_out(sink->card);
    }
}

/* ---- The card's thread. ---- */

static void tell(void *arg, int i, enum counter counter, uint64_t n)
{
    struct audio_sink *audio = arg;
    count(&audio->counters[i], counter, n);
}

static void turned(void *arg)
{
    struct audio_sink *audio = arg;
    if (audio->engine) {
        waker_wake(audio->engine);
    }
}

/* ---- Set-up and the end. ---- */

/* Let the device play what is left. */
static void play_out(struct audio_sink *audio)
{
    const struct timespec moment = {.tv_nsec = (long)clock_span(5000000)};
    int64_t until = clock_now() + (int64_t)DRAIN_MS * 1000000;
    for (int i = 0; i < audio->n; i++) {
        while (card_waiting(audio->sink.card, i) > 0 && clock_now() < until) {
            nanosleep(&moment, NULL);
        }
    }
}

static void audio_sink_close(struct sink *sink)
{
    struct audio_sink *audio = (struct audio_sink *)sink;
    if (audio->started && audio->ended == audio->n) {
        play_out(audio);
    }
    card_close(sink->card);
    for (int i = 0; i < audio->n; i++) {
        resampler_destroy(audio->resamplers[i]);
    }
    free(audio);
}

static struct card *open_card(struct audio_sink *audio, const struct sink_setup *setup, struct ssm_error *err)
{
    const struct card_setup card = {.device = setup->config->device, .pipeline = setup->pipeline, .rate = setup->config->rate,
                                    .n_channels = audio->n, .target_s = target_s, .tell = tell, .turned = turned,
                                    .arg = audio};
    return card_open(&card, err);
}

static struct sink *audio_sink_open(const struct sink_setup *setup, struct ssm_error *err)
{
    size_t n = (size_t)setup->n_channels;
    struct audio_sink *audio = calloc(1, sizeof *audio + n * sizeof *audio->resamplers);
    if (!audio) {
        refuse_memory(err);
        return NULL;
    }
    audio->sink.ops = &sink_audio;
    audio->counters = setup->counters;
    audio->engine = setup->patient ? setup->engine : NULL;
    audio->n = setup->n_channels;
    audio->model_rate = setup->model->rate;
    audio->sink.card = open_card(audio, setup, err);
    if (!audio->sink.card) {
        goto fail;
    }
    int rate = card_rate(audio->sink.card);
    audio->target = (size_t)(target_s * rate);
    clock_init(&audio->clock, rate);
    slew_init(&audio->slew);
    for (int i = 0; i < audio->n; i++) {
        audio->resamplers[i] = resampler_create(setup->model->rate, rate, audio->engine ? RESAMPLER_LIVE : RESAMPLER_SLEWED);
        if (!audio->resamplers[i]) {
            refuse_memory(err);
            goto fail;
        }
    }
    log_line(LOG_INFO, "pipeline %s plays on %s at %d Hz", setup->pipeline, card_name(audio->sink.card), rate);
    return &audio->sink;
fail:
    audio_sink_close(&audio->sink);
    return NULL;
}

static int audio_sink_start(struct sink *sink, struct ssm_error *err)
{
    struct audio_sink *audio = (struct audio_sink *)sink;
    audio->started = card_start(sink->card, err) == 0;
    return audio->started ? 0 : -1;
}

const struct sink_ops sink_audio = {.name = "audio",
                                    .paced = true,
                                    .takes = SINK_TAKES_SAMPLES,
                                    .open = audio_sink_open,
                                    .start = audio_sink_start,
                                    .room = audio_room,
                                    .write = audio_write,
                                    .end = audio_end,
                                    .close = audio_sink_close};
