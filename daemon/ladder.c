/* SPDX-License-Identifier: MIT */
#include "daemon/ladder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/refuse.h"

/* Hops a model runs before it is heard: on the way up there is time for it to hear what is going on; on the way down there
 * is none, but what its transform overlaps has to be there. */
enum { WARM_DOWN = 2, WARM_UP = 25, FADES_A_SECOND = 20 };
static const double MOST_ELAPSED = 1e6;

const char *const rung_names[RUNGS] = {
    [RUNG_MODEL] = "model", [RUNG_SMALLER] = "smaller", [RUNG_BYPASS] = "bypass", [RUNG_DROP] = "drop"};

int ladder_side_init(struct ladder_side *side, struct ssm_engine *engine, int hops)
{
    *side = (struct ladder_side){.engine = engine, .model = ssm_describe(engine), .device = "cpu"};
    side->out = side->own = calloc((size_t)(hops * side->model->outputs), sizeof *side->out);
    return side->out ? 0 : -1;
}

int ladder_init(struct ladder *ladder, struct ssm_engine *engine, struct ssm_engine *smaller, int hops)
{
    *ladder = (struct ladder){.scores = strcmp(ssm_describe(engine)->task, "tag") == 0};
    int got = ladder_side_init(&ladder->sides[0], engine, hops);
    return got == 0 && smaller ? ladder_side_init(&ladder->sides[1], smaller, hops) : got;
}

void ladder_finish(struct ladder *ladder)
{
    free(ladder->sides[0].own);
    free(ladder->sides[1].own);
}

static int side_of(const struct ladder *ladder, const struct ssm_engine *engine)
{
    int i = LADDER_SIDES - 1;
    while (i > 0 && ladder->sides[i].engine != engine) {
        i--;
    }
    return i;
}

int ladder_open(struct ladder *ladder, const struct ssm_engine *engine, struct ssm_error *err)
{
    struct ladder_side *side = &ladder->sides[side_of(ladder, engine)];
    if (ssm_stream_open(side->engine, &side->slot) != SSM_OK) {
        side->slot = 0;
        return refuse(err, 70, "the engine has no free slot for the stream");
    }
    ladder_find_devices(ladder);
    return 0;
}

void ladder_close(struct ladder *ladder, const struct ssm_engine *engine)
{
    struct ladder_side *side = &ladder->sides[side_of(ladder, engine)];
    if (side->slot) {
        ssm_stream_close(side->engine, side->slot);
        side->slot = 0;
        side->out = side->own;
        side->in = NULL;
    }
}

void ladder_house(struct ladder *ladder, const struct ssm_engine *engine, const struct rooms *rooms)
{
    struct ladder_side *side = &ladder->sides[side_of(ladder, engine)];
    if (side->slot && rooms->memory) {
        side->in = rooms->memory + (uint32_t)side->slot * (rooms->inputs + rooms->outputs);
        side->out = side->in + rooms->inputs;
    }
}

/* "cuda:1" for a stream on "cuda:1 NVIDIA ...". */
void ladder_find_devices(struct ladder *ladder)
{
    for (int i = 0; i < LADDER_SIDES; i++) {
        struct ladder_side *side = &ladder->sides[i];
        struct ssm_device_info info = {.name = "cpu"};
        if (side->slot) {
            ssm_describe_device(side->engine, ssm_stream_device(side->engine, side->slot), &info);
            snprintf(side->device, sizeof side->device, "%.*s", (int)strcspn(info.name, " "), info.name);
        }
    }
}

int ladder_reset(struct ladder *ladder)
{
    int status = SSM_OK;
    for (int i = 0; i < LADDER_SIDES && status == SSM_OK; i++) {
        const struct ladder_side *side = &ladder->sides[i];
        status = side->slot ? ssm_stream_reset(side->engine, side->slot) : SSM_OK;
    }
    return status;
}

/* ---- Where to be. ---- */

static bool has_rung(const struct ladder *ladder, int rung)
{
    return rung == RUNG_SMALLER ? ladder->sides[1].slot != 0 : rung == RUNG_BYPASS ? !ladder->scores : true;
}

enum rung ladder_rung(const struct ladder *ladder)
{
    return (enum rung)atomic_load_explicit(&ladder->rung, memory_order_relaxed);
}

static bool move(struct ladder *ladder, int by)
{
    int rung = (int)ladder_rung(ladder) + by;
    while (rung > RUNG_MODEL && rung < RUNG_DROP && !has_rung(ladder, rung)) {
        rung += by;
    }
    if (rung < RUNG_MODEL || rung > RUNG_DROP) {
        return false;
    }
    atomic_store_explicit(&ladder->rung, rung, memory_order_relaxed);
    return true;
}

bool ladder_lower(struct ladder *ladder)
{
    return move(ladder, 1);
}

bool ladder_raise(struct ladder *ladder)
{
    return move(ladder, -1);
}

bool ladder_is_settled(const struct ladder *ladder)
{
    return ladder->lead == 0 && ladder->next == 0 && !ladder->comes && ladder_rung(ladder) == RUNG_MODEL;
}

void ladder_swap_out(struct ladder *ladder, float **out)
{
    float *own = ladder->sides[0].out;
    ladder->sides[0].out = *out;
    *out = own;
}

/* ---- Another in the model's place. ---- */

void ladder_await(struct ladder *ladder, const struct ladder_side *side)
{
    ladder->sides[2] = *side;
    ladder->comes = false;
    atomic_store(&ladder->succeeded, false);
}

void ladder_await_none(struct ladder *ladder)
{
    ladder->sides[2] = (struct ladder_side){0};
}

void ladder_succeed(struct ladder *ladder)
{
    ladder->comes = true;
}

bool ladder_succeeded(const struct ladder *ladder)
{
    return atomic_load_explicit(&ladder->succeeded, memory_order_relaxed);
}

void ladder_settle(struct ladder *ladder)
{
    struct ladder_side model = ladder->sides[2];
    ladder->sides[2] = ladder->sides[0];
    ladder->sides[0] = model;
    ladder->lead = ladder->lead == 2 ? 0 : ladder->lead;
    ladder->next = ladder->next == 2 ? 0 : ladder->next;
    ladder->comes = false;
    ladder->fading = ladder->warm = 0;
}

/* ---- A turn. ---- */

/* Hops until the next is heard. */
static int warm_up(const struct ladder *ladder, int next)
{
    if (ladder->lead < 0 && ladder->scores) {
        return 0;
    }
    const struct ssm_info *model = ladder->sides[0].model;
    return next == 1 && ladder->lead == 0 ? WARM_DOWN : next == 2 ? (model->rate + model->hop - 1) / model->hop : WARM_UP;
}

bool ladder_plan(struct ladder *ladder)
{
    enum rung rung = ladder_rung(ladder);
    int model = ladder->comes ? 2 : 0, next = rung == RUNG_MODEL ? model : rung == RUNG_SMALLER ? 1 : -1;
    if (next != ladder->next) {
        ladder->warm = warm_up(ladder, next);
        ladder->next = next;
        ladder->fading = 0;
    }
    if (next < 0 && ladder->scores) {
        ladder->lead = -1;
    }
    ladder->steps = (next >= 0 ? 1u << next : 0) | (ladder->lead >= 0 ? 1u << ladder->lead : 0) |
                    (ladder->fading > 0 ? 1u << ladder->from : 0);
    ladder->waits = ladder->steps;
    if (ladder->comes && ladder->lead != 0 && ladder->fading == 0) {
        atomic_store_explicit(&ladder->succeeded, true, memory_order_relaxed);
    }
    return ladder->steps != 0;
}

bool ladder_runs(const struct ladder *ladder, const struct ssm_engine *engine)
{
    return ladder->waits >> side_of(ladder, engine) & 1;
}

struct ssm_hop ladder_step(struct ladder *ladder, const struct ssm_engine *engine, const float *in, int count, float elapsed)
{
    const struct ladder_side *side = &ladder->sides[side_of(ladder, engine)];
    return (struct ssm_hop){.stream = side->slot, .in = in, .out = side->out, .count = count,
                            .elapsed = (float)fmin((double)elapsed + side->away, MOST_ELAPSED)};
}

bool ladder_stepped(struct ladder *ladder, const struct ssm_hop *step)
{
    int i = LADDER_SIDES - 1;
    while (i > 0 && step->out != ladder->sides[i].out) {
        i--;
    }
    struct ladder_side *side = &ladder->sides[i];
    side->failed = step->status != SSM_OK;
    side->blown = step->blown;
    side->ran = true;
    side->away = 0;
    ladder->waits &= ~(1u << i);
    return ladder->waits == 0;
}

/* So many hops the output takes to go over: one between models that stand in for each other, more where both are warm. */
static int fade_hops(const struct ladder *ladder)
{
    const struct ssm_info *model = ladder->sides[0].model;
    int fade = model->rate / FADES_A_SECOND / model->hop;
    return ladder->lead < 0 || ladder->scores ? 0 : ladder->next == 2 && fade > 1 ? fade : 1;
}

/* A hop's part of it, into the output of the one that leads now. */
static void fade(struct ladder *ladder, int hop)
{
    const struct ladder_side *from = &ladder->sides[ladder->from], *to = &ladder->sides[ladder->lead];
    int n = to->model->outputs, all = fade_hops(ladder) * n, at = all - ladder->fading * n;
    for (int i = 0; i < n && !from->failed && !to->failed; i++) {
        float share = (float)(at + i + 1) / (float)all;
        to->out[hop * n + i] = share * to->out[hop * n + i] + (1 - share) * from->out[hop * n + i];
    }
    ladder->fading--;
}

float *ladder_out(struct ladder *ladder, int hop, bool *given)
{
    bool comes = ladder->next >= 0 && ladder->next != ladder->lead;
    if (comes && ladder->warm > 0) {
        ladder->warm--;
    } else if (comes) {
        ladder->fading = fade_hops(ladder);
        ladder->from = ladder->lead;
        ladder->lead = ladder->next;
    }
    if (ladder->fading > 0) {
        fade(ladder, hop);
    }
    const struct ladder_side *side = ladder_lead(ladder);
    *given = ladder->lead < 0 || !side->failed;
    return side->out + hop * side->model->outputs;
}

bool ladder_is_dry(const struct ladder *ladder)
{
    return ladder->lead < 0 || ladder->next < 0;
}

void ladder_rest(struct ladder *ladder)
{
    ladder->lead = ladder->next < 0 ? -1 : ladder->lead;
}

void ladder_end(struct ladder *ladder, int count, float elapsed)
{
    for (int i = 0; i < LADDER_SIDES; i++) {
        struct ladder_side *side = &ladder->sides[i];
        side->away += side->ran && !(ladder->steps >> i & 1) ? count + ((double)elapsed - 1) : 0;
    }
}

const struct ladder_side *ladder_lead(const struct ladder *ladder)
{
    return &ladder->sides[ladder->lead > 0 ? ladder->lead : 0];
}
