/* SPDX-License-Identifier: MIT */
#ifndef DSP_READINGS_H
#define DSP_READINGS_H

/* A sensor's lines -> readings: named fields in the order asked for, and when the source says they were measured.
 *
 *   CSV         a line that names the fields is a header and says their columns; other columns are passed over. A header that
 *               has a field's name, or the time's, twice is a bad line, as is what follows it. Separated by comma,
 *               semicolon or tab, as the first line is, but not between quotes. Without a header the columns are the fields
 *               in their order, with the time in front where there is one column more
 *   JSON lines  {"t": 1.5, "ax": 0.1, "ay": -2, "az": 9.8}; other keys, and what is inside them, are passed over
 *
 * The time is in the column or key `time`, or t, time or timestamp: seconds, or milli-, micro- or nanoseconds where the number
 * is too large for a date in seconds (1e11 and more), or a date as 2026-11-22T09:30:00.25Z (+01, +0130, +01:30). A byte order
 * mark before a line is passed over. Any bytes at all are answered. Nothing is allocated after readings_create; one thread. */

#include <stdbool.h>
#include <stddef.h>

enum { READING_FIELDS = 64 };

enum reading_format { READING_CSV, READING_JSONL };

struct readings_options {
    enum reading_format format;
    const char *fields; /* "ax,ay,az", 1..READING_FIELDS names                   */
    const char *time;   /* the time's name; NULL or "": t, time or timestamp     */
    double least, most; /* of a value; both 0: any                               */
};

struct reading {
    bool timed;
    bool missing;                  /* a field has no value: the values mean nothing */
    double time;                   /* s, by the source's clock                      */
    float values[READING_FIELDS];  /* (fields)                                      */
};

enum reading_status {
    READING_OK,
    READING_NONE,    /* nothing to read: blank, a comment (#), a header       */
    READING_MISSING, /* a field has no value: empty, null, NaN; the time is there if timed */
    READING_RANGE,   /* a value below least or above most                      */
    READING_BAD      /* not such a line                                        */
};

struct readings;

/* Keeps nothing of the options' texts. NULL when memory runs out, or for no fields, too many or one twice. */
struct readings *readings_create(const struct readings_options *options);
void readings_destroy(struct readings *readings); /* NULL is fine */
int readings_fields(const struct readings *readings);

enum reading_status readings_parse(struct readings *readings, const char *line, size_t n, struct reading *reading);

/* After RANGE or BAD: what was wrong, as "ax is no number"; borrowed until the next line. */
const char *readings_fault(const struct readings *readings);
/* The beginning of a line, fit to be printed: text (size), with a . for what is not. */
void readings_quote(char *text, size_t size, const char *line, size_t n);

#endif
