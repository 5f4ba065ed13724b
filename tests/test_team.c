/* SPDX-License-Identifier: MIT */
/* model/team.c: everybody works, everybody waits, and sleepers wake. */
#include <time.h>

#include "model/team.h"
#include "tests/test.h"

enum { MEMBERS = 4, ROUNDS = 300 };

struct task {
    struct team *team;
    int rounds;
    int counts[MEMBERS]; /* one a member: plain, so that a race shows under ThreadSanitizer */
    int sums[MEMBERS][ROUNDS];
    int members;
};

static void count(void *arg, int member)
{
    struct task *task = arg;
    task->counts[member]++;
}

static void run_calls_every_member_once_and_waits_for_all(void **state)
{
    (void)state;
    struct task task = {0};
    struct team *team = team_create(MEMBERS, TEAM_BRIEFLY);
    assert_non_null(team);
    for (int i = 0; i < 2000; i++) {
        int members = 1 + i % MEMBERS;
        memset(task.counts, 0, sizeof task.counts);
        team_run(team, members, count, &task);
        for (int k = 0; k < MEMBERS; k++) {
            assert_int_equal(task.counts[k], k < members);
        }
    }
    team_destroy(team);
}

/* Each member writes its count, all meet, each reads all counts, all meet. */
static void meet(void *arg, int member)
{
    struct task *task = arg;
    for (int i = 0; i < task->rounds; i++) {
        task->counts[member] = i;
        team_barrier(task->team);
        for (int k = 0; k < task->members; k++) {
            task->sums[member][i] += task->counts[k];
        }
        team_barrier(task->team);
    }
}

static void what_is_written_before_a_barrier_is_read_behind_it(void **state)
{
    (void)state;
    struct team *team = team_create(MEMBERS, TEAM_BRIEFLY);
    for (int members = 1; members <= MEMBERS; members++) {
        struct task task = {.team = team, .rounds = ROUNDS, .members = members};
        team_run(team, members, meet, &task);
        for (int k = 0; k < members; k++) {
            for (int i = 0; i < ROUNDS; i++) {
                assert_int_equal(task.sums[k][i], members * i);
            }
        }
    }
    team_destroy(team);
}

/* The caller does its part in between; the last start's members are gone when the next begins. */
static void workers_go_on_without_the_caller(void **state)
{
    (void)state;
    struct task task = {0};
    struct team *team = team_create(MEMBERS, TEAM_BRIEFLY);
    team_wait(team); /* nothing was started: there is nothing to wait for */
    for (int i = 0; i < 2000; i++) {
        team_start(team, 1 + i % MEMBERS, count, &task);
        task.counts[0]++;
        team_wait(team);
        team_wait(team);
    }
    for (int k = 0; k < MEMBERS; k++) {
        assert_int_equal(task.counts[k], 2000 - 2000 * k / MEMBERS);
    }
    team_destroy(team);
}

static void sleepers_wake(void **state)
{
    (void)state;
    struct task task = {0};
    struct team *team = team_create(MEMBERS, TEAM_BRIEFLY);
    for (int i = 0; i < 20; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL); /* far past the spinning */
        team_run(team, MEMBERS, count, &task);
    }
    assert_int_equal(task.counts[MEMBERS - 1], 20);
    team_destroy(team);
    team_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run_calls_every_member_once_and_waits_for_all),
        cmocka_unit_test(what_is_written_before_a_barrier_is_read_behind_it),
        cmocka_unit_test(workers_go_on_without_the_caller),
        cmocka_unit_test(sleepers_wake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
