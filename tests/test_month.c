/* SPDX-License-Identifier: MIT */
/* The whole daemon through days and weeks of a clock that runs thousands of times as fast: sound, a sensor, a subscriber,
 * checkpoints, the web server, while the wall clock is set back and forth and the machine sleeps. What it takes stays what it
 * took, and no topic's time goes back.
 *
 * MONTH_DAYS (1) and MONTH_PACE (8000; a second of it is so many of the clock's); `make soak-month` is 30 days. */
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "config/config.h"
#include "daemon/daemon.h"
#include "daemon/wire.h"
#include "dsp/clock.h"
#include "tests/entries.h"
#include "tests/folder.h"
#include "tests/test.h"

enum { RATE = 1000, TOPICS = 32, SAMPLES_MOST = 4000 };
static const int64_t second = 1000000000, hour = 3600 * INT64_C(1000000000);

/* ---- Its world. ---- */

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SANITIZED = 1 }; /* slower, and what they remember grows */
static double days = .2, pace = 1000;
#else
enum { SANITIZED = 0 };
static double days = 1, pace = 8000;
#endif
static int64_t begun;         /* of the system's clock                       */
static _Atomic int64_t ended; /* the same, from when on it runs as fast as it */
static _Atomic int64_t set_by, slept;

static int64_t real_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * second + now.tv_nsec;
}

static int64_t month_now(void)
{
    int64_t now = real_now(), end = atomic_load(&ended);
    int64_t fast = end > 0 && end < now ? end : now;
    return begun + (int64_t)((double)(fast - begun) * pace) + (now - fast);
}
static int64_t month_asleep(void)
{
    return atomic_load(&slept);
}
static int64_t month_utc(void)
{
    return month_now() + INT64_C(1700000000) * second + atomic_load(&set_by);
}

/* ---- What goes in. ---- */

static atomic_bool over;

static void pause_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL);
}

static int connect_sound(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", in_folder("sound"));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){.tv_usec = 200000}, sizeof(struct timeval));
    while (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && !atomic_load(&over)) {
        pause_ms(5);
    }
    return fd;
}

/* All of it, however long that takes. */
static void send_all(int fd, const void *bytes, size_t n)
{
    for (const char *at = bytes; n > 0 && !atomic_load(&over);) {
        ssize_t sent = send(fd, at, n, MSG_NOSIGNAL);
        at += sent > 0 ? sent : 0;
        n -= sent > 0 ? (size_t)sent : 0;
    }
}

/* As much sound as time has passed; what it has no time for is not sent at all, as by a source that stood still. */
static void *give_sound(void *arg)
{
    static int16_t samples[SAMPLES_MOST];
    int fd = connect_sound();
    uint64_t seed = 1;
    for (int64_t last = clock_now(); !atomic_load(&over); pause_ms(1)) {
        int64_t n = (clock_now() - last) * RATE / second;
        last += n * second / RATE;
        n = n < SAMPLES_MOST ? n : SAMPLES_MOST;
        for (int i = 0; i < n; i++) {
            samples[i] = (int16_t)(test_bits(&seed) >> 50);
        }
        send_all(fd, samples, (size_t)n * sizeof *samples);
    }
    close(fd);
    return arg;
}

/* A reading a minute, with its time. */
static void *give_readings(void *context)
{
    void *socket = zmq_socket(context, ZMQ_PUSH);
    int linger = 0, timeout = 200;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_SNDTIMEO, &timeout, sizeof timeout);
    zmq_connect(socket, ipc_in_folder("readings"));
    for (int64_t last = clock_now(); !atomic_load(&over); pause_ms(1)) {
        for (; last < clock_now(); last += 60 * second) {
            char line[160];
            int n = snprintf(line, sizeof line, "{\"t\": %.3f, \"ax\": %.3f, \"ay\": 0.1, \"az\": 1}", 1e-9 * (double)last,
                             sin(1e-9 * (double)last));
            zmq_send(socket, line, (size_t)n, 0);
        }
    }
    zmq_close(socket);
    return NULL;
}

/* ---- What comes out. ---- */

struct seen {
    char topic[WIRE_TOPIC_MAX];
    uint64_t due, s0; /* the number that comes next */
    int64_t tm, tw;
};

static struct seen seen[TOPICS];
static int topics;
static uint64_t messages, lost, reversed;

static void note(const char *topic, const struct wire_header *header)
{
    int i = 0;
    while (i < topics && strcmp(seen[i].topic, topic) != 0) {
        i++;
    }
    if (i == TOPICS) {
        return;
    }
    struct seen *at = &seen[i];
    if (i == topics) {
        topics++;
        *at = (struct seen){.due = header->seq, .s0 = header->s0, .tm = header->tm, .tw = header->tw};
        snprintf(at->topic, sizeof at->topic, "%s", topic);
    }
    bool event = strncmp(topic, "event/", 6) == 0; /* tells when it began, which another may have done earlier */
    if (header->seq < at->due || (!event && (header->tm < at->tm || header->tw < at->tw || header->s0 < at->s0))) {
        print_error("%s: tm %lld after %lld, tw %lld after %lld, s0 %llu after %llu, seq %llu after %llu\n", topic, (long long)header->tm,
                    (long long)at->tm, (long long)header->tw, (long long)at->tw, (unsigned long long)header->s0, (unsigned long long)at->s0,
                    (unsigned long long)header->seq, (unsigned long long)at->due - 1);
        reversed++;
    }
    messages++;
    lost += header->seq - at->due;
    at->due = header->seq + 1;
    at->s0 = header->s0;
    at->tm = header->tm;
    at->tw = header->tw;
}

static void *listen_to_all(void *context)
{
    static uint8_t bytes[1 << 16];
    char topic[WIRE_TOPIC_MAX];
    void *socket = zmq_socket(context, ZMQ_SUB);
    int timeout = 200, linger = 0;
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0);
    zmq_connect(socket, ipc_in_folder("pub"));
    while (!atomic_load(&over)) {
        struct wire_header header;
        int n = zmq_recv(socket, topic, sizeof topic - 1, 0);
        if (n < 0) {
            continue;
        }
        topic[n] = '\0';
        n = zmq_recv(socket, bytes, sizeof bytes, 0);
        if (n > 0 && wire_decode(&header, bytes, (size_t)n)) {
            note(topic, &header);
        }
        zmq_recv(socket, bytes, sizeof bytes, 0);
    }
    zmq_close(socket);
    return NULL;
}

/* ---- What it takes. ---- */

static double resident_mib(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_int_equal(fscanf(file, "%*u %lu", &pages), 1);
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
}

enum { LOOKS = 40 };
static struct look {
    double day, mib;
    int files, threads;
} looks[LOOKS];
static int n_looks;

/* MiB a day, by least squares over the looks behind the first quarter, when all has been touched once. */
static double slope(void)
{
    double x = 0, y = 0, xx = 0, xy = 0, n = 0;
    for (int i = n_looks / 4; i < n_looks; i++, n++) {
        x += looks[i].day;
        y += looks[i].mib;
        xx += looks[i].day * looks[i].day;
        xy += looks[i].day * looks[i].mib;
    }
    return (n * xy - x * y) / (n * xx - x * x);
}

static int port; /* of its web server */

/* A page's first line is "HTTP/1.1 200 OK"; gives its bytes, 0 where it is not. */
static size_t ask_for(const char *page)
{
    char request[64], answer[1 << 16];
    size_t n = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), length = snprintf(request, sizeof request, "GET %s HTTP/1.0\r\n\r\n", page);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && send(fd, request, (size_t)length, MSG_NOSIGNAL) > 0) {
        for (ssize_t got; n < sizeof answer && (got = recv(fd, answer + n, sizeof answer - n, 0)) > 0;) {
            n += (size_t)got;
        }
    }
    close(fd);
    return n > 12 && memcmp(answer + 9, "200", 3) == 0 ? n : 0;
}

static void look(double day)
{
    looks[n_looks++] =
        (struct look){day, resident_mib(), count_entries("/proc/self/fd"), count_entries("/proc/self/task")};
}

/* Every third hour the wall clock is set by an hour, forth and back, and the machine has slept. */
static void disturb(int64_t since, int64_t *next)
{
    if (since > *next) {
        atomic_fetch_add(&set_by, *next / hour % 2 ? -hour : hour);
        atomic_fetch_add(&slept, 30 * second);
        *next += 3 * hour;
    }
}

static int pages_told;

/* Looks at what it takes and at its pages, until the time is over; then ends it. */
static void *oversee(void *arg)
{
    double day = 24.0 * (double)hour;
    int64_t start = clock_now(), jump = 3 * hour;
    for (int64_t since = 0; n_looks < LOOKS; since = clock_now() - start) {
        disturb(since, &jump);
        if ((double)since >= (n_looks + 1) * days * day / LOOKS) {
            pages_told += ask_for("/metrics") > 1000 && ask_for("/ping") > 0;
            look((double)since / day);
        }
        pause_ms(2);
    }
    atomic_store(&ended, real_now() + second / 100); /* it may drain in peace; everybody has heard of it by then */
    kill(getpid(), SIGTERM);
    return arg;
}

/* ---- The month. ---- */

/* The small denoiser, at a quarter of this sound's rate. */
static void make_model(void)
{
    static char bytes[1 << 17];
    FILE *in = fopen("tests/data/tiny-denoise.safetensors", "r"), *out = fopen(in_folder("slow.safetensors"), "w");
    size_t n = fread(bytes, 1, sizeof bytes, in);
    static const char fast[] = "rate\\\":16000", slow[] = "rate\\\":  250";
    char *at = memmem(bytes, n, fast, sizeof fast - 1);
    assert_non_null(at);
    memcpy(at, slow, sizeof slow - 1);
    fwrite(bytes, 1, n, out);
    fclose(in);
    fclose(out);
}

static struct config *make_config(void)
{
    char text[2048];
    struct config_errors errors = {0};
    port = 20000 + getpid() % 20000;
    snprintf(text, sizeof text,
             "version: 1\nnode: month\ndevice: cpu\nthreads: 1\npublish: %s\nhttp: 127.0.0.1:%d\n"
             "state_dir: %s\ndrain: 10min\npipelines:\n"
             "  sound:\n    source: {type: pcm, path: 'unix:%s', rate: %d, format: s16le, buffer: 60s}\n"
             "    model: %s\n    sinks: [{type: publish}]\n"
             "  pump:\n    source: {type: sensor, transport: pull, listen: '%s', gap: 10min}\n"
             "    model: tests/data/tiny-sensor.safetensors\n    sinks: [{type: publish}, {type: jsonl, path: /dev/null}]\n",
             ipc_in_folder("pub"), port, in_folder("states"), in_folder("sound"), RATE, in_folder("slow.safetensors"),
             ipc_in_folder("readings"));
    struct config *config = config_parse(text, strlen(text), "month", NULL, 0, &errors);
    if (!config) {
        print_error("%s\n", errors.at[0].text);
    }
    return config;
}

static void it_takes_what_it_took_and_no_time_goes_back(void **state)
{
    (void)state;
    struct ssm_error err = {0};
    make_model();
    struct config *config = make_config();
    assert_non_null(config);
    struct daemon *daemon = daemon_open(config, &err);
    if (!daemon) {
        print_error("%s\n", err.text);
    }
    assert_non_null(daemon);
    void *context = zmq_ctx_new();
    pthread_t threads[4];
    pthread_create(&threads[0], NULL, give_sound, NULL);
    pthread_create(&threads[1], NULL, give_readings, context);
    pthread_create(&threads[2], NULL, listen_to_all, context);
    pthread_create(&threads[3], NULL, oversee, NULL);
    int64_t real = real_now(), virtual = clock_now();
    assert_int_equal(daemon_run(daemon, true, &err), 0);
    double took = 1e-9 * (double)(real_now() - real), passed = (double)(clock_now() - virtual) / (24.0 * (double)hour);
    atomic_store(&over, true);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    zmq_ctx_term(context);
    daemon_close(daemon);
    config_destroy(config);
    print_message("%.2f days in %.0f s: %llu messages of %d topics, %llu lost to this subscriber; %.1f MiB, %+.3f MiB a day, "
                  "%d files, %d threads\n",
                  passed, took, (unsigned long long)messages, topics, (unsigned long long)lost, looks[n_looks - 1].mib, slope(),
                  looks[n_looks - 1].files, looks[n_looks - 1].threads);
    assert_int_equal(reversed, 0);
    assert_true(topics >= 7); /* audio, meter, tags, events, states and heartbeats */
    assert_int_equal(pages_told, LOOKS);
    /* In a single day it is queues and buffers that are touched for the first time. */
    assert_true(SANITIZED || (days >= 7 ? slope() < 1 : looks[n_looks - 1].mib - looks[n_looks / 2].mib < 8));
    int pages = SANITIZED ? 3 : 1; /* being answered */
    for (int i = n_looks / 4; i < n_looks; i++) {
        assert_int_equal(looks[i].threads, looks[n_looks / 4].threads);
        assert_in_range(looks[i].files, looks[n_looks / 4].files - pages, looks[n_looks / 4].files + pages);
    }
}

int main(void)
{
    static const struct clock_world world = {month_now, month_asleep, month_utc, 0};
    static struct clock_world paced;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_takes_what_it_took_and_no_time_goes_back),
    };
    days = getenv("MONTH_DAYS") ? atof(getenv("MONTH_DAYS")) : days;
    pace = getenv("MONTH_PACE") ? atof(getenv("MONTH_PACE")) : pace;
    begun = real_now();
    paced = world;
    paced.pace = pace;
    prctl(PR_SET_TIMERSLACK, 1); /* 50 us would be half a second */
    clock_replace(&paced);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
