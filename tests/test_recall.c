/* SPDX-License-Identifier: MIT */

#include "clients/recall.h"

#include <string.h>

#include "tests/test.h"

/* Surprise of a line's dearest byte, all of which a model expects with so many bits; then it is learned. */
static double read_line(struct recall *recall, const char *line, double bits, bool odd)
{
    double most = 0;
    for (const char *p = line; *p; p++) {
        double mine = recall_take(recall, (unsigned char)*p, bits);
        most = mine > most ? mine : most;
    }
    recall_learn(recall, odd);
    return most;
}

static double repeat(struct recall *recall, int times, const char *line, double bits, bool odd)
{
    double most = 0;
    for (int i = 0; i < times; i++) {
        most = read_line(recall, line, bits, odd);
    }
    return most;
}

static void what_comes_again_is_usual_after_a_few_lines(void **state)
{
    (void)state;
    struct recall *recall = recall_create();
    double first = read_line(recall, "alder sshd: session opened\n", 12, false);
    double third = repeat(recall, 2, "alder sshd: session opened\n", 12, false);
    assert_true(first > 8);
    assert_true(third < 1.5);
    recall_destroy(recall);
}

static void what_it_has_not_seen_costs_about_what_the_model_says(void **state)
{
    (void)state;
    struct recall *recall = recall_create();
    repeat(recall, 50, "alder sshd: session opened\n", 2, false);
    double usual = repeat(recall, 1, "alder sshd: session opened\n", 2, false);
    double strange = read_line(recall, "alder sshd: QZJVXKW\n", 11, false);
    assert_true(usual < 1);
    assert_true(strange > 10);
    recall_destroy(recall);
}

static void a_model_that_knows_better_is_believed(void **state)
{
    (void)state;
    struct recall *recall = recall_create();
    unsigned random = 1;
    double sum = 0;
    for (int i = 0; i < 20000; i++) { /* digits nobody can know, but the model does */
        random = random * 1103515245 + 12345;
        double bits = recall_take(recall, (unsigned char)('0' + (random >> 16) % 10), 0.1);
        sum += i >= 10000 ? bits : 0;
        if (i % 40 == 39) {
            recall_learn(recall, false);
        }
    }
    assert_true(sum / 10000 < 0.2);
    recall_destroy(recall);
}

static void an_odd_line_stays_odd_the_second_and_third_time(void **state)
{
    (void)state;
    struct recall *recall = recall_create();
    repeat(recall, 200, "birch cron: run-parts\n", 6, false);
    const char *odd = "birch nginx: GET /etc/passwd\n";
    double third = repeat(recall, 3, odd, 12, true);
    double tenth = repeat(recall, 7, odd, 12, true);
    assert_true(third > 8);
    assert_true(tenth < 6); /* its first byte is still rare */
    recall_destroy(recall);
}

static void a_million_strange_lines_do_not_drown_what_is_frequent(void **state)
{
    (void)state;
    struct recall *recall = recall_create();
    unsigned random = 7;
    double last = 0;
    for (int i = 0; i < 100000; i++) {
        char line[40];
        for (int k = 0; k < 38; k++) {
            random = random * 1103515245 + 12345;
            line[k] = (char)('a' + (random >> 16) % 26);
        }
        memcpy(line + 38, "\n", 2);
        read_line(recall, line, 5, false);
        last = i % 10 == 0 ? read_line(recall, "maple kernel: eth0 up\n", 5, false) : last;
    }
    assert_true(last < 3);
    recall_destroy(recall);
}

static void a_line_without_end_is_learned_in_pieces(void **state)
{
    (void)state;
    struct recall *recall = recall_create();
    double last = 0;
    for (int i = 0; i < 100000; i++) {
        last = recall_take(recall, (unsigned char)"abc"[i % 3], 8);
    }
    assert_true(last < 0.5);
    recall_destroy(recall);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_comes_again_is_usual_after_a_few_lines),
        cmocka_unit_test(what_it_has_not_seen_costs_about_what_the_model_says),
        cmocka_unit_test(a_model_that_knows_better_is_believed),
        cmocka_unit_test(an_odd_line_stays_odd_the_second_and_third_time),
        cmocka_unit_test(a_million_strange_lines_do_not_drown_what_is_frequent),
        cmocka_unit_test(a_line_without_end_is_learned_in_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
