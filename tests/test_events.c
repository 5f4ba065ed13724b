/* SPDX-License-Identifier: MIT */
#include "dsp/events.h"

#include "tests/test.h"

/* Rows of 10 samples at 1000 Hz: 10 ms each. */
enum { RATE = 1000, ROW = 10, ROOM = 64, LABELS = 3 };

struct heard {
    struct event at[ROOM];
    int n;
};

static void keep(void *context, const struct event *event)
{
    struct heard *heard = context;
    assert_true(heard->n < ROOM);
    heard->at[heard->n++] = *event;
}

/* Scores of one label, a digit each (tenths), through one rule; the end is cut. */
static struct heard run(struct event_rule rule, const char *digits)
{
    struct heard heard = {.n = 0};
    struct events *events = events_create(&rule, 1, false, RATE, keep, &heard);
    for (size_t i = 0; digits[i]; i++) {
        float score = 0.1f * (float)(digits[i] - '0');
        events_push(events, i * ROW, ROW, &score);
    }
    events_cut(events);
    events_destroy(events);
    return heard;
}

static void assert_event(const struct event *event, enum event_kind kind, int label, uint64_t from, uint64_t to)
{
    assert_int_equal(event->kind, kind);
    assert_int_equal(event->label, label);
    assert_int_equal(event->from, from);
    assert_int_equal(event->to, to);
}

static void an_event_lasts_from_on_to_off(void **state)
{
    (void)state;
    struct heard heard = run((struct event_rule){.on = 0.55f, .off = 0.35f}, "00569743400");
    assert_int_equal(heard.n, 2);
    assert_event(&heard.at[0], EVENT_BEGIN, 0, 30, 40);
    assert_event(&heard.at[1], EVENT_END, 0, 30, 70);
    assert_close(heard.at[1].peak, 0.9, 1e-6);
    assert_close(heard.at[1].mean, (0.6 + 0.9 + 0.7 + 0.4) / 4, 1e-6);
}

static void below_on_nothing_begins(void **state)
{
    (void)state;
    assert_int_equal(run((struct event_rule){.on = 0.55f, .off = 0.35f}, "0455554554").n, 0);
}

static void a_dip_of_hold_is_bridged_and_a_longer_one_ends(void **state)
{
    (void)state;
    struct event_rule rule = {.on = 0.5f, .off = 0.3f, .hold_s = 0.02};
    struct heard heard = run(rule, "0800800080");
    assert_int_equal(heard.n, 4);
    assert_event(&heard.at[1], EVENT_END, 0, 10, 50);
    assert_close(heard.at[1].mean, 1.6 / 4, 1e-6); /* the bridged dip counts */
    assert_event(&heard.at[2], EVENT_BEGIN, 0, 80, 90);
    assert_event(&heard.at[3], EVENT_CUT, 0, 80, 90);
}

static void what_is_shorter_than_min_is_never_told(void **state)
{
    (void)state;
    struct event_rule rule = {.on = 0.5f, .off = 0.3f, .min_s = 0.03};
    struct heard heard = run(rule, "0880088800");
    assert_int_equal(heard.n, 2);
    assert_event(&heard.at[0], EVENT_BEGIN, 0, 50, 80);
    assert_event(&heard.at[1], EVENT_END, 0, 50, 80);
}

static void a_long_event_is_cut_and_goes_on_as_another(void **state)
{
    (void)state;
    struct event_rule rule = {.on = 0.5f, .off = 0.3f, .max_s = 0.03};
    struct heard heard = run(rule, "088888000");
    assert_int_equal(heard.n, 4);
    assert_event(&heard.at[1], EVENT_CUT, 0, 10, 40);
    assert_event(&heard.at[3], EVENT_END, 0, 40, 60);
}

static void a_cut_ends_at_the_last_row_that_belongs(void **state)
{
    (void)state;
    struct event_rule rule = {.on = 0.5f, .off = 0.3f, .hold_s = 1};
    struct heard heard = run(rule, "08800");
    assert_int_equal(heard.n, 2);
    assert_event(&heard.at[1], EVENT_CUT, 0, 10, 30);
}

static void rows_of_different_lengths_count_by_their_time(void **state)
{
    (void)state;
    struct heard heard = {.n = 0};
    struct event_rule rule = {.on = 0.5f, .off = 0.3f, .min_s = 0.05};
    struct events *events = events_create(&rule, 1, false, RATE, keep, &heard);
    events_push(events, 100, 10, (float[]){0.9f});
    events_push(events, 110, 50, (float[]){0.6f}); /* five rows' time */
    events_push(events, 160, 10, (float[]){0});
    assert_int_equal(heard.n, 2);
    assert_event(&heard.at[1], EVENT_END, 0, 100, 160);
    assert_close(heard.at[1].mean, (0.9 + 5 * 0.6) / 6, 1e-6);
    events_destroy(events);
}

static void time_of_which_no_row_speaks_weighs_nothing(void **state)
{
    (void)state;
    struct heard heard = {.n = 0};
    struct event_rule rule = {.on = 0.5f, .off = 0.3f};
    struct events *events = events_create(&rule, 1, false, RATE, keep, &heard);
    events_push(events, 0, 10, (float[]){0.9f});
    events_push(events, 50, 10, (float[]){0.5f});
    events_push(events, 100, 10, (float[]){0});
    assert_event(&heard.at[1], EVENT_END, 0, 0, 60);
    assert_close(heard.at[1].mean, 0.7, 1e-6);
    events_destroy(events);
}

static void a_nan_counts_as_zero(void **state)
{
    (void)state;
    struct heard heard = {.n = 0};
    struct event_rule rule = {.on = 0.5f, .off = 0.3f};
    struct events *events = events_create(&rule, 1, true, RATE, keep, &heard);
    events_push(events, 0, 10, (float[]){0.9f});
    events_push(events, 10, 10, (float[]){NAN});
    assert_int_equal(heard.n, 2);
    assert_event(&heard.at[1], EVENT_END, 0, 0, 10);
    events_destroy(events);
}

static struct heard run_exclusive(const float (*rows)[LABELS], size_t n)
{
    struct heard heard = {.n = 0};
    struct event_rule rules[LABELS];
    for (int i = 0; i < LABELS; i++) {
        rules[i] = (struct event_rule){.on = 0.4f, .off = 0.2f, .hold_s = 0.1};
    }
    struct events *events = events_create(rules, LABELS, true, RATE, keep, &heard);
    for (size_t i = 0; i < n; i++) {
        events_push(events, i * ROW, ROW, rows[i]);
    }
    events_destroy(events);
    return heard;
}

static void of_exclusive_labels_the_best_alone_is_on(void **state)
{
    (void)state;
    const float rows[][LABELS] = {{0.5f, 0.45f, 0}, {0.45f, 0.5f, 0}, {0.45f, 0.5f, 0}, {0.3f, 0.25f, 0.38f}};
    struct heard heard = run_exclusive(rows, 4);
    assert_int_equal(heard.n, 3);
    assert_event(&heard.at[0], EVENT_BEGIN, 0, 0, 10);
    assert_event(&heard.at[1], EVENT_END, 0, 0, 10); /* at once: hold bridges no other label */
    assert_event(&heard.at[2], EVENT_BEGIN, 1, 10, 20);
}

static void an_exclusive_label_stays_while_no_other_reaches_on(void **state)
{
    (void)state;
    const float rows[][LABELS] = {{0.5f, 0, 0}, {0.3f, 0.39f, 0}, {0.45f, 0.42f, 0}, {0, 0, 0}};
    assert_int_equal(run_exclusive(rows, 4).n, 1);
}

/* Whatever the scores: beginnings and ends alternate, nothing overlaps, and what was told lasted. */
static void told_events_are_in_order_for_any_scores(void **state)
{
    (void)state;
    uint64_t seed = 3;
    for (int round = 0; round < 2000; round++) {
        char digits[ROOM / 2 + 1] = "";
        for (int i = 0; i < ROOM / 2; i++) {
            digits[i] = (char)('0' + test_bits(&seed) % 10);
        }
        struct event_rule rule = {.on = 0.65f, .off = 0.45f};
        rule.min_s = 0.01 * (double)(test_bits(&seed) % 4);
        rule.hold_s = 0.01 * (double)(test_bits(&seed) % 4);
        struct heard heard = run(rule, digits);
        uint64_t after = 0;
        for (int i = 0; i < heard.n; i++) {
            const struct event *event = &heard.at[i];
            assert_int_equal(event->kind == EVENT_BEGIN, i % 2 == 0);
            assert_true(event->from >= after && event->to > event->from);
            assert_true(digits[event->from / ROW] > '6' && digits[event->to / ROW - 1] > '4');
            assert_true((double)(event->to - event->from) >= rule.min_s * RATE);
            assert_true(event->mean <= event->peak && event->peak >= 0.65f);
            after = i % 2 ? event->to + (uint64_t)(rule.hold_s * RATE) : after;
        }
    }
}

static void the_earliest_open_event_is_known(void **state)
{
    (void)state;
    struct heard heard = {.n = 0};
    struct event_rule rules[2] = {{.on = 0.5f, .off = 0.3f}, {.on = 0.5f, .off = 0.3f, .min_s = 1}};
    struct events *events = events_create(rules, 2, false, RATE, keep, &heard);
    assert_true(events_open_since(events) == UINT64_MAX);
    events_push(events, 0, 10, (float[]){0, 0.6f});
    events_push(events, 10, 10, (float[]){0.6f, 0.6f});
    assert_int_equal(events_open_since(events), 0); /* not told yet, but it may be */
    events_push(events, 20, 10, (float[]){0.6f, 0});
    assert_int_equal(events_open_since(events), 10);
    events_destroy(events);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_event_lasts_from_on_to_off),
        cmocka_unit_test(below_on_nothing_begins),
        cmocka_unit_test(a_dip_of_hold_is_bridged_and_a_longer_one_ends),
        cmocka_unit_test(what_is_shorter_than_min_is_never_told),
        cmocka_unit_test(a_long_event_is_cut_and_goes_on_as_another),
        cmocka_unit_test(a_cut_ends_at_the_last_row_that_belongs),
        cmocka_unit_test(rows_of_different_lengths_count_by_their_time),
        cmocka_unit_test(time_of_which_no_row_speaks_weighs_nothing),
        cmocka_unit_test(a_nan_counts_as_zero),
        cmocka_unit_test(of_exclusive_labels_the_best_alone_is_on),
        cmocka_unit_test(an_exclusive_label_stays_while_no_other_reaches_on),
        cmocka_unit_test(told_events_are_in_order_for_any_scores),
        cmocka_unit_test(the_earliest_open_event_is_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
