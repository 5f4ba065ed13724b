#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""kill -9 and a new start: no torn state, no sample twice, and the hole that is told is the one there is.

In bypass a stream gives its input itself, so that each sample tells where in the file it came from. KILLS=1000 is the full run."""

import array
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time

import msgpack
import zmq

import script
from script import SANITIZED, SSM, SSMD

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a busy disk makes states older
KILLS = int(os.environ.get("KILLS", "5"))
STREAMS, RATE, HOP = 64, 16000, 160
SOON = 4 if SANITIZED else 1  # s
IN_FLIGHT = 4 * RATE if SANITIZED else RATE // 2
MODEL = "tests/data/tiny-denoise.safetensors"


def write_sound(path, seconds):
    """Noise of 16 bits; gives its samples as float32 bytes."""
    values = array.array("h", random.Random(1).randbytes(2 * RATE * seconds))
    script.write_sound(path, values.tobytes())
    return array.array("f", (v / 32768 for v in values)).tobytes()


def configure(folder, streams, more="bypass: true"):
    path = f"{folder}/c.yaml"
    with open(path, "w") as file:
        file.write(f"version: 1\nnode: t\ndevice: cpu\npublish: ipc://{folder}/pub\nstate_dir: {folder}/state\npipelines:\n")
        for i in range(streams):
            file.write(f"  p{i}:\n    source: {{type: file, path: {folder}/in.wav}}\n    model: {MODEL}\n    {more}\n"
                       "    sinks: [{type: publish}]\n")
    return path


def start(path):
    """The process, how long it took to be ready, and what it said until then, each line with its time."""
    began, said = time.monotonic(), []
    process = subprocess.Popen([SSMD, "--config", path], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        said.append((time.monotonic(), line))
        if "ready:" in line:
            return process, time.monotonic() - began, said
    raise AssertionError(said)


class Listener:
    """Where each stream is, through all lives of the daemon."""

    def __init__(self, folder, sound):
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.setsockopt(zmq.RCVHWM, 100000)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 1)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"audio/")
        self.socket.connect(f"ipc://{folder}/pub")
        self.sound, self.next, self.boot = sound, {}, {}
        self.exact = self.holes = self.late = 0

    def drain(self, until=None):
        """Until then, or until nothing comes any more."""
        while until is None or time.monotonic() < until:
            if self.socket.poll(100):
                topic, header, payload = self.socket.recv_multipart()
                self.take(topic, msgpack.unpackb(header), payload)
            elif until is None:
                break

    def take(self, topic, header, payload):
        s0, n, lost = header["s0"], header["n"], header["lost"]
        if self.boot.get(topic) not in (None, header["boot"]) and lost["why"]:
            assert lost["why"] == "restart", lost
            # What the engine gave out and no subscriber got any more went down with the process.
            assert 0 <= lost["from"] - self.next[topic] <= IN_FLIGHT, (lost, self.next[topic])
            self.late = max(self.late, lost["from"] - self.next[topic])
            assert s0 <= lost["to"] < s0 + HOP, (s0, lost)
            self.exact += lost["from"] == self.next[topic]
            self.holes += 1
        elif self.boot.get(topic) == header["boot"]:
            assert s0 == self.next[topic], (topic, s0, self.next[topic])
        silent = min(max(lost["to"] - s0, 0), n) if lost["why"] else 0
        assert payload[4 * silent:] == self.sound[4 * (s0 + silent):4 * (s0 + n)], (topic, s0, silent)
        self.boot[topic], self.next[topic] = header["boot"], s0 + n


def a_killed_daemon_goes_on_from_a_second_ago_and_tells_the_hole():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        listener = Listener(folder, write_sound(f"{folder}/in.wav", 20 + 4 * KILLS))
        path = configure(folder, STREAMS)
        process, _, said = start(path)
        slowest = oldest = 0
        for _ in range(KILLS):
            listener.drain(time.monotonic() + random.uniform(1.2, 2.0))
            process.kill()
            killed = time.monotonic()
            process.communicate()
            listener.drain()
            process, ready, said = start(path)
            ages = [float(line.split(" of ")[1].split()[0]) - (now - killed) for now, line in said if "goes on" in line]
            assert len(ages) == STREAMS, said
            slowest, oldest = max(slowest, ready), max(oldest, max(ages))
            assert ready < SOON and oldest < SOON, (ready, oldest)
        listener.drain(time.monotonic() + 1)
        process.kill()
        process.communicate()
        listener.drain()
        assert len(listener.next) == STREAMS and listener.holes == STREAMS * KILLS, (listener.holes, len(listener.next))
        print(f"{KILLS} kills, {listener.holes} holes, {listener.exact} from the last sample that arrived on, none more than "
              f"{listener.late} samples later; ready in "
              f"{slowest:.3f} s at most, states at most {oldest:.3f} s old")


def a_killed_daemons_sensor_goes_on_with_the_time_between():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        port = script.free_port(socket.SOCK_DGRAM)
        path = f"{folder}/c.yaml"
        with open(path, "w") as file:
            file.write(f"version: 1\nnode: t\ndevice: cpu\npublish: ipc://{folder}/pub\nstate_dir: {folder}/state\npipelines:\n"
                       f"  pump:\n    source: {{type: sensor, transport: udp, listen: 127.0.0.1:{port}}}\n"
                       "    model: tests/data/tiny-sensor.safetensors\n    sinks: [{type: publish}]\n")
        sub = zmq.Context.instance().socket(zmq.SUB)
        sub.setsockopt(zmq.RECONNECT_IVL, 1)
        sub.subscribe("tags/")
        sub.connect(f"ipc://{folder}/pub")

        def hear(first, n):
            """Readings from the first on, each a hop; what is published of them: header, scores."""
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                for i in range(first, first + n):
                    out.sendto(reading(i).encode(), ("127.0.0.1", port))
                    time.sleep(0.003)
            heard = []
            while len(heard) < n and sub.poll(3000):
                _, header, payload = sub.recv_multipart()
                heard.append((msgpack.unpackb(header), payload))
            return heard

        def reading(i):
            return json.dumps({"t": 1_700_000_000 + i / 100, "ax": math.sin(i), "ay": math.cos(i), "az": i % 7})

        process, _, _ = start(path)
        sub.poll(500)  # a socket subscribes anew only while it is asked for something
        before = hear(0, 180)
        process.kill()
        process.communicate()
        process, _, said = start(path)
        sub.poll(500)
        after = hear(400, 50)
        process.terminate()
        _, err = process.communicate()
        assert len(before) == 180 and len(after) == 50, (len(before), len(after), said, err)
        assert any("goes on from a state" in line for _, line in said), said
        end = before[-1][0]["s0"] + before[-1][0]["n"]
        header = after[0][0]
        assert header["s0"] == 4_000_000 and abs(header["tw"] / 1e9 - 1_700_000_004) < 1e-5, header
        assert (header["lost"]["why"], header["lost"]["from"], header["lost"]["to"]) == ("restart", end, 4_000_000), header

        def told(last):
            """What the tool hears in the readings up to that one, then those after the hole: the scores of the latter."""
            with open(f"{folder}/in.jsonl", "w") as file:
                file.write("".join(reading(i) + "\n" for i in [*range(last + 1), *range(400, 450)]))
            lines = subprocess.run([SSM, "tag", "--scores", "--step", "--model", "tests/data/tiny-sensor.safetensors",
                                    f"{folder}/in.jsonl"], capture_output=True, text=True, check=True).stdout.splitlines()
            return [list(json.loads(line)["scores"].values()) for line in lines[last + 1:]]

        scores = [list(array.array("f", payload)) for _, payload in after]
        fits = [last for last in range(80, 180)
                if all(abs(a - b) < 2e-4 for one, other in zip(told(last), scores) for a, b in zip(one, other))]
        assert fits, "the model is not where any state of the last second was"


def what_does_not_fit_begins_anew():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        write_sound(f"{folder}/in.wav", 60)
        path = configure(folder, 1)
        state = f"{folder}/state/p0.0.state"

        def life(change=None):
            if change:
                text = bytearray(open(state, "rb").read())
                with open(state, "wb") as file:
                    file.write(change(text))
            process, _, said = start(path)
            time.sleep(0.3)
            process.kill()
            process.communicate()
            return "".join(line for _, line in said)

        assert "goes on" not in life()
        assert "goes on" in life()

        def flip(at):
            return lambda text: text[:at] + bytes([text[at] ^ 1]) + text[at + 1:]

        for change in (flip(20), flip(100), flip(3), lambda text: text[:-1], lambda text: text + b"x", lambda text: text[:50]):
            said = life(change)
            assert "begins anew" in said or "goes on" not in said, said
        assert "goes on" in life()
        process, _, _ = start(path)
        other = subprocess.run([SSMD, "--config", path, "--set", f"publish=ipc://{folder}/other"], capture_output=True, text=True)
        process.kill()
        process.communicate()
        assert other.returncode == 73 and "another ssmd keeps its states there" in other.stderr, other
        os.unlink(state)
        assert "goes on" not in life()


def read_wave(path):
    """Bits of a sample, and the samples' bytes, also of WAVE_FORMAT_EXTENSIBLE, which Python's wave refuses."""
    data = open(path, "rb").read()
    at, bits = 12, 0
    while at + 8 <= len(data):
        name, size = data[at:at + 4], int.from_bytes(data[at + 4:at + 8], "little")
        if name == b"fmt ":
            bits = int.from_bytes(data[at + 22:at + 24], "little")
        elif name == b"data":
            return bits, data[at + 8:at + 8 + size]
        at += 8 + size + size % 2
    raise AssertionError(f"{path} holds no samples")


def a_killed_daemons_recordings_are_kept_and_can_be_read():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        sound = array.array("f", write_sound(f"{folder}/in.wav", 30))
        endings = ["wav", "flac", "w64", "ogg"]
        path = f"{folder}/c.yaml"
        with open(path, "w") as file:
            file.write("version: 1\ndevice: cpu\npipelines:\n")
            for ending in endings:
                file.write(f"  {ending}:\n    source: {{type: file, path: {folder}/in.wav}}\n    model: {MODEL}\n    bypass: true\n"
                           f"    sinks: [{{type: file, path: {folder}/out.{ending}}}]\n")
        process, _, _ = start(path)
        time.sleep(3.2)
        process.kill()
        process.communicate()
        process, _, said = start(path)
        assert sum("was cut off; what there is of it is" in line for _, line in said) == len(endings), said
        process.terminate()
        process.communicate()
        for ending in endings:
            kept = [name for name in os.listdir(folder) if name.startswith("out.2") and name.endswith(ending)]
            assert len(kept) == 1 and not os.path.exists(f"{folder}/out.{ending}.recording"), os.listdir(folder)
            done = subprocess.run([SSM, "denoise", "--model", MODEL, f"{folder}/{kept[0]}", f"{folder}/read.wav"],
                                  capture_output=True, text=True)
            assert done.returncode == 0, done
            bits, data = read_wave(f"{folder}/read.wav")
            assert len(data) >= 2 * RATE * bits // 8, (ending, bits, len(data))
            if ending == "wav":
                bits, data = read_wave(f"{folder}/{kept[0]}")
                values = array.array("h", data)
                assert bits == 16 and all(abs(a / 32768 - b) < 2 / 32768 for a, b in zip(values, sound)), "not what came in"


if __name__ == "__main__":
    sys.exit(script.run(a_killed_daemon_goes_on_from_a_second_ago_and_tells_the_hole,
                        a_killed_daemons_sensor_goes_on_with_the_time_between, what_does_not_fit_begins_anew,
                        a_killed_daemons_recordings_are_kept_and_can_be_read))
