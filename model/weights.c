/* SPDX-License-Identifier: MIT */
#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>

#include "model/refuse.h"

struct name {
    char text[WEIGHTS_NAME_MAX];
};

/* "<layer>.<part><tail>", cut when too long: a cut name is then simply not found. */
static struct name join(const char *layer, const char *part, const char *tail)
{
    struct name name;
    snprintf(name.text, sizeof name.text, "%s%s%s%s", layer, part ? "." : "", part ? part : "", tail);
    return name;
}

static float *expect_floats(const struct safetensors *file, const char *name, int rank, const int64_t *shape,
                            struct ssm_error *err)
{
    const struct tensor *tensor = safetensors_expect(file, name, rank, shape, err);
    return tensor ? safetensors_floats(file, tensor, err) : NULL;
}

static int pack(const struct safetensors *file, const struct tensor *weight, const char *scale_name, int in, int out,
                const float *bias, struct linear *linear, struct ssm_error *err)
{
    bool i8 = weight->type == TENSOR_I8;
    float *values =
        i8 ? expect_floats(file, scale_name, 1, (int64_t[]){out}, err) : safetensors_floats(file, weight, err);
    if (!values) {
        return -1;
    }
    int failed = i8 ? linear_init_i8(linear, in, out, (const int8_t *)weight->data, values, bias)
                    : linear_init_f32(linear, in, out, values, bias);
    free(values);
    return failed ? refuse_memory(err) : 0;
}

int weights_linear(const struct safetensors *file, const char *layer, const char *part, int in, int out, bool bias,
                   struct linear *linear, struct ssm_error *err)
{
    struct name weight_name = join(layer, part, ".weight"), bias_name = join(layer, part, ".bias");
    struct name scale_name = join(layer, part, ".weight_scale");
    const struct tensor *weight = safetensors_expect(file, weight_name.text, 2, (int64_t[]){out, in}, err);
    float *bias_values = NULL;
    if (!weight) {
        return -1;
    }
    if (bias && safetensors_find(file, bias_name.text) &&
        !(bias_values = expect_floats(file, bias_name.text, 1, (int64_t[]){out}, err))) {
        return -1;
    }
    int failed = pack(file, weight, scale_name.text, in, out, bias_values, linear, err);
    free(bias_values);
    return failed;
}

float *weights_floats(const struct safetensors *file, const char *layer, const char *part, int rank,
                      const int64_t *shape, struct ssm_error *err)
{
    struct name name = join(layer, part, "");
    return expect_floats(file, name.text, rank, shape, err);
}

bool weights_has(const struct safetensors *file, const char *layer, const char *part)
{
    struct name name = join(layer, part, "");
    return safetensors_find(file, name.text);
}

size_t weights_linear_bytes(const struct linear *linear)
{
    size_t padded = ((size_t)linear->out + KERNELS_PANEL - 1) / KERNELS_PANEL * KERNELS_PANEL;
    size_t rows = (size_t)(linear->bias != NULL) + (linear->scale != NULL) + (linear->sum != NULL);
    size_t matrix =
        linear->i8 ? padded / KERNELS_PANEL * linear->i8_stride : padded * (size_t)linear->in * sizeof(float);
    return matrix + rows * padded * sizeof(float);
}

long weights_linear_parameters(const struct linear *linear)
{
    return (long)linear->in * linear->out + (linear->bias ? linear->out : 0);
}
