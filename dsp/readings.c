/* SPDX-License-Identifier: MIT */
#include "dsp/readings.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NAME = 64, COLUMNS = 1024, DEPTH = 16 };
static const double TIME_MOST = 1e11; /* s: 3,000 years */
enum { PLACE_NONE = -1, PLACE_TIME = -2 }; /* else a field's index */

/* A line's part. */
struct span {
    const char *at;
    size_t n;
};

enum layout {
    LAYOUT_OPEN,
    LAYOUT_NAMED,
    LAYOUT_UNKNOWN
}; /* of CSV: no header yet, a header, one that lacks a field or has it twice */

struct readings {
    struct readings_options options;
    int n;
    char names[READING_FIELDS][NAME], time[NAME];
    char separator;
    enum layout layout;
    int columns;
    short place[COLUMNS]; /* of each column of CSV with a header */
    char fault[160];
};

/* What a line has shown so far. */
struct found {
    struct reading *reading;
    unsigned long long values; /* a bit a field with a value */
    enum reading_status status;
};

static enum reading_status fault(struct readings *r, enum reading_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static enum reading_status fault(struct readings *r, enum reading_status status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(r->fault, sizeof r->fault, format, values);
    va_end(values);
    return status;
}

static bool is(struct span span, const char *text)
{
    return span.n == strlen(text) && memcmp(span.at, text, span.n) == 0;
}

/* The field of this name; none: r->n. */
static int find_field(const struct readings *r, struct span name)
{
    int i = 0;
    while (i < r->n && !is(name, r->names[i])) {
        i++;
    }
    return i;
}

static bool read_names(struct readings *r, const char *fields)
{
    for (const char *at = fields; *at; at += *at == ',') {
        size_t n = strcspn(at, ",");
        if (r->n == READING_FIELDS || n == 0 || n >= NAME || find_field(r, (struct span){at, n}) < r->n) {
            return false;
        }
        memcpy(r->names[r->n++], at, n);
        at += n;
    }
    return r->n > 0;
}

struct readings *readings_create(const struct readings_options *options)
{
    struct readings *r = calloc(1, sizeof *r);
    bool fine = r && read_names(r, options->fields) && (!options->time || strlen(options->time) < NAME);
    if (!fine) {
        free(r);
        return NULL;
    }
    r->options = *options;
    snprintf(r->time, sizeof r->time, "%s", options->time ? options->time : "");
    r->options.fields = r->options.time = NULL; /* the caller's */
    return r;
}

void readings_destroy(struct readings *r)
{
    free(r);
}

int readings_fields(const struct readings *r)
{
    return r->n;
}

const char *readings_fault(const struct readings *r)
{
    return r->fault;
}

void readings_quote(char *text, size_t size, const char *line, size_t n)
{
    n = n < size - 1 ? n : size - 1;
    for (size_t i = 0; i < n; i++) {
        text[i] = line[i] >= ' ' && line[i] < 0x7f ? line[i] : '.';
    }
    text[n] = '\0';
}

/* Whose name is it? */
static int find_place(const struct readings *r, struct span name)
{
    static const char *const times[] = {"t", "time", "timestamp"};
    int field = find_field(r, name);
    if (field < r->n) {
        return field;
    }
    for (int i = 0; i < 3 && !r->time[0]; i++) {
        if (is(name, times[i])) {
            return PLACE_TIME;
        }
    }
    return r->time[0] && is(name, r->time) ? PLACE_TIME : PLACE_NONE;
}

/* A number that fills all of the span. */
static bool read_number(struct span span, double *number)
{
    char text[64], *end;
    if (span.n == 0 || span.n >= sizeof text || memchr(span.at, '\0', span.n)) {
        return false;
    }
    memcpy(text, span.at, span.n);
    text[span.n] = '\0';
    *number = strtod(text, &end);
    return *end == '\0' && text[strspn(text, "+-0123456789.eE")] == '\0';
}

/* Digits where `shape` has 0, and its other letters as they are; what follows doesn't count. */
static bool has_shape(const char *text, const char *shape)
{
    while (*shape && (*shape == '0' ? *text >= '0' && *text <= '9' : *text == *shape)) {
        text++;
        shape++;
    }
    return !*shape;
}

/* Z, +01, +0130 or +01:30, in seconds; nothing is Z. */
static bool read_zone(const char *zone, double *seconds)
{
    static const char *const shapes[] = {"+00", "+0000", "+00:00"};
    int hours = 0, minutes = 0, end = 0;
    bool there = *zone && strcmp(zone, "Z") != 0, fine = !there;
    for (size_t i = 0; i < 3 && !fine; i++) {
        fine = (*zone == '+' || *zone == '-') && has_shape(zone + 1, shapes[i] + 1) && !zone[strlen(shapes[i])];
    }
    if (fine && there) {
        sscanf(zone + 1, "%2d%n", &hours, &end);
        sscanf(zone + 1 + end + (zone[1 + end] == ':'), "%2d", &minutes);
    }
    *seconds = (*zone == '-' ? -60.0 : 60.0) * (60 * hours + minutes);
    return fine && hours < 24 && minutes < 60;
}

/* 2026-11-22T09:30:00.25Z, +01:00 in place of Z, a blank in place of T. Only days there are. */
static bool read_date(struct span span, double *seconds)
{
    char text[48], *end = text + 19;
    struct tm tm = {0};
    double fraction = 0, zone;
    if (span.n < 19 || span.n >= sizeof text) {
        return false;
    }
    memcpy(text, span.at, span.n);
    text[span.n] = '\0';
    text[10] = text[10] == ' ' ? 'T' : text[10];
    if (!has_shape(text, "0000-00-00T00:00:00")) {
        return false;
    }
    sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour, &tm.tm_min, &tm.tm_sec);
    for (double place = 0.1; *end && strchr(".0123456789", *end) && (end == text + 19) == (*end == '.'); end++) {
        fraction += *end == '.' ? 0 : place * (*end - '0');
        place /= *end == '.' ? 1 : 10;
    }
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    int leap = tm.tm_sec == 60;
    tm.tm_sec -= leap;
    struct tm there = tm;
    double since = (double)timegm(&there) + leap + fraction; /* what there isn't has become another day or hour */
    bool fine = there.tm_mon == tm.tm_mon && there.tm_mday == tm.tm_mday && there.tm_hour == tm.tm_hour &&
                there.tm_min == tm.tm_min && there.tm_sec == tm.tm_sec && read_zone(end, &zone);
    *seconds = fine ? since - zone : 0;
    return fine;
}

/* Dates count seconds since 1970: 1.8e9. What is a thousand times as much, and so on, is in smaller units. */
static double in_seconds(double time)
{
    double size = fabs(time);
    return size < 1e11 ? time : size < 1e14 ? time * 1e-3 : size < 1e17 ? time * 1e-6 : time * 1e-9;
}

static bool read_time(struct span span, struct reading *reading)
{
    double number;
    if (read_number(span, &number)) {
        reading->time = in_seconds(number);
    } else if (!read_date(span, &reading->time)) {
        return false;
    }
    reading->timed = fabs(reading->time) <= TIME_MOST;
    return reading->timed;
}

static bool is_missing(struct span span)
{
    return span.n == 0 || is(span, "null") || is(span, "NaN") || is(span, "nan") || is(span, "NA");
}

/* One value into its place. The first thing wrong with a line counts. */
static void take_value(struct readings *r, struct found *found, int place, struct span span)
{
    double number = 0;
    if (place == PLACE_NONE || found->status != READING_OK) {
        return;
    }
    if (place == PLACE_TIME) {
        if (!read_time(span, found->reading)) {
            found->status = fault(r, READING_BAD, "the time is neither seconds nor a date");
        }
    } else if (is_missing(span)) {
        found->values &= ~(1ull << place);
    } else if (!read_number(span, &number)) {
        found->status = fault(r, READING_BAD, "%s is no number", r->names[place]);
    } else if ((r->options.least != 0 || r->options.most != 0) &&
               !(number >= r->options.least && number <= r->options.most)) {
        found->status = fault(r, READING_RANGE, "%s is %g, out of %g to %g", r->names[place], number, r->options.least,
                              r->options.most);
    } else if (!isfinite((float)number)) {
        found->status = fault(r, READING_RANGE, "%s is too large", r->names[place]);
    } else {
        found->reading->values[place] = (float)number;
        found->values |= 1ull << place;
    }
}

static enum reading_status conclude(const struct readings *r, const struct found *found)
{
    unsigned long long all = r->n == 64 ? ~0ull : (1ull << r->n) - 1;
    found->reading->missing = found->status == READING_OK && found->values != all;
    return found->reading->missing ? READING_MISSING : found->status;
}

static struct span trim(struct span span)
{
    while (span.n > 0 && (*span.at == ' ' || *span.at == '\t')) {
        span.at++;
        span.n--;
    }
    while (span.n > 0 && (span.at[span.n - 1] == ' ' || span.at[span.n - 1] == '\t')) {
        span.n--;
    }
    return span;
}

/* ---- CSV ---- */

/* Of a cell that begins with a quote, how long it is to the one that ends it, "" being one inside; 0: none ends it. */
static size_t measure_quoted(struct span span)
{
    size_t i = 1;
    while (i < span.n && (span.at[i] != '"' || (i + 1 < span.n && span.at[i + 1] == '"'))) {
        i += span.at[i] == '"' ? 2 : 1;
    }
    return i < span.n ? i + 1 : 0;
}

/* The next cell, and *left behind it; quotes around it are taken off, and what separates may stand between them. False at the
 * end. */
static bool next_cell(const struct readings *r, struct span *left, struct span *cell)
{
    if (!left->at) {
        return false;
    }
    size_t blank = 0;
    while (blank < left->n && left->at[blank] == ' ') {
        blank++;
    }
    struct span rest = {left->at + blank, left->n - blank};
    size_t passed = rest.n > 0 && *rest.at == '"' ? measure_quoted(rest) : 0;
    passed += passed > 0 ? blank : 0;
    const char *stop = memchr(left->at + passed, r->separator, left->n - passed);
    cell->at = left->at;
    cell->n = stop ? (size_t)(stop - left->at) : left->n;
    *left = stop ? (struct span){stop + 1, left->n - cell->n - 1} : (struct span){0};
    *cell = trim(*cell);
    if (cell->n > 1 && *cell->at == '"' && cell->at[cell->n - 1] == '"') {
        *cell = (struct span){cell->at + 1, cell->n - 2};
    }
    return true;
}

/* Of n columns the first that has the name of a later one, which is *twin, where one of the two is to be taken; else n. */
static int find_twin(const short *place, const struct span *names, int n, int *twin)
{
    for (int i = 0; i < n; i++) {
        for (int k = i + 1; k < n && place[i] != PLACE_NONE; k++) {
            if (place[k] == place[i] && names[k].n == names[i].n && memcmp(names[k].at, names[i].at, names[i].n) == 0) {
                *twin = k;
                return i;
            }
        }
    }
    return n;
}

/* Is it a header, READING_NONE? Then learn the columns' places. OK: it is none. */
static enum reading_status read_header(struct readings *r, struct span line)
{
    unsigned long long seen = 0;
    struct span names[COLUMNS];
    short place[COLUMNS];
    int n = 0, twin;
    for (; n < COLUMNS && next_cell(r, &line, &names[n]); n++) {
        place[n] = (short)find_place(r, names[n]);
        seen |= place[n] >= 0 ? 1ull << place[n] : 0;
    }
    if (seen != (r->n == 64 ? ~0ull : (1ull << r->n) - 1)) {
        return READING_OK;
    }
    int first = find_twin(place, names, n, &twin);
    if (first < n) {
        r->layout = LAYOUT_UNKNOWN; /* whatever was named before */
        return fault(r, READING_BAD, "the header names %.*s twice, as columns %d and %d", (int)names[first].n,
                     names[first].at, first + 1, twin + 1);
    }
    memcpy(r->place, place, (size_t)n * sizeof *place);
    r->columns = n;
    r->layout = LAYOUT_NAMED;
    return READING_NONE;
}

/* Without a header: the fields in their order, and perhaps the time in front. */
static bool assume_columns(struct readings *r, struct span line)
{
    int n = 0, first = 0;
    for (struct span cell; n <= r->n + 1 && next_cell(r, &line, &cell); n++) {
    }
    if (n != r->n && n != r->n + 1) {
        return false;
    }
    if (n == r->n + 1) {
        r->place[first++] = PLACE_TIME;
    }
    for (int i = 0; i < r->n; i++) {
        r->place[first + i] = (short)i;
    }
    r->columns = n;
    return true;
}

/* Words, and perhaps cells that are empty: a header, whether it names our fields or not. */
static bool is_words(const struct readings *r, struct span line)
{
    double number;
    int words = 0;
    for (struct span cell; next_cell(r, &line, &cell); words += cell.n > 0) {
        if (cell.n > 0 && (is_missing(cell) || read_number(cell, &number) || read_date(cell, &number))) {
            return false;
        }
    }
    return words > 0;
}

static void choose_separator(struct readings *r, struct span line)
{
    r->separator = memchr(line.at, ';', line.n) ? ';' : memchr(line.at, '\t', line.n) ? '\t' : ',';
}

/* Know the columns, or say why not. */
static enum reading_status find_columns(struct readings *r, struct span line)
{
    char before = r->separator;
    choose_separator(r, line);
    bool words = is_words(r, line);
    enum reading_status header = words ? read_header(r, line) : READING_OK;
    if (header != READING_OK) {
        return header;
    }
    r->separator = before ? before : r->separator;
    r->layout = words && r->layout == LAYOUT_OPEN ? LAYOUT_UNKNOWN : r->layout;
    if (r->layout == LAYOUT_UNKNOWN) {
        char names[80] = "";
        for (int i = 0; i < r->n; i++) {
            size_t n = strlen(names);
            snprintf(names + n, sizeof names - n, "%s%s", i > 0 ? "," : "", r->names[i]);
        }
        return fault(r, READING_BAD, "no header has named all of %s", names);
    }
    if (r->layout == LAYOUT_OPEN && !assume_columns(r, line)) {
        return fault(r, READING_BAD, "has neither %d columns nor %d, and no header named them", r->n, r->n + 1);
    }
    return READING_OK;
}

static enum reading_status parse_csv(struct readings *r, struct span line, struct found *found)
{
    enum reading_status status = find_columns(r, line);
    int n = 0;
    if (status != READING_OK) {
        return status;
    }
    for (struct span cell; n < r->columns && next_cell(r, &line, &cell); n++) {
        take_value(r, found, r->place[n], cell);
    }
    if (n < r->columns && found->status == READING_OK) {
        return fault(r, READING_BAD, "ends after %d of %d columns", n, r->columns);
    }
    return conclude(r, found);
}

/* ---- JSON: a cursor over one flat object; what is nested is passed over. ---- */

static void skip_space(struct span *in)
{
    while (in->n > 0 && memchr(" \t\r\n", *in->at, 4)) {
        in->at++;
        in->n--;
    }
}

static bool accept(struct span *in, char c)
{
    skip_space(in);
    if (in->n == 0 || *in->at != c) {
        return false;
    }
    in->at++;
    in->n--;
    return true;
}

/* Behind the opening quote: what is inside, escapes as they stand. */
static bool read_string(struct span *in, struct span *inside)
{
    inside->at = in->at;
    for (size_t i = 0; i < in->n; i++) {
        if (in->at[i] == '\\') {
            i++;
        } else if (in->at[i] == '"') {
            inside->n = i;
            *in = (struct span){in->at + i + 1, in->n - i - 1};
            return true;
        }
    }
    return false;
}

static bool read_word(struct span *in, struct span *word)
{
    size_t n = 0;
    while (n < in->n && !memchr(",]} \t\r\n:\"[{", in->at[n], 11)) {
        n++;
    }
    *word = (struct span){in->at, n};
    *in = (struct span){in->at + n, in->n - n};
    return n > 0;
}

static bool skip_value(struct span *in, int depth);

/* Behind the opening bracket. */
static bool skip_entries(struct span *in, char close, int depth)
{
    struct span key;
    if (depth == 0) {
        return false;
    }
    if (accept(in, close)) {
        return true;
    }
    do {
        if (close == '}' && !(accept(in, '"') && read_string(in, &key) && accept(in, ':'))) {
            return false;
        }
        if (!skip_value(in, depth - 1)) {
            return false;
        }
    } while (accept(in, ','));
    return accept(in, close);
}

static bool skip_value(struct span *in, int depth)
{
    struct span inside;
    if (accept(in, '"')) {
        return read_string(in, &inside);
    }
    if (accept(in, '{')) {
        return skip_entries(in, '}', depth);
    }
    if (accept(in, '[')) {
        return skip_entries(in, ']', depth);
    }
    return read_word(in, &inside);
}

/* One key and its value. */
static bool take_member(struct readings *r, struct span *in, struct found *found)
{
    struct span key, value;
    if (!accept(in, '"') || !read_string(in, &key) || !accept(in, ':')) {
        return false;
    }
    int place = find_place(r, key);
    skip_space(in);
    bool text = in->n > 0 && *in->at == '"', plain = in->n > 0 && !memchr("\"{[", *in->at, 3);
    if (place == PLACE_NONE || (!plain && !(text && place == PLACE_TIME))) {
        if (place != PLACE_NONE && found->status == READING_OK) {
            found->status = fault(r, READING_BAD, "%s is no number", place >= 0 ? r->names[place] : "the time");
        }
        return skip_value(in, DEPTH);
    }
    bool whole = text ? accept(in, '"') && read_string(in, &value) : read_word(in, &value);
    if (whole) {
        take_value(r, found, place, value);
    }
    return whole;
}

static enum reading_status parse_json(struct readings *r, struct span line, struct found *found)
{
    bool fine = accept(&line, '{'), empty = fine && accept(&line, '}');
    if (fine && !empty) {
        do {
            fine = take_member(r, &line, found);
        } while (fine && accept(&line, ','));
        fine = fine && accept(&line, '}');
    }
    skip_space(&line);
    return fine && line.n == 0 ? conclude(r, found) : fault(r, READING_BAD, "not an object of JSON");
}

enum reading_status readings_parse(struct readings *r, const char *line, size_t n, struct reading *reading)
{
    static const char mark[] = "\xef\xbb\xbf"; /* of UTF-8, in front of what spreadsheets save */
    size_t marked = n >= 3 && memcmp(line, mark, 3) == 0 ? 3 : 0;
    struct span whole = {line + marked, n - marked}, span = trim(whole);
    struct found found = {.reading = reading, .status = READING_OK};
    *reading = (struct reading){0};
    if (span.n == 0 || *span.at == '#') {
        return READING_NONE;
    }
    bool csv = r->options.format == READING_CSV; /* of which a tab at either end may be a cell's */
    return csv ? parse_csv(r, whole, &found) : parse_json(r, span, &found);
}
