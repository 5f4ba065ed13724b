/* SPDX-License-Identifier: MIT */
#include "daemon/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/folder.h"
#include "tests/test.h"

/* Two of a kind, a headset that plays only, and servers. */
static const struct sound_device list[] = {
    {.name = "ALSA:USB Audio", .id = "usb:046d:0825:A1,0", .inputs = 2},
    {.name = "ALSA:USB Audio", .id = "path:pci-0000:00:14.0-usb-0:2:1.0,0", .inputs = 2},
    {.name = "ALSA:Headset", .id = "card:Headset,0", .outputs = 2},
    {.name = "ALSA:Headset mic", .inputs = 1, .default_input = true},
    {.name = "JACK:system", .inputs = 2, .outputs = 2, .default_output = true},
};
enum { N = sizeof list / sizeof *list };

static int find(const char *wanted, bool capture)
{
    struct ssm_error err = {0};
    int i = names_find(list, N, wanted, capture, &err);
    assert_int_equal(i < 0, err.code == 69);
    return i;
}

static void a_device_is_found_by_id_name_bare_name_or_part(void **state)
{
    (void)state;
    assert_int_equal(find("usb:046d:0825:A1,0", true), 0);
    assert_int_equal(find("path:pci-0000:00:14.0-usb-0:2:1.0,0", true), 1);
    assert_int_equal(find("JACK:system", true), 4);
    assert_int_equal(find("system", false), 4);
    assert_int_equal(find("jack", false), 4);
    assert_int_equal(find("headset", true), 3);
    assert_int_equal(find("Headset", false), 2);
    assert_int_equal(find("default", true), 3);
    assert_int_equal(find("", false), 4);
}

static void what_is_not_there_or_not_one_is_refused(void **state)
{
    (void)state;
    assert_int_equal(find("USB Audio", true), -1); /* there are two */
    assert_int_equal(find("Headset mic", false), -1);
    assert_int_equal(find("hw:0,0", true), -1);
    struct ssm_error err = {0};
    names_find(list, N, "USB Audio", true, &err);
    assert_non_null(strstr(err.text, "2 audio devices"));
}

static void numbers_that_change_are_no_part_of_a_name(void **state)
{
    (void)state;
    struct sound_device device;
    names_fill(&device, "ALSA", "USB Audio Device: - (hw:1,0)");
    assert_string_equal(device.name, "ALSA:USB Audio Device");
    names_fill(&device, "ALSA", "HDA Intel PCH: ALC269VC Analog (hw:0,0)");
    assert_string_equal(device.name, "ALSA:HDA Intel PCH: ALC269VC Analog");
    names_fill(&device, "JACK", "system");
    assert_string_equal(device.name, "JACK:system");
    assert_string_equal(device.id, "");
}

static void write_file(const char *root, const char *path, const char *text)
{
    char whole[300];
    snprintf(whole, sizeof whole, "%s/%s", root, path);
    for (char *at = strchr(whole + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(whole, 0700);
        *at = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void who_holds_a_device_is_told(void **state)
{
    (void)state;
    char text[256];
    names_obstacle(text, sizeof text, folder, folder);
    assert_string_equal(text, "");
    write_file(folder, "asound/card0/pcm0p/sub0/status", "closed\n");
    names_obstacle(text, sizeof text, folder, folder);
    assert_string_equal(text, "");
    write_file(folder, "asound/card0/pcm0c/sub0/status", "state: RUNNING\nowner_pid   : 4711\ntrigger_time: 1.0\n");
    write_file(folder, "4711/comm", "arecord\n");
    names_obstacle(text, sizeof text, folder, folder);
    assert_string_equal(text, "arecord (4711) holds asound/card0/pcm0c/sub0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_is_found_by_id_name_bare_name_or_part),
        cmocka_unit_test(what_is_not_there_or_not_one_is_refused),
        cmocka_unit_test(numbers_that_change_are_no_part_of_a_name),
        cmocka_unit_test(who_holds_a_device_is_told),
    };
    return cmocka_run_group_tests_name("names", tests, NULL, NULL);
}
