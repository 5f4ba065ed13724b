/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "model/memory.h"
#include "tests/test.h"

static void what_is_taken_is_zeroed_and_on_a_large_page(void **state)
{
    (void)state;
    struct memory memory;
    assert_true(memory_take(&memory, 3000001));
    assert_int_equal((uintptr_t)memory.at % (2 << 20), 0);
    assert_int_equal(memory.bytes, 4 << 20);
    for (size_t i = 0; i < memory.bytes; i++) {
        assert_int_equal(((char *)memory.at)[i], 0);
    }
    memory_give_back(&memory);
    assert_null(memory.at);
    memory_give_back(&memory);
}

static void what_cannot_be_had_is_not_there(void **state)
{
    (void)state;
    struct memory memory;
    assert_false(memory_take(&memory, 0));
    assert_false(memory_take(&memory, SIZE_MAX));
    assert_false(memory_take(&memory, (size_t)1 << 62));
    assert_null(memory.at);
    memory_give_back(&memory);
}

static void where_it_was_nothing_else_comes(void **state)
{
    (void)state;
    struct memory memory, next;
    assert_true(memory_take(&memory, 1));
    char *was = memory.at;
    memory_give_up(&memory);
    assert_null(memory.at);
    assert_int_equal(msync(was, 4096, MS_ASYNC), 0); /* it is taken */
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], was, 1), -1); /* but nobody can read it */
    assert_true(memory_take(&next, 1));
    assert_true((char *)next.at + next.bytes <= was || (char *)next.at >= was + next.bytes);
    memory_give_back(&next);
    memory_give_up(&next);
    close(ends[0]);
    close(ends[1]);
}

/* A pipe holds pages as a device does, by what they are and not by where. */
static void who_holds_the_pages_keeps_the_old_ones(void **state)
{
    (void)state;
    struct memory memory;
    int ends[2];
    char seen[8];
    assert_true(memory_take(&memory, 1));
    char *at = memory.at;
    strcpy(at + 4096, "before");
    strcpy(at + memory.bytes - 8, "the end");
    assert_int_equal(pipe(ends), 0);
    struct iovec page = {at + 4096, 8};
    assert_int_equal(vmsplice(ends[1], &page, 1, 0), 8);
    memory_sever(&memory);
    assert_ptr_equal(memory.at, at);
    assert_string_equal(at + 4096, "before");
    assert_string_equal(at + memory.bytes - 8, "the end");
    strcpy(at + 4096, "behind");
    assert_int_equal(read(ends[0], seen, 8), 8);
    assert_string_equal(seen, "before");
    memory_sever(&memory); /* it has been: nothing happens */
    assert_string_equal(at + 4096, "behind");
    memory_give_back(&memory);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_taken_is_zeroed_and_on_a_large_page),
        cmocka_unit_test(what_cannot_be_had_is_not_there),
        cmocka_unit_test(where_it_was_nothing_else_comes),
        cmocka_unit_test(who_holds_the_pages_keeps_the_old_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
