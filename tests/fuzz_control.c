/* SPDX-License-Identifier: MIT */
/* Any bytes get an answer that is whole, or wait for the engine's thread, which here never comes. The first byte says how much
 * of the rest is the second frame, a stream's state say. */
#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "daemon/control.h"
#include "daemon/daemon.h"
#include "daemon/router.h"
#include "daemon/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static struct daemon *daemon;
static FILE *nowhere;

static void set_up(void)
{
    static const char text[] =
        "version: 1\npublish: \"\"\npipelines:\n  p:\n    source: {type: pcm, path: 'unix:build/fuzz/in', rate: 16000, format: s16le}\n"
        "    model: tests/data/tiny-denoise.safetensors\n    sinks: [{type: file, path: build/fuzz/control.wav}]\n";
    struct config_errors errors = {0};
    struct ssm_error err = {0};
    struct config *config = config_parse(text, strlen(text), "fuzz", NULL, 0, &errors);
    daemon = config ? daemon_open(config, &err) : NULL;
    nowhere = fopen("/dev/null", "w");
    if (!daemon || !nowhere) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    if (!daemon) {
        set_up();
    }
    struct control *control = control_open("", daemon, NULL);
    size_t blob = size > 0 ? (size - 1) * bytes[0] / 256 : 0, answer_size;
    const uint8_t *body = bytes + (size > 0);
    size_t body_size = size - (size > 0) - blob;
    const struct router_request request = {
        .body = body, .size = body_size, .blob = body + body_size, .blob_size = blob, .allowed = true, .admin = true};
    const char *answer = control ? control_answer(control, &request, &answer_size) : "";
    if (answer && answer[0] != '{' && !wire_json(nowhere, (const uint8_t *)answer, answer_size)) {
        abort();
    }
    control_close(control);
    return 0;
}
