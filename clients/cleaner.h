/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_CLEANER_H
#define CLIENTS_CLEANER_H

/* A recording through a model, in constant memory: any rate, any number of channels, each channel a stream of its own.
 *
 * What comes out has the rate, the channels and the length of what went in, aligned to the sample: the model's delay is
 * taken off the front, and cleaner_finish pushes the end out with silence. Resampling to the model's rate and back happens
 * inside. One thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "model/ssm.h"

struct cleaner;

/* Takes n samples of every channel, interleaved. Gives 0 or a sysexits code, which ends the push that called it. */
typedef int cleaner_write(void *context, const float *samples, size_t n);

struct cleaner_options {
    const char *model, *device, *precision; /* as in ssm_open                                                */
    int rate, channels;         /* of the recording                                                         */
    int threads;                /* 0 = all cores for the scan, one for hop by hop                            */
    bool step;                  /* hop by hop with ssm_step, as the daemon does it, instead of ssm_scan      */
    float strength_db;          /* attenuate by at most so many dB, by leaving so much of the recording in; INFINITY = no limit */
    cleaner_write *write;
    void *context;
};

struct cleaner_counts {
    uint64_t taken, given; /* samples of each channel in and out                                              */
    uint64_t blown;        /* hops for which the model gave NaN; they are silent                              */
};

/* Gives the cleaner, or NULL with *err filled in: no such model, not a denoiser, device unavailable, memory. */
struct cleaner *cleaner_create(const struct cleaner_options *options, struct ssm_error *err);
void cleaner_destroy(struct cleaner *cleaner); /* NULL is fine */

const struct ssm_info *cleaner_describe(const struct cleaner *cleaner);
const struct ssm_engine *cleaner_engine(const struct cleaner *cleaner);
const struct cleaner_counts *cleaner_counts(const struct cleaner *cleaner);

/* Take in n samples of every channel, interleaved and finite, and write what is ready. Gives 0 or what write gave. */
int cleaner_push(struct cleaner *cleaner, const float *samples, size_t n);
/* The recording ends here: write the rest. Gives 0 or what write gave. */
int cleaner_finish(struct cleaner *cleaner);

/* Everything the next part of the recording needs to go on as if it had never been cut: the streams' states, the samples
 * of a hop begun, and how many samples are still owed. Used instead of cleaner_finish, only at the model's own rate (a
 * resampler's inside can't be saved) and without strength_db. Save gives 0, or -1 with *err; load the same, and belongs before the first push. */
int cleaner_save(const struct cleaner *cleaner, FILE *file, struct ssm_error *err);
int cleaner_load(struct cleaner *cleaner, FILE *file, struct ssm_error *err);

#endif
