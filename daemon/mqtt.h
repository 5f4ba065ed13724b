/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_MQTT_H
#define DAEMON_MQTT_H

/* Messages of an MQTT broker (3.1.1): a client that subscribes to one filter, and comes again when the broker went. Each time it
 * is a new session: what is published while it isn't connected never comes. One thread. */

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>

#include "config/config.h"
#include "model/ssm.h"

struct mqtt;

/* Whom messages are given to. Retained ones aren't: nobody knows how old they are. */
typedef void mqtt_take(void *context, const void *bytes, size_t n);

/* Nothing is connected yet. Borrows config and pipeline's name. NULL with *err (66: a file isn't there; 78: not such an address). */
struct mqtt *mqtt_open(const struct config_source *config, const char *pipeline, mqtt_take *take, void *context,
                       struct ssm_error *err);
void mqtt_close(struct mqtt *mqtt); /* NULL is fine */

/* What to wait for (fd -1: for the time alone), and for how many ms at most; then, with what came of it: take messages, write
 * what is to be written, connect when it is time. Blocks for no longer than it takes to look up a host's name. */
int mqtt_wait(const struct mqtt *mqtt, struct pollfd *fd);
void mqtt_turn(struct mqtt *mqtt, short events);
bool mqtt_is_subscribed(const struct mqtt *mqtt);

#endif
