/* SPDX-License-Identifier: MIT */
#include "dsp/blend.h"

#include <math.h>
#include <stdlib.h>

static const float FADE_SECONDS = 0.01f;

struct blend {
    float share, standard, step; /* of dry: now, outside of the bypass, change a sample */
    int rate;
    size_t delay, at;
    float late[]; /* (delay) a ring of the last dry samples, the oldest at `at` */
};

struct blend *blend_create(int delay, int rate, float share, bool bypass)
{
    struct blend *blend = calloc(1, sizeof *blend + (size_t)delay * sizeof(float));
    if (blend) {
        blend->delay = (size_t)delay;
        blend->rate = rate;
        blend->standard = share;
        blend->share = bypass ? 1 : blend->standard;
        blend->step = (1 - blend->standard) / (FADE_SECONDS * (float)rate);
    }
    return blend;
}

void blend_destroy(struct blend *blend)
{
    free(blend);
}

void blend_limit(struct blend *blend, float share)
{
    float far = fmaxf(1 - share, fabsf(blend->standard - share));
    blend->standard = share;
    blend->step = far / (FADE_SECONDS * (float)blend->rate);
}

/* The dry sample of `delay` samples ago. */
static float delayed(struct blend *blend, float dry)
{
    if (blend->delay == 0) {
        return dry;
    }
    float late = blend->late[blend->at];
    blend->late[blend->at] = dry;
    blend->at = blend->at + 1 < blend->delay ? blend->at + 1 : 0;
    return late;
}

bool blend_push(struct blend *blend, const float *dry, float *wet, size_t n, bool bypass)
{
    bool bypassed = blend->share > blend->standard || bypass;
    float goal = bypass ? 1 : blend->standard;
    for (size_t i = 0; i < n; i++) {
        float late = delayed(blend, dry[i]);
        blend->share = blend->share < goal ? fminf(blend->share + blend->step, goal) : fmaxf(blend->share - blend->step, goal);
        if (blend->share >= 1) {
            wet[i] = late;
        } else if (blend->share > 0) {
            wet[i] = blend->share * late + (1 - blend->share) * wet[i];
        }
    }
    return bypassed;
}

bool blend_is_dry(const struct blend *blend)
{
    return blend->share >= 1;
}
