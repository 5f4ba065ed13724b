/* SPDX-License-Identifier: MIT */
#include "dsp/slew.h"

#include <math.h>

static const double listen_s = 2, anchor_s = 3; /* until the clocks are worth listening to; until the delay is */
static const double pull = 0.08;                /* a delay that is off by 1 ms is brought back at 80 ppm       */
static const double most = 3e-3;                /* of the ratio: twice 1,000 ppm, and room to pull             */
static const double per_second = 1e-3;          /* how fast the ratio changes: no ear hears that               */
static const double lost_s = 0.05;              /* a delay that is off by more is another delay                */

void slew_init(struct slew *slew)
{
    *slew = (struct slew){.ratio = 1};
}

void slew_release(struct slew *slew)
{
    slew->anchored = false;
    slew->age = slew->sum_s = 0;
}

/* The delay to be held is the mean of the last second before. */
static void anchor(struct slew *slew, const struct slew_sight *sight)
{
    slew->age += sight->seconds;
    if (slew->age > listen_s) {
        slew->sum_s += sight->delay_s * sight->seconds;
    }
    if (slew->age >= anchor_s) {
        slew->delay_s = slew->sum_s / (slew->age - listen_s);
        slew->anchored = true;
    }
}

static double bounded(double value, double limit)
{
    return fmax(-limit, fmin(limit, value));
}

double slew_turn(struct slew *slew, const struct slew_sight *sight)
{
    double off = slew->anchored ? sight->delay_s - slew->delay_s : 0;
    if (fabs(off) > lost_s) {
        slew_release(slew);
        off = 0;
    }
    if (!slew->anchored) {
        anchor(slew, sight);
    }
    if (slew->age > listen_s) {
        double wanted = (1 + sight->player_ppm * 1e-6) / (1 + sight->source_ppm * 1e-6) - pull * off;
        slew->ratio += bounded(1 + bounded(wanted - 1, most) - slew->ratio, per_second * sight->seconds);
    }
    return slew->ratio;
}
