/* SPDX-License-Identifier: MIT */
#include "config/config.h"

#include <jansson.h>
#include <unistd.h>

#include "config/read.h"
#include "tests/folder.h"
#include "tests/test.h"

static struct config *parse(const char *text, struct config_errors *errors)
{
    return config_parse(text, strlen(text), "t.yaml", NULL, 0, errors);
}

static void print_errors(const struct config_errors *errors)
{
    for (int i = 0; i < errors->n; i++) {
        print_error("%s\n", errors->at[i].text);
    }
}

static const char good[] = "version: 1\n"
                           "publish: tcp://127.0.0.1:5571\n"
                           "pipelines:\n"
                           "  mic:\n"
                           "    source: {type: file, path: x.wav}\n"
                           "    model: denoise-16k\n"
                           "    sinks:\n"
                           "      - {type: publish}\n"
                           "      - {type: file, path: y.flac}\n";

/* `good` with its line `number` (from 1; 0: none) replaced by `line`. */
static char *with_line(int number, const char *line)
{
    char *text = calloc(1, sizeof good + strlen(line) + 2);
    const char *at = good;
    for (int i = 1; *at; i++) {
        const char *end = strchr(at, '\n') + 1;
        if (i == number) {
            sprintf(text + strlen(text), "%s\n", line);
        } else {
            strncat(text, at, (size_t)(end - at));
        }
        at = end;
    }
    return text;
}

static void a_file_becomes_settings_with_their_defaults(void **state)
{
    (void)state;
    struct config_errors errors;
    struct config *config = parse(good, &errors);
    print_errors(&errors);
    assert_non_null(config);
    assert_string_equal(config->node, "local");
    assert_string_equal(config->device, "auto");
    assert_string_equal(config->precision, "auto");
    assert_string_equal(config->publish, "tcp://127.0.0.1:5571");
    assert_int_equal(config->threads, 0);
    assert_false(config->insecure);
    assert_close(config->drain_s, 10, 0);
    assert_close(config->deadline_s, 0.002, 0);
    assert_int_equal(config->n_pipelines, 1);
    const struct config_pipeline *mic = config->pipelines;
    assert_string_equal(mic->name, "mic");
    assert_int_equal(mic->at.model.line, 6);
    assert_string_equal(mic->at.model.text, "t.yaml:6:12: pipelines.mic.model: ");
    assert_string_equal(mic->model, "denoise-16k");
    assert_int_equal(mic->source.type, SOURCE_FILE);
    assert_string_equal(mic->source.path, "x.wav");
    assert_true(mic->source.paced);
    assert_false(mic->source.loop);
    assert_int_equal(mic->source.n_channels, 0);
    assert_close(mic->source.buffer_s, 2, 0);
    assert_int_equal(mic->n_sinks, 2);
    assert_int_equal(mic->sinks[0].type, SINK_PUBLISH);
    assert_int_equal(mic->sinks[1].type, SINK_FILE);
    assert_string_equal(mic->sinks[1].path, "y.flac");
    config_destroy(config);
}

static void every_type_of_source_and_sink_is_read(void **state)
{
    (void)state;
    const char text[] =
        "version: 1\nnode: \"n.1\"\ndevice: [cuda:1, cuda:0]\nprecision: bf16-state\nthreads: 3\ninsecure: true\ndeadline: 0.5ms\ndrain: 2min\n"
        "publish: tcp://*:5000\npipelines:\n"
        "  a:\n    source: {type: audio, device: 'USB: 1', rate: 48000, channels: [3, 0], buffer: 20ms}\n"
        "    model: m/x.safetensors\n    sinks: [{type: audio, device: out, rate: 44100}]\n"
        "  b:\n    source: {type: pcm, path: \"-\", rate: 8000, pcm_channels: 2, format: s24le}\n"
        "    model: m\n    sinks: [{type: file, path: a.WAV, rate: 8000}]\n"
        "  c:\n    source: {type: file, path: \"1\", paced: false, loop: true}\n"
        "    model: m\n    strength: 12.5\n    bypass: true\n    sinks: [{type: audio}]\n"
        "  d:\n    source: {type: file, path: \"2\"}\n"
        "    model: m\n    sinks: [{type: jsonl, path: \"-\"}, {type: jsonl, path: e.jsonl}]\n"
        "  e:\n    source: {type: sensor, transport: pull, listen: 127.0.0.1:9000, fields: [ax, ay], units: [g, g], time: at,\n"
        "             rate: 50, reorder: 20ms, gap: 3s, least: -1.5, most: 1e3, format: csv}\n"
        "    model: m\n    sinks: [{type: publish}]\n"
        "  f:\n    source: {type: sensor, transport: sub, connect: ipc:///x, topic: a/}\n"
        "    model: m\n    sinks: [{type: publish}]\n"
        "  g:\n    source: {type: sensor, transport: mqtt, connect: 'mqtts://h:8883', topic: 'a/+/#', qos: 2, user: u,\n"
        "             password_file: p, ca: c}\n"
        "    model: m\n    sinks: [{type: publish}]\n";
    struct config_errors errors;
    struct config *config = parse(text, &errors);
    print_errors(&errors);
    assert_non_null(config);
    assert_string_equal(config->device, "cuda:1,cuda:0");
    assert_string_equal(config->precision, "bf16-state");
    assert_close(config->deadline_s, 0.0005, 1e-12);
    assert_close(config->drain_s, 120, 0);
    assert_true(config->insecure);
    const struct config_source *a = &config->pipelines[0].source, *b = &config->pipelines[1].source;
    assert_string_equal(a->device, "USB: 1");
    assert_int_equal(a->rate, 48000);
    assert_int_equal(a->n_channels, 2);
    assert_int_equal(a->channels[0], 3);
    assert_int_equal(a->channels[1], 0);
    assert_close(a->buffer_s, 0.02, 1e-12);
    assert_int_equal(config->pipelines[0].sinks[0].rate, 44100);
    assert_int_equal(b->type, SOURCE_PCM);
    assert_string_equal(b->path, "-");
    assert_int_equal(b->pcm_channels, 2);
    assert_int_equal(b->format, PCM_S24LE);
    assert_false(config->pipelines[2].source.paced);
    assert_true(config->pipelines[2].source.loop);
    assert_string_equal(config->pipelines[2].sinks[0].device, "default");
    assert_true(config->pipelines[2].strength == 12.5);
    assert_true(config->pipelines[2].bypass);
    assert_true(config->pipelines[3].strength == 100);
    assert_false(config->pipelines[3].bypass);
    assert_int_equal(config->pipelines[3].sinks[1].type, SINK_JSONL);
    assert_string_equal(config->pipelines[3].sinks[1].path, "e.jsonl");
    const struct config_source *e = &config->pipelines[4].source, *f = &config->pipelines[5].source;
    assert_int_equal(e->type, SOURCE_SENSOR);
    assert_int_equal(e->transport, SENSOR_PULL);
    assert_string_equal(e->listen, "127.0.0.1:9000");
    assert_string_equal(e->fields, "ax,ay");
    assert_string_equal(e->units, "g,g");
    assert_string_equal(e->time, "at");
    assert_int_equal(e->rate, 50);
    assert_close(e->reorder_s, 0.02, 1e-12);
    assert_close(e->gap_s, 3, 0);
    assert_close(e->least, -1.5, 0);
    assert_close(e->most, 1000, 0);
    assert_int_equal(e->lines, READING_CSV);
    assert_int_equal(f->transport, SENSOR_SUB);
    assert_string_equal(f->connect, "ipc:///x");
    assert_string_equal(f->topic, "a/");
    assert_int_equal(f->lines, READING_JSONL);
    assert_string_equal(f->fields, "");
    assert_close(f->most, 0, 0);
    assert_int_equal(f->qos, 0);
    const struct config_source *g = &config->pipelines[6].source;
    assert_int_equal(g->transport, SENSOR_MQTT);
    assert_string_equal(g->connect, "mqtts://h:8883");
    assert_string_equal(g->topic, "a/+/#");
    assert_int_equal(g->qos, 2);
    assert_string_equal(g->user, "u");
    assert_string_equal(g->password_file, "p");
    assert_string_equal(g->ca, "c");
    config_destroy(config);
}

/* One line of `good` replaced, and the first error's whole text (or its beginning, when it ends in ...). */
static const struct {
    int number;
    const char *line, *error;
} wrong[] = {
    {1, "version: 2", "t.yaml:1:10: version: must be 1, got 2"},
    {1, "", "t.yaml:2:1: the key version is missing: Of this file's format: 1."},
    {1, "version: \"1\"", "t.yaml:1:10: version: must be 1 without quotes; in quotes it is text"},
    {1, "version: 01",
     "t.yaml:1:10: version: 01 is 1 (octal) in YAML 1.1 and 1 in 1.2; write it without the leading 0"},
    {2, "http: 0.0.0.0:9464", "t.yaml:2:7: http: 0.0.0.0:9464 can be reached from other machines, and whoever does can read how it runs. Bind 127.0.0.1, or ..."},
    {2, "http: localhost", "t.yaml:2:7: http: must be HOST:PORT; got \"localhost\""},
    {5, "    source: {type: sensor, transport: udp}",
     "t.yaml:5:13: pipelines.mic.source: this transport needs listen: HOST:PORT"},
    {5, "    source: {type: sensor, transport: udp, listen: '*:9000'}",
     "t.yaml:5:52: pipelines.mic.source: *:9000 can be reached from other machines, and ..."},
    {5, "    source: {type: sensor, transport: tcp, listen: ipc:///x}",
     "t.yaml:5:52: pipelines.mic.source: ipc:// is for the transport pull"},
    {5, "    source: {type: sensor, transport: sub}",
     "t.yaml:5:13: pipelines.mic.source: the transport sub needs connect: tcp://HOST:PORT"},
    {5, "    source: {type: sensor, transport: sub, connect: 'mqtt://h:1883'}",
     "t.yaml:5:53: pipelines.mic.source: the transport sub needs connect: tcp://HOST:PORT"},
    {5, "    source: {type: sensor, transport: sub, connect: 'tcp://h:1883', qos: 1}",
     "t.yaml:5:74: pipelines.mic.source.qos: is for the transport mqtt"},
    {5, "    source: {type: sensor, transport: mqtt, topic: a}",
     "t.yaml:5:13: pipelines.mic.source: the transport mqtt needs connect: mqtt://HOST:PORT"},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'tcp://h:1883', topic: a}",
     "t.yaml:5:54: pipelines.mic.source: the transport mqtt needs connect: mqtt://HOST:PORT"},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'mqtt://h'}",
     "t.yaml:5:54: pipelines.mic.source.connect: must be tcp://HOST:PORT, ipc://PATH, mqtt://HOST:PORT or mqtts://HOST:PORT; ..."},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'mqtt://h:1883'}",
     "t.yaml:5:13: pipelines.mic.source: the transport mqtt needs a topic, such as ..."},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'mqtt://h:1883', topic: 'a/#/b'}",
     "t.yaml:5:78: pipelines.mic.source: the transport mqtt needs a topic, such as ..."},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'mqtt://h:1883', topic: 'a/b+'}",
     "t.yaml:5:78: pipelines.mic.source: the transport mqtt needs a topic, such as ..."},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'mqtt://h:1883', topic: a, ca: c}",
     "t.yaml:5:85: pipelines.mic.source: ca is for mqtts://"},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'mqtts://h:1883', topic: a, password_file: c}",
     "t.yaml:5:97: pipelines.mic.source: password_file needs user"},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'mqtt://h:1883', topic: a, user: u, password_file: c}",
     "t.yaml:5:105: pipelines.mic.source: the password can be read by who is on the way to mqtt://h:1883. ..."},
    {5, "    source: {type: sensor, transport: mqtt, connect: 'mqtt://h:1883', topic: a, qos: 3}",
     "t.yaml:5:86: pipelines.mic.source.qos: must be 0 to 2, got 3"},
    {5, "    source: {type: sensor, transport: stdin, least: 2, most: 1}",
     "t.yaml:5:13: pipelines.mic.source: least is above most"},
    {5, "    source: {type: sensor, transport: stdin, least: two}",
     "t.yaml:5:53: pipelines.mic.source.least: must be a number, got \"two\""},
    {5, "    source: {type: sensor, transport: stdin, fields: [a, '']}",
     "t.yaml:5:58: pipelines.mic.source.fields: must be names of 1 to 63 letters without quote and backslash; got \"\""},
    {2, "publsh: x", "t.yaml:2:1: publsh: no such key; did you mean publish?"},
    {2, "zebra: x", "t.yaml:2:1: zebra: no such key; a configuration has version, node, device, precision, ..."},
    {2, "publish: tcp://127.0.0.1", "t.yaml:2:10: publish: must be tcp://HOST:PORT with a port ..."},
    {2, "publish: tcp://127.0.0.1:1", "t.yaml:2:10: publish: must be tcp://HOST:PORT with a port from 2 ..."},
    {2, "publish: inproc://x", "t.yaml:2:10: publish: inproc:// reaches no other process; ..."},
    {2, "publish: tcp://*:5571", "t.yaml:2:10: publish: *:5571 can be reached from other machines, and whoever does can listen. Bind 127.0.0.1, set curve: ..."},
    {2, "control: tcp://[::]:5570", "t.yaml:2:10: control: [::]:5570 can be reached from other machines, and whoever does can end ..."},
    {2, "curve: {secret: k}", "t.yaml:2:8: curve: the key clients is missing: ..."},
    {2, "curve: {secret: '', clients: any}", "t.yaml:2:17: curve.secret: must not be empty..."},
    {2, "publish: tcp://127.0.0.1.evil.org:5571",
     "t.yaml:2:10: publish: 127.0.0.1.evil.org:5571 can be reached ..."},
    {2, "publish:", "t.yaml:2:1: publish: has no value; give one or leave the key out"},
    {2, "threads: 012",
     "t.yaml:2:10: threads: 012 is 10 (octal) in YAML 1.1 and 12 in 1.2; write it without the leading 0"},
    {2, "threads: 1:30", "t.yaml:2:10: threads: 1:30 is 90 (base 60) in YAML 1.1; write 90"},
    {2, "threads: +3", "t.yaml:2:10: threads: write it as plain digits: 3"},
    {2, "threads: 0x10", "t.yaml:2:10: threads: must be a whole number in plain digits, got \"0x10\""},
    {2, "threads: -1", "t.yaml:2:10: threads: must be 0 to 1024, got -1"},
    {2, "threads: 99999999999999999999", "t.yaml:2:10: threads: must be a whole number in plain digits, ..."},
    {2, "threads: [1]",
     "t.yaml:2:10: threads: must be a single value, got a list ([a, b], or lines that begin with -)"},
    {2, "insecure: no", "t.yaml:2:11: insecure: no is a truth value in YAML 1.1 and text in 1.2; write false"},
    {2, "insecure: on", "t.yaml:2:11: insecure: on is a truth value in YAML 1.1 and text in 1.2; write true"},
    {2, "insecure: OFF", "t.yaml:2:11: insecure: OFF is a truth value in YAML 1.1 and text in 1.2; write false"},
    {2, "insecure: True", "t.yaml:2:11: insecure: True is a truth value in YAML 1.1 and text in 1.2; write true"},
    {2, "insecure: 'true'", "t.yaml:2:11: insecure: must be true without quotes; in quotes it is text"},
    {2, "insecure: maybe", "t.yaml:2:11: insecure: must be true or false, got \"maybe\""},
    {2, "node: no", "t.yaml:2:7: node: no without quotes may be read as true or false; write \"no\""},
    {2, "node: 12", "t.yaml:2:7: node: 12 without quotes may be read as a number; write \"12\""},
    {2, "node: a/b",
     "t.yaml:2:7: node: has to be of letters, digits, _, . and -: it becomes part of topics; got \"a/b\""},
    {2, "device: gpu", "t.yaml:2:9: device: must be auto, cpu, cuda or cuda:NUMBER; got \"gpu\""},
    {2, "device: [cuda:0, gpu]", "t.yaml:2:18: device: must be auto, cpu, cuda or cuda:NUMBER; got \"gpu\""},
    {2, "device: [cuda:0, [cuda:1]]", "t.yaml:2:18: device: must be a list of single values; got \"\""},
    {2, "device: [cuda:0, auto]", "t.yaml:2:9: device: only cuda:NUMBER can stand beside others; got \"cuda:0,auto\""},
    {2, "device: [cuda:1, cuda:0, cuda:1]", "t.yaml:2:9: device: holds a device twice; got \"cuda:1,cuda:0,cuda:1\""},
    {2, "device: []", "t.yaml:2:9: device: must have 1 to 16 entries, got 0"},
    {2, "device: {cuda: 0}", "t.yaml:2:9: device: must be a single value, got a map of keys (key: value)"},
    {2, "precision: fp8", "t.yaml:2:12: precision: must be auto, fp32, tf32, bf16 or bf16-state; got \"fp8\""},
    {2, "drain: 10", "t.yaml:2:8: drain: must be a number and a unit, as 20ms, 1.5s, 2min or 1h; got \"10\""},
    {2, "drain: 1h", "t.yaml:2:8: drain: must be 0s to 600s, got 1h"},
    {2, "drain: 1.s", "t.yaml:2:8: drain: must be a number and a unit, ..."},
    {2, "version: 1", "t.yaml:2:1: the key version stands here twice; the first is on line 1"},
    {2, "node: &x a", "t.yaml:2:7: anchors (&name) are not allowed here; write the value out"},
    {2, "node: *x", "t.yaml:2:7: aliases (*name) are not allowed here; write the value out"},
    {2, "node: !!str a", "t.yaml:2:7: tags (!name) are not allowed here; the key says the type"},
    {2, "? [a]", "t.yaml:2:3: a key must be a word"},
    {2, "node: \"a\\0b\"", "t.yaml:2:7: text must not hold a zero byte (\\0)"},
    {2, "node: \"\xff\"", "t.yaml:2:8: not UTF-8 text: invalid leading UTF-8 octet"},
    {2, "node: a: b", "t.yaml:2:8: not YAML: mapping values are not allowed in this context"},
    {2, "...\n---\na: b", "t.yaml:3:1: a second document begins here; the file must hold one"},
    {2, "# none", "t.yaml:8:9: pipelines.mic.sinks.0: there is no address to publish on; add a line such as ..."},
    {4, "  Mic:",
     "t.yaml:4:3: pipelines.Mic: a pipeline's name has 1 to 63 of a-z, 0-9, _ and -: it becomes part of topics"},
    {5, "    source: file",
     "t.yaml:5:13: pipelines.mic.source: must be a map of keys (key: value), got a single value"},
    {5, "    source: {type: files, path: x.wav}",
     "t.yaml:5:20: pipelines.mic.source.type: must be file, audio, pcm or sensor, got \"files\""},
    {5, "    source: {path: x.wav}", "t.yaml:5:13: pipelines.mic.source: the key type is missing: Where ..."},
    {5, "    source: {type: file}",
     "t.yaml:5:13: pipelines.mic.source: the key path is missing: The sound file to read: ..."},
    {5, "    source: {type: audio, paced: true}",
     "t.yaml:5:27: pipelines.mic.source.paced: is a key of type file or pcm; this source is of type audio"},
    {5, "    source: {type: file, path: x.wav, rate: 16000}",
     "t.yaml:5:39: pipelines.mic.source.rate: is a key of type audio, pcm or sensor; this source is of type file"},
    {5, "    source: {type: pcm, path: x.raw, rate: 16000}",
     "t.yaml:5:31: pipelines.mic.source.path: must be - for standard input, unix:PATH, tcp://HOST:PORT, or for ZeroMQ "
     "pull:ADDRESS or sub:ADDRESS; got \"x.raw\""},
    {5, "    source: {type: pcm, path: 'pull:tcp://1', rate: 16000}", "t.yaml:5:31: pipelines.mic.source.path: must be - ..."},
    {5, "    source: {type: pcm, path: 'pull:tcp://*:9000', rate: 16000}",
     "t.yaml:5:31: pipelines.mic.source.path: *:9000 can be reached from other machines, ..."},
    {5, "    source: {type: pcm, path: 'sub:tcp://10.0.0.1:9000', rate: 16000, server_key: k}",
     "t.yaml:5:83: pipelines.mic.source.server_key: needs a key of our own too: set curve:"},
    {5, "    source: {type: sensor, transport: pull, listen: '127.0.0.1:9000', server_key: k}",
     "t.yaml:5:83: pipelines.mic.source.server_key: is for a source that connects: sub"},
    {5, "    source: {type: pcm, path: 'tcp://10.0.0.1:9000', rate: 16000}",
     "t.yaml:5:31: pipelines.mic.source.path: 10.0.0.1:9000 can be reached from other machines, ..."},
    {5, "    source: {type: pcm, path: \"-\"}", "t.yaml:5:13: pipelines.mic.source: the key rate is missing: ..."},
    {5, "    source: {type: audio, channels: 0}",
     "t.yaml:5:37: pipelines.mic.source.channels: must be a list ([a, b], or lines that begin with -), got a single "
     "value"},
    {5, "    source: {type: audio, channels: []}",
     "t.yaml:5:37: pipelines.mic.source.channels: must hold 1 to 64 numbers, got 0"},
    {5, "    source: {type: audio, channels: [0, 0]}", "t.yaml:5:41: pipelines.mic.source.channels: holds 0 twice"},
    {5, "    source: {type: audio, channels: [-1]}",
     "t.yaml:5:38: pipelines.mic.source.channels: must be 0 to 1023, got -1"},
    {5, "    source: {type: audio, buffer: 5ms}",
     "t.yaml:5:35: pipelines.mic.source.buffer: must be 0.02s to 60s, got 5ms"},
    {5, "    source: {type: file, path: y.flac}",
     "t.yaml:9:28: pipelines.mic: y.flac is both read and written; see line 5"},
    {5, "    source: {type: pcm, path: 'unix:y.flac', rate: 16000}",
     "t.yaml:9:28: pipelines.mic: y.flac is taken already; see line 5"},
    {2, "publish: ipc://y.flac", "t.yaml:9:28: pipelines.mic: y.flac is taken already; see line 2"},
    {2, "publish: ipc://p\ncontrol: ipc://./p", "t.yaml:3:10: control: ./p is taken already; see line 2"},
    {5, "    source: {type: pcm, path: 'pull:ipc:///x', rate: 16000}\n    model: m\n    sinks: [{type: publish}]\n  b:\n"
        "    source: {type: sensor, transport: pull, listen: 'ipc:///x'}",
     "t.yaml:9:53: pipelines.b: /x is taken already; see line 5"},
    {5, "    source: {type: pcm, path: '-', rate: 16000}\n    model: m\n    sinks: [{type: publish}]\n  b:\n"
        "    source: {type: sensor, transport: stdin}",
     "t.yaml:9:13: pipelines.b: standard input is taken already; see line 5"},
    {6, "    model: ''", "t.yaml:6:12: pipelines.mic.model: must not be empty; got \"\""},
    {7, "    sinks: []\n    sink:", "t.yaml:8:5: not YAML: ..."},
    {8, "      - {type: file, path: y.flac}",
     "t.yaml:9:28: pipelines.mic: y.flac is written by another sink too, on line 8"},
    {8, "      - {type: file, path: ./y.flac}",
     "t.yaml:9:28: pipelines.mic: y.flac is written by another sink too, on line 8"},
    {9, "      - {type: file, path: ../y/none/../y.wav}\n      - {type: file, path: ../y/none/../y.wav}",
     "t.yaml:10:28: pipelines.mic: ../y/none/../y.wav is written by another sink too, on line 9"},
    {9, "      - {type: file, path: y.mp4}",
     "t.yaml:9:28: pipelines.mic.sinks.1.path: the ending says the format: use .wav, .flac, .ogg, .opus, .w64 or "
     ".rf64; ..."},
    {9, "      - {type: publish}",
     "t.yaml:9:9: pipelines.mic.sinks.1: publishes a second time under the same topics; one publish sink serves everybody"},
    {9, "      - publish", "t.yaml:9:9: pipelines.mic.sinks.1: must be a map of keys (key: value)"},
};

static void every_error_says_where_and_what(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char *text = with_line(wrong[i].number, wrong[i].line);
        if (wrong[i].number == 7) { /* a list where the block ended */
            strcpy(strstr(text, "    sink:"), "    ]");
        }
        struct config_errors errors;
        struct config *config = parse(text, &errors);
        assert_null(config);
        assert_true(errors.n > 0);
        const char *expected = wrong[i].error;
        size_t n = strlen(expected);
        n = strcmp(expected + n - 3, "...") == 0 ? n - 3 : n + 1;
        if (strncmp(errors.at[0].text, expected, n) != 0) {
            fail_msg("\n%s, expected\n%s", errors.at[0].text, expected);
        }
        char start[300];
        snprintf(start, sizeof start, "t.yaml:%d:%d: ", errors.at[0].line, errors.at[0].column);
        assert_int_equal(strncmp(expected, start, strlen(start)), 0);
        free(text);
    }
}

/* A link to the source would have it cut to nothing before its first sample is read. */
static void what_an_error_quotes_is_no_line_of_its_own(void **state)
{
    (void)state;
    struct config_errors errors;
    char *text = with_line(5, "    source: {type: pcm, path: \"-\", rate: \"1\\n6\\e[2J\\L7\\P8\\N9\xc3\xa9\"}");
    assert_null(parse(text, &errors));
    assert_non_null(strstr(errors.at[0].text, "got \"1?6?[2J?7?8?9\xc3\xa9\""));
    free(text);
}

static void assert_same_file(const char *source, const char *sinks, const char *words)
{
    char text[2048];
    struct config_errors errors;
    snprintf(text, sizeof text,
             "version: 1\npipelines:\n  p:\n    source: {type: file, path: %s}\n    model: m\n    sinks: [%s]\n", source, sinks);
    assert_null(parse(text, &errors));
    if (strstr(errors.at[0].text, words) == NULL) {
        fail_msg("%s", errors.at[0].text);
    }
}

static void a_file_is_the_same_by_another_name(void **state)
{
    (void)state;
    char source[256], sink[256], sinks[1024];
    snprintf(source, sizeof source, "%s", in_folder("in.wav"));
    snprintf(sink, sizeof sink, "{type: file, path: %s}", in_folder("out.wav"));
    fclose(fopen(source, "w"));
    assert_int_equal(symlink("in.wav", in_folder("out.wav")), 0);
    assert_same_file(source, sink, "out.wav is both read and written; see line 4");
    assert_int_equal(unlink(in_folder("out.wav")), 0);
    assert_int_equal(link(source, in_folder("out.wav")), 0);
    assert_same_file(source, sink, "out.wav is both read and written; see line 4"); /* it was emptied, and with it the source */
    assert_int_equal(symlink("later.wav", in_folder("to.wav")), 0);
    assert_int_equal(symlink("to.wav", in_folder("link.wav")), 0);
    size_t n = (size_t)snprintf(sinks, sizeof sinks, "{type: file, path: %s}", in_folder("link.wav"));
    snprintf(sinks + n, sizeof sinks - n, ", {type: file, path: %s}", in_folder("later.wav"));
    assert_same_file("z.wav", sinks, "later.wav is written by another sink too, on line 6");
}

static void a_file_may_be_called_standard_input(void **state)
{
    (void)state;
    struct config_errors errors;
    char *text = with_line(5, "    source: {type: pcm, path: '-', rate: 16000}\n    model: m\n    sinks: [{type: "
                              "jsonl, path: standard input}]\n"
                              "  b:\n    source: {type: file, path: standard input}");
    struct config *config = parse(text, &errors);
    assert_null(config); /* written and read by the two */
    assert_non_null(strstr(errors.at[0].text, "standard input is both read and written; see line 7"));
    assert_int_equal(errors.n, 1);
    free(text);
    text = with_line(5, "    source: {type: pcm, path: '-', rate: 16000}\n    model: m\n    sinks: [{type: publish}]\n"
                        "  b:\n    source: {type: file, path: standard input}");
    config = parse(text, &errors);
    print_errors(&errors);
    assert_non_null(config); /* "standard input is taken already" */
    config_destroy(config);
    free(text);
}

static void all_errors_are_told_and_those_beyond_the_room_are_counted(void **state)
{
    (void)state;
    char text[4096] = "version: 1\npipelines:\n";
    for (int i = 0; i < 40; i++) {
        sprintf(text + strlen(text), "  p%d: {model: m, sinks: [{type: audio}]}\n", i);
    }
    struct config_errors errors;
    assert_null(parse(text, &errors));
    assert_int_equal(errors.n, CONFIG_ERRORS);
    assert_int_equal(errors.more, 40 - CONFIG_ERRORS);
    assert_int_equal(errors.at[31].line, 34);
    assert_string_equal(errors.at[31].path, "pipelines.p31");
}

static void expect_meant(const struct keys *keys, int type, const struct key *meant, const char *word)
{
    for (int i = 0; i < keys->n; i++) {
        if (strcmp(keys->at[i].name, word) == 0) {
            return; /* no slip: a key */
        }
    }
    const struct key *nearest = read_nearest(keys, type, word);
    bool short_word = strlen(meant->name) < 5; /* "pate" is as near to rate as to path: either will do */
    if (!nearest || (strcmp(nearest->name, meant->name) != 0 && !short_word)) {
        fail_msg("%s is not seen to mean %s but %s", word, meant->name, nearest ? nearest->name : "nothing");
    }
}

static void slip_everywhere(const struct keys *keys, int type, const struct key *key)
{
    size_t n = strlen(key->name);
    char word[64];
    for (size_t at = 0; at <= n; at++) {
        for (char c = 'a'; c <= 'z'; c++) { /* a letter too many, a wrong one */
            snprintf(word, sizeof word, "%.*s%c%s", (int)at, key->name, c, key->name + at);
            expect_meant(keys, type, key, word);
            snprintf(word, sizeof word, "%s", key->name);
            word[at] = at < n ? c : '\0';
            expect_meant(keys, type, key, word);
        }
        if (at < n) { /* one too few */
            snprintf(word, sizeof word, "%.*s%s", (int)at, key->name, key->name + at + 1);
            expect_meant(keys, type, key, word);
        }
        if (at + 1 < n) { /* two swapped */
            snprintf(word, sizeof word, "%s", key->name);
            word[at] = key->name[at + 1];
            word[at + 1] = key->name[at];
            expect_meant(keys, type, key, word);
        }
    }
}

static void slip_in_all(const struct keys *keys)
{
    int type = keys->types ? 0 : -1;
    do {
        for (int i = 0; i < keys->n; i++) {
            if (key_has_type(&keys->at[i], type)) {
                slip_everywhere(keys, type, &keys->at[i]);
            }
            if (keys->at[i].items && type <= 0) {
                slip_in_all(keys->at[i].items);
            }
        }
    } while (type >= 0 && keys->types[++type]);
}

static void every_slip_of_a_letter_is_answered_with_the_key_meant(void **state)
{
    (void)state;
    slip_in_all(&config_keys);
    assert_null(read_nearest(&config_keys, -1, "zebra"));
    assert_null(read_nearest(&config_keys, -1, "a-word-that-is-much-too-long-to-be-any-key"));
}

static void overrides_count_as_if_they_stood_in_the_file(void **state)
{
    (void)state;
    const char *const overrides[] = {"node=studio",
                                     "pipelines.mic.source.path=z.wav",
                                     "pipelines.mic.source.channels=[1, 0]",
                                     "pipelines.mic.sinks.1.path=q.ogg",
                                     "pipelines.mic.sinks.2={type: file, path: r.wav}",
                                     "pipelines.mic.sinks.3.type=audio",
                                     "pipelines.second={source: {type: audio}, model: a=b, sinks: [{type: publish}]}",
                                     "publish=ipc:///tmp/a b"};
    struct config_errors errors;
    struct config *config = config_parse(good, strlen(good), "t.yaml", overrides, 8, &errors);
    print_errors(&errors);
    assert_non_null(config);
    assert_string_equal(config->node, "studio");
    assert_string_equal(config->publish, "ipc:///tmp/a b");
    assert_string_equal(config->pipelines[0].source.path, "z.wav");
    assert_int_equal(config->pipelines[0].source.channels[0], 1);
    assert_int_equal(config->pipelines[0].n_sinks, 4);
    assert_string_equal(config->pipelines[0].sinks[1].path, "q.ogg");
    assert_int_equal(config->pipelines[0].sinks[3].type, SINK_AUDIO);
    assert_string_equal(config->pipelines[1].model, "a=b");
    config_destroy(config);
}

static void what_an_override_opens_is_blamed_on_it(void **state)
{
    (void)state;
    static const char *const overrides[] = {"pipelines.mic.source.path=y.wav", "pipelines.mic.sinks.1.path=/none/z.ogg",
                                            "pipelines.mic.source.paced=false", "pipelines.b.sinks.0={type: file, path: w.wav}"};
    char text[1024];
    snprintf(text, sizeof text, "version: 1\npipelines:\n  mic: {source: {type: file, path: x.wav}, model: m, sinks: [{type: audio},\n"
                                "    {type: file, path: q.ogg}]}\n  b: {source: {type: file, path: b.wav}, model: m, sinks: [{type: audio}]}\n");
    struct config_errors errors;
    struct config *config = config_parse(text, strlen(text), "t.yaml", overrides, 4, &errors);
    assert_non_null(config);
    const struct config_pipeline *mic = &config->pipelines[0], *b = &config->pipelines[1];
    assert_string_equal(mic->at.source.text, "--set pipelines.mic.source.path=y.wav: pipelines.mic.source: ");
    assert_string_equal(mic->at.sinks[0].text, "t.yaml:3:62: pipelines.mic.sinks.0: ");
    assert_string_equal(mic->at.sinks[1].text, "--set pipelines.mic.sinks.1.path=/none/z.ogg: pipelines.mic.sinks.1: ");
    assert_string_equal(b->at.source.text, "t.yaml:5:15: pipelines.b.source: ");
    assert_string_equal(b->at.sinks[0].text, "--set pipelines.b.sinks.0={type: file, path: w.wav}: pipelines.b.sinks.0: ");
    config_destroy(config);
}

static void a_wrong_override_is_answered_like_a_wrong_line(void **state)
{
    (void)state;
    const struct {
        const char *override, *error;
    } cases[] = {
        {"nod=x", "--set nod=x: nod: no such key; did you mean node?"},
        {"threads=012", "--set threads=012: threads: 012 is 10 (octal) in YAML 1.1 and 12 in 1.2; ..."},
        {"node", "--set node: an override is written key.key=value"},
        {"=x", "--set =x: an override is written key.key=value"},
        {"node.x=1", "--set node.x=1: there is no such place in the file"},
        {"pipelines.mic.sinks.3.type=audio",
         "--set pipelines.mic.sinks.3.type=audio: there is no such place in the file"},
        {"pipelines.mic.sinks.x.type=audio",
         "--set pipelines.mic.sinks.x.type=audio: there is no such place in the file"},
        {"node=[", "--set node=[: not YAML: ..."},
        {"pipelines.mic.model=", "--set pipelines.mic.model=: pipelines.mic.model: must not be empty; ..."},
    };
    char text[1024];
    strcpy(text, good);
    strcpy(text + strlen(text), "node: a\n");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config_errors errors;
        assert_null(config_parse(text, strlen(text), "t.yaml", &cases[i].override, 1, &errors));
        size_t n = strlen(cases[i].error);
        n = strcmp(cases[i].error + n - 3, "...") == 0 ? n - 3 : n + 1;
        if (strncmp(errors.at[0].text, cases[i].error, n) != 0) {
            fail_msg("\n%s, expected\n%s", errors.at[0].text, cases[i].error);
        }
        assert_int_equal(errors.at[0].line, 0);
    }
}

/* n times `piece`, after `start`. */
static char *repeated(const char *start, const char *piece, size_t n)
{
    size_t a = strlen(start), b = strlen(piece);
    char *text = malloc(a + n * b + 1);
    memcpy(text, start, a);
    for (size_t i = 0; i < n; i++) {
        memcpy(text + a + i * b, piece, b);
    }
    text[a + n * b] = '\0';
    return text;
}

static void limits_hold(void **state)
{
    (void)state;
    const struct {
        const char *start, *piece;
        size_t n;
        const char *words;
    } cases[] = {
        {"version: 1\n", "# filler\n", 200000, "larger than 1 MiB"},
        {"a: ", "[", 40, "nested deeper than 32 levels"},
        {"a: ", "[", 900000, "nested deeper than 32 levels"},
        {"", "- ", 40, "nested deeper than 32 levels"},
        {"a: [", "1,", 5000, "more than 4160 entries"},
        {"a: [", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],", 4100, "more than 100000 YAML events"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = repeated(cases[i].start, cases[i].piece, cases[i].n);
        struct config_errors errors;
        assert_null(parse(text, &errors));
        assert_non_null(strstr(errors.at[0].text, cases[i].words));
        free(text);
    }
}

static void as_many_pipelines_as_promised_are_read(void **state)
{
    (void)state;
    char *text;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    fprintf(file, "version: 1\npipelines:\n");
    for (int i = 0; i < CONFIG_PIPELINES; i++) {
        fprintf(file, " p%d: {source: {type: file, path: i%d.wav}, model: m, sinks: [{type: file, path: o%d.wav}]}\n",
                i, i, i);
    }
    fclose(file);
    struct config_errors errors;
    struct config *config = parse(text, &errors);
    print_errors(&errors);
    assert_non_null(config);
    assert_int_equal(config->n_pipelines, CONFIG_PIPELINES);
    assert_string_equal(config->pipelines[4095].sinks[0].path, "o4095.wav");
    assert_int_equal(config->pipelines[4095].at.sinks[0].line, 4098);
    config_destroy(config);
    free(text);
}

static void damaged_files_are_answered_not_crashed_on(void **state)
{
    (void)state;
    static const char *const pieces[] = {"&a ", "*a", "!x ",   "[",     "]",    "{",   "}",        ": ", "- ",
                                         "\n",  "\"", "'",     "#",     "\xff", "012", "1:30",     "~",  "? ",
                                         "| ",  "> ", "---\n", "...\n", "%",    "\t",  "type: pcm"};
    uint64_t seed = 11;
    for (int i = 0; i < 20000; i++) {
        char text[2 * sizeof good];
        strcpy(text, good);
        for (int k = (int)(test_bits(&seed) % 4); k >= 0; k--) {
            size_t n = strlen(text), at = (size_t)test_bits(&seed) % n;
            const char *piece = pieces[test_bits(&seed) % (sizeof pieces / sizeof *pieces)];
            if (test_bits(&seed) % 2) {
                memmove(text + at, text + at + 1, n - at);
            } else if (n + strlen(piece) < sizeof text) {
                memmove(text + at + strlen(piece), text + at, n - at + 1);
                memcpy(text + at, piece, strlen(piece));
            }
        }
        struct config_errors errors;
        struct config *config = parse(text, &errors);
        assert_true((config != NULL) == (errors.n == 0));
        config_destroy(config);
    }
}

static void the_built_in_and_the_shipped_configurations_are_right(void **state)
{
    (void)state;
    struct config_errors errors;
    struct config *config = parse(config_default(), &errors);
    print_errors(&errors);
    assert_non_null(config);
    config_destroy(config);
    const char *const shipped[] = {"config/denoise-mic.yaml", "config/denoise-files.yaml", "config/many-files.yaml",
                                   "config/tag-mic.yaml", "config/sensors.yaml"};
    for (size_t i = 0; i < sizeof shipped / sizeof *shipped; i++) {
        config = config_load(shipped[i], NULL, 0, &errors);
        print_errors(&errors);
        assert_non_null(config);
        config_destroy(config);
        char first[64] = "";
        FILE *file = fopen(shipped[i], "r");
        assert_non_null(fgets(first, sizeof first, file));
        fclose(file);
        assert_string_equal(first, "# yaml-language-server: $schema=schema.json\n");
    }
}

static void a_file_that_cannot_be_read_is_an_error_too(void **state)
{
    (void)state;
    struct config_errors errors;
    assert_null(config_load("/no/such.yaml", NULL, 0, &errors));
    assert_string_equal(errors.at[0].text, "/no/such.yaml:1:1: can't be read: No such file or directory");
    assert_null(config_load("/", NULL, 0, &errors));
    assert_int_equal(errors.n, 1);
    assert_null(config_load("/dev/null", NULL, 0, &errors));
    assert_int_equal(errors.n, 2); /* version and pipelines are missing */
}

static char *print_schema(void)
{
    char *text;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    config_schema(file);
    fclose(file);
    return text;
}

static void the_schema_is_json_and_says_what_the_table_says(void **state)
{
    (void)state;
    char *text = print_schema();
    json_error_t error;
    json_t *schema = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!schema) {
        fail_msg("%d:%d: %s", error.line, error.column, error.text);
    }
    const char *id;
    json_t *pipelines, *sources, *first, *standard;
    assert_int_equal(json_unpack(schema, "{s:s, s:{s:o}}", "$schema", &id, "properties", "pipelines", &pipelines), 0);
    assert_string_equal(id, "http://json-schema.org/draft-07/schema#");
    assert_int_equal(
        json_unpack(pipelines, "{s:{s:{s:{s:o}}}}", "additionalProperties", "properties", "source", "oneOf", &sources),
        0);
    assert_int_equal(json_array_size(sources), 4);
    first = json_object_get(json_array_get(sources, SOURCE_FILE), "properties");
    assert_string_equal(json_string_value(json_object_get(json_object_get(first, "type"), "const")), "file");
    standard = json_object_get(json_object_get(first, "paced"), "default");
    assert_true(json_is_true(standard));
    assert_null(json_object_get(first, "rate"));
    json_decref(schema);
    free(text);
}

static void the_shipped_schema_is_the_one_printed(void **state)
{
    (void)state;
    char *text = print_schema(), *shipped = calloc(1, 1 << 20);
    FILE *file = fopen("config/schema.json", "r");
    assert_non_null(file);
    assert_true(fread(shipped, 1, (1 << 20) - 1, file) > 0);
    fclose(file);
    assert_string_equal(shipped, text); /* else: ssm schema > config/schema.json */
    free(text);
    free(shipped);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_becomes_settings_with_their_defaults),
        cmocka_unit_test(every_type_of_source_and_sink_is_read),
        cmocka_unit_test(every_error_says_where_and_what),
        cmocka_unit_test(what_an_error_quotes_is_no_line_of_its_own),
        cmocka_unit_test(a_file_is_the_same_by_another_name),
        cmocka_unit_test(a_file_may_be_called_standard_input),
        cmocka_unit_test(all_errors_are_told_and_those_beyond_the_room_are_counted),
        cmocka_unit_test(every_slip_of_a_letter_is_answered_with_the_key_meant),
        cmocka_unit_test(overrides_count_as_if_they_stood_in_the_file),
        cmocka_unit_test(what_an_override_opens_is_blamed_on_it),
        cmocka_unit_test(a_wrong_override_is_answered_like_a_wrong_line),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(as_many_pipelines_as_promised_are_read),
        cmocka_unit_test(damaged_files_are_answered_not_crashed_on),
        cmocka_unit_test(the_built_in_and_the_shipped_configurations_are_right),
        cmocka_unit_test(a_file_that_cannot_be_read_is_an_error_too),
        cmocka_unit_test(the_schema_is_json_and_says_what_the_table_says),
        cmocka_unit_test(the_shipped_schema_is_the_one_printed),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
