/* SPDX-License-Identifier: MIT */
#ifndef MODEL_SSM_H
#define MODEL_SSM_H

/* libssm: run a selective state space model over many live streams, or over a recording.
 *
 * An engine is one model on one device with room for a fixed number of streams. A stream is a slot in it: a constant-size
 * state and nothing else. A model takes hops of `hop` samples (of each of its `channels`) in and gives hops of `hop` samples
 * (or `outputs` scores) out.
 *
 *   struct ssm_error err;
 *   struct ssm_engine *engine = ssm_open("denoise-16k", NULL, &err);       // a name in the model path, or a file
 *   ssm_stream mic;
 *   ssm_stream_open(engine, &mic);
 *   struct ssm_hop hop = {.stream = mic, .in = noisy, .out = clean, .count = 1};
 *   ssm_step(engine, &hop, 1);                                             // 160 samples in, 160 samples out
 *
 * Threads: an engine has one owner; calls on one engine must not overlap. Different engines are independent. An engine's own
 * threads block every signal; the child of a fork has none of them, and can use no engine of its parent's.
 * Memory: everything is taken in ssm_open and ssm_take_memory; step, scan, stream_* and state_* allocate nothing. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What went wrong, in one sentence that says what to do, and the sysexits code a program should end with. */
struct ssm_error {
    int code; /* 0 none, 64 usage, 65 bad model or data, 66 no input, 69 device unavailable, 70 internal, 71 memory */
    char text[512];
};

enum ssm_status {
    SSM_OK = 0,
    SSM_STALE = -1,     /* the stream was closed (its generation is over)                                    */
    SSM_FULL = -2,      /* every slot is taken                                                               */
    SSM_BAD_STATE = -3, /* a saved state of another model or version, cut short, or damaged                  */
    SSM_REFUSED = -4,   /* count out of range, a stream twice in one step, or too little room for a state    */
    SSM_FAULT = -5      /* the device failed in this call; the stream goes on on the processor (see ssm_health) */
};

struct ssm_engine;
typedef uint64_t ssm_stream; /* generation << 32 | slot; 0 is never a stream */

struct ssm_options {
    const char *device; /* "auto", "cpu", "cuda", "cuda:1", "cuda:0,cuda:1"; NULL = auto. cuda that can't be had fails;
                           several share the streams                                                          */
    int streams;        /* slots; 0 = 1                                                                       */
    int threads;        /* worker threads, the caller among them; 0 = one. A GPU has one or two more that carry states, and
                           several GPUs one each                                                              */
    int max_hops;       /* hops of one stream a step may take; 0 = 1. ssm_scan cuts longer input itself       */
    const char *precision; /* products on a GPU: "fp32", "tf32" (at least its digits), "bf16", "bf16-state" (states
                              too); NULL or "auto" = fp32. The processor computes in fp32 whatever this says   */
    float copy_s;       /* on a GPU each stream's state is copied to the processor after at most so many seconds of its
                           own hops, to go on from when the GPU fails; later with more streams than some 40 MB of copies a
                           step are enough for. The copies take as much memory as the states. 0 = 1 s; below 0: no
                           copies, a GPU that fails ends its streams                                          */
    float patience_s;   /* a GPU that gives no sign for so long in a call hangs: it failed. 0 = 1 s           */
};

struct ssm_info {
    char name[64], version[32], licence[128], trained[1024];
    char task[32];       /* "denoise", "tag" (scores with labels), "regress", "tokens" (scores of the next one),
                            "backbone" (values in, values out)                                                */
    char device[64];     /* "cpu avx512"                                                                      */
    char device_why[256]; /* why auto took it                                                                 */
    char digest[17];     /* first 16 hex digits of the file's xxh3 sum                                        */
    int rate;            /* Hz                                                                                */
    int hop;             /* samples in a hop, of each channel                                                 */
    int channels;        /* 1..64: the sensors of one stream, sample by sample: s0c0 s0c1 ... s1c0            */
    int inputs;          /* values in a hop: hop * channels. Of a model of tokens 1: the token's number        */
    int outputs;         /* values out a hop: `hop` samples, or scores                                        */
    int vocabulary;      /* tokens a model of tokens knows, 0 .. vocabulary - 1; 0: not one                   */
    bool exclusive;      /* the labels exclude each other: at most one is true at a time                      */
    int delay;           /* samples by which the output stream lags the input stream, hop in to hop out       */
    int latency;         /* algorithmic latency in samples: delay + hop                                       */
    int layers;
    long parameters;
    double macs_per_hop;
    size_t state_bytes;  /* of one stream                                                                     */
    size_t engine_bytes; /* what ssm_open took, on all devices, but for some bytes a stream                   */
    int streams;         /* slots there are                                                                   */
    int scan_hops;       /* ssm_scan is fastest with so many at once, or several times as many                */
};

/* One line of `ssm model inspect`. */
struct ssm_layer_info {
    const char *type, *name;
    int in, out;
    long parameters;
    double macs_per_hop;
    size_t state_bytes;
};

/* One channel of the input, as the model's file names it; "" where it doesn't. */
struct ssm_channel {
    char field[64], unit[32];
};

/* One output of a model that names them, and how its score (0..1) becomes events. */
struct ssm_label {
    char name[64], mid[32]; /* mid: its AudioSet id, or ""                          */
    float on, off;          /* an event begins at `on` and ends below `off` <= `on` */
    float min_s, hold_s;    /* shorter ones don't count; it ends only after so long below `off` */
};

/* What went wrong since ssm_open. A device fails once, for good: what it was computing is void (SSM_FAULT), and its streams
 * go on with their next hop on the processor, from the last copy of their state. The time since that copy multiplies dt as
 * in a gap, so call on as if nothing were missing: elapsed stays 1. A scan repeats its hops itself and gives SSM_OK. */
struct ssm_health {
    uint64_t faults;      /* devices that failed                                                              */
    uint64_t moved;       /* streams that went over to the processor                                          */
    uint64_t failed_hops; /* hops given back with SSM_FAULT                                                   */
    char last[384];       /* what the last device to fail said, or the last ones in one call; "" = none did   */
};

/* Where the time of a device's last ssm_step went, s: four spans one after the other, and how long of it the GPU was busy;
 * all 0 on the processor. */
struct ssm_spent {
    double first; /* until the device had its first rows                                                      */
    double feed;  /* until it had all                                                                         */
    double wait;  /* until it had given back the last                                                         */
    double hand;  /* until the caller had them                                                                */
    double busy;  /* 0: it was a small step, in which that isn't measured                                     */
};

/* One device an engine runs on. */
struct ssm_device_info {
    char name[64];  /* "cpu avx512", "cuda:0 ..."                                                             */
    size_t bytes;   /* of its own memory that ssm_open took                                                   */
    bool lost;      /* it failed                                                                              */
    double copy_s;  /* age of the oldest copy of a state among the streams of the last step, s; 0: none or no GPU */
    struct ssm_spent spent;
};

/* Open a model. `model` is a file's path if it holds a '/' or ends in .safetensors, else a name looked up in
 * $SSM_MODEL_PATH, then the source tree's model/pretrained, then the installed models. options may be NULL.
 * Gives the engine, or NULL with *err filled in. */
struct ssm_engine *ssm_open(const char *model, const struct ssm_options *options, struct ssm_error *err);
void ssm_close(struct ssm_engine *engine); /* NULL is fine */

/* Memory for hops to lie in, when there are many: where a step's in and out are there, a GPU reads and writes them by itself, and
 * no thread has to carry them. They may lie anywhere else, and some here, some there: the same bits come out. It takes its time;
 * gives memory for any type, zeroed, the engine's until ssm_close, of whole 2 MiB; or NULL: none is to be had, or it is the ninth
 * piece. While a call on the engine is in progress nobody else writes to it. */
void *ssm_take_memory(struct ssm_engine *engine, size_t bytes);

const struct ssm_info *ssm_describe(const struct ssm_engine *engine);             /* borrowed from the engine */
bool ssm_describe_layer(const struct ssm_engine *engine, int i, struct ssm_layer_info *info); /* false past the end */
bool ssm_describe_channel(const struct ssm_engine *engine, int i, struct ssm_channel *channel); /* the same           */
bool ssm_describe_label(const struct ssm_engine *engine, int i, struct ssm_label *label); /* a model of task "tag" names
                                                                                        all its outputs, others all or none */

bool ssm_describe_device(const struct ssm_engine *engine, int i, struct ssm_device_info *info); /* the same       */
const struct ssm_health *ssm_health(const struct ssm_engine *engine); /* borrowed; changes with each call of the owner's */

/* Find the file behind a model's name. Gives 0 and the path, or -1 and an error naming the places looked in. */
int ssm_model_find(const char *model, char *path, size_t size, struct ssm_error *err);
/* The folder of shipped models i = 0, 1, ... in search order, or NULL past the end. */
const char *ssm_model_folder(int i);

/* The device a stream runs on: i of ssm_describe_device; -1: the processor, which its device's failure left it to. The
 * stream must be open. It changes in calls that change ssm_health's faults. */
int ssm_stream_device(const struct ssm_engine *engine, ssm_stream stream);

/* SSM_FAULT from these and from state_*: only that call failed, or, with copy_s below 0, the stream's device is lost. */
int ssm_stream_open(struct ssm_engine *engine, ssm_stream *stream);  /* zero state; SSM_OK or SSM_FULL        */
int ssm_stream_close(struct ssm_engine *engine, ssm_stream stream);  /* SSM_OK or SSM_STALE: safe to repeat   */
int ssm_stream_reset(struct ssm_engine *engine, ssm_stream stream);  /* back to the zero state                */

/* One stream's part of a step. */
struct ssm_hop {
    ssm_stream stream;
    const float *in; /* (count, hop, channels)  samples, full scale +-1, or the sensors' values; NaN or inf counts as 0 */
    float *out;      /* (count, outputs)  none of the step's may overlap with another's in or out             */
    int count;       /* hops, 1..max_hops                                                                     */
    float elapsed;   /* hops of time since this stream's previous hop, for the first hop here: 1 (or 0, meaning 1)
                        without a gap, 1 + k when k hops were lost, at most 1e6. Multiplies dt: exp(elapsed dt A) */
    int status;      /* out: SSM_OK, SSM_STALE, SSM_REFUSED or SSM_FAULT. STALE and REFUSED touch neither stream nor
                        out; after FAULT out is zeros that mean nothing                                        */
    bool blown;      /* out: the model gave NaN or inf; out is zeros and the stream was reset                 */
};

/* Advance n streams, each one or more hops; a stream may stand in `hops` once. Constant cost a hop. A stream's result
 * does not depend on the others in the call. Gives the number of items with status SSM_OK. */
int ssm_step(struct ssm_engine *engine, struct ssm_hop *hops, int n);

/* Run `count` hops of one recording from the stream's state to its end state, through the scan, over all of the engine's
 * threads. in (count, hop, channels), out (count, outputs). elapsed (count) or NULL. Same samples as ssm_step to 1e-4 of full scale.
 * Call again to go on with the next chunk. Gives SSM_OK, SSM_STALE, or SSM_FAULT (a device failed that nothing stands in
 * for, or before a scan on a stream that stepped before): out is then zeros from there on. *blown (may be NULL): hops
 * zeroed for NaN. */
int ssm_scan(struct ssm_engine *engine, ssm_stream stream, const float *in, float *out, const float *elapsed, size_t count,
             size_t *blown);

/* A stream's state as bytes: versioned, checksummed, the same on every device. size is ssm_state_size(); save gives the
 * bytes written, SSM_STALE, or SSM_REFUSED for too small a size; load SSM_OK, SSM_STALE or SSM_BAD_STATE (the stream is
 * then as before). */
size_t ssm_state_size(const struct ssm_engine *engine);
int ssm_state_save(struct ssm_engine *engine, ssm_stream stream, void *bytes, size_t size);
int ssm_state_load(struct ssm_engine *engine, ssm_stream stream, const void *bytes, size_t size, struct ssm_error *err);

#ifdef __cplusplus
}
#endif
#endif
