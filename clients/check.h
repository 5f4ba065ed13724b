/* SPDX-License-Identifier: MIT */
#ifndef CLIENTS_CHECK_H
#define CLIENTS_CHECK_H

/* What a start of ssmd would refuse in a configuration, without sound devices and addresses (clients/ssm_check.c). */

#include "config/config.h"
#include "model/ssm.h"

enum { TROUBLES = 16 };

/* What it is, and where the file says it. */
struct troubles {
    struct trouble {
        const struct config_place *at;
        struct ssm_error err;
    } at[TROUBLES];
    int n;
};

/* In the order of the daemon's start: keys, sources, models, room for them, what fits what. Gives how many models there are. */
int check_all(const struct config *config, struct troubles *troubles);

#endif
