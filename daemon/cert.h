/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_CERT_H
#define DAEMON_CERT_H

/* CURVE key pairs and their files, as czmq's zcert writes them: FILE holds the public key and is for everybody, FILE_secret holds
 * both and is its owner's alone. Keys are Z85 text. */

#include <stdbool.h>
#include <stddef.h>

#include "model/ssm.h"

enum { CERT_KEY = 41 }; /* a key's bytes as text, with its end */

struct cert {
    char public_key[CERT_KEY], secret_key[CERT_KEY];
};

/* A new pair. 0, or -1 with *err: this libzmq has no CURVE. */
int cert_make(struct cert *cert, struct ssm_error *err);

/* Write the pair to `path` and `path`_secret (0600), neither of which may be there. 0, or -1 with *err (73): nothing is left
 * behind. */
int cert_write(const struct cert *cert, const char *path, struct ssm_error *err);

/* Read both keys of a FILE_secret. -1 with *err: 66 not to be read, 78 no pair of keys, 77 others than its owner and group may
 * read it. */
int cert_read(struct cert *cert, const char *path, struct ssm_error *err);

/* The public key that `text` is, or that is in the file of that name. 0, or -1 with *err (66, 78). */
int cert_public(const char *text, char key[CERT_KEY], struct ssm_error *err);

/* Each public key in a file, which may hold any number of them. Gives false where it can't be read. */
bool cert_each(const char *path, void (*found)(void *context, const char *key), void *context);

#endif
