/* SPDX-License-Identifier: MIT */
#ifndef MODEL_LAYERS_H
#define MODEL_LAYERS_H

/* What `layer->self` of an opened layer is, for backends that run a layer themselves on another device. By type:
 *
 *   stft    struct analysis      hop = layer->in, window = hop + layer->state
 *   istft   tables of its own    hop = layer->out, window = hop + layer->state
 *   filter  NULL                 taps = layer->memory + 1
 *   mask    struct mask
 *   norm    float *, (width) weights
 *   linear  struct linear (kernels.h)
 *   conv    struct conv
 *   mamba   struct mamba
 *   scale   struct scale
 *   embedding  struct embedding
 *   pool    struct pool
 *   s4d     struct s4d
 *   sigmoid, softmax  NULL */

#include "kernels/kernels.h"

struct stft;

struct analysis {
    struct stft *stft;
    int bins;
    float compress; /* the features' power: layer_stft.c; 1: the spectrum itself */
};

struct mask {
    bool sigmoid;
};

struct conv {
    int taps;
    bool silu;
    float *weight; /* (taps, width) */
    float *bias;   /* (width) or NULL */
};

struct mamba {
    int D, E, N, K, R; /* d_model, d_inner, d_state, d_conv, dt_rank */
    enum discretisation discretisation;
    struct linear in_proj, x_proj, dt_proj, out_proj;
    float *norm;                    /* (D)                         */
    float *conv_weight, *conv_bias; /* (K, E) and (E), NULL for no */
    float *A, *skip, *dt_bias;      /* (N, E), (E), (E)            */
};

struct scale {
    float *mean, *factor; /* (width), (width): y = (x - mean) factor */
};

struct embedding {
    int vocabulary;
    float *weight; /* (vocabulary, width) */
};

enum pool_kind { POOL_MEAN, POOL_EMA };

struct pool {
    enum pool_kind kind;
    float hops; /* of the mean: infinity for all of the stream */
};

enum { S4D_PAIRS_MAX = 128 };
enum s4d_discretisation { S4D_ZOH, S4D_BILINEAR };
enum s4d_activation { S4D_PLAIN, S4D_SILU, S4D_GELU };
enum s4d_mix { S4D_UNMIXED, S4D_LINEAR, S4D_GLU };

/* Complex tables (2 N, E): the real parts, then the imaginary ones. */
struct s4d {
    int E, N; /* d_model, pairs a channel */
    enum s4d_discretisation discretisation;
    enum s4d_activation activation;
    enum s4d_mix mix;
    bool residual;
    float *A;             /* (2 N, E) of the differential equation   */
    float *a, *b, *c;     /* (2 N, E) A-bar - 1, B-bar and 2 C, for hops without a gap */
    float *dt, *skip;     /* (E), (E)                                */
    float *norm;          /* (E) or NULL: none                       */
    struct linear output; /* (E, or 2 E of a GLU), only with mix     */
};

#endif
