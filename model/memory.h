/* SPDX-License-Identifier: MIT */
#ifndef MODEL_MEMORY_H
#define MODEL_MEMORY_H

/* Memory that devices may read and write by themselves, and that can be taken from under them: who hangs and wakes up later
 * writes to pages that nobody has any more. Any thread, one at a time. */

#include <stdbool.h>
#include <stddef.h>

struct memory {
    void *at;     /* NULL: none */
    void *spare;  /* room for other pages; NULL: used up */
    size_t bytes; /* asked for, rounded up */
};

/* Zeroed, on a border of large pages, and not a forked child's. False: there is none. */
bool memory_take(struct memory *memory, size_t bytes);
void memory_give_back(struct memory *memory);
/* The same, but nothing else comes to lie where it was: a device that failed may know that for ever as pages of its own. */
void memory_give_up(struct memory *memory);

/* Put other pages in its place, with the same content. What is written by others meanwhile may be lost. Once. */
void memory_sever(struct memory *memory);

#endif
