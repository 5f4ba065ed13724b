/* SPDX-License-Identifier: MIT */
/* Any configuration over the tiny model's tensors, or behind a T over those of the tokens' golden model, is a model that
 * runs or a sentence why not. Corpus: corpus_model. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/ssm.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* The models' files, once: header without metadata, and data. */
static struct tensors {
    char header[65536];
    unsigned char data[65536];
    size_t header_size, data_size;
} tiny, tokens;

static void load(struct tensors *to, const char *path, const char *first)
{
    uint64_t length = 0;
    FILE *file = fopen(path, "rb");
    if (!file || fread(&length, 8, 1, file) != 1 || length >= sizeof to->header ||
        fread(to->header, 1, length, file) != length) {
        abort();
    }
    char *tensors = strstr(to->header, first);
    to->header_size = strlen(tensors);
    memmove(to->header, tensors, to->header_size + 1);
    to->data_size = fread(to->data, 1, sizeof to->data, file);
    fclose(file);
}

static int write_model(const struct tensors *from, const uint8_t *config, size_t size)
{
    int fd = memfd_create("fuzz", 0);
    FILE *file = fdopen(dup(fd), "wb");
    uint64_t length = 0;
    fwrite(&length, 8, 1, file);
    fprintf(file, "{\"__metadata__\":{\"ssm.config\":\"");
    for (size_t i = 0; i < size; i++) {
        fprintf(file, config[i] == '"' || config[i] == '\\' ? "\\%c" : config[i] < 32 ? " " : "%c", config[i]);
    }
    fprintf(file, "\"},%s", from->header);
    length = (uint64_t)ftell(file) - 8;
    fwrite(from->data, 1, from->data_size, file);
    rewind(file);
    fwrite(&length, 8, 1, file);
    fclose(file);
    return fd;
}

static void run_model(struct ssm_engine *engine)
{
    const struct ssm_info *info = ssm_describe(engine);
    float *in = calloc((size_t)info->inputs * 3, sizeof *in), *out = calloc((size_t)info->outputs * 3, sizeof *out);
    ssm_stream stream;
    in[0] = 1;
    ssm_stream_open(engine, &stream);
    ssm_scan(engine, stream, in, out, NULL, 3, NULL);
    free(in);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    char path[64];
    struct ssm_error err;
    if (!tiny.header_size) {
        load(&tiny, "tests/data/tiny-denoise.safetensors", "\"encoder.weight\"");
        load(&tokens, "tests/data/golden_tokens.safetensors", "\"backbone.embedding.weight\"");
    }
    size_t skip = size && bytes[0] == 'T';
    int fd = write_model(skip ? &tokens : &tiny, bytes + skip, size - skip);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    struct ssm_engine *engine = ssm_open(path, NULL, &err);
    if (engine) {
        run_model(engine);
    }
    ssm_close(engine);
    close(fd);
    return 0;
}
