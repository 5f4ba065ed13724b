/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

/* The mathematics of the engine, once readable and once fast.
 *
 * `kernels_scalar` is the definition: plain C loops that say what each operation means. The other tables are its twins
 * for x86-64 processors; kernels_best() picks one when the program starts. Every function is pure: it reads its
 * inputs, writes its outputs, allocates nothing, keeps nothing, and may be called from any thread.
 *
 * Two promises hold for every table, and tests/test_kernels.c checks both:
 *   1. a row's result does not depend on how many other rows are in the call (so a batched stream is bit-identical to
 *      the same stream alone), nor on where a sequence is cut (so chunks equal the whole);
 *   2. fp32 results are within 2e-6 (norm-wise, relative) of the same formula in double.
 *
 * Layouts: matrices are row-major; T is time in hops, E channels (d_inner), N states a channel (d_state). Strides are
 * in elements. Pointers need no alignment. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A linear layer's weights, packed once at load: panels of KERNELS_PANEL outputs, so that a vector lane is one output
 * and the sum over `in` always runs in one order. int8 panels hold KERNELS_GROUP inputs of each output side by side, as
 * the byte instructions take them, and are as deep as whole tiles are. Padding is zero. */
enum { KERNELS_PANEL = 64, KERNELS_GROUP = 4 };

struct linear {
    int in, out;         /* sizes as in y = W x + b, W (out, in)                                          */
    float *f32;          /* panels of (in, KERNELS_PANEL), or NULL when the weights are int8              */
    int8_t *i8;          /* panels of (linear_panel_groups(in), KERNELS_PANEL, KERNELS_GROUP), or NULL    */
    size_t i8_stride;    /* bytes from one of them to the next: linear.c says why it may be more          */
    float *scale, *bias; /* (out padded to a panel); scale NULL for fp32, bias NULL for none              */
    int32_t *sum;        /* (out padded to a panel) sum of i8 over `in`; NULL for fp32                    */
};

/* How many groups of inputs an int8 panel holds: those of `in`, then zeros up to a tile's 64 inputs. */
static inline int linear_panel_groups(int in)
{
    return (in + 63) / 64 * (64 / KERNELS_GROUP);
}

/* Pack (out, in) weights; bias (out,) may be NULL; with int8 the weight is scale[o] * weight. Gives 0, or -1 when
 * memory runs out (nothing is held then). linear_finish frees, and may be called on a zeroed struct. */
int linear_init_f32(struct linear *linear, int in, int out, const float *weight, const float *bias);
int linear_init_i8(struct linear *linear, int in, int out, const int8_t *weight, const float *scale, const float *bias);
void linear_finish(struct linear *linear);

/* The weight of input k in output o as it was given to linear_init: an int8 one without its scale. */
static inline float linear_weight(const struct linear *linear, int o, int k)
{
    const int panel = o / KERNELS_PANEL, lane = o % KERNELS_PANEL;
    if (linear->f32) {
        return linear->f32[((size_t)panel * (size_t)linear->in + (size_t)k) * KERNELS_PANEL + (size_t)lane];
    }
    const int8_t *group =
        linear->i8 + (size_t)panel * linear->i8_stride + k / KERNELS_GROUP * KERNELS_GROUP * KERNELS_PANEL;
    return group[lane * KERNELS_GROUP + k % KERNELS_GROUP];
}

/* How B is discretised; A always is exp(dt A). */
enum discretisation {
    DISCRETISE_EULER, /* B-bar = dt B: what mamba_ssm trains with                                         */
    DISCRETISE_ZOH,   /* B-bar = (dt A)^-1 (exp(dt A) - 1) dt B: exact for an input held over the step    */
};

/* One stream's selective scan over T steps (Mamba paper, section 3.2):
 *   delta = elapsed * softplus(dt + dt_bias);  h <- exp(delta A) h + B-bar u;  y = <C, h> + D u;  out = y * silu(z).
 * The state is held state-major, (N, E), so that a vector lane is one channel. N is at most KERNELS_STATES_MAX. */
enum { KERNELS_STATES_MAX = 64 };

struct selective_scan {
    int T, E, N;
    enum discretisation discretisation;
    const float *A;          /* (N, E)  -exp(A_log), transposed                                              */
    const float *D;          /* (E)     skip weights                                                         */
    const float *dt_bias;    /* (E)     added before softplus                                                */
    const float *u, *dt, *z; /* (T, E) with the strides below; z NULL: no gate                            */
    const float *B, *C;      /* (T, N)  with the strides below                                               */
    const float *elapsed;    /* (T)     hops of time since the previous step, 1 = no gap; NULL: all ones     */
    ptrdiff_t u_stride, dt_stride, z_stride, B_stride, C_stride, out_stride;
    ptrdiff_t state_stride; /* from a state's row to the next, of h and A: E, or more for some of the channels     */
    float *h;               /* (N, E)  in: start state, out: end state                                      */
    float *out;             /* (T, E)  may be u itself                                                      */
};

/* One stream's time-invariant diagonal scan over T steps (S4D, arXiv 2206.11893), with N complex states a channel:
 *   h <- h + a h + b u;  y = Re<c, h> + D u
 * a is A-bar - 1, so that a slow state's decay keeps its digits. Complex numbers are held as two planes, (2 N, E): the real
 * parts, then the imaginary ones. */
struct diagonal_scan {
    int T, E, N;
    const float *a, *b, *c; /* (2 N, E)                                                                     */
    const float *D;         /* (E)                                                                          */
    const float *u;         /* (T, E) with the stride below                                                 */
    ptrdiff_t u_stride, out_stride;
    ptrdiff_t state_stride; /* from a row to the next, of h, a, b and c: E, or more for some of the channels */
    float *h;               /* (2 N, E)  in: start state, out: end state                                    */
    float *out;             /* (T, E)  may be u itself                                                      */
};

struct kernels {
    const char *name; /* "scalar", "avx2", "avx512", "vnni", "amx" */

    /* y = W x + b for `rows` rows. x (rows, in), y (rows, out). */
    void (*linear)(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride, int rows);

    /* y = x / sqrt(mean(x^2) + eps) * weight, row by row. y may be x. (RMSNorm, arXiv 1910.07467) */
    void (*rms_norm)(const float *x, const float *weight, float eps, float *y, int rows, int width);

    /* Causal depthwise convolution over time, then SiLU if asked:
     *   y[t][e] = bias[e] + sum_k weight[k][e] x[t - K + 1 + k][e]
     * weight is (K, E), transposed from mamba_ssm's (E, 1, K). history (K - 1, E) holds the inputs before x, oldest
     * first, and is moved on by T. x (T, E) and y (T, E) must not overlap. bias may be NULL. */
    void (*conv1d)(const float *weight, const float *bias, int K, float *history, const float *x, ptrdiff_t x_stride,
                   float *y, ptrdiff_t y_stride, int T, int E, bool silu);

    void (*selective_scan)(const struct selective_scan *scan);
    void (*diagonal_scan)(const struct diagonal_scan *scan);

    /* Element by element; y may be x. sigmoid is 1 / (1 + exp(-x)); softplus is x itself above 20. */
    void (*sigmoid)(const float *x, float *y, size_t n);
    void (*silu)(const float *x, float *y, size_t n);
    void (*softplus)(const float *x, float *y, size_t n);
    void (*exp)(const float *x, float *y, size_t n);
    /* y = x^p for finite x from 2^-126 up (a NaN stays one) and |p| at most 1. */
    void (*power)(const float *x, float p, float *y, size_t n);
    /* y += x */
    void (*add)(const float *x, float *y, size_t n);
};

extern const struct kernels kernels_scalar, kernels_avx2, kernels_avx512, kernels_vnni, kernels_amx;

/* The fastest table this processor runs, or the one SSM_KERNELS=scalar|avx2|... names if it can. Never NULL. */
const struct kernels *kernels_best(void);
/* The i-th table this processor runs (0 = scalar), or NULL past the last: tests and benchmarks walk them all. */
const struct kernels *kernels_at(int i);

#endif
