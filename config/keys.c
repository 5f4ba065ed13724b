/* SPDX-License-Identifier: MIT */
#include "config/keys.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config/config.h"

#define FIELD(type, field) .offset = offsetof(type, field), .size = sizeof((type *)0)->field
#define COUNT(array)       (int)(sizeof(array) / sizeof *(array))

static const char *const source_types[] = {
    [SOURCE_FILE] = "file", [SOURCE_AUDIO] = "audio", [SOURCE_PCM] = "pcm", [SOURCE_SENSOR] = "sensor", NULL};
static const char *const sink_types[] = {
    [SINK_PUBLISH] = "publish", [SINK_AUDIO] = "audio", [SINK_FILE] = "file", [SINK_JSONL] = "jsonl", NULL};
static const char *const formats[] = {
    [PCM_F32LE] = "f32le", [PCM_S16LE] = "s16le", [PCM_S24LE] = "s24le", [PCM_S32LE] = "s32le", NULL};

static const char *const transports[] = {[SENSOR_STDIN] = "stdin", [SENSOR_UDP] = "udp", [SENSOR_TCP] = "tcp",
                                         [SENSOR_PULL] = "pull", [SENSOR_SUB] = "sub", [SENSOR_MQTT] = "mqtt", NULL};
static const char *const line_formats[] = {[READING_CSV] = "csv", [READING_JSONL] = "jsonl", NULL};

static const char lower[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";
static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";

static const char *check_name(const char *text)
{
    bool fine = text[0] && text[strspn(text, lower)] == '\0' && strlen(text) < 64;
    return fine ? NULL : "a pipeline's name has 1 to 63 of a-z, 0-9, _ and -: it becomes part of topics";
}

static const char *check_node(const char *text)
{
    return text[0] && text[strspn(text, letters)] == '\0'
               ? NULL
               : "has to be of letters, digits, _, . and -: it becomes part of topics";
}

static bool is_cuda(const char *text, size_t n)
{
    bool named = n >= 4 && strncmp(text, "cuda", 4) == 0;
    return named && (n == 4 || (n > 5 && n < 10 && text[4] == ':' && strspn(text + 5, "0123456789") >= n - 5));
}

/* One device, or several of CUDA's joined by commas, as a list of them is read. */
static const char *check_device(const char *text)
{
    size_t n = strcspn(text, ",");
    if (text[n] == '\0') {
        return strcmp(text, "auto") == 0 || strcmp(text, "cpu") == 0 || is_cuda(text, n)
                   ? NULL
                   : "must be auto, cpu, cuda or cuda:NUMBER";
    }
    for (const char *at = text;; at += n + 1) {
        n = strcspn(at, ",");
        if (!is_cuda(at, n)) {
            return "only cuda:NUMBER can stand beside others";
        }
        for (const char *before = text; before < at; before += strcspn(before, ",") + 1) {
            if (strcspn(before, ",") == n && strncmp(before, at, n) == 0) {
                return "holds a device twice";
            }
        }
        if (at[n] == '\0') {
            return NULL;
        }
    }
}

static const char *check_precision(const char *text)
{
    static const char *const words[] = {"auto", "fp32", "tf32", "bf16", "bf16-state"};
    for (int i = 0; i < COUNT(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            return NULL;
        }
    }
    return "must be auto, fp32, tf32, bf16 or bf16-state";
}

static const char *check_not_empty(const char *text)
{
    return text[0] ? NULL : "must not be empty";
}

/* A host and the port behind its last colon. */
static bool has_port(const char *host, long least)
{
    const char *colon = strrchr(host, ':');
    if (!colon || colon == host || colon[1] == '\0' || colon[1 + strspn(colon + 1, "0123456789")] ||
        strlen(colon) > 6) {
        return false;
    }
    long port = strtol(colon + 1, NULL, 10);
    return port >= least && port <= 65535;
}

static const char *check_publish(const char *text)
{
    if (strncmp(text, "inproc://", 9) == 0) {
        return "inproc:// reaches no other process; use tcp://127.0.0.1:5571 or ipc:///run/ssmd/publish";
    }
    bool fine = (strncmp(text, "tcp://", 6) == 0 && has_port(text + 6, 2)) ||
                (strncmp(text, "ipc://", 6) == 0 && text[6] != '\0') || text[0] == '\0';
    return fine ? NULL
                : "must be tcp://HOST:PORT with a port from 2 to 65535 (control takes the port below), or ipc://PATH";
}

/* ZeroMQ's */
static bool is_endpoint(const char *text)
{
    return (strncmp(text, "tcp://", 6) == 0 && has_port(text + 6, 1)) || (strncmp(text, "ipc://", 6) == 0 && text[6]);
}

static const char *check_http(const char *text)
{
    return text[0] == '\0' || has_port(text, 1) ? NULL : "must be HOST:PORT";
}

static const char *check_control(const char *text)
{
    return strcmp(text, "auto") == 0 ? NULL : check_publish(text) ? "must be auto, tcp://HOST:PORT or ipc://PATH" : NULL;
}

static const char *check_pcm_path(const char *text)
{
    bool fine = strcmp(text, "-") == 0 || (strncmp(text, "unix:", 5) == 0 && text[5]) ||
                (strncmp(text, "tcp://", 6) == 0 && has_port(text + 6, 1)) ||
                (strncmp(text, "pull:", 5) == 0 && is_endpoint(text + 5)) ||
                (strncmp(text, "sub:", 4) == 0 && is_endpoint(text + 4));
    return fine ? NULL : "must be - for standard input, unix:PATH, tcp://HOST:PORT, or for ZeroMQ pull:ADDRESS or sub:ADDRESS";
}

static const char *check_any(const char *text)
{
    (void)text;
    return NULL;
}

static const char *check_listen(const char *text)
{
    bool fine = has_port(text, 1) || (strncmp(text, "ipc://", 6) == 0 && text[6]);
    return fine ? NULL : "must be HOST:PORT, or with transport pull ipc://PATH";
}

static const char *check_connect(const char *text)
{
    bool mqtt = (strncmp(text, "mqtt://", 7) == 0 && has_port(text + 7, 1)) || (strncmp(text, "mqtts://", 8) == 0 && has_port(text + 8, 1));
    return mqtt || is_endpoint(text) ? NULL : "must be tcp://HOST:PORT, ipc://PATH, mqtt://HOST:PORT or mqtts://HOST:PORT";
}

/* Every part between commas has `least` to `most` letters. */
static bool has_parts(const char *text, size_t least, size_t most)
{
    for (;; text++) {
        size_t n = strcspn(text, ",");
        if (n < least || n > most) {
            return false;
        }
        text += n;
        if (*text == '\0') {
            return true;
        }
    }
}

static const char *check_fields(const char *text)
{
    bool fine = has_parts(text, 1, 63) && text[strcspn(text, "\"\\")] == '\0';
    return fine ? NULL : "must be names of 1 to 63 letters without quote and backslash";
}

static const char *check_units(const char *text)
{
    return has_parts(text, 0, 31) ? NULL : "must be units of at most 31 letters";
}

static const char *check_sound_path(const char *text)
{
    static const char *const endings[] = {".wav", ".flac", ".ogg", ".opus", ".w64", ".rf64"};
    const char *dot = strrchr(text, '.');
    for (int i = 0; dot && i < COUNT(endings); i++) {
        if (strcasecmp(dot, endings[i]) == 0) {
            return NULL;
        }
    }
    return "the ending says the format: use .wav, .flac, .ogg, .opus, .w64 or .rf64";
}

/* A row is two or three lines, the sentence for the reader last. */
/* clang-format off */
enum { FILES = 1 << SOURCE_FILE, AUDIO = 1 << SOURCE_AUDIO, PCM = 1 << SOURCE_PCM, SENSOR = 1 << SOURCE_SENSOR };

static const struct key source_rows[] = {
    {.name = "type", .kind = KEY_WORD, FIELD(struct config_source, type), .words = source_types, .required = true,
     .about = "Where the samples come from: a sound file, a sound device, raw PCM, or a sensor's lines."},
    {.name = "path", .kind = KEY_TEXT, FIELD(struct config_source, path), .types = FILES, .required = true,
     .check = check_not_empty, .pattern = ".", .about = "The sound file to read: any format libsndfile knows."},
    {.name = "path", .kind = KEY_TEXT, FIELD(struct config_source, path), .types = PCM, .required = true,
     .check = check_pcm_path, .pattern = "^(-|unix:.+|tcp://.+:[0-9]+|(pull|sub):(tcp://.+:[0-9]+|ipc://.+))$",
     .about = "Where PCM comes from: - is standard input; unix:PATH or tcp://HOST:PORT a socket to listen on; of ZeroMQ "
              "pull:ADDRESS one to listen on, sub:ADDRESS one to connect to, each message whole samples."},
    {.name = "paced", .kind = KEY_BOOL, FIELD(struct config_source, paced), .types = FILES, .standard = "true",
     .about = "Read at the speed of real time, as if it were live; false: as fast as it goes."},
    {.name = "paced", .kind = KEY_BOOL, FIELD(struct config_source, paced), .types = PCM, .standard = "false",
     .about = "It comes at the speed of real time: what finds no room is lost, and counted, rather than late. false: whoever "
              "sends is slowed down."},
    {.name = "loop", .kind = KEY_BOOL, FIELD(struct config_source, loop), .types = FILES, .standard = "false",
     .about = "Begin again at the end."},
    {.name = "device", .kind = KEY_TEXT, FIELD(struct config_source, device), .types = AUDIO, .standard = "default",
     .check = check_not_empty, .pattern = ".", .about = "The sound device by its name, as `ssm devices` prints it."},
    {.name = "rate", .kind = KEY_INT, FIELD(struct config_source, rate), .types = AUDIO, .least = 1000, .most = 768000,
     .about = "Sample rate in Hz; without it the device's own. It's converted to the model's."},
    {.name = "rate", .kind = KEY_INT, FIELD(struct config_source, rate), .types = PCM, .least = 1000, .most = 768000,
     .required = true, .about = "Sample rate of the PCM in Hz. It's converted to the model's."},
    {.name = "channels", .kind = KEY_INTS, FIELD(struct config_source, channels), .types = FILES | AUDIO, .least = 0,
     .most = 1023, .count_offset = offsetof(struct config_source, n_channels),
     .about = "Channels to take, from 0; each is a stream of its own. Without it: all of a file, the first of a device."},
    {.name = "pcm_channels", .kind = KEY_INT, FIELD(struct config_source, pcm_channels), .types = PCM, .least = 1,
     .most = CONFIG_CHANNELS, .standard = "1", .about = "Interleaved channels in the PCM; each is a stream of its own."},
    {.name = "format", .kind = KEY_WORD, FIELD(struct config_source, format), .types = PCM, .words = formats,
     .standard = "s16le", .about = "What a PCM sample is: signed integers or floats, little-endian."},
    {.name = "transport", .kind = KEY_WORD, FIELD(struct config_source, transport), .types = SENSOR, .words = transports,
     .required = true, .about = "How lines come: stdin, udp (listen), tcp (listen), ZeroMQ: pull (listen) or sub (connect), or mqtt (connect)."},
    {.name = "listen", .kind = KEY_TEXT, FIELD(struct config_source, listen), .types = SENSOR, .check = check_listen,
     .pattern = "^(.+:[0-9]+|ipc://.+)$", .about = "Where udp, tcp and pull listen: HOST:PORT; pull also ipc://PATH."},
    {.name = "connect", .kind = KEY_TEXT, FIELD(struct config_source, connect), .types = SENSOR, .check = check_connect,
     .pattern = "^((tcp|mqtts?)://.+:[0-9]+|ipc://.+)$",
     .about = "What sub connects to: tcp://HOST:PORT or ipc://PATH; mqtt: mqtt://HOST:PORT, or with TLS mqtts://HOST:PORT."},
    {.name = "topic", .kind = KEY_TEXT, FIELD(struct config_source, topic), .types = SENSOR, .pattern = "", .check = check_any,
     .about = "For sub: what messages begin with, all of them without it; the line is in the last frame. For mqtt: the filter, "
              "in which + is one level and # at the end all below."},
    {.name = "qos", .kind = KEY_INT, FIELD(struct config_source, qos), .types = SENSOR, .least = 0, .most = 2,
     .standard = "0", .about = "For mqtt: 0 a message may get lost, 1 it may come twice, 2 neither."},
    {.name = "user", .kind = KEY_TEXT, FIELD(struct config_source, user), .types = SENSOR, .check = check_not_empty,
     .pattern = ".", .about = "For mqtt: who the broker is told this is."},
    {.name = "password_file", .kind = KEY_TEXT, FIELD(struct config_source, password_file), .types = SENSOR,
     .check = check_not_empty, .pattern = ".", .about = "For mqtt: a file whose first line is the user's password."},
    {.name = "ca", .kind = KEY_TEXT, FIELD(struct config_source, ca), .types = SENSOR, .check = check_not_empty, .pattern = ".",
     .about = "For mqtts: certificates of whom the broker's may be signed by, a file or folder; without it whom the system trusts."},
    {.name = "server_key", .kind = KEY_TEXT, FIELD(struct config_source, server_key), .types = PCM | SENSOR,
     .check = check_not_empty, .pattern = ".",
     .about = "For sub: the public key of whom it connects to, or a file of it; then CURVE is spoken, with curve's own key."},
    {.name = "format", .kind = KEY_WORD, FIELD(struct config_source, lines), .types = SENSOR, .words = line_formats,
     .standard = "jsonl", .about = "What a line is: jsonl, an object of JSON, or csv."},
    {.name = "fields", .kind = KEY_TEXTS, FIELD(struct config_source, fields), .types = SENSOR, .least = 1,
     .most = READING_FIELDS, .check = check_fields, .pattern = "^[^,\"]{1,63}$",
     .about = "The keys or columns that become the model's channels, in its order; without it as the model names them."},
    {.name = "units", .kind = KEY_TEXTS, FIELD(struct config_source, units), .types = SENSOR, .least = 1,
     .most = READING_FIELDS, .check = check_units, .pattern = "^[^,]{0,31}$",
     .about = "The fields' units; where the model tells its own, they have to be the same."},
    {.name = "time", .kind = KEY_TEXT, FIELD(struct config_source, time), .types = SENSOR, .check = check_fields,
     .pattern = "^[^,\"]{1,63}$",
     .about = "The key or column of the time, in seconds or a date; without it t, time or timestamp, if there is one."},
    {.name = "rate", .kind = KEY_INT, FIELD(struct config_source, rate), .types = SENSOR, .least = 1, .most = 10000000,
     .about = "Readings a second, where they carry no time; without it the model's rate."},
    {.name = "reorder", .kind = KEY_SECONDS, FIELD(struct config_source, reorder_s), .types = SENSOR, .least = 0, .most = 60,
     .standard = "0s", .about = "How late a reading may come and still be put in order; it delays all of them by as much."},
    {.name = "gap", .kind = KEY_SECONDS, FIELD(struct config_source, gap_s), .types = SENSOR, .least = 0, .most = 1000000,
     .standard = "0s", .about = "A longer pause ends events and is told as a gap; 0s is 1 s, or five hops if that is more."},
    {.name = "least", .kind = KEY_REAL, FIELD(struct config_source, least), .types = SENSOR, .least = -1e30, .most = 1e30,
     .about = "The smallest value there can be, with most; a line beyond is not taken, and counted."},
    {.name = "most", .kind = KEY_REAL, FIELD(struct config_source, most), .types = SENSOR, .least = -1e30, .most = 1e30,
     .about = "The largest value there can be, with least."},
    {.name = "echo", .kind = KEY_TEXT, FIELD(struct config_source, echo), .types = AUDIO, .check = check_not_empty,
     .pattern = ".", .about = "The sound device that captures what the loudspeakers play, such as their monitor: it is taken out of the input."},
    {.name = "silence", .kind = KEY_SECONDS, FIELD(struct config_source, silence_s), .types = AUDIO, .least = 0, .most = 1000000,
     .standard = "10s", .about = "So much silence makes the source's state silent, as of a dead microphone; 0s: it never is."},
    {.name = "floor", .kind = KEY_REAL, FIELD(struct config_source, floor_db), .types = AUDIO, .least = -200, .most = -20,
     .standard = "-100", .about = "What isn't louder than this, in dB of full scale, is silence."},
    {.name = "buffer", .kind = KEY_SECONDS, FIELD(struct config_source, buffer_s), .least = 0.02, .most = 60,
     .standard = "2s", .about = "Sound the source may run ahead of the model before samples are lost and counted."},
};

static const struct keys source_keys = {
    .what = "source", .types = source_types, .at = source_rows, .n = COUNT(source_rows)};

enum { SINK_HAS_FILE = 1 << SINK_FILE, SINK_HAS_AUDIO = 1 << SINK_AUDIO, SINK_HAS_LINES = 1 << SINK_JSONL };

static const struct key sink_rows[] = {
    {.name = "type", .kind = KEY_WORD, FIELD(struct config_sink, type), .words = sink_types, .required = true,
     .about = "Where the result goes: to subscribers, a sound device, a sound file, or events as lines of JSON."},
    {.name = "path", .kind = KEY_TEXT, FIELD(struct config_sink, path), .types = SINK_HAS_FILE, .required = true,
     .check = check_sound_path, .pattern = "\\.([wW][aA][vV]|[fF][lL][aA][cC]|[oO][gG][gG]|[oO][pP][uU][sS]|[wW]64|[rR][fF]64)$",
     .about = "The sound file to write; replaced if it is there; its ending says the format: .wav .flac .ogg .opus .w64 .rf64."},
    {.name = "path", .kind = KEY_TEXT, FIELD(struct config_sink, path), .types = SINK_HAS_LINES, .required = true,
     .check = check_not_empty, .pattern = ".",
     .about = "The file that lines are added to, one an event of a tag model as it ends; moved away it is begun anew. - is standard output."},
    {.name = "device", .kind = KEY_TEXT, FIELD(struct config_sink, device), .types = SINK_HAS_AUDIO, .standard = "default",
     .check = check_not_empty, .pattern = ".", .about = "The sound device by its name, as `ssm devices` prints it."},
    {.name = "rate", .kind = KEY_INT, FIELD(struct config_sink, rate), .types = SINK_HAS_FILE | SINK_HAS_AUDIO,
     .least = 1000, .most = 768000, .about = "Sample rate in Hz; without it the source's."},
};

static const struct keys sink_keys = {.what = "sink", .types = sink_types, .at = sink_rows, .n = COUNT(sink_rows)};

static const struct key pipeline_rows[] = {
    {.name = "source", .kind = KEY_MAP, FIELD(struct config_pipeline, source), .items = &source_keys, .required = true,
     .about = "Where the samples come from."},
    {.name = "model", .kind = KEY_TEXT, FIELD(struct config_pipeline, model), .required = true, .check = check_not_empty,
     .pattern = ".", .about = "The model each channel goes through: a name `ssm models` prints, or a .safetensors file."},
    {.name = "fallback", .kind = KEY_TEXT, FIELD(struct config_pipeline, fallback), .check = check_not_empty, .pattern = ".",
     .about = "A smaller model of the same rate, hop and delay that live sound goes through while there is no time for model."},
    {.name = "priority", .kind = KEY_INT, FIELD(struct config_pipeline, priority), .least = 0, .most = 100, .standard = "50",
     .about = "Where there is more to do than time, the pipelines of the lowest priority give way first: to fallback, to their "
              "input as it is, to silence."},
    {.name = "strength", .kind = KEY_REAL, FIELD(struct config_pipeline, strength), .least = 0, .most = 100, .standard = "100",
     .about = "For denoisers: the most they may take away, in dB; so much of the input stays in. 100 is no limit."},
    {.name = "bypass", .kind = KEY_BOOL, FIELD(struct config_pipeline, bypass), .standard = "false",
     .about = "For denoisers: the input itself comes out, as late as the model's output would."},
    {.name = "deadline", .kind = KEY_SECONDS, FIELD(struct config_pipeline, deadline_s), .least = 0, .most = 3600,
     .standard = "0s", .about = "How long after its last sample came a hop may be out; later ones are counted. 0s is the time "
     "of a hop, and what it may wait for others."},
    {.name = "sinks", .kind = KEY_LIST, FIELD(struct config_pipeline, sinks), .items = &sink_keys, .required = true,
     .count_offset = offsetof(struct config_pipeline, n_sinks), .item_size = sizeof(struct config_sink), .least = 1,
     .most = CONFIG_SINKS, .about = "Where the results go."},
};

static const struct keys pipeline_keys = {.what = "pipeline", .at = pipeline_rows, .n = COUNT(pipeline_rows)};

static const struct key curve_rows[] = {
    {.name = "secret", .kind = KEY_TEXT, FIELD(struct config_curve, secret), .required = true, .check = check_not_empty,
     .pattern = ".", .about = "File of this daemon's key pair, as ssm keys makes it: NAME_secret."},
    {.name = "clients", .kind = KEY_TEXT, FIELD(struct config_curve, clients), .required = true, .check = check_not_empty,
     .pattern = ".", .about = "Whose public keys may come in: a file of keys, a folder of such files, or any."},
    {.name = "admins", .kind = KEY_TEXT, FIELD(struct config_curve, admins), .check = check_any, .pattern = "",
     .about = "Whose public keys may change things over control, beside what clients may: a file or a folder."},
};

static const struct keys curve_keys = {.what = "curve", .at = curve_rows, .n = COUNT(curve_rows)};

static const struct key rows[] = {
    {.name = "version", .kind = KEY_INT, FIELD(struct config, version), .least = 1, .most = 1, .required = true,
     .about = "Of this file's format: 1."},
    {.name = "node", .kind = KEY_TEXT, FIELD(struct config, node), .standard = "local", .check = check_node,
     .pattern = "^[A-Za-z0-9_.-]+$", .about = "This daemon's name, the second word of every topic."},
    {.name = "device", .kind = KEY_TEXTS, FIELD(struct config, device), .standard = "auto", .least = 1, .most = 16,
     .check = check_device, .pattern = "^(auto|cpu|cuda|cuda:[0-9]{1,4})$",
     .about = "What computes the models: auto takes a GPU where there is one; cuda fails where there is none; "
              "[cuda:0, cuda:1] share the streams."},
    {.name = "precision", .kind = KEY_TEXT, FIELD(struct config, precision), .standard = "auto", .check = check_precision,
     .pattern = "^(auto|fp32|tf32|bf16|bf16-state)$",
     .about = "How a GPU computes products; bf16-state keeps the streams' states in bf16 too. The processor takes fp32."},
    {.name = "threads", .kind = KEY_INT, FIELD(struct config, threads), .least = 0, .most = 1024, .standard = "0",
     .about = "Threads that compute on the CPU; 0 means one for each core."},
    {.name = "publish", .kind = KEY_TEXT, FIELD(struct config, publish), .check = check_publish,
     .pattern = "^(tcp://.+:[0-9]+|ipc://.+)?$",
     .about = "Address results are published on (ZeroMQ XPUB): tcp://127.0.0.1:5571 or ipc:///run/ssmd/publish."},
    {.name = "control", .kind = KEY_TEXT, FIELD(struct config, control), .check = check_control, .standard = "auto",
     .pattern = "^(auto|tcp://.+:[0-9]+|ipc://.+)?$",
     .about = "Address `ssm ctl` is answered on (ZeroMQ ROUTER); auto is 127.0.0.1 and one port below publish, or its ipc "
              "path and .control; empty is none."},
    {.name = "http", .kind = KEY_TEXT, FIELD(struct config, http), .check = check_http, .pattern = "^(.+:[0-9]+)?$",
     .about = "Where a web server tells how it runs, 127.0.0.1:9464: /metrics for Prometheus, /health, /ready, /ping."},
    {.name = "state_dir", .kind = KEY_TEXT, FIELD(struct config, state_dir), .check = check_any, .pattern = "",
     .about = "Folder in which the states of live streams are kept, each second, for a restart to go on from, best in memory: "
              "/run/ssmd; empty is nowhere."},
    {.name = "curve", .kind = KEY_MAP, FIELD(struct config, curve), .items = &curve_keys,
     .about = "Encrypt every tcp:// port of ZeroMQ (CURVE), and let in only who has a key. ssm keys makes them."},
    {.name = "insecure", .kind = KEY_BOOL, FIELD(struct config, insecure), .standard = "false",
     .about = "Allow ports that other machines reach without encryption: whoever reaches them can listen, or feed a model."},
    {.name = "capacity", .kind = KEY_INT, FIELD(struct config, capacity), .least = -1, .most = 1000000, .standard = "0",
     .about = "How many live streams there may be at once; more are refused. 0 is no limit; -1 measures at start what the models "
              "cost here."},
    {.name = "deadline", .kind = KEY_SECONDS, FIELD(struct config, deadline_s), .least = 0, .most = 1, .standard = "2ms",
     .about = "The longest a hop waits for other streams to be computed with."},
    {.name = "drain", .kind = KEY_SECONDS, FIELD(struct config, drain_s), .least = 0, .most = 600, .standard = "10s",
     .about = "Time allowed at the end (SIGTERM) to compute and write what has come in."},
    {.name = "pipelines", .kind = KEY_NAMED, FIELD(struct config, pipelines), .items = &pipeline_keys, .required = true,
     .count_offset = offsetof(struct config, n_pipelines), .item_size = sizeof(struct config_pipeline), .least = 1,
     .most = CONFIG_PIPELINES, .check = check_name, .pattern = "^[a-z0-9_-]{1,63}$",
     .about = "What runs: each name is one line from a source through a model to sinks."},
};

const struct keys config_keys = {.what = "configuration", .at = rows, .n = COUNT(rows)};
