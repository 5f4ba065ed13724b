/* SPDX-License-Identifier: MIT */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"

/* The input is a file, and what follows its last zero byte an override. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), *override = NULL;
    memcpy(text, data, size);
    text[size] = '\0';
    size_t end = size;
    for (size_t i = size; i > 0 && !override; i--) {
        if (text[i - 1] == '\0') {
            override = text + i;
            end = i - 1;
        }
    }
    const char *overrides[1] = {override};
    struct config_errors errors;
    struct config *config = config_parse(text, end, "fuzz.yaml", overrides, override ? 1 : 0, &errors);
    if ((config == NULL) != (errors.n > 0)) {
        abort();
    }
    config_destroy(config);
    free(text);
    return 0;
}
