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
    layer->state = (size_t)(self->K - 1) * E + N * E;
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

static float *history_of(const struct layer *layer, const struct layer_block *block, int item)
{
    return block->items[item].state + layer->state_at;
}

static float *h_of(const struct layer *layer, const struct layer_block *block, int item)
{
    const struct mamba *self = layer->self;
    return history_of(layer, block, item) + (size_t)(self->K - 1) * (size_t)self->E;
}

/* The scan of rows first .. first + count of a block, of the channels from..to only, on the states h. */
static void scan_rows(const struct mamba *self, const struct layer_block *block, int first, int count, int from, int to,
                      float *h)
{
    const struct rows r = carve(self, block);
    size_t E = (size_t)self->E, mixed = (size_t)(self->R + 2 * self->N), row = (size_t)first,
           at = row * E + (size_t)from;
    struct selective_scan scan = {
        .T = count,
        .E = to - from,
        .N = self->N,
        .discretisation = self->discretisation,
        .A = self->A + from,
        .D = self->skip + from,
        .dt_bias = self->dt_bias + from,
        .u = r.u + at,
        .u_stride = self->E,
        .dt = r.dt + at,
        .dt_stride = self->E,
        .z = r.xz + 2 * row * E + E + from,
        .z_stride = 2 * self->E,
        .B = r.dt_B_C + row * mixed + self->R,
        .B_stride = (ptrdiff_t)mixed,
        .C = r.dt_B_C + row * mixed + self->R + self->N,
        .C_stride = (ptrdiff_t)mixed,
        .elapsed = block->elapsed + row,
        .state_stride = self->E,
        .h = h + from,
        .out = r.u + at,
        .out_stride = self->E,
    };
    block->kernels->selective_scan(&scan);
}

/* One recording in several hands: each scans some of the channels, but all of the time, so nobody does anything twice.
 * The states start in the first member's item and end in the last one's. */
static void scan_shared(const struct layer *layer, const struct layer_segments *segments)
{
    const struct mamba *self = layer->self;
    int from, to, members = segments->members;
    layer_share_channels(segments, self->E, &from, &to);
    const float *start = h_of(layer, segments->blocks[0], 0);
    float *h = h_of(layer, segments->blocks[members - 1], 0);
    for (int n = 0; n < self->N && from < to; n++) {
        size_t at = (size_t)n * (size_t)self->E + (size_t)from;
        memcpy(h + at, start + at, (size_t)(to - from) * sizeof *h);
    }
    for (int i = 0; i < members && from < to; i++) {
        scan_rows(self, segments->blocks[i], 0, segments->blocks[i]->rows, from, to, h);
    }
}

/* A segment's convolution starts from the last inputs of the segment before. */
static void take_history(const struct layer *layer, const struct layer_block *block)
{
    const struct mamba *self = layer->self;
    const struct layer_block *before = block->segments->blocks[block->segments->member - 1];
    size_t E = (size_t)self->E, past = (size_t)self->K - 1, first = (size_t)before->rows - past;
    const float *xz = carve(self, before).xz + first * 2 * E;
    float *history = history_of(layer, block, 0);
    for (size_t k = 0; k < past; k++) {
        memcpy(history + k * E, xz + k * 2 * E, E * sizeof *history);
    }
}

static void mix_time(const struct layer *layer, const struct layer_block *block)
{
    const struct mamba *self = layer->self;
    const struct rows r = carve(self, block);
    for (int i = 0; i < block->n_items; i++) {
        const struct layer_item *item = &block->items[i];
        size_t row = (size_t)item->first * (size_t)self->E;
        block->kernels->conv1d(self->conv_weight, self->conv_bias, self->K, history_of(layer, block, i), r.xz + 2 * row,
                               2 * self->E, r.u + row, self->E, item->count, self->E, true);
    }
}

static void scan(const struct layer *layer, const struct layer_block *block)
{
    if (block->segments) {
        team_barrier(block->segments->team); /* all rows are there */
        scan_shared(layer, block->segments);
        team_barrier(block->segments->team); /* all channels are */
        return;
    }
    const struct mamba *self = layer->self;
    for (int i = 0; i < block->n_items; i++) {
        scan_rows(self, block, block->items[i].first, block->items[i].count, 0, self->E, h_of(layer, block, i));
    }
}

static void mamba_run(const struct layer *layer, const struct layer_block *block, const float *x, float *y)
{
    const struct mamba *self = layer->self;
    const struct kernels *kernels = block->kernels;
    const struct rows r = carve(self, block);
    int D = self->D, E = self->E, mixed = self->R + 2 * self->N, rows = block->rows;

    kernels->rms_norm(x, self->norm, 1e-5f, r.normed, rows, D);
    kernels->linear(&self->in_proj, r.normed, D, r.xz, 2 * E, rows);
    if (block->segments) {
        team_barrier(block->segments->team);
        if (block->segments->member > 0) {
            take_history(layer, block);
        }
    }
    mix_time(layer, block);
    kernels->linear(&self->x_proj, r.u, E, r.dt_B_C, mixed, rows);
    kernels->linear(&self->dt_proj, r.dt_B_C, mixed, r.dt, E, rows);
    scan(layer, block);
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
