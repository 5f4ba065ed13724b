/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_WIRE_H
#define DAEMON_WIRE_H

/* What stands on the wire: one message is three ZeroMQ frames.
 *
 *   topic    UTF-8, ends in '/', so that a prefix subscription can't match a sibling:
 *            audio/<node>/<pipeline>/<channel>/<model>/   f32le samples, one hop a message
 *            meter/<node>/<pipeline>/<channel>/<model>/   4 f32le: rms and peak of the input, rms and peak of the output, dB
 *            tags/<node>/<pipeline>/<channel>/<model>/    f32le scores, a row of labels a message, about n samples from s0 on
 *            event/<node>/<pipeline>/<channel>/<model>/   MessagePack map (daemon/labels.h): an event of a tag model that
 *                                                         begins, or ends; n samples from s0 on
 *            meta/<node>/<pipeline>/<channel>/<model>/    MessagePack map with the labels in the order of tags/; whenever a
 *                                                         subscriber joins
 *            gap/<node>/<pipeline>/<channel>/<model>/     empty; the header's `lost` says which samples are missing and why
 *            state/<node>/                                MessagePack map, each second
 *            hugz/<node>/                                 MessagePack map topic -> last seq, each second
 *   header   MessagePack map with the short keys of struct wire_header, always all of them, in this order
 *   payload  raw little-endian samples, or MessagePack, or empty
 *
 * A subscriber that sees seq jump within one boot missed messages; `gap/` and `lost` tell of samples that never got that far;
 * `hugz/` proves the end of a topic that went quiet. Functions here allocate nothing and may be called from any thread;
 * decoding answers any bytes at all. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { WIRE_VERSION = 1, WIRE_HEADER_MAX = 640, WIRE_TOPIC_MAX = 256 };

enum wire_flag {
    WIRE_GAP = 1,      /* samples are missing right before this message: see lost                       */
    WIRE_BYPASS = 2,   /* the model was bypassed                                                        */
    WIRE_WARMUP = 4,   /* the model's state is still young                                              */
    WIRE_DEGRADED = 8, /* the model gave NaN and was reset, or its device failed right before this      */
    WIRE_END = 16      /* the stream ends here: nothing follows on this topic                           */
};

/* Samples [from, to) of the stream that never came, `n` in all since the stream's start. */
struct wire_lost {
    uint64_t n, from, to;
    char why[24]; /* a counter's name: "ring_full"; "" when nothing was lost since the previous message */
};

struct wire_header {
    int version;       /* v                                                                             */
    uint64_t seq;      /* counts this topic's messages within one boot, from 0                          */
    uint8_t boot[16];  /* changes when the daemon starts again                                          */
    uint64_t s0;       /* number of the first sample, from the stream's first, at `sr`; holes count     */
    uint32_t n, sr;    /* samples, Hz; of a sensor us, 1000000. n stays at its largest beyond that     */
    uint32_t ch;       /* channels in the payload                                                       */
    char dt[12];       /* "f32le", "s16le", "msgpack", "" for an empty payload                          */
    uint32_t shp[4];   /* shape of the payload                                                          */
    uint32_t n_shp;
    int64_t tm;        /* CLOCK_MONOTONIC ns at which sample s0 was captured                            */
    int64_t tw;        /* the same in UTC ns since 1970 (dsp/wall.h); clk "src": as the source says     */
    uint32_t te;       /* estimated error of tm, ns                                                     */
    char clk[8];       /* whose clock: "sys", "ptp", "src"                                              */
    int64_t cap, enq, inf, pub; /* ns after tm: arrived, taken by the engine, out of the model, published */
    char mdl[96];      /* "name@digest12"                                                               */
    char st[16];       /* where it ran: "cpu", "cuda:0"                                                 */
    struct wire_lost lost;
    unsigned flags;    /* enum wire_flag; names in an array on the wire                                 */
};

/* Write the header's bytes. Gives their number, or 0 when `room` is too small (WIRE_HEADER_MAX always is enough). */
size_t wire_encode(const struct wire_header *header, uint8_t *bytes, size_t room);

/* Read a header. Unknown keys are passed over and missing ones are zero, so that old clients read new daemons; a text longer
 * than its field is cut. False for bytes that are not such a map, whose v is not 1, that end early, or with a text that
 * isn't plain (dsp/text.h). */
bool wire_decode(struct wire_header *header, const uint8_t *bytes, size_t size);

/* Write "audio/<node>/<pipeline>/<channel>/<model>/" (channel < 0: "<kind>/<node>/"). Gives the length, without the NUL. */
size_t wire_topic(char topic[WIRE_TOPIC_MAX], const char *kind, const char *node, const char *pipeline, int channel,
                  const char *model);

/* Bytes being written: MessagePack into a fixed buffer. Once something does not fit, `full` is set and nothing more is written. */
struct wire_bytes {
    uint8_t *at;
    size_t n, room;
    bool full;
};
void wire_put_map(struct wire_bytes *bytes, size_t n);   /* n keys and values follow */
void wire_put_array(struct wire_bytes *bytes, size_t n); /* n values follow          */
void wire_put_text(struct wire_bytes *bytes, const char *text);
void wire_put_pair(struct wire_bytes *bytes, const char *key, const char *text);
void wire_put_uint(struct wire_bytes *bytes, uint64_t value);
void wire_put_number(struct wire_bytes *bytes, double value);
void wire_put_bool(struct wire_bytes *bytes, bool value);

/* Print one MessagePack value as one line of JSON without the newline (NaN and inf as null, bytes as hex). False, with part of
 * it printed, when the bytes are not a whole value or nest deeper than 16. */
bool wire_json(FILE *file, const uint8_t *bytes, size_t size);
/* Print text in quotes for JSON; bytes that aren't UTF-8 come out as U+FFFD, control characters escaped. */
void wire_json_text(FILE *file, const void *text, size_t size);

#endif
