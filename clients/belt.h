/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_BELT_H
#define CLIENTS_BELT_H

/* A few blocks of samples on their way from one thread to another, so that reading, computing and writing a recording go
 * on at the same time in bounded memory. One thread puts, one takes; both may wait. */

#include <stdbool.h>
#include <stddef.h>

struct belt;

/* Room for `blocks` blocks of `values` floats. NULL when memory runs out. */
struct belt *belt_create(int blocks, size_t values);
void belt_destroy(struct belt *belt); /* NULL is fine; nobody is in a call */

/* The one who puts: wait for an empty block, fill it, and put it with how many values it holds. NULL: stopped. */
float *belt_room(struct belt *belt);
void belt_put(struct belt *belt, size_t values);

/* The one who takes: wait for a full block, use it, and give it back. NULL: stopped, and every block that was put has been
 * taken. */
float *belt_take(struct belt *belt, size_t *values);
void belt_give_back(struct belt *belt);

/* Either side, any number of times: nothing more is put, because it ended or the other side is gone. What was put can
 * still be taken. */
void belt_stop(struct belt *belt);

#endif
