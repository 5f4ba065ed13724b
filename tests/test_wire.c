/* SPDX-License-Identifier: MIT */
#include "daemon/wire.h"

#include "dsp/text.h"
#include "tests/test.h"

static struct wire_header sample(void)
{
    struct wire_header header = {.version = 1, .seq = UINT64_MAX, .s0 = 1ull << 40, .n = 160, .sr = 16000, .ch = 1,
                                 .dt = "f32le", .shp = {160, 1}, .n_shp = 2, .tm = -5, .tw = 1795320175642267503,
                                 .te = UINT32_MAX, .clk = "sys", .cap = 1, .enq = -300000, .inf = INT64_MAX,
                                 .pub = INT64_MIN, .mdl = "denoise-16k@6f7381d066bd", .st = "cuda:0",
                                 .lost = {.n = 480, .from = 160, .to = 640, .why = "ring_full"},
                                 .flags = WIRE_GAP | WIRE_END};
    for (uint8_t i = 0; i < 16; i++) {
        header.boot[i] = (uint8_t)(i * 17);
    }
    return header;
}

static void wire_header_comes_back_as_it_was_sent(void **state)
{
    (void)state;
    struct wire_header header = sample(), back;
    uint8_t bytes[WIRE_HEADER_MAX];
    size_t n = wire_encode(&header, bytes, sizeof bytes);
    assert_true(n > 0);
    assert_true(wire_decode(&back, bytes, n));
    assert_memory_equal(&header, &back, sizeof header);
}

static void wire_header_at_its_largest_fits(void **state)
{
    (void)state;
    struct wire_header header;
    uint8_t bytes[WIRE_HEADER_MAX];
    memset(&header, 0xff, sizeof header);
    header.n_shp = 4;
    header.version = INT32_MAX;
    memset(header.dt, 'x', sizeof header.dt - 1), header.dt[sizeof header.dt - 1] = 0;
    memset(header.clk, 'x', sizeof header.clk - 1), header.clk[sizeof header.clk - 1] = 0;
    memset(header.mdl, 'x', sizeof header.mdl - 1), header.mdl[sizeof header.mdl - 1] = 0;
    memset(header.st, 'x', sizeof header.st - 1), header.st[sizeof header.st - 1] = 0;
    memset(header.lost.why, 'x', sizeof header.lost.why - 1), header.lost.why[sizeof header.lost.why - 1] = 0;
    assert_true(wire_encode(&header, bytes, sizeof bytes) > 0);
}

static void wire_encode_refuses_a_small_buffer(void **state)
{
    (void)state;
    struct wire_header header = sample();
    uint8_t bytes[WIRE_HEADER_MAX];
    size_t n = wire_encode(&header, bytes, sizeof bytes);
    for (size_t room = 0; room < n; room++) {
        assert_int_equal(wire_encode(&header, bytes, room), 0);
    }
}

static void wire_keys_are_short_and_in_canonical_order(void **state)
{
    (void)state;
    struct wire_header header = sample();
    uint8_t bytes[WIRE_HEADER_MAX];
    char text[2048] = "";
    size_t n = wire_encode(&header, bytes, sizeof bytes);
    FILE *file = fmemopen(text, sizeof text, "w");
    assert_true(wire_json(file, bytes, n));
    fclose(file);
    assert_string_equal(text, "{\"v\":1,\"seq\":18446744073709551615,\"boot\":\"00112233445566778899aabbccddeeff\","
                              "\"s0\":1099511627776,\"n\":160,\"sr\":16000,\"ch\":1,\"dt\":\"f32le\",\"shp\":[160,1],"
                              "\"tm\":-5,\"tw\":1795320175642267503,\"te\":4294967295,\"clk\":\"sys\",\"cap\":1,"
                              "\"enq\":-300000,\"inf\":9223372036854775807,\"pub\":-9223372036854775808,"
                              "\"mdl\":\"denoise-16k@6f7381d066bd\",\"st\":\"cuda:0\","
                              "\"lost\":{\"n\":480,\"from\":160,\"to\":640,\"why\":\"ring_full\"},"
                              "\"flags\":[\"gap\",\"end\"]}");
}

static void wire_decode_passes_over_what_it_does_not_know(void **state)
{
    (void)state;
    uint8_t bytes[128];
    struct wire_header header;
    struct wire_bytes out = {.at = bytes, .room = sizeof bytes};
    wire_put_map(&out, 3);
    wire_put_text(&out, "later");
    wire_put_array(&out, 2);
    wire_put_map(&out, 1);
    wire_put_text(&out, "x");
    wire_put_number(&out, 1.5);
    wire_put_bool(&out, true);
    wire_put_text(&out, "v");
    wire_put_uint(&out, 1);
    wire_put_text(&out, "dt");
    wire_put_text(&out, "a text longer than its field");
    assert_true(wire_decode(&header, bytes, out.n));
    assert_string_equal(header.dt, "a text long");
}

/* A terminal obeys ESC, and the same as one character of C1. */
static void nothing_of_a_text_commands_a_terminal(void **state)
{
    (void)state;
    static const char *const texts[] = {"\x1b[2J", "a\nb", "\x7f", "\xc2\x9b" "2J", "\x9b" "2J", "\xff"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        uint8_t bytes[64];
        struct wire_bytes out = {.at = bytes, .room = sizeof bytes};
        struct wire_header header;
        assert_false(text_is_plain(texts[i]));
        wire_put_map(&out, 2);
        wire_put_text(&out, "v");
        wire_put_uint(&out, WIRE_VERSION);
        wire_put_pair(&out, "clk", texts[i]);
        assert_false(wire_decode(&header, bytes, out.n));
    }
    assert_true(text_is_plain("na\xc3\xafve \xe2\x9b\x9b \xf0\x9f\x8e\xb5"));
    char *text = NULL;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    wire_json_text(file, "\xc2\x9b\xc2\xa0", 4);
    fclose(file);
    assert_string_equal(text, "\"\\u009b\xc2\xa0\"");
    free(text);
}

/* Every cut and 20 000 damaged copies: an answer each, and no read beyond the bytes (malloc'd to size for the sanitizer). */
static void wire_decode_answers_any_bytes(void **state)
{
    (void)state;
    struct wire_header header = sample(), back;
    uint8_t bytes[WIRE_HEADER_MAX];
    size_t n = wire_encode(&header, bytes, sizeof bytes);
    FILE *nowhere = fopen("/dev/null", "w");
    for (size_t cut = 0; cut < n; cut++) {
        uint8_t *copy = malloc(cut + 1);
        memcpy(copy + 1, bytes, cut); /* the end of the block is the end of the bytes */
        assert_false(wire_decode(&back, copy + 1, cut));
        assert_false(wire_json(nowhere, copy + 1, cut));
        free(copy);
    }
    uint64_t seed = 1;
    for (int i = 0; i < 20000; i++) {
        uint8_t *copy = malloc(n);
        memcpy(copy, bytes, n);
        for (int k = 0; k < 3; k++) {
            copy[test_bits(&seed) % n] = (uint8_t)test_bits(&seed);
        }
        wire_decode(&back, copy, n);
        wire_json(nowhere, copy, n);
        free(copy);
    }
    fclose(nowhere);
}

static void wire_json_refuses_deep_nesting(void **state)
{
    (void)state;
    uint8_t bytes[100];
    FILE *nowhere = fopen("/dev/null", "w");
    memset(bytes, 0x91, sizeof bytes); /* arrays of one array */
    assert_false(wire_json(nowhere, bytes, sizeof bytes));
    fclose(nowhere);
}

static void wire_topics_end_in_a_slash(void **state)
{
    (void)state;
    char topic[WIRE_TOPIC_MAX];
    assert_int_equal(wire_topic(topic, "audio", "studio", "mic", 0, "denoise-16k"), 31);
    assert_string_equal(topic, "audio/studio/mic/0/denoise-16k/");
    wire_topic(topic, "hugz", "studio", NULL, -1, NULL);
    assert_string_equal(topic, "hugz/studio/");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_of_a_text_commands_a_terminal),
        cmocka_unit_test(wire_header_comes_back_as_it_was_sent),
        cmocka_unit_test(wire_header_at_its_largest_fits),
        cmocka_unit_test(wire_encode_refuses_a_small_buffer),
        cmocka_unit_test(wire_keys_are_short_and_in_canonical_order),
        cmocka_unit_test(wire_decode_passes_over_what_it_does_not_know),
        cmocka_unit_test(wire_decode_answers_any_bytes),
        cmocka_unit_test(wire_json_refuses_deep_nesting),
        cmocka_unit_test(wire_topics_end_in_a_slash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
