/* SPDX-License-Identifier: MIT */

/* Every operation of kernels.h once more, over vectors: avx2.c and avx512.c each define what a vector is, then include
 * this file. It has no include guard and belongs to nobody else.
 *
 * The includer defines `vec` (WIDTH floats), `raw` (as many bytes), and:
 *   vec_load, vec_store        WIDTH floats, any alignment
 *   vec_load_n, vec_store_n    the first n of them, none if n <= 0, all from WIDTH on; the rest reads as zero
 *   vec_set, vec_fma, vec_fnma (c - a b), vec_max, vec_min (both give their second argument when one is NaN)
 *   vec_abs, vec_sum           horizontal
 *   vec_exponent               2^k from the float whose bits are k + 127 in the low byte (and anything above)
 *   vec_scale                  v 2^k, right down to the denormals; k a whole number in -150 .. 129
 *   vec_shrink                 v 2^k for a whole k <= 0, however small; 0 may come below k = -126
 *   struct parts, vec_parts    x = 2^e m with m around 1, from sqrt(1/2) to sqrt(2); x >= 2^-126 or NaN
 *   raw_load, raw_byte         WIDTH x 4 bytes; byte j of each 32-bit lane as a float, times BYTE_SCALE
 * and LINEAR_ROWS x LINEAR_VECTORS, the block of a matrix product that fits the registers.
 *
 * No product here feeds a sum except through vec_fma: what the compiler may contract, it may contract differently in
 * two places, and a row must not depend on which path took it. */

#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* ---- exp and its relatives -------------------------------------------------------------------------------------- */

/* x = k ln 2 + r, |r| <= ln 2 / 2, but for k times 1.9e-9, which the first product leaves. `biased` holds k + 127 in
 * its low bits, for vec_exponent. */
struct reduced {
    vec biased, k, r;
};

INLINE struct reduced reduce(vec x)
{
    const vec magic = vec_set(0x1.8p23f + 127); /* adding it rounds to a whole number, in the low bits */
    const vec biased = vec_fma(x, vec_set(0x1.715476p+0f), magic);
    const vec k = biased - magic;
    return (struct reduced){biased, k, vec_fnma(k, vec_set(0x1.62e430p-1f), x)};
}

/* exp(r) - 1 for |r| <= ln 2 / 2: r + r^2 P(r), minimax, 1.4e-8 relative before rounding. */
INLINE vec expm1_small(vec r)
{
    vec p = vec_fma(vec_set(0x1.6d995cp-10f), r, vec_set(0x1.122838p-7f));
    p = vec_fma(p, r, vec_set(0x1.555486p-5f));
    p = vec_fma(p, r, vec_set(0x1.5554b0p-3f));
    p = vec_fma(p, r, vec_set(0.5f));
    return vec_fma(r * r, p, r);
}

INLINE vec vec_exp(vec x)
{
    const struct reduced a = reduce(vec_min(vec_set(89), vec_max(vec_set(-104), x)));
    const vec r = vec_fnma(a.k, vec_set(-0x1.05c610p-29f), a.r);
    return vec_scale(vec_set(1) + expm1_small(r), a.k);
}

/* exp(x) = power (1 + small) for x <= 0: where x is small, power is 1 and no digit of the difference to 1 is lost. What
 * reduce() leaves is at most 1e-9 of 1 here, since power shrinks faster than k grows. */
struct decay {
    vec power, small;
};

INLINE struct decay vec_decay(vec x)
{
    const struct reduced a = reduce(vec_max(vec_set(-87), x));
    return (struct decay){vec_exponent(a.biased), expm1_small(a.r)};
}

/* 2^x for x <= 0 is power (1 + r q): no digit of its difference to 1 is lost where x is small. x itself is a product,
 * a b, that is never rounded; |x| is less than 2^43, beyond which r may be anything. q is minimax, 5e-7 of the
 * exponent: two roundings of it would be as much. */
struct halvings {
    vec k, r, q; /* power = 2^k */
};

INLINE struct halvings vec_halvings(vec a, vec b)
{
    const vec magic = vec_set(0x1.8p23f), k = vec_fma(a, b, magic) - magic, r = vec_fma(a, b, vec_set(0) - k);
    vec q = vec_fma(vec_set(0x1.5d87dep-10f), r, vec_set(0x1.3cbe58p-7f));
    q = vec_fma(q, r, vec_set(0x1.c6b26ep-5f));
    q = vec_fma(q, r, vec_set(0x1.ebfa4ep-3f));
    q = vec_fma(q, r, vec_set(0x1.62e42ep-1f));
    return (struct halvings){k, r, q};
}

INLINE vec vec_sigmoid(vec x)
{
    return vec_set(1) / (vec_set(1) + vec_exp(vec_set(0) - x));
}

INLINE vec vec_silu(vec x)
{
    return x / (vec_set(1) + vec_exp(vec_set(0) - x));
}

/* 2 atanh(s) for |s| <= 1/3, which is log((1 + s) / (1 - s)): minimax, 5e-9. */
INLINE vec vec_two_atanh(vec s)
{
    const vec q = s * s;
    vec p = vec_fma(vec_set(0x1.1ef86cp-2f), q, vec_set(0x1.1eb612p-2f));
    p = vec_fma(p, q, vec_set(0x1.99d27cp-2f));
    p = vec_fma(p, q, vec_set(0x1.555500p-1f));
    return vec_fma(s * q, p, s + s);
}

/* max(x, 0) + log1p(exp(-|x|)): no digits lost at either end, and x itself above 20 (exp(-20) is less than half an ulp
 * of it). */
INLINE vec vec_softplus(vec x)
{
    const vec t = vec_exp(vec_set(0) - vec_abs(x));
    return vec_max(vec_set(0), x) + vec_two_atanh(t / (vec_set(2) + t));
}

/* x^p = 2^(p e) m^p with x = 2^e m: p e is kept in two parts, since its digits before the point are no use after it.
 * x - x is 0, or the NaN that the parts don't show. */
INLINE vec vec_power(vec x, vec p)
{
    const struct parts x_ = vec_parts(x);
    const vec log2_m = vec_two_atanh((x_.m - vec_set(1)) / (x_.m + vec_set(1))) * vec_set(0x1.715476p+0f);
    const vec magic = vec_set(0x1.8p23f), whole = p * x_.e;
    const vec k = vec_fma(p, log2_m, whole) + magic - magic;
    const vec r = vec_fma(p, log2_m, (whole - k) + vec_fma(p, x_.e, (x - x) - whole));
    return vec_scale(vec_set(1) + expm1_small(r * vec_set(0x1.62e430p-1f)), k);
}

static void power(const float *from, float exponent, float *to, size_t n)
{
    for (ptrdiff_t left = (ptrdiff_t)n; left > 0; left -= WIDTH, from += WIDTH, to += WIDTH) {
        vec_store_n(to, vec_power(vec_load_n(from, left), vec_set(exponent)), left);
    }
}

#define ELEMENT_BY_ELEMENT(name, expression)                                                                           \
    static void name(const float *from, float *to, size_t n)                                                           \
    {                                                                                                                  \
        for (ptrdiff_t left = (ptrdiff_t)n; left > 0; left -= WIDTH, from += WIDTH, to += WIDTH) {                     \
            const vec x = vec_load_n(from, left);                                                                      \
            vec_store_n(to, expression, left);                                                                         \
        }                                                                                                              \
    }
ELEMENT_BY_ELEMENT(sigmoid, vec_sigmoid(x))
ELEMENT_BY_ELEMENT(silu, vec_silu(x))
ELEMENT_BY_ELEMENT(softplus, vec_softplus(x))
ELEMENT_BY_ELEMENT(exponential, vec_exp(x))
ELEMENT_BY_ELEMENT(add, vec_load_n(to, left) + x)
#undef ELEMENT_BY_ELEMENT

/* ---- linear ----------------------------------------------------------------------------------------------------- */

/* Sums of R rows times V vectors of outputs. `weights` points at the first output's column inside its panel. R and V
 * are constants to every caller, so that `sum` lives in registers; a sum always runs over k in order. */
INLINE void sum_f32(const float *weights, int in, const float *x, ptrdiff_t x_stride, int R, int V, vec *sum)
{
    for (int k = 0; k < in; k++, weights += KERNELS_PANEL) {
        vec w[8];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            w[v] = vec_load(weights + v * WIDTH);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vec broadcast = vec_set(x[r * x_stride + k]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                sum[r * V + v] = vec_fma(broadcast, w[v], sum[r * V + v]);
            }
        }
    }
}

INLINE void sum_group(const int8_t *weights, int k, int count, const float *x, ptrdiff_t x_stride, int R, int V,
                      vec *sum)
{
    raw w[8];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
        w[v] = raw_load(weights + v * WIDTH * KERNELS_GROUP);
    }
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) {
        vec f[8];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            f[v] = raw_byte(w[v], j);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vec broadcast = vec_set(x[r * x_stride + k + j]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                sum[r * V + v] = vec_fma(broadcast, f[v], sum[r * V + v]);
            }
        }
    }
}

INLINE void sum_i8(const int8_t *weights, int in, const float *x, ptrdiff_t x_stride, int R, int V, vec *sum)
{
    int k = 0;
    for (; k + KERNELS_GROUP <= in; k += KERNELS_GROUP, weights += KERNELS_GROUP * KERNELS_PANEL) {
        sum_group(weights, k, KERNELS_GROUP, x, x_stride, R, V, sum);
    }
    if (k < in) {
        sum_group(weights, k, in - k, x, x_stride, R, V, sum);
    }
}

/* R rows of outputs o .. o + V WIDTH - 1. */
INLINE void linear_block(const struct linear *w, int o, const float *x, ptrdiff_t x_stride, float *y,
                         ptrdiff_t y_stride, int R, int V)
{
    const ptrdiff_t panel = o / KERNELS_PANEL, lane = o % KERNELS_PANEL;
    vec sum[8 * 8];
#pragma GCC unroll 64
    for (int i = 0; i < R * V; i++) {
        sum[i] = vec_set(0);
    }
    if (w->f32) {
        sum_f32(w->f32 + panel * w->in * KERNELS_PANEL + lane, w->in, x, x_stride, R, V, sum);
    } else {
        sum_i8(w->i8 + panel * (ptrdiff_t)w->i8_stride + lane * KERNELS_GROUP, w->in, x, x_stride, R, V, sum);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
        const ptrdiff_t at = o + v * WIDTH, left = w->out - at;
        if (left <= 0) {
            break;
        }
        const vec bias = w->bias ? vec_load(w->bias + at) : vec_set(0);
        vec scale = vec_set(1);
        if (w->scale) {
            scale = vec_load(w->scale + at) * vec_set(1 / BYTE_SCALE);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vec_store_n(y + r * y_stride + at, vec_fma(sum[r * V + v], scale, bias), left);
        }
    }
}

/* One panel for all rows: the panel stays in the nearest cache. */
INLINE void linear_panel(const struct linear *w, int o, const float *x, ptrdiff_t x_stride, float *y,
                         ptrdiff_t y_stride, int rows)
{
    int r = 0;
    for (; r + LINEAR_ROWS <= rows; r += LINEAR_ROWS) {
        for (int at = o; at < o + KERNELS_PANEL && at < w->out; at += LINEAR_VECTORS * WIDTH) {
            linear_block(w, at, x + r * x_stride, x_stride, y + r * y_stride, y_stride, LINEAR_ROWS, LINEAR_VECTORS);
        }
    }
    for (; r < rows; r++) {
        for (int at = o; at < o + KERNELS_PANEL && at < w->out; at += 4 * WIDTH) {
            linear_block(w, at, x + r * x_stride, x_stride, y + r * y_stride, y_stride, 1, 4);
        }
    }
}

static void linear(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride, int rows)
{
    for (int o = 0; o < w->out; o += KERNELS_PANEL) {
        linear_panel(w, o, x, x_stride, y, y_stride, rows);
    }
}

/* ---- norm and convolution --------------------------------------------------------------------------------------- */

static void rms_norm(const float *x, const float *weight, float eps, float *y, int rows, int width)
{
    for (int r = 0; r < rows; r++, x += width, y += width) {
        vec sum = vec_set(0);
        for (int i = 0; i < width; i += WIDTH) {
            const vec value = vec_load_n(x + i, width - i);
            sum = vec_fma(value, value, sum);
        }
        const vec scale = vec_set(1 / sqrtf(vec_sum(sum) / (float)width + eps));
        for (int i = 0; i < width; i += WIDTH) {
            vec_store_n(y + i, vec_load_n(x + i, width - i) * scale * vec_load_n(weight + i, width - i), width - i);
        }
    }
}

/* The history after T more inputs: the last K - 1 rows of (history, x). */
static void move_history(float *history, int K, const float *x, ptrdiff_t x_stride, int T, int E)
{
    const int kept = T < K - 1 ? K - 1 - T : 0;
    memmove(history, history + (ptrdiff_t)(K - 1 - kept) * E, (size_t)kept * (size_t)E * sizeof *history);
    for (int i = kept; i < K - 1; i++) {
        memcpy(history + (ptrdiff_t)i * E, x + (T - (K - 1) + i) * x_stride, (size_t)E * sizeof *history);
    }
}

static void conv1d(const float *weight, const float *bias, int K, float *history, const float *x, ptrdiff_t x_stride,
                   float *y, ptrdiff_t y_stride, int T, int E, bool activate)
{
    for (int t = 0; t < T; t++) {
        for (int e = 0; e < E; e += WIDTH) {
            vec sum = bias ? vec_load_n(bias + e, E - e) : vec_set(0);
            for (int k = 0; k < K; k++) {
                const int from = t - (K - 1) + k;
                const float *input = from < 0 ? history + (ptrdiff_t)(K - 1 + from) * E : x + from * x_stride;
                sum = vec_fma(vec_load_n(weight + (ptrdiff_t)k * E + e, E - e), vec_load_n(input + e, E - e), sum);
            }
            vec_store_n(y + t * y_stride + e, activate ? vec_silu(sum) : sum, E - e);
        }
    }
    move_history(history, K, x, x_stride, T, E);
}

/* ---- selective scan --------------------------------------------------------------------------------------------- */

/* Channels go SCAN_VECTORS vectors at a time: one vector's chain from dt to y is some 200 cycles long, and a processor
 * sees far enough ahead to overlap that only within such a block. Lanes beyond E compute on zeros and are not stored.
 */
enum { SCAN_VECTORS = 4, SCAN_CHANNELS = SCAN_VECTORS * WIDTH };

/* The states of a block and their A: in place for one step, else copied side by side, so that a row of state doesn't
 * share its few cache sets with all the others. */
struct states {
    float *h;
    const float *A;
    ptrdiff_t stride;
};

/* One step's values of a block. */
struct block {
    vec delta[SCAN_VECTORS], doublings[SCAN_VECTORS]; /* the latter are delta / ln 2 */
    vec u[SCAN_VECTORS], delta_u[SCAN_VECTORS], y[SCAN_VECTORS];
};

INLINE void block_delta(const struct selective_scan *s, int t, int e, struct block *block)
{
    const vec elapsed = vec_set(s->elapsed ? s->elapsed[t] : 1);
#pragma GCC unroll 4
    for (int v = 0; v < SCAN_VECTORS; v++, e += WIDTH) {
        const vec dt = vec_load_n(s->dt + t * s->dt_stride + e, s->E - e) + vec_load_n(s->dt_bias + e, s->E - e);
        block->delta[v] = elapsed * vec_softplus(dt);
        block->doublings[v] = vec_min(vec_set(0x1p23f), block->delta[v] * vec_set(0x1.715476p+0f));
        block->u[v] = vec_load_n(s->u + t * s->u_stride + e, s->E - e);
        block->delta_u[v] = block->delta[v] * block->u[v];
        block->y[v] = vec_set(0);
    }
}

/* exp(delta A) h + B-bar u, where exp(delta A) is never rounded to near 1: see scalar.c. */
INLINE vec next_euler(vec h, vec A, vec B, const struct block *block, int v)
{
    const struct halvings a = vec_halvings(block->doublings[v], A);
    return vec_fma(block->delta_u[v], B, vec_shrink(vec_fma(h * a.r, a.q, h), a.k));
}

INLINE vec next_hold(vec h, vec A, vec B, const struct block *block, int v)
{
    A = vec_min(vec_set(-1e-20f), A); /* so that A = 0 has its limit, delta */
    const struct decay decay = vec_decay(block->delta[v] * A);
    const vec gain = vec_fma(decay.power, decay.small, decay.power - vec_set(1)) / A;
    return vec_fma(decay.power, vec_fma(decay.small, h, h), gain * block->u[v] * B);
}

/* The next block's part of each row of states is asked for as this one's is done: no hardware sees that pattern coming,
 * and with many streams the states come from memory. */
INLINE void block_states(struct states states, const float *B, const float *C, int N, struct block *block, bool hold)
{
    for (int n = 0; n < N; n++, states.h += states.stride, states.A += states.stride) {
        const vec b = vec_set(B[n]), c = vec_set(C[n]);
#pragma GCC unroll 4
        for (int v = 0; v < SCAN_VECTORS; v++) {
            const vec A = vec_load(states.A + v * WIDTH), h = vec_load(states.h + v * WIDTH);
            const vec next = (hold ? next_hold : next_euler)(h, A, b, block, v);
            vec_store(states.h + v * WIDTH, next);
            _mm_prefetch((const char *)(states.h + SCAN_CHANNELS + v * WIDTH), _MM_HINT_T0);
            block->y[v] = vec_fma(c, next, block->y[v]);
        }
    }
}

INLINE void block_output(const struct selective_scan *s, int t, int e, const struct block *block)
{
#pragma GCC unroll 4
    for (int v = 0; v < SCAN_VECTORS; v++, e += WIDTH) {
        vec y = vec_fma(vec_load_n(s->D + e, s->E - e), block->u[v], block->y[v]);
        if (s->z) {
            y = y * vec_silu(vec_load_n(s->z + t * s->z_stride + e, s->E - e));
        }
        vec_store_n(s->out + t * s->out_stride + e, y, s->E - e);
    }
}

/* All T steps of the block of channels that starts at e. */
INLINE void scan_block(const struct selective_scan *s, struct states states, int e, bool hold)
{
    struct block block;
    for (int t = 0; t < s->T; t++) {
        block_delta(s, t, e, &block);
        block_states(states, s->B + t * s->B_stride, s->C + t * s->C_stride, s->N, &block, hold);
        block_output(s, t, e, &block);
    }
}

INLINE void scan_copied(const struct selective_scan *s, int e, bool hold)
{
    float h[KERNELS_STATES_MAX * SCAN_CHANNELS], A[KERNELS_STATES_MAX * SCAN_CHANNELS];
    const size_t lanes = (size_t)(s->E - e < SCAN_CHANNELS ? s->E - e : SCAN_CHANNELS);
    if (lanes < SCAN_CHANNELS) {
        memset(h, 0, (size_t)s->N * SCAN_CHANNELS * sizeof *h);
        memset(A, 0, (size_t)s->N * SCAN_CHANNELS * sizeof *A);
    }
    for (int n = 0; n < s->N; n++) {
        memcpy(h + n * SCAN_CHANNELS, s->h + n * s->state_stride + e, lanes * sizeof *h);
        memcpy(A + n * SCAN_CHANNELS, s->A + n * s->state_stride + e, lanes * sizeof *A);
    }
    scan_block(s, (struct states){h, A, SCAN_CHANNELS}, e, hold);
    for (int n = 0; n < s->N; n++) {
        memcpy(s->h + n * s->state_stride + e, h + n * SCAN_CHANNELS, lanes * sizeof *h);
    }
}

INLINE void scan_all(const struct selective_scan *s, bool hold)
{
    for (int e = 0; e < s->E; e += SCAN_CHANNELS) {
        if (s->T == 1 && s->E - e >= SCAN_CHANNELS) {
            scan_block(s, (struct states){s->h + e, s->A + e, s->state_stride}, e, hold);
        } else {
            scan_copied(s, e, hold);
        }
    }
}

static __attribute__((noinline)) void scan_euler(const struct selective_scan *s)
{
    scan_all(s, false);
}

static __attribute__((noinline)) void scan_hold(const struct selective_scan *s)
{
    scan_all(s, true);
}

/* In silence a state decays into the denormals and, rounding to itself, would stay there for good; each such number
 * costs these processors some 150 cycles. So they count as zero here (MXCSR's FTZ and DAZ), whatever the caller set. */
static void selective_scan(const struct selective_scan *s)
{
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);
    (s->discretisation == DISCRETISE_ZOH ? scan_hold : scan_euler)(s);
    _mm_setcsr(mode);
}

/* ---- diagonal scan ---------------------------------------------------------------------------------------------- */

/* A vector of channels over up to DIAGONAL_ROWS steps: their inputs and sums wait in the first level of the cache while one
 * state after the other, in registers, walks through all of them. */
enum { DIAGONAL_ROWS = 32 };

struct complex {
    vec re, im;
};

INLINE struct complex complex_load(const float *from, ptrdiff_t imaginary, ptrdiff_t left)
{
    return (struct complex){vec_load_n(from, left), vec_load_n(from + imaginary, left)};
}

/* h + a h + b u */
INLINE struct complex complex_next(struct complex h, struct complex a, struct complex b, vec u)
{
    const vec re = vec_fnma(a.im, h.im, vec_fma(a.re, h.re, b.re * u));
    const vec im = vec_fma(a.im, h.re, vec_fma(a.re, h.im, b.im * u));
    return (struct complex){h.re + re, h.im + im};
}

/* States n and, with `two`, n + 1 over T steps: two at once hide half of each other's latency. */
INLINE void diagonal_states(const struct diagonal_scan *s, int T, ptrdiff_t n, int e, const vec *u, vec *y, bool two)
{
    const ptrdiff_t imaginary = s->N * s->state_stride, left = s->E - e, at = n * s->state_stride + e;
    const ptrdiff_t other = two ? at + s->state_stride : at;
    const struct complex a = complex_load(s->a + at, imaginary, left), a2 = complex_load(s->a + other, imaginary, left);
    const struct complex b = complex_load(s->b + at, imaginary, left), b2 = complex_load(s->b + other, imaginary, left);
    const struct complex c = complex_load(s->c + at, imaginary, left), c2 = complex_load(s->c + other, imaginary, left);
    struct complex h = complex_load(s->h + at, imaginary, left), h2 = complex_load(s->h + other, imaginary, left);
    for (int t = 0; t < T; t++) {
        h = complex_next(h, a, b, u[t]);
        y[t] = vec_fnma(c.im, h.im, vec_fma(c.re, h.re, y[t]));
        if (two) {
            h2 = complex_next(h2, a2, b2, u[t]);
            y[t] = vec_fnma(c2.im, h2.im, vec_fma(c2.re, h2.re, y[t]));
        }
    }
    vec_store_n(s->h + at, h.re, left);
    vec_store_n(s->h + at + imaginary, h.im, left);
    if (two) {
        vec_store_n(s->h + other, h2.re, left);
        vec_store_n(s->h + other + imaginary, h2.im, left);
    }
}

INLINE void diagonal_block(const struct diagonal_scan *s, int first, int T, int e)
{
    vec u[DIAGONAL_ROWS], y[DIAGONAL_ROWS];
    const ptrdiff_t left = s->E - e;
    int n = 0;
    for (int t = 0; t < T; t++) {
        u[t] = vec_load_n(s->u + (first + t) * s->u_stride + e, left);
        y[t] = vec_load_n(s->D + e, left) * u[t];
    }
    for (; n + 2 <= s->N; n += 2) {
        diagonal_states(s, T, n, e, u, y, true);
    }
    if (n < s->N) {
        diagonal_states(s, T, n, e, u, y, false);
    }
    for (int t = 0; t < T; t++) {
        vec_store_n(s->out + (first + t) * s->out_stride + e, y[t], left);
    }
}

static void diagonal_scan(const struct diagonal_scan *s)
{
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* as in selective_scan */
    for (int first = 0; first < s->T; first += DIAGONAL_ROWS) {
        const int T = s->T - first < DIAGONAL_ROWS ? s->T - first : DIAGONAL_ROWS;
        for (int e = 0; e < s->E; e += WIDTH) {
            diagonal_block(s, first, T, e);
        }
    }
    _mm_setcsr(mode);
}

#define KERNELS_TABLE(title, product)                                                                                  \
    {                                                                                                                  \
        .name = title, .linear = product, .rms_norm = rms_norm, .conv1d = conv1d, .selective_scan = selective_scan,    \
        .diagonal_scan = diagonal_scan, .sigmoid = sigmoid, .silu = silu, .softplus = softplus, .exp = exponential,     \
        .power = power, .add = add                                                                                     \
    }
