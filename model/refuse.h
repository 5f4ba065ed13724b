/* SPDX-License-Identifier: MIT */
#ifndef MODEL_REFUSE_H
#define MODEL_REFUSE_H

#include "model/ssm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fill in an error: the sysexits code and one sentence. err may be NULL. Always -1, so that set-up code can say
 * `return refuse(err, 65, "...")`. */
int refuse(struct ssm_error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The one sentence for malloc's NULL, or by errno for a descriptor that was not to be had. */
int refuse_memory(struct ssm_error *err);

#ifdef __cplusplus
}
#endif

#endif
