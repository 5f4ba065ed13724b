/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/labels.h"
#include "daemon/log.h"
#include "daemon/mqtt.h"
#include "daemon/pull.h"
#include "daemon/rows.h"
#include "daemon/socket.h"
#include "daemon/source.h"
#include "dsp/clock.h"
#include "dsp/lines.h"
#include "dsp/spare.h"
#include "model/refuse.h"

/* Lines from standard input, datagrams, whoever connects (one at a time), ZeroMQ or an MQTT broker. A thread reads them, makes
 * hops of them and puts these into the rows. Where there is no room, who writes to a pipe, a connection or PULL is slowed down;
 * of UDP, SUB and MQTT hops are lost. */
enum { LINE = 1 << 14, BYTES = 1 << 16, ROOM_POLL = 2000000 };

struct sensor_source {
    struct source source;
    const struct config_source *config;
    const char *pipeline;
    int listener, client; /* -1: none. Standard input and UDP are clients */
    struct mqtt *mqtt;

    /* The thread's. */
    struct lines *lines;
    struct readings *readings;
    struct cadence *cadence;
    uint64_t hop;    /* readings in one          */
    int64_t arrived; /* the bytes being read     */
    bool quoted;     /* a bad line has been told */
    char bytes[BYTES];
};

static int open_pull(struct sensor_source *sensor, const struct source_setup *setup, struct ssm_error *err)
{
    const struct source *before = setup->before;
    const struct config_source *config = sensor->config;
    char endpoint[sizeof config->listen + 8];
    bool whole = strstr(config->listen, "://") != NULL;
    snprintf(endpoint, sizeof endpoint, "%s%s", whole ? "" : "tcp://", config->listen);
    sensor->source.follows = before && config->transport == SENSOR_SUB;
    sensor->source.pull = config->transport == SENSOR_PULL
                              ? pull_bind(setup->gate, endpoint, before ? before->pull : NULL, err)
                              : pull_subscribe(setup->gate, config->connect, config->server_key, config->topic, err);
    return sensor->source.pull ? 0 : -1;
}

static void take_message(void *context, const void *bytes, size_t n);

/* A socket, or that of the source before. */
static int open_place(struct sensor_source *sensor, const struct source *before, struct ssm_error *err)
{
    const char *listen = sensor->config->listen;
    bool udp = sensor->config->transport == SENSOR_UDP;
    if (before) {
        sensor->source.place = socket_place_share(before->place);
    } else {
        sensor->source.place =
            socket_place_create(udp ? socket_bind_udp(listen, err) : socket_listen_tcp(listen, err), NULL, err);
    }
    if (sensor->source.place) {
        *(udp ? &sensor->client : &sensor->listener) = sensor->source.place->fd;
    }
    return sensor->source.place ? 0 : -1;
}

static int open_transport(struct sensor_source *sensor, const struct source_setup *setup, struct ssm_error *err)
{
    sensor->source.endless = sensor->config->transport != SENSOR_STDIN;
    switch (sensor->config->transport) {
    case SENSOR_STDIN:
        sensor->client = spare_input() ? dup(0) : -1;
        return sensor->client < 0 ? refuse(err, 66, "standard input is closed") : 0;
    case SENSOR_UDP:
    case SENSOR_TCP:
        return open_place(sensor, setup->before, err);
    case SENSOR_MQTT:
        sensor->mqtt = mqtt_open(sensor->config, sensor->pipeline, take_message, sensor, err);
        return sensor->mqtt ? 0 : -1;
    default:
        return open_pull(sensor, setup, err);
    }
}

static void sensor_close(struct source *source)
{
    struct sensor_source *sensor = (struct sensor_source *)source;
    source_thread_finish(source);
    if (sensor->client >= 0 && sensor->config->transport != SENSOR_UDP) {
        close(sensor->client);
    }
    mqtt_close(sensor->mqtt);
    lines_destroy(sensor->lines);
    readings_destroy(sensor->readings);
    cadence_destroy(sensor->cadence);
    free(sensor);
}

static struct source *sensor_open(const struct source_setup *setup, struct ssm_error *err)
{
    struct sensor_source *sensor = calloc(1, sizeof *sensor);
    if (!sensor) {
        refuse_memory(err);
        return NULL;
    }
    sensor->source.ops = &source_sensor;
    sensor->source.n_channels = 1;
    sensor->source.sensor = true;
    enum sensor_transport transport = setup->config->transport;
    sensor->source.patient = transport != SENSOR_UDP && transport != SENSOR_SUB && transport != SENSOR_MQTT;
    sensor->config = setup->config;
    sensor->pipeline = setup->pipeline;
    sensor->listener = sensor->client = -1;
    if (source_thread_init(&sensor->source, err) < 0 || open_transport(sensor, setup, err) < 0) {
        goto fail;
    }
    sensor->lines = lines_create(LINE);
    if (!sensor->lines) {
        refuse_memory(err);
        goto fail;
    }
    return &sensor->source;
fail:
    sensor_close(&sensor->source);
    return NULL;
}

static int sensor_meet(struct source *source, const struct ssm_engine *engine, struct ssm_error *err)
{
    struct sensor_source *sensor = (struct sensor_source *)source;
    const struct config_source *config = sensor->config;
    const struct ssm_info *model = ssm_describe(engine);
    char own[LABELS_FIELDS_MAX] = "";
    labels_fields(engine, own);
    sensor->readings = readings_create(&(struct readings_options){.format = config->lines,
                                                                  .fields = config->fields[0] ? config->fields : own,
                                                                  .time = config->time,
                                                                  .least = config->least,
                                                                  .most = config->most});
    sensor->hop = (uint64_t)model->hop;
    sensor->cadence = cadence_create(&(struct cadence_options){.channels = model->channels,
                                                               .hop = model->hop,
                                                               .model_rate = model->rate,
                                                               .rate = config->rate,
                                                               .reorder_s = config->reorder_s,
                                                               .gap_s = config->gap_s});
    return sensor->readings && sensor->cadence ? 0 : refuse_memory(err);
}

/* ---- The thread. ---- */

/* Wait for room where nothing may be lost; false when told to stop. */
static bool wait_for_room(struct sensor_source *sensor)
{
    while (sensor->source.patient && rows_full(sensor->source.rows)) {
        if (atomic_load(&sensor->source.stopping)) {
            return false;
        }
        waker_wait(&sensor->source.stop, ROOM_POLL);
    }
    return true;
}

static void give_hops(struct sensor_source *sensor)
{
    bool some = false;
    for (struct cadence_hop hop; wait_for_room(sensor) && cadence_next(sensor->cadence, &hop); some = true) {
        if (!rows_put(sensor->source.rows, &hop, sensor->arrived)) {
            count(sensor->source.counters, COUNTER_RING_FULL, sensor->hop);
        }
        if (rows_full(sensor->source.rows)) {
            waker_wake(sensor->source.engine);
        }
    }
    if (some) {
        waker_wake(sensor->source.engine);
    }
}

/* Count it, and show the first. */
static void note_bad(struct sensor_source *sensor, const char *line, size_t n)
{
    char quote[80];
    count(sensor->source.counters, COUNTER_BAD_LINE, 1);
    if (!sensor->quoted) {
        readings_quote(quote, sizeof quote, line, n);
        log_line(LOG_WARNING, "pipeline %s: a line can't be taken: %s: \"%s\"; more of them are only counted", sensor->pipeline,
                 readings_fault(sensor->readings), quote);
        sensor->quoted = true;
    }
}

static void take_line(void *context, const char *line, size_t n)
{
    struct sensor_source *sensor = context;
    struct counters *counters = sensor->source.counters;
    struct reading reading;
    enum reading_status status = readings_parse(sensor->readings, line, n, &reading);
    if (status == READING_RANGE || status == READING_BAD) {
        note_bad(sensor, line, n);
    }
    if (status != READING_OK && status != READING_MISSING) {
        return;
    }
    count(counters, COUNTER_MISSING_READING, status == READING_MISSING);
    count(counters, COUNTER_LATE_READING, !cadence_push(sensor->cadence, &reading));
    give_hops(sensor);
}

/* n bytes more; `whole`: they end a line even without its end. */
static void take_bytes(struct sensor_source *sensor, const char *bytes, size_t n, bool whole)
{
    uint64_t before = lines_too_long(sensor->lines);
    sensor->arrived = clock_now();
    lines_push(sensor->lines, bytes, n, take_line, sensor);
    if (whole) {
        lines_finish(sensor->lines, take_line, sensor);
    }
    count(sensor->source.counters, COUNTER_BAD_LINE, lines_too_long(sensor->lines) - before);
}

static void take_message(void *context, const void *bytes, size_t n)
{
    take_bytes(context, bytes, n, true);
}

static void drain_pull(struct sensor_source *sensor)
{
    for (long n; (n = source_receive(&sensor->source, sensor->bytes, BYTES)) >= 0;) {
        take_bytes(sensor, sensor->bytes, n < BYTES ? (size_t)n : BYTES, true);
    }
}

/* The next datagram, and what the system dropped before it: the socket counts that from its start. */
static void read_datagram(struct sensor_source *sensor)
{
    struct iovec bytes = {sensor->bytes, BYTES};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(uint32_t))];
    } more;
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &more, .msg_controllen = sizeof more};
    ssize_t got = recvmsg(sensor->client, &message, 0);
    struct cmsghdr *head = got >= 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SO_RXQ_OVFL) {
        uint32_t dropped;
        memcpy(&dropped, CMSG_DATA(head), sizeof dropped);
        count(sensor->source.counters, COUNTER_SOCKET_FULL, socket_place_dropped(sensor->source.place, dropped));
    }
    if (got >= 0) {
        take_bytes(sensor, sensor->bytes, (size_t)got, true);
    }
}

/* Read what is there. False: standard input ended, or this client is gone. */
static bool read_some(struct sensor_source *sensor)
{
    if (sensor->config->transport == SENSOR_UDP) {
        read_datagram(sensor);
        return true;
    }
    ssize_t got = read(sensor->client, sensor->bytes, BYTES);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
        return true;
    }
    take_bytes(sensor, sensor->bytes, got > 0 ? (size_t)got : 0, got <= 0);
    return got > 0;
}

static bool accept_client(struct sensor_source *sensor, struct pollfd *stop)
{
    sensor->client = socket_accept(sensor->listener);
    if (sensor->client < 0) {
        poll(stop, 1, 100); /* no descriptors left, say: the listener stays readable, so don't spin on it */
    }
    return true;
}

static void turn_mqtt(struct sensor_source *sensor)
{
    struct pollfd fds[2] = {{.fd = sensor->source.stop.fd, .events = POLLIN}};
    int wait = mqtt_wait(sensor->mqtt, &fds[1]);
    if (poll(fds, 2, wait) >= 0) {
        mqtt_turn(sensor->mqtt, fds[1].revents);
        atomic_store(&sensor->source.lost, !mqtt_is_subscribed(sensor->mqtt));
    }
}

/* Wait for bytes or, with nobody connected, for somebody. False: it is over. */
static bool turn(struct sensor_source *sensor)
{
    if (sensor->mqtt) {
        turn_mqtt(sensor);
        return true;
    }
    struct pull *pull = sensor->source.pull;
    int fd = pull ? pull_fd(pull) : sensor->client >= 0 ? sensor->client : sensor->listener;
    struct pollfd fds[2] = {{.fd = sensor->source.stop.fd, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    if (pull) {
        drain_pull(sensor); /* its descriptor only tells of changes */
    }
    if (poll(fds, 2, -1) < 0 || fds[1].revents == 0 || pull) {
        return true;
    }
    if (sensor->client < 0) {
        return accept_client(sensor, fds);
    }
    if (read_some(sensor)) {
        return true;
    }
    close(sensor->client);
    sensor->client = -1;
    return sensor->listener >= 0;
}

static void *run(void *arg)
{
    struct sensor_source *sensor = arg;
    source_thread_wait(&sensor->source);
    while (!atomic_load(&sensor->source.stopping) && turn(sensor)) {
    }
    cadence_finish(sensor->cadence);
    give_hops(sensor);
    rows_end(sensor->source.rows);
    waker_wake(sensor->source.engine);
    return NULL;
}

static int sensor_start(struct source *source, struct ssm_error *err)
{
    struct sensor_source *sensor = (struct sensor_source *)source;
    if (sensor->mqtt) { /* it takes its time to connect, and nobody else's messages */
        source_begin(source);
    }
    return source_thread_start(source, run, "a sensor's lines", err);
}

const struct source_ops source_sensor = {.name = "sensor",
                                         .open = sensor_open,
                                         .meet = sensor_meet,
                                         .start = sensor_start,
                                         .listen = source_listen,
                                         .begin = source_begin,
                                         .stop = source_stop,
                                         .close = sensor_close};
