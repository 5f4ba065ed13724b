/* SPDX-License-Identifier: MIT */
#ifndef MODEL_STATE_H
#define MODEL_STATE_H

/* A stream's state as bytes, the same on every device and processor. All little-endian:
 *
 *    0  8  "SSMSTATE"            16  8  digest of the model's file (xxh3)
 *    8  4  version, 1            24  8  hash of the layers' state sizes
 *   12  4  header bytes, 48      32  8  floats that follow
 *                                40  8  xxh3 of the floats, seeded with that of bytes 0..39
 *   48  .  the layers' states in order, without the padding between them, fp32 */

#include "model/model.h"

size_t state_bytes(const struct model *model);

/* state (model->state) -> bytes (state_bytes). */
void state_encode(const struct model *model, const float *state, unsigned char *bytes);

/* bytes -> state. 0, or -1 and an error in words when the bytes are of another model or version, cut short, damaged, or
 * hold NaN or inf; state is then undefined. */
int state_decode(const struct model *model, const unsigned char *bytes, size_t size, float *state,
                 struct ssm_error *err);

#endif
