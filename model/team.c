/* SPDX-License-Identifier: MIT */
#include "model/team.h"

#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS_PER_US = 20 }; /* a `pause` is some 50 ns on current processors */

/* A counter one can wait on. */
struct gate {
    _Alignas(64) atomic_uint value;
    atomic_uint sleepers;
};

struct worker {
    struct gate start;
    struct team *team;
    pthread_t thread;
    int member;
};

struct team {
    struct gate done, barrier;
    atomic_uint pending, arrived;
    unsigned turn; /* of `done`, as the last start found it */
    int threads, members, spins;
    bool over;
    void (*work)(void *arg, int member);
    void *arg;
    struct worker *workers; /* threads - 1 of them */
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Wait until the gate's value is no longer `old`. Sleeper count and value are sequentially consistent: either the
 * opener sees the sleeper, or the sleeper sees the new value. */
static void gate_wait(struct gate *gate, unsigned old, int spins)
{
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(&gate->value, memory_order_acquire) != old) {
            return;
        }
        relax();
    }
    atomic_fetch_add(&gate->sleepers, 1);
    while (atomic_load(&gate->value) == old) {
        syscall(SYS_futex, &gate->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    }
    atomic_fetch_sub(&gate->sleepers, 1);
}

static void gate_open(struct gate *gate)
{
    atomic_fetch_add(&gate->value, 1);
    if (atomic_load(&gate->sleepers)) {
        syscall(SYS_futex, &gate->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct team *team = worker->team;
    for (unsigned turn = 0;; turn++) {
        gate_wait(&worker->start, turn, team->spins);
        if (team->over) {
            return NULL;
        }
        team->work(team->arg, worker->member);
        if (atomic_fetch_sub(&team->pending, 1) == 1) {
            gate_open(&team->done);
        }
    }
}

bool team_thread(pthread_t *thread, void *(*body)(void *arg), void *arg)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = !pthread_create(thread, NULL, body, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

static bool start_worker(struct team *team, int i)
{
    struct worker *worker = &team->workers[i];
    worker->team = team;
    worker->member = i + 1;
    return team_thread(&worker->thread, worker_main, worker);
}

static void *zeroed(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    return memory ? memset(memory, 0, bytes) : NULL;
}

struct team *team_create(int threads, int spin_us)
{
    struct team *team = zeroed(sizeof *team);
    if (!team || !(team->workers = zeroed((size_t)threads * sizeof *team->workers))) {
        free(team);
        return NULL;
    }
    team->spins = spin_us * SPINS_PER_US;
    for (team->threads = 1; team->threads < threads; team->threads++) {
        if (!start_worker(team, team->threads - 1)) {
            team_destroy(team);
            return NULL;
        }
    }
    return team;
}

void team_destroy(struct team *team)
{
    if (team) {
        team->over = true;
        for (int i = 0; i < team->threads - 1; i++) {
            gate_open(&team->workers[i].start);
            pthread_join(team->workers[i].thread, NULL);
        }
        free(team->workers);
        free(team);
    }
}

void team_start(struct team *team, int members, void (*work)(void *arg, int member), void *arg)
{
    team->turn = atomic_load(&team->done.value);
    team->members = members;
    team->work = work;
    team->arg = arg;
    atomic_store(&team->pending, (unsigned)members - 1);
    for (int i = 0; i < members - 1; i++) {
        gate_open(&team->workers[i].start);
    }
}

void team_wait(struct team *team)
{
    if (team->members > 1) {
        gate_wait(&team->done, team->turn, team->spins);
    }
}

void team_run(struct team *team, int members, void (*work)(void *arg, int member), void *arg)
{
    team_start(team, members, work, arg);
    work(arg, 0);
    team_wait(team);
}

void team_barrier(struct team *team)
{
    unsigned turn = atomic_load(&team->barrier.value);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == (unsigned)team->members) {
        atomic_store(&team->arrived, 0);
        gate_open(&team->barrier);
    } else {
        gate_wait(&team->barrier, turn, team->spins);
    }
}
