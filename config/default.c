/* SPDX-License-Identifier: MIT */
#include "config/config.h"

const char *config_default(void)
{
    return "# What ssmd runs without --config: the default microphone, cleaned, for subscribers on this machine.\n"
           "version: 1\n"
           "publish: tcp://127.0.0.1:5571\n"
           "pipelines:\n"
           "  mic:\n"
           "    source: {type: audio}\n"
           "    model: denoise-16k\n"
           "    sinks:\n"
           "      - {type: publish}\n";
}
