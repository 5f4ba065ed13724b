/* SPDX-License-Identifier: MIT */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

/* From named tensors to what the kernels run on. Names are "<layer>.<part>", as PyTorch's state_dict writes them. */

#include <stdbool.h>

#include "kernels/kernels.h"
#include "model/safetensors.h"

enum { WEIGHTS_NAME_MAX = 256 };

/* Pack "<layer>.<part>.weight" (out, in) and, when `bias` and it is there, "<layer>.<part>.bias" (out). The weight may
 * be F32, F16, BF16, or I8 with a scale for each row in "<...>.weight_scale" (out). part NULL: "<layer>.weight". 0, or
 * -1 and an error. linear_finish frees. */
int weights_linear(const struct safetensors *file, const char *layer, const char *part, int in, int out, bool bias,
                   struct linear *linear, struct ssm_error *err);

/* Gives "<layer>.<part>" as floats, which must have this shape; free() them. NULL and an error. */
float *weights_floats(const struct safetensors *file, const char *layer, const char *part, int rank,
                      const int64_t *shape, struct ssm_error *err);

bool weights_has(const struct safetensors *file, const char *layer, const char *part);

/* Bytes the packed matrix takes, and its numbers. */
size_t weights_linear_bytes(const struct linear *linear);
long weights_linear_parameters(const struct linear *linear);

#endif
