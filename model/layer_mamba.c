/* SPDX-License-Identifier: MIT */
/* One Mamba block over time (Gu & Dao, arXiv 2312.00752, figure 3 and algorithm 2), with RMSNorm before and the
 * residual around, tensors named as mamba_ssm names them:
 *
 *   x, z = in_proj(norm(input));  u = silu(conv1d(x));  dt, B, C = x_proj(u);  delta = softplus(dt_proj(dt) + bias)
 *   h <- exp(delta A) h + B-bar u;  y = <C, h> + D u;  output = input + out_proj(y silu(z))
 *
 * Spec: d_model; d_state (16), d_conv (4), expand (2), dt_rank (d_model / 16, rounded up), discretisation (euler, zoh).
 * State: the last d_conv - 1 inputs of the convolution (d_conv - 1, E), then h (N, E), with E = expand d_model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/layer.h"
#include "model/layers.h"
#include "model/refuse.h"
#include "model/weights.h"

static int open_sizes(struct mamba *self, struct spec spec, const struct layer_chain *chain, struct ssm_error *err)
{
    static const char *const discretisations[] = {[DISCRETISE_EULER] = "euler", [DISCRETISE_ZOH] = "zoh", NULL};
    int expand = 2, discretisation = DISCRETISE_EULER;
    self->D = SPEC_REQUIRED;
    self->N = 16;
    self->K = 4;
    if (spec_int(spec, "d_model", 1, 1 << 14, &self->D, err) || layer_expect_width(spec, chain, self->D, err) ||
        spec_int(spec, "d_state", 1, KERNELS_STATES_MAX, &self->N, err) ||
        spec_int(spec, "d_conv", 1, 16, &self->K, err) || spec_int(spec, "expand", 1, 8, &expand, err) ||
        spec_word(spec, "discretisation", discretisations, &discretisation, err)) {
        return -1;
    }
    self->R = (self->D + 15) / 16;
    self->E = expand * self->D;
    self->discretisation = (enum discretisation)discretisation;
    return spec_int(spec, "dt_rank", 1, 1 << 14, &self->R, err);
}

/* Gives rows x columns turned round, from (rows, columns) to (columns, rows); takes `values`. */
static float *transpose(float *values, int rows, int columns, struct ssm_error *err)
{
    size_t count = (size_t)rows * (size_t)columns;
    float *turned = values ? malloc(count * sizeof *turned) : NULL;
    if (values && !turned) {
        refuse_memory(err);
    }
    for (size_t i = 0; turned && i < count; i++) {
        turned[i] = values[i % (size_t)rows * (size_t)columns + i / (size_t)rows];
    }
    free(values);
    return turned;
}

static int load_projections(struct mamba *self, const struct safetensors *file, const char *name, struct ssm_error *err)
{
    int D = self->D, E = self->E, N = self->N, R = self->R;
    /* dt_proj's bias is added before softplus, in the scan: mamba_ssm's step does the same. */
    return weights_linear(file, name, "mixer.in_proj", D, 2 * E, true, &self->in_proj, err) ||
                   weights_linear(file, name, "mixer.x_proj", E, R + 2 * N, false, &self->x_proj, err) ||
                   weights_linear(file, name, "mixer.dt_proj", R, E, false, &self->dt_proj, err) ||
                   weights_linear(file, name, "mixer.out_proj", E, D, true, &self->out_proj, err)
               ? -1
               : 0;
}

static int load_vectors(struct mamba *self, const struct safetensors *file, const char *name, struct ssm_error *err)
{
    int64_t D = self->D, E = self->E, N = self->N, K = self->K;
    bool conv_bias = weights_has(file, name, "mixer.conv1d.bias");
    if (!(self->norm = weights_floats(file, name, "norm.weight", 1, &D, err)) ||
        !(self->conv_weight = transpose(weights_floats(file, name, "mixer.conv1d.weight", 3, (int64_t[]){E, 1, K}, err),
                                        self->E, self->K, err)) ||
        (conv_bias && !(self->conv_bias = weights_floats(file, name, "mixer.conv1d.bias", 1, &E, err))) ||
        !(self->dt_bias = weights_floats(file, name, "mixer.dt_proj.bias", 1, &E, err)) ||
        !(self->skip = weights_floats(file, name, "mixer.D", 1, &E, err)) ||
        !(self->A =
              transpose(weights_floats(file, name, "mixer.A_log", 2, (int64_t[]){E, N}, err), self->E, self->N, err))) {
        return -1;
    }
    for (int i = 0; i < self->N * self->E; i++) {
        self->A[i] = (float)-exp((double)self->A[i]);
    }
    return 0;
}

static void count_costs(struct layer *layer, const struct mamba *self)
{
    int D = self->D, E = self->E, N = self->N, K = self->K;
    const struct linear *all[] = {&self->in_proj, &self->x_proj, &self->dt_proj, &self->out_proj};
    long vectors = D + (long)E * (K + N + 2) + (self->conv_bias ? E : 0);
    layer->parameters = vectors;
    layer->bytes = (size_t)vectors * sizeof(float);
    layer->macs = (double)E * (K + 3 * N);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        layer->parameters += weights_linear_parameters(all[i]);
        layer->bytes += weights_linear_bytes(all[i]);
        layer->macs += (double)all[i]->in * all[i]->out;
    }
}

static int mamba_open(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    struct mamba *self = layer->self = calloc(1, sizeof *self);
    if (!self) {
        return refuse_memory(err);
    }
    if (weights_has(chain->weights, layer->name, "norm.bias")) {
        return refuse(err, 65, "%s: its norm has a bias, so it is a LayerNorm; only RMSNorm is built", spec.where);
    }
    if (open_sizes(self, spec, chain, err) || load_projections(self, chain->weights, layer->name, err) ||
        load_vectors(self, chain->weights, layer->name, err)) {
        return -1;
    }
    size_t E = (size_t)self->E, N = (size_t)self->N;
    layer->in = layer->out = self->D;
    layer->memory = self->K - 1;
    layer->state = (size_t)(self->K - 1) * E + N * E;
    layer->carry = N * E + E;
    layer->scratch_row = (size_t)self->D + 4 * E + (size_t)self->R + 2 * N;
    count_costs(layer, self);
    return 0;
}

/* A block's intermediate rows, carved from its scratch. */
struct rows {
    float *normed; /* (rows, D)          */
    float *xz;     /* (rows, 2 E)        */
    float *u;      /* (rows, E)          */
    float *dt;     /* (rows, E)          */
    float *dt_B_C; /* (rows, R + 2 N)    */
};

static struct rows carve(const struct mamba *self, const struct layer_block *block)
{
    size_t rows = (size_t)block->rows, E = (size_t)self->E;
    struct rows r = {.xz = block->scratch};
    r.u = r.xz + rows * 2 * E;
    r.dt = r.u + rows * E;
    r.normed = r.dt + rows * E;
    r.dt_B_C = r.normed + rows * (size_t)self->D;
    return r;
}

/* Join the segments of one recording (Mamba paper, section 3.3.2; the operator is selective_scan_combine's). Everybody
 * but the first scans its segment from zero to learn its end state and sum of dt; the first, who knows its start, does
 * the real thing; then each puts its start together from those before it. Nobody needs the last one's end. */
static void scan_segments(const struct mamba *self, const struct layer_block *block, struct selective_scan *scan)
{
    const struct layer_segments *segments = block->segments;
    size_t states = (size_t)self->N * (size_t)self->E;
    int member = segments->member;
    float *mine = segments->carries + (size_t)member * segments->carry_stride;
    if (member == 0) {
        block->kernels->selective_scan(scan);
        memcpy(mine, scan->h, states * sizeof *mine);
    } else if (member < segments->members - 1) {
        struct selective_scan local = *scan;
        local.h = memset(mine, 0, states * sizeof *mine);
        local.sum_dt = mine + states;
        local.out = NULL;
        block->kernels->selective_scan(&local);
    }
    team_barrier(segments->team);
    if (member > 0) {
        memcpy(scan->h, segments->carries, states * sizeof *scan->h);
        for (int i = 1; i < member; i++) {
            const float *local = segments->carries + (size_t)i * segments->carry_stride;
            selective_scan_combine(self->A, local + states, local, scan->h, self->E, self->N);
        }
        block->kernels->selective_scan(scan);
    }
}

static void scan_item(const struct mamba *self, const struct layer_block *block, const struct rows *r, float *h,
                      int first, int count)
{
    size_t E = (size_t)self->E, mixed = (size_t)(self->R + 2 * self->N), row = (size_t)first;
    struct selective_scan scan = {
        .T = count,
        .E = self->E,
        .N = self->N,
        .discretisation = self->discretisation,
        .A = self->A,
        .D = self->skip,
        .dt_bias = self->dt_bias,
        .u = r->u + row * E,
        .u_stride = self->E,
        .dt = r->dt + row * E,
        .dt_stride = self->E,
        .z = r->xz + row * 2 * E + E,
        .z_stride = 2 * self->E,
        .B = r->dt_B_C + row * mixed + self->R,
        .B_stride = (ptrdiff_t)mixed,
        .C = r->dt_B_C + row * mixed + self->R + self->N,
        .C_stride = (ptrdiff_t)mixed,
        .elapsed = block->elapsed + row,
        .h = h,
        .out = r->u + row * E,
        .out_stride = self->E,
    };
    if (block->segments) {
        scan_segments(self, block, &scan);
    } else {
        block->kernels->selective_scan(&scan);
    }
}

static void mamba_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    const struct mamba *self = layer->self;
    const struct kernels *kernels = block->kernels;
    const struct rows r = carve(self, block);
    int D = self->D, E = self->E, mixed = self->R + 2 * self->N, rows = block->rows;
    size_t history = (size_t)(self->K - 1) * (size_t)E;

    kernels->rms_norm(x, self->norm, 1e-5f, r.normed, rows, D);
    kernels->linear(&self->in_proj, r.normed, D, r.xz, 2 * E, rows);
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        size_t row = (size_t)item->first * (size_t)E;
        kernels->conv1d(self->conv_weight, self->conv_bias, self->K, item->state + layer->state_at, r.xz + 2 * row,
                        2 * E, r.u + row, E, item->count, E, true);
    }
    kernels->linear(&self->x_proj, r.u, E, r.dt_B_C, mixed, rows);
    kernels->linear(&self->dt_proj, r.dt_B_C, mixed, r.dt, E, rows);
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        scan_item(self, block, &r, item->state + layer->state_at + history, item->first, item->count);
    }
    kernels->linear(&self->out_proj, r.u, E, y, D, rows);
    kernels->add(x, y, (size_t)rows * (size_t)D);
}

static void mamba_close(struct layer *layer)
{
    struct mamba *self = layer->self;
    if (self) {
        linear_finish(&self->in_proj);
        linear_finish(&self->x_proj);
        linear_finish(&self->dt_proj);
        linear_finish(&self->out_proj);
        float *owned[] = {self->norm, self->conv_weight, self->conv_bias, self->A, self->skip, self->dt_bias};
        for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) {
            free(owned[i]);
        }
        free(self);
    }
}

const struct layer_ops layer_mamba = {
    .type = "mamba", .named = true, .open = mamba_open, .run = mamba_run, .close = mamba_close};
