/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/card.h"
#include "daemon/sink.h"
#include "daemon/waker.h"
#include "tests/helper_device.h"
#include "tests/test.h"

/* The player's helper is this program, with a device "player:PPM" whose clock of 48 kHz runs so much too fast. */
enum { MODEL = 16000, HOP = 160, RATE = 48000, BUFFER = 480, CHANNELS = 2 };

static void helper_main(int memory, int socket)
{
    struct link *link = helper_map(memory);
    double ppm = 0;
    sscanf(link->device, "player:%lf", &ppm);
    helper_begin(link, socket, "player", RATE);
    int64_t zero = clock_now();
    for (uint64_t i = 1;; i++) {
        float samples[BUFFER * CHANNELS];
        link_play(link, socket, samples, BUFFER, false, clock_now());
        sleep_until(zero + (int64_t)((double)(i * BUFFER) * 1e9 / (RATE * (1 + ppm * 1e-6))));
    }
}

struct rig {
    struct sink *sink;
    struct counters counters[CHANNELS];
    int64_t zero;
    uint64_t hops;
    struct ssm_error err;
};

static void start(struct rig *rig, double ppm)
{
    struct config_sink config = {.type = SINK_AUDIO};
    const struct ssm_info model = {.rate = MODEL, .hop = HOP};
    snprintf(config.device, sizeof config.device, "player:%g", ppm);
    const struct sink_setup setup = {
        .config = &config, .pipeline = "p", .model = &model, .n_channels = CHANNELS, .counters = rig->counters};
    rig->sink = sink_audio.open(&setup, &rig->err);
    assert_non_null(rig->sink);
    assert_int_equal(sink_audio.start(rig->sink, &rig->err), 0);
    rig->zero = clock_now();
}

/* Hops for n sinks at the pace of this machine's clock. */
static void run_until(struct rig *rigs, int n, double seconds)
{
    static const float silence[HOP];
    for (; (double)(rigs->hops * HOP) / MODEL < seconds; rigs->hops++) {
        int64_t end = rigs->zero + (int64_t)(rigs->hops + 1) * 10000000;
        sleep_until(end);
        const struct delivery hop = {.s0 = rigs->hops * HOP, .n = HOP, .samples = silence, .tm = end - 10000000};
        for (int k = 0; k < n; k++) {
            for (int i = 0; i < CHANNELS; i++) {
                sink_audio.write(rigs[k].sink, i, &hop);
            }
        }
    }
}

/* Samples made for a channel so far, more or less by what was played without any. */
static uint64_t made(const struct rig *rig, int channel)
{
    struct card_position position;
    while (!card_find_position(rig->sink->card, channel, &position)) {
    }
    return position.next;
}

static uint64_t slipped(const struct rig *rig)
{
    return counted_in(rig->counters, CHANNELS, COUNTER_PLAYBACK_DROPPED) +
           counted_in(rig->counters, CHANNELS, COUNTER_PLAYBACK_INSERTED);
}

/* As many samples are made as the player's clock asks for, in both channels, in 5 s in which a busy machine let none
 * slip. */
static void players_with_other_clocks_are_followed(void **state)
{
    (void)state;
    const double ppm[] = {2500, -2500};
    struct rig rigs[2] = {0};
    for (int k = 0; k < 2; k++) {
        start(&rigs[k], ppm[k]);
    }
    run_until(rigs, 2, 8);
    bool followed[2] = {0}, told[2] = {0};
    for (int tries = 0; tries < 6 && !(told[0] && told[1]); tries++) {
        uint64_t slips[2] = {slipped(&rigs[0]), slipped(&rigs[1])};
        uint64_t before[2][2] = {{made(&rigs[0], 0), made(&rigs[0], 1)}, {made(&rigs[1], 0), made(&rigs[1], 1)}};
        run_until(rigs, 2, 13 + 5 * tries);
        for (int k = 0; k < 2; k++) {
            double first = (double)(made(&rigs[k], 0) - before[k][0]),
                   last = (double)(made(&rigs[k], 1) - before[k][1]);
            bool undisturbed = slipped(&rigs[k]) == slips[k];
            told[k] = told[k] || undisturbed;
            followed[k] = followed[k] || (undisturbed && fabs(first / (5.0 * RATE) - 1 - ppm[k] * 1e-6) < 6e-4 &&
                                          fabs(first - last) <= 1);
        }
    }
    for (int k = 0; k < 2; k++) {
        sink_audio.close(rigs[k].sink);
    }
    if (!told[0] || !told[1]) {
        skip(); /* a machine that is busy all the time tells nothing */
    }
    assert_true(followed[0] && followed[1]);
}

static void what_a_lost_player_would_have_played_is_counted(void **state)
{
    (void)state;
    struct rig rig = {0};
    start(&rig, 0);
    run_until(&rig, 1, 2);
    uint64_t slips = slipped(&rig);
    char command[64];
    snprintf(command, sizeof command, "pkill -KILL -P %d -f -- '[-]%s'", getpid(),
             LINK_ARGUMENT + 1); /* not its shell */
    assert_int_equal(system(command), 0);
    run_until(&rig, 1, 3.5);
    uint64_t missed = slipped(&rig) - slips;
    assert_true(missed > 0 && missed < CHANNELS * 3 * RATE / 2);
    assert_true(card_plays(rig.sink->card));
    sink_audio.close(rig.sink);
}

int main(int argc, char **argv)
{
    int memory, socket;
    if (link_is_helper(argc, argv, &memory, &socket)) {
        helper_main(memory, socket);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(players_with_other_clocks_are_followed),
        cmocka_unit_test(what_a_lost_player_would_have_played_is_counted),
    };
    return cmocka_run_group_tests_name("sink_audio", tests, NULL, NULL);
}
