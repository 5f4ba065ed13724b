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

static void every_integer_keeps_its_value(void **state)
{
    (void)state;
    enum { N = 65536 };
    static unsigned char bytes[3 * N];
    static float x[N];
    uint64_t seed = 1;
    for (unsigned i = 0; i < N; i++) { /* every 16-bit value once */
        bytes[2 * i] = (unsigned char)i;
        bytes[2 * i + 1] = (unsigned char)(i >> 8);
    }
    assert_int_equal(pcm_decode(PCM_S16LE, bytes, 1, 0, x, N), 0);
    for (int i = 0; i < N; i++) {
        assert_close(x[i] * 0x1p15, i < N / 2 ? i : i - N, 0);
    }
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (unsigned char)test_bits(&seed);
    }
    assert_int_equal(pcm_decode(PCM_S24LE, bytes, 1, 0, x, N), 0);
    for (int i = 0; i < N; i++) {
        const unsigned char *at = &bytes[3 * i];
        assert_close(x[i] * 0x1p23, at[0] + 256 * at[1] + 65536 * (at[2] < 128 ? at[2] : at[2] - 256), 0);
    }
}

static void channels_are_taken_apart(void **state)
{
    (void)state;
    for (enum pcm_format format = 0; format < PCM_FORMATS; format++) {
        size_t size = pcm_bytes(format);
        unsigned char bytes[3 * 4 * 4] = {0};
        for (size_t at = 0; at < 12; at++) { /* sample at / 3 of channel at % 3: 0, .5, 1 and so on, over 128 */
            float value = (float)at / 256;
            if (format == PCM_F32LE) {
                memcpy(&bytes[4 * at], &value, sizeof value);
            } else {
                bytes[size * at + size - 1] = (unsigned char)(at / 2);
                bytes[size * at + size - 2] = (unsigned char)(at % 2 * 128);
            }
        }
        for (size_t channel = 0; channel < 3; channel++) {
            float x[4];
            assert_int_equal(pcm_decode(format, bytes, 3, channel, x, 4), 0);
            for (size_t i = 0; i < 4; i++) {
                assert_close(x[i], (double)(3 * i + channel) / 256, 0);
            }
        }
    }
}

static void floats_keep_their_bits_but_nan_and_inf_become_silence(void **state)
{
    (void)state;
    const float x[] = {1.5f, 0x1p-149f, -0.0f, NAN};
    float y[4];
    assert_int_equal(pcm_decode(PCM_F32LE, x, 1, 0, y, 4), 1);
    assert_memory_equal(x, y, 3 * sizeof *x);
    assert_close(y[3], 0, 0);

    const unsigned char inf[] = {0, 0, 0x80, 0x7f, 0, 0, 0xc0, 0xff};
    assert_int_equal(pcm_decode(PCM_F32LE, inf, 1, 0, y, 2), 2);
    assert_close(y[0], 0, 0);
    assert_close(y[1], 0, 0);
}

static void every_format_has_its_size(void **state)
{
    (void)state;
    assert_int_equal(pcm_bytes(PCM_S24LE), 3);
    assert_int_equal(pcm_bytes(PCM_S32LE), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_are_read_little_endian_against_full_scale),
        cmocka_unit_test(every_integer_keeps_its_value),
        cmocka_unit_test(channels_are_taken_apart),
        cmocka_unit_test(floats_keep_their_bits_but_nan_and_inf_become_silence),
        cmocka_unit_test(every_format_has_its_size),
    };
    return cmocka_run_group_tests_name("pcm", tests, NULL, NULL);
}
