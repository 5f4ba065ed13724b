/* SPDX-License-Identifier: MIT */
/* model/safetensors.c: what a good file says, and a sentence for each way a file can be bad. */
#include "model/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

#include "tests/folder.h"
#include "tests/test.h"

/* A file in memory: header text, then `data` bytes counting up from 0. */
struct bytes {
    unsigned char at[4096];
    size_t size;
};

static struct bytes make(const char *header, size_t data)
{
    struct bytes bytes = {.size = 8 + strlen(header) + data};
    uint64_t length = strlen(header);
    memcpy(bytes.at, &length, 8);
    memcpy(bytes.at + 8, header, length);
    for (size_t i = 0; i < data; i++) {
        bytes.at[8 + length + i] = (unsigned char)i;
    }
    return bytes;
}

static void assert_refused(const struct bytes *bytes, const char *words)
{
    struct ssm_error err = {0};
    unsigned char *exact = malloc(bytes->size + 1); /* so that AddressSanitizer sees a byte read too far */
    memcpy(exact, bytes->at, bytes->size);
    struct safetensors *file = safetensors_parse(exact, bytes->size, "bad.safetensors", &err);
    assert_null(file);
    assert_int_equal(err.code, 65);
    if (!strstr(err.text, words) || !strstr(err.text, "bad.safetensors")) {
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    }
    free(exact);
}

static void a_good_file_gives_its_tensors(void **state)
{
    (void)state;
    struct bytes bytes = make("{\"__metadata__\":{\"a\":\"b\"},"
                              "\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[4,20]},"
                              "\"q\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                              "\"none\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[4,4]},"
                              "\"one\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[20,22]}}   ",
                              22);
    struct ssm_error err;
    struct safetensors *file = safetensors_parse(bytes.at, bytes.size, "good", &err);
    assert_non_null(file);
    const struct tensor *x = safetensors_expect(file, "x", 2, (int64_t[]){2, 2}, &err);
    assert_non_null(x);
    assert_int_equal(x->count, 4);
    assert_int_equal(x->data[0], 4);
    assert_int_equal(safetensors_find(file, "q")->type, TENSOR_I8);
    assert_int_equal(safetensors_find(file, "none")->count, 0);
    assert_int_equal(safetensors_find(file, "one")->count, 1);
    assert_null(safetensors_find(file, "y"));
    assert_string_equal(safetensors_metadata(file, "a"), "b");
    assert_null(safetensors_metadata(file, "c"));
    assert_non_null(safetensors_at(file, 3));
    assert_null(safetensors_at(file, 4));
    safetensors_close(file);
}

static void a_wrong_shape_names_the_tensor_and_both_shapes(void **state)
{
    (void)state;
    struct bytes bytes = make("{\"head.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24);
    struct ssm_error err;
    struct safetensors *file = safetensors_parse(bytes.at, bytes.size, "m", &err);
    assert_null(safetensors_expect(file, "head.weight", 2, (int64_t[]){3, 2}, &err));
    assert_string_equal(err.text, "m: tensor \"head.weight\" has shape [2, 3], the model needs [3, 2]");
    assert_null(safetensors_expect(file, "head.weight", 1, (int64_t[]){6}, &err));
    assert_null(safetensors_expect(file, "tail", 1, (int64_t[]){6}, &err));
    assert_string_equal(err.text, "m: tensor \"tail\" [6] is missing");
    safetensors_close(file);
}

static float read_one(const char *dtype, const void *value, size_t size, struct ssm_error *err)
{
    char header[128];
    snprintf(header, sizeof header, "{\"x\":{\"dtype\":\"%s\",\"shape\":[1],\"data_offsets\":[0,%zu]}}", dtype, size);
    struct bytes bytes = make(header, size);
    memcpy(bytes.at + bytes.size - size, value, size);
    struct safetensors *file = safetensors_parse(bytes.at, bytes.size, "m", err);
    assert_non_null(file);
    float *values = safetensors_floats(file, safetensors_find(file, "x"), err);
    float first = values ? values[0] : NAN;
    free(values);
    safetensors_close(file);
    return first;
}

static void halves_and_bfloats_become_the_floats_they_are(void **state)
{
    (void)state;
    struct ssm_error err;
    static const struct {
        uint16_t bits;
        float value;
    } halves[] = {{0x3c00, 1},        {0xc000, -2},         {0x7bff, 65504},
                  {0x0400, 0x1p-14f}, {0x0001, 0x1p-24f},   {0x83ff, -0x1.ff8p-15f},
                  {0x0000, 0},        {0x3555, 0x1.554p-2f}};
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) {
        assert_true(read_one("F16", &halves[i].bits, 2, &err) == halves[i].value);
    }
    assert_true(read_one("BF16", &(uint16_t){0xc049}, 2, &err) == -3.140625f);
    assert_true(read_one("F32", &(float){0.1f}, 4, &err) == 0.1f);
}

static void other_types_and_nan_are_refused_when_floats_are_wanted(void **state)
{
    (void)state;
    struct ssm_error err;
    assert_true(isnan(read_one("F64", &(double){1}, 8, &err)));
    assert_string_equal(err.text, "m: tensor \"x\" is F64; F32, F16 or BF16 is needed here");
    assert_true(isnan(read_one("F16", &(uint16_t){0x7c00}, 2, &err)));
    assert_string_equal(err.text, "m: tensor \"x\" holds NaN or inf");
    assert_true(isnan(read_one("F32", &(float){NAN}, 4, &err)));
}

static void each_bad_header_has_its_sentence(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *words;
    } cases[] = {
        {"", 0, "not a JSON object"},
        {"[]", 0, "not a JSON object"},
        {"{\"a\":1,\"a\":2}", 0, "not a JSON object: duplicate"},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__.a is not a string"},
        {"{\"x\":1}", 0, "unknown dtype"},
        {"{\"x\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype \"F33\""},
        {"{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "no shape"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "no shape"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "is not a shape"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "is not a shape"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967297],\"data_offsets\":[0,4]}}", 4, "overflows"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 4, "another number"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "two places inside"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "two places inside"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "two places inside"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, "two places inside"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "another number"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "leaves a hole"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "1 bytes after the last"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"y\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         4, "overlaps"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"y\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         12, "overlaps"},
        {"{}", 1, "after the last"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bytes bytes = make(cases[i].header, cases[i].data);
        assert_refused(&bytes, cases[i].words);
    }
}

static void a_header_longer_than_the_file_is_refused(void **state)
{
    (void)state;
    static const unsigned char lengths[][8] = {
        {3}, {255, 255, 255, 255, 255, 255, 255, 255}, {0, 0, 0, 0, 0, 0, 0, 128}};
    for (size_t i = 0; i < 3; i++) {
        struct bytes bytes = make("{}", 0);
        memcpy(bytes.at, lengths[i], 8);
        assert_refused(&bytes, "header would be");
    }
    struct bytes bytes = {.size = 7};
    assert_refused(&bytes, "too few");
    bytes.size = 0;
    assert_refused(&bytes, "too few");
}

static void a_missing_file_and_a_folder_are_no_input(void **state)
{
    (void)state;
    struct ssm_error err;
    assert_null(safetensors_open("/nonexistent/x.safetensors", &err));
    assert_int_equal(err.code, 66);
    assert_null(safetensors_open("tests", &err));
    assert_int_equal(err.code, 66);
    assert_string_equal(err.text, "tests: is not a file");
}

static void a_pipe_is_no_input_and_nobody_waits_for_it(void **state)
{
    (void)state;
    struct ssm_error err;
    const char *path = in_folder("pipe");
    assert_int_equal(mkfifo(path, 0600), 0);
    alarm(10);
    assert_null(safetensors_open(path, &err));
    alarm(0);
    assert_int_equal(err.code, 66);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_gives_its_tensors),
        cmocka_unit_test(a_wrong_shape_names_the_tensor_and_both_shapes),
        cmocka_unit_test(halves_and_bfloats_become_the_floats_they_are),
        cmocka_unit_test(other_types_and_nan_are_refused_when_floats_are_wanted),
        cmocka_unit_test(each_bad_header_has_its_sentence),
        cmocka_unit_test(a_header_longer_than_the_file_is_refused),
        cmocka_unit_test(a_missing_file_and_a_folder_are_no_input),
        cmocka_unit_test(a_pipe_is_no_input_and_nobody_waits_for_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
