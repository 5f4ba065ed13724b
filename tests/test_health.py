#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The pages of the real daemon: /metrics as Prometheus reads it, /ready and /health with their reasons."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import zmq

import script
from script import SSM, SSMD

MODEL = "tests/data/tiny-denoise.safetensors"
LABEL = r'[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(r"^([a-z_]+)(?:\{(" + LABEL + r"(?:," + LABEL + r")*)\})? ([0-9.e+-]+|NaN|\+Inf)$")


class Daemon:
    """ssmd fed by raw samples, so that the test says when there are any and what is in them."""

    def __init__(self, *settings, **environment):
        self.folder = tempfile.TemporaryDirectory()
        self.port = script.free_port()
        path = os.path.join(self.folder.name, "c.yaml")
        with open(path, "w") as file:
            file.write(f"""version: 1
node: here
publish: ipc://{self.folder.name}/pub
http: 127.0.0.1:{self.port}
pipelines:
  mic:
    source: {{type: pcm, path: '-', rate: 16000, format: f32le}}
    model: {MODEL}
    sinks: [{{type: publish}}]
""")
        command = [SSMD, "--config", path, *settings]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        env={**os.environ, **environment})

    def __enter__(self):
        for _ in range(400):
            try:
                if self.get("/ready")[0] == 200:
                    return self
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.025)
        raise AssertionError("not ready after 10 s")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers

    def feed(self, values):
        self.process.stdin.write(struct_floats(values))
        self.process.stdin.flush()

    def health(self):
        return json.loads(self.get("/health")[1])

    def metrics(self):
        return parse(self.get("/metrics")[1])

    def wait(self, what, seconds=10):
        for _ in range(int(seconds * 20)):
            found = what()
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError("waited in vain")


def struct_floats(values):
    import array
    return array.array("f", values).tobytes()


def parse(text):
    """{(name, labels): value}; every line has to be of the text format, every family one block with HELP and TYPE before it."""
    values, types, helped, done, family = {}, {}, set(), set(), None
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, help_text = line[7:].split(" ", 1)
            assert name not in helped and help_text, line
            helped.add(name)
            continue
        if line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert name in helped and name not in types and kind in ("counter", "gauge", "histogram"), line
            assert (kind == "counter") == name.endswith("_total"), line
            types[name] = kind
            done.add(family)
            assert name not in done, line
            family = name
            continue
        match = SAMPLE.match(line)
        assert match, line
        name, labels, value = match.groups()
        base = re.sub("_(bucket|sum|count)$", "", name) if types[family] == "histogram" else name
        assert base == family, line
        key = (name, tuple(sorted(re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', labels or ""))))
        assert key not in values, line
        values[key] = float(value)
    return values


def buckets(values, name, **labels):
    wanted = set(labels.items())
    found = [(float(dict(key)["le"]), value) for (n, key), value in values.items()
             if n == name + "_bucket" and wanted <= set(key)]
    return sorted(found)


def metrics_are_prometheus_text_and_true():
    with Daemon() as daemon:
        hops = ("ssmd_stream_hops_total", (("channel", "0"), ("pipeline", "mic")))
        assert daemon.metrics()[hops] == 0
        daemon.feed([0.25] * 1600)
        daemon.wait(lambda: daemon.metrics()[hops] >= 9)
        status, text, headers = daemon.get("/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4"), headers
        values = parse(text)
        assert values["ssmd_streams", ()] == 1 and values["ssmd_streams_active", ()] == 1
        assert values["ssmd_source_samples_total", (("channel", "0"), ("pipeline", "mic"))] == 1600
        assert values["ssmd_source_state", (("pipeline", "mic"), ("state", "running"), ("type", "pcm"))] == 1
        assert values["ssmd_source_lost_samples_total", (("cause", "ring_full"), ("pipeline", "mic"))] == 0
        assert 1e6 < values["process_resident_memory_bytes", ()] < 1e9
        assert abs(values["process_start_time_seconds", ()] - time.time()) < 30
        for stage in ("wait", "step", "publish", "total"):
            stairs = buckets(values, "ssmd_stream_latency_seconds", stage=stage)
            assert len(stairs) == 13 and stairs[-1][0] == float("inf"), stairs
            assert all(a[1] <= b[1] for a, b in zip(stairs, stairs[1:])), stairs
            assert stairs[-1][1] == values["ssmd_stream_latency_seconds_count", (("stage", stage),)] >= 9
        parts = sum(values["ssmd_stream_latency_seconds_sum", (("stage", s),)] for s in ("wait", "step", "publish"))
        assert abs(parts - values["ssmd_stream_latency_seconds_sum", (("stage", "total"),)]) < 1e-6
        tool = shutil.which("promtool")
        if tool:
            check = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True)
            assert check.returncode == 0 and not check.stderr, check.stderr
        else:
            print("skipped: promtool check metrics: no promtool here")


def the_dashboard_asks_for_what_there_is():
    with open("config/grafana.json") as file, Daemon() as daemon:
        asked = {name for panel in json.load(file)["panels"] for target in panel["targets"]
                 for name in re.findall(r"(?:ssmd|process)_[a-z_]+", target["expr"])}
        there = {name for name, _ in daemon.metrics()}
        assert asked <= there, asked - there
        losses = {name for name, labels in daemon.metrics() if "cause" in dict(labels)}
        assert losses <= asked, losses - asked  # a new counter belongs there too


def subscribers_are_counted():
    with Daemon() as daemon:
        subscribers = ("ssmd_subscribers", ())
        one, two = (zmq.Context.instance().socket(zmq.SUB) for _ in range(2))
        for n, socket in ((1, one), (2, two)):
            socket.subscribe("audio/")
            socket.subscribe("gap/")
            socket.connect(f"ipc://{daemon.folder.name}/pub")
            daemon.wait(lambda n=n: daemon.metrics()[subscribers] == n)
        one.close(0)
        daemon.wait(lambda: daemon.metrics()[subscribers] == 1)
        two.close(0)
        daemon.wait(lambda: daemon.metrics()[subscribers] == 0)


def losses_are_counted_and_degrade():
    with Daemon() as daemon:
        assert daemon.health()["status"] == "ok" and daemon.health()["reasons"] == []
        daemon.feed([float("nan")] * 5 + [0.0] * 1595)
        health = daemon.wait(lambda: (h := daemon.health())["status"] == "degraded" and h)
        reason, = health["reasons"]
        assert reason["what"] == "nan_input" and reason["pipeline"] == "mic" and "5 samples" in reason["text"], reason
        assert daemon.get("/ready")[0] == 200 and daemon.get("/health")[0] == 200
        assert daemon.metrics()["ssmd_source_bad_samples_total", (("cause", "nan_input"), ("pipeline", "mic"))] == 5


def a_daemon_that_drains_or_has_stopped_moving_is_not_ready():
    with Daemon("--set", "drain=60s") as daemon:
        assert daemon.get("/ping")[:2] == (200, "pong\n")
        time.sleep(1.5)
        daemon.process.send_signal(signal.SIGSTOP)  # and nothing moves for 7 s
        time.sleep(7)
        daemon.process.send_signal(signal.SIGCONT)
        first = daemon.get("/ready")  # the loop may have been faster
        daemon.wait(lambda: daemon.get("/ready")[0] == 200)
        assert first[0] == 200 or "not moved for" in first[1], first


def systemd_is_told():
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notes:
        notes.bind(folder + "/notify")
        notes.settimeout(5)
        with Daemon(NOTIFY_SOCKET=folder + "/notify", WATCHDOG_USEC="10000000") as daemon:
            daemon.feed([0.0] * 160)
            first = [notes.recv(2048).decode() for _ in range(4)]
            assert "EXTEND_TIMEOUT_USEC=" in first[0] and MODEL in first[0], first
            assert first[1].startswith("READY=1\nSTATUS=1 stream, publishing on ipc://") and first[2:] == ["WATCHDOG=1"] * 2, first  # nothing comes in: idle is alive
            daemon.process.send_signal(signal.SIGTERM)
            while not (note := notes.recv(2048).decode()).startswith("STOPPING=1\n"):
                assert note == "WATCHDOG=1", note
            assert daemon.process.wait(10) == 0


def the_schema_is_the_tool_s():
    with Daemon() as daemon:
        status, text, headers = daemon.get("/schema.json")
        assert status == 200 and "schema+json" in headers["Content-Type"]
        tool = subprocess.run([SSM, "schema"], capture_output=True, text=True)
        assert text == tool.stdout and "http" in json.loads(text)["properties"]


if __name__ == "__main__":
    sys.exit(script.run(metrics_are_prometheus_text_and_true, subscribers_are_counted, losses_are_counted_and_degrade,
                        the_dashboard_asks_for_what_there_is, a_daemon_that_drains_or_has_stopped_moving_is_not_ready,
                        systemd_is_told, the_schema_is_the_tool_s))
