/* SPDX-License-Identifier: MIT */
#include "model/layer.h"

#include <string.h>

#include "model/refuse.h"

static const struct layer_ops *const table[] = {
    &layer_stft,   &layer_istft, &layer_filter,  &layer_mask,    &layer_linear, &layer_norm,
    &layer_conv,   &layer_mamba, &layer_sigmoid, &layer_softmax,
};

const struct layer_ops *layer_at(int i)
{
    return i >= 0 && (size_t)i < sizeof table / sizeof *table ? table[i] : NULL;
}

const struct layer_ops *layer_find(const char *type)
{
    for (int i = 0; layer_at(i); i++) {
        if (!strcmp(layer_at(i)->type, type)) {
            return layer_at(i);
        }
    }
    return NULL;
}

int layer_expect_width(struct spec spec, const struct layer_chain *chain, int width, struct ssm_error *err)
{
    if (chain->width == width) {
        return 0;
    }
    return refuse(err, 65, "%s: takes %d values a hop, but the layer before gives %d", spec.where, width, chain->width);
}
