/* SPDX-License-Identifier: MIT */
/* What other processes send to a pcm source arrives to the sample, however it is cut. Corpus: corpus_ingest.
 *
 * The first byte chooses the samples' format, one channel or three, and the way. Behind it are pieces: two bytes of length (15
 * bits) and `more`, then the bytes. A piece is what is written to a Unix socket at once, or a frame of a ZeroMQ message, which
 * ends with a piece that has no more. The third way sends all of it as it is to a ZeroMQ port: any handshake, any header. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "config/config.h"
#include "daemon/gate.h"
#include "daemon/source.h"
#include "dsp/clock.h"
#include "dsp/pcm.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* Pieces: fewer than a feed has marks and a ZeroMQ socket has room for. */
enum { CHANNELS = 3, ROOM = 1 << 17, SIZE_MOST = 1 << 16, PIECES = 900, PATIENCE = 2000000000, A_WHILE = 2000000 };
enum way { SOCKET, MESSAGES, RAW, WAYS };

static struct input {
    struct config_source config;
    struct source *source;
    struct counters counters[CHANNELS];
    void *push;
} inputs[WAYS][PCM_FORMATS][2]; /* one or three channels */
static struct gate *gate;
static struct waker engine = {.fd = -1};
static void *context;

static void open_input(struct input *input, enum way way, enum pcm_format format, bool many)
{
    struct config_source *config = &input->config;
    snprintf(config->path, sizeof config->path, "%sbuild/fuzz/ingest-%ld-%ld", way == SOCKET ? "unix:" : "pull:ipc://", (long)getpid(),
             (long)(input - &inputs[0][0][0]));
    config->rate = 16000;
    config->pcm_channels = many ? CHANNELS : 1;
    config->format = format;
    struct ssm_error err = {0};
    struct source_setup setup = {.config = config, .pipeline = "p", .gate = gate};
    input->source = source_pcm.open(&setup, &err);
    if (!input->source) {
        abort();
    }
    input->source->counters = input->counters;
    input->source->engine = &engine;
    for (int i = 0; i < config->pcm_channels; i++) {
        input->source->feeds[i] = feed_create(ROOM);
    }
    input->push = zmq_socket(context, ZMQ_PUSH);
    if (source_pcm.start(input->source, &err) < 0 || source_pcm.listen(input->source, &err) < 0 ||
        (way == MESSAGES && zmq_connect(input->push, config->path + strlen("pull:")) != 0)) {
        abort();
    }
    source_pcm.begin(input->source);
}

static void each_input(void (*visit)(struct input *input, enum way way, enum pcm_format format, bool many))
{
    for (int way = 0; way < WAYS; way++) {
        for (int i = 0; i < PCM_FORMATS * 2; i++) {
            visit(&inputs[way][i / 2][i % 2], (enum way)way, (enum pcm_format)(i / 2), i % 2);
        }
    }
}

static void remove_socket(struct input *input, enum way way, enum pcm_format format, bool many)
{
    (void)format;
    (void)many;
    unlink(input->config.path + strlen(way == SOCKET ? "unix:" : "pull:ipc://"));
}

static void remove_sockets(void)
{
    each_input(remove_socket);
}

static void set_up(void)
{
    gate = gate_open(NULL, NULL);
    context = zmq_ctx_new();
    if (!gate || !context || waker_init(&engine) < 0) {
        abort();
    }
    each_input(open_input);
    atexit(remove_sockets);
}

/* ---- What is to come. ---- */

struct piece {
    const uint8_t *bytes;
    size_t size;
    bool more;
};

/* False: that was the last one. */
static bool next_piece(const uint8_t **at, size_t *left, struct piece *piece)
{
    if (*left < 2) {
        return false;
    }
    size_t length = ((size_t)(*at)[0] | (size_t)(*at)[1] << 8) & 0x7fff;
    piece->more = (*at)[1] & 0x80;
    piece->bytes = *at + 2;
    piece->size = length < *left - 2 ? length : *left - 2;
    *at += 2 + piece->size;
    *left -= 2 + piece->size;
    return true;
}

/* Whole samples of all channels: of a socket's bytes in a row, or of each message's last frame. */
static size_t expect(enum way way, const uint8_t *bytes, size_t size, size_t frame, uint8_t *expected)
{
    size_t n = 0, held = 0;
    struct piece piece;
    for (int i = 0; i < PIECES && next_piece(&bytes, &size, &piece); i++) {
        if (way == SOCKET) {
            memcpy(expected + held, piece.bytes, piece.size);
            held += piece.size;
            n = held / frame;
        } else if (!piece.more || i == PIECES - 1 || size < 2) {
            memcpy(expected + n * frame, piece.bytes, piece.size / frame * frame);
            n += piece.size / frame;
        }
    }
    return n;
}

/* ---- Sending. ---- */

static int dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        abort();
    }
    return fd;
}

static void send_all(int fd, const uint8_t *bytes, size_t n)
{
    for (ssize_t sent; n > 0 && (sent = send(fd, bytes, n, MSG_NOSIGNAL)) > 0; n -= (size_t)sent) {
        bytes += sent;
    }
}

static void send_pieces(const struct input *input, enum way way, const uint8_t *bytes, size_t size)
{
    int fd = way == SOCKET ? dial(input->config.path + strlen("unix:")) : -1;
    struct piece piece;
    for (int i = 0; i < PIECES && next_piece(&bytes, &size, &piece); i++) {
        int more = piece.more && i < PIECES - 1 && size >= 2 ? ZMQ_SNDMORE : 0;
        if (way == SOCKET) {
            send_all(fd, piece.bytes, piece.size);
        } else if (zmq_send(input->push, piece.bytes, piece.size, more) < 0) {
            abort();
        }
    }
    if (way == SOCKET) {
        close(fd);
    }
}

/* ---- Receiving. ---- */

/* Up to n samples of a channel, or what comes within a time; as they have to be, where that is known. */
static size_t take(struct input *input, int channel, const float *expected, size_t n, int64_t patience)
{
    static float samples[ROOM];
    int64_t until = clock_now() + patience;
    size_t got = 0;
    for (size_t k = 0; got < n && (k > 0 || clock_now() < until); got += k) {
        struct feed_note note;
        k = feed_read(input->source->feeds[channel], samples, n - got < ROOM ? n - got : ROOM, &note);
        for (size_t i = 0; i < k; i++) {
            if (!(samples[i] * 0 == 0) || (expected && (samples[i] != expected[got + i] || note.hole > 0))) {
                abort();
            }
        }
        if (k == 0) {
            waker_wait(&engine, A_WHILE);
        }
    }
    return got;
}

static void send_and_take(struct input *input, enum way way, const uint8_t *bytes, size_t size)
{
    static uint8_t expected[SIZE_MOST];
    static float samples[SIZE_MOST];
    size_t channels = (size_t)input->config.pcm_channels, frame = pcm_bytes(input->config.format) * channels;
    size_t n = expect(way, bytes, size, frame, expected);
    send_pieces(input, way, bytes, size);
    for (size_t i = 0; i < channels; i++) {
        pcm_decode(input->config.format, expected, channels, i, samples, n);
        if (take(input, (int)i, samples, n, PATIENCE) < n || feed_fill(input->source->feeds[i]) > 0) {
            abort();
        }
    }
}

/* Whatever it brings is taken. */
static void send_raw(struct input *input, const uint8_t *bytes, size_t size)
{
    int fd = dial(input->config.path + strlen("pull:ipc://"));
    send_all(fd, bytes, size);
    for (int i = 0; i < input->config.pcm_channels; i++) {
        take(input, i, NULL, SIZE_MAX, A_WHILE);
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    if (!gate) {
        set_up();
    }
    if (size == 0 || size > SIZE_MOST) {
        return 0;
    }
    enum way way = (enum way)(bytes[0] / PCM_FORMATS / 2 % WAYS);
    struct input *input = &inputs[way][bytes[0] % PCM_FORMATS][bytes[0] / PCM_FORMATS % 2];
    if (way == RAW) {
        send_raw(input, bytes + 1, size - 1);
    } else {
        send_and_take(input, way, bytes + 1, size - 1);
    }
    return 0;
}
