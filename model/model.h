/* SPDX-License-Identifier: MIT */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

/* A weights file understood: what the model is, and its opened layers in order. Knows nothing of devices or streams.
 *
 * The configuration is the string `ssm.config` in the file's __metadata__ (JSON). A file without one, but with tensors
 * named as mamba_ssm or Hugging Face name them ([backbone.]layers.0.mixer...), is a plain backbone: rows of d_model
 * values in, rows of d_model values out, one "hop" each; sizes come from the tensors' shapes.
 *
 * Threads: constant after opening. */

#include "model/layer.h"

struct model {
    struct ssm_info info; /* all but device, device_why and engine_bytes */
    uint64_t digest;      /* xxh3 of the file                            */
    struct ssm_channel *channels; /* (info.channels) */
    struct ssm_label *labels;     /* (n_labels)      */
    int n_labels;                 /* info.outputs, or 0 for a model that names none */
    struct layer *layers;
    int n_layers;
    int bins;     /* of the stft, 0 without one          */
    int widest;   /* widest row between layers           */
    int memory;   /* largest of the layers'              */
    size_t state; /* floats a stream                     */
    size_t bytes; /* taken by the layers                 */
};

/* Gives a model, or NULL and an error. */
struct model *model_open(const char *path, struct ssm_error *err);
void model_close(struct model *model); /* NULL is fine */

#endif
