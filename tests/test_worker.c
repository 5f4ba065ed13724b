/* SPDX-License-Identifier: MIT */
#include "daemon/worker.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "tests/test.h"

struct counted {
    atomic_int calls;
    int slow_ms;
    atomic_bool inside;
};

static int64_t serve(void *item, int64_t now)
{
    struct counted *counted = item;
    atomic_store(&counted->inside, true);
    nanosleep(&(struct timespec){.tv_nsec = counted->slow_ms * 1000000L}, NULL);
    atomic_fetch_add(&counted->calls, 1);
    atomic_store(&counted->inside, false);
    return counted->slow_ms > 0 ? now : INT64_MAX;
}

static void worker_serves_what_is_added_while_it_runs(void **state)
{
    (void)state;
    struct worker *worker = worker_create();
    struct counted before = {0}, after = {0};
    assert_int_equal(worker_add(worker, serve, &before), 0);
    assert_int_equal(worker_start(worker), 0);
    assert_int_equal(worker_add(worker, serve, &after), 0);
    for (int i = 0; i < 100; i++) {
        int calls = atomic_load(&after.calls);
        worker_wake(worker);
        while (atomic_load(&after.calls) == calls) {
        }
    }
    worker_stop(worker);
    assert_true(atomic_load(&before.calls) >= 100);
    worker_destroy(worker);
}

static void worker_serves_once_more_and_never_again_what_is_removed(void **state)
{
    (void)state;
    struct worker *worker = worker_create();
    struct counted slow = {.slow_ms = 2}, gone = {0};
    worker_add(worker, serve, &slow);
    worker_start(worker);
    for (int i = 0; i < 50; i++) {
        worker_add(worker, serve, &gone);
        int calls = atomic_load(&gone.calls);
        worker_remove(worker, &gone);
        assert_true(atomic_load(&gone.calls) > calls);
        calls = atomic_load(&gone.calls);
        for (int turns = atomic_load(&slow.calls); atomic_load(&slow.calls) < turns + 2;) {
        }
        assert_int_equal(atomic_load(&gone.calls), calls);
    }
    worker_remove(worker, &slow);
    assert_false(atomic_load(&slow.inside));
    worker_destroy(worker);
}

static void worker_that_does_not_run_changes_at_once(void **state)
{
    (void)state;
    struct worker *worker = worker_create();
    struct counted one = {0}, two = {0};
    worker_add(worker, serve, &one);
    worker_add(worker, serve, &two);
    worker_remove(worker, &one);
    assert_int_equal(atomic_load(&one.calls), 1);
    worker_start(worker);
    worker_stop(worker);
    assert_int_equal(atomic_load(&one.calls), 1);
    assert_true(atomic_load(&two.calls) > 0);
    worker_remove(worker, &two);
    worker_remove(worker, &two);
    worker_destroy(worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worker_serves_what_is_added_while_it_runs),
        cmocka_unit_test(worker_serves_once_more_and_never_again_what_is_removed),
        cmocka_unit_test(worker_that_does_not_run_changes_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
