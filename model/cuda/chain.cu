/* SPDX-License-Identifier: MIT */
#include "model/cuda/chain.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/cuda/layers.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mamba_cluster.h"
#include "kernels/cuda/mamba_stack.h"
#include "kernels/cuda/mamba_step.h"
#include "kernels/cuda/mamba_team.h"
#include "kernels/cuda/scan_rows.h"
#include "kernels/cuda/selective_scan.h"
#include "model/layers.h"
#include "model/refuse.h"

struct node;

/* A mamba layer: for steps, and what a sequence needs besides. */
struct mamba_node {
    struct mamba_cuda step;
    struct conv_cuda conv;
    const float *A;  /* (E, N), as selective_scan_cuda takes it */
    size_t state_at; /* of h, in bytes */
};

/* One launch or a few that belong together. Which fields are used is the type's business. */
struct node {
    const struct node_ops *ops;
    int in, out;
    size_t state_at; /* bytes in the slot */
    const float *norm;
    struct linear_cuda linear;
    struct stft_cuda stft;
    float compress;
    struct spectral_cuda spectral;
    struct conv_cuda conv;
    const float *tables[2]; /* of scale: mean, factor; of an embedding: rows  */
    int vocabulary;
    struct pool_cuda pool;
    struct diagonal_cuda diagonal;
    int mix; /* of s4d: enum s4d_mix                                  */
    bool residual;
    std::vector<mamba_node> mamba;        /* neighbouring layers                                     */
    std::vector<struct mamba_cuda> steps; /* their steps, side by side                               */
    int few, some;                        /* streams that a cluster's, a team's kernel takes through all of them at once */
};

struct chain {
    const struct model *model;
    int precision;
    bool state_bf16;
    std::vector<node> nodes;
    std::vector<state_part_cuda> parts;
    size_t state_bytes; /* of a slot                                    */
    uint64_t period;    /* a common multiple of the lengths of all rings */
};

namespace
{

/* A chain being laid out. */
struct opening {
    struct chain *chain;
    struct arena *arena;
    struct ssm_error *err;
};

/* One call on its way through the chain. */
struct passage {
    const struct chain *chain;
    const struct chain_bench *bench;
    struct rows_cuda rows;
    struct finish_cuda finish;
    cudaStream_t stream;
    bool last; /* this node's output is the chain's */
};

} /* namespace */

/* What a type of layer is here. */
struct node_ops {
    const char *type;
    /* Lay out layers[0], and those behind it, of `n` in all, that go along in the same launch. Gives how many that
     * are, or 0 and an error. */
    int (*open)(struct opening *opening, struct node *node, const struct layer *layers, int n);
    /* x (rows, in) -> y (rows, out); gives what the kernels give. In place: y is x. */
    int (*run)(const struct node *node, const struct passage *passage, float *x, float *y);
    bool in_place;
    bool finishes; /* moves the phases on when it is the last; writes out directly */
};

namespace
{

/* ---- laying out --------------------------------------------------------------------------------------------- */

bool is(const struct layer *layer, const char *type)
{
    return !strcmp(layer->ops->type, type);
}

/* Room in the slot for a ring (rows, width) or, as one row, anything; on a 128-byte boundary, a line of the caches.
 * Gives where, in bytes. */
size_t take_state(struct opening *opening, size_t portable, int rows, int width, bool bf16)
{
    struct chain *chain = opening->chain;
    const size_t at = chain->state_bytes, floats = size_t(rows) * size_t(width);
    if (floats) {
        chain->parts.push_back({at, portable, rows, width, bf16});
        chain->period = std::lcm(chain->period, uint64_t(rows));
        chain->state_bytes += (floats * (bf16 ? 2 : 4) + 127) & ~size_t(127);
    }
    return at;
}

struct linear_cuda put_linear(struct opening *opening, const struct linear *from, const float *bias)
{
    const size_t in = size_t(from->in), out = size_t(from->out);
    const int pieces = from->i8 ? 1 : opening->chain->precision;
    const size_t bytes = linear_cuda_bytes(from->in, from->out, pieces);
    std::vector<char> packed;
    if (opening->arena->memory) {
        std::vector<float> weight(in * out);
        float *to = weight.data();
        for (int o = 0; o < from->out; o++) {
            for (int k = 0; k < from->in; k++) {
                *to++ = linear_weight(from, o, k);
            }
        }
        packed.resize(bytes);
        linear_cuda_pack(packed.data(), from->in, from->out, pieces, weight.data(), from->scale, bias);
    }
    return linear_cuda_at(arena_put(opening->arena, packed.data(), bytes), from->in, from->out, pieces);
}

int stft_open(struct opening *opening, struct node *node, const struct layer *layers, int)
{
    const int hop = layers->in, past = int(layers->state) / hop, window = hop + int(layers->state);
    if (window > STFT_CUDA_WINDOW_MAX) {
        refuse(opening->err, 69, "the GPU takes windows of up to %d samples, the model's is %d: use device cpu",
               STFT_CUDA_WINDOW_MAX, window);
        return 0;
    }
    std::vector<float> tables(stft_cuda_table_floats(window));
    stft_cuda_fill(window, hop, tables.data());
    node->stft = {window, hop, arena_put(opening->arena, tables.data(), tables.size())};
    node->compress = static_cast<const struct analysis *>(layers->self)->compress;
    node->state_at = take_state(opening, layers->state_at, past, hop, false);
    return 1;
}

int stft_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return stft_cuda(&p->rows, &node->stft, node->state_at, node->compress, x, p->bench->spectrum, y, p->stream);
}

/* An istft, on its own or behind a filter or mask. */
int istft_open(struct opening *opening, struct node *node, const struct layer *layers, int)
{
    const int hop = layers->out, past = int(layers->state) / hop, window = hop + int(layers->state);
    std::vector<float> tables(stft_cuda_table_floats(window));
    stft_cuda_fill(window, hop, tables.data());
    node->stft = {window, hop, arena_put(opening->arena, tables.data(), tables.size())};
    node->state_at = take_state(opening, layers->state_at, past, hop, false);
    if (!node->spectral.bins) {
        node->spectral = {SPECTRAL_PLAIN, window / 2 + 1, 0, 0};
    }
    return 1;
}

int istft_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return istft_cuda(&p->rows, &node->stft, node->state_at, &node->spectral, x, node->in, p->bench->spectrum, y,
                      p->last ? &p->finish : nullptr, p->stream);
}

extern const struct node_ops istft_node;

/* A filter or mask; an istft behind it goes along. */
int spectral_open(struct opening *opening, struct node *node, const struct layer *layers, int n)
{
    const int bins = layers->out / 2;
    if (is(layers, "filter")) {
        node->spectral = {SPECTRAL_FILTER, bins, layers->memory + 1, 0};
        node->spectral.state_at = take_state(opening, layers->state_at, layers->memory, 2 * bins, false);
    } else {
        const bool sigmoid = static_cast<const struct mask *>(layers->self)->sigmoid;
        node->spectral = {sigmoid ? SPECTRAL_SIGMOID : SPECTRAL_MASK, bins, 0, 0};
    }
    if (n > 1 && is(layers + 1, "istft")) {
        node->ops = &istft_node;
        node->out = layers[1].out;
        return 1 + istft_open(opening, node, layers + 1, n - 1);
    }
    return 1;
}

int spectral_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return spectral_cuda(&p->rows, &node->spectral, x, node->in, p->bench->spectrum, y, p->stream);
}

int linear_open(struct opening *opening, struct node *node, const struct layer *layers, int)
{
    const struct linear *linear = static_cast<const struct linear *>(layers->self);
    node->linear = put_linear(opening, linear, linear->bias);
    return 1;
}

/* A product over this call's rows; norm NULL for none. */
int multiply(const struct passage *p, const struct linear_cuda *w, const float *norm, const float *x, int64_t x_stride,
             float *y, int64_t y_stride, const float *residual)
{
    struct linear_cuda_rows rows = {};
    rows.rows = p->rows.rows;
    rows.precision = p->chain->precision;
    rows.x = x;
    rows.x_stride = x_stride;
    rows.norm = norm;
    rows.y = y;
    rows.y_stride = rows.residual_stride = y_stride;
    rows.residual = residual;
    return linear_cuda(w, &rows, p->stream);
}

int linear_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return multiply(p, &node->linear, node->norm, x, node->in, y, node->out, nullptr);
}

extern const struct node_ops linear_node;

/* A norm; a linear layer behind it goes along. */
int norm_open(struct opening *opening, struct node *node, const struct layer *layers, int n)
{
    node->norm = arena_put(opening->arena, static_cast<const float *>(layers->self), size_t(layers->in));
    if (n > 1 && is(layers + 1, "linear")) {
        node->ops = &linear_node;
        node->out = layers[1].out;
        return 1 + linear_open(opening, node, layers + 1, n - 1);
    }
    return 1;
}

int norm_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return norm_cuda(node->norm, x, node->in, y, node->out, p->rows.rows, node->in, p->stream);
}

int conv_open(struct opening *opening, struct node *node, const struct layer *layers, int)
{
    const struct conv *self = static_cast<const struct conv *>(layers->self);
    const size_t width = size_t(layers->in);
    node->conv.width = layers->in;
    node->conv.taps = self->taps;
    node->conv.silu = self->silu;
    node->conv.weight = arena_put(opening->arena, self->weight, width * size_t(self->taps));
    node->conv.bias = self->bias ? arena_put(opening->arena, self->bias, width) : nullptr;
    node->conv.state_at = take_state(opening, layers->state_at, self->taps - 1, layers->in, false);
    return 1;
}

int conv_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return conv_cuda(&p->rows, &node->conv, x, node->in, y, node->out, p->stream);
}

int sigmoid_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return sigmoid_cuda(x, y, p->rows.rows, node->in, p->stream);
}

int softmax_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return softmax_cuda(x, y, p->rows.rows, node->in, p->stream);
}

int alone_open(struct opening *, struct node *, const struct layer *, int)
{
    return 1;
}

int scale_open(struct opening *opening, struct node *node, const struct layer *layers, int)
{
    const struct scale *self = static_cast<const struct scale *>(layers->self);
    node->tables[0] = arena_put(opening->arena, self->mean, size_t(layers->in));
    node->tables[1] = arena_put(opening->arena, self->factor, size_t(layers->in));
    return 1;
}

int scale_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return scale_cuda(node->tables[0], node->tables[1], x, y, p->rows.rows, node->in, p->stream);
}

int embedding_open(struct opening *opening, struct node *node, const struct layer *layers, int)
{
    const struct embedding *self = static_cast<const struct embedding *>(layers->self);
    node->vocabulary = self->vocabulary;
    node->tables[0] = arena_put(opening->arena, self->weight, size_t(self->vocabulary) * size_t(layers->out));
    return 1;
}

int embedding_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return embedding_cuda(node->tables[0], node->vocabulary, x, y, p->rows.rows, node->out, p->stream);
}

int pool_open(struct opening *opening, struct node *node, const struct layer *layers, int)
{
    const struct pool *self = static_cast<const struct pool *>(layers->self);
    node->pool = {layers->in, self->kind == POOL_EMA, self->hops,
                  take_state(opening, layers->state_at, 1, int(layers->state), false)};
    return 1;
}

int pool_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    return pool_cuda(&p->rows, &node->pool, p->bench->elapsed, x, y, p->stream);
}

/* ---- s4d ---------------------------------------------------------------------------------------------------- */

int s4d_open(struct opening *opening, struct node *node, const struct layer *layers, int)
{
    static const int activations[] = {DIAGONAL_PLAIN, DIAGONAL_SILU, DIAGONAL_GELU}; /* by enum s4d_activation */
    const struct s4d *self = static_cast<const struct s4d *>(layers->self);
    const size_t width = size_t(self->E), values = 2 * size_t(self->N) * width;
    struct diagonal_cuda *d = &node->diagonal;
    d->width = self->E, d->pairs = self->N;
    d->bilinear = self->discretisation == S4D_BILINEAR;
    d->activation = activations[self->activation];
    d->a = arena_put(opening->arena, self->a, values);
    d->b = arena_put(opening->arena, self->b, values);
    d->c = arena_put(opening->arena, self->c, values);
    d->A = arena_put(opening->arena, self->A, values);
    d->dt = arena_put(opening->arena, self->dt, width);
    d->skip = arena_put(opening->arena, self->skip, width);
    d->state_at = take_state(opening, layers->state_at, 1, int(layers->state), false);
    node->norm = self->norm ? arena_put(opening->arena, self->norm, width) : nullptr;
    node->mix = self->mix;
    node->residual = self->residual;
    if (self->mix) {
        node->linear = put_linear(opening, &self->output, self->output.bias);
    }
    return 1;
}

/* What stands between the kernels, in the bench's workspace: the scan's rows, and the product's when a GLU follows. */
struct s4d_rows {
    float *scanned, *halves;
    size_t bytes;
};

struct s4d_rows carve(const struct node *node, int rows, void *workspace)
{
    const size_t n = size_t(rows) * size_t(node->in);
    struct arena arena = {static_cast<char *>(workspace), 0, cudaSuccess};
    struct s4d_rows r;
    r.scanned = arena_take<float>(&arena, node->mix ? n : 0);
    r.halves = arena_take<float>(&arena, node->mix == S4D_GLU ? 2 * n : 0);
    r.bytes = arena.used;
    return r;
}

int s4d_mix(const struct node *node, const struct passage *p, const struct s4d_rows *r, const float *residual, float *y)
{
    const int E = node->in;
    if (node->mix == S4D_LINEAR) {
        return multiply(p, &node->linear, nullptr, r->scanned, E, y, E, residual);
    }
    const int error = multiply(p, &node->linear, nullptr, r->scanned, E, r->halves, 2 * E, nullptr);
    return error ? error : glu_cuda(r->halves, residual, y, p->rows.rows, E, p->stream);
}

int s4d_run(const struct node *node, const struct passage *p, float *x, float *y)
{
    const int E = node->in, rows = p->rows.rows;
    const float *residual = node->residual ? x : nullptr;
    const struct s4d_rows r = carve(node, rows, p->bench->workspace);
    int error = node->norm ? norm_cuda(node->norm, x, E, y, E, rows, E, p->stream) : 0;
    if (!error) {
        error = diagonal_cuda(&p->rows, &node->diagonal, p->bench->elapsed, node->norm ? y : x,
                              node->mix ? nullptr : residual, node->mix ? r.scanned : y, p->stream);
    }
    return error || !node->mix ? error : s4d_mix(node, p, &r, residual, y);
}

/* ---- mamba -------------------------------------------------------------------------------------------------- */

const float *put_turned(struct opening *opening, const float *A, size_t N, size_t E)
{
    std::vector<float> turned(N * E);
    for (size_t i = 0; i < N * E; i++) {
        turned[i] = A[i % N * E + i / N];
    }
    return arena_put(opening->arena, turned.data(), turned.size());
}

/* A layer's part of a slot is one piece to the step: the history (K - 1, E), then h (N, E). */
void place_mamba(struct opening *opening, struct mamba_node *node, const struct layer *layer, const struct mamba *self)
{
    struct chain *chain = opening->chain;
    const size_t history = size_t(self->K - 1) * size_t(self->E), states = size_t(self->N) * size_t(self->E);
    const size_t element = chain->state_bf16 ? 2 : 4, at = chain->state_bytes;
    if (history) {
        take_state(opening, layer->state_at, self->K - 1, self->E, chain->state_bf16);
    }
    chain->parts.push_back({at + history * element, layer->state_at + history, 1, int32_t(states), chain->state_bf16});
    chain->state_bytes = at + (((history + states) * element + 127) & ~size_t(127));
    node->step.state_at = int64_t(at / element);
    node->conv.state_at = at;
    node->state_at = at + history * element;
}

struct mamba_node put_mamba(struct opening *opening, const struct layer *layer)
{
    const struct mamba *self = static_cast<const struct mamba *>(layer->self);
    const size_t D = size_t(self->D), E = size_t(self->E), N = size_t(self->N), K = size_t(self->K);
    struct arena *arena = opening->arena;
    struct mamba_node node = {};
    struct mamba_cuda *step = &node.step;
    step->D = self->D, step->E = self->E, step->N = self->N, step->K = self->K, step->R = self->R;
    step->zoh = self->discretisation == DISCRETISE_ZOH;
    step->in_proj = put_linear(opening, &self->in_proj, self->in_proj.bias);
    step->x_proj = put_linear(opening, &self->x_proj, self->x_proj.bias);
    step->dt_proj = put_linear(opening, &self->dt_proj, self->dt_bias);
    step->out_proj = put_linear(opening, &self->out_proj, self->out_proj.bias);
    step->norm = arena_put(arena, self->norm, D);
    step->conv_weight = arena_put(arena, self->conv_weight, K * E);
    step->conv_bias = self->conv_bias ? arena_put(arena, self->conv_bias, E) : nullptr;
    step->A = arena_put(arena, self->A, N * E);
    step->skip = arena_put(arena, self->skip, E);
    node.A = put_turned(opening, self->A, N, E);
    node.conv.width = self->E;
    node.conv.taps = self->K;
    node.conv.silu = 1;
    node.conv.state_bf16 = opening->chain->state_bf16;
    node.conv.weight = step->conv_weight;
    node.conv.bias = step->conv_bias;
    place_mamba(opening, &node, layer, self);
    return node;
}

int mamba_open(struct opening *opening, struct node *node, const struct layer *layers, int n)
{
    int taken = 0;
    while (taken < n && is(layers + taken, "mamba")) {
        node->mamba.push_back(put_mamba(opening, layers + taken++));
    }
    for (const struct mamba_node &mamba : node->mamba) {
        node->steps.push_back(mamba.step);
    }
    if (opening->arena->memory) {
        const struct chain *chain = opening->chain;
        node->few = mamba_cluster_streams(node->steps.data(), taken, chain->precision, chain->state_bf16);
        node->some = mamba_team_streams(node->steps.data(), taken, chain->precision, chain->state_bf16);
    }
    return taken;
}

/* What a sequence's rows are between the kernels of a layer, in the bench's workspace. */
struct mamba_rows {
    float *xz;    /* (rows, 2 E)      */
    float *u;     /* (rows, E)        */
    float *mixed; /* (rows, R + 2 N)  */
    float *dt;    /* (rows, E)        */
    float *y;     /* (rows, E)        */
    float *h[2];  /* (E, N)           */
    void *scan;   /* selective_scan_cuda's workspace, the rest */
    size_t taken; /* bytes before it */
};

struct mamba_rows carve(const struct mamba_cuda *layer, int rows, void *workspace)
{
    const size_t T = size_t(rows), E = size_t(layer->E), states = E * size_t(layer->N);
    struct arena arena = {static_cast<char *>(workspace), 0, cudaSuccess};
    struct mamba_rows r;
    r.xz = arena_take<float>(&arena, T * 2 * E);
    r.u = arena_take<float>(&arena, T * E);
    r.mixed = arena_take<float>(&arena, T * size_t(layer->R + 2 * layer->N));
    r.dt = arena_take<float>(&arena, T * E);
    r.y = arena_take<float>(&arena, T * E);
    r.h[0] = arena_take<float>(&arena, states);
    r.h[1] = arena_take<float>(&arena, states);
    r.scan = arena_take<char>(&arena, 0);
    r.taken = arena.used;
    return r;
}

/* Euler: the fast scan. It has its state the other way round. */
bool scans_fast(const struct mamba_cuda *layer)
{
    return !layer->zoh;
}

struct selective_scan_cuda fast_scan(const struct mamba_node *node, const struct mamba_rows *r, int rows,
                                     const float *elapsed)
{
    const struct mamba_cuda *layer = &node->step;
    struct selective_scan_cuda scan = {};
    scan.batch = 1, scan.length = rows, scan.channels = layer->E, scan.d_state = layer->N;
    scan.u_row = scan.dt_row = scan.out_row = layer->E;
    scan.z_row = 2 * layer->E;
    scan.B_row = scan.C_row = layer->R + 2 * layer->N;
    scan.u = r->u, scan.dt = r->dt, scan.z = r->xz + layer->E;
    scan.B = r->mixed + layer->R, scan.C = r->mixed + layer->R + layer->N;
    scan.A = node->A, scan.D = layer->skip;
    scan.elapsed = elapsed, scan.h0 = r->h[0], scan.h_end = r->h[1];
    scan.out = r->y;
    scan.workspace = r->scan;
    return scan;
}

/* The workspace a sequence of up to `rows` takes: the scan divides each length in its own way, so all are asked. */
size_t sequence_bytes(const struct mamba_node *node, int rows)
{
    const struct mamba_rows r = carve(&node->step, rows, nullptr);
    size_t most = 0;
    for (int length = 1; scans_fast(&node->step) && length <= rows; length++) {
        const struct selective_scan_cuda scan = fast_scan(node, &r, length, nullptr);
        most = std::max(most, selective_scan_cuda_workspace_bytes(&scan, 0));
    }
    return r.taken + most;
}

bool same_sizes(const struct mamba_cuda *a, const struct mamba_cuda *b)
{
    return a->D == b->D && a->E == b->E && a->N == b->N && a->K == b->K && a->R == b->R && a->zoh == b->zoh;
}

int scan_fast(const struct mamba_node *node, const struct passage *p, const struct mamba_rows *r)
{
    const struct mamba_cuda *layer = &node->step;
    const struct selective_scan_cuda scan = fast_scan(node, r, p->rows.rows, p->bench->elapsed);
    const int bf16 = p->chain->state_bf16;
    int error = state_cuda_to_scan(&p->rows, node->state_at, bf16, layer->N, layer->E, r->h[0], p->stream);
    if (!error) {
        error = selective_scan_cuda_forward(&scan, p->stream);
    }
    return error ? error : state_cuda_from_scan(&p->rows, node->state_at, bf16, layer->N, layer->E, r->h[1], p->stream);
}

/* Discretisations the fast scan doesn't take. */
int scan_any(const struct mamba_node *node, const struct passage *p, const struct mamba_rows *r)
{
    const struct mamba_cuda *layer = &node->step;
    struct scan_rows_cuda scan = {};
    scan.rows = p->rows.rows, scan.E = layer->E, scan.N = layer->N, scan.zoh = layer->zoh;
    scan.state_bf16 = p->chain->state_bf16;
    scan.u = r->u, scan.dt = r->dt, scan.z = r->xz + layer->E, scan.z_row = 2 * layer->E;
    scan.B = r->mixed + layer->R, scan.C = r->mixed + layer->R + layer->N;
    scan.mixed_row = layer->R + 2 * layer->N;
    scan.A = layer->A, scan.skip = layer->skip, scan.elapsed = p->bench->elapsed;
    scan.slots = p->rows.slots, scan.states = p->rows.states;
    scan.state_stride = p->rows.state_stride, scan.state_at = node->state_at;
    scan.y = r->y;
    return scan_rows_cuda(&scan, p->stream);
}

int mamba_sequence(const struct mamba_node *node, const struct passage *p, float *x)
{
    const struct mamba_cuda *layer = &node->step;
    const struct mamba_rows r = carve(layer, p->rows.rows, p->bench->workspace);
    const int D = layer->D, E = layer->E, mixed = layer->R + 2 * layer->N;
    int error = multiply(p, &layer->in_proj, layer->norm, x, D, r.xz, 2 * E, nullptr);
    if (!error) {
        error = conv_cuda(&p->rows, &node->conv, r.xz, 2 * E, r.u, E, p->stream);
    }
    if (!error) {
        error = multiply(p, &layer->x_proj, nullptr, r.u, E, r.mixed, mixed, nullptr);
    }
    if (!error) {
        error = multiply(p, &layer->dt_proj, nullptr, r.mixed, mixed, r.dt, E, nullptr);
    }
    if (!error) {
        error = scans_fast(layer) ? scan_fast(node, p, &r) : scan_any(node, p, &r);
    }
    return error ? error : multiply(p, &layer->out_proj, nullptr, r.y, E, x, D, x);
}

struct step_cuda step_of(const struct passage *p)
{
    struct step_cuda step = {};
    step.rows = p->rows.rows;
    step.precision = p->chain->precision;
    step.state_bf16 = p->chain->state_bf16;
    step.beside = p->bench->beside;
    step.slots = p->rows.slots;
    step.phase = p->rows.phase;
    step.elapsed = p->bench->elapsed;
    step.states = p->rows.states;
    step.state_stride = int64_t(p->rows.state_stride / (p->chain->state_bf16 ? 2 : 4));
    step.workspace = p->bench->workspace;
    return step;
}

/* Few streams are the cluster's, more the teams', many at fp32 the stack's, through all layers at once; the rest go layer
 * by layer. */
int mamba_run(const struct node *node, const struct passage *p, float *x, float *)
{
    const struct step_cuda step = step_of(p);
    const int n = int(node->steps.size());
    int error = 0;
    if (!p->rows.sequence && p->rows.rows <= node->few) {
        return mamba_cluster_step(node->steps.data(), n, &step, x, 0, p->stream);
    }
    if (!p->rows.sequence && p->rows.rows <= node->some) {
        return mamba_team_step(node->steps.data(), n, &step, x, p->stream);
    }
    if (!p->rows.sequence && mamba_stack_takes(node->steps.data(), n, &step)) {
        return mamba_stack_step(node->steps.data(), n, &step, x, p->stream);
    }
    if (!p->rows.sequence) {
        return mamba_cuda_step(node->steps.data(), n, &step, x, p->stream);
    }
    for (int i = 0; i < n && !error; i++) {
        error = mamba_sequence(&node->mamba[size_t(i)], p, x);
    }
    return error;
}

/* ---- the table ---------------------------------------------------------------------------------------------- */

const struct node_ops istft_node = {"istft", istft_open, istft_run, false, true};
const struct node_ops linear_node = {"linear", linear_open, linear_run, false, false};

const struct node_ops table[] = {
    istft_node,
    linear_node,
    {"stft", stft_open, stft_run, false, false},
    {"filter", spectral_open, spectral_run, false, false},
    {"mask", spectral_open, spectral_run, false, false},
    {"norm", norm_open, norm_run, false, false},
    {"conv", conv_open, conv_run, false, false},
    {"mamba", mamba_open, mamba_run, true, false},
    {"sigmoid", alone_open, sigmoid_run, false, false},
    {"softmax", alone_open, softmax_run, false, false},
    {"scale", scale_open, scale_run, false, false},
    {"embedding", embedding_open, embedding_run, false, false},
    {"pool", pool_open, pool_run, false, false},
    {"s4d", s4d_open, s4d_run, false, false},
};

const struct node_ops *find(const char *type)
{
    for (const struct node_ops &ops : table) {
        if (!strcmp(ops.type, type)) {
            return &ops;
        }
    }
    return nullptr;
}

int open_node(struct opening *opening, const struct layer *layers, int n)
{
    struct node node = {};
    node.ops = find(layers->ops->type);
    if (!node.ops) {
        refuse(opening->err, 69, "layers of type %s don't run on a GPU yet: use device cpu", layers->ops->type);
        return 0;
    }
    node.in = layers->in;
    node.out = layers->out;
    const int taken = node.ops->open(opening, &node, layers, n);
    opening->chain->nodes.push_back(node);
    return taken;
}

bool open_nodes(struct opening *opening, const struct model *model)
{
    for (int i = 0; i < model->n_layers;) {
        const int taken = open_node(opening, model->layers + i, model->n_layers - i);
        if (!taken) {
            return false;
        }
        i += taken;
    }
    if (opening->chain->period > 1u << 31) {
        refuse(opening->err, 69, "the model's memories have too many different lengths for a GPU: use device cpu");
        return false;
    }
    return true;
}

struct rows_cuda rows_of(const struct chain *chain, const struct chain_slots *slots, const int32_t *which, int rows,
                         bool sequence)
{
    return {rows, sequence, which, slots->phase, slots->states, chain->state_bytes};
}

cudaError_t code(int result)
{
    return result < 0 ? cudaErrorInvalidValue : cudaError_t(result);
}

} /* namespace */

/* ---- entry points ------------------------------------------------------------------------------------------- */

struct chain *chain_create(const struct model *model, int precision, bool state_bf16, struct arena *arena,
                           struct ssm_error *err)
{
    try {
        std::unique_ptr<struct chain> chain = std::make_unique<struct chain>();
        chain->model = model;
        chain->precision = precision;
        chain->state_bf16 = state_bf16;
        chain->period = 1;
        struct opening opening = {chain.get(), arena, err};
        return open_nodes(&opening, model) ? chain.release() : nullptr;
    } catch (const std::bad_alloc &) {
        refuse_memory(err);
        return nullptr;
    }
}

void chain_destroy(struct chain *chain)
{
    delete chain;
}

size_t chain_state_bytes(const struct chain *chain)
{
    return chain->state_bytes;
}

struct chain_bench chain_take_bench(const struct chain *chain, int steps, int sequence, struct arena *arena)
{
    const size_t rows = size_t(std::max(steps, sequence)), widest = size_t(chain->model->widest);
    struct chain_bench bench = {};
    const struct mamba_cuda *before = nullptr;
    for (const struct node &node : chain->nodes) {
        bench.workspace_bytes = std::max(bench.workspace_bytes, carve(&node, int(rows), nullptr).bytes);
        for (const struct mamba_node &mamba : node.mamba) {
            if (!before || !same_sizes(before, &mamba.step)) {
                bench.workspace_bytes = std::max({bench.workspace_bytes, mamba_cuda_workspace_bytes(&mamba.step, steps),
                                                  sequence_bytes(&mamba, sequence)});
            }
            before = &mamba.step;
        }
    }
    bench.slots = arena_take<int32_t>(arena, rows);
    bench.elapsed = arena_take<float>(arena, rows);
    bench.values[0] = arena_take<float>(arena, rows * widest);
    bench.values[1] = arena_take<float>(arena, rows * widest);
    bench.spectrum = arena_take<float>(arena, rows * 2 * size_t(chain->model->bins));
    bench.blown = arena_take<uint8_t>(arena, rows);
    bench.workspace = arena_take<char>(arena, bench.workspace_bytes);
    return bench;
}

cudaError_t chain_run(const struct chain *chain, const struct chain_slots *slots, const struct chain_bench *bench,
                      int rows, bool sequence, float *out, cudaStream_t stream)
{
    struct passage p = {
        chain,  bench, rows_of(chain, slots, bench->slots, rows, sequence), {bench->blown, uint32_t(chain->period)},
        stream, false};
    float *x = bench->values[0], *y = bench->values[1];
    int error = 0;
    for (size_t i = 0; i < chain->nodes.size() && !error; i++) {
        const struct node *node = &chain->nodes[i];
        p.last = i + 1 == chain->nodes.size();
        float *to = node->ops->in_place ? x : p.last && node->ops->finishes ? out : y;
        error = node->ops->run(node, &p, x, to);
        if (to != x) {
            y = x;
            x = to;
        }
    }
    if (!error && x != out) {
        error = finish_cuda(&p.rows, x, chain->model->info.outputs, &p.finish, stream);
        return error ? code(error)
                     : cudaMemcpyAsync(out, x, size_t(rows) * size_t(chain->model->info.outputs) * sizeof *out,
                                       cudaMemcpyDefault, stream);
    }
    return code(error);
}

cudaError_t chain_state_put(const struct chain *chain, const struct chain_slots *slots, int slot, const float *state,
                            cudaStream_t stream)
{
    const struct rows_cuda rows = rows_of(chain, slots, nullptr, 0, false);
    return code(state_cuda_put(&rows, chain->parts.data(), int(chain->parts.size()), slot, state, stream));
}

cudaError_t chain_state_get(const struct chain *chain, const struct chain_slots *slots, int slot, float *state,
                            cudaStream_t stream)
{
    const struct rows_cuda rows = rows_of(chain, slots, nullptr, 0, false);
    return code(state_cuda_get(&rows, chain->parts.data(), int(chain->parts.size()), slot, state, stream));
}

cudaError_t chain_state_get_all(const struct chain *chain, const struct chain_slots *slots, const int32_t *which,
                                int count, float *states, cudaStream_t stream)
{
    const struct rows_cuda rows = rows_of(chain, slots, nullptr, 0, false);
    return code(state_cuda_get_all(&rows, chain->parts.data(), int(chain->parts.size()), which, count,
                                   chain->model->state, states, stream));
}
