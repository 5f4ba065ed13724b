/* SPDX-License-Identifier: MIT */
/* daemon/log.c: a storm of lines is counted instead of told. */
#include "daemon/log.h"

#include <fcntl.h>
#include <unistd.h>

#include "dsp/clock.h"
#include "tests/test.h"

static int64_t time_ns = INT64_C(5000000000);

static int64_t test_now(void)
{
    return time_ns;
}
static int64_t test_asleep(void)
{
    return 0;
}
static const struct clock_world world = {test_now, test_asleep, test_now, 1};

static char text[1 << 16];

/* stderr into a file while `say` speaks, then into `text`; gives how many lines that was. */
static int hear(void (*say)(void))
{
    FILE *file = tmpfile();
    int kept = dup(2), lines = 0;
    assert_true(dup2(fileno(file), 2) == 2);
    say();
    fflush(stderr);
    dup2(kept, 2);
    close(kept);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    for (const char *at = text; (at = strchr(at, '\n')); at++) {
        lines++;
    }
    return lines;
}

static void storm(void)
{
    for (int i = 0; i < 100000; i++) {
        log_line(LOG_WARNING, "it failed: %d", i);
    }
}

static void quiet(void)
{
    log_turn(false);
}

static void finish(void)
{
    log_turn(true);
}

static void other(void)
{
    log_line(LOG_ERROR, "something else");
}

static void many_kinds(void)
{
    static char formats[100][16];
    for (int i = 0; i < 100; i++) {
        snprintf(formats[i], sizeof formats[i], "kind %d", i);
        log_line(LOG_WARNING, formats[i], 0);
    }
}

static void news(void)
{
    for (int i = 0; i < 100; i++) {
        log_line(LOG_INFO, "stream %d", i);
    }
}

static void a_storm_is_told_forty_times_and_then_as_a_number(void **state)
{
    (void)state;
    assert_int_equal(hear(storm), 40);
    assert_non_null(strstr(text, "ssmd: warning: it failed: 39\n"));
    assert_int_equal(hear(other), 1); /* the others are told beside it */
    time_ns += INT64_C(9000000000);
    assert_int_equal(hear(quiet), 0);
    time_ns += INT64_C(2000000000);
    assert_int_equal(hear(quiet), 1);
    assert_string_equal(text, "ssmd: warning: repeated 99960 times in 10 s, the last: it failed: 99999\n");
    assert_int_equal(hear(quiet), 0);
    assert_int_equal(hear(storm), 40); /* from the beginning */
    assert_int_equal(hear(finish), 1);
}

static void news_and_many_kinds_are_all_told(void **state)
{
    (void)state;
    assert_int_equal(hear(news), 100);
    assert_int_equal(hear(many_kinds), 100);
    assert_int_equal(hear(storm), 40);
    assert_int_equal(hear(many_kinds), 101); /* they crowd it out: it is told first */
    assert_non_null(strstr(text, "repeated 99960 times"));
}

static void say_what_is_no_text(void)
{
    log_line(LOG_INFO, "%s", "\xff \"\x1b \xc2\x9b \xc3\xa9");
}

static void machines_read_the_number_by_itself(void **state)
{
    (void)state;
    hear(finish);
    log_as_json();
    assert_int_equal(hear(storm), 40);
    assert_true(strncmp(text, "{\"time\":", 8) == 0);
    hear(finish);
    assert_non_null(strstr(text, "\"level\":\"warning\",\"repeated\":99960,\"text\":\"it failed: 99999\"}\n"));
    hear(say_what_is_no_text);
    assert_non_null(strstr(text, ",\"text\":\"\\ufffd \\\"\\u001b \\u009b \xc3\xa9\"}\n")); /* the first byte was no UTF-8, and so no JSON */
}

/* A pipe that nobody reads stops nobody; what it didn't take is told when there is room again. */
static void a_full_pipe_holds_nobody_up(void **state)
{
    (void)state;
    int ends[2], kept = dup(2), full = 0;
    char byte = '.';
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    while (write(ends[1], &byte, 1) == 1) {
        full++;
    }
    assert_int_equal(fcntl(ends[1], F_SETFL, 0), 0);
    assert_true(dup2(ends[1], 2) == 2);
    log_line(LOG_INFO, "nobody hears this");
    log_line(LOG_INFO, "nor this");
    for (size_t n; full > 0; full -= (int)n) {
        ssize_t got = read(ends[0], text, sizeof text);
        n = got > 0 ? (size_t)got : 0;
    }
    log_line(LOG_INFO, "but this");
    dup2(kept, 2);
    close(kept);
    ssize_t got = read(ends[0], text, sizeof text - 1);
    close(ends[0]);
    close(ends[1]);
    assert_true(got > 0);
    text[got] = '\0';
    assert_non_null(strstr(text, "2 lines found no room here and are lost\n"));
    assert_non_null(strstr(text, "but this\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_storm_is_told_forty_times_and_then_as_a_number),
        cmocka_unit_test(a_full_pipe_holds_nobody_up),
        cmocka_unit_test(news_and_many_kinds_are_all_told),
        cmocka_unit_test(machines_read_the_number_by_itself),
    };
    clock_replace(&world);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
