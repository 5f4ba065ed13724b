/* SPDX-License-Identifier: MIT */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

/* A reader of safetensors files that believes nothing.
 *
 * A file is an 8-byte little-endian header length N, N bytes of JSON {name: {dtype, shape, data_offsets: [begin,
 * end]}}, and the data. Refused, each with its own sentence: a header longer than the file or 100 MB, JSON with
 * duplicate keys, sizes that overflow, bytes that aren't dtype x shape, overlapping tensors, holes, and bytes after the
 * last tensor. Source: https://github.com/huggingface/safetensors, "Format".
 *
 * Threads: a reader is constant after opening. */

#include <stddef.h>
#include <stdint.h>

#include "model/ssm.h"

enum { TENSOR_RANK_MAX = 8 };

enum tensor_type { TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_I8, TENSOR_OTHER };

struct tensor {
    const char *name;
    char dtype[8]; /* as the file says it, cut to fit */
    enum tensor_type type;
    int rank;
    int64_t shape[TENSOR_RANK_MAX];
    size_t count;              /* product of shape                              */
    const unsigned char *data; /* little-endian, at no particular alignment     */
    size_t bytes;
};

struct safetensors;

/* Read a file whole. Gives the reader, or NULL and an error. */
struct safetensors *safetensors_open(const char *path, struct ssm_error *err);
/* The same over bytes in memory, which must outlive the reader; `path` names them in errors. */
struct safetensors *safetensors_parse(const void *bytes, size_t size, const char *path, struct ssm_error *err);
void safetensors_close(struct safetensors *file); /* NULL is fine */

const char *safetensors_path(const struct safetensors *file);
uint64_t safetensors_digest(const struct safetensors *file); /* xxh3 of all bytes of the file */

/* A __metadata__ string, or NULL. Borrowed. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

/* A tensor by name, or NULL. Borrowed. */
const struct tensor *safetensors_find(const struct safetensors *file, const char *name);
/* The i-th tensor, or NULL past the last. */
const struct tensor *safetensors_at(const struct safetensors *file, int i);

/* A tensor that must be there in this shape. NULL and an error naming the tensor and both shapes when it isn't. */
const struct tensor *safetensors_expect(const struct safetensors *file, const char *name, int rank,
                                        const int64_t *shape, struct ssm_error *err);

/* Gives a tensor's values as floats (count), from F32, F16 or BF16; free() them. NULL and an error for other types, and
 * for a value that is NaN or inf. */
float *safetensors_floats(const struct safetensors *file, const struct tensor *tensor, struct ssm_error *err);

#endif
