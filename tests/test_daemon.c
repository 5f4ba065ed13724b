/* SPDX-License-Identifier: MIT */
/* The real daemon (environment SSMD, or build/release/ssmd) with real sockets and files. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "daemon/wire.h"
#include "dsp/clock.h"
#include "dsp/sound_file.h"
#include "model/ssm.h"
#include "tests/folder.h"
#include "tests/test.h"

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SLOW = 1 }; /* sanitizers: not fast enough for 64 streams in real time */
#else
enum { SLOW = 0 };
#endif
#define MODEL "tests/data/tiny-denoise.safetensors"
enum { RATE = 16000, HOP = 160, TOPICS = 16 };

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static char *read_text(const char *path)
{
    static char text[65536];
    FILE *file = fopen(path, "r");
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[n] = '\0';
    if (file) {
        fclose(file);
    }
    return text;
}

/* Noise of 16 bits, so that the file gives back what was written. */
static float *make_file(const char *path, int rate, int channels, size_t n, uint64_t seed)
{
    float *samples = calloc(n * (size_t)channels + 1, sizeof(float));
    struct sound_file_info info = {.rate = rate, .channels = channels, .length = (int64_t)n};
    struct sound_file_error err;
    for (size_t i = 0; i < n * (size_t)channels; i++) {
        samples[i] = rintf(8192 * test_uniform(&seed)) / 32768;
    }
    struct sound_file *file = sound_file_create(path, &info, false, &err);
    assert_non_null(file);
    assert_true(sound_file_write(file, samples, n, &err));
    assert_true(sound_file_commit(file, &err));
    sound_file_close(file);
    return samples;
}

static int64_t length_of(const char *path, int rate, int channels)
{
    struct sound_file_info info = {0};
    struct sound_file_error err;
    struct sound_file *file = sound_file_open(path, &info, &err);
    if (!file || info.rate != rate || info.channels != channels) {
        print_error("%s: rate %d, channels %d\n", path, info.rate, info.channels);
        return -1;
    }
    sound_file_close(file);
    return info.length;
}

static bool same_bytes(const char *a, const char *b)
{
    FILE *fa = fopen(a, "r"), *fb = fopen(b, "r");
    int ca = 0, cb = 0;
    while (fa && fb && ca == cb && ca != EOF) {
        ca = fgetc(fa);
        cb = fgetc(fb);
    }
    bool same = fa && fb && ca == cb;
    fclose(fa);
    fclose(fb);
    return same;
}

/* ---- Running it. ---- */

/* Start ssmd on a configuration's text; stdin_fd -1: none. */
static pid_t start_daemon(const char *yaml, int stdin_fd)
{
    const char *program = getenv("SSMD") ? getenv("SSMD") : "build/release/ssmd";
    write_text(in_folder("config.yaml"), yaml);
    write_text(in_folder("stderr"), "");
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int log = open(in_folder("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(log, 2);
        dup2(stdin_fd >= 0 ? stdin_fd : open("/dev/null", O_RDONLY), 0);
        for (int fd = 3; fd < 64; fd++) {
            close(fd);
        }
        execl(program, "ssmd", "--config", in_folder("config.yaml"), (char *)NULL);
        _exit(127);
    }
    return child;
}

static void sleep_ms(int ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&time, &time) < 0 && errno == EINTR) {
    }
}

/* Gives the exit code; kills and gives -1 after 60 s. */
static int end_of(pid_t child)
{
    int status;
    for (int64_t until = clock_now() + 60000000000; waitpid(child, &status, WNOHANG) == 0; sleep_ms(5)) {
        if (clock_now() > until) {
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
            return -1;
        }
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void wait_for_log(const char *text)
{
    for (int i = 0; i < 2000 && !strstr(read_text(in_folder("stderr")), text); i++) {
        sleep_ms(5);
    }
    assert_non_null(strstr(read_text(in_folder("stderr")), text));
}

static const char *last_line(void)
{
    char *text = read_text(in_folder("stderr"));
    size_t n = strlen(text);
    while (n > 0 && text[n - 1] == '\n') {
        text[--n] = '\0';
    }
    const char *newline = strrchr(text, '\n');
    return newline ? newline + 1 : text;
}

/* ---- Subscribing. ---- */

struct seen {
    char topic[WIRE_TOPIC_MAX];
    uint64_t next_seq, first_s0, next_s0, messages;
    unsigned flags;
};

struct subscriber {
    void *context, *socket;
    struct seen seen[TOPICS];
    int n;
    float *audio; /* of one channel, at its position */
    size_t room;
    char state[8192]; /* the last one, as JSON */
    char hugz[8192];
};

static void subscribe(struct subscriber *subscriber, const char *address, size_t room)
{
    int timeout = 2000;
    *subscriber = (struct subscriber){.context = zmq_ctx_new(), .audio = calloc(room + 1, sizeof(float)), .room = room};
    subscriber->socket = zmq_socket(subscriber->context, ZMQ_SUB);
    zmq_setsockopt(subscriber->socket, ZMQ_SUBSCRIBE, "", 0);
    zmq_setsockopt(subscriber->socket, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    assert_int_equal(zmq_connect(subscriber->socket, address), 0);
}

static void unsubscribe(struct subscriber *subscriber)
{
    zmq_close(subscriber->socket);
    zmq_ctx_term(subscriber->context);
    free(subscriber->audio);
}

static struct seen *find_seen(struct subscriber *subscriber, const char *topic)
{
    int i = 0;
    while (i < subscriber->n && strcmp(subscriber->seen[i].topic, topic) != 0) {
        i++;
    }
    assert_true(i < TOPICS);
    if (i == subscriber->n) {
        snprintf(subscriber->seen[subscriber->n++].topic, WIRE_TOPIC_MAX, "%s", topic);
    }
    return &subscriber->seen[i];
}

static void to_json(char *text, size_t size, const void *bytes, size_t n)
{
    FILE *file = fmemopen(text, size, "w");
    assert_true(wire_json(file, bytes, n));
    fclose(file);
}

/* One message; false after 2 s of silence. Sequence numbers and samples must have no hole. */
static bool receive(struct subscriber *subscriber)
{
    char topic[WIRE_TOPIC_MAX];
    uint8_t bytes[WIRE_HEADER_MAX], payload[65536];
    struct wire_header header;
    int n = zmq_recv(subscriber->socket, topic, sizeof topic - 1, 0);
    if (n < 0) {
        return false;
    }
    topic[n] = '\0';
    n = zmq_recv(subscriber->socket, bytes, sizeof bytes, 0);
    assert_true(n > 0 && wire_decode(&header, bytes, (size_t)n));
    n = zmq_recv(subscriber->socket, payload, sizeof payload, 0);
    assert_true(n >= 0);
    struct seen *seen = find_seen(subscriber, topic);
    assert_true(seen->messages == 0 || header.seq == seen->next_seq);
    seen->next_seq = header.seq + 1;
    if (strncmp(topic, "audio/", 6) == 0) {
        assert_true(seen->messages == 0 || header.s0 == seen->next_s0);
        assert_int_equal((size_t)n, header.n * sizeof(float));
        assert_true(header.s0 + header.n <= subscriber->room);
        assert_true(header.n == 0 || (header.cap <= header.enq && header.enq <= header.inf && header.inf <= header.pub));
        memcpy(subscriber->audio + header.s0, payload, (size_t)n);
        seen->first_s0 = seen->messages == 0 ? header.s0 : seen->first_s0;
        seen->next_s0 = header.s0 + header.n;
    } else if (strncmp(topic, "state/", 6) == 0) {
        to_json(subscriber->state, sizeof subscriber->state, payload, (size_t)n);
    } else if (strncmp(topic, "hugz/", 5) == 0) {
        to_json(subscriber->hugz, sizeof subscriber->hugz, payload, (size_t)n);
    }
    seen->messages++;
    seen->flags |= header.flags;
    return true;
}

/* ---- The cases. ---- */

static void file_reaches_a_file_and_a_subscriber_bit_for_bit(void **state)
{
    (void)state;
    enum { N = RATE + 77 };
    char yaml[2048], expected_seq[256];
    float *in = make_file(in_folder("in.wav"), RATE, 1, N, 1);
    struct subscriber subscriber;
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: tcp://127.0.0.1:25571\npipelines:\n  p:\n"
             "    source: {type: file, path: %s, paced: true}\n    model: " MODEL "\n"
             "    sinks: [{type: publish}, {type: file, path: %s}]\n",
             in_folder("in.wav"), in_folder("out.wav"));
    subscribe(&subscriber, "tcp://127.0.0.1:25571", N);
    pid_t child = start_daemon(yaml, -1);
    while (!strstr(subscriber.state, "\"drained\"")) {
        assert_true(receive(&subscriber));
    }
    assert_true(receive(&subscriber)); /* the last hugz */
    assert_int_equal(end_of(child), 0);
    assert_non_null(strstr(last_line(), "drained: 101 hops in, 101 out, 0 samples lost"));
    assert_int_equal(length_of(in_folder("out.wav"), RATE, 1), N);

    struct seen *audio = find_seen(&subscriber, "audio/t/p/0/tiny-denoise/");
    assert_true(audio->flags & WIRE_END);
    assert_int_equal(audio->next_s0, N);
    snprintf(expected_seq, sizeof expected_seq, "\"audio/t/p/0/tiny-denoise/\":%llu",
             (unsigned long long)audio->next_seq - 1);
    assert_non_null(strstr(subscriber.hugz, expected_seq));
    assert_true(find_seen(&subscriber, "meter/t/p/0/tiny-denoise/")->messages >= 5);

    /* What ssm_step gives by hand. The subscriber may have come in a few hops late. */
    struct ssm_engine *engine = ssm_open(MODEL, NULL, NULL);
    size_t delay = (size_t)ssm_describe(engine)->delay, from = audio->first_s0;
    float *padded = calloc(N + delay + HOP, sizeof(float)), *out = calloc(N + delay + HOP, sizeof(float));
    ssm_stream stream;
    memcpy(padded, in, N * sizeof(float));
    ssm_stream_open(engine, &stream);
    for (size_t at = 0; at < N + delay; at += HOP) {
        struct ssm_hop hop = {.stream = stream, .in = padded + at, .out = out + at, .count = 1};
        ssm_step(engine, &hop, 1);
    }
    assert_true(from < N / 2);
    assert_memory_equal(subscriber.audio + from, out + delay + from, (N - from) * sizeof(float));
    ssm_close(engine);
    unsubscribe(&subscriber);
    free(padded);
    free(out);
    free(in);
}

static void sigterm_in_the_middle_leaves_a_whole_file(void **state)
{
    (void)state;
    char yaml[2048];
    free(make_file(in_folder("long.wav"), 48000, 2, 48000 * 20, 2));
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: tcp://127.0.0.1:25571\npipelines:\n  p:\n"
             "    source: {type: file, path: %s, paced: true}\n    model: " MODEL "\n"
             "    sinks: [{type: publish}, {type: file, path: %s}]\n",
             in_folder("long.wav"), in_folder("cut.flac"));
    struct subscriber subscriber;
    subscribe(&subscriber, "tcp://127.0.0.1:25571", 20 * RATE);
    pid_t child = start_daemon(yaml, -1);
    for (int i = 0; i < 150; i++) {
        assert_true(receive(&subscriber));
    }
    int64_t before = clock_now();
    kill(child, SIGTERM);
    while (!strstr(subscriber.state, "\"drained\"")) {
        assert_true(receive(&subscriber));
    }
    assert_int_equal(end_of(child), 0);
    assert_true(clock_now() - before < 2000000000);
    assert_non_null(strstr(last_line(), "drained"));
    uint64_t samples = strtoull(strstr(subscriber.state, "\"samples\":") + 10, NULL, 10);
    assert_true(samples > 0 && samples < 48000 * 20);
    assert_int_equal(length_of(in_folder("cut.flac"), 48000, 2), samples);
    assert_int_equal(find_seen(&subscriber, "audio/t/p/1/tiny-denoise/")->next_s0, (samples + 2) / 3);
    unsubscribe(&subscriber);
}

/* Who joins learns where things stand at once, not at the next second. */
static void late_subscriber_gets_state_and_hugz_at_once(void **state)
{
    (void)state;
    char yaml[2048];
    free(make_file(in_folder("loop.wav"), RATE, 1, RATE, 3));
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: %s\npipelines:\n  p:\n"
             "    source: {type: file, path: %s, loop: true}\n    model: " MODEL "\n    sinks: [{type: publish}]\n",
             ipc_in_folder("pub"), in_folder("loop.wav"));
    pid_t child = start_daemon(yaml, -1);
    wait_for_log("ready");
    struct stat info;
    assert_int_equal(stat(in_folder("pub"), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0660);
    for (int i = 0; i < 3; i++) {
        struct subscriber subscriber;
        int64_t before = clock_now();
        subscribe(&subscriber, ipc_in_folder("pub"), 600 * RATE);
        while (!subscriber.state[0] || !subscriber.hugz[0]) {
            assert_true(receive(&subscriber));
        }
        assert_true(clock_now() - before < (SLOW ? 900000000 : 300000000));
        unsubscribe(&subscriber);
        sleep_ms(130);
    }
    kill(child, SIGINT);
    assert_int_equal(end_of(child), 0);
}

static void streams_together_are_bit_identical_to_each_alone(void **state)
{
    (void)state;
    enum { STREAMS = 64 };
    static char yaml[65536];
    char name[32], text[1024];
    size_t n = (size_t)snprintf(yaml, sizeof yaml, "version: 1\nnode: t\npublish: \"\"\npipelines:\n");
    for (int i = 0; i < STREAMS; i++) {
        snprintf(name, sizeof name, "in%d.wav", i);
        free(make_file(in_folder(name), i % 3 ? RATE : 44100, 1, (size_t)(30000 + 100 * i), (uint64_t)(100 + i)));
        n += (size_t)snprintf(yaml + n, sizeof yaml - n,
                              "  p%d:\n    source: {type: file, path: %s/in%d.wav, paced: %s}\n    model: " MODEL "\n"
                              "    deadline: 60s\n    sinks: [{type: file, path: %s/out%d.wav}]\n",
                              i, folder, i, i % 2 && !SLOW ? "true" : "false", folder, i);
    }
    assert_int_equal(end_of(start_daemon(yaml, -1)), 0);
    assert_non_null(strstr(last_line(), " 0 samples lost"));
    for (int i = 0; i < STREAMS; i += 7) {
        snprintf(text, sizeof text,
                 "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
                 "    source: {type: file, path: %s/in%d.wav, paced: false}\n    model: " MODEL "\n"
                 "    sinks: [{type: file, path: %s/alone.wav}]\n",
                 folder, i, folder);
        assert_int_equal(end_of(start_daemon(text, -1)), 0);
        snprintf(name, sizeof name, "out%d.wav", i);
        assert_int_equal(length_of(in_folder(name), i % 3 ? RATE : 44100, 1), 30000 + 100 * i);
        assert_true(same_bytes(in_folder(name), in_folder("alone.wav")));
    }
}

static void write_all(int fd, const void *bytes, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t wrote = write(fd, (const char *)bytes + at, n - at);
        assert_true(wrote > 0);
        at += (size_t)wrote;
    }
}

static void pcm_comes_in_over_stdin_to_the_last_sample(void **state)
{
    (void)state;
    enum { N = 3 * 44100 + 5 };
    char yaml[1024];
    int ends[2];
    int16_t *pcm = calloc(2 * N, sizeof *pcm);
    uint64_t seed = 4;
    for (int i = 0; i < 2 * N; i++) {
        pcm[i] = (int16_t)(test_bits(&seed) % 8192);
    }
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
             "    source: {type: pcm, path: \"-\", rate: 44100, pcm_channels: 2, format: s16le}\n    model: " MODEL "\n"
             "    sinks: [{type: file, path: %s}]\n",
             in_folder("pcm.wav"));
    assert_int_equal(pipe(ends), 0);
    pid_t child = start_daemon(yaml, ends[0]);
    close(ends[0]);
    write_all(ends[1], pcm, 2 * N * sizeof *pcm);
    close(ends[1]);
    assert_int_equal(end_of(child), 0);
    assert_int_equal(length_of(in_folder("pcm.wav"), 44100, 2), N);
    free(pcm);
}

/* One client after another; the stream goes on. */
static void pcm_comes_in_over_a_socket(void **state)
{
    (void)state;
    enum { N = 4000 };
    char yaml[1024];
    float samples[N] = {0};
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
             "    source: {type: pcm, path: \"unix:%s\", rate: 16000, format: f32le}\n    model: " MODEL "\n"
             "    sinks: [{type: file, path: %s}]\n",
             in_folder("sock"), in_folder("sock.wav"));
    pid_t child = start_daemon(yaml, -1);
    wait_for_log("ready");
    for (int i = 0; i < 2; i++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strcpy(address.sun_path, in_folder("sock"));
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
        write_all(fd, samples, sizeof samples);
        write_all(fd, samples, 3); /* less than a sample: not one */
        close(fd);
        sleep_ms(200);
    }
    kill(child, SIGTERM);
    assert_int_equal(end_of(child), 0);
    assert_int_equal(length_of(in_folder("sock.wav"), RATE, 1), 2 * N);
    assert_int_not_equal(access(in_folder("sock"), F_OK), 0);
}

/* Listens where somebody already does: that one is left alone. */
static void a_second_daemon_leaves_the_first_ones_socket(void **state)
{
    (void)state;
    char yaml[1024];
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
             "    source: {type: pcm, path: \"unix:%s\", rate: 16000}\n    model: " MODEL "\n"
             "    sinks: [{type: file, path: %s}]\n",
             in_folder("one"), in_folder("one.wav"));
    pid_t first = start_daemon(yaml, -1);
    wait_for_log("ready");
    assert_int_equal(end_of(start_daemon(yaml, -1)), 73);
    assert_non_null(strstr(read_text(in_folder("stderr")), "Address already in use"));
    assert_int_equal(access(in_folder("one"), F_OK), 0);
    kill(first, SIGKILL);
    assert_int_equal(end_of(first), -1);
    pid_t after = start_daemon(yaml, -1); /* what a killed one left behind is in nobody's way */
    wait_for_log("ready");
    kill(after, SIGTERM);
    assert_int_equal(end_of(after), 0);
}

static void pcm_that_cannot_be_read_is_no_quiet_end(void **state)
{
    (void)state;
    char yaml[1024];
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
             "    source: {type: pcm, path: \"-\", rate: 16000}\n    model: " MODEL "\n"
             "    sinks: [{type: file, path: %s}]\n",
             in_folder("none.wav"));
    int folder = open("/", O_RDONLY);
    assert_int_equal(end_of(start_daemon(yaml, folder)), 74);
    assert_non_null(strstr(read_text(in_folder("stderr")), "standard input can't be read"));
    close(folder);
}

/* A buffer of 20 ms at 8 kHz is shorter than what one read brings. */
static void pcm_goes_through_a_buffer_shorter_than_a_read(void **state)
{
    (void)state;
    enum { N = 8000 };
    char yaml[1024];
    int ends[2];
    int16_t pcm[N] = {0};
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
             "    source: {type: pcm, path: \"-\", rate: 8000, buffer: 20ms}\n    model: " MODEL "\n"
             "    sinks: [{type: file, path: %s}]\n",
             in_folder("short.wav"));
    assert_int_equal(pipe(ends), 0);
    pid_t child = start_daemon(yaml, ends[0]);
    close(ends[0]);
    write_all(ends[1], pcm, sizeof pcm);
    close(ends[1]);
    assert_int_equal(end_of(child), 0);
    assert_non_null(strstr(last_line(), " 0 samples lost"));
    assert_int_equal(length_of(in_folder("short.wav"), 8000, 1), N);
}

/* A pipe would keep the reader, and a second signal with it, waiting for whoever writes. */
static void a_pipe_is_no_sound_file(void **state)
{
    (void)state;
    char yaml[1024];
    assert_int_equal(mkfifo(in_folder("pipe.wav"), 0600), 0);
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n    source: {type: file, path: %s}\n    model: " MODEL
             "\n    sinks: [{type: file, path: %s}]\n",
             in_folder("pipe.wav"), in_folder("out.wav"));
    assert_int_equal(end_of(start_daemon(yaml, -1)), 66);
    assert_non_null(strstr(read_text(in_folder("stderr")), "pipe.wav: not a file; "));
}

/* What came before the damage is in the output, and the damage is told once. */
static void a_source_cut_short_ends_with_65(void **state)
{
    (void)state;
    char yaml[1024];
    free(make_file(in_folder("cut-in.flac"), RATE, 1, 3 * RATE, 6));
    struct stat info;
    assert_int_equal(stat(in_folder("cut-in.flac"), &info), 0);
    assert_int_equal(truncate(in_folder("cut-in.flac"), info.st_size / 2), 0);
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
             "    source: {type: file, path: %s, paced: false}\n    model: " MODEL "\n"
             "    sinks: [{type: file, path: %s}]\n",
             in_folder("cut-in.flac"), in_folder("cut-out.wav"));
    assert_int_equal(end_of(start_daemon(yaml, -1)), 65);
    assert_in_range(length_of(in_folder("cut-out.wav"), RATE, 1), RATE, 2 * RATE);
    const char *told = strstr(read_text(in_folder("stderr")), "cut short or damaged");
    assert_non_null(told);
    assert_null(strstr(told + 1, "cut short or damaged"));
}

static void a_loop_cut_short_begins_again_at_the_cut(void **state)
{
    (void)state;
    char yaml[1024];
    struct stat info;
    free(make_file(in_folder("cut-loop.wav"), RATE, 1, RATE, 6));
    assert_int_equal(stat(in_folder("cut-loop.wav"), &info), 0);
    assert_int_equal(truncate(in_folder("cut-loop.wav"), info.st_size / 2), 0);
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n    source: {type: file, path: %s, loop: true}\n    model: " MODEL
             "\n    sinks: [{type: file, path: %s}]\n",
             in_folder("cut-loop.wav"), in_folder("cut-looped.wav"));
    pid_t child = start_daemon(yaml, -1);
    wait_for_log("begins again there");
    sleep_ms(1000);
    kill(child, SIGTERM);
    assert_int_equal(end_of(child), 0); /* it ended at the cut, with 65 */
    assert_true(length_of(in_folder("cut-looped.wav"), RATE, 1) > RATE);
    const char *told = strstr(read_text(in_folder("stderr")), "cut short or damaged");
    assert_non_null(told);
    assert_null(strstr(told + 1, "cut short or damaged"));
}

/* A file at its size limit stands in for a full disk. What fitted is readable, and publishing goes on to the end. */
static void a_full_disk_ends_with_74_and_a_whole_file(void **state)
{
    (void)state;
    char yaml[1024];
    struct rlimit before, small;
    free(make_file(in_folder("full-in.wav"), RATE, 1, 3 * RATE, 7));
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: %s\npipelines:\n  p:\n"
             "    source: {type: file, path: %s, paced: false}\n    model: " MODEL "\n"
             "    sinks: [{type: publish}, {type: file, path: %s}]\n",
             ipc_in_folder("full-pub"), in_folder("full-in.wav"), in_folder("full.wav"));
    getrlimit(RLIMIT_FSIZE, &before);
    small = (struct rlimit){.rlim_cur = 32768, .rlim_max = before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    pid_t child = start_daemon(yaml, -1);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(end_of(child), 74);
    assert_non_null(strstr(read_text(in_folder("stderr")), "full.wav: writing failed: File too large"));
    assert_non_null(strstr(last_line(), "drained: 300 hops in, 300 out"));
    assert_in_range(length_of(in_folder("full.wav"), RATE, 1), 8192, 16384);
}

static void an_empty_file_that_cannot_be_finished_ends_with_74(void **state)
{
    (void)state;
    char yaml[1024];
    struct rlimit before, small;
    free(make_file(in_folder("empty.wav"), RATE, 1, 0, 8));
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
             "    source: {type: file, path: %s, paced: false}\n    model: " MODEL "\n"
             "    sinks: [{type: file, path: %s}]\n",
             in_folder("empty.wav"), in_folder("empty.ogg"));
    assert_int_equal(end_of(start_daemon(yaml, -1)), 0);
    assert_int_equal(length_of(in_folder("empty.ogg"), RATE, 1), 0);
    getrlimit(RLIMIT_FSIZE, &before);
    small = (struct rlimit){.rlim_cur = 2048, .rlim_max = before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    pid_t child = start_daemon(yaml, -1);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(end_of(child), 74);
}

/* Two signals at once: what is on its way is dropped, the file is whole all the same. */
static void a_second_signal_cuts_draining_short(void **state)
{
    (void)state;
    char yaml[1024];
    free(make_file(in_folder("two.wav"), RATE, 1, 20 * RATE, 10));
    snprintf(yaml, sizeof yaml,
             "version: 1\nnode: t\npublish: \"\"\npipelines:\n  p:\n"
             "    source: {type: file, path: %s, paced: true}\n    model: " MODEL "\n"
             "    sinks: [{type: file, path: %s}]\n",
             in_folder("two.wav"), in_folder("two-out.wav"));
    pid_t child = start_daemon(yaml, -1);
    wait_for_log("ready");
    sleep_ms(500);
    kill(child, SIGSTOP);
    kill(child, SIGTERM);
    kill(child, SIGINT);
    kill(child, SIGCONT);
    assert_int_equal(end_of(child), 75);
    assert_non_null(strstr(read_text(in_folder("stderr")), "told to stop again"));
    assert_non_null(strstr(last_line(), "stopped: "));
    assert_in_range(length_of(in_folder("two-out.wav"), RATE, 1), 1, 20 * RATE - 1);
}

static void errors_have_a_sentence_and_a_code(void **state)
{
    (void)state;
    free(make_file(in_folder("x.wav"), RATE, 1, 100, 5));
    char path[256];
    snprintf(path, sizeof path, "%s", in_folder("x.wav"));
    const struct {
        const char *source, *model, *sink, *says;
        int code;
    } cases[] = {
        {"{type: file, pth: x.wav}", MODEL, "{type: publish}", "pth", 78},
        {"{type: file, path: not-there.wav}", MODEL, "{type: publish}", "not-there.wav", 66},
        {"{type: file, path: Makefile}", MODEL, "{type: publish}", "Makefile", 65},
        {"{type: file, path: %s}", "not-there.safetensors", "{type: publish}", "not-there.safetensors", 66},
        {"{type: file, path: %s}", MODEL, "{type: file, path: %s}", "is both read and written", 78},
        {"{type: file, path: %s}", MODEL, "{type: file, path: /not/there.wav}", "/not/there.wav", 73},
        {"{type: file, path: %s, channels: [1]}", MODEL, "{type: publish}", "channel 1 is not there", 78},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char source[512], sink[512], yaml[2048];
        snprintf(source, sizeof source, cases[i].source, path);
        snprintf(sink, sizeof sink, cases[i].sink, path);
        snprintf(yaml, sizeof yaml,
                 "version: 1\nnode: t\npublish: tcp://127.0.0.1:25571\npipelines:\n  p:\n    source: %s\n    model: %s\n"
                 "    sinks: [%s]\n",
                 source, cases[i].model, sink);
        assert_int_equal(end_of(start_daemon(yaml, -1)), cases[i].code);
        if (!strstr(read_text(in_folder("stderr")), cases[i].says)) {
            fail_msg("%s: %s", cases[i].says, read_text(in_folder("stderr")));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_reaches_a_file_and_a_subscriber_bit_for_bit),
        cmocka_unit_test(sigterm_in_the_middle_leaves_a_whole_file),
        cmocka_unit_test(late_subscriber_gets_state_and_hugz_at_once),
        cmocka_unit_test(streams_together_are_bit_identical_to_each_alone),
        cmocka_unit_test(pcm_comes_in_over_stdin_to_the_last_sample),
        cmocka_unit_test(pcm_comes_in_over_a_socket),
        cmocka_unit_test(a_second_daemon_leaves_the_first_ones_socket),
        cmocka_unit_test(pcm_that_cannot_be_read_is_no_quiet_end),
        cmocka_unit_test(pcm_goes_through_a_buffer_shorter_than_a_read),
        cmocka_unit_test(a_pipe_is_no_sound_file),
        cmocka_unit_test(a_source_cut_short_ends_with_65),
        cmocka_unit_test(a_loop_cut_short_begins_again_at_the_cut),
        cmocka_unit_test(a_full_disk_ends_with_74_and_a_whole_file),
        cmocka_unit_test(an_empty_file_that_cannot_be_finished_ends_with_74),
        cmocka_unit_test(a_second_signal_cuts_draining_short),
        cmocka_unit_test(errors_have_a_sentence_and_a_code),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
