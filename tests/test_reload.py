#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Another configuration without stopping: what is the same runs on to the bit, what is wrong changes nothing.

RELOADS (60), SWAPS (20) and STREAMS (16) say how long the long ones are, SEED picks others; `make soak-reload` runs them with
10,000, 1,000 and 64."""

import array
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import msgpack
import zmq

import script
from script import SANITIZED, SSM, SSMD

RELOADS, SWAPS = int(os.environ.get("RELOADS", "60")), int(os.environ.get("SWAPS", "20"))
STREAMS = int(os.environ.get("STREAMS", "16"))
MODEL = "tests/data/tiny-denoise.safetensors"
TAGS, TAGGER = "tests/data/tiny-sensor.safetensors", "tests/data/tiny-tag.safetensors"
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
RATE, HOP = 16000, 160


def pipeline(folder, name, source=None, model=MODEL, sinks=None, more=""):
    """By default what a Feeder sends, which waits for room: on a busy machine, too, nothing of it may be lost."""
    source = source or f"type: pcm, path: 'unix:{folder}/{name}.in', rate: {RATE}, format: s16le"
    sinks = sinks or f"{{type: publish}}, {{type: file, path: {folder}/{name}.wav}}"
    return f"  {name}:\n    source: {{{source}}}\n    model: {model}\n    deadline: 1h\n{more}    sinks: [{sinks}]\n"


def looped(folder, name="in"):
    return f"type: file, path: {folder}/{name}.wav, loop: true"


class Feeder(threading.Thread):
    """The sound of in.wav over and over into a pipeline's socket, at about `pace` times that of real time."""

    def __init__(self, folder, name, channels=1, pace=1):
        super().__init__(daemon=True)
        self.data, self.step = sound(f"{folder}/in.wav"), pace * 2 * channels * RATE // 50
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(f"{folder}/{name}.in")
        self.start()

    def run(self):
        at, due = 0, time.monotonic()
        try:
            while True:
                self.socket.sendall((self.data[at:] + self.data)[:self.step])
                at = (at + self.step) % len(self.data)
                due += 0.02
                time.sleep(max(0, due - time.monotonic()))
        except OSError:  # the daemon is gone
            pass
        self.socket.close()


class Daemon:
    def __init__(self, folder, *pipelines, more="", arguments=()):
        self.folder, self.more = folder, more
        self.address = f"ipc://{folder}/pub.control"
        noise = random.Random(3)
        script.write_sound(f"{folder}/in.wav", noise.randbytes(2 * RATE))
        self.write(*pipelines)
        self.process = script.start(f"{folder}/c.yaml", *arguments)
        self.said = []
        self.reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def write(self, *pipelines, head=None):
        text = head or f"version: 1\nnode: here\ndevice: cpu\npublish: ipc://{self.folder}/pub\n{self.more}"
        with open(f"{self.folder}/c.yaml", "w") as file:
            file.write(text + "pipelines:\n" + "".join(pipelines))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def feed(self, *names, **how):
        for name in names:
            Feeder(self.folder, name, **how)

    def lost(self, name):
        return [s["lost"] for key, s in self.streams().items() if key.startswith(name) and s["lost"]]

    def ctl(self, *words, status=0):
        done = subprocess.run([SSM, "ctl", *words, "--json", "--wait", "60", "--connect", self.address],
                              capture_output=True, text=True)
        assert status is None or done.returncode == status, (words, done)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    def reload(self, *pipelines, status=0, **more):
        self.write(*pipelines, **more)
        return self.ctl("reload", status=status)

    def streams(self):
        return {f"{s['pipeline']}/{s['channel']}": s for s in self.ctl("stream.list")["streams"]}

    def wait_samples(self, stream, n):
        until = time.monotonic() + 20
        while self.streams()[stream]["samples"] < n:
            assert time.monotonic() < until, (stream, n)
            time.sleep(0.02)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self.reader.join()
        assert status == 0, (status, "".join(self.said)[-20000:])


def sound(path):
    text = open(path, "rb").read()
    return text[text.index(b"data") + 8:]


def offline(folder, length, model=MODEL, channels=1):
    """What a denoiser makes of the looped input, by the tool, in 16 bits."""
    data = sound(f"{folder}/in.wav")
    script.write_sound(f"{folder}/whole.wav", (data * (length // len(data) + 1))[:length], channels)
    subprocess.run([SSM, "denoise", "--step", "--model", model, f"{folder}/whole.wav", f"{folder}/clean.wav"], check=True,
                   capture_output=True)
    return sound(f"{folder}/clean.wav")


def same_as_offline(folder, name, channels=1):
    """Gives its samples."""
    got = sound(f"{folder}/{name}.wav")
    want = offline(folder, len(got), channels=channels)
    first = next((i // 2 // channels for i in range(min(len(got), len(want))) if got[i] != want[i]), None)
    assert got == want, (name, len(got), len(want), first)
    return len(got) // 2 // channels


def an_untouched_stream_runs_on_to_the_bit():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        stays, other = pipeline(folder, "stays"), pipeline(folder, "other")
        with Daemon(folder, stays, other) as daemon:
            daemon.feed("stays", "other")
            daemon.wait_samples("stays/0", RATE // 2)
            daemon.wait_samples("other/0", RATE // 4)
            assert daemon.reload(stays, other) == {"unchanged": 2, "changed": 0, "opened": 0, "replaced": 0, "closed": 0}
            assert daemon.reload("# moved\n", pipeline(folder, "third"), stays) == {
                "unchanged": 1, "changed": 0, "opened": 1, "replaced": 0, "closed": 1}
            assert set(daemon.streams()) == {"stays/0", "third/0"}
            daemon.feed("third")
            daemon.wait_samples("third/0", RATE // 4)
            assert daemon.reload(stays)["closed"] == 1
            daemon.wait_samples("stays/0", 2 * RATE)
            assert not daemon.lost("")
            daemon.end()
        assert same_as_offline(folder, "stays") >= 2 * RATE
        assert same_as_offline(folder, "other") >= RATE // 4 and same_as_offline(folder, "third") >= RATE // 4


def what_is_wrong_changes_nothing_and_is_told():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        stays = pipeline(folder, "stays")
        with Daemon(folder, stays) as daemon:
            daemon.feed("stays")
            bad = [
                ((stays + "    nonsense: 1\n",), {}, r"c.yaml:\d+:\d+: .*nonsense"),
                ((stays, "  half:\n    source: {type"), {}, r"c.yaml:\d+:\d+"),
                ((stays, pipeline(folder, "b", source="type: file, path: /nowhere.wav")), {}, r"nowhere.wav"),
                ((stays, pipeline(folder, "b", model="./nowhere.safetensors")), {}, r"nowhere"),
                ((stays, pipeline(folder, "b", sinks="{type: file, path: /nowhere/x.wav}")), {}, r"/nowhere/x.wav"),
                ((stays, pipeline(folder, "b", sinks=f"{{type: file, path: {folder}/./stays.wav}}")), {}, r"by another sink"),
                ((pipeline(folder, "b", sinks=f"{{type: file, path: {folder}/stays.wav}}"),), {}, r"by pipeline stays"),
                ((stays,), {"head": f"version: 1\nnode: there\ndevice: cpu\npublish: ipc://{folder}/pub\n"}, r"node has changed"),
                ((stays,), {"head": f"version: 1\nnode: here\ndevice: cpu\npublish: ipc://{folder}/q\n"}, r"publish has changed"),
            ]
            for pipelines, more, why in bad:
                said = daemon.reload(*pipelines, status=65, **more)
                assert re.search(why, said), (why, said)
                assert set(daemon.streams()) == {"stays/0"}
            os.unlink(f"{folder}/c.yaml")
            assert "can't be read" in daemon.ctl("reload", status=65)
            assert daemon.reload(stays)["unchanged"] == 1
            daemon.wait_samples("stays/0", RATE)
            assert not daemon.lost("stays")
            daemon.end()
        assert same_as_offline(folder, "stays") >= RATE


def a_recording_outlives_a_model_that_cannot_take_over():
    """One that isn't alike would take a pipeline of its own, which would write the same file from its beginning."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        def other(sink):
            return pipeline(folder, "p", source=looped(folder), model="denoise-16k-low", sinks=f"{{type: file, path: {folder}/{sink}.wav}}")

        with Daemon(folder, pipeline(folder, "p", source=looped(folder))) as daemon:
            daemon.wait_samples("p/0", RATE // 2)
            said = daemon.reload(other("p"), status=65)
            assert "p.wav is being written by pipeline p; take another file" in said, said
            assert os.path.exists(f"{folder}/p.wav.recording")
            daemon.wait_samples("p/0", daemon.streams()["p/0"]["samples"] + RATE // 2)
            assert not daemon.lost("p")
            assert daemon.reload(other("q"))["replaced"] == 1
            daemon.wait_samples("p/0", RATE // 4)
            daemon.end()
        assert same_as_offline(folder, "p") >= RATE and len(sound(f"{folder}/q.wav")) >= RATE // 2


def what_is_refused_leaves_the_files_that_are_there():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        stays = pipeline(folder, "stays")
        script.write_sound(f"{folder}/music.wav", bytes(88200), rate=44100)
        music = f"type: file, path: {folder}/music.wav"
        for name in ("a.opus", "a.wav"):
            with open(f"{folder}/{name}", "w") as file:
                file.write("what was there")

        def sinks(*names):
            return [{"type": "file", "path": name if "/" in name else f"{folder}/{name}"} for name in names]

        with Daemon(folder, stays) as daemon:
            for wanted in (sinks("a.wav", "new.wav", "a.opus"), sinks("a.wav", "/nowhere/x.wav")):
                wrong = pipeline(folder, "b", source=music, sinks=json.dumps(wanted)[1:-1])
                daemon.write(stays)
                before = sorted(os.listdir(folder))
                daemon.reload(stays, wrong, status=65)
                request = {"b": {"source": {"type": "file", "path": f"{folder}/music.wav"}, "model": MODEL, "sinks": wanted}}
                daemon.ctl("stream.open", json.dumps(request), status=65)
                assert sorted(os.listdir(folder)) == before, os.listdir(folder)
                for name in ("a.opus", "a.wav"):
                    assert open(f"{folder}/{name}").read() == "what was there", name
            lines = json.dumps([{"type": "jsonl", "path": f"{folder}/{name}"} for name in ("new.jsonl", "a.wav", "none/x")])[1:-1]
            wrong = pipeline(folder, "b", source=looped(folder), model=TAGGER, sinks=lines)
            daemon.write(stays)
            before = sorted(os.listdir(folder))
            assert "none/x" in daemon.reload(stays, wrong, status=65)
            assert sorted(os.listdir(folder)) == before and open(f"{folder}/a.wav").read() == "what was there"
            daemon.end()


def lines_and_a_recording_are_never_one_file():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        def request(name, kind, model):
            return json.dumps({name: {"source": {"type": "file", "path": f"{folder}/in.wav", "loop": True}, "model": model,
                                      "sinks": [{"type": kind, "path": f"{folder}/{'p' if kind == 'jsonl' else 'lines'}.wav"}]}})

        lines = pipeline(folder, "l", source=looped(folder), model=TAGGER, sinks=f"{{type: jsonl, path: {folder}/lines.wav}}")
        with Daemon(folder, pipeline(folder, "p", source=looped(folder)), lines) as daemon:
            daemon.wait_samples("p/0", RATE // 4)
            assert "p.wav is being written by pipeline p" in daemon.ctl("stream.open", request("q", "jsonl", TAGGER), status=65)
            assert "lines.wav is being written by pipeline l" in daemon.ctl("stream.open", request("r", "file", MODEL), status=65)
            changed = lines.replace("loop: true", "loop: true, buffer: 1s")
            assert daemon.reload(pipeline(folder, "p", source=looped(folder)), changed)["replaced"] == 1  # lines go on in their file
            with open(f"{folder}/lines.wav") as file:
                said = [json.loads(line) for line in file]
            assert said and {line["channel"] for line in said} == {0}, said  # the last ones, too
            daemon.end()
        same_as_offline(folder, "p")


class Listener:
    """What each topic told: where its streams began and ended. On a busy machine messages may be missed; then it is no judge."""

    def __init__(self, daemon, *kinds):
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        for kind in kinds:
            self.socket.setsockopt(zmq.SUBSCRIBE, kind.encode())
        self.socket.connect(f"ipc://{daemon.folder}/pub")
        time.sleep(0.3)
        self.seq, self.next, self.said, self.missed = {}, {}, {}, 0

    def drain(self, wait_ms=0):
        while self.socket.poll(wait_ms):
            topic, header, payload = self.socket.recv_multipart()
            topic, header = topic.decode(), msgpack.unpackb(header)
            self.missed += header["seq"] != self.seq.get(topic, header["seq"]) or header["lost"]["why"] != ""
            self.seq[topic] = header["seq"] + 1
            runs = self.said.setdefault(topic, [])
            if not runs or runs[-1]["ended"]:
                runs.append({"first": header["s0"], "samples": 0, "ended": False, "models": []})
            elif topic.startswith("audio/") and not self.missed:
                assert header["s0"] == self.next[topic], (topic, header, self.next[topic])
            runs[-1]["samples"] += len(payload) // 4
            runs[-1]["ended"] = bool(header["flags"] & 32) if isinstance(header["flags"], int) else "end" in header["flags"]
            runs[-1]["models"] += [header["mdl"]] if header["mdl"] not in runs[-1]["models"][-1:] else []
            self.next[topic] = header["s0"] + header["n"]


def a_stream_keeps_its_state_when_its_sinks_change():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        one = pipeline(folder, "p", sinks=f"{{type: publish}}, {{type: file, path: {folder}/p.wav}}")
        two = pipeline(folder, "p", sinks=f"{{type: file, path: {folder}/late.wav}}, {{type: file, path: {folder}/p.wav}}")
        three = pipeline(folder, "p", sinks=f"{{type: file, path: {folder}/p.wav}}", more="    strength: 12\n")
        with Daemon(folder, one) as daemon:
            daemon.feed("p")
            listener = Listener(daemon, "audio/")
            daemon.wait_samples("p/0", RATE // 2)
            assert daemon.reload(two)["changed"] == 1
            at = daemon.streams()["p/0"]["samples"]
            assert at >= RATE // 2
            daemon.wait_samples("p/0", at + RATE // 2)
            assert daemon.reload(one)["changed"] == 1
            daemon.wait_samples("p/0", at + RATE)
            assert not daemon.lost("p")
            daemon.end()
            listener.drain(300)
            runs, = listener.said.values()
            assert listener.missed or len(runs) == 2 and all(run["ended"] for run in runs) and runs[1]["first"] > runs[0]["first"], runs
        assert same_as_offline(folder, "p") >= 3 * RATE // 2
        late, whole = sound(f"{folder}/late.wav"), sound(f"{folder}/p.wav")
        assert len(late) >= RATE // 2 and late in whole, len(late)
        with Daemon(folder, one) as daemon:
            daemon.feed("p")
            daemon.wait_samples("p/0", RATE // 2)
            assert daemon.reload(three)["changed"] == 1
            daemon.wait_samples("p/0", RATE)
            daemon.end()
        clean = sound(f"{folder}/p.wav")
        before = 2 * RATE * 2 // 5  # bytes that were out by then
        assert clean[:before] == offline(folder, len(clean))[:before] and clean != offline(folder, len(clean))


def a_bypass_by_request_stays_where_the_configuration_does_not_speak_of_it():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        def changed(sinks, more=""):
            return pipeline(folder, "p", source=looped(folder), sinks=sinks, more=more)

        def is_bypassed():
            with zmq.Context.instance().socket(zmq.SUB) as listener:
                listener.setsockopt(zmq.SUBSCRIBE, b"audio/")
                listener.connect(f"ipc://{folder}/pub")
                for _ in range(30):  # the first are from before
                    head = listener.recv_multipart()[1]
                return "bypass" in msgpack.unpackb(head)["flags"]

        with Daemon(folder, changed("{type: publish}")) as daemon:
            assert not is_bypassed()
            daemon.ctl("stream.bypass", "p")
            assert daemon.reload(changed(f"{{type: publish}}, {{type: file, path: {folder}/p.wav}}"))["changed"] == 1
            assert is_bypassed()
            assert daemon.reload(changed("{type: publish}", "    bypass: true\n"))["changed"] == 1 and is_bypassed()
            assert daemon.reload(changed("{type: publish}"))["changed"] == 1 and not is_bypassed()
            daemon.end()


def what_replaces_another_comes_after_its_end():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        noise = random.Random(4)
        script.write_sound(f"{folder}/other.wav", noise.randbytes(2 * RATE))
        one = pipeline(folder, "p", source=looped(folder), sinks="{type: publish}")
        two = pipeline(folder, "p", source=looped(folder, "other"), sinks="{type: publish}")
        with Daemon(folder, one, pipeline(folder, "stays")) as daemon:
            daemon.feed("stays")
            listener = Listener(daemon, "audio/here/p/")
            for i in range(10):
                time.sleep(0.1)
                assert daemon.reload([two, one][i % 2], pipeline(folder, "stays")) == {
                    "unchanged": 1, "changed": 0, "opened": 0, "replaced": 1, "closed": 0}
            time.sleep(0.2)
            assert not daemon.lost("stays")
            daemon.end()
            listener.drain(300)
        runs, = listener.said.values()
        assert listener.missed or len(runs) == 11 and all(run["ended"] and run["first"] == 0 for run in runs[1:]), runs
        same_as_offline(folder, "stays")


def a_source_that_is_taken_leaves_the_old_one():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, socket.socket(socket.AF_UNIX) as taken:
        taken.bind(f"{folder}/in")
        taken.listen()
        one = pipeline(folder, "p")
        two = pipeline(folder, "p", source=f"type: pcm, path: 'unix:{folder}/in', rate: 8000, format: s16le", sinks="{type: publish}")
        with Daemon(folder, one) as daemon:
            assert f"{folder}/in" in daemon.reload(two, status=65)
            assert daemon.streams()["p/0"]["ended"] is False
            assert daemon.reload(one)["unchanged"] == 1
            daemon.end()


def a_pulled_address_is_one_sources():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        def pulls(name, rate):
            return pipeline(folder, name, source=f"type: pcm, path: 'pull:ipc://{folder}/in', rate: {rate}, format: s16le", sinks="{type: publish}")

        with Daemon(folder, pulls("p", 16000)) as daemon, zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.connect(f"ipc://{folder}/in")
            push.send(bytes(RATE))
            daemon.wait_samples("p/0", RATE // 4)
            other = subprocess.run([SSMD, "--config", f"{folder}/c.yaml", "--set", f"publish=ipc://{folder}/other"],
                                   capture_output=True, text=True, timeout=60)
            assert other.returncode == 69 and f"{folder}/in: Address already in use; is another ssmd running?" in other.stderr, other
            source = {"type": "pcm", "path": f"pull:ipc://{folder}/in", "rate": RATE, "format": "s16le"}
            wanted = json.dumps({"q": {"source": source, "model": MODEL, "sinks": [{"type": "publish"}]}})
            assert f"pipeline p listens on {folder}/in" in daemon.ctl("stream.open", wanted, status=65)
            bad = pulls("p", 8000).replace("{type: publish}", f"{{type: file, path: {folder}/none/x.wav}}")
            assert "none/x.wav" in daemon.reload(bad, status=65)
            with context.socket(zmq.PUSH) as late:  # who comes after a reload that failed finds what runs on
                late.linger = 1000
                late.connect(f"ipc://{folder}/in")
                late.send(bytes(RATE))
                daemon.wait_samples("p/0", RATE * 3 // 4)
            assert daemon.reload(pulls("p", 8000))["replaced"] == 1  # which takes the place of what it replaces
            push.send(bytes(RATE))
            daemon.wait_samples("p/0", RATE // 4)
            assert daemon.reload(pulls("q", 8000))["opened"] == 1
            push.send(bytes(RATE))
            daemon.wait_samples("q/0", RATE // 4)
            daemon.end()


def one_that_cannot_listen_any_more_leaves_the_others():
    """Two change that are pulled from, and of one the address was taken away meanwhile."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        def pulls(rate):
            return [pipeline(folder, name, source=f"type: pcm, path: 'pull:ipc://{folder}/{name}/in', rate: {rate}, format: s16le",
                             sinks="{type: publish}") for name in "ab"]

        for name in "ab":
            os.mkdir(f"{folder}/{name}")
        with Daemon(folder, *pulls(16000)) as daemon:
            os.rename(f"{folder}/b", f"{folder}/c")
            for rate in (8000, 16000):
                daemon.reload(*pulls(rate), status=None)
                send_to(f"pull:ipc://{folder}/a/in", bytes(RATE))
                daemon.wait_samples("a/0", RATE // 4)
                send_to(f"pull:ipc://{folder}/c/in", bytes(RATE))
                daemon.wait_samples("b/0", RATE // 4)
            daemon.end()


def start_reading(folder, take, *pipelines):
    """A daemon whose standard input is `take`."""
    ours = os.dup(0)
    os.dup2(take, 0)
    try:
        return Daemon(folder, *pipelines)
    finally:
        os.dup2(ours, 0)
        os.close(ours)
        os.close(take)


def standard_input_is_one_sources():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        reads = pipeline(folder, "p", source=f"type: pcm, path: '-', rate: {RATE}, format: s16le", sinks="{type: publish}")
        other = {"source": {"type": "pcm", "path": "-", "rate": RATE, "format": "s16le"}, "model": MODEL, "sinks": [{"type": "publish"}]}
        take, put = os.pipe()
        with start_reading(folder, take, reads) as daemon:
            assert "pipeline p listens on standard input" in daemon.ctl("stream.open", json.dumps({"q": other}), status=65)
            for _ in range(100):
                os.write(put, bytes(320))
                time.sleep(0.001)
            daemon.wait_samples("p/0", 16000)
            assert daemon.reload(reads.replace("  p:", "  q:")) == {"unchanged": 0, "changed": 0, "opened": 1, "replaced": 0, "closed": 1}
            os.write(put, bytes(3200))
            daemon.wait_samples("q/0", 1600)
            os.close(put)
            assert daemon.process.wait(timeout=20) == 0


def what_fails_late_takes_nothing_of_standard_input():
    """Descriptors lack ever later in a reload, of a source that reads what the running one reads and one that is to listen."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        def both(rate):
            return [pipeline(folder, "s", source=f"type: pcm, path: '-', rate: {rate}, format: s16le", sinks="{type: publish}"),
                    pipeline(folder, "a", source=f"type: pcm, path: 'pull:ipc://{folder}/in', rate: {rate}, format: s16le",
                             sinks=f"{{type: publish}}, {{type: file, path: {folder}/new.wav}}" if rate == 8000 else None)]

        def outcome(process, said):
            process.send_signal(signal.SIGHUP)
            sent = 0
            while not (words := [line for line in daemon.said[said:] if "reloaded" in line]):
                sent += os.write(put, bytes(320)) // 2
                time.sleep(0.001)
            return sent, "not reloaded" not in words[0]

        take, put = os.pipe()
        with start_reading(folder, take, *both(16000)) as daemon:
            pid, sent, good, seen = daemon.process.pid, 0, False, sorted(os.listdir(folder))
            usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            most = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
            daemon.write(*both(8000))
            while not good:
                most += 1
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, usual[1]))
                more, good = outcome(daemon.process, len(daemon.said))
                resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
                if not good:
                    sent += more
                    daemon.wait_samples("s/0", sent)
                    assert sorted(os.listdir(folder)) == seen, (most, os.listdir(folder))
                    send_to(f"pull:ipc://{folder}/in", bytes(320))
                    daemon.wait_samples("a/0", 160)
            daemon.end()


def send_to(address, data):
    """Connects first, as who lost the source before would."""
    kind, _, rest = address.partition(":")
    if kind == "pull":
        with zmq.Context.instance().socket(zmq.PUSH) as push:
            push.connect(rest)
            push.send(data)
            push.close(linger=10000)
        return
    family, to = (socket.AF_UNIX, rest) if kind == "unix" else (socket.AF_INET, ("127.0.0.1", int(address.rpartition(":")[2])))
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as one:
        one.connect(to)
        one.sendall(data)


def a_source_that_changed_listens_where_it_did():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        def hears(name, address, rate):
            kind, _, rest = address.partition(":")
            if kind in ("udp", "sensor"):
                rest = rest.removeprefix("pull:tcp:").removeprefix("//")
                of = "pull" if "pull" in address else kind if kind == "udp" else "tcp"
                return pipeline(folder, name, source=f"type: sensor, transport: {of}, listen: '{rest}', least: -{rate}, most: {rate}",
                                model=TAGS, sinks="{type: publish}")
            return pipeline(folder, name, source=f"type: pcm, path: '{address}', rate: {rate}, format: s16le", sinks="{type: publish}")

        def hear(daemon, name, address, n):
            lines = b"".join(b'{"ax": 0, "ay": 0, "az": 1}\n' for _ in range(40))
            to = address.removeprefix("sensor:") if "pull" in address else address
            send_to(to, lines if address.startswith(("udp", "sensor")) else bytes(RATE))
            daemon.wait_samples(f"{name}/0", n)

        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(f"{folder}/taken")
            taken.listen()
            wrong = pipeline(folder, "w", source=f"type: pcm, path: 'unix:{folder}/taken', rate: 16000")
            for i, address in enumerate((f"unix:{folder}/in", f"tcp://127.0.0.1:{script.free_port()}", f"pull:tcp://127.0.0.1:{script.free_port()}",
                                         f"pull:tcp://*:{script.free_port()}", f"udp:127.0.0.1:{script.free_port(socket.SOCK_DGRAM)}",
                                         f"sensor:127.0.0.1:{script.free_port()}", f"sensor:pull:tcp://127.0.0.1:{script.free_port()}")):
                with Daemon(folder, hears("p", address, 16000), more="insecure: true\n") as daemon:
                    to = address.replace("*", "127.0.0.1")
                    hear(daemon, "p", to, 1)
                    assert f"{folder}/taken" in daemon.reload(hears("p", address, 8000), wrong, status=65)
                    hear(daemon, "p", to, daemon.streams()["p/0"]["samples"] + 1)  # who was there hears it all the same
                    assert daemon.reload(hears("p", address, 8000))["replaced"] == 1  # "can't listen on"
                    hear(daemon, "p", to, 1)
                    assert daemon.reload(hears("q", address, 8000)) == {"unchanged": 0, "changed": 0, "opened": 1, "replaced": 0, "closed": 1}
                    hear(daemon, "q", to, 1)
                    said = daemon.reload(hears("q", address, 16000), hears("r", address, 16000), status=65)
                    assert "taken" in said or "in use" in said, said  # by each other
                    hear(daemon, "q", to, daemon.streams()["q/0"]["samples"] + 1)
                    assert daemon.reload(pipeline(folder, "s", source=looped(folder)))["closed"] == 1
                    assert not os.path.exists(f"{folder}/in")
                    assert daemon.reload(hears("p", address, 16000))["closed"] == 1  # nobody holds it any more
                    hear(daemon, "p", to, 1)
                    daemon.end()
                    assert not os.path.exists(f"{folder}/in")


def a_reload_that_never_ends_does_not_keep_the_daemon_from_ending():
    """Its configuration has become a pipe that nobody writes to: what is recorded is finished nevertheless."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        with Daemon(folder, pipeline(folder, "p", source=looped(folder)), more="drain: 1s\n") as daemon:
            daemon.wait_samples("p/0", RATE)
            os.unlink(f"{folder}/c.yaml")
            os.mkfifo(f"{folder}/c.yaml")
            daemon.process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(timeout=20) == 75
            assert not os.path.exists(f"{folder}/p.wav.recording")
        assert same_as_offline(folder, "p") >= RATE


def who_subscribes_anew_does_not_hear_twice_what_the_one_before_heard():
    """However long it takes to open: here, some models."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, zmq.Context.instance().socket(zmq.PUB) as publisher:
        def hears(buffer):
            source = f"type: pcm, path: 'sub:ipc://{folder}/in', rate: {RATE}, format: s16le, buffer: {buffer}"
            return pipeline(folder, "p", source=source, sinks="{type: publish}")

        publisher.bind(f"ipc://{folder}/in")
        more = [pipeline(folder, f"m{i}", source=looped(folder), model=model, sinks="{type: publish}")
                for i, model in enumerate(("denoise-48k", "denoise-16k-large", "denoise-16k", "denoise-16k-low"))]
        with Daemon(folder, hears("2s")) as daemon:
            listener, stop, sent = Listener(daemon, "audio/here/p"), threading.Event(), []

            def send():
                while not stop.wait(0.005):
                    publisher.send(bytes(160))
                    sent.append(80)

            sender = threading.Thread(target=send)
            sender.start()
            daemon.wait_samples("p/0", RATE // 4)
            assert daemon.reload(hears("3s"), *more)["replaced"] == 1
            daemon.wait_samples("p/0", RATE // 4)
            stop.set()
            sender.join()
            daemon.end()
            listener.drain(300)
        runs, = listener.said.values()
        heard = sum(run["samples"] for run in runs)
        assert listener.missed or len(runs) == 2 and abs(heard - sum(sent)) <= 800, (heard, sum(sent))  # the ends are no instants


def a_reload_that_a_drain_meets_does_all_or_nothing():
    """At moments all over the time it takes: what is not reloaded has replaced no file."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        names, took, moments = [f"q{i}" for i in range(40)], None, 12
        more = [pipeline(folder, name, source=looped(folder), sinks=f"{{type: file, path: {folder}/{name}.wav}}") for name in names]
        for i in range(moments + 1):
            for name in names:
                with open(f"{folder}/{name}.wav", "w") as file:
                    file.write("what was there")
            with Daemon(folder, pipeline(folder, "p", source=looped(folder))) as daemon:
                daemon.wait_samples("p/0", HOP)
                daemon.write(pipeline(folder, "p", source=looped(folder)), *more)
                began = time.monotonic()
                daemon.process.send_signal(signal.SIGHUP)
                while took is None and not any("reloaded" in line for line in daemon.said):
                    time.sleep(0.001)
                took = took or time.monotonic() - began
                time.sleep(max(0, began + took * i / moments - time.monotonic()))
                daemon.end()
            good = not any("not reloaded" in line for line in daemon.said)
            kept = [open(f"{folder}/{name}.wav", "rb").read() == b"what was there" for name in names]
            assert all(kept) or good, (i, sum(kept), daemon.said)
            same_as_offline(folder, "p")


def a_hangup_does_it_and_systemd_and_metrics_are_told():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        port = script.free_port()
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(f"{folder}/notify")
        told.settimeout(10)
        os.environ["NOTIFY_SOCKET"] = f"{folder}/notify"
        try:
            daemon = Daemon(folder, pipeline(folder, "p"), more=f"http: 127.0.0.1:{port}\n")
        finally:
            del os.environ["NOTIFY_SOCKET"]

        def next_state():
            while True:
                text = told.recv(4096).decode()
                if text.startswith(("READY=1", "RELOADING=1")):
                    return text

        def metrics():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                return page.read().decode()

        with daemon:
            assert next_state().startswith("READY=1")
            assert "ssmd_config_last_reload_successful 1\n" in metrics()
            daemon.write(pipeline(folder, "p"), pipeline(folder, "q"))
            daemon.process.send_signal(signal.SIGHUP)
            assert re.match(r"RELOADING=1\nMONOTONIC_USEC=\d+\n", next_state())
            assert next_state().startswith("READY=1\nSTATUS=2 streams")
            daemon.write("x")
            daemon.process.send_signal(signal.SIGHUP)
            assert next_state().startswith("RELOADING=1") and next_state().startswith("READY=1\nSTATUS=2 streams")
            request = {"r": {"source": {"type": "file", "path": f"{folder}/in.wav", "loop": True}, "sinks": [{"type": "publish"}],
                             "model": "tests/data/golden_denoise.safetensors"}}
            assert daemon.ctl("stream.open", json.dumps(request)) == {"generation": 1}
            assert next_state().startswith("READY=1\nSTATUS=3 streams")  # rather than that it loads a model
            daemon.ctl("stream.open", json.dumps({"s": request["r"] | {"model": "./nowhere.safetensors"}}), status=65)
            assert next_state().startswith("READY=1\nSTATUS=3 streams")
            daemon.ctl("stream.close", "r", "--generation", "1")
            assert next_state().startswith("READY=1\nSTATUS=2 streams")
            text = metrics()
            assert "ssmd_config_last_reload_successful 0\n" in text and 'ssmd_reloads_total{result="success"} 1\n' in text, text
            assert 'ssmd_reloads_total{result="failure"} 1\n' in text and "ssmd_streams 2\n" in text, text
            daemon.end()
        told.close()


def write_model(folder, name, chance, model=MODEL):
    """A model with other weights, into a file that is replaced as a whole."""
    text = bytearray(open(model, "rb").read())
    size = int.from_bytes(text[:8], "little")
    bias = json.loads(text[8:8 + size])["head.bias"]["data_offsets"]
    for at in range(8 + size + bias[0], 8 + size + bias[1], 4):
        text[at:at + 4] = struct.pack("<f", struct.unpack_from("<f", text, at)[0] + chance.uniform(-1e-3, 1e-3))
    with open(f"{folder}/new", "wb") as file:
        file.write(text)
    os.replace(f"{folder}/new", f"{folder}/{name}")
    return f"{folder}/{name}"


def distance(a, b):
    """Of two sounds of 16 bits, in full scales."""
    a, b = array.array("h", a), array.array("h", b)
    return (sum((x - y) ** 2 for x, y in zip(a, b)) / max(len(a), 1)) ** .5 / 32768


def a_model_is_swapped_in_a_fade():
    chance = random.Random(9)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        model = write_model(folder, "m.safetensors", chance)
        stays, swaps = pipeline(folder, "stays"), pipeline(folder, "p", model=model)
        named = pipeline(folder, "p", model="tests/data/golden_denoise.safetensors")
        with Daemon(folder, stays, swaps) as daemon:
            daemon.feed("stays", "p")
            listener = Listener(daemon, "audio/here/p")
            daemon.wait_samples("p/0", RATE // 2)
            os.rename(model, f"{folder}/first.safetensors")
            with open(model, "wb") as file:
                file.write(open(f"{folder}/first.safetensors", "rb").read()[:5000])  # half written
            assert re.search("m.safetensors", daemon.reload(stays, swaps, status=65))
            write_model(folder, "m.safetensors", chance)
            assert daemon.reload(stays, swaps) == {"unchanged": 1, "changed": 1, "opened": 0, "replaced": 0, "closed": 0}
            over = daemon.streams()["p/0"]["samples"]
            assert over > RATE // 2 + RATE
            assert [m["name"] for m in daemon.ctl("describe")["models"]] == ["tiny-denoise"] * 2
            daemon.wait_samples("p/0", over + RATE // 2)
            assert daemon.reload(stays, named)["changed"] == 1
            assert daemon.streams()["p/0"]["model"] == "golden-denoise"
            at = daemon.streams()["p/0"]["samples"]
            daemon.wait_samples("p/0", at + RATE // 2)
            assert not daemon.lost("")
            daemon.end()
            listener.drain(300)
        same_as_offline(folder, "stays")
        got = sound(f"{folder}/p.wav")
        first, second, third = (offline(folder, len(got), model=m) for m in (
            f"{folder}/first.safetensors", model, "tests/data/golden_denoise.safetensors"))
        assert got[:RATE * 3 // 2] == first[:RATE * 3 // 2]
        middle, end = slice(2 * over, 2 * over + RATE), slice(len(got) - RATE // 2, len(got))
        assert distance(got[middle], second[middle]) < .1 * distance(first[middle], second[middle]), (
            distance(got[middle], second[middle]), distance(first[middle], second[middle]))
        assert distance(got[end], third[end]) < .1 * distance(second[end], third[end])
        old, new = sorted(listener.said, key=lambda topic: "golden" in topic)
        assert listener.missed or (len(listener.said[old]) == 1 and listener.said[old][0]["ended"]), listener.said
        assert listener.missed or listener.said[new][0]["first"] == listener.next[old], (listener.said, listener.next)
        models = listener.said[old][0]["models"]
        assert len(models) == 3 and models[0][:13] == models[1][:13] and "golden" in models[2], models


def a_swap_beside_one_that_fails_keeps_nothing():
    """The first of two with other models takes a pipeline of its own, and the other can't be changed."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        def both(model, other, sink):
            return [pipeline(folder, "a", source=looped(folder), model=model, sinks="{type: publish}"),
                    pipeline(folder, "b", source=looped(folder), model=other, sinks=sink)]

        wrong = both("denoise-16k-low", "tests/data/golden_denoise.safetensors", f"{{type: file, path: {folder}/none/x.wav}}")
        with Daemon(folder, *both(MODEL, MODEL, "{type: publish}")) as daemon:
            seen = []
            for _ in range(100):
                assert "none/x.wav" in daemon.reload(*wrong, status=65)
                seen.append(use_of(daemon.process)[0])
            assert SANITIZED or seen[-1] - seen[30] < 1 << 20, seen
            daemon.end()


def pipelines_are_opened_and_closed_by_request():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        stays = pipeline(folder, "stays")

        def request(name, **source):
            source = source or {"type": "pcm", "path": f"unix:{folder}/{name}.in", "rate": RATE, "format": "s16le"}
            return json.dumps({name: {"source": source, "model": MODEL, "sinks": [{"type": "publish"},
                                                                                {"type": "file", "path": f"{folder}/{name}.wav"}]}})

        with Daemon(folder, stays) as daemon:
            daemon.feed("stays")
            assert daemon.ctl("stream.open", request("q")) == {"generation": 1}
            assert set(daemon.streams()) == {"stays/0", "q/0"}
            daemon.feed("q")
            daemon.wait_samples("q/0", RATE // 4)
            assert "runs already" in daemon.ctl("stream.open", request("q"), status=65)
            assert "runs already" in daemon.ctl("stream.open", request("stays"), status=65)
            assert re.search("did you mean type", daemon.ctl("stream.open", request("r", typ="pcm"), status=64))
            assert "nowhere" in daemon.ctl("stream.open", request("r", type="file", path="/nowhere.wav"), status=65)
            assert "by pipeline q" in daemon.ctl("stream.open", request("r").replace("r.wav", "q.wav"), status=65)
            for text in ("{}", "[]", '"x"', "x", '{"a": {}, "b": {}}'):
                daemon.ctl("stream.open", text, status=64)
            assert daemon.reload(stays) == {"unchanged": 1, "changed": 0, "opened": 0, "replaced": 0, "closed": 0}
            assert "stream.open" in daemon.reload(stays, pipeline(folder, "q", sinks="{type: publish}"), status=65)
            assert daemon.ctl("stream.close", "q", "--generation", "9") == {"closed": False}
            daemon.ctl("stream.close", "q", status=64)
            assert daemon.ctl("stream.close", "q", "--generation", "1") == {"closed": True}
            assert daemon.ctl("stream.close", "q", "--generation", "1") == {"closed": False}
            os.rename(f"{folder}/q.wav", f"{folder}/first.wav")
            second = daemon.ctl("stream.open", request("q"))["generation"]
            assert second > 1
            assert daemon.ctl("stream.close", "q", "--generation", "1") == {"closed": False}
            assert set(daemon.streams()) == {"stays/0", "q/0"}
            assert daemon.ctl("stream.close", "q", "--generation", str(second)) == {"closed": True}
            assert not daemon.lost("")
            daemon.wait_samples("stays/0", RATE // 2)
            daemon.end()
        assert same_as_offline(folder, "stays") >= RATE // 2 and same_as_offline(folder, "first") >= RATE // 4


def use_of(process):
    """Resident bytes, descriptors, threads."""
    status = open(f"/proc/{process.pid}/status").read()
    return (int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10, len(os.listdir(f"/proc/{process.pid}/fd")),
            int(re.search(r"Threads:\s+(\d+)", status)[1]))


def growth(seen):
    """Of bytes, descriptors and threads, from the first quarter to the last; text of it, and whether it is none."""
    room = (512 if SANITIZED else 8) << 20
    first, last = seen[:max(1, len(seen) // 4)], seen[-max(1, len(seen) // 4):]
    memory, files, threads = (max(use[k] for use in last) - max(use[k] for use in first) for k in range(3))
    return (f"from the first quarter to the last {memory / 2**20:+.1f} MiB, {files:+d} files, {threads:+d} threads",
            memory < room and files <= 6 and threads <= 6)


def many(folder):
    """Four pipelines of a quarter of the streams each."""
    names = [f"s{i}" for i in range(4)]
    return names, "".join(pipeline(folder, name, source=f"type: pcm, path: 'unix:{folder}/{name}.in', rate: {RATE}, "
                                                        f"format: s16le, pcm_channels: {STREAMS // 4}") for name in names)


def many_swaps_lose_nothing_and_keep_nothing():
    """The same weights in another file each time: what comes out is nearly what it would be."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        names, stays = many(folder)
        text, seen = open(MODEL, "rb").read(), []

        def write():
            with open(f"{folder}/new", "wb") as file:
                file.write(text)
            os.replace(f"{folder}/new", f"{folder}/m.safetensors")

        write()
        swaps = pipeline(folder, "p", model=f"{folder}/m.safetensors")
        with Daemon(folder, stays, swaps) as daemon:
            daemon.feed(*names, channels=STREAMS // 4)
            daemon.feed("p", pace=8)
            daemon.wait_samples("p/0", RATE)
            for i in range(SWAPS):
                write()
                assert daemon.reload(stays, swaps)["changed"] == 1
                if i >= SWAPS // 4:
                    seen.append(use_of(daemon.process))
            assert not daemon.lost("")
            daemon.end()
        for name in names:
            same_as_offline(folder, name, STREAMS // 4)
        got = array.array("h", sound(f"{folder}/p.wav"))
        want = array.array("h", offline(folder, 2 * len(got)))
        most = max(abs(x - y) for x, y in zip(got, want)) / 32768
        said, steady = growth(seen)
        print(f"{SWAPS} swaps in {len(got) / RATE:.0f} s of sound beside {STREAMS} streams: at most {most:.1e} of full scale from "
              f"the sound without; {said}")
        assert len(got) == len(want) and len(got) > SWAPS * RATE and most < 1e-3 and steady


def many_reloads_lose_nothing_and_keep_nothing():
    chance = random.Random(int(os.environ.get("SEED", "7")))
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        script.write_sound(f"{folder}/other.wav", chance.randbytes(2 * RATE))
        groups, stays = many(folder)

        def valid():
            more = [f"    strength: {chance.choice([6, 12, 100])}\n", ""]

            def sinks():
                return chance.choice(["{type: publish}", f"{{type: file, path: {folder}/x{chance.randrange(10**9)}.ogg}}"])

            return "".join(pipeline(folder, f"v{i}", looped(folder, chance.choice(["in", "other"])),
                                    sinks=sinks(), more=chance.choice(more)) for i in range(4) if chance.random() < 0.7)

        with Daemon(folder, stays) as daemon:
            daemon.feed(*groups, channels=STREAMS // 4)
            listener = Listener(daemon, "audio/here/s")
            good, seen = 0, []
            for i in range(RELOADS):
                kind = chance.randrange(4)
                text = stays + valid()
                if kind == 0:
                    text = text[:chance.randrange(len(text))].rsplit("\n", 1)[0] + "\n    sinks: [{type: pub"  # half written
                elif kind == 1:
                    text += pipeline(folder, "bad", source=f"type: file, path: {folder}/nowhere.wav")
                daemon.reload(text, status=65 if kind < 2 else 0)
                good += kind >= 2
                for name in os.listdir(folder):
                    if name.startswith("x") and chance.random() < 0.5:
                        os.unlink(f"{folder}/{name}")
                if i >= min(RELOADS // 3, 200) and i % 10 == 0:
                    seen.append(use_of(daemon.process))
                listener.drain()
            assert daemon.reload(stays)["unchanged"] == 4
            listener.drain()
            assert {s["pipeline"] for s in daemon.streams().values()} == set(groups) and not daemon.lost("")
            daemon.end()
            listener.drain(300)
        assert len(listener.said) == STREAMS // 4 * 4
        assert listener.missed or all(len(runs) == 1 and runs[0]["ended"] for runs in listener.said.values())
        seconds = min(same_as_offline(folder, name, STREAMS // 4) for name in groups) / RATE
        said, steady = growth(seen)
        print(f"{RELOADS} reloads, {good} good, beside {STREAMS} streams of {seconds:.0f} s: {said}; messages missed: "
              f"{listener.missed}")
        assert steady, seen


if __name__ == "__main__":
    sys.exit(script.run(an_untouched_stream_runs_on_to_the_bit, what_is_wrong_changes_nothing_and_is_told,
                        a_recording_outlives_a_model_that_cannot_take_over, what_is_refused_leaves_the_files_that_are_there,
                        lines_and_a_recording_are_never_one_file,
                        a_swap_beside_one_that_fails_keeps_nothing,
                        a_bypass_by_request_stays_where_the_configuration_does_not_speak_of_it,
                        a_stream_keeps_its_state_when_its_sinks_change, what_replaces_another_comes_after_its_end,
                        a_source_that_is_taken_leaves_the_old_one, a_pulled_address_is_one_sources, one_that_cannot_listen_any_more_leaves_the_others,
                        standard_input_is_one_sources, what_fails_late_takes_nothing_of_standard_input,
                        a_source_that_changed_listens_where_it_did, a_model_is_swapped_in_a_fade,
                        pipelines_are_opened_and_closed_by_request, who_subscribes_anew_does_not_hear_twice_what_the_one_before_heard,
                        a_reload_that_never_ends_does_not_keep_the_daemon_from_ending,
                        a_reload_that_a_drain_meets_does_all_or_nothing,
                        a_hangup_does_it_and_systemd_and_metrics_are_told,
                        many_swaps_lose_nothing_and_keep_nothing, many_reloads_lose_nothing_and_keep_nothing))
