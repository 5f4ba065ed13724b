/* SPDX-License-Identifier: MIT */
#include "daemon/condition.h"

#include <math.h>

const char *const condition_names[CONDITIONS] = {[CONDITION_OK] = "ok",
                                                 [CONDITION_SILENT] = "silent",
                                                 [CONDITION_STALLED] = "stalled",
                                                 [CONDITION_LOST] = "lost",
                                                 [CONDITION_RECOVERING] = "recovering"};

static const int64_t ms = 1000000;
static const double forgotten_ns = 10e9; /* a long pause between calls fades by 1/e */
enum {
    STALLED_MS = 400,     /* without a call, it has stalled ...      */
    HOPELESS_MS = 5000,   /* ... and is opened anew                  */
    OPENING_MS = 15000,   /* takes too long                          */
    SURE_MS = 200,        /* of calls, and it is well                */
    STEADY_MS = 5000,     /* well for so long, it is tried at once   */
    FIRST_WAIT_MS = 50,   /* that is, after so long                  */
    LONG_GONE_MS = 60000, /* it is tried less often                  */
    ASLEEP_MS = 500       /* the machine was suspended               */
};

/* ---- The device as a whole. ---- */

static void become(struct tending *tending, enum condition condition, int64_t now)
{
    if (condition != tending->condition) {
        tending->condition = condition;
        tending->since = now;
    }
}

void tending_init(struct tending *tending, const struct sight *sight, int64_t most)
{
    *tending = (struct tending){.condition = CONDITION_RECOVERING, .since = sight->now, .asleep = sight->asleep,
                                .began = sight->now, .called = sight->now, .calls = sight->calls,
                                .wait = FIRST_WAIT_MS * ms, .most = most};
}

/* It is gone, or has to go: the next try waits twice as long, unless it ran well before. */
static enum order give_up(struct tending *tending, int64_t now, bool at_once, const char *why)
{
    bool well = tending->condition == CONDITION_OK && now - tending->since > STEADY_MS * ms;
    bool long_gone = tending->condition == CONDITION_LOST && now - tending->since > LONG_GONE_MS * ms;
    int64_t most = long_gone ? 4 * tending->most : tending->most; /* a try costs a tenth of a second of a core */
    tending->wait = at_once || well ? FIRST_WAIT_MS * ms : tending->wait * 2 < most ? tending->wait * 2 : most;
    tending->began = now;
    tending->flowing = 0;
    tending->why = why;
    become(tending, CONDITION_LOST, now);
    return ORDER_CLOSE;
}

/* The machine was suspended: whatever is open now may look well and be dead. */
static bool slept(struct tending *tending, const struct sight *sight)
{
    bool slept = sight->asleep - tending->asleep > ASLEEP_MS * ms;
    tending->asleep = sight->asleep;
    return slept;
}

/* Some servers call with seconds of sound at a time: what was a pause between calls is none to be told twice as long. */
static void note_call(struct tending *tending, int64_t now)
{
    double pause = (double)(now - tending->called), faded = tending->usual_ns * exp(-pause / forgotten_ns);
    tending->usual_ns = pause > faded ? pause : faded;
    tending->called = now;
    tending->flowing = tending->flowing ? tending->flowing : now;
}

static bool has_stalled(const struct tending *tending, int64_t quiet)
{
    return quiet > STALLED_MS * ms && (double)quiet > 2 * tending->usual_ns;
}

/* Calls make it well when they go on for a while; without any it stalls, in the end for good. */
static enum order judge_calls(struct tending *tending, const struct sight *sight)
{
    int64_t now = sight->now;
    if (sight->calls != tending->calls) {
        tending->calls = sight->calls;
        note_call(tending, now);
    }
    int64_t quiet = now - tending->called;
    if (quiet > HOPELESS_MS * ms) {
        return give_up(tending, now, false, "it gives no sign any more");
    }
    if (has_stalled(tending, quiet)) {
        tending->flowing = 0;
        become(tending, tending->condition == CONDITION_LOST ? CONDITION_LOST : CONDITION_STALLED, now);
    } else if (tending->flowing && now - tending->flowing >= SURE_MS * ms) {
        become(tending, CONDITION_OK, now);
    } else if (tending->flowing && tending->condition == CONDITION_LOST) {
        become(tending, CONDITION_RECOVERING, now);
    }
    return ORDER_NONE;
}

enum order tending_turn(struct tending *tending, const struct sight *sight)
{
    int64_t now = sight->now;
    bool woke = slept(tending, sight);
    switch (sight->opening) {
    case OPENING_NONE:
        if (now - tending->began >= tending->wait || sight->nudged || woke) {
            tending->began = tending->called = now;
            return ORDER_OPEN;
        }
        return ORDER_NONE;
    case OPENING_BEGUN:
        tending->called = now;
        return now - tending->began > OPENING_MS * ms ? give_up(tending, now, false, "it takes too long to open") : ORDER_NONE;
    case OPENING_DONE:
        return woke ? give_up(tending, now, true, "the machine was suspended") : judge_calls(tending, sight);
    case OPENING_FAILED:
        break;
    }
    return give_up(tending, now, woke, NULL);
}

/* ---- What one channel gives. ---- */

static const double loud_enough_s = 0.05, louder = 2; /* before silence is over, and than the floor */
static const float full_scale = 0.9999F;              /* 16-bit samples reach 0.99997 */
static const double far_from_zero = 0.05;

void ear_init(struct ear *ear, double floor_db, double patience_s, double rate)
{
    *ear = (struct ear){.floor = (float)pow(10, floor_db / 20), .patience = patience_s, .rate = rate};
}

/* Silence lasts until something well beyond the floor has been heard for a moment; a click doesn't end it. */
static void judge_silence(struct ear *ear, float peak, double seconds)
{
    ear->loud_s = peak > (ear->silent ? (float)louder * ear->floor : ear->floor) ? ear->loud_s + seconds : 0;
    if (ear->loud_s > (ear->silent ? loud_enough_s : 0)) {
        ear->silence_s = 0;
        ear->silent = false;
    } else {
        ear->silence_s += seconds;
        ear->silent = ear->silent || (ear->patience > 0 && ear->silence_s >= ear->patience);
    }
}

static size_t judge_offset(struct ear *ear, double sum, size_t n)
{
    ear->sum += sum;
    ear->summed += (double)n;
    if (ear->summed < ear->rate) {
        return 0;
    }
    size_t offset = fabs(ear->sum / ear->summed) > far_from_zero ? (size_t)ear->summed : 0;
    ear->sum = ear->summed = 0;
    return offset;
}

struct heard ear_hear(struct ear *ear, const float *samples, size_t n)
{
    float peak = 0;
    double sum = 0;
    struct heard heard = {0};
    for (size_t i = 0; i < n; i++) {
        float size = fabsf(samples[i]);
        peak = size > peak ? size : peak;
        heard.clipped += size >= full_scale;
        sum += (double)samples[i];
    }
    judge_silence(ear, peak, (double)n / ear->rate);
    heard.offset = judge_offset(ear, sum, n);
    return heard;
}
