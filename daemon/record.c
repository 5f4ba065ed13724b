/* SPDX-License-Identifier: MIT */
#include "daemon/record.h"

#include <string.h>

#include "dsp/bytes.h"
#include "dsp/cadence.h"
#include "model/digest.h"
#include "model/refuse.h"

enum { SUM = 72 };
static const char magic[8] = "SSMSTRM2";

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
    bytes_put(bytes + 8, RECORD_HEADER, 4);
    bytes_put(bytes + 12, record->rate, 4);
    bytes_put(bytes + 16, record->position, 8);
    bytes_put(bytes + 24, (uint64_t)(record->captured + utc_offset), 8);
    bytes_put(bytes + 32, record->n_waiting, 8);
    bytes_put(bytes + 40, record->taken, 8);
    bytes_put(bytes + 48, record->out, 8);
    bytes_put(bytes + 56, record->state_size, 8);
    uint64_t time;
    memcpy(&time, &record->time, sizeof time);
    bytes_put(bytes + 64, time, 8);
    size_t floats = record->n_waiting * sizeof(float);
    if (floats > 0) {
        memcpy(bytes + RECORD_HEADER, record->waiting, floats);
    }
    memmove(bytes + RECORD_HEADER + floats, record->state, record->state_size); /* it may stand there already */
    bytes_put(bytes + SUM, sum(bytes, record_size(record->n_waiting, record->state_size)), 8);
}

int record_decode(struct record *record, int64_t utc_offset, const uint8_t *bytes, size_t size, struct ssm_error *err)
{
    if (size < RECORD_HEADER || memcmp(bytes, magic, sizeof magic) != 0 || bytes_get(bytes + 8, 4) != RECORD_HEADER) {
        return refuse(err, 65, "not a stream's state as this version writes it");
    }
    uint64_t n = bytes_get(bytes + 32, 8), state = bytes_get(bytes + 56, 8);
    if (n > RECORD_WAITING_MOST || size < RECORD_HEADER + n * sizeof(float) ||
        state != size - RECORD_HEADER - n * sizeof(float)) {
        return refuse(err, 65, "a stream's state that is cut short");
    }
    if (bytes_get(bytes + SUM, 8) != sum(bytes, size)) {
        return refuse(err, 65, "a stream's state that is damaged");
    }
    *record = (struct record){.position = bytes_get(bytes + 16, 8), .out = bytes_get(bytes + 48, 8),
                              .taken = bytes_get(bytes + 40, 8),
                              .captured = (int64_t)bytes_get(bytes + 24, 8) - utc_offset, .rate = (uint32_t)bytes_get(bytes + 12, 4),
                              .n_waiting = (size_t)n, .waiting = (const void *)(bytes + RECORD_HEADER),
                              .state = bytes + RECORD_HEADER + n * sizeof(float), .state_size = (size_t)state};
    uint64_t time = bytes_get(bytes + 64, 8);
    memcpy(&record->time, &time, sizeof time);
    const uint64_t most = (uint64_t)1 << (record->rate == CADENCE_TICKS ? 53 : 44); /* years: times a rate sound's still fit */
    if (record->position > most || record->out > record->position || record->taken > most || record->rate == 0) {
        return refuse(err, 65, "a stream's state with sample numbers that can't be");
    }
    return 0;
}
