/* SPDX-License-Identifier: MIT */
/* Any bytes are a weights file or a sentence why not. A file that is read is read through. Corpus: corpus_safetensors.
 */
#include <stdlib.h>

#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct ssm_error err;
    struct safetensors *file = safetensors_parse(bytes, size, "fuzz", &err);
    if (!file) {
        return 0;
    }
    for (int i = 0; safetensors_at(file, i); i++) {
        const struct tensor *tensor = safetensors_at(file, i);
        unsigned sum = 0;
        for (size_t j = 0; j < tensor->bytes; j++) {
            sum += tensor->data[j];
        }
        float *values = safetensors_floats(file, tensor, &err);
        if (values && sum == 0 && tensor->count && values[0] != 0) {
            abort();
        }
        free(values);
        safetensors_expect(file, tensor->name, 2, (int64_t[]){3, 3}, &err);
    }
    safetensors_metadata(file, "ssm.config");
    safetensors_close(file);
    return 0;
}
