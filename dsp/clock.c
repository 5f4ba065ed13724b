/* SPDX-License-Identifier: MIT */
#include "dsp/clock.h"

#include <math.h>
#include <time.h>

static const double widest_hz = 1.0, narrowest_hz = 0.02;
static const double astray_ns = 20e6; /* less than this and less than 8 deviations is jitter, never a jump */
static const double gap_s = 1;        /* a step longer than this ... */
static const double drift_ppm = 5;    /* ... shows what the rate is wrong by, more than jitter */
enum { ASTRAY_PAIRS = 8 };

void clock_init(struct clock *clock, double rate)
{
    *clock = (struct clock){.nominal = 1e9 / rate, .period = 1e9 / rate, .gain = 1};
}

static void restart(struct clock *clock, uint64_t counter, int64_t ns)
{
    clock->counter = counter;
    clock->ns = ns;
    clock->fraction = 0;
    clock->age = clock->since_gap = 0;
    clock->gain = 1;
    clock->astray = 0;
    clock->started = true;
}

/* An arrival's distance from the line, brought within what jitter explains. True: take it in. False: it lies so far off
 * that it's either a stall or a new line; the loop holds still until enough of them say which. */
static bool tame(struct clock *clock, double seconds, double *error)
{
    double usual = clock->deviation + drift_ppm * 1e3 * seconds;
    if (fabs(*error) > astray_ns && fabs(*error) > 8 * usual && clock->age > 0) {
        clock->astray++;
        return false;
    }
    clock->astray = 0;
    double limit = clock->age > 1 ? 4 * usual : INFINITY;
    *error = fmax(-limit, fmin(limit, *error));
    return true;
}

/* Gains of the loop for a step of `seconds`; bounded, or a long step would make it unstable. After a gap the rate is
 * still known but the phase is not, so it begins anew as the mean of the pairs since. */
static void gains(struct clock *clock, double seconds, double *phase, double *rate)
{
    double hz = fmax(narrowest_hz, fmin(widest_hz, 0.5 / clock->age));
    double omega = fmin(2 * M_PI * hz * seconds, 0.5);
    clock->since_gap = seconds > gap_s ? 0 : clock->since_gap + seconds;
    *phase = fmin(0.9, fmax(M_SQRT2 * omega, seconds / (clock->since_gap + seconds)));
    *rate = omega * omega;
}

/* The deviation follows the size of the errors over some 64 pairs, faster at first. */
static void learn_deviation(struct clock *clock, double raw, double seconds)
{
    double share = fmax(1.0 / 64, fmin(1, seconds / fmax(clock->age, seconds)));
    double bounded = clock->age > 1 ? fmin(fabs(raw), 6 * clock->deviation + 1000) : fabs(raw);
    double square = clock->deviation * clock->deviation;
    clock->deviation = sqrt(square + share * (bounded * bounded - square));
}

void clock_observe(struct clock *clock, uint64_t counter, int64_t ns)
{
    if (!clock->started) {
        restart(clock, counter, ns);
        return;
    }
    if (counter <= clock->counter) {
        return;
    }
    double samples = (double)(counter - clock->counter), seconds = samples * clock->nominal * 1e-9;
    double ahead = clock->fraction + samples * clock->period;
    double error = (double)(ns - clock->ns) - ahead, raw = error;
    bool taken = tame(clock, seconds, &error);
    if (clock->astray >= ASTRAY_PAIRS) {
        restart(clock, counter, ns);
        clock->jumps++;
        return;
    }
    clock->age += seconds;
    if (taken) {
        double phase, rate;
        gains(clock, seconds, &phase, &rate);
        learn_deviation(clock, raw, seconds);
        ahead += phase * error;
        clock->period += rate * error / samples;
        /* An alpha-beta filter's noise gain, square root of (2 a^2 + 2 b - 3 a b) / (a (4 - 2 a - b)). */
        clock->gain = sqrt((2 * phase * phase + 2 * rate - 3 * phase * rate) / (phase * (4 - 2 * phase - rate)));
    }
    double whole = floor(ahead);
    clock->ns += (int64_t)whole;
    clock->fraction = ahead - whole;
    clock->counter = counter;
}

int64_t clock_time(const struct clock *clock, uint64_t counter)
{
    double samples = (double)(int64_t)(counter - clock->counter);
    return clock->started ? clock->ns + (int64_t)floor(clock->fraction + samples * clock->period) : 0;
}

uint64_t clock_count(const struct clock *clock, int64_t ns)
{
    double samples = ((double)(ns - clock->ns) - clock->fraction) / clock->period;
    return clock->started ? clock->counter + (uint64_t)llround(samples) : 0;
}

double clock_ppm(const struct clock *clock)
{
    return (clock->nominal / clock->period - 1) * 1e6;
}

double clock_error_ns(const struct clock *clock)
{
    return clock->deviation * clock->gain;
}

uint64_t clock_jumps(const struct clock *clock)
{
    return clock->jumps;
}

static const struct clock_world *replaced;

static int64_t read_ns(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t clock_now(void)
{
    return replaced ? replaced->now() : read_ns(CLOCK_MONOTONIC);
}

int64_t clock_utc_now(void)
{
    return replaced ? replaced->utc() : read_ns(CLOCK_REALTIME);
}

/* CLOCK_MONOTONIC stands still meanwhile, CLOCK_BOOTTIME doesn't. */
int64_t clock_asleep(void)
{
    int64_t awake = clock_now();
    return replaced ? replaced->asleep() : read_ns(CLOCK_BOOTTIME) - awake;
}

void clock_replace(const struct clock_world *world)
{
    replaced = world;
}

int64_t clock_span(int64_t ns)
{
    return replaced && ns > 0 ? (int64_t)fmax(1, (double)ns / replaced->pace) : ns;
}

double clock_seconds(void)
{
    return 1e-9 * (double)clock_now();
}

/* UTC between two looks at the monotonic clock; of five tries the one least interrupted. */
int64_t clock_utc_offset(void)
{
    int64_t offset = 0, tightest = INT64_MAX;
    for (int i = 0; i < 5; i++) {
        int64_t before = clock_now(), utc = clock_utc_now(), after = clock_now();
        if (after - before < tightest) {
            tightest = after - before;
            offset = utc - (before + (after - before) / 2);
        }
    }
    return offset;
}
