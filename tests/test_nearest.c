/* SPDX-License-Identifier: MIT */
#include "dsp/nearest.h"

#include "tests/test.h"

static void each_slip_of_the_pen_counts_once(void **state)
{
    (void)state;
    const struct {
        const char *a, *b;
        int distance;
    } cases[] = {{"", "", 0},           {"path", "path", 0},  {"path", "pat", 1},     {"path", "paths", 1}, {"path", "oath", 1},
                 {"path", "apth", 1},   {"", "path", 4},      {"vad", "digits", 6},   {"ca", "abc", 3},     {"denoise16k", "denoise-16k", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(nearest_distance(cases[i].a, cases[i].b), cases[i].distance);
        assert_int_equal(nearest_distance(cases[i].b, cases[i].a), cases[i].distance);
    }
}

static void a_very_long_word_is_far_from_all(void **state)
{
    (void)state;
    char longest[NEAREST_FAR + 2];
    memset(longest, 'a', sizeof longest);
    longest[NEAREST_FAR] = '\0';
    assert_int_equal(nearest_distance(longest, longest), 0);
    longest[NEAREST_FAR] = 'a';
    longest[NEAREST_FAR + 1] = '\0';
    assert_int_equal(nearest_distance(longest, longest), NEAREST_FAR);
    assert_int_equal(nearest_distance(longest, "a"), NEAREST_FAR);
}

static void a_slip_is_allowed_and_one_more_for_five_letters(void **state)
{
    (void)state;
    assert_int_equal(nearest_slips(""), 1);
    assert_int_equal(nearest_slips("nope"), 1);
    assert_int_equal(nearest_slips("wacth"), 2);
    assert_int_equal(nearest_slips("denoise-16"), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slip_is_allowed_and_one_more_for_five_letters),
        cmocka_unit_test(each_slip_of_the_pen_counts_once),
        cmocka_unit_test(a_very_long_word_is_far_from_all),
    };
    return cmocka_run_group_tests_name("nearest", tests, NULL, NULL);
}
