/* SPDX-License-Identifier: MIT */
/* model/state.c through ssm.h: a stream goes on from saved bytes without a changed bit, and nothing else is taken. */
#include "model/ssm.h"
#include "tests/test.h"

#define GOLDEN "tests/data/golden_denoise.safetensors"
#define TINY   "tests/data/tiny-denoise.safetensors"
enum { HOP = 160, HOPS = 40 };

struct rig {
    struct ssm_engine *engine;
    ssm_stream stream;
    unsigned char *saved;
    size_t size;
};

static struct rig rig_open(const char *model)
{
    struct ssm_error err;
    struct rig rig = {.engine = ssm_open(model, &(struct ssm_options){.streams = 3}, &err)};
    assert_non_null(rig.engine);
    rig.size = ssm_state_size(rig.engine);
    rig.saved = malloc(rig.size);
    assert_int_equal(ssm_stream_open(rig.engine, &rig.stream), SSM_OK);
    return rig;
}

static void rig_close(struct rig *rig)
{
    ssm_close(rig->engine);
    free(rig->saved);
}

static void run(struct rig *rig, ssm_stream stream, uint64_t seed, int hops, float *last)
{
    for (int i = 0; i < hops; i++) {
        float in[HOP];
        test_fill(in, HOP, 0.4f, &seed);
        assert_int_equal(
            ssm_step(rig->engine, &(struct ssm_hop){.stream = stream, .in = in, .out = last, .count = 1}, 1), 1);
    }
}

static void a_saved_stream_goes_on_bit_for_bit_in_another_engine(void **state)
{
    (void)state;
    struct rig here = rig_open(GOLDEN), there = rig_open(GOLDEN);
    float want[HOP], got[HOP];
    run(&here, here.stream, 1, HOPS, want);
    assert_int_equal(ssm_state_save(here.engine, here.stream, here.saved, here.size), (int)here.size);
    run(&there, there.stream, 9, 7, got);
    assert_int_equal(ssm_state_load(there.engine, there.stream, here.saved, here.size, NULL), SSM_OK);
    for (int i = 0; i < 10; i++) {
        run(&here, here.stream, (uint64_t)(100 + i), 1, want);
        run(&there, there.stream, (uint64_t)(100 + i), 1, got);
        assert_memory_equal(got, want, sizeof want);
    }
    rig_close(&here);
    rig_close(&there);
}

static void a_loaded_state_saves_to_the_same_bytes(void **state)
{
    (void)state;
    struct rig rig = rig_open(GOLDEN);
    unsigned char *again = malloc(rig.size);
    float out[HOP];
    ssm_stream other;
    run(&rig, rig.stream, 2, HOPS, out);
    ssm_state_save(rig.engine, rig.stream, rig.saved, rig.size);
    assert_int_equal(ssm_stream_open(rig.engine, &other), SSM_OK);
    assert_int_equal(ssm_state_load(rig.engine, other, rig.saved, rig.size, NULL), SSM_OK);
    ssm_state_save(rig.engine, other, again, rig.size);
    assert_memory_equal(again, rig.saved, rig.size);
    free(again);
    rig_close(&rig);
}

static void assert_refused(struct rig *rig, const void *bytes, size_t size, const char *words)
{
    struct ssm_error err = {0};
    assert_int_equal(ssm_state_load(rig->engine, rig->stream, bytes, size, &err), SSM_BAD_STATE);
    assert_int_equal(err.code, 65);
    if (!strstr(err.text, words)) {
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    }
}

static void a_state_cut_short_changed_or_foreign_is_refused_in_words(void **state)
{
    (void)state;
    struct rig rig = rig_open(GOLDEN), foreign = rig_open(TINY);
    float out[HOP];
    run(&rig, rig.stream, 3, HOPS, out);
    ssm_state_save(rig.engine, rig.stream, rig.saved, rig.size);
    ssm_state_save(foreign.engine, foreign.stream, foreign.saved, foreign.size);
    unsigned char *bytes = calloc(1, rig.size + 1);
    memcpy(bytes, rig.saved, rig.size);
    assert_refused(&rig, bytes, 0, "not a saved");
    assert_refused(&rig, bytes, 47, "not a saved");
    assert_refused(&rig, bytes, 48, "cut short");
    assert_refused(&rig, bytes, rig.size - 1, "cut short");
    assert_refused(&rig, bytes, rig.size + 1, "cut short or extended");
    assert_refused(&rig, foreign.saved, foreign.size, "another model");
    bytes[8] = 2;
    assert_refused(&rig, bytes, rig.size, "version 2");
    free(bytes);
    rig_close(&rig);
    rig_close(&foreign);
}

static void any_flipped_bit_is_found_and_the_stream_is_as_before(void **state)
{
    (void)state;
    struct rig rig = rig_open(GOLDEN);
    unsigned char *before = malloc(rig.size), *after = malloc(rig.size);
    float out[HOP];
    uint64_t seed = 4;
    run(&rig, rig.stream, 4, 5, out);
    ssm_state_save(rig.engine, rig.stream, rig.saved, rig.size);
    run(&rig, rig.stream, 5, 5, out);
    ssm_state_save(rig.engine, rig.stream, before, rig.size);
    for (size_t i = 0; i < 400; i++) {
        size_t at = i < 64 ? i % rig.size : test_bits(&seed) % rig.size;
        unsigned char bit = (unsigned char)(1u << test_bits(&seed) % 8);
        rig.saved[at] ^= bit;
        assert_int_equal(ssm_state_load(rig.engine, rig.stream, rig.saved, rig.size, NULL), SSM_BAD_STATE);
        rig.saved[at] ^= bit;
    }
    ssm_state_save(rig.engine, rig.stream, after, rig.size);
    assert_memory_equal(after, before, rig.size);
    free(before);
    free(after);
    rig_close(&rig);
}

static void a_closed_stream_neither_saves_nor_loads(void **state)
{
    (void)state;
    struct rig rig = rig_open(TINY);
    assert_int_equal(ssm_state_save(rig.engine, rig.stream, rig.saved, rig.size - 1), SSM_REFUSED);
    ssm_state_save(rig.engine, rig.stream, rig.saved, rig.size);
    ssm_stream_close(rig.engine, rig.stream);
    assert_int_equal(ssm_state_save(rig.engine, rig.stream, rig.saved, rig.size), SSM_STALE);
    assert_int_equal(ssm_state_load(rig.engine, rig.stream, rig.saved, rig.size, NULL), SSM_STALE);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_saved_stream_goes_on_bit_for_bit_in_another_engine),
        cmocka_unit_test(a_loaded_state_saves_to_the_same_bytes),
        cmocka_unit_test(a_state_cut_short_changed_or_foreign_is_refused_in_words),
        cmocka_unit_test(any_flipped_bit_is_found_and_the_stream_is_as_before),
        cmocka_unit_test(a_closed_stream_neither_saves_nor_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
