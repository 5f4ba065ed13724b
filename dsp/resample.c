/* SPDX-License-Identifier: MIT */
#include "dsp/resample.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* LANES: sums a dot product is made of, for the compiler's vectors, in one order on every processor. A ratio has a row of weights
 * for each place between two inputs while those are WEIGHTS_MOST at most; of another, and of one that is slewed, lines are drawn
 * between ROWS a sample of the lower rate, which leaves errors of (2 pi f / ROWS)^2 / 8 < -100 dB. BLOCK: samples kept beyond
 * the filter's own. */
enum { LANES = 16, WEIGHTS_MOST = 1 << 19, ROWS = 512, BLOCK = 1024, RATIO_MOST = 256 };

static const struct quality {
    int half;     /* of the filter, samples of the lower rate */
    double quiet; /* dB, from half of the lower rate on       */
} qualities[] = {[RESAMPLER_LIVE] = {32, 80}, [RESAMPLER_BEST] = {80, 120}, [RESAMPLER_SLEWED] = {32, 80}};

/* Row r: what the inputs at -half + 1 .. half weigh in an output at r / rows. Row `rows` is row 0 an input later. */
struct filter {
    struct filter *next;
    int users, up, down, rows, half, taps; /* taps: 2 half, a multiple of LANES */
    const struct quality *quality;
    float weights[]; /* (rows + 1, taps) */
};

struct resampler {
    struct filter *filter; /* NULL: equal rates                                          */
    int from, to, up, down; /* up / down = to / from, in lowest terms                    */
    bool slewed;
    float *line;           /* (room) inputs: of which the next output takes `taps` from `at` on */
    size_t room, fill, at;
    int64_t phase;         /* of the next output, of `up` between two inputs             */
    double part;           /* slewed: the same, of 1                                     */
    double step, wanted;   /* slewed: inputs an output, now and in a moment              */
    uint64_t taken, given; /* samples since the start, the flush's zeros not among them  */
};

/* ---- The weights, shared by all resamplers of a ratio and grade. ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct filter *filters;

/* I0, the Bessel function. */
static double bessel(double x)
{
    double sum = 1, term = 1;
    for (int k = 1; term > 1e-12 * sum; k++) {
        term *= x * x / (4.0 * k * k);
        sum += term;
    }
    return sum;
}

/* J. F. Kaiser's formulas: beta for `quiet` dB, and how wide the way down there is with so many taps (cycles an input). */
static void weigh(struct filter *f)
{
    double quiet = f->quality->quiet, beta = 0.1102 * (quiet - 8.7), width = (quiet - 7.95) / (14.36 * f->taps);
    double edge = f->up < f->down ? 0.5 * f->up / f->down : 0.5, cut = edge - width / 2, scale = bessel(beta);
    for (int r = 0; r <= f->rows; r++) {
        float *row = f->weights + (size_t)r * (size_t)f->taps;
        double sum = 0;
        for (int i = 0; i < f->taps; i++) {
            double t = i - f->half + 1 - (double)r / f->rows, x = t / f->half, a = 2 * M_PI * cut * t;
            double window = fabs(x) < 1 ? bessel(beta * sqrt(1 - x * x)) / scale : 0;
            row[i] = (float)(window * (fabs(a) > 1e-9 ? sin(a) / a : 1));
            sum += (double)row[i];
        }
        for (int i = 0; i < f->taps; i++) { /* a constant comes out as itself */
            row[i] = (float)((double)row[i] / sum);
        }
    }
}

/* Half a filter in inputs; its taps are a multiple of LANES. */
static int half_of(int up, int down, const struct quality *quality)
{
    int half = up < down ? (int)(((int64_t)quality->half * down + up - 1) / up) : quality->half;
    return (half + LANES / 2 - 1) / (LANES / 2) * (LANES / 2);
}

static int rows_of(int up, int down, const struct quality *quality, bool slewed)
{
    int between = up < down ? (int)((int64_t)ROWS * up / down) + 1 : ROWS;
    return slewed || (int64_t)up * 2 * half_of(up, down, quality) > WEIGHTS_MOST ? between : up;
}

static struct filter *make_filter(int up, int down, int rows, const struct quality *quality)
{
    int half = half_of(up, down, quality);
    struct filter *filter = malloc(sizeof *filter + (size_t)(rows + 1) * 2 * (size_t)half * sizeof(float));
    if (filter) {
        *filter = (struct filter){.up = up, .down = down, .rows = rows, .half = half, .taps = 2 * half, .quality = quality};
        weigh(filter);
    }
    return filter;
}

static struct filter *take_filter(int up, int down, int rows, const struct quality *quality)
{
    pthread_mutex_lock(&lock);
    struct filter *filter = filters;
    while (filter && (filter->up != up || filter->down != down || filter->rows != rows || filter->quality != quality)) {
        filter = filter->next;
    }
    if (!filter && (filter = make_filter(up, down, rows, quality))) {
        filter->next = filters;
        filters = filter;
    }
    if (filter) {
        filter->users++;
    }
    pthread_mutex_unlock(&lock);
    return filter;
}

static void give_filter_back(struct filter *filter)
{
    pthread_mutex_lock(&lock);
    if (--filter->users == 0) {
        struct filter **at = &filters;
        while (*at != filter) {
            at = &(*at)->next;
        }
        *at = filter->next;
        free(filter);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- A channel. ---- */

static int common_divisor(int a, int b)
{
    while (b > 0) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static bool prepare(struct resampler *r, enum resampler_grade grade)
{
    int common = common_divisor(r->from, r->to);
    r->up = r->to / common;
    r->down = r->from / common;
    r->slewed = grade == RESAMPLER_SLEWED;
    r->filter = take_filter(r->up, r->down, rows_of(r->up, r->down, &qualities[grade], r->slewed), &qualities[grade]);
    r->room = r->filter ? (size_t)r->filter->taps + BLOCK : 0;
    r->line = r->filter ? malloc(r->room * sizeof *r->line) : NULL;
    r->step = r->wanted = (double)r->from / r->to;
    return r->line != NULL;
}

struct resampler *resampler_create(int from, int to, enum resampler_grade grade)
{
    if (from < 1 || to < 1 || (int64_t)from * RATIO_MOST < to || (int64_t)to * RATIO_MOST < from) {
        return NULL;
    }
    struct resampler *r = calloc(1, sizeof *r);
    if (!r) {
        return NULL;
    }
    *r = (struct resampler){.from = from, .to = to};
    if ((from != to || grade == RESAMPLER_SLEWED) && !prepare(r, grade)) {
        resampler_destroy(r);
        return NULL;
    }
    resampler_reset(r);
    return r;
}

void resampler_destroy(struct resampler *r)
{
    if (r) {
        if (r->filter) {
            give_filter_back(r->filter);
        }
        free(r->line);
        free(r);
    }
}

void resampler_slew(struct resampler *r, double ratio)
{
    r->wanted = r->from / (ratio * r->to);
}

void resampler_reset(struct resampler *r)
{
    if (r->filter) { /* silence before the first input, which is the one behind `half - 1` */
        r->fill = (size_t)r->filter->half - 1;
        memset(r->line, 0, r->fill * sizeof *r->line);
    }
    r->at = 0;
    r->phase = 0;
    r->part = 0;
    r->taken = r->given = 0;
}

static float dot(const float *x, const float *weights, int n)
{
    float sums[LANES] = {0};
    for (int i = 0; i < n; i += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            sums[lane] += x[i + lane] * weights[i + lane];
        }
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; lane++) {
            sums[lane] += sums[lane + half];
        }
    }
    return sums[0];
}

static float compute(const struct resampler *r)
{
    const struct filter *f = r->filter;
    const float *x = r->line + r->at, *row = f->weights;
    if (!r->slewed && f->rows == r->up) {
        return dot(x, row + (size_t)r->phase * (size_t)f->taps, f->taps);
    }
    double place = f->rows * (r->slewed ? r->part : (double)r->phase / r->up);
    row += (size_t)place * (size_t)f->taps;
    float share = (float)(place - floor(place)), a = dot(x, row, f->taps), b = dot(x, row + f->taps, f->taps);
    return a + share * (b - a);
}

/* To the next output's place. */
static void advance(struct resampler *r)
{
    if (r->slewed) {
        const double most = r->step * 0x1p-16;
        r->step += fmin(fmax(r->wanted - r->step, -most), most);
        r->part += r->step;
        size_t whole = (size_t)r->part;
        r->at += whole;
        r->part -= (double)whole;
    } else {
        r->phase += r->down;
        r->at += (size_t)(r->phase / r->up);
        r->phase %= r->up;
    }
}

/* Inputs that are still to come for `n` more outputs, 1 at least; for one where the ratio is slewed. */
static size_t missing(const struct resampler *r, size_t n)
{
    uint64_t ahead = n < BLOCK ? n - 1 : BLOCK - 1;
    uint64_t last = r->slewed ? r->at : r->at + ((uint64_t)r->phase + ahead * (uint64_t)r->down) / (uint64_t)r->up;
    return (size_t)last + (size_t)r->filter->taps - r->fill;
}

/* Move inputs into the line: no more than the outputs need, so that what is ready never waits for input. */
static size_t take(struct resampler *r, const float *in, size_t n_in, size_t n_out)
{
    size_t n = missing(r, n_out);
    n = n < n_in ? n : n_in;
    if (n > r->room - r->fill) {
        r->fill -= r->at;
        memmove(r->line, r->line + r->at, r->fill * sizeof *r->line);
        r->at = 0;
    }
    n = n < r->room - r->fill ? n : r->room - r->fill;
    memcpy(r->line + r->fill, in, n * sizeof *in);
    r->fill += n;
    return n;
}

static size_t convert(struct resampler *r, const float *in, size_t n_in, size_t *used, float *out, size_t n_out)
{
    size_t n = 0, taps = (size_t)r->filter->taps;
    *used = 0;
    while (n < n_out) {
        if (r->at + taps <= r->fill) {
            out[n++] = compute(r);
            advance(r);
        } else if (*used < n_in) {
            *used += take(r, in + *used, n_in - *used, n_out - n);
        } else {
            break;
        }
    }
    return n;
}

/* Zeros push the rest out. */
static size_t flush(struct resampler *r, float *out, size_t n_out)
{
    static const float zeros[256];
    uint64_t to = (uint64_t)r->to, from = (uint64_t)r->from;
    uint64_t all = (r->taken * to + from - 1) / from, rest = all > r->given ? all - r->given : 0;
    size_t wanted = rest < n_out ? (size_t)rest : n_out, n = 0, used;
    while (n < wanted) {
        n += convert(r, zeros, sizeof zeros / sizeof *zeros, &used, out + n, wanted - n);
    }
    return n;
}

size_t resampler_push(struct resampler *r, const float *in, size_t n_in, size_t *used, float *out, size_t n_out, int last)
{
    if (!r->filter) {
        size_t n = n_in < n_out ? n_in : n_out;
        if (n > 0) {
            memcpy(out, in, n * sizeof *out);
        }
        *used = n;
        return n;
    }
    size_t n = convert(r, in, n_in, used, out, n_out);
    r->taken += *used;
    r->given += n;
    if (last && *used == n_in) {
        size_t more = flush(r, out + n, n_out - n);
        r->given += more;
        n += more;
    }
    return n;
}

double resampler_delay(const struct resampler *r)
{
    return r->filter ? (double)r->filter->half * r->to / r->from : 0;
}
