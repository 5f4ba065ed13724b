/* SPDX-License-Identifier: MIT */
#include "model/state.h"

#include <math.h>
#include <string.h>

#include "dsp/bytes.h"
#include "model/digest.h"
#include "model/refuse.h"

enum { HEADER = 48, SUM = 40, VERSION = 1 };
static const char magic[8] = "SSMSTATE";

static size_t count_floats(const struct model *model)
{
    size_t floats = 0;
    for (int i = 0; i < model->n_layers; i++) {
        floats += model->layers[i].state;
    }
    return floats;
}

size_t state_bytes(const struct model *model)
{
    return HEADER + 4 * count_floats(model);
}

/* Hashes of several pieces: each is the seed of the next. */
static uint64_t hash_layout(const struct model *model)
{
    uint64_t hash = 0;
    for (int i = 0; i < model->n_layers; i++) {
        unsigned char size[8];
        bytes_put(size, model->layers[i].state, 8);
        hash = digest_bytes(size, sizeof size, hash);
    }
    return hash;
}

static uint64_t hash_bytes(const unsigned char *bytes, size_t size)
{
    return digest_bytes(bytes + HEADER, size - HEADER, digest_bytes(bytes, SUM, 0));
}

void state_encode(const struct model *model, const float *state, unsigned char *bytes)
{
    unsigned char *at = bytes + HEADER;
    memcpy(bytes, magic, sizeof magic);
    bytes_put(bytes + 8, VERSION, 4);
    bytes_put(bytes + 12, HEADER, 4);
    bytes_put(bytes + 16, model->digest, 8);
    bytes_put(bytes + 24, hash_layout(model), 8);
    bytes_put(bytes + 32, count_floats(model), 8);
    for (int i = 0; i < model->n_layers; i++) {
        const struct layer *layer = &model->layers[i];
        for (size_t j = 0; j < layer->state; j++, at += 4) {
            uint32_t bits;
            memcpy(&bits, &state[layer->state_at + j], sizeof bits);
            bytes_put(at, bits, 4);
        }
    }
    bytes_put(bytes + SUM, hash_bytes(bytes, state_bytes(model)), 8);
}

static int check_header(const struct model *model, const unsigned char *bytes, size_t size, struct ssm_error *err)
{
    if (size < HEADER || memcmp(bytes, magic, sizeof magic)) {
        return refuse(err, 65, "not a saved stream state");
    }
    if (bytes_get(bytes + 8, 4) != VERSION || bytes_get(bytes + 12, 4) != HEADER) {
        return refuse(err, 65, "a saved state of version %u; this program reads version %d",
                      (unsigned)bytes_get(bytes + 8, 4), VERSION);
    }
    if (bytes_get(bytes + 16, 8) != model->digest) {
        return refuse(err, 65, "a state saved by another model (file digest %016llx, this one is %s)",
                      (unsigned long long)bytes_get(bytes + 16, 8), model->info.digest);
    }
    if (size != state_bytes(model) || bytes_get(bytes + 32, 8) != count_floats(model)) {
        return refuse(err, 65, "a saved state of %zu bytes where this model's has %zu: it was cut short or extended",
                      size, state_bytes(model));
    }
    if (bytes_get(bytes + 24, 8) != hash_layout(model) || bytes_get(bytes + SUM, 8) != hash_bytes(bytes, size)) {
        return refuse(err, 65, "a damaged saved state: its checksum is wrong");
    }
    return 0;
}

int state_decode(const struct model *model, const unsigned char *bytes, size_t size, float *state,
                 struct ssm_error *err)
{
    if (check_header(model, bytes, size, err)) {
        return -1;
    }
    const unsigned char *at = bytes + HEADER;
    memset(state, 0, model->state * sizeof *state);
    for (int i = 0; i < model->n_layers; i++) {
        const struct layer *layer = &model->layers[i];
        for (size_t j = 0; j < layer->state; j++, at += 4) {
            uint32_t bits = (uint32_t)bytes_get(at, 4);
            memcpy(&state[layer->state_at + j], &bits, sizeof bits);
            if (!isfinite(state[layer->state_at + j])) {
                return refuse(err, 65, "a saved state with NaN or inf in layer %d", i);
            }
        }
    }
    return 0;
}
