/* SPDX-License-Identifier: MIT */
/* Any bytes are a saved state or are refused; what is taken runs and saves to the same bytes. Input: patches over a
 * true state (offset, value, offset, value, ... as 2 bytes and 1), then, for an odd first byte, a mended checksum, so
 * that the checks behind it are reached. Inputs over 16 KiB or starting with 'S' are taken as they are. */
#include <stdlib.h>
#include <string.h>

#include "model/digest.h"
#include "model/ssm.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

enum { HOP = 160, STATE_MAX = 16384 };
static struct ssm_engine *engine;
static ssm_stream stream;
static unsigned char saved[STATE_MAX];

static void set_up(void)
{
    float in[HOP] = {1}, out[HOP];
    engine = ssm_open("tests/data/tiny-denoise.safetensors", NULL, NULL);
    if (!engine || ssm_state_size(engine) > STATE_MAX || ssm_stream_open(engine, &stream)) {
        abort();
    }
    ssm_step(engine, &(struct ssm_hop){.stream = stream, .in = in, .out = out, .count = 1}, 1);
    ssm_state_save(engine, stream, saved, STATE_MAX);
}

static void load(const unsigned char *bytes, size_t size)
{
    float in[HOP] = {1}, out[HOP];
    unsigned char again[STATE_MAX];
    struct ssm_error err = {0};
    if (ssm_state_load(engine, stream, bytes, size, &err) != SSM_OK) {
        if (!err.text[0]) {
            abort();
        }
        return;
    }
    ssm_state_save(engine, stream, again, STATE_MAX);
    if (memcmp(again, bytes, size) != 0) {
        abort();
    }
    ssm_step(engine, &(struct ssm_hop){.stream = stream, .in = in, .out = out, .count = 1}, 1);
    for (int i = 0; i < HOP; i++) {
        if (!(out[i] * 0 == 0)) {
            abort(); /* NaN got past the engine */
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    if (!engine) {
        set_up();
    }
    if (size == 0 || bytes[0] == 'S' || size > STATE_MAX) {
        load(bytes, size);
        return 0;
    }
    unsigned char patched[STATE_MAX];
    size_t state_size = ssm_state_size(engine);
    memcpy(patched, saved, state_size);
    for (size_t i = 1; i + 2 < size; i += 3) {
        patched[((size_t)bytes[i] | (size_t)bytes[i + 1] << 8) % state_size] = bytes[i + 2];
    }
    if (bytes[0] % 2) {
        uint64_t sum = digest_bytes(patched + 48, state_size - 48, digest_bytes(patched, 40, 0));
        memcpy(patched + 40, &sum, 8);
    }
    load(patched, state_size);
    return 0;
}
