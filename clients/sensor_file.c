/* SPDX-License-Identifier: MIT */
#include "clients/sensor_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "daemon/labels.h"
#include "model/refuse.h"

enum { LINE = 1 << 16, INTERVALS = 1024 };

struct sensor_file {
    FILE *file;
    struct readings *readings;
    struct cadence *cadence;
    size_t values; /* in a hop */
    bool ended;
    struct sensor_file_counts counts;
    double last, intervals[INTERVALS]; /* s, between the first readings in order */
    int n_intervals;
    bool timed; /* one of them was */
    char line[LINE];
};

static int open_readings(struct sensor_file *file, const struct sensor_file_options *options,
                         const struct ssm_engine *engine, struct ssm_error *err)
{
    const struct ssm_info *info = ssm_describe(engine);
    char own[LABELS_FIELDS_MAX];
    const char *fields = options->fields != NULL ? options->fields : labels_fields(engine, own) ? own : NULL;
    if (fields == NULL) {
        return refuse(err, EX_USAGE, "the model %s doesn't name its %d channels; name the columns with --fields", info->name,
                      info->channels);
    }
    file->readings = readings_create(&(struct readings_options){.format = options->format, .fields = fields});
    if (file->readings == NULL || readings_fields(file->readings) != info->channels) {
        return refuse(err, EX_USAGE, "the fields %.200s are not %d different names, as many as %s has channels", fields,
                      info->channels, info->name);
    }
    file->values = (size_t)info->inputs;
    file->cadence = cadence_create(&(struct cadence_options){
        .channels = info->channels, .hop = info->hop, .model_rate = info->rate, .rate = options->rate});
    return file->cadence != NULL ? 0 : refuse_memory(err);
}

struct sensor_file *sensor_file_open(const struct sensor_file_options *options, const struct ssm_engine *engine,
                                     struct ssm_error *err)
{
    struct sensor_file *file = calloc(1, sizeof *file);
    if (file == NULL) {
        refuse_memory(err);
        return NULL;
    }
    if (open_readings(file, options, engine, err) != 0) {
        goto fail;
    }
    file->file = strcmp(options->path, "-") == 0 ? stdin : fopen(options->path, "rbe");
    if (file->file == NULL) {
        refuse(err, EX_NOINPUT, "%s: %s", options->path, strerror(errno));
        goto fail;
    }
    return file;
fail:
    sensor_file_close(file);
    return NULL;
}

void sensor_file_close(struct sensor_file *file)
{
    if (file != NULL) {
        if (file->file != NULL && file->file != stdin) {
            fclose(file->file);
        }
        readings_destroy(file->readings);
        cadence_destroy(file->cadence);
        free(file);
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

const struct sensor_file_counts *sensor_file_counts(struct sensor_file *file)
{
    qsort(file->intervals, (size_t)file->n_intervals, sizeof *file->intervals, by_size);
    file->counts.interval = file->n_intervals > 0 ? file->intervals[file->n_intervals / 2] : -1;
    return &file->counts;
}

static void note_time(struct sensor_file *file, double time)
{
    if (file->timed && time >= file->last && file->n_intervals < INTERVALS) {
        file->intervals[file->n_intervals++] = time - file->last;
    }
    file->timed = true;
    file->last = time;
}

static void count_bad(struct sensor_file *file, const char *why)
{
    struct sensor_file_counts *counts = &file->counts;
    if (counts->bad++ == 0) {
        counts->first_bad = counts->lines;
        snprintf(counts->why, sizeof counts->why, "%s", why);
        readings_quote(counts->quote, sizeof counts->quote, file->line, strlen(file->line));
    }
}

static void take_line(struct sensor_file *file, size_t n)
{
    struct reading reading;
    enum reading_status status = readings_parse(file->readings, file->line, n, &reading);
    if (status == READING_OK || status == READING_MISSING) {
        file->counts.readings += status == READING_OK;
        file->counts.missing += status == READING_MISSING;
        if (reading.timed) {
            note_time(file, reading.time);
        }
        file->counts.late += !cadence_push(file->cadence, &reading);
    } else if (status != READING_NONE) {
        count_bad(file, readings_fault(file->readings));
    }
}

/* Pass over the rest of a line. */
static void pass_rest(FILE *file)
{
    for (int c = 0; c != '\n' && c != EOF;) {
        c = fgetc(file);
    }
}

/* False at the end. */
static bool read_line(struct sensor_file *file)
{
    if (fgets(file->line, LINE, file->file) == NULL) {
        file->counts.error = ferror(file->file) ? errno : 0;
        return false;
    }
    size_t n = strlen(file->line);
    bool whole = n > 0 && file->line[n - 1] == '\n';
    file->counts.lines++;
    n -= whole;
    n -= n > 0 && file->line[n - 1] == '\r';
    file->line[n] = '\0';
    if (!whole && n == LINE - 1) {
        pass_rest(file->file);
        count_bad(file, "longer than 64 KiB");
    } else if (!whole && !feof(file->file)) {
        count_bad(file, "a NUL, where text should be");
    } else {
        take_line(file, n);
    }
    return true;
}

size_t sensor_file_read(struct sensor_file *file, float *values, float *elapsed, struct cadence_hop *hops, size_t n)
{
    size_t got = 0;
    while (got < n) {
        if (cadence_next(file->cadence, &hops[got])) {
            memcpy(values + got * file->values, hops[got].values, file->values * sizeof *values);
            elapsed[got] = hops[got].elapsed;
            hops[got++].values = NULL;
        } else if (file->ended) {
            break;
        } else if (!read_line(file)) {
            cadence_finish(file->cadence);
            file->ended = true;
        }
    }
    return got;
}
