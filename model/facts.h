/* SPDX-License-Identifier: MIT */
#ifndef MODEL_FACTS_H
#define MODEL_FACTS_H

/* What a configuration says of the model as a whole: its task, times and widths, and the names of what goes in and comes
 * out. Each gives 0, or -1 and an error; model_close frees what they took. */

#include "model/model.h"

/* Before the layers open: all that doesn't depend on them. */
int facts_read(struct model *model, struct spec config, struct ssm_error *err);

/* Behind the last layer, which gives `outputs` values: latency and labels, and whether all of it is the task's. */
int facts_finish(struct model *model, struct spec config, int outputs, struct ssm_error *err);

#endif
