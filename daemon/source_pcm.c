/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/log.h"
#include "daemon/pull.h"
#include "daemon/socket.h"
#include "daemon/source.h"
#include "dsp/clock.h"
#include "dsp/pcm.h"
#include "dsp/spare.h"
#include "model/refuse.h"

/* Interleaved PCM from standard input, from whoever connects to a socket, one at a time, or in ZeroMQ's messages, each of whole
 * samples. A thread reads it and waits for room in the feeds, so that a pipe is slowed down rather than cut. */
enum { BLOCK = 512, ROOM_POLL = 2000000 };

struct pcm_source {
    struct source source;
    const struct config_source *config;
    int listener, client; /* -1: none. Standard input is a client */

    /* The thread's. */
    size_t frame, held; /* bytes of one sample of all channels; bytes of an incomplete one */
    uint8_t *bytes;     /* (BLOCK, frame), or a message                                    */
    float samples[BLOCK];
};

/* A socket, or that of the source before. */
static int open_place(struct pcm_source *pcm, const struct source *before, struct ssm_error *err)
{
    const char *path = pcm->config->path, *socket = strncmp(path, "unix:", 5) == 0 ? path + 5 : NULL;
    if (before) {
        pcm->source.place = socket_place_share(before->place);
    } else {
        pcm->source.place = socket_place_create(
            socket ? socket_listen_unix(socket, err) : socket_listen_tcp(path + 6, err), socket, err);
    }
    pcm->listener = pcm->source.place ? pcm->source.place->fd : -1;
    return pcm->source.place ? 0 : -1;
}

static int open_path(struct pcm_source *pcm, const struct source_setup *setup, struct ssm_error *err)
{
    const struct source *before = setup->before;
    const char *path = pcm->config->path;
    if (strcmp(path, "-") == 0) {
        pcm->client = spare_input() ? dup(0) : -1;
        return pcm->client < 0 ? refuse(err, 66, "standard input is closed") : 0;
    }
    pcm->source.endless = true;
    pcm->source.invites = strncmp(path, "unix:", 5) == 0 || strncmp(path, "tcp://", 6) == 0;
    if (pcm->source.invites) {
        return open_place(pcm, before, err);
    }
    bool pull = strncmp(path, "pull:", 5) == 0;
    pcm->source.follows = before && !pull;
    pcm->source.pull = pull ? pull_bind(setup->gate, path + strlen("pull:"), before ? before->pull : NULL, err)
                            : pull_subscribe(setup->gate, path + strlen("sub:"), pcm->config->server_key, "", err);
    return pcm->source.pull ? 0 : -1;
}

static void pcm_close(struct source *source)
{
    struct pcm_source *pcm = (struct pcm_source *)source;
    source_thread_finish(source);
    if (pcm->client >= 0) {
        close(pcm->client);
    }
    free(pcm->bytes);
    free(pcm);
}

static struct source *pcm_open(const struct source_setup *setup, struct ssm_error *err)
{
    struct pcm_source *pcm = calloc(1, sizeof *pcm);
    if (!pcm) {
        refuse_memory(err);
        return NULL;
    }
    const struct config_source *config = setup->config;
    pcm->source.ops = &source_pcm;
    pcm->source.rate = config->rate;
    pcm->source.n_channels = config->pcm_channels;
    pcm->source.patient = !config->paced;
    pcm->config = config;
    pcm->listener = pcm->client = -1;
    pcm->frame = pcm_bytes(config->format) * (size_t)config->pcm_channels;
    for (int i = 0; i < config->pcm_channels; i++) {
        pcm->source.channels[i] = i;
    }
    if (source_thread_init(&pcm->source, err) < 0 || open_path(pcm, setup, err) < 0) {
        goto fail;
    }
    pcm->bytes = pcm->source.pull ? malloc(PULL_MOST) : calloc(BLOCK, pcm->frame);
    if (!pcm->bytes) {
        refuse_memory(err);
        goto fail;
    }
    return &pcm->source;
fail:
    pcm_close(&pcm->source);
    return NULL;
}

/* ---- The thread. ---- */

/* Wait until every feed takes samples, but for what is paced; gives how many, at most n and a block; 0 when told to stop. */
static size_t wait_for_room(struct pcm_source *pcm, size_t n)
{
    while (!atomic_load(&pcm->source.stopping)) {
        size_t fits = n < BLOCK ? n : BLOCK;
        for (int i = 0; pcm->source.patient && i < pcm->source.n_channels; i++) {
            size_t room = feed_room(pcm->source.feeds[i]);
            fits = room < fits ? room : fits;
        }
        if (fits > 0) {
            return fits;
        }
        waker_wait(&pcm->source.stop, ROOM_POLL);
    }
    return 0;
}

static void give_piece(struct pcm_source *pcm, const uint8_t *bytes, size_t n, int64_t arrived)
{
    const struct config_source *config = pcm->config;
    for (int i = 0; i < pcm->source.n_channels; i++) {
        size_t bad = pcm_decode(config->format, bytes, (size_t)config->pcm_channels, (size_t)i, pcm->samples, n);
        count(&pcm->source.counters[i], COUNTER_NAN_INPUT, bad);
        size_t fits = feed_write(pcm->source.feeds[i], pcm->samples, 1, n, arrived);
        count(&pcm->source.counters[i], COUNTER_RING_FULL, n - fits);
    }
    waker_wake(pcm->source.engine);
}

/* In pieces, since a short buffer holds less than a block. What waits when told to stop stays out, as what is still in the
 * pipe does: the input ends there, nothing of it is lost in the middle. */
static void give(struct pcm_source *pcm, size_t n, int64_t arrived)
{
    for (size_t at = 0, fits; at < n && (fits = wait_for_room(pcm, n - at)) > 0; at += fits) {
        give_piece(pcm, pcm->bytes + at * pcm->frame, fits, arrived);
    }
}

/* Read what is there. False: this client is gone, or standard input ended. */
static bool read_some(struct pcm_source *pcm)
{
    ssize_t got = read(pcm->client, pcm->bytes + pcm->held, BLOCK * pcm->frame - pcm->held);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
        return true;
    }
    if (got <= 0) {
        if (got < 0 && pcm->listener < 0) {
            log_line(LOG_ERROR, "standard input can't be read: %s", strerror(errno));
            atomic_store(&pcm->source.code, 74);
        } else if (got < 0) {
            log_line(LOG_WARNING, "%s: a connection ended: %s", pcm->config->path, strerror(errno));
        }
        pcm->held = 0;
        return false;
    }
    size_t bytes = pcm->held + (size_t)got, n = bytes / pcm->frame;
    if (n > 0) {
        give(pcm, n, clock_now());
    }
    pcm->held = bytes - n * pcm->frame;
    memmove(pcm->bytes, pcm->bytes + n * pcm->frame, pcm->held);
    return true;
}

/* Every message that waits, each of whole samples: a lost one doesn't shift the bytes of those behind it. */
static void drain_pull(struct pcm_source *pcm)
{
    for (long n; (n = source_receive(&pcm->source, pcm->bytes, PULL_MOST)) >= 0;) {
        give(pcm, (size_t)n / pcm->frame, clock_now());
    }
}

/* Its descriptor only tells of changes. */
static bool turn_pull(struct pcm_source *pcm)
{
    struct pollfd fds[2] = {{.fd = pcm->source.stop.fd, .events = POLLIN},
                            {.fd = pull_fd(pcm->source.pull), .events = POLLIN}};
    drain_pull(pcm);
    poll(fds, 2, -1);
    return true;
}

static void let_go(struct pcm_source *pcm)
{
    close(pcm->client);
    pcm->client = -1;
    admission_leave(&pcm->source.pass);
}

/* Who connects where there is no room is told so in a line, as control would answer. */
static void turn_away(struct pcm_source *pcm)
{
    static const char answer[] = "{\"ok\":false,\"err\":{\"code\":\"over_capacity\",\"msg\":\"this machine carries no more streams "
                                 "now\",\"path\":\"\"}}\n";
    if (send(pcm->client, answer, sizeof answer - 1, MSG_NOSIGNAL) < 0) {
        log_line(LOG_DEBUG, "%s: who was turned away didn't hear why", pcm->config->path);
    }
    log_line(LOG_WARNING, "%s: a connection was refused: the machine's capacity is taken", pcm->config->path);
    let_go(pcm);
}

/* Wait for bytes or, with nobody connected, for somebody. False: it is over. */
static bool turn(struct pcm_source *pcm)
{
    struct pollfd fds[2] = {{.fd = pcm->source.stop.fd, .events = POLLIN},
                            {.fd = pcm->client >= 0 ? pcm->client : pcm->listener, .events = POLLIN}};
    if (poll(fds, 2, -1) < 0 || fds[1].revents == 0) {
        return true;
    }
    if (pcm->client < 0) {
        pcm->client = socket_accept(pcm->listener);
        if (pcm->client < 0) {
            poll(fds, 1, 100); /* no descriptors left, say: the listener stays readable, so don't spin on it */
        } else if (!admission_enter(&pcm->source.pass)) {
            turn_away(pcm);
        }
        return true;
    }
    if (read_some(pcm)) {
        return true;
    }
    let_go(pcm);
    return pcm->listener >= 0;
}

static void *run(void *arg)
{
    struct pcm_source *pcm = arg;
    source_thread_wait(&pcm->source);
    while (!atomic_load(&pcm->source.stopping) && (pcm->source.pull ? turn_pull : turn)(pcm)) {
    }
    for (int i = 0; i < pcm->source.n_channels; i++) {
        feed_end(pcm->source.feeds[i]);
    }
    waker_wake(pcm->source.engine);
    return NULL;
}

static int pcm_start(struct source *source, struct ssm_error *err)
{
    return source_thread_start(source, run, "PCM input", err);
}

const struct source_ops source_pcm = {.name = "pcm",
                                      .open = pcm_open,
                                      .start = pcm_start,
                                      .listen = source_listen,
                                      .begin = source_begin,
                                      .stop = source_stop,
                                      .close = pcm_close};
