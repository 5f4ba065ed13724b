/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_FIT_H
#define DAEMON_FIT_H

#include "config/config.h"
#include "model/ssm.h"

/* Does a pipeline's model take what its source gives, and do its sinks and settings take what the model gives? Asked by the
 * daemon's start and by `ssm check`. 0, or -1 with *err (78). */
int fit_pipeline(const struct config_pipeline *pipeline, const struct ssm_engine *engine, struct ssm_error *err);
/* Can `smaller` stand in for the pipeline's model? The same. */
int fit_fallback(const struct config_pipeline *pipeline, const struct ssm_engine *engine, const struct ssm_engine *smaller,
                 struct ssm_error *err);
/* Does this pipeline's live sound, at least `before` streams being there already, still find room in what `capacity:` tells? What a
 * file or device has in channels shows only at the start. The same, with code 75. */
int fit_capacity(const struct config *config, const struct config_pipeline *pipeline, int *before, struct ssm_error *err);

/* Does the format of its file sink `sink` take what comes at `rate` Hz (0: not known, and then it does) in so many channels? The
 * same, with code 73. */
int fit_file(const struct config_sink *sink, int rate, int channels, struct ssm_error *err);

/* Put in front of *err where the configuration names what it is about. -1. */
int fit_blame(const struct config_place *at, struct ssm_error *err);

#endif
