/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_SENSOR_FILE_H
#define CLIENTS_SENSOR_FILE_H

/* A sensor's recording, CSV or JSON lines, as hops for a model with the time between them (dsp/readings.h, dsp/cadence.h),
 * a block at a time. One thread. */

#include <stddef.h>
#include <stdint.h>

#include "dsp/cadence.h"
#include "model/ssm.h"

struct sensor_file;

struct sensor_file_options {
    const char *path;   /* "-": standard input                                           */
    enum reading_format format;
    const char *fields; /* "ax,ay,az"; NULL: as the model names them                     */
    double rate;        /* readings a second where they carry no time; 0: the model's    */
};

struct sensor_file_counts {
    uint64_t lines, readings, missing, late, bad; /* bad: not read, too long or out of range */
    uint64_t first_bad;    /* its number, from 1  */
    int error;             /* errno's, where reading failed; 0: it came to the end */
    char why[160], quote[64]; /* of the first bad one */
    double interval;       /* s between readings with times: the median of the first 1024; below 0: not known */
};

/* NULL with *err: not there, or fields that are not as many as the model's channels. */
struct sensor_file *sensor_file_open(const struct sensor_file_options *options, const struct ssm_engine *engine,
                                     struct ssm_error *err);
void sensor_file_close(struct sensor_file *file); /* NULL is fine */

/* The next hops, at most n: values (n, hop, channels), elapsed (n), and where each is, hops (n), without their values. Gives
 * how many; fewer than n at the end. */
size_t sensor_file_read(struct sensor_file *file, float *values, float *elapsed, struct cadence_hop *hops, size_t n);

/* Once all is read. */
const struct sensor_file_counts *sensor_file_counts(struct sensor_file *file);

#endif
