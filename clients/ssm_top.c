/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <search.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sysexits.h>
#include <unistd.h>

#include "clients/connection.h"
#include "clients/subscriber.h"
#include "clients/verb.h"
#include "dsp/clock.h"

enum { LOST_MAX = 512, HEAD_LINES = 5 };

static const char *address = "tcp://127.0.0.1:5571";
static bool once;

static volatile sig_atomic_t interrupted;

/* One state/, and the one before it, for what happens in a second. */
struct top {
    json_t *now, *before;
    double now_ns, before_ns;
    uint8_t boot[16]; /* of both */
    void *levels; /* tsearch tree of struct level */
};

/* The last meter/ of a stream. */
struct level {
    char stream[128]; /* pipeline/channel */
    double in_db, out_db;
};

static void interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

/* ---- What comes. ---- */

static int compare_levels(const void *a, const void *b)
{
    return strcmp(((const struct level *)a)->stream, ((const struct level *)b)->stream);
}

/* "pipeline/channel" of "meter/node/pipeline/channel/model/"; false when it is no such topic. */
static bool stream_of(const char *topic, char stream[128])
{
    char pipeline[64], channel[16];
    if (sscanf(topic, "meter/%*[^/]/%63[^/]/%15[^/]/", pipeline, channel) != 2) {
        return false;
    }
    snprintf(stream, 128, "%s/%s", pipeline, channel);
    return true;
}

static void take_meter(struct top *top, const struct subscriber_message *message)
{
    struct level level;
    float at[4];
    if (message->payload_size != sizeof at || !stream_of(message->topic, level.stream)) {
        return;
    }
    memcpy(at, message->payload, sizeof at);
    level.in_db = (double)at[0];
    level.out_db = (double)at[2];
    struct level **found = tfind(&level, &top->levels, compare_levels);
    struct level *kept = found ? *found : malloc(sizeof *kept);
    if (kept) {
        *kept = level;
        tsearch(kept, &top->levels, compare_levels);
    }
}

static json_t *read_messagepack(const uint8_t *bytes, size_t size)
{
    size_t length;
    char *text = subscriber_json(bytes, size, &length);
    json_t *value = text != NULL ? json_loadb(text, length, 0, NULL) : NULL;
    free(text);
    return value;
}

/* True: there are two of them now, far enough apart to tell rates. */
static bool take_state(struct top *top, const struct subscriber_message *message)
{
    json_t *state = read_messagepack(message->payload, message->payload_size);
    if (!json_is_object(state)) {
        json_decref(state);
        return false;
    }
    if (memcmp(top->boot, message->header.boot, sizeof top->boot) != 0) { /* another daemon's counters, on a clock of its own */
        json_decref(top->now);
        top->now = NULL;
        memcpy(top->boot, message->header.boot, sizeof top->boot);
    }
    if (top->now && (double)message->header.tm - top->now_ns < 2e8) { /* somebody joined: a state out of turn */
        json_decref(state);
        return false;
    }
    json_decref(top->before);
    top->before = top->now;
    top->before_ns = top->now_ns;
    top->now = state;
    top->now_ns = (double)message->header.tm;
    return top->before != NULL;
}

/* ---- What it means. ---- */

/* Of text from the wire only what can't move a terminal's cursor. */
static const char *plain(const char *text)
{
    for (const char *at = text; at && *at; at++) {
        if ((unsigned char)*at < 0x20 || *at == 0x7f) {
            return "?";
        }
    }
    return text ? text : "?";
}

static const char *text_of(const json_t *object, const char *key)
{
    return plain(json_string_value(json_object_get(object, key)));
}
/* How the stream's sound device is, "source" or "player"; NULL: well, or there is none. */
static const char *trouble_of(const json_t *stream, const char *key)
{
    const char *condition = json_string_value(json_object_get(stream, key));
    return condition && strcmp(condition, "ok") != 0 ? plain(condition) : NULL;
}
static double number_of(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* How much `key` grew a second; 0 where there was nothing before. */
static double rate_of(const struct top *top, const json_t *now, const json_t *before, const char *key)
{
    double grown = number_of(now, key) - number_of(before, key);
    return before && grown > 0 ? grown * 1e9 / (top->now_ns - top->before_ns) : 0;
}

/* The i-th stream; NULL past the end. */
static const json_t *stream_at(const json_t *state, size_t i)
{
    return json_array_get(json_object_get(state, "streams"), i);
}

static bool is_same_stream(const json_t *a, const json_t *b)
{
    return json_equal(json_object_get(a, "pipeline"), json_object_get(b, "pipeline")) &&
           json_equal(json_object_get(a, "channel"), json_object_get(b, "channel"));
}

/* The i-th stream as it was; NULL where it is new. A reload may have moved it. */
static const json_t *stream_before(const struct top *top, size_t i)
{
    const json_t *stream = stream_at(top->now, i), *before = stream_at(top->before, i);
    for (size_t k = 0; !is_same_stream(before, stream) && (before = stream_at(top->before, k)); k++) {
    }
    return before;
}

static struct level find_level(const struct top *top, const json_t *stream)
{
    struct level level = {.in_db = NAN, .out_db = NAN};
    snprintf(level.stream, sizeof level.stream, "%s/%.0f", text_of(stream, "pipeline"), number_of(stream, "channel"));
    struct level **found = tfind(&level, &top->levels, compare_levels);
    return found ? **found : level;
}

static size_t count_live(const json_t *state)
{
    size_t n = 0;
    for (size_t i = 0; stream_at(state, i); i++) {
        n += !json_is_true(json_object_get(stream_at(state, i), "ended"));
    }
    return n;
}

static double hops_a_second(const struct top *top)
{
    double sum = 0;
    for (size_t i = 0; stream_at(top->now, i); i++) {
        sum += rate_of(top, stream_at(top->now, i), stream_before(top, i), "hops");
    }
    return sum;
}

/* ---- What is shown. ---- */

static json_t *decibels(double db)
{
    return isfinite(db) ? json_real(db) : json_null();
}

static json_t *describe_stream(const struct top *top, size_t i)
{
    const json_t *stream = stream_at(top->now, i);
    struct level level = find_level(top, stream);
    return json_pack("{s:O, s:O, s:O, s:O*, s:O*, s:O, s:f, s:o, s:o, s:O}", "pipeline", json_object_get(stream, "pipeline"), "channel",
                     json_object_get(stream, "channel"), "model", json_object_get(stream, "model"), "source",
                     json_object_get(stream, "source"), "player", json_object_get(stream, "player"), "ended",
                     json_object_get(stream, "ended"), "hops_per_s",
                     rate_of(top, stream, stream_before(top, i), "hops"), "in_db", decibels(level.in_db), "out_db",
                     decibels(level.out_db), "lost", json_object_get(stream, "lost"));
}

/* The state as it came, with what is known besides: rates and levels. */
static void print_json(const struct top *top)
{
    json_t *streams = json_array();
    for (size_t i = 0; stream_at(top->now, i); i++) {
        json_array_append_new(streams, describe_stream(top, i));
    }
    json_t *all = json_copy(top->now);
    json_object_set_new(all, "hops_per_s", json_real(hops_a_second(top)));
    json_object_set_new(all, "published_per_s", json_real(rate_of(top, top->now, top->before, "published")));
    json_object_set_new(all, "streams", streams);
    json_dumpf(all, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(all);
}

/* "ring_full 480, blown 1"; those that grew since the state before have a '+'. */
static void describe_lost(const json_t *now, const json_t *before, char text[LOST_MAX])
{
    json_t *lost = json_object_get(now, "lost");
    size_t n = 0;
    text[0] = '\0';
    for (void *at = json_object_iter(lost); at && n < LOST_MAX; at = json_object_iter_next(lost, at)) {
        const char *name = json_object_iter_key(at);
        double value = json_number_value(json_object_iter_value(at));
        bool grew = value > number_of(json_object_get(before, "lost"), name);
        n += (size_t)snprintf(text + n, LOST_MAX - n, "%s%s %.0f%s", n > 0 ? ", " : "", plain(name), value, grew ? "+" : "");
    }
}

static void print_level(double db)
{
    if (isnan(db)) {
        printf("        -");
    } else {
        printf(" %8.1f", db);
    }
}

/* The rest of a line that stood there before is wiped. */
static void end_line(bool screen)
{
    fputs(screen ? "\033[K\n" : "\n", stdout);
}

/* What a stream gives way to in overload, or NULL. */
static const char *rung_of(const json_t *stream)
{
    const char *rung = json_string_value(json_object_get(stream, "rung"));
    return rung && strcmp(rung, "model") != 0 ? plain(rung) : NULL;
}

/* Parts of a line, commas between them; one that is NULL or empty is left out. */
static void print_parts(const char *const *parts, int n)
{
    const char *between = "  ";
    for (int i = 0; i < n; i++) {
        if (parts[i] && parts[i][0]) {
            printf("%s%s", between, parts[i]);
            between = ", ";
        }
    }
}

static void print_stream(const struct top *top, size_t i, bool screen)
{
    const json_t *stream = stream_at(top->now, i), *before = stream_before(top, i);
    struct level level = find_level(top, stream);
    char lost[LOST_MAX];
    describe_lost(stream, before, lost);
    printf("%-24.24s %4.0f %-20.20s", text_of(stream, "pipeline"), number_of(stream, "channel"), text_of(stream, "model"));
    if (json_is_true(json_object_get(stream, "ended"))) {
        printf("    ended");
    } else if (trouble_of(stream, "source")) {
        printf(" %8.8s", trouble_of(stream, "source"));
    } else {
        printf(" %8.1f", rate_of(top, stream, before, "hops"));
    }
    print_level(level.in_db);
    print_level(level.out_db);
    char player[32] = "";
    if (trouble_of(stream, "player")) {
        snprintf(player, sizeof player, "player %.24s", trouble_of(stream, "player"));
    }
    print_parts((const char *[]){player, rung_of(stream), lost}, 3);
    end_line(screen);
}

static void print_times(const char *name, const json_t *times)
{
    printf("%s p50 %.2f p99 %.2f p99.9 %.2f ms", name, number_of(times, "p50_ms"), number_of(times, "p99_ms"),
           number_of(times, "p999_ms"));
}

static void print_head(const struct top *top, bool screen)
{
    long up = (long)number_of(top->now, "uptime_s");
    size_t n = json_array_size(json_object_get(top->now, "streams"));
    printf("ssmd %s on %s  %s  up %ld:%02ld:%02ld  %zu stream%s, %zu live  %.0f hops/s  %.0f messages/s  %.0f device faults",
           text_of(top->now, "version"), text_of(top->now, "node"), text_of(top->now, "state"), up / 3600, up / 60 % 60, up % 60,
           n, n == 1 ? "" : "s", count_live(top->now), hops_a_second(top), rate_of(top, top->now, top->before, "published"),
           number_of(top->now, "device_faults"));
    end_line(screen);
    print_times("capture to publish", json_object_get(top->now, "capture_to_publish"));
    print_times("   step", json_object_get(top->now, "step"));
    end_line(screen);
    end_line(screen);
    printf("%-24s %4s %-20s %8s %8s %8s  %s", "PIPELINE", "CH", "MODEL", "HOPS/S", "IN dB", "OUT dB", "LOST OR SPOILT");
    end_line(screen);
}

static void print_text(const struct top *top)
{
    struct winsize window = {0};
    bool screen = !once && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_row > HEAD_LINES;
    size_t rows = screen ? (size_t)(window.ws_row - HEAD_LINES) : SIZE_MAX, i = 0;
    fputs(screen ? "\033[H" : "", stdout);
    print_head(top, screen);
    for (; i < rows && stream_at(top->now, i); i++) {
        print_stream(top, i, screen);
    }
    size_t left = json_array_size(json_object_get(top->now, "streams")) - i;
    if (left > 0) {
        printf("... and %zu more", left);
    }
    fputs(screen ? "\033[J" : "", stdout);
}

/* ---- Running. ---- */

static void ignore_lost(void *context, const char *topic, uint64_t from, uint64_t to)
{
    (void)context, (void)topic, (void)from, (void)to; /* the next state/ has it all again */
}

static bool is_old(double heard)
{
    return clock_seconds() - heard > 3;
}

static void take_meters(struct top *top, struct subscriber *meters)
{
    struct subscriber_message message;
    while (subscriber_receive(meters, &message, 0) == 1) {
        if (message.wanted) {
            take_meter(top, &message);
        }
    }
}

/* Shows each state, with the levels that came before it, until told to stop. Gives the exit status. */
static int show(struct top *top, struct subscriber *states, struct subscriber *meters)
{
    struct subscriber_message message;
    double heard = clock_seconds();
    bool told = false;
    while (!interrupted && !ferror(stdout)) {
        bool came = subscriber_receive(states, &message, 100) == 1 && message.wanted;
        take_meters(top, meters);
        if (came) {
            heard = clock_seconds();
            told = false;
            if (take_state(top, &message)) {
                (verb_json ? print_json : print_text)(top);
                fflush(stdout);
                if (once) {
                    return 0;
                }
            }
        } else if (!told && is_old(heard)) {
            if (once) {
                return verb_fail(EX_UNAVAILABLE, "nothing came for 3 s; is ssmd running, and is %s what its YAML says after "
                                                 "\"publish:\"?", address);
            }
            verb_note("nothing came for 3 s; is ssmd running, and is %s what its YAML says after \"publish:\"?", address);
            told = true;
        }
    }
    return 0;
}

static int run_top(char **arguments, int n)
{
    (void)arguments, (void)n;
    struct top top = {0};
    struct ssm_error err = {0};
    struct sigaction action = {.sa_handler = interrupt};
    struct subscriber *states = subscriber_open(address, "state/", ignore_lost, NULL, &err);
    struct subscriber *meters = states ? subscriber_open(address, "meter/", ignore_lost, NULL, &err) : NULL;
    int status = EX_OK;
    if (meters) {
        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        status = show(&top, states, meters);
    } else {
        status = verb_fail(err.code, "%s", err.text);
    }
    subscriber_close(states);
    subscriber_close(meters);
    json_decref(top.now);
    json_decref(top.before);
    tdestroy(top.levels, free);
    return status;
}

static const struct verb_option options[] = {
    {"connect", "ADDRESS", OPTION_TEXT, &address, 0, 0, "where ssmd publishes (tcp://127.0.0.1:5571)"},
    CONNECTION_OPTIONS,
    {"once", NULL, OPTION_FLAG, &once, 0, 0, "show it once and end; 69 if nothing comes for 3 s"},
    {0},
};

const struct verb ssm_top = {
    .name = "top",
    .arguments = "",
    .summary = "watch a running ssmd's streams: rates, levels, losses",
    .details = "Show, each second, what a running ssmd does: hops a second, levels before and after the model, and what each\n"
               "stream lost and why (a + is behind what grew within the last second), with the latencies since it started. A\n"
               "stream that gives way in overload has its rung there: smaller, bypass or drop. With --json a line each second.\n"
               "Ends with Ctrl-C.",
    .examples = "  ssm top\n"
                "  ssm top --once --json | jq '.streams[] | select(.lost != {})'",
    .options = options,
    .run = run_top,
};
