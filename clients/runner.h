/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_RUNNER_H
#define CLIENTS_RUNNER_H

/* A recording into a model, in constant memory: any rate, any number of channels; rows of outputs come out a piece at a time.
 *
 * As many channels as the model takes make one stream: each channel its own for a model of one channel, all of them
 * together for a model of so many sensors. Channels are converted to the model's rate where the model takes one. All
 * streams go in lockstep. One thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "model/ssm.h"

struct runner;

/* `hops` more hops of every stream went through: runner_out holds what they gave until this returns. Gives 0 or a sysexits
 * code, which ends the push that called it. */
typedef int runner_take(void *context, size_t hops);

struct runner_options {
    const char *model, *device, *precision; /* as in ssm_open                                       */
    const char *task;   /* the model has to be made for: "denoise", "tag"                           */
    int rate, channels; /* of the recording; 0: what the model takes                                */
    int threads;        /* 0 = all cores for the scan, one for hop by hop                           */
    bool step;          /* hop by hop with ssm_step, as the daemon does it, instead of ssm_scan     */
    runner_take *take;
    void *context;
};

/* Gives the runner, or NULL with *err filled in: no such model, channels or a rate it can't take, device unavailable,
 * memory. */
struct runner *runner_create(const struct runner_options *options, struct ssm_error *err);
void runner_destroy(struct runner *runner); /* NULL is fine */

const struct ssm_info *runner_describe(const struct runner *runner);
const struct ssm_engine *runner_engine(const struct runner *runner);
int runner_streams(const struct runner *runner);
size_t runner_block(const struct runner *runner);   /* samples of a channel at the model's rate that `take` is given at most */
uint64_t runner_blown(const struct runner *runner); /* hops for which the model gave NaN; they are zeros */

/* Take in n samples of every channel, interleaved and finite, or as many of silence for NULL. Gives 0 or what `take` gave. */
int runner_push(struct runner *runner, const float *samples, size_t n);
/* One stream alone, in whole hops at the model's rate with their times: values (hops, hop, channels), elapsed (hops) as in
 * ssm_scan. Not beside runner_push. Gives 0 or what `take` gave. */
int runner_push_hops(struct runner *runner, const float *values, const float *elapsed, size_t hops);

/* Inside `take`: what stream k's hops gave (hops, outputs). */
const float *runner_out(const struct runner *runner, int k);

/* Between pushes: samples of a hop begun, at the model's rate. */
size_t runner_fill(const struct runner *runner);
/* The hop begun and the state of every stream, to go on from in another runner for the same recording and model at the
 * model's own rate. Load wants as many samples as runner_fill was. 0, or -1 with *err. */
int runner_save(const struct runner *runner, FILE *file, struct ssm_error *err);
int runner_load(struct runner *runner, size_t fill, FILE *file, struct ssm_error *err);

#endif
