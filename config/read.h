/* SPDX-License-Identifier: MIT */
#ifndef CONFIG_READ_H
#define CONFIG_READ_H

/* A tree and the table of keys -> structs. */

#include "config/document.h"
#include "config/keys.h"

/* Fill the struct at `base` (all zero) from a map. All that is wrong is added to errors, and reading goes on behind it:
 * a list or NAMED field still gets an entry for each entry of the file, in its order. */
void read_map(const struct keys *keys, const struct node *map, void *base, struct config_errors *errors);

/* The row that `name` was probably meant to be, among those of `type` (-1: all), or NULL when none is near. */
const struct key *read_nearest(const struct keys *keys, int type, const char *name);

#endif
