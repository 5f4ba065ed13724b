/* SPDX-License-Identifier: MIT */
#ifndef MODEL_BACKEND_H
#define MODEL_BACKEND_H

/* What runs a model: it owns the weights on its device and the streams' states. The engine above it owns slots,
 * argument checks, NaN in the output, and state files; so a backend trusts its arguments. One file, one `struct
 * backend_ops`. */

#include "model/model.h"

/* One stream's part of a step, or a piece of a recording. */
struct backend_hop {
    int slot;
    const float *in; /* (count, inputs)   NaN and inf count as 0                                    */
    float *out;      /* (count, outputs)                                                            */
    int count;
    const float
        *elapsed; /* (elapsed_count)  for the first hops; 1 after them. Not above 0 counts as 1, over 1e6 as 1e6 */
    int elapsed_count;
    bool *blown; /* set when out has NaN or inf, by a backend that `checks`; never cleared. NULL: don't tell */
};

/* When things happened in a device's last step, ns of CLOCK_MONOTONIC, in this order; and for how many ns it was busy, where
 * it can tell. All 0: it isn't measured. */
struct backend_spent {
    int64_t start, first; /* the device had its first rows */
    int64_t all, back;    /* it had all, and had given back the last */
    int64_t done;         /* the caller had them */
    int64_t device;
};

/* Every backend's own struct begins with this. */
struct backend {
    const struct backend_ops *ops;
    char device[64];
    size_t bytes, device_bytes; /* taken by open: all, and what of it is the device's own memory */
    int scan_hops; /* hops it likes in a scan call */
    bool checks;   /* it tells of NaN and inf      */
    bool blown;    /* set with any hop's; the caller clears it */
    bool lingers;  /* it failed, and may yet write to outputs of that call that lie within its reach */
    int copies;    /* states that copy_begin takes at once; 0: it has no copy_begin */
    /* Its owner's, or NULL: what he has to do while a device works. step calls it at most once, when the device has all of the
     * call; copy_begin and copy_end may be called in it, and nothing else. */
    void (*meanwhile)(void *arg);
    void *meanwhile_arg;
    struct backend_spent spent;
};

/* step, scan, state_get and state_put give 0, or -1 when the device failed: the call's outputs and the states of the
 * slots in it are then undefined, and a device that failed once goes on failing. The processor never does. */
struct backend_ops {
    const char *name; /* "cpu", "cuda" */
    /* Gives a backend with `options->streams` states, all zero; borrows the model. NULL and an error. */
    struct backend *(*open)(const struct model *model, const struct ssm_options *options, struct ssm_error *err);
    /* n different slots, each 1..max_hops hops. A slot's result is the same bits whatever the other hops are. */
    int (*step)(struct backend *backend, const struct backend_hop *hops, int n);
    /* One slot, 1..scan_hops hops, with all the device has. */
    int (*scan)(struct backend *backend, const struct backend_hop *hop);
    int (*state_get)(struct backend *backend, int slot, float *state);       /* (model->state) */
    int (*state_put)(struct backend *backend, int slot, const float *state); /* NULL: zeros   */
    /* Copies of states beside the steps, one begin at a time. begin reads 1..copies different slots as they are now, or behind
     * the step that is in progress, while later calls go on; end gives 1 and them, (n, model->state), the backend's until the
     * begin after the next; 0: not there yet, -1: the device failed. */
    int (*copy_begin)(struct backend *backend, const int *slots, int n);
    int (*copy_end)(struct backend *backend, const float **states);
    /* Hops that lie in this memory it may read and write where they are, until close: so it is never given back before. pinned:
     * another device that it was given to first has pinned it for all. 0, or -1: it has no use for it, and that is no failure.
     * NULL: no more of any, the memory behind it is another. The op itself may be NULL: no use. */
    int (*reach)(struct backend *backend, void *memory, size_t bytes, bool pinned);
    const char *(*fault)(const struct backend *backend); /* what happened, until close; NULL: nothing */
    void (*close)(struct backend *backend);              /* NULL is fine                              */
};

extern const struct backend_ops backend_cpu;

#endif
