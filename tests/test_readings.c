/* SPDX-License-Identifier: MIT */
#include "dsp/readings.h"

#include "tests/test.h"

static struct readings *create(enum reading_format format, const char *fields)
{
    char *theirs = strdup(fields); /* which goes */
    struct readings *readings = readings_create(&(struct readings_options){.format = format, .fields = theirs});
    assert_non_null(readings);
    memset(theirs, '?', strlen(fields));
    free(theirs);
    return readings;
}

static enum reading_status parse(struct readings *readings, const char *line, struct reading *reading)
{
    char *copy = strndup(line, strlen(line)); /* no byte more than the line, for the sanitizers */
    enum reading_status status = readings_parse(readings, copy, strlen(line), reading);
    free(copy);
    return status;
}

static void assert_reading(struct readings *readings, const char *line, double time, float a, float b)
{
    struct reading reading;
    enum reading_status status = parse(readings, line, &reading);
    if (status != READING_OK) {
        fail_msg("%s: %d, %s", line, status, readings_fault(readings));
    }
    assert_int_equal(reading.timed, isfinite(time));
    if (reading.timed) {
        assert_close(reading.time, time, 1e-6);
    }
    assert_close(reading.values[0], a, 1e-6);
    assert_close(reading.values[1], b, 1e-6);
}

static void assert_status(struct readings *readings, const char *line, enum reading_status status, const char *fault)
{
    struct reading reading;
    assert_int_equal(parse(readings, line, &reading), status);
    assert_int_equal(reading.missing, status == READING_MISSING);
    if (fault) {
        assert_string_equal(readings_fault(readings), fault);
    }
}

static void a_header_says_the_columns(void **state)
{
    (void)state;
    struct readings *readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "# a comment", READING_NONE, NULL);
    assert_status(readings, "ay, time ,x,\"ax\"", READING_NONE, NULL);
    assert_reading(readings, "1,2.5,junk,-3e-1", 2.5, -0.3f, 1);
    assert_reading(readings, " \"4\" , 3 ,, 5 ", 3, 5, 4);
    assert_status(readings, "", READING_NONE, NULL);
    assert_status(readings, "ax,ay", READING_NONE, NULL); /* another: the source began again */
    assert_reading(readings, "1,2", NAN, 1, 2);
    readings_destroy(readings);
}

static void what_separates_may_stand_between_quotes(void **state)
{
    (void)state;
    struct readings *readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "t,\"a, note\",ax,ay", READING_NONE, NULL);
    assert_reading(readings, "1,\"7,8\",2,3", 1, 2, 3); /* 7 was ax, 8" ay */
    assert_reading(readings, "2, \"says \"\"4,5\"\"\" ,2,3", 2, 2, 3);
    assert_reading(readings, "3,5\",2,3", 3, 2, 3); /* a quote that begins no cell */
    assert_status(readings, "4,\"open,2,3", READING_OK, NULL);
    readings_destroy(readings);
}

static void a_mark_of_utf_8_is_no_part_of_a_name(void **state)
{
    (void)state;
    struct readings *readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "\xef\xbb\xbft,ax,ay", READING_NONE, NULL);
    assert_reading(readings, "1.5,2,3", 1.5, 2, 3); /* had no time */
    readings_destroy(readings);
    readings = create(READING_JSONL, "ax,ay");
    assert_reading(readings, "\xef\xbb\xbf{\"ax\": 1, \"ay\": 2}", NAN, 1, 2);
    readings_destroy(readings);
}

static void without_a_header_the_order_counts(void **state)
{
    (void)state;
    struct readings *readings = create(READING_CSV, "ax,ay");
    assert_reading(readings, "7;1.5;2", 7, 1.5f, 2);
    readings_destroy(readings);
    readings = create(READING_CSV, "ax,ay");
    assert_reading(readings, "1.5\t2", NAN, 1.5f, 2);
    assert_status(readings, "ax\tay\tt", READING_NONE, NULL);
    assert_status(readings, "1.5\t2", READING_BAD, "ends after 2 of 3 columns");
    assert_reading(readings, "1.5\t2\t3", 3, 1.5f, 2);
    assert_status(readings, "\t2\t3", READING_MISSING, NULL); /* a tab is no blank here: ended after 2 of 3 */
    assert_reading(readings, "1.5\t2\t3 ", 3, 1.5f, 2);
    readings_destroy(readings);
    readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "1,2,3,4", READING_BAD, "has neither 2 columns nor 3, and no header named them");
    readings_destroy(readings);
}

static void a_header_that_lacks_a_field_is_told(void **state)
{
    (void)state;
    struct readings *readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "time,ax,az", READING_BAD, "no header has named all of ax,ay");
    assert_status(readings, "1,2,3", READING_BAD, "no header has named all of ax,ay"); /* not taken for time, ax, ay */
    readings_destroy(readings);
}

static void a_header_that_names_a_column_twice_is_told(void **state)
{
    (void)state;
    struct readings *readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "t,ax,ay,ax,ay", READING_BAD,
                  "the header names ax twice, as columns 2 and 4"); /* 4 and 5 were taken */
    assert_status(readings, "1,2,3,4,5", READING_BAD, NULL);
    assert_status(readings, "ax;t;ay;\"t\"", READING_BAD, "the header names t twice, as columns 2 and 4");
    assert_status(readings, "t,x,,x,ax,,ay", READING_NONE, NULL); /* what isn't taken may be twice */
    assert_reading(readings, "1,,,,2,,3", 1, 2, 3);
    assert_status(readings, "ax,ay,ay", READING_BAD, "the header names ay twice, as columns 2 and 3");
    assert_status(readings, "1,2,3", READING_BAD, NULL); /* a header that there was speaks of other columns */
    assert_status(readings, "timestamp,t,ax,ay", READING_NONE, NULL);
    readings_destroy(readings);
    assert_null(readings_create(&(struct readings_options){.fields = "a,b,a"}));
}

/* Which table programs leave without a name. */
static void a_header_may_have_cells_without_a_name(void **state)
{
    (void)state;
    struct readings *readings = create(READING_CSV, "ax,ay");
    assert_status(readings, ",ax,ay", READING_NONE, NULL);
    assert_reading(readings, "0,2,3", NAN, 2, 3); /* 0 was the time */
    readings_destroy(readings);
    readings = create(READING_CSV, "ax,ay");
    assert_status(readings, ",ax,az", READING_BAD, "no header has named all of ax,ay");
    assert_status(readings, "0,2,3", READING_BAD, NULL);
    readings_destroy(readings);
    readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "2026-11-22T09:30:00Z,,", READING_MISSING, NULL); /* no header */
    assert_reading(readings, "2026-11-22T09:30:01Z,1,2", 1795339801, 1, 2);
    readings_destroy(readings);
}

static void json_takes_its_keys_and_passes_over_the_rest(void **state)
{
    (void)state;
    struct readings *readings = create(READING_JSONL, "ax,ay");
    assert_reading(readings, "{\"t\": 1.5, \"ax\": 1, \"ay\": -2e3}", 1.5, 1, -2000);
    assert_reading(readings, "{\"ay\":2,\"who\":{\"ax\":[9,{\"b\":\"}\\\"\"}]},\"ax\":1,\"ok\":true}", NAN, 1, 2);
    assert_status(readings, "{}", READING_MISSING, NULL);
    assert_status(readings, "{\"ax\": 1, \"ay\": null}", READING_MISSING, NULL);
    assert_status(readings, "{\"ax\": 1}", READING_MISSING, NULL);
    const char *bad[] = {"{", "[1]", "{\"ax\": 1, \"ay\": 2", "{\"ax\": 1 \"ay\": 2}", "{\"ax\": 1, \"ay\": 2} x", "{\"ax\"}",
                         "{\"x\":[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]],\"ax\":1,\"ay\":2}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_status(readings, bad[i], READING_BAD, "not an object of JSON");
    }
    assert_status(readings, "{\"ax\": \"1\", \"ay\": 2}", READING_BAD, "ax is no number");
    assert_status(readings, "{\"ax\": 1, \"ay\": [2]}", READING_BAD, "ay is no number");
    assert_status(readings, "{\"ax\": 1, \"ay\": true}", READING_BAD, "ay is no number");
    readings_destroy(readings);
}

static void times_are_seconds_or_dates(void **state)
{
    (void)state;
    struct readings *readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "timestamp,ax,ay", READING_NONE, NULL);
    assert_reading(readings, "1700000000.25,1,2", 1700000000.25, 1, 2);
    assert_reading(readings, "1700000000250,1,2", 1700000000.25, 1, 2);
    assert_reading(readings, "1700000000250000,1,2", 1700000000.25, 1, 2);
    assert_reading(readings, "1700000000250000000,1,2", 1700000000.25, 1, 2);
    assert_reading(readings, "2023-11-14T22:13:20.25Z,1,2", 1700000000.25, 1, 2);
    assert_reading(readings, "2023-11-14 23:13:20.25+01:00,1,2", 1700000000.25, 1, 2);
    assert_reading(readings, "2023-11-15T03:43:20.25+0530,1,2", 1700000000.25, 1, 2); /* was +05 */
    assert_reading(readings, "2023-11-14T19:13:20.25-03,1,2", 1700000000.25, 1, 2);
    assert_reading(readings, "2016-12-31T23:59:60.5Z,1,2", 1483228800.5, 1, 2); /* a leap second */
    assert_reading(readings, "2024-02-29T00:00:00,1,2", 1709164800, 1, 2);
    static const char *const others[] = {"2023-02-29T00:00:00Z", "2023-13-01T00:00:00Z", "2023-11-14T24:00:00Z", "2023-11-14T22:60:00Z",
                                         "2023-11-14T22:13:61Z", "2023-11-14T22:13:20+1", "2023-11-14T22:13:20+01:99",
                                         "2023-11-14T22:13:20+01:00abc", "2023-11-14T22:13:20.2.5Z", "2023-11-14T22:13:20.5e3Z",
                                         "2023-11-14T 2:13:20Z", "-023-11-14T22:13:20Z"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char line[64];
        snprintf(line, sizeof line, "%s,1,2", others[i]);
        assert_status(readings, line, READING_BAD, "the time is neither seconds nor a date");
    }
    assert_status(readings, "soon,1,2", READING_BAD, "the time is neither seconds nor a date");
    assert_status(readings, "1e300,1,2", READING_BAD, "the time is neither seconds nor a date");
    readings_destroy(readings);
    readings = readings_create(
        &(struct readings_options){.format = READING_JSONL, .fields = "ax,t", .time = "at"});
    assert_reading(readings, "{\"at\": \"2023-11-14T22:13:20Z\", \"ax\": 1, \"t\": 2}", 1700000000, 1, 2);
    readings_destroy(readings);
}

static void values_are_missing_out_of_range_or_no_numbers(void **state)
{
    (void)state;
    struct readings *readings = readings_create(
        &(struct readings_options){.format = READING_CSV, .fields = "ax,ay", .least = -16, .most = 16});
    assert_status(readings, "1,", READING_MISSING, NULL);
    assert_status(readings, "NaN,1", READING_MISSING, NULL);
    assert_status(readings, "1,17", READING_RANGE, "ay is 17, out of -16 to 16");
    assert_status(readings, "1,inf", READING_BAD, "ay is no number");
    assert_status(readings, "1,0x10", READING_BAD, "ay is no number");
    assert_status(readings, "1,1.2.3", READING_BAD, "ay is no number");
    assert_reading(readings, "-16,16", NAN, -16, 16);
    readings_destroy(readings);
    readings = create(READING_CSV, "ax,ay");
    assert_status(readings, "1,1e99", READING_RANGE, "ay is too large");
    readings_destroy(readings);
}

static void fields_have_limits(void **state)
{
    (void)state;
    char many[READING_FIELDS * 4 + 8] = "", line[READING_FIELDS * 4] = "";
    for (int i = 0; i < READING_FIELDS; i++) {
        sprintf(many + strlen(many), "%sf%d", i ? "," : "", i);
        sprintf(line + strlen(line), "%s%d", i ? "," : "", i);
    }
    struct readings *readings = create(READING_CSV, many);
    struct reading reading;
    assert_int_equal(parse(readings, line, &reading), READING_OK);
    assert_close(reading.values[READING_FIELDS - 1], READING_FIELDS - 1, 0);
    readings_destroy(readings);
    strcat(many, ",x");
    assert_null(readings_create(&(struct readings_options){.fields = many}));
    assert_null(readings_create(&(struct readings_options){.fields = ""}));
    assert_null(readings_create(&(struct readings_options){.fields = "a,,b"}));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_says_the_columns),
        cmocka_unit_test(what_separates_may_stand_between_quotes),
        cmocka_unit_test(a_mark_of_utf_8_is_no_part_of_a_name),
        cmocka_unit_test(without_a_header_the_order_counts),
        cmocka_unit_test(a_header_that_lacks_a_field_is_told),
        cmocka_unit_test(a_header_that_names_a_column_twice_is_told),
        cmocka_unit_test(a_header_may_have_cells_without_a_name),
        cmocka_unit_test(json_takes_its_keys_and_passes_over_the_rest),
        cmocka_unit_test(times_are_seconds_or_dates),
        cmocka_unit_test(values_are_missing_out_of_range_or_no_numbers),
        cmocka_unit_test(fields_have_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
