/* SPDX-License-Identifier: MIT */
#ifndef MODEL_LAYER_H
#define MODEL_LAYER_H

/* A model is a list of layers; a layer type is one file (layer_<type>.c) with one `struct layer_ops`, and one row in
 * layer.c's table.
 *
 * Live and bulk run the same code. A layer gets a block: rows of activations, one row a hop, contiguous (rows, width).
 * The rows belong to items, one a stream, each a run of neighbouring rows in order of time. A step of n streams is n
 * items of one row; a chunk of a recording is one item of many rows. Layers without state look at rows alone.
 *
 * Splitting one recording over threads along time: each thread has its own segment of rows. Most layers remember only
 * the last `memory` rows, so the backend gives them the right start state by running them over those rows first. A
 * layer that remembers for ever (mamba, pool) says 0 there, finds the team and everybody's block instead, and sees to
 * its states itself: the first member's item has the true start state, the last one's must have the end state.
 * layer_run_channels does that for layers whose channels know nothing of each other.
 */

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kernels.h"
#include "model/safetensors.h"
#include "model/spec.h"
#include "model/team.h"

struct layer_item {
    float *state;     /* the stream's whole state; a layer's own part begins at layer->state_at */
    int first, count; /* its rows                                                                */
};

/* One recording's rows in several threads' hands. Every member runs the layer at the same time, each on its segment,
 * all of them equally long; x, y and elapsed of the segments stand one behind the other. */
struct layer_segments {
    struct team *team;
    int member, members;
    const struct layer_block *const *blocks; /* (members) everybody's; another's may be read after a barrier */
};

struct layer_block {
    const struct kernels *kernels;
    int rows;
    const struct layer_item *items;
    int n_items;
    const float *elapsed;  /* (rows)          hops of time since the stream's previous row, 1 = no gap        */
    const float *spectrum; /* (rows, 2 bins)  what stft analysed, for layers that work on the spectrum itself */
    float *new_spectrum;   /* (rows, 2 bins)  where stft writes it                                            */
    float *scratch;        /* layer_scratch_floats(layer, rows), 64-byte aligned                              */
    const struct layer_segments *segments; /* NULL: the items' states are the true start states                     */
};

struct layer {
    const struct layer_ops *ops;
    char name[128];
    int in, out;         /* widths                                                              */
    size_t state;        /* floats a stream                                                     */
    size_t state_at;     /* where they begin in the stream's state                              */
    size_t scratch_row;  /* floats of scratch a row                                             */
    size_t scratch_once; /* and besides                                                         */
    int memory;          /* rows before its own that a segment must have seen                   */
    int delay;           /* samples by which this layer's output lags its input                 */
    long parameters;
    double macs;  /* multiply-adds a row                                                 */
    size_t bytes; /* memory taken by open                                                */
    void *self;   /* the type's own struct                                               */
};

/* What the chain knows when the next layer opens. */
struct layer_chain {
    const struct safetensors *weights;
    int width;             /* values a row that the previous layer gives              */
    int window, hop, bins; /* of the stft before, 0 when there was none               */
};

struct layer_ops {
    const char *type; /* as in the configuration */
    bool named;       /* has weights, so its spec needs a name                        */
    /* Read the layer's spec, check widths against the chain, load and pack weights. Fills in everything of *layer but
     * ops, name and state_at, and moves the chain on (width; window, hop, bins). -1 and an error: close is called all
     * the same. */
    int (*open)(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err);
    /* x (rows, in) -> y (rows, out), not overlapping; moves the items' states on. No allocation, no locks. */
    void (*run)(const struct layer *layer, const struct layer_block *block, const float *x, float *y);
    void (*close)(struct layer *layer); /* self may be NULL. No close: nothing to free */
};

/* Some channels of one stream over T rows of time. */
struct layer_channels {
    const struct kernels *kernels;
    int T, width, from, to; /* the channels from .. to of rows of width                           */
    const float *elapsed;   /* (T)                                                                */
    const float *x;         /* (T, width)                                                         */
    float *y;               /* (T, width), all of it another's but from .. to                     */
    float *state;           /* (layer->state / width, width), the same                            */
    float *scratch;         /* (layer->scratch_once), one's own                                   */
};

/* Which channels of `width` are this member's: whole cache lines of 16. */
void layer_share_channels(const struct layer_segments *segments, int width, int *from, int *to);

/* Run a layer whose channels (in = out of them) know nothing of each other, and whose state has a value of each in every
 * row: `run` takes an item's channels all at once, or, for a recording in several hands, each hand's share of them over
 * all of the time, so that nobody does anything twice. x may be y. All channels are done on return. */
void layer_run_channels(const struct layer *layer, const struct layer_block *block, const float *x, float *y,
                        void (*run)(const struct layer *layer, const struct layer_channels *channels));

extern const struct layer_ops layer_stft, layer_istft, layer_filter, layer_mask, layer_linear, layer_norm, layer_conv,
    layer_mamba, layer_sigmoid, layer_softmax, layer_scale, layer_embedding, layer_pool,
    layer_s4d;

/* The row of a type, or NULL; and all of them, NULL past the end. */
const struct layer_ops *layer_find(const char *type);
const struct layer_ops *layer_at(int i);

/* Refuse a layer whose input isn't as wide as it needs: 0, or -1 and an error. */
int layer_expect_width(struct spec spec, const struct layer_chain *chain, int width, struct ssm_error *err);

static inline size_t layer_scratch_floats(const struct layer *layer, int rows)
{
    return layer->scratch_once + layer->scratch_row * (size_t)rows;
}

#endif
