/* SPDX-License-Identifier: MIT */
#include "dsp/part.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/folder.h"
#include "tests/test.h"

static void each_is_a_new_file_of_its_mode_beside_the_path(void **state)
{
    (void)state;
    const char *path = in_folder("x.wav");
    size_t n = strlen(path);
    char *one, *two;
    struct stat found;
    int first = part_create(path, 0600, &one), second = part_create(path, 0644, &two);
    assert_true(first >= 0 && second >= 0);
    assert_int_not_equal(strcmp(one, two), 0);
    assert_int_equal(strncmp(one, path, n), 0);
    assert_int_equal(strspn(one + n, ".0123456789abcdef"), 9 + 1);
    assert_string_equal(one + n + 9, ".part");
    assert_int_equal(fstat(first, &found), 0);
    assert_int_equal(found.st_mode & 0777, 0600);
    assert_int_equal(fcntl(second, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    close(first);
    close(second);
    unlink(one);
    unlink(two);
    free(one);
    free(two);
}

static void a_name_as_long_as_may_be_has_one_too(void **state)
{
    (void)state;
    char name[256] = "x";
    for (int i = 1; i < 250; i += 3) {
        memcpy(name + i, "\xe4\xbd\xa0", 4); /* letters of three bytes */
    }
    strcpy(name + 250, ".wav");
    char *path = strdup(in_folder(name)), *part;
    int fd = part_create(path, 0600, &part);
    assert_true(fd >= 0); /* "File name too long" */
    size_t n = strlen(part) - strlen(".01234567.part");
    assert_int_equal(strncmp(part, path, n), 0);
    assert_int_equal(path[n] & 0xc0, 0xc0); /* a letter begins */
    assert_int_equal(rename(part, path), 0);
    close(fd);
    unlink(path);
    free(path);
    free(part);
    strcat(name, "yy");
    assert_int_equal(part_create(in_folder(name), 0600, &part), -1);
    assert_int_equal(errno, ENAMETOOLONG);
}

static void where_none_can_be_errno_says_why(void **state)
{
    (void)state;
    char *part;
    assert_int_equal(part_create(in_folder("none/x.wav"), 0600, &part), -1);
    assert_int_equal(errno, ENOENT);
    assert_null(part);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_is_a_new_file_of_its_mode_beside_the_path),
        cmocka_unit_test(a_name_as_long_as_may_be_has_one_too),
        cmocka_unit_test(where_none_can_be_errno_says_why),
    };
    return cmocka_run_group_tests_name("part", tests, NULL, NULL);
}
