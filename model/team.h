/* SPDX-License-Identifier: MIT */
#ifndef MODEL_TEAM_H
#define MODEL_TEAM_H

/* A few threads that do one thing together. Waiting spins for a while, then sleeps in the kernel (futex), so a
 * team costs nothing once it sleeps and no lock on the hop path. One owner calls team_run; members call team_barrier. */

#include <pthread.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct team;

/* How long waiting spins before it sleeps, us. Briefly: between hops nobody does. Patiently: where each thread steps a GPU of its
 * own, for waking one (50 us, at times 1 ms) would be part of every step. */
enum { TEAM_BRIEFLY = 50, TEAM_PATIENTLY = 1000 };

/* Start a thread that blocks every signal: those are the program's. False: it can't be. */
bool team_thread(pthread_t *thread, void *(*body)(void *arg), void *arg);

/* Gives a team of `threads`, the caller of team_run among them, or NULL; spin_us: TEAM_... */
struct team *team_create(int threads, int spin_us);
void team_destroy(struct team *team); /* NULL is fine */

/* Call work(arg, member) for member 0 (here) to members - 1 (in the workers) at once; back when all are done.
 * members is at most the team's threads. */
void team_run(struct team *team, int members, void (*work)(void *arg, int member), void *arg);

/* The same in two halves, for a caller who does something else as member 0: start the workers, and wait until each has
 * been and gone. What they work on stays until the wait, which comes before the next start or run; again is fine. */
void team_start(struct team *team, int members, void (*work)(void *arg, int member), void *arg);
void team_wait(struct team *team);

/* Wait until every member of the team_run in progress is here. Writes before it are seen by all after it. */
void team_barrier(struct team *team);

#ifdef __cplusplus
}
#endif

#endif
