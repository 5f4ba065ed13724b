/* SPDX-License-Identifier: MIT */
#include "daemon/overload.h"

static const int64_t SECOND = 1000000000, LOOK = SECOND / 40, LATE = SECOND / 10, CALM = 5 * SECOND, CALM_MOST = 300 * SECOND,
                     RELAPSE = 30 * SECOND, CLEARED = 3 * SECOND;
static const double BUSY = 0.7, SMOOTHING_S = 0.5;
enum { LOWER_MOST = 10 };

void overload_init(struct overload *overload, int64_t now)
{
    *overload = (struct overload){.from = now, .calm = CALM};
}

void overload_note_busy(struct overload *overload, int64_t busy)
{
    overload->busy += busy;
}

void overload_note_waiting(struct overload *overload, int64_t waiting)
{
    overload->waiting = waiting;
}

/* Take in what was noted since the last look. */
static void look(struct overload *overload, int64_t now)
{
    int64_t span = now - overload->from, waiting = overload->waiting;
    double share = (double)span / 1e9 / SMOOTHING_S, load = (double)overload->busy / (double)span;
    overload->load += (load - overload->load) * (share < 1 ? share : 1);
    int64_t less = overload->before - waiting;
    bool shrinks = less > span / 10 && less > (int64_t)((double)span * (double)waiting / (double)CLEARED);
    bool late = waiting > 0 && !shrinks && load >= BUSY;
    bool calm = waiting <= 0 && overload->load < BUSY;
    overload->late_since = !late ? 0 : overload->late_since ? overload->late_since : now; /* one long pause is over by now */
    overload->calm_since = !calm ? 0 : overload->calm_since ? overload->calm_since : overload->from;
    overload->before = waiting;
    overload->from = now;
    overload->busy = overload->waiting = 0;
}

/* A single turn may have taken several times as long. */
static int lower(struct overload *overload, int64_t now)
{
    int64_t times = (now - overload->late_since) / LATE;
    if (overload->climbing && now - overload->raised < RELAPSE) {
        overload->calm = 2 * overload->calm < CALM_MOST ? 2 * overload->calm : CALM_MOST;
    } else if (overload->lowered && now - overload->lowered > CALM_MOST) {
        overload->calm = CALM;
    }
    overload->climbing = false;
    overload->lowered = now;
    overload->late_since = 0; /* the next turn still has to fade over */
    return -(int)(times < LOWER_MOST ? times : LOWER_MOST);
}

int overload_judge(struct overload *overload, int64_t now)
{
    if (now - overload->from < LOOK) {
        return 0;
    }
    look(overload, now);
    if (overload->late_since && now - overload->late_since >= LATE) {
        return lower(overload, now);
    }
    if (overload->calm_since && now - overload->calm_since >= (overload->climbing ? SECOND : overload->calm)) {
        overload->climbing = true;
        overload->raised = overload->calm_since = now;
        return 1;
    }
    return 0;
}
