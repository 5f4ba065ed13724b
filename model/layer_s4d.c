/* SPDX-License-Identifier: MIT */
/* The time-invariant diagonal state space (S4D, Gu et al. 2022, arXiv 2206.11893), each channel its own system of complex
 * states, tensors named as the paper's code names them:
 *
 *   dt = exp(log_dt), A = -exp(log_A_real) + i A_imag, B = 1;  h <- A-bar h + B-bar u;  y = 2 Re<C, h> + D u
 *   zoh:       A-bar = exp(dt A),                       B-bar = (A-bar - 1) / A
 *   bilinear:  A-bar = (1 + dt A / 2) / (1 - dt A / 2),  B-bar = dt / (1 - dt A / 2)
 *
 * Elapsed time multiplies dt. Around it, each only if asked for: u = norm(x) (RMSNorm), an activation, a product that mixes
 * the channels (linear, or GLU: the first half times the sigmoid of the second), and the residual:
 *   out = [x +] mix(activation(y))
 *
 * Spec: d_model; d_state (64; real ones, so half as many complex pairs), discretisation (zoh, bilinear), norm (false),
 * activation (none, silu, gelu), mix (none, linear, glu), residual (false). Tensors: <name>.D (d_model),
 * <name>.kernel.log_dt (d_model), .kernel.log_A_real and .kernel.A_imag (d_model, pairs), .kernel.C (d_model, pairs, re|im);
 * <name>.norm.weight (d_model); <name>.output_linear.weight (d_model or, for glu, 2 d_model, d_model), .bias.
 * State: the real parts of h (pairs, d_model), then the imaginary ones.
 *
 * In bulk it is the recurrence too: the states of a vector of channels stay in registers over 32 hops, which is faster here
 * than the convolution with the kernel 2 Re<C, A-bar^t B-bar>: by FFT that alone takes longer, before the state has been
 * carried from chunk to chunk (README, Decisions). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/layer.h"
#include "model/layers.h"
#include "model/refuse.h"
#include "model/weights.h"

static int open_choices(struct s4d *self, struct spec spec, struct ssm_error *err)
{
    static const char *const discretisations[] = {[S4D_ZOH] = "zoh", [S4D_BILINEAR] = "bilinear", NULL};
    static const char *const activations[] = {[S4D_PLAIN] = "none", [S4D_SILU] = "silu", [S4D_GELU] = "gelu", NULL};
    static const char *const mixes[] = {[S4D_UNMIXED] = "none", [S4D_LINEAR] = "linear", [S4D_GLU] = "glu", NULL};
    int discretisation = S4D_ZOH, activation = S4D_PLAIN, mix = S4D_UNMIXED;
    if (spec_word(spec, "discretisation", discretisations, &discretisation, err) ||
        spec_word(spec, "activation", activations, &activation, err) || spec_word(spec, "mix", mixes, &mix, err) ||
        spec_bool(spec, "residual", &self->residual, err)) {
        return -1;
    }
    self->discretisation = (enum s4d_discretisation)discretisation;
    self->activation = (enum s4d_activation)activation;
    self->mix = (enum s4d_mix)mix;
    return 0;
}

static int open_sizes(struct s4d *self, struct spec spec, const struct layer_chain *chain, struct ssm_error *err)
{
    int states = 64;
    self->E = SPEC_REQUIRED;
    if (spec_int(spec, "d_model", 1, 1 << 14, &self->E, err) || layer_expect_width(spec, chain, self->E, err) ||
        spec_int(spec, "d_state", 2, 2 * S4D_PAIRS_MAX, &states, err)) {
        return -1;
    }
    self->N = states / 2;
    return states % 2 ? refuse(err, 65, "%s: \"d_state\" must be even: states come in conjugate pairs", spec.where) : 0;
}

/* A-bar - 1 and B-bar of one pair over a step of dt. */
static void discretise(enum s4d_discretisation how, double dt, double re, double im, double *a, double *b)
{
    double x = dt * re, y = dt * im, size = re * re + im * im;
    if (how == S4D_ZOH) { /* exp(x + i y) - 1, with its digits where both are small */
        double half = sin(y / 2);
        a[0] = expm1(x) * cos(y) - 2 * half * half;
        a[1] = exp(x) * sin(y);
        b[0] = (a[0] * re + a[1] * im) / size;
        b[1] = (a[1] * re - a[0] * im) / size;
    } else { /* A-bar - 1 = dt A / (1 - dt A / 2) */
        double down = (1 - x / 2) * (1 - x / 2) + y * y / 4;
        b[0] = dt * (1 - x / 2) / down;
        b[1] = dt * y / 2 / down;
        a[0] = b[0] * re - b[1] * im;
        a[1] = b[0] * im + b[1] * re;
    }
}

/* The channels from .. to of a and b, (2 N, E), over a step of `elapsed`. */
static void discretise_channels(const struct s4d *self, double elapsed, int from, int to, float *a, float *b)
{
    size_t E = (size_t)self->E, plane = (size_t)self->N * E;
    for (size_t n = 0; n < plane; n += E) {
        for (size_t i = n + (size_t)from; i < n + (size_t)to; i++) {
            double a_bar[2], b_bar[2], dt = elapsed * (double)self->dt[i - n];
            discretise(self->discretisation, dt, (double)self->A[i], (double)self->A[plane + i], a_bar, b_bar);
            a[i] = (float)a_bar[0];
            a[plane + i] = (float)a_bar[1];
            b[i] = (float)b_bar[0];
            b[plane + i] = (float)b_bar[1];
        }
    }
}

/* (E, N) of the file's -> (N, E) */
static void turn(const struct s4d *self, const float *from, int step, float *to)
{
    for (int i = 0; i < self->N * self->E; i++) {
        to[i] = from[(i % self->E * self->N + i / self->E) * step];
    }
}

static int load_kernel(struct s4d *self, const struct safetensors *file, const char *name, struct ssm_error *err)
{
    int64_t E = self->E, N = self->N;
    size_t plane = (size_t)self->N * (size_t)self->E;
    float *real = weights_floats(file, name, "kernel.log_A_real", 2, (int64_t[]){E, N}, err);
    float *imag = real ? weights_floats(file, name, "kernel.A_imag", 2, (int64_t[]){E, N}, err) : NULL;
    float *C = imag ? weights_floats(file, name, "kernel.C", 3, (int64_t[]){E, N, 2}, err) : NULL;
    if (C) {
        turn(self, real, 1, self->A);
        turn(self, imag, 1, self->A + plane);
        turn(self, C, 2, self->c);
        turn(self, C + 1, 2, self->c + plane);
    }
    for (size_t i = 0; C && i < plane; i++) {
        self->A[i] = (float)-exp((double)self->A[i]);
        self->c[i] *= 2;
        self->c[plane + i] *= 2;
    }
    free(real);
    free(imag);
    free(C);
    return C ? 0 : -1;
}

static int load(struct s4d *self, struct spec spec, const struct safetensors *file, const char *name,
                struct ssm_error *err)
{
    int64_t E = self->E;
    size_t values = 2 * (size_t)self->N * (size_t)self->E;
    bool norm = false;
    float **tables[] = {&self->A, &self->a, &self->b, &self->c};
    for (int i = 0; i < 4; i++) {
        if (!(*tables[i] = malloc(values * sizeof(float)))) {
            return refuse_memory(err);
        }
    }
    if (spec_bool(spec, "norm", &norm, err) || load_kernel(self, file, name, err) ||
        !(self->dt = weights_floats(file, name, "kernel.log_dt", 1, &E, err)) ||
        !(self->skip = weights_floats(file, name, "D", 1, &E, err)) ||
        (norm && !(self->norm = weights_floats(file, name, "norm.weight", 1, &E, err)))) {
        return -1;
    }
    for (int e = 0; e < self->E; e++) {
        self->dt[e] = (float)exp((double)self->dt[e]);
    }
    discretise_channels(self, 1, 0, self->E, self->a, self->b);
    int out = self->mix == S4D_GLU ? 2 * self->E : self->E;
    return self->mix ? weights_linear(file, name, "output_linear", self->E, out, true, &self->output, err) : 0;
}

static void count_costs(struct layer *layer, const struct s4d *self)
{
    long E = self->E, N = self->N, vectors = E * (4 * N + 2) + (self->norm ? E : 0);
    layer->parameters = vectors + (self->mix ? weights_linear_parameters(&self->output) : 0);
    layer->macs = (double)(8 * N * E) + (self->mix ? (double)self->output.in * self->output.out : 0);
    layer->bytes = (size_t)(E * (8 * N + 3)) * sizeof(float) + (self->mix ? weights_linear_bytes(&self->output) : 0);
}

static int s4d_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    struct s4d *self = layer->self = calloc(1, sizeof *self);
    if (!self) {
        return refuse_memory(err);
    }
    if (open_choices(self, spec, err) || open_sizes(self, spec, chain, err) ||
        load(self, spec, chain->weights, layer->name, err)) {
        return -1;
    }
    layer->in = layer->out = self->E;
    layer->state = 2 * (size_t)self->N * (size_t)self->E;
    layer->scratch_once = 2 * layer->state;
    layer->scratch_row = self->mix ? (size_t)self->output.out : 0;
    count_costs(layer, self);
    return 0;
}

/* Rows first .. first + T, over which a and b hold, of some channels. */
static void scan_rows(const struct s4d *self, const struct layer_channels *c, int first, int T, const float *a,
                      const float *b)
{
    size_t at = (size_t)first * (size_t)c->width + (size_t)c->from;
    struct diagonal_scan scan = {.T = T, .E = c->to - c->from, .N = self->N, .a = a + c->from, .b = b + c->from,
                                 .c = self->c + c->from, .D = self->skip + c->from, .h = c->state + c->from,
                                 .state_stride = c->width, .u = c->x + at, .u_stride = c->width, .out = c->y + at,
                                 .out_stride = c->width};
    c->kernels->diagonal_scan(&scan);
}

/* As many rows at once as the same time passes before each. */
static void scan_channels(const struct layer *layer, const struct layer_channels *c)
{
    const struct s4d *self = layer->self;
    float *a = c->scratch, *b = a + layer->state;
    for (int first = 0, end; first < c->T; first = end) {
        float elapsed = c->elapsed[first];
        for (end = first + 1; end < c->T && c->elapsed[end] == elapsed;) {
            end++;
        }
        if (elapsed == 1) {
            scan_rows(self, c, first, end - first, self->a, self->b);
        } else {
            discretise_channels(self, (double)elapsed, c->from, c->to, a, b);
            scan_rows(self, c, first, end - first, a, b);
        }
    }
}

/* y <- activation(y) */
static void activate(const struct s4d *self, const struct kernels *kernels, float *y, size_t n)
{
    if (self->activation == S4D_SILU) {
        kernels->silu(y, y, n);
    } else if (self->activation == S4D_GELU) {
        for (size_t i = 0; i < n; i++) {
            y[i] *= 0.5f * (1 + erff(y[i] * 0.70710678f));
        }
    }
}

/* y <- the product that mixes its channels; mixed (rows, the product's outputs) is room for it. */
static void mix_channels(const struct s4d *self, const struct kernels *kernels, float *y, float *mixed, int rows)
{
    size_t E = (size_t)self->E;
    kernels->linear(&self->output, y, self->E, mixed, self->output.out, rows);
    if (self->mix == S4D_LINEAR) {
        memcpy(y, mixed, (size_t)rows * E * sizeof *y);
        return;
    }
    for (size_t row = 0; row < (size_t)rows; row++, y += E, mixed += 2 * E) {
        kernels->sigmoid(mixed + E, mixed + E, E);
        for (size_t i = 0; i < E; i++) {
            y[i] = mixed[i] * mixed[E + i];
        }
    }
}

/* All in y, whose rows stand one behind the other also where each hand has some of them. */
static void s4d_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    const struct s4d *self = layer->self;
    size_t n = (size_t)block->rows * (size_t)self->E;
    if (self->norm) {
        block->kernels->rms_norm(x, self->norm, 1e-5f, y, block->rows, self->E);
    }
    layer_run_channels(layer, block, self->norm ? y : x, y, scan_channels);
    activate(self, block->kernels, y, n);
    if (self->mix) {
        mix_channels(self, block->kernels, y, block->scratch, block->rows);
    }
    if (self->residual) {
        block->kernels->add(x, y, n);
    }
}

static void s4d_close(struct layer *layer)
{
    struct s4d *self = layer->self;
    if (self) {
        linear_finish(&self->output);
        float *owned[] = {self->A, self->a, self->b, self->c, self->dt, self->skip, self->norm};
        for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) {
            free(owned[i]);
        }
        free(self);
    }
}

const struct layer_ops layer_s4d = {
    .type = "s4d", .named = true, .open = s4d_open, .run = s4d_run, .close = s4d_close};
