/* SPDX-License-Identifier: MIT */
#include "model/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/facts.h"
#include "model/refuse.h"
#include "model/weights.h"

enum { LAYERS_MAX = 1024 };

static const struct tensor *backbone_tensor(const struct safetensors *file, const char *prefix, int i, const char *part)
{
    char name[WEIGHTS_NAME_MAX];
    snprintf(name, sizeof name, "%slayers.%d.%s", prefix, i, part);
    return safetensors_find(file, name);
}

static int64_t size_at(const struct tensor *tensor, int axis)
{
    return tensor && axis < tensor->rank ? tensor->shape[axis] : 0;
}

/* What a backbone's tensors say of its sizes, in the names of the Mamba paper's code. */
struct backbone {
    const char *prefix; /* "backbone." or "" */
    int layers;
    int64_t D, E, N, K, R; /* d_model, d_inner, d_state, d_conv, dt_rank; 0 when not to be had */
};

static struct backbone measure_backbone(const struct safetensors *file)
{
    const char *prefix = backbone_tensor(file, "", 0, "mixer.in_proj.weight") ? "" : "backbone.";
    struct backbone sizes = {.prefix = prefix};
    while (sizes.layers < LAYERS_MAX && backbone_tensor(file, prefix, sizes.layers, "mixer.in_proj.weight")) {
        sizes.layers++;
    }
    sizes.D = size_at(backbone_tensor(file, prefix, 0, "mixer.in_proj.weight"), 1);
    sizes.E = size_at(backbone_tensor(file, prefix, 0, "mixer.A_log"), 0);
    sizes.N = size_at(backbone_tensor(file, prefix, 0, "mixer.A_log"), 1);
    sizes.K = size_at(backbone_tensor(file, prefix, 0, "mixer.conv1d.weight"), 2);
    sizes.R = size_at(backbone_tensor(file, prefix, 0, "mixer.dt_proj.weight"), 1);
    return sizes;
}

static void print_backbone(FILE *out, const struct backbone *b)
{
    fprintf(out,
            "{\"format\":1,\"name\":\"backbone\",\"task\":\"backbone\",\"rate\":1,\"hop\":%" PRId64 ",\"layers\":[",
            b->D);
    for (int i = 0; i < b->layers; i++) {
        fprintf(out, "{\"type\":\"mamba\",\"name\":\"%slayers.%d\",\"d_model\":%" PRId64 ",\"expand\":%" PRId64,
                b->prefix, i, b->D, b->E / b->D);
        fprintf(out, ",\"d_state\":%" PRId64 ",\"d_conv\":%" PRId64 ",\"dt_rank\":%" PRId64 "},", b->N, b->K, b->R);
    }
    fprintf(out, "{\"type\":\"norm\",\"name\":\"%snorm_f\",\"width\":%" PRId64 "}]}", b->prefix, b->D);
}

/* Write the configuration that a checkpoint of mamba_ssm or Hugging Face leaves out; the layers check every shape
 * against it when they open. Gives malloc'd JSON, or NULL and an error. */
static char *infer_config(const struct safetensors *file, struct ssm_error *err)
{
    struct backbone sizes = measure_backbone(file);
    if (!sizes.layers || !sizes.D || !sizes.E || sizes.E % sizes.D || !sizes.N || !sizes.K || !sizes.R) {
        refuse(err, 65, "%s: has neither an ssm.config nor the tensors of a Mamba backbone", safetensors_path(file));
        return NULL;
    }
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    if (!out) {
        refuse_memory(err);
        return NULL;
    }
    print_backbone(out, &sizes);
    if (fclose(out)) {
        refuse_memory(err);
        free(text);
        text = NULL;
    }
    return text;
}

static int open_layer(struct layer *layer, struct spec spec, struct layer_chain *chain, struct ssm_error *err)
{
    const char *type = spec_text(spec, "type"), *name = spec_text(spec, "name");
    const struct layer_ops *ops = layer_find(type ? type : "");
    if (!ops) {
        return refuse(err, 65, "%s: there is no layer type \"%.40s\"", spec.where, type ? type : "");
    }
    if (ops->named && (!name || !*name || strlen(name) >= sizeof layer->name)) {
        return refuse(err, 65, "%s: needs a \"name\" of 1..%zu letters, under which its tensors are", spec.where,
                      sizeof layer->name - 1);
    }
    layer->ops = ops; /* from here on model_close closes it */
    snprintf(layer->name, sizeof layer->name, "%s", name ? name : "");
    return layer->ops->open(layer, spec, chain, err);
}

/* Each stream's state holds the layers' parts one after the other, each on a cache line of its own. */
static void add_layer(struct model *model, struct layer *layer)
{
    layer->state_at = model->state;
    model->state += (layer->state + 15) & ~(size_t)15;
    model->bytes += layer->bytes;
    model->widest = layer->in > model->widest ? layer->in : model->widest;
    model->widest = layer->out > model->widest ? layer->out : model->widest;
    model->memory = layer->memory > model->memory ? layer->memory : model->memory;
    model->info.parameters += layer->parameters;
    model->info.macs_per_hop += layer->macs;
    model->info.delay += layer->delay;
}

static int open_layers(struct model *model, struct spec config, struct layer_chain *chain, struct ssm_error *err)
{
    int n = spec_count(config, "layers");
    if (n < 1 || n > LAYERS_MAX) {
        return refuse(err, 65, "%s: ssm.config needs a list of 1..%d layers", config.where, LAYERS_MAX);
    }
    model->layers = calloc((size_t)n, sizeof *model->layers);
    if (!model->layers) {
        return refuse_memory(err);
    }
    for (int i = 0; i < n; i++) {
        char where[400];
        struct spec spec = spec_at(config, "layers", i);
        const char *type = spec_text(spec, "type");
        snprintf(where, sizeof where, "%.300s: layer %d (%.40s)", config.where, i, type ? type : "?");
        spec.where = where;
        model->n_layers = i + 1;
        if (open_layer(&model->layers[i], spec, chain, err)) {
            return -1;
        }
        add_layer(model, &model->layers[i]);
    }
    return 0;
}

static int read_model(struct model *model, const struct safetensors *file, struct spec config, struct ssm_error *err)
{
    if (facts_read(model, config, err)) {
        return -1;
    }
    struct layer_chain chain = {.weights = file, .width = model->info.inputs};
    if (open_layers(model, config, &chain, err) || facts_finish(model, config, chain.width, err)) {
        return -1;
    }
    model->bins = chain.bins;
    model->digest = safetensors_digest(file);
    snprintf(model->info.digest, sizeof model->info.digest, "%016" PRIx64, model->digest);
    return 0;
}

static struct model *read_config(const struct safetensors *file, const char *text, struct ssm_error *err)
{
    struct model *model = NULL;
    struct spec config = spec_parse(text, safetensors_path(file), err);
    if (!config.json) {
        return NULL;
    }
    model = calloc(1, sizeof *model);
    if (!model) {
        refuse_memory(err);
    } else if (read_model(model, file, config, err)) {
        model_close(model);
        model = NULL;
    }
    spec_free(config);
    return model;
}

struct model *model_open(const char *path, struct ssm_error *err)
{
    struct safetensors *file = safetensors_open(path, err);
    if (!file) {
        return NULL;
    }
    const char *given = safetensors_metadata(file, "ssm.config");
    char *inferred = given ? NULL : infer_config(file, err);
    struct model *model = given || inferred ? read_config(file, given ? given : inferred, err) : NULL;
    free(inferred);
    safetensors_close(file);
    return model;
}

void model_close(struct model *model)
{
    if (model) {
        for (int i = 0; i < model->n_layers; i++) {
            if (model->layers[i].ops && model->layers[i].ops->close) {
                model->layers[i].ops->close(&model->layers[i]);
            }
        }
        free(model->layers);
        free(model->channels);
        free(model->labels);
        free(model);
    }
}
