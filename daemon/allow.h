/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_ALLOW_H
#define DAEMON_ALLOW_H

/* Whose public keys may come in, and which of them may change things: files of keys (daemon/cert.h), or folders of such files,
 * read anew when one of them has changed. One owner, who locks. */

#include <stdbool.h>

#include "model/ssm.h"

struct allow;

enum allow_role { ALLOW_NOBODY, ALLOW_CLIENT, ALLOW_ADMIN };

/* clients: a file or folder, or "any" for every key there is; admins: a file or folder, or "" for none. Borrowed. NULL with *err
 * (66: not to be read). In folders names that begin with '.' or end in _secret are passed over. */
struct allow *allow_open(const char *clients, const char *admins, struct ssm_error *err);
void allow_close(struct allow *allow); /* NULL is fine */

/* Look at the files, and read them if one of them has changed. What can't be read any more allows nobody;
 * where that is for want of memory or descriptors, or by an I/O error, who was allowed still is. True: they were. */
bool allow_refresh(struct allow *allow);

enum allow_role allow_find(const struct allow *allow, const char *key);

#endif
