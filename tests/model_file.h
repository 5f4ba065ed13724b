/* SPDX-License-Identifier: MIT */
#ifndef TESTS_MODEL_FILE_H
#define TESTS_MODEL_FILE_H

/* Write small model files for tests: tensors one by one, then the file. */

#include <unistd.h>

#include "tests/test.h"

struct model_file {
    char header[16384];
    size_t header_length;
    float data[65536];
    size_t count;
    char path[64];
};

static inline struct model_file *model_file_create(void)
{
    struct model_file *file = calloc(1, sizeof *file);
    assert_non_null(file);
    return file;
}

/* shape as JSON, "[2, 3]"; values (count), or NULL for zeros. */
static inline void model_file_add(struct model_file *file, const char *name, const char *shape, const float *values,
                                  size_t count)
{
    size_t begin = file->count * 4;
    assert_true(file->count + count <= sizeof file->data / sizeof *file->data);
    for (size_t i = 0; i < count; i++) {
        file->data[file->count++] = values ? values[i] : 0;
    }
    file->header_length += (size_t)snprintf(
        file->header + file->header_length, sizeof file->header - file->header_length,
        ",\"%s\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", name, shape, begin, file->count * 4);
    assert_true(file->header_length < sizeof file->header);
}

/* Write it with a configuration (single quotes stand for double ones, to be readable in C), or none for NULL. Gives the
 * path, which lives as long as `file`. */
static inline const char *model_file_write(struct model_file *file, const char *config)
{
    char text[32768], escaped[8192] = "";
    size_t length = 0;
    for (const char *at = config ? config : ""; *at; at++) {
        length += (size_t)snprintf(escaped + length, sizeof escaped - length, *at == '\'' ? "\\\"" : "%c", *at);
    }
    uint64_t size = (uint64_t)snprintf(text, sizeof text, "{\"__metadata__\":{\"%s\":\"%s\"}%s}",
                                       config ? "ssm.config" : "none", escaped, file->header);
    snprintf(file->path, sizeof file->path, "/tmp/ssm-test-XXXXXX.safetensors");
    int fd = mkstemps(file->path, 12);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, &size, 8), 8);
    assert_int_equal(write(fd, text, size), (ssize_t)size);
    assert_int_equal(write(fd, file->data, file->count * 4), (ssize_t)(file->count * 4));
    close(fd);
    return file->path;
}

static inline void model_file_destroy(struct model_file *file)
{
    if (file->path[0]) {
        unlink(file->path);
    }
    free(file);
}

#endif
