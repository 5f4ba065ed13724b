/* SPDX-License-Identifier: MIT */
#include "model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dsp/bytes.h"
#include "dsp/spare.h"
#include "model/digest.h"
#include "model/refuse.h"

enum { HEADER_MAX = 100 * 1000 * 1000 }; /* the reference reader's own limit */

struct safetensors {
    char *path;
    unsigned char *owned; /* the file's bytes when we read them ourselves */
    const unsigned char *data;
    size_t data_bytes;
    uint64_t digest;
    json_t *header;
    struct tensor *tensors; /* by place in the file */
    int count;
};

static const struct dtype {
    const char *name;
    enum tensor_type type;
    size_t bytes;
} dtypes[] = {
    {"F32", TENSOR_F32, 4},    {"F16", TENSOR_F16, 2},   {"BF16", TENSOR_BF16, 2},     {"I8", TENSOR_I8, 1},
    {"F64", TENSOR_OTHER, 8},  {"I64", TENSOR_OTHER, 8}, {"I32", TENSOR_OTHER, 4},     {"I16", TENSOR_OTHER, 2},
    {"U64", TENSOR_OTHER, 8},  {"U32", TENSOR_OTHER, 4}, {"U16", TENSOR_OTHER, 2},     {"U8", TENSOR_OTHER, 1},
    {"BOOL", TENSOR_OTHER, 1}, {"C64", TENSOR_OTHER, 8}, {"F8_E4M3", TENSOR_OTHER, 1}, {"F8_E5M2", TENSOR_OTHER, 1},
};

static const struct dtype *find_dtype(const char *name)
{
    for (size_t i = 0; name && i < sizeof dtypes / sizeof *dtypes; i++) {
        if (!strcmp(dtypes[i].name, name)) {
            return &dtypes[i];
        }
    }
    return NULL;
}

/* A non-negative JSON integer that fits size_t; anything else is an error of the caller's wording. */
static bool read_size(const json_t *value, size_t *size)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) {
        return false;
    }
    *size = (size_t)json_integer_value(value);
    return true;
}

static int read_shape(struct safetensors *file, struct tensor *tensor, const json_t *shape, struct ssm_error *err)
{
    if (!json_is_array(shape) || json_array_size(shape) > TENSOR_RANK_MAX) {
        return refuse(err, 65, "%s: tensor \"%s\" has no shape of at most %d sizes", file->path, tensor->name,
                      TENSOR_RANK_MAX);
    }
    tensor->rank = (int)json_array_size(shape);
    tensor->count = 1;
    for (int i = 0; i < tensor->rank; i++) {
        size_t size;
        if (!read_size(json_array_get(shape, (size_t)i), &size) ||
            __builtin_mul_overflow(tensor->count, size, &tensor->count)) {
            return refuse(err, 65, "%s: the shape of tensor \"%s\" is not a shape or overflows", file->path,
                          tensor->name);
        }
        tensor->shape[i] = (int64_t)size;
    }
    return 0;
}

static int read_tensor(struct safetensors *file, struct tensor *tensor, const char *name, const json_t *entry,
                       struct ssm_error *err)
{
    tensor->name = name;
    const char *dtype_name = json_string_value(json_object_get(entry, "dtype"));
    const struct dtype *dtype = find_dtype(dtype_name);
    if (!dtype) {
        return refuse(err, 65, "%s: tensor \"%s\" has the unknown dtype \"%.20s\"", file->path, name,
                      dtype_name ? dtype_name : "");
    }
    tensor->type = dtype->type;
    snprintf(tensor->dtype, sizeof tensor->dtype, "%s", dtype->name);
    if (read_shape(file, tensor, json_object_get(entry, "shape"), err)) {
        return -1;
    }
    const json_t *offsets = json_object_get(entry, "data_offsets");
    size_t begin, end, bytes;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !read_size(json_array_get(offsets, 0), &begin) ||
        !read_size(json_array_get(offsets, 1), &end) || begin > end || end > file->data_bytes) {
        return refuse(err, 65, "%s: data_offsets of tensor \"%s\" are not two places inside the file", file->path,
                      name);
    }
    if (__builtin_mul_overflow(tensor->count, dtype->bytes, &bytes) || bytes != end - begin) {
        return refuse(err, 65, "%s: tensor \"%s\" has %zu bytes, but its dtype and shape need another number",
                      file->path, name, end - begin);
    }
    tensor->data = file->data + begin;
    tensor->bytes = bytes;
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->data != y->data) {
        return x->data < y->data ? -1 : 1;
    }
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* an empty tensor comes before the one it touches */
}

/* Every byte of the data belongs to exactly one tensor. */
static int check_tiling(struct safetensors *file, struct ssm_error *err)
{
    if (file->count) {
        qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_place);
    }
    const unsigned char *place = file->data;
    for (int i = 0; i < file->count; i++) {
        const struct tensor *tensor = &file->tensors[i];
        if (tensor->data != place) {
            return refuse(err, 65, "%s: tensor \"%s\" %s", file->path, tensor->name,
                          tensor->data < place ? "overlaps the one before it" : "leaves a hole before it");
        }
        place += tensor->bytes;
    }
    size_t over = (size_t)(file->data + file->data_bytes - place);
    return over ? refuse(err, 65, "%s: %zu bytes after the last tensor belong to nothing", file->path, over) : 0;
}

static int check_metadata(struct safetensors *file, struct ssm_error *err)
{
    json_t *metadata = json_object_get(file->header, "__metadata__"), *value;
    const char *key;
    if (metadata && !json_is_object(metadata)) {
        return refuse(err, 65, "%s: __metadata__ is not an object of strings", file->path);
    }
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value)) {
            return refuse(err, 65, "%s: __metadata__.%.40s is not a string", file->path, key);
        }
    }
    return 0;
}

static int read_entries(struct safetensors *file, struct ssm_error *err)
{
    file->tensors = calloc(json_object_size(file->header) + 1, sizeof *file->tensors);
    if (!file->tensors) {
        return refuse_memory(err);
    }
    const char *name;
    json_t *entry;
    json_object_foreach(file->header, name, entry)
    {
        if (!strcmp(name, "__metadata__")) {
            continue;
        }
        if (read_tensor(file, &file->tensors[file->count], name, entry, err)) {
            return -1;
        }
        file->count++;
    }
    return check_tiling(file, err);
}

static int read_header(struct safetensors *file, const unsigned char *bytes, size_t size, struct ssm_error *err)
{
    if (size < 8) {
        return refuse(err, 65, "%s: %zu bytes are too few for a safetensors file", file->path, size);
    }
    uint64_t length = bytes_get(bytes, 8);
    if (length > size - 8 || length > HEADER_MAX) {
        return refuse(err, 65, "%s: not a safetensors file, or cut short: its header would be %" PRIu64 " bytes",
                      file->path, length);
    }
    json_error_t where;
    file->header = json_loadb((const char *)bytes + 8, (size_t)length, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(file->header)) {
        return refuse(err, 65, "%s: the header is not a JSON object: %.120s", file->path,
                      file->header ? "" : where.text);
    }
    file->data = bytes + 8 + length;
    file->data_bytes = size - 8 - (size_t)length;
    file->digest = digest_bytes(bytes, size, 0);
    return check_metadata(file, err) || read_entries(file, err) ? -1 : 0;
}

struct safetensors *safetensors_parse(const void *bytes, size_t size, const char *path, struct ssm_error *err)
{
    struct safetensors *file = calloc(1, sizeof *file);
    if (!file || !(file->path = strdup(path))) {
        refuse_memory(err);
        goto fail;
    }
    if (read_header(file, bytes, size, err)) {
        goto fail;
    }
    return file;
fail:
    safetensors_close(file);
    return NULL;
}

static int read_all(int fd, unsigned char *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t got = read(fd, bytes + at, size - at);
        if (got <= 0) {
            if (got < 0 && errno == EINTR) {
                continue;
            }
            errno = got ? errno : EIO; /* the file shrank under us */
            return -1;
        }
        at += (size_t)got;
    }
    return 0;
}

/* Gives the whole file; it is read rather than mapped, so that a file cut while in use can't raise SIGBUS later. */
static unsigned char *read_file(const char *path, size_t *size, struct ssm_error *err)
{
    unsigned char *bytes = NULL;
    struct stat stat;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused below, not waited for */
    if (fd < 0 || fstat(fd, &stat)) {
        refuse(err, spare_code(66), "%s: can't be read: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(stat.st_mode)) {
        refuse(err, 66, "%s: is not a file", path);
        goto fail;
    }
    *size = (size_t)stat.st_size;
    bytes = malloc(*size + 1);
    if (!bytes) {
        refuse_memory(err);
    } else if (read_all(fd, bytes, *size)) {
        refuse(err, 74, "%s: can't be read: %s", path, strerror(errno));
        free(bytes);
        bytes = NULL;
    }
fail:
    if (fd >= 0) {
        close(fd);
    }
    return bytes;
}

struct safetensors *safetensors_open(const char *path, struct ssm_error *err)
{
    size_t size = 0;
    unsigned char *bytes = read_file(path, &size, err);
    if (!bytes) {
        return NULL;
    }
    struct safetensors *file = safetensors_parse(bytes, size, path, err);
    if (file) {
        file->owned = bytes;
    } else {
        free(bytes);
    }
    return file;
}

void safetensors_close(struct safetensors *file)
{
    if (file) {
        json_decref(file->header);
        free(file->tensors);
        free(file->owned);
        free(file->path);
        free(file);
    }
}

const char *safetensors_path(const struct safetensors *file)
{
    return file->path;
}

uint64_t safetensors_digest(const struct safetensors *file)
{
    return file->digest;
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    return json_string_value(json_object_get(json_object_get(file->header, "__metadata__"), key));
}

const struct tensor *safetensors_at(const struct safetensors *file, int i)
{
    return i >= 0 && i < file->count ? &file->tensors[i] : NULL;
}

const struct tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    for (int i = 0; i < file->count; i++) {
        if (!strcmp(file->tensors[i].name, name)) {
            return &file->tensors[i];
        }
    }
    return NULL;
}

static void print_shape(char *text, size_t size, int rank, const int64_t *shape)
{
    size_t at = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < rank && at < size; i++) {
        at += (size_t)snprintf(text + at, size - at, "%s%" PRId64, i ? ", " : "", shape[i]);
    }
    if (at < size) {
        snprintf(text + at, size - at, "]");
    }
}

const struct tensor *safetensors_expect(const struct safetensors *file, const char *name, int rank,
                                        const int64_t *shape, struct ssm_error *err)
{
    const struct tensor *tensor = safetensors_find(file, name);
    char wanted[96];
    print_shape(wanted, sizeof wanted, rank, shape);
    if (!tensor) {
        refuse(err, 65, "%s: tensor \"%s\" %s is missing", file->path, name, wanted);
    } else if (tensor->rank != rank || memcmp(tensor->shape, shape, (size_t)rank * sizeof *shape)) {
        char found[96];
        print_shape(found, sizeof found, tensor->rank, tensor->shape);
        refuse(err, 65, "%s: tensor \"%s\" has shape %s, the model needs %s", file->path, name, found, wanted);
        tensor = NULL;
    }
    return tensor;
}

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float from_f16(uint32_t half)
{
    uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) { /* zero and subnormal: fraction x 2^-24, exact in a float */
        float value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    return from_bits(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
}

static float read_value(const struct tensor *tensor, size_t i)
{
    int bytes = tensor->type == TENSOR_F32 ? 4 : 2;
    uint32_t bits = (uint32_t)bytes_get(tensor->data + i * (size_t)bytes, bytes);
    switch (tensor->type) {
    case TENSOR_F16:
        return from_f16(bits);
    case TENSOR_BF16:
        return from_bits(bits << 16);
    default:
        return from_bits(bits);
    }
}

float *safetensors_floats(const struct safetensors *file, const struct tensor *tensor, struct ssm_error *err)
{
    if (tensor->type != TENSOR_F32 && tensor->type != TENSOR_F16 && tensor->type != TENSOR_BF16) {
        refuse(err, 65, "%s: tensor \"%s\" is %s; F32, F16 or BF16 is needed here", file->path, tensor->name,
               tensor->dtype);
        return NULL;
    }
    float *values = malloc(tensor->count * sizeof *values + 1);
    if (!values) {
        refuse_memory(err);
        return NULL;
    }
    for (size_t i = 0; i < tensor->count; i++) {
        values[i] = read_value(tensor, i);
        if (!isfinite(values[i])) {
            refuse(err, 65, "%s: tensor \"%s\" holds NaN or inf", file->path, tensor->name);
            free(values);
            return NULL;
        }
    }
    return values;
}
