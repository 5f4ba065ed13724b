/* SPDX-License-Identifier: MIT */
#include "dsp/pcm.h"

#include "tests/test.h"

static void integers_are_read_little_endian_against_full_scale(void **state)
{
    (void)state;
    const unsigned char s16[] = {0x00, 0x80, 0xff, 0x7f, 0x01, 0x00};
    const unsigned char s24[] = {0x00, 0x00, 0x80, 0x01, 0x00, 0x00};
    const unsigned char s32[] = {0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0x40};
    float x[3];
    assert_int_equal(pcm_decode(PCM_S16LE, s16, 1, 0, x, 3), 0);
    assert_close(x[0], -1, 0);
    assert_close(x[1], 32767.0 / 32768, 0);
    assert_close(x[2], 0x1p-15, 0);
    pcm_decode(PCM_S24LE, s24, 1, 0, x, 2);
    assert_close(x[0], -1, 0);
    assert_close(x[1], 0x1p-23, 0);
    pcm_decode(PCM_S32LE, s32, 1, 0, x, 2);
    assert_close(x[0], -1, 0);
    assert_close(x[1], 0.5, 0);
}

static void decoding_and_encoding_changes_no_byte(void **state)
{
    (void)state;
    enum { N = 65536 };
    static unsigned char bytes[3 * N], back[3 * N];
    static float x[N];
    const enum pcm_format formats[] = {PCM_S16LE, PCM_S24LE};
    uint64_t seed = 1;
    for (int f = 0; f < 2; f++) {
        size_t size = pcm_bytes(formats[f]);
        for (size_t i = 0; i < size * N; i++) {
            bytes[i] = (unsigned char)test_bits(&seed);
        }
        for (unsigned i = 0; i < N && size == 2; i++) { /* every 16-bit value once */
            bytes[2 * i] = (unsigned char)i;
            bytes[2 * i + 1] = (unsigned char)(i >> 8);
        }
        assert_int_equal(pcm_decode(formats[f], bytes, 1, 0, x, N), 0);
        assert_int_equal(pcm_encode(formats[f], x, back, 1, 0, N), 0);
        assert_memory_equal(bytes, back, size * N);
    }
}

static void channels_are_taken_apart_and_put_together(void **state)
{
    (void)state;
    for (enum pcm_format format = 0; format < PCM_FORMATS; format++) {
        unsigned char bytes[3 * 4 * 4] = {0};
        for (size_t channel = 0; channel < 3; channel++) {
            float x[4];
            for (int i = 0; i < 4; i++) {
                x[i] = (float)i / 8 - (float)channel / 4;
            }
            assert_int_equal(pcm_encode(format, x, bytes, 3, channel, 4), 0);
        }
        for (size_t channel = 0; channel < 3; channel++) {
            float x[4];
            pcm_decode(format, bytes, 3, channel, x, 4);
            for (int i = 0; i < 4; i++) {
                assert_close(x[i], (float)i / 8 - (float)channel / 4, 0);
            }
        }
    }
}

static void beyond_full_scale_is_clamped_and_counted(void **state)
{
    (void)state;
    const float loud[] = {1.0f, 2.0f, -2.0f, INFINITY, -INFINITY, NAN, -1.0f, 0.25f};
    const float kept[] = {1, 1, -1, 1, -1, 0, -1, 0.25f};
    const enum pcm_format formats[] = {PCM_S16LE, PCM_S24LE, PCM_S32LE};
    for (int f = 0; f < 3; f++) {
        unsigned char bytes[32];
        float x[8];
        assert_int_equal(pcm_encode(formats[f], loud, bytes, 1, 0, 8), 5); /* +1 is within */
        pcm_decode(formats[f], bytes, 1, 0, x, 8);
        for (int i = 0; i < 8; i++) {
            assert_close(x[i], kept[i], 0x1p-15);
        }
    }
}

static void floats_keep_their_bits_but_nan_and_inf_become_silence(void **state)
{
    (void)state;
    const float x[] = {1.5f, 0x1p-149f, -0.0f, NAN};
    unsigned char bytes[16];
    float y[4];
    assert_int_equal(pcm_encode(PCM_F32LE, x, bytes, 1, 0, 4), 1);
    assert_int_equal(pcm_decode(PCM_F32LE, bytes, 1, 0, y, 4), 0);
    assert_memory_equal(x, y, 3 * sizeof *x);
    assert_close(y[3], 0, 0);

    const unsigned char inf[] = {0, 0, 0x80, 0x7f, 0, 0, 0xc0, 0xff};
    assert_int_equal(pcm_decode(PCM_F32LE, inf, 1, 0, y, 2), 2);
    assert_close(y[0], 0, 0);
    assert_close(y[1], 0, 0);
}

static void every_format_has_its_name_and_size(void **state)
{
    (void)state;
    assert_string_equal(pcm_name(PCM_S24LE), "s24le");
    assert_string_equal(pcm_name(PCM_F32LE), "f32le");
    assert_int_equal(pcm_bytes(PCM_S24LE), 3);
    assert_int_equal(pcm_bytes(PCM_S32LE), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_are_read_little_endian_against_full_scale),
        cmocka_unit_test(decoding_and_encoding_changes_no_byte),
        cmocka_unit_test(channels_are_taken_apart_and_put_together),
        cmocka_unit_test(beyond_full_scale_is_clamped_and_counted),
        cmocka_unit_test(floats_keep_their_bits_but_nan_and_inf_become_silence),
        cmocka_unit_test(every_format_has_its_name_and_size),
    };
    return cmocka_run_group_tests_name("pcm", tests, NULL, NULL);
}
