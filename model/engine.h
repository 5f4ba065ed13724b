/* SPDX-License-Identifier: MIT */
#ifndef MODEL_ENGINE_H
#define MODEL_ENGINE_H

/* For tests: ssm_open with the devices given instead of found by options->device. */

#include "model/backend_fleet.h"

struct ssm_engine *engine_open_on(const char *model, const struct ssm_options *options, const struct fleet_device *devices,
                                  int n, struct ssm_error *err);

#endif
