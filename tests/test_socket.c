/* SPDX-License-Identifier: MIT */
/* daemon/socket.c: what the system dropped of a socket that two read. */
#include "daemon/socket.h"

#include <fcntl.h>
#include <pthread.h>

#include "tests/test.h"

enum { READERS = 4, DATAGRAMS = 100000 };

static struct socket_place *place(void)
{
    struct ssm_error err = {0};
    struct socket_place *place = socket_place_create(open("/dev/null", O_RDONLY | O_CLOEXEC), NULL, &err);
    assert_non_null(place);
    return place;
}

static void what_was_dropped_counts_once_in_any_order(void **state)
{
    (void)state;
    struct socket_place *two = place();
    assert_int_equal(socket_place_dropped(two, 0), 0);
    assert_int_equal(socket_place_dropped(two, 7), 7);
    assert_int_equal(socket_place_dropped(two, 5), 0); /* came before, and is looked at behind it: not 4294967294 */
    assert_int_equal(socket_place_dropped(two, 9), 2);
    socket_place_dropped(two, 1u << 31);
    socket_place_dropped(two, UINT32_MAX - 1);
    assert_int_equal(socket_place_dropped(two, 3), 5); /* it has gone round */
    assert_int_equal(socket_place_dropped(two, UINT32_MAX), 0);
    socket_place_destroy(two);
}

static struct socket_place *shared;
static atomic_uint next_one;
static _Atomic uint64_t counted;

static void *read_some(void *unused)
{
    for (uint32_t n; (n = atomic_fetch_add(&next_one, 1)) <= DATAGRAMS;) {
        atomic_fetch_add(&counted, socket_place_dropped(shared, n));
    }
    return unused;
}

static void readers_beside_each_other_count_all(void **state)
{
    (void)state;
    pthread_t readers[READERS];
    shared = place();
    for (int i = 0; i < READERS; i++) {
        assert_int_equal(pthread_create(&readers[i], NULL, read_some, NULL), 0);
    }
    for (int i = 0; i < READERS; i++) {
        pthread_join(readers[i], NULL);
    }
    assert_int_equal(atomic_load(&counted), DATAGRAMS);
    socket_place_destroy(shared);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_dropped_counts_once_in_any_order),
        cmocka_unit_test(readers_beside_each_other_count_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
