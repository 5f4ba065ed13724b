/* SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "clients/json.h"
#include "clients/verb.h"
#include "daemon/cert.h"

static int run_keys(char **arguments, int n)
{
    struct ssm_error err = {0};
    struct cert cert;
    (void)n;
    if (cert_make(&cert, &err) < 0 || cert_write(&cert, arguments[0], &err) < 0) {
        return verb_fail(err.code, "%s", err.text);
    }
    if (verb_json) {
        struct json json = {.file = stdout};
        json_open(&json, NULL, '{');
        json_text(&json, "public_key", cert.public_key);
        json_text(&json, "file", arguments[0]);
        json_close(&json, '}');
        putchar('\n');
    } else {
        puts(cert.public_key);
    }
    return 0;
}

const struct verb ssm_keys = {
    .name = "keys",
    .arguments = "NAME",
    .summary = "make a key pair, to be known by a running ssmd",
    .details = "Write a new CURVE key pair, as czmq and pyzmq keep them: NAME holds the public key and is for everybody, NAME_secret\n"
               "holds both, is readable by its owner alone and stays where it is. Files that are there are never replaced. Prints\n"
               "the public key. A daemon names its NAME_secret in `curve: {secret: ...}` and lists its clients' NAMEs in\n"
               "`clients:`; a client gives --key NAME_secret --server-key KEY.",
    .examples = "  ssm keys /etc/ssmd/server\n"
                "  ssm keys alice && cp alice /etc/ssmd/clients/\n"
                "  ssm watch --connect tcp://192.168.1.5:5571 --server-key server --key alice_secret",
    .least = 1,
    .most = 1,
    .run = run_keys,
};
