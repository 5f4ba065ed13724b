/* SPDX-License-Identifier: MIT */
#include "daemon/overload.h"

static const int64_t SECOND = 1000000000, LOOK = SECOND / 40, LATE = SECOND / 10, CALM = 5 * SECOND, CALM_MOST = 300 * SECOND,
                     RELAPSE = 30 * SECOND;
static const double BUSY = 0.7, SMOOTHING_S = 0.5;

void overload_init(struct overload *overload, int64_t now)
{
    *overload = (struct overload){.from = now, .calm = CALM};
}

void overload_note(struct overload *overload, int64_t busy, int64_t lateness)
{
    overload->busy += busy;
    overload->worst = !overload->noted || lateness > overload->worst ? lateness : overload->worst;
    overload->noted = true;
}

/* Take in what was noted since the last look. */
static void look(struct overload *overload, int64_t now)
{
    int64_t span = now - overload->from, worst = overload->noted ? overload->worst : 0;
    double share = (double)span / 1e9 / SMOOTHING_S, load = (double)overload->busy / (double)span;
    overload->load += (load - overload->load) * (share < 1 ? share : 1);
    bool shrinks = overload->lateness - worst > span / 10, late = worst > 0 && !shrinks;
    bool calm = worst <= 0 && overload->load < BUSY;
    overload->late_since = !late ? 0 : overload->late_since ? overload->late_since : overload->from;
    overload->calm_since = !calm ? 0 : overload->calm_since ? overload->calm_since : overload->from;
    overload->lateness = worst;
    overload->from = now;
    overload->busy = overload->worst = 0;
    overload->noted = false;
}

static enum overload_verdict lower(struct overload *overload, int64_t now)
{
    if (overload->climbing && now - overload->raised < RELAPSE) {
        overload->calm = 2 * overload->calm < CALM_MOST ? 2 * overload->calm : CALM_MOST;
    } else if (overload->lowered && now - overload->lowered > CALM_MOST) {
        overload->calm = CALM;
    }
    overload->climbing = false;
    overload->lowered = overload->late_since = now;
    return OVERLOAD_LOWER;
}

enum overload_verdict overload_judge(struct overload *overload, int64_t now)
{
    if (now - overload->from < LOOK) {
        return OVERLOAD_STAY;
    }
    look(overload, now);
    if (overload->late_since && now - overload->late_since >= LATE) {
        return lower(overload, now);
    }
    if (overload->calm_since && now - overload->calm_since >= (overload->climbing ? SECOND : overload->calm)) {
        overload->climbing = true;
        overload->raised = overload->calm_since = now;
        return OVERLOAD_RAISE;
    }
    return OVERLOAD_STAY;
}
