/* SPDX-License-Identifier: MIT */
#include "daemon/record.h"

#include <string.h>

#include "dsp/cadence.h"
#include "model/digest.h"
#include "model/refuse.h"

enum { SUM = 72 };
static const char magic[8] = "SSMSTRM2";

static void put(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        at[i] = (uint8_t)(value >> 8 * i);
    }
}

static uint64_t get(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) {
        value |= (uint64_t)at[i] << 8 * i;
    }
    return value;
}

static uint64_t sum(const uint8_t *bytes, size_t size)
{
    return digest_bytes(bytes + RECORD_HEADER, size - RECORD_HEADER, digest_bytes(bytes, SUM, 0));
}

size_t record_size(size_t n_waiting, size_t state_size)
{
    return RECORD_HEADER + n_waiting * sizeof(float) + state_size;
}

void record_encode(const struct record *record, int64_t utc_offset, uint8_t *bytes)
{
    memcpy(bytes, magic, sizeof magic);
    put(bytes + 8, RECORD_HEADER, 4);
    put(bytes + 12, record->rate, 4);
    put(bytes + 16, record->position, 8);
    put(bytes + 24, (uint64_t)(record->captured + utc_offset), 8);
    put(bytes + 32, record->n_waiting, 8);
    put(bytes + 40, record->taken, 8);
    put(bytes + 48, record->out, 8);
    put(bytes + 56, record->state_size, 8);
    uint64_t time;
    memcpy(&time, &record->time, sizeof time);
    put(bytes + 64, time, 8);
    size_t floats = record->n_waiting * sizeof(float);
    if (floats > 0) {
        memcpy(bytes + RECORD_HEADER, record->waiting, floats);
    }
    memmove(bytes + RECORD_HEADER + floats, record->state, record->state_size); /* it may stand there already */
    put(bytes + SUM, sum(bytes, record_size(record->n_waiting, record->state_size)), 8);
}

int record_decode(struct record *record, int64_t utc_offset, const uint8_t *bytes, size_t size, struct ssm_error *err)
{
    if (size < RECORD_HEADER || memcmp(bytes, magic, sizeof magic) != 0 || get(bytes + 8, 4) != RECORD_HEADER) {
        return refuse(err, 65, "not a stream's state as this version writes it");
    }
    uint64_t n = get(bytes + 32, 8), state = get(bytes + 56, 8);
    if (n > RECORD_WAITING_MOST || size < RECORD_HEADER + n * sizeof(float) ||
        state != size - RECORD_HEADER - n * sizeof(float)) {
        return refuse(err, 65, "a stream's state that is cut short");
    }
    if (get(bytes + SUM, 8) != sum(bytes, size)) {
        return refuse(err, 65, "a stream's state that is damaged");
    }
    *record = (struct record){.position = get(bytes + 16, 8), .out = get(bytes + 48, 8), .taken = get(bytes + 40, 8),
                              .captured = (int64_t)get(bytes + 24, 8) - utc_offset, .rate = (uint32_t)get(bytes + 12, 4),
                              .n_waiting = (size_t)n, .waiting = (const void *)(bytes + RECORD_HEADER),
                              .state = bytes + RECORD_HEADER + n * sizeof(float), .state_size = (size_t)state};
    uint64_t time = get(bytes + 64, 8);
    memcpy(&record->time, &time, sizeof time);
    const uint64_t most = (uint64_t)1 << (record->rate == CADENCE_TICKS ? 53 : 44); /* years: times a rate sound's still fit */
    if (record->position > most || record->out > record->position || record->taken > most || record->rate == 0) {
        return refuse(err, 65, "a stream's state with sample numbers that can't be");
    }
    return 0;
}
