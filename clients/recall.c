/* SPDX-License-Identifier: MIT */

/* Counts of contexts and of contexts with the byte behind them, in one table of four-way buckets. From the shortest
 * context to the longest, with m the kinds of byte seen behind it (Witten and Bell):
 *
 *   P_k = (n(context, byte) + m P_{k-1}) / (n(context) + m),  P_0 = 1/256
 *
 * Where a context knew what comes it is believed, where anything came the shorter one speaks. */

#include "clients/recall.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

enum {
    LONGEST = 6, /* bytes of context                         */
    LINE = 8192, /* bytes that are learned together at most  */
    BUCKETS = 1 << 19,
    WAYS = 4,
    ONCE = 8,   /* what a line adds to a count               */
    LITTLE = 2, /* ... and an odd line                       */
    MOST = 240, /* where counts stay                         */
};

static const double RATE = 0.02;   /* of the weights                                              */
static const double SHARE = 0.001; /* of each weight, a byte, back to one half: nobody is out for good */
static const double FLOOR = 0.001; /* of the model's guess is all bytes alike                     */

struct slot {
    uint16_t tag;  /* 0: empty                           */
    uint8_t count; /* of ONCE                            */
    uint8_t kinds; /* of a context: bytes seen behind it */
};

struct recall {
    uint64_t last;   /* the last eight bytes, the newest lowest */
    uint64_t before; /* the same, before the line               */
    size_t n;        /* bytes of the line                       */
    unsigned char line[LINE];
    double trust[LONGEST + 1][3]; /* in the model; by the longest context found, seen once, some times, often */
    struct slot slots[BUCKETS][WAYS];
};

struct recall *recall_create(void)
{
    struct recall *recall = calloc(1, sizeof *recall);
    for (int k = 0; recall && k <= LONGEST; k++) {
        for (int seen = 0; seen < 3; seen++) {
            recall->trust[k][seen] = 0.5;
        }
    }
    return recall;
}

void recall_destroy(struct recall *recall)
{
    free(recall);
}

static uint64_t scramble(uint64_t x)
{
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93;
    return x ^ (x >> 32);
}

/* The key of the last k of these bytes. */
static uint64_t context_of(uint64_t last, int k)
{
    return scramble((last & ((UINT64_C(1) << 8 * k) - 1)) * 31 + (uint64_t)k);
}

/* The key of a context with the byte behind it. */
static uint64_t pair_of(uint64_t context, unsigned char byte)
{
    return scramble(context + byte + 1);
}

static uint16_t tag_of(uint64_t key)
{
    return (uint16_t)key | 1;
}

static struct slot *bucket_of(struct recall *recall, uint64_t key)
{
    return recall->slots[(key >> 32) % BUCKETS];
}

/* The slot of a key, or NULL. */
static struct slot *find(struct recall *recall, uint64_t key)
{
    struct slot *bucket = bucket_of(recall, key);
    for (int i = 0; i < WAYS; i++) {
        if (bucket[i].tag == tag_of(key)) {
            return bucket + i;
        }
    }
    return NULL;
}

/* The slot of a key, perhaps a new one in the place of the rarest, counted `more` times. */
static struct slot *count(struct recall *recall, uint64_t key, unsigned more)
{
    struct slot *slot = find(recall, key);
    if (slot == NULL) {
        struct slot *bucket = slot = bucket_of(recall, key);
        for (int i = 1; i < WAYS; i++) {
            slot = bucket[i].count < slot->count ? bucket + i : slot;
        }
        *slot = (struct slot){.tag = tag_of(key)};
    }
    slot->count = (uint8_t)(slot->count + more < MOST ? slot->count + more : MOST);
    return slot;
}

/* Its probability by what was seen before; *trust is what the model has had where as much was known. */
static double seen_before(struct recall *recall, unsigned char byte, double **trust)
{
    double p = 1.0 / 256;
    *trust = &recall->trust[0][0];
    for (int k = 1; k <= LONGEST; k++) {
        uint64_t context = context_of(recall->last, k);
        const struct slot *seen = find(recall, context), *both = find(recall, pair_of(context, byte));
        unsigned n = seen ? seen->count / ONCE : 0, right = both ? both->count / ONCE : 0;
        if (n == 0) {
            break;
        }
        p = ((right < n ? right : n) + seen->kinds * p) / (n + seen->kinds);
        *trust = &recall->trust[k][n < 2 ? 0 : n < 8 ? 1 : 2];
    }
    return p;
}

double recall_take(struct recall *recall, unsigned char byte, double bits)
{
    double *trust, seen = seen_before(recall, byte, &trust);
    double model = *trust * (exp2(-bits) * (1 - FLOOR) + FLOOR / 256), p = model + (1 - *trust) * seen;
    *trust += RATE * (model / p - *trust);
    *trust += SHARE * (0.5 - *trust);
    if (recall->n == LINE) {
        recall_learn(recall, false);
    }
    recall->line[recall->n++] = byte;
    recall->last = recall->last << 8 | byte;
    return -log2(p);
}

void recall_learn(struct recall *recall, bool odd)
{
    uint64_t last = recall->before;
    for (size_t i = 0; i < recall->n; i++) {
        for (int k = 1; k <= LONGEST; k++) {
            uint64_t context = context_of(last, k);
            unsigned more = odd ? LITTLE : ONCE;
            bool first = count(recall, pair_of(context, recall->line[i]), more)->count == more;
            struct slot *seen = count(recall, context, more);
            seen->kinds = (uint8_t)(seen->kinds + (first && seen->kinds < UINT8_MAX));
        }
        last = last << 8 | recall->line[i];
    }
    recall->before = last;
    recall->n = 0;
}
