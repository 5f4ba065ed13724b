/* SPDX-License-Identifier: MIT */
#ifndef CONFIG_CONFIG_H
#define CONFIG_CONFIG_H

/* YAML -> settings.
 *
 * One table of keys (config/keys.c) drives the parser, `ssm check`, the JSON Schema and the documentation. Every error
 * says file:line:col, the key's path and, for an unknown key, the nearest known one. Input is hostile: bytes, depth and
 * events are limited, aliases and tags refused, and YAML 1.1's traps (`no`, `012`, `1:30`) answered with a sentence. */

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "dsp/pcm.h"      /* enum pcm_format */
#include "dsp/readings.h" /* enum reading_format */

enum { CONFIG_PIPELINES = 4096, CONFIG_SINKS = 8, CONFIG_CHANNELS = 64, CONFIG_ERRORS = 32 };

enum source_type { SOURCE_FILE, SOURCE_AUDIO, SOURCE_PCM, SOURCE_SENSOR };
enum sensor_transport { SENSOR_STDIN, SENSOR_UDP, SENSOR_TCP, SENSOR_PULL, SENSOR_SUB, SENSOR_MQTT };
enum sink_type { SINK_PUBLISH, SINK_AUDIO, SINK_FILE, SINK_JSONL };

struct config_source {
    enum source_type type;
    char path[1024];  /* file: what libsndfile reads; pcm: "-" for stdin or "unix:/path", "tcp://host:port" */
    bool paced;       /* file: at the speed of real time (default) or as fast as it goes. pcm: it comes at that speed,
                         and is lost rather than late                                                    */
    bool loop;        /* file: start again at its end                                                    */
    char echo[256];   /* audio: the device whose sound the loudspeakers play; "" = none                 */
    char device[256]; /* audio: "default" or a device's name as `ssm devices` prints it                   */
    int rate;         /* audio, pcm: Hz; 0 = the device's own. sensor: readings a second without a time; 0 = the model's */
    int channels[CONFIG_CHANNELS]; /* audio, file: channel numbers from 0, each a stream; pcm: all                    */
    int n_channels;                /* 0 = all (file) or the first (audio)                                             */
    int pcm_channels;              /* pcm: interleaved channels in the input                                          */
    enum pcm_format format;        /* pcm                                                                             */
    double silence_s;              /* audio: so much silence is told; 0 = never                                       */
    double floor_db;               /* audio: what isn't louder is silence, dB of full scale                           */
    double buffer_s;               /* ring length in seconds                                                          */
    enum sensor_transport transport; /* sensor                                                                        */
    char listen[256];              /* sensor over udp, tcp, pull: HOST:PORT; pull also ipc://PATH                     */
    char connect[256];             /* sensor over sub: a ZeroMQ address; over mqtt: mqtt://HOST:PORT, mqtts://HOST:PORT */
    char topic[256];               /* sensor over sub: what messages begin with; over mqtt: a filter                  */
    int qos;                       /* sensor over mqtt: 0..2                                                          */
    char user[256];                /* sensor over mqtt: "" = nobody                                                   */
    char password_file[1024];      /* sensor over mqtt: its first line is the user's password; "" = none              */
    char ca[1024];                 /* sensor over mqtts: whom it trusts, a file or folder; "" = whom the system does   */
    char server_key[1024];         /* over sub: the public key of whom it connects to, Z85 or a file; "" = no CURVE     */
    enum reading_format lines;     /* sensor                                                                          */
    char fields[2048];             /* sensor: "ax,ay,az"; "" = as the model names them                                */
    char units[1024];              /* sensor: "g,g,g": have to be the model's; "" = not told                          */
    char time[64];                 /* sensor: the time's name; "" = t, time or timestamp                              */
    double reorder_s, gap_s;       /* sensor                                                                          */
    double least, most;            /* sensor: of a value; both 0 = any                                                */
};

struct config_sink {
    enum sink_type type;
    char path[1024];  /* file: the format follows the ending: .wav .flac .ogg .opus .w64 .rf64; jsonl: "-" for stdout   */
    char device[256]; /* audio                                                                                      */
    int rate;         /* audio, file: Hz; 0 = the source's                                                           */
};

/* Who may come in over ZeroMQ (daemon/gate.h). */
struct config_curve {
    char secret[1024];  /* file of our key pair; "" = no curve                  */
    char clients[1024]; /* file or folder of public keys, or "any"              */
    char admins[1024];  /* the same, of who may change things; "" = nobody      */
};

/* Where something stands, as messages about it begin: "live.yaml:12:5: pipelines.mic.model: ". */
struct config_place {
    char text[256];
    int line, column; /* 0: in an override */
};

struct config_pipeline {
    char name[64];
    struct config_source source;
    char model[1024];
    char fallback[1024]; /* a smaller model that stands in for it in overload; "" = none */
    int priority;     /* in overload the pipelines of the least give way first */
    double strength;  /* denoisers: at most so many dB are taken away; 100 = no limit */
    bool bypass;      /* denoisers: the input itself comes out, as late as the model's output */
    double deadline_s; /* a hop that takes longer is late; 0 = the time of a hop and config.deadline_s */
    struct config_sink sinks[CONFIG_SINKS];
    int n_sinks;
    struct {
        struct config_place source, model, fallback, sinks[CONFIG_SINKS];
    } at; /* the last member: all before it are settings */
};

struct config {
    int version;
    char node[64];
    char device[256];   /* auto, cpu, cuda, cuda:0; several as "cuda:0,cuda:1" */
    char precision[16]; /* of products on a GPU: auto, fp32, tf32, bf16, bf16-state */
    int threads;       /* engine threads; 0 = all cores */
    char publish[256]; /* XPUB address; "" = none */
    char control[256]; /* address requests are answered on; "" = none, "auto" = one port below `publish` */
    char http[256];    /* HOST:PORT of the web server that tells how it runs; "" = none */
    char state_dir[1024]; /* where states outlive a crash; "" = nowhere */
    struct config_curve curve;
    struct config_place curve_at;
    bool insecure;     /* listen beyond loopback without CURVE */
    int capacity;      /* live streams there may be at once; 0 = no limit, -1 = what is measured at start */
    double deadline_s; /* a batch waits at most this long for more streams */
    double drain_s;    /* SIGTERM: time allowed to drain */
    struct config_pipeline *pipelines;
    int n_pipelines;
};

struct config_error {
    int line, column;
    char path[256]; /* pipelines.mic.source.type */
    char text[512]; /* "live.yaml:12:5: pipelines.mic.source.typ: no such key; did you mean type?" */
};

struct config_errors {
    int n, more; /* more: found beyond the room for them */
    struct config_error at[CONFIG_ERRORS];
};

/* Read a whole configuration; NULL with *errors filled in. `path` "-" is standard input. overrides: n strings of the
 * form a.b=value, applied after the file as if they stood in it. */
struct config *config_load(const char *path, const char *const *overrides, int n, struct config_errors *errors);
/* The same from memory; `name` stands in messages. */
struct config *config_parse(const char *text, size_t size, const char *name, const char *const *overrides, int n,
                            struct config_errors *errors);
void config_destroy(struct config *config); /* NULL is fine */

/* Where requests are answered: what `control` says, where "auto" is one port below the publisher's, of this machine alone; "" for
 * nowhere. */
void config_control(const struct config *config, char *address, size_t size);

/* The path of the socket at which a source listens; NULL: it makes none. */
const char *config_socket(const struct config_source *source);
bool config_reads_input(const struct config_source *source); /* standard input */

/* Do both, of one kind, listen at one address, as it is written, or subscribe to the same? */
bool config_same_address(const struct config_source *a, const struct config_source *b);

/* The first key outside of pipelines whose value differs; NULL: none. */
const char *config_differs(const struct config *a, const struct config *b);

/* The configuration built in: what `ssmd` runs without --config. */
const char *config_default(void);

/* JSON Schema (draft-07) of the file, from the same table. */
void config_schema(FILE *file);
/* Its manual page, ssmd.yaml(5), from there too. */
void config_manual(FILE *file);

#endif
