/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_RECALL_H
#define CLIENTS_RECALL_H

/* What a stream of bytes has shown so far, beside a model that knows bytes in general.
 *
 * Behind each of the last one to six bytes: which bytes came next, how often. Its guess and the model's are mixed by
 * weights that go to whoever was right of late, for each length of what was found again its own. A host's name, a
 * program's messages, the digits of its numbers are usual after a few lines, whatever the model was trained on, and
 * stay so however long ago they were last seen. Lines are learned when they end, odd ones a little: what is odd once is
 * odd the next time, too, and becomes usual only if it goes on.
 *
 * 8 MB, constant; new contexts take the places of the rarest. One thread. */

#include <stdbool.h>

struct recall;

/* NULL: out of memory. */
struct recall *recall_create(void);
void recall_destroy(struct recall *recall);

/* The next byte, which the model expected with this surprise (bits): its surprise after all. */
double recall_take(struct recall *recall, unsigned char byte, double bits);

/* What was taken since the last time was a line; learn it. */
void recall_learn(struct recall *recall, bool odd);

#endif
