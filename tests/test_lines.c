/* SPDX-License-Identifier: MIT */
#include "dsp/lines.h"

#include "tests/test.h"

enum { MOST = 8 };

struct heard {
    char text[256]; /* lines, each behind a | */
};

static void keep(void *context, const char *line, size_t n)
{
    struct heard *heard = context;
    size_t at = strlen(heard->text);
    snprintf(heard->text + at, sizeof heard->text - at, "|%.*s", (int)n, line);
}

/* text in pieces of `piece` bytes. */
static struct heard run(const char *text, size_t piece, uint64_t *too_long)
{
    struct heard heard = {""};
    struct lines *lines = lines_create(MOST);
    size_t n = strlen(text);
    for (size_t at = 0; at < n; at += piece) {
        lines_push(lines, text + at, n - at < piece ? n - at : piece, keep, &heard);
    }
    lines_finish(lines, keep, &heard);
    *too_long = lines_too_long(lines);
    lines_destroy(lines);
    return heard;
}

static void lines_are_the_same_however_they_come(void **state)
{
    (void)state;
    for (size_t piece = 1; piece < 30; piece++) {
        uint64_t too_long;
        struct heard heard = run("a\nbc\r\n\n12345678\nend", piece, &too_long);
        assert_string_equal(heard.text, "|a|bc||12345678|end");
        assert_int_equal(too_long, 0);
    }
}

static void a_line_too_long_is_passed_over_and_counted(void **state)
{
    (void)state;
    for (size_t piece = 1; piece < 50; piece++) {
        uint64_t too_long;
        struct heard heard = run("a\n123456789\nb\n12345678901234567890\nc\n123456789", piece, &too_long);
        assert_string_equal(heard.text, "|a|b|c");
        assert_int_equal(too_long, 3);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_the_same_however_they_come),
        cmocka_unit_test(a_line_too_long_is_passed_over_and_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
