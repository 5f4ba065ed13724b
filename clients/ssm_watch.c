/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/json.h"
#include "clients/connection.h"
#include "clients/subscriber.h"
#include "clients/verb.h"
#include "dsp/clock.h"

static const char *address = "tcp://127.0.0.1:5571";
static int count;

static volatile sig_atomic_t interrupted;

struct watch {
    const char *topic;
    uint64_t lost;                /* messages that never came            */
    uint64_t strange;             /* messages that are not of this wire  */
    double heard, alive;          /* s: a wanted message; anything at all */
    bool told;                    /* the silence since `heard`           */
};

static void interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

static void note_lost(void *context, const char *topic, uint64_t from, uint64_t to)
{
    struct watch *watch = context;
    watch->lost += to - from;
    if (verb_json) {
        struct json json = {.file = stdout};
        json_open(&json, NULL, '{');
        json_text(&json, "lost", topic);
        json_whole(&json, "from", (long long)from);
        json_whole(&json, "to", (long long)to);
        json_close(&json, '}');
        putchar('\n');
    } else {
        printf("%s  LOST: messages %" PRIu64 " to %" PRIu64 " never came here\n", topic, from, to - 1);
    }
}

/* The i-th of the payload's floats. */
static double value_at(const struct subscriber_message *message, size_t i)
{
    float x;
    memcpy(&x, message->payload + i * sizeof x, sizeof x);
    return (double)x;
}

/* Root mean square of f32le samples, in dB below full scale; NaN when the payload is no samples. */
static double measure_rms_db(const struct subscriber_message *message)
{
    size_t n = message->payload_size / sizeof(float);
    double sum = 0;
    if (strcmp(message->header.dt, "f32le") != 0 || n == 0) {
        return NAN;
    }
    for (size_t i = 0; i < n; i++) {
        sum += value_at(message, i) * value_at(message, i);
    }
    return 10 * log10(sum / (double)n + 1e-20);
}

static bool is_meter(const struct subscriber_message *message)
{
    return strncmp(message->topic, "meter/", 6) == 0 && message->payload_size == 4 * sizeof(float);
}

static bool is_scores(const struct subscriber_message *message)
{
    return strncmp(message->topic, "tags/", 5) == 0 && strcmp(message->header.dt, "f32le") == 0;
}

/* MessagePack as a JSON value; null when it is damaged, so that the line stays JSON. */
static void put_messagepack(struct json *json, const char *key, const uint8_t *bytes, size_t size)
{
    size_t length;
    char *text = subscriber_json(bytes, size, &length);
    if (text != NULL) {
        fwrite(text, 1, length, json_raw(json, key));
    } else {
        json_nothing(json, key);
    }
    free(text);
}

static void print_json(const struct subscriber_message *message)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "topic", message->topic);
    put_messagepack(&json, "header", message->header_bytes, message->header_size);
    if (is_meter(message) || is_scores(message)) {
        json_open(&json, is_meter(message) ? "meter" : "scores", '[');
        for (size_t i = 0; i < message->payload_size / sizeof(float); i++) {
            json_number(&json, NULL, value_at(message, i));
        }
        json_close(&json, ']');
    } else if (strcmp(message->header.dt, "f32le") == 0) {
        json_number(&json, "rms_db", measure_rms_db(message));
    } else if (strcmp(message->header.dt, "msgpack") == 0) {
        put_messagepack(&json, "payload", message->payload, message->payload_size);
    }
    json_whole(&json, "payload_bytes", (long long)message->payload_size);
    json_close(&json, '}');
    putchar('\n');
}

static void print_utc(int64_t ns)
{
    time_t seconds = ns / 1000000000;
    struct tm utc;
    char text[16];
    gmtime_r(&seconds, &utc);
    strftime(text, sizeof text, "%H:%M:%S", &utc);
    printf("  %s.%03d UTC", text, (int)(ns % 1000000000 / 1000000));
}

static void print_payload(const struct subscriber_message *message)
{
    if (is_meter(message)) {
        printf("  in %.1f dB peak %.1f  out %.1f dB peak %.1f", value_at(message, 0), value_at(message, 1),
               value_at(message, 2), value_at(message, 3));
    } else if (is_scores(message)) {
        printf(" ");
        for (size_t i = 0; i < message->payload_size / sizeof(float); i++) {
            printf(" %.2f", value_at(message, i));
        }
    } else if (strcmp(message->header.dt, "f32le") == 0) {
        printf("  %" PRIu32 " samples  %.1f dB", message->header.n, measure_rms_db(message));
    } else if (strcmp(message->header.dt, "msgpack") == 0) {
        printf("  ");
        wire_json(stdout, message->payload, message->payload_size);
    }
}

static void print_flags(const struct wire_header *header)
{
    static const struct {
        enum wire_flag flag;
        const char *word;
    } words[] = {{WIRE_GAP, "gap"}, {WIRE_BYPASS, "bypass"}, {WIRE_WARMUP, "warmup"}, {WIRE_DEGRADED, "degraded"},
                 {WIRE_END, "end"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (header->flags & (unsigned)words[i].flag) {
            printf("  %s", words[i].word);
        }
    }
    if (*header->lost.why) {
        printf("  missing samples %" PRIu64 " to %" PRIu64 ": %s", header->lost.from, header->lost.to, header->lost.why);
    }
}

static void print_text(const struct subscriber_message *message)
{
    const struct wire_header *header = &message->header;
    printf("%s  #%" PRIu64, message->topic, header->seq);
    print_utc(header->tw);
    print_payload(message);
    if (header->n > 0) {
        printf("  sample %" PRIu64 "  %.1f ms after capture", header->s0, (double)header->pub / 1e6);
    }
    print_flags(header);
    putchar('\n');
}

/* Silence is told once, until something comes again: is nobody there, or is nothing published under that topic? */
static void note_silence(struct watch *watch)
{
    if (watch->told || clock_seconds() - watch->heard < 3) {
        return;
    }
    watch->told = true;
    if (clock_seconds() - watch->alive < 3) {
        verb_note("nothing under \"%s\" for 3 s, but ssmd is there at %s; \"ssm watch hugz/\" shows its topics", watch->topic,
                  address);
    } else {
        verb_note("nothing came for 3 s; is ssmd running, and is %s what its YAML says after \"publish:\"?", address);
    }
}

/* The first one is told at once, the others at the end: they may come a thousand a second. */
static void note_strange(struct watch *watch)
{
    if (watch->strange++ == 0) {
        verb_note("what comes from %s is not ssmd's wire, version %d; it is passed over", address, WIRE_VERSION);
    }
}

/* Gives how many messages it printed: 0 or 1. */
static int watch_once(struct watch *watch, struct subscriber *subscriber)
{
    struct subscriber_message message;
    int status = subscriber_receive(subscriber, &message, 500);
    if (status < 0) {
        note_strange(watch);
    }
    if (status == 1) {
        watch->alive = clock_seconds();
    }
    if (status != 1 || !message.wanted) {
        note_silence(watch);
        return 0;
    }
    (verb_json ? print_json : print_text)(&message);
    fflush(stdout);
    watch->heard = watch->alive;
    watch->told = false;
    return 1;
}

static int run_watch(char **arguments, int n)
{
    struct watch watch = {.topic = n > 0 ? arguments[0] : ""};
    struct sigaction action = {.sa_handler = interrupt};
    struct ssm_error err = {0};
    struct subscriber *subscriber = subscriber_open(address, watch.topic, note_lost, &watch, &err);
    if (subscriber == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    watch.heard = clock_seconds();
    for (int printed = 0; !interrupted && !ferror(stdout) && (count == 0 || printed < count);) {
        printed += watch_once(&watch, subscriber);
    }
    subscriber_close(subscriber);
    if (watch.lost > 0) {
        verb_note("%" PRIu64 " messages were lost", watch.lost);
    }
    if (watch.strange > 0) {
        verb_note("%" PRIu64 " messages were not of ssmd's wire", watch.strange);
    }
    return 0;
}

static const struct verb_option options[] = {
    {"connect", "ADDRESS", OPTION_TEXT, &address, 0, 0, "where ssmd publishes (tcp://127.0.0.1:5571)"},
    CONNECTION_OPTIONS,
    {"count", "N", OPTION_NUMBER, &count, 1, 2147483647, "end after N messages (goes on until interrupted)"},
    {0},
};

const struct verb ssm_watch = {
    .name = "watch",
    .arguments = "[TOPIC]",
    .summary = "print what a running ssmd publishes",
    .details = "Subscribe to a running ssmd and print a line for each message: topic, number, time, level or content, and how\n"
               "long after capture it was published. TOPIC is the beginning of a topic; without it all of them but hugz/ are\n"
               "printed. Topics look like\n"
               "    audio/<node>/<pipeline>/<channel>/<model>/    samples\n"
               "    meter/<node>/<pipeline>/<channel>/<model>/    levels before and after\n"
               "    tags/<node>/<pipeline>/<channel>/<model>/     a tag model's probabilities, in the order meta/... tells\n"
               "    event/<node>/<pipeline>/<channel>/<model>/    events of a tag model, as they begin and end\n"
               "    gap/...  samples that are missing and why     state/<node>/  counters     hugz/<node>/  heartbeat\n"
               "Messages that were published and did not arrive are told as LOST, by number. Ends with Ctrl-C.",
    .examples = "  ssm watch\n"
                "  ssm watch audio/studio/mic/\n"
                "  ssm watch meter/ --connect tcp://192.168.1.5:5571 --json | jq .meter",
    .options = options,
    .most = 1,
    .run = run_watch,
};
