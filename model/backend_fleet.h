/* SPDX-License-Identifier: MIT */
#ifndef MODEL_BACKEND_FLEET_H
#define MODEL_BACKEND_FLEET_H

/* Several devices as one backend, with the processor standing by for those that fail.
 *
 * Slot s lives on device s % n. The devices step their parts of a batch at the same time, each on a thread of its own.
 * The standby is a CPU backend with room for every slot, opened with the fleet: it holds the copies of the states, so
 * going over to it is a change of address. A copy is made after steps, of streams whose copy is older than half of
 * options->copy_s, a part of them each step: beside the following steps where the device can (copy_begin), and then
 * brought to the standby by a thread of their own; else for at most 5 % of a hop's time. With more streams than that
 * allows, copies get older than copy_s.
 *
 * When a device fails,
 *   in a step   its part of the batch is void (backend_fleet_parts says which); the others' is not
 *   in a scan   the same hops run again on the standby, from the copy made right before them: nothing is void
 *   in a copy   nothing is void; the copy from before stays
 *   in a put    the standby has the state: nothing is void
 *   in a get    that one call is void
 * and the device is never called again but to close it. Its streams go on with their next hop on the standby, from the
 * copy; that hop's elapsed time is longer by what passed since the copy was made, the void hops among it. The standby
 * never fails. A fault in a kernel ends CUDA for the whole process: all GPUs then fail in the same step, each for
 * itself; one that hangs fails alone. A device that neither answers nor fails holds up the step: its backend gives up
 * after options->patience_s.
 *
 * Threads: as every backend, one caller; but calls of one device's backend come from changing threads, never two at
 * once. */

#include "model/backend.h"

enum { FLEET_DEVICES = 16 };

struct fleet_device {
    const struct backend_ops *ops;
    char name[24]; /* options->device for its open: "cuda:1" */
};

/* Gives a backend over n devices, or NULL and an error when one of them, or the standby, can't be opened.
 * options->copy_s below 0: no standby; a failed device's hops are void for ever. Borrows the model. */
struct backend *backend_fleet_open(const struct model *model, const struct ssm_options *options,
                                   const struct fleet_device *devices, int n, struct ssm_error *err);

/* Makes one device's parts of a step: of the slots s with s % shares == share, each called s / shares in *hops, which
 * has room for them all. Called for each device once a step, by its thread, at the same time as the others'. Gives how
 * many. */
typedef int fleet_share(void *arg, int share, int shares, struct backend_hop *hops);

/* backend_ops' step, with the parts made by those who then step them. 0, or -1: some parts are void. */
int backend_fleet_step(struct backend *backend, fleet_share *share, void *arg);

/* After a step: a device's parts, and whether they are void; NULL past the last device. */
const struct backend_hop *backend_fleet_parts(const struct backend *backend, int device, int *n, bool *voided);

/* The device that a slot's stream runs on; -1: the standby. */
int backend_fleet_device(const struct backend *backend, int slot);

/* What went wrong so far; lives as long as the backend. */
const struct ssm_health *backend_fleet_health(const struct backend *backend);
/* Device i; false past the end. */
bool backend_fleet_describe(const struct backend *backend, int i, struct ssm_device_info *info);

#endif
