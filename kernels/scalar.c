/* SPDX-License-Identifier: MIT */
#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

/* The definition of every operation. Clarity before speed; the twins are checked against the same formulas in double.
 */

static void linear(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride, int rows)
{
    for (int r = 0; r < rows; r++) {
        for (int o = 0; o < w->out; o++) {
            float sum = 0;
            for (int k = 0; k < w->in; k++) {
                sum += linear_weight(w, o, k) * x[r * x_stride + k];
            }
            y[r * y_stride + o] = (w->scale ? w->scale[o] * sum : sum) + (w->bias ? w->bias[o] : 0);
        }
    }
}

static void rms_norm(const float *x, const float *weight, float eps, float *y, int rows, int width)
{
    for (int r = 0; r < rows; r++, x += width, y += width) {
        float sum = 0;
        for (int i = 0; i < width; i++) {
            sum += x[i] * x[i];
        }
        const float scale = 1 / sqrtf(sum / (float)width + eps);
        for (int i = 0; i < width; i++) {
            y[i] = x[i] * scale * weight[i];
        }
    }
}

static float silu1(float x)
{
    return x / (1 + expf(-x));
}

static float softplus1(float x)
{
    return x > 20 ? x : log1pf(expf(x));
}

static void conv1d(const float *weight, const float *bias, int K, float *history, const float *x, ptrdiff_t x_stride,
                   float *y, ptrdiff_t y_stride, int T, int E, bool silu)
{
    for (int t = 0; t < T; t++, x += x_stride, y += y_stride) {
        for (int e = 0; e < E; e++) {
            float sum = (bias ? bias[e] : 0) + weight[(K - 1) * E + e] * x[e];
            for (int k = 0; k < K - 1; k++) {
                sum += weight[k * E + e] * history[k * E + e];
            }
            y[e] = silu ? silu1(sum) : sum;
        }
        if (K > 1) {
            memmove(history, history + E, (size_t)(K - 2) * (size_t)E * sizeof *history);
            memcpy(history + (K - 2) * E, x, (size_t)E * sizeof *history);
        }
    }
}

/* B-bar / B over a step of delta. exp - 1 keeps its digits by expm1 where delta A is small. */
static float input_gain(enum discretisation how, float delta, float A)
{
    return how == DISCRETISE_ZOH && A != 0 ? expm1f(delta * A) / A : delta;
}

/* One channel at one step; gives y before the gate. h moves by its change, h + expm1(delta A) h, because exp(delta A)
 * near 1 rounds: over the 1 / (delta |A|) steps a slow state remembers, that would add up to 1e-5 and more. */
static float step(const struct selective_scan *s, int t, int e, float delta, float u)
{
    float y = s->D[e] * u;
    for (int n = 0; n < s->N; n++) {
        const float A = s->A[n * s->state_stride + e];
        float *h = &s->h[n * s->state_stride + e];
        *h += expm1f(delta * A) * *h + input_gain(s->discretisation, delta, A) * u * s->B[t * s->B_stride + n];
        y += s->C[t * s->C_stride + n] * *h;
    }
    return y;
}

static void selective_scan(const struct selective_scan *s)
{
    for (int e = 0; e < s->E; e++) {
        for (int t = 0; t < s->T; t++) {
            const float elapsed = s->elapsed ? s->elapsed[t] : 1;
            const float delta = elapsed * softplus1(s->dt[t * s->dt_stride + e] + s->dt_bias[e]);
            const float y = step(s, t, e, delta, s->u[t * s->u_stride + e]);
            s->out[t * s->out_stride + e] = s->z ? y * silu1(s->z[t * s->z_stride + e]) : y;
        }
    }
}

static void diagonal_scan(const struct diagonal_scan *s)
{
    const ptrdiff_t imaginary = s->N * s->state_stride;
    for (int e = 0; e < s->E; e++) {
        for (int t = 0; t < s->T; t++) {
            const float u = s->u[t * s->u_stride + e];
            float y = s->D[e] * u;
            for (int n = 0; n < s->N; n++) {
                const float *a = s->a + n * s->state_stride + e, *b = s->b + n * s->state_stride + e;
                const float *c = s->c + n * s->state_stride + e;
                float *h = s->h + n * s->state_stride + e;
                const float re = h[0], im = h[imaginary];
                h[0] += a[0] * re - a[imaginary] * im + b[0] * u;
                h[imaginary] += a[0] * im + a[imaginary] * re + b[imaginary] * u;
                y += c[0] * h[0] - c[imaginary] * h[imaginary];
            }
            s->out[t * s->out_stride + e] = y;
        }
    }
}

static void sigmoid(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        y[i] = 1 / (1 + expf(-x[i]));
    }
}

static void silu(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        y[i] = silu1(x[i]);
    }
}

static void softplus(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        y[i] = softplus1(x[i]);
    }
}

static void exponential(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        y[i] = expf(x[i]);
    }
}

static void power(const float *x, float p, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        y[i] = powf(x[i], p);
    }
}

static void add(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        y[i] += x[i];
    }
}

const struct kernels kernels_scalar = {
    .name = "scalar",
    .linear = linear,
    .rms_norm = rms_norm,
    .conv1d = conv1d,
    .selective_scan = selective_scan,
    .diagonal_scan = diagonal_scan,
    .sigmoid = sigmoid,
    .silu = silu,
    .softplus = softplus,
    .exp = exponential,
    .power = power,
    .add = add,
};
