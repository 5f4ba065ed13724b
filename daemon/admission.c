/* SPDX-License-Identifier: MIT */
#include "daemon/admission.h"

#include <math.h>
#include <stdlib.h>

#include "dsp/clock.h"

/* TRIALS: steps of which the median counts. MOST: streams at once, more tell nothing new. USABLE: of a hop's time; steps are
 * not the only work, not all take as long as the median, and who sends may be on the same machine. */
enum { TRIALS = 21, MOST = 1024 };
static const double USABLE = 0.35;

void admission_init(struct admission *admission, int capacity)
{
    *admission = (struct admission){.told = capacity};
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The median of some steps of n hops, ns. */
static double time_step(struct ssm_engine *engine, struct ssm_hop *hops, int n)
{
    int64_t times[TRIALS];
    for (int i = 0; i < TRIALS; i++) {
        int64_t began = clock_now();
        ssm_step(engine, hops, n);
        times[i] = clock_now() - began;
    }
    qsort(times, TRIALS, sizeof *times, by_size);
    return (double)times[TRIALS / 2];
}

/* ns: what each stream adds to a step, and what a step takes besides. False: out of memory. */
static bool time_streams(struct ssm_engine *engine, double *each, double *besides)
{
    const struct ssm_info *model = ssm_describe(engine);
    int n = 0, most = model->streams < MOST ? model->streams : MOST;
    size_t inputs = (size_t)model->inputs, outputs = (size_t)model->outputs;
    struct ssm_hop *hops = calloc((size_t)most, sizeof *hops);
    float *in = calloc(inputs, sizeof *in), *out = calloc((size_t)most * outputs, sizeof *out);
    bool ok = hops && in && out;
    for (; ok && n < most && ssm_stream_open(engine, &hops[n].stream) == SSM_OK; n++) {
        hops[n].in = in;
        hops[n].out = out + (size_t)n * outputs;
        hops[n].count = 1;
    }
    if (n > 0) {
        double one = time_step(engine, hops, 1), all = n > 1 ? time_step(engine, hops, n) : one;
        *each = n > 1 && all > one ? (all - one) / (n - 1) : one;
        *besides = fmax(one - *each, 0);
    }
    for (int i = 0; i < n; i++) {
        ssm_stream_close(engine, hops[i].stream);
    }
    free(hops);
    free(in);
    free(out);
    return n > 0;
}

static void note_dearest(struct admission *admission, int64_t each)
{
    int64_t dearest = atomic_load(&admission->dearest);
    while (each > dearest && !atomic_compare_exchange_weak(&admission->dearest, &dearest, each)) {
    }
}

struct admission_cost admission_measure(struct admission *admission, struct ssm_engine *engine)
{
    struct admission_cost cost = {admission->told > 0 ? ADMISSION_ALL / admission->told : 0, 0};
    const struct ssm_info *model = ssm_describe(engine);
    double each, besides, share = USABLE * 1e9 * model->hop / model->rate / ADMISSION_ALL; /* ns of a hop for one part */
    if (admission->told < 0 && time_streams(engine, &each, &besides)) {
        cost = (struct admission_cost){(int64_t)(each / share), (int64_t)(besides / share)};
    }
    atomic_fetch_add(&admission->taken, cost.besides);
    note_dearest(admission, cost.each);
    return cost;
}

void admission_forget(struct admission *admission, const struct admission_cost *cost)
{
    atomic_fetch_sub(&admission->taken, cost->besides);
}

static bool fits(const struct admission_pass *pass, int64_t taken)
{
    return pass->cost == 0 || taken + pass->cost <= ADMISSION_ALL;
}

bool admission_enter(struct admission_pass *pass)
{
    struct admission *admission = pass->admission;
    if (!admission || atomic_load(&pass->in)) {
        return true;
    }
    int64_t taken = atomic_load(&admission->taken);
    do {
        if (!fits(pass, taken)) {
            atomic_fetch_add(&admission->rejected, 1);
            return false;
        }
    } while (!atomic_compare_exchange_weak(&admission->taken, &taken, taken + pass->cost));
    atomic_store(&pass->in, true);
    return true;
}

void admission_leave(struct admission_pass *pass)
{
    if (pass->admission && atomic_exchange(&pass->in, false)) {
        atomic_fetch_sub(&pass->admission->taken, pass->cost);
    }
}

bool admission_could_enter(struct admission_pass *pass)
{
    bool could = !pass->admission || atomic_load(&pass->in) || fits(pass, atomic_load(&pass->admission->taken));
    if (!could) {
        atomic_fetch_add(&pass->admission->rejected, 1);
    }
    return could;
}

int admission_capacity(const struct admission *admission)
{
    int64_t dearest = atomic_load(&admission->dearest);
    return dearest > 0 ? (int)(ADMISSION_ALL / dearest) : 0;
}
