/* SPDX-License-Identifier: MIT */
#include "daemon/card.h"

#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "model/refuse.h"
#include "tests/helper_device.h"
#include "tests/test.h"

/* Cards whose helper is this program with a script instead of PortAudio. The device "ramp:T" gives, at 16 kHz, the
 * number of the moment since T ns as its sample, in thousandths, so that it shows where a sample was lost. */
enum { RATE = 16000, BLOCK = 160, PATIENCE_MS = 20000 };

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* ---- The helper. ---- */

static void give_ramp(struct link *link, int socket, int64_t zero)
{
    uint64_t at = (uint64_t)((clock_now() - zero) / 1000 * RATE / 1000000);
    for (;;) {
        float samples[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            samples[i] = (float)(at + (uint64_t)i) / 1e6F;
        }
        at += BLOCK;
        int64_t due = zero + (int64_t)at * 1000000 / RATE * 1000;
        sleep_until(due);
        link_capture(link, socket, samples, BLOCK, false, clock_now());
    }
}

static void helper_main(int memory, int socket)
{
    struct link *link = helper_map(memory);
    int64_t zero = 0;
    if (strcmp(link->device, "absent") == 0) {
        refuse(&link->error, 69, "there is no such device");
        link_say(link, socket, LINK_FAILED);
        _exit(0);
    }
    if (strcmp(link->device, "crash") == 0) {
        raise(SIGKILL);
    }
    helper_begin(link, socket, link->device, RATE);
    if (sscanf(link->device, "ramp:%ld", &zero) == 1) {
        give_ramp(link, socket, zero);
    }
    pause(); /* "mute": open, and never calls */
}

/* ---- The daemon's side. ---- */

struct taker {
    _Atomic uint64_t taken, lost; /* samples */
    _Atomic uint64_t last;        /* its value, a sample's number */
    _Atomic int64_t off;          /* by how much the last one's number differs from its value, less the first one's */
    int64_t first_off;
};

static void take(void *arg, int i, const float *samples, size_t n, int64_t arrived)
{
    (void)i, (void)arrived;
    struct taker *taker = arg;
    uint64_t value = (uint64_t)((double)samples[n - 1] * 1e6 + 0.5), number = taker->taken + taker->lost + n - 1;
    taker->first_off = taker->taken == 0 ? (int64_t)(value - number) : taker->first_off;
    taker->off = (int64_t)(value - number) - taker->first_off;
    taker->last = value;
    taker->taken += n;
}
static void lose(void *arg, uint64_t n, enum counter why)
{
    struct taker *taker = arg;
    assert_int_equal(why, COUNTER_DEVICE_LOST);
    taker->lost += n;
}
static void tell(void *arg, int i, enum counter counter, uint64_t n)
{
    (void)arg, (void)i, (void)counter, (void)n;
}
static void turned(void *arg)
{
    (void)arg;
}

static const int first[] = {0};

static struct card *open_card(const char *device, struct taker *taker, struct ssm_error *err)
{
    const struct card_setup setup = {.device = device,
                                     .pipeline = "p",
                                     .capture = true,
                                     .channels = first,
                                     .n_channels = 1,
                                     .floor_db = -100,
                                     .take = take,
                                     .lose = lose,
                                     .tell = tell,
                                     .turned = turned,
                                     .arg = taker};
    return card_open(&setup, err);
}

static bool comes(const struct card *card, enum condition condition, int ms)
{
    for (int i = 0; i < ms && card_condition(card) != condition; i += 5) {
        sleep_ms(5);
    }
    return card_condition(card) == condition;
}

/* The one child there is. */
static pid_t find_helper(void)
{
    char path[64];
    int pid = 0;
    snprintf(path, sizeof path, "pgrep -P %d", getpid());
    FILE *file = popen(path, "r");
    char line[32];
    while (fgets(line, sizeof line, file)) { /* the shell of popen comes later */
        pid = pid == 0 ? atoi(line) : pid;
    }
    pclose(file);
    return pid;
}

static void samples_that_went_by_are_counted_by_time(void **state)
{
    (void)state;
    struct taker taker = {0};
    struct ssm_error err = {0};
    char device[64];
    snprintf(device, sizeof device, "ramp:%ld", clock_now() - 1000000000);
    struct card *card = open_card(device, &taker, &err);
    assert_non_null(card);
    assert_int_equal(card_rate(card), RATE);
    assert_int_equal(card_start(card, &err), 0);
    for (int i = 0; i < 3; i++) {
        assert_true(comes(card, CONDITION_OK, PATIENCE_MS));
        sleep_ms(1000);
        uint64_t changes = card_changes(card);
        pid_t helper = find_helper();
        assert_true(helper > 0);
        kill(helper, SIGKILL);
        assert_true(comes(card, CONDITION_LOST, PATIENCE_MS));
        assert_true(card_changes(card) > changes);
        uint64_t taken = taker.taken;
        assert_true(comes(card, CONDITION_OK, PATIENCE_MS));
        assert_true(taker.taken > taken);
        assert_true(taker.lost > 0);
        assert_in_range(labs(taker.off), 0, RATE / 10); /* arrivals jitter beside other work; .25 s and more was lost */
    }
    card_close(card);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
}

static void a_device_that_is_away_at_the_end_has_lost_up_to_then(void **state)
{
    (void)state;
    struct taker taker = {0};
    struct ssm_error err = {0};
    char device[64];
    snprintf(device, sizeof device, "ramp:%ld", clock_now());
    struct card *card = open_card(device, &taker, &err);
    assert_int_equal(card_start(card, &err), 0);
    assert_true(comes(card, CONDITION_OK, PATIENCE_MS));
    int64_t before = clock_now();
    kill(find_helper(), SIGKILL);
    assert_true(comes(card, CONDITION_LOST, PATIENCE_MS));
    kill(find_helper(), SIGKILL); /* while it comes back, if it was quick */
    card_stop(card);
    double away = (double)(clock_now() - before) / 1e9 * RATE;
    assert_true(taker.lost > 0 && (double)taker.lost < away + RATE / 10.0);
    card_close(card);
}

static void a_device_without_calls_is_stalled_then_lost(void **state)
{
    (void)state;
    struct taker taker = {0};
    struct ssm_error err = {0};
    char why[256];
    struct card *card = open_card("mute", &taker, &err);
    assert_int_equal(card_start(card, &err), 0);
    assert_true(comes(card, CONDITION_STALLED, PATIENCE_MS));
    assert_true(comes(card, CONDITION_LOST, PATIENCE_MS));
    card_why(card, why, sizeof why);
    assert_string_equal(why, "it gives no sign any more");
    card_close(card);
}

static void a_device_that_can_not_be_opened_is_refused(void **state)
{
    (void)state;
    struct taker taker = {0};
    struct ssm_error err = {0};
    assert_null(open_card("absent", &taker, &err));
    assert_int_equal(err.code, 69);
    assert_string_equal(err.text, "there is no such device");
    assert_null(open_card("crash", &taker, &err));
    assert_int_equal(err.code, 69);
}

int main(int argc, char **argv)
{
    int memory, socket;
    if (link_is_helper(argc, argv, &memory, &socket)) {
        helper_main(memory, socket);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(samples_that_went_by_are_counted_by_time),
        cmocka_unit_test(a_device_that_is_away_at_the_end_has_lost_up_to_then),
        cmocka_unit_test(a_device_without_calls_is_stalled_then_lost),
        cmocka_unit_test(a_device_that_can_not_be_opened_is_refused),
    };
    return cmocka_run_group_tests_name("card", tests, NULL, NULL);
}
