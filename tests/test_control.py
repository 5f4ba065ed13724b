#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Requests to the real daemon, as `ssm ctl` and as strangers write them."""

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import msgpack
import zmq

import script
from script import SANITIZED, SSM

MODEL, TAGS = "tests/data/tiny-denoise.safetensors", "tests/data/tiny-tag.safetensors"
RATE, HOP = 16000, 160


def read_sound(path, hop=HOP):
    """The samples' bytes, a list of hops."""
    text = open(path, "rb").read()
    at = text.index(b"data") + 8
    step = hop * struct.unpack_from("<H", text, text.index(b"fmt ") + 20)[0]  # bytes a sample
    return [text[i:i + step] for i in range(at, len(text) - step + 1, step)]


class Daemon:
    """A looped sound of one hop through a small model, into a file and to subscribers."""

    def __init__(self, folder, more="", source="", model=MODEL, sinks=None):
        self.address = f"ipc://{folder}/pub.control"
        noise = random.Random(3)
        script.write_sound(f"{folder}/in.wav", struct.pack(f"<{HOP}h", *(noise.randrange(-8000, 8000) for _ in range(HOP))))
        with open(f"{folder}/c.yaml", "w") as file:
            file.write(f"version: 1\nnode: here\ndevice: cpu\npublish: ipc://{folder}/pub\n{more}pipelines:\n  p:\n"
                       f"    source: {{{source or f'type: file, path: {folder}/in.wav, loop: true'}}}\n    model: {model}\n"
                       f"    sinks: [{sinks or f'{{type: publish}}, {{type: file, path: {folder}/out.wav}}'}]\n")
        self.process = script.start(f"{folder}/c.yaml")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ctl(self, *words, status=0):
        done = subprocess.run([SSM, "ctl", *words, "--json", "--connect", self.address], capture_output=True, text=True)
        assert done.returncode == status, (words, done)
        return json.loads(done.stdout) if status == 0 else done.stderr

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        err = self.process.communicate(timeout=30)[1]
        assert self.process.returncode == 0, (self.process.returncode, err)
        return err


def caller(daemon, kind=zmq.REQ):
    one = zmq.Context.instance().socket(kind)
    one.setsockopt(zmq.RCVTIMEO, 5000)
    one.setsockopt(zmq.LINGER, 0)
    one.connect(daemon.address)
    return one


def the_tool_asks_and_drains():
    with tempfile.TemporaryDirectory() as folder, Daemon(folder) as daemon:
        told = daemon.ctl("describe")
        assert {"describe", "snapshot", "stream.list", "stream.reset", "mem", "drain"} <= {o["op"] for o in told["operations"]}
        assert told["node"] == "here" and told["models"][0]["name"] == "tiny-denoise", told
        assert daemon.ctl("snapshot")["state"] == "running"
        streams = daemon.ctl("stream.list")["streams"]
        assert [(s["pipeline"], s["channel"]) for s in streams] == [("p", 0)], streams
        assert daemon.ctl("mem")["resident_bytes"] > 1 << 20
        assert "no operation nope" in daemon.ctl("nope", status=64)
        assert "no stream p/1" in daemon.ctl("stream.reset", "p/1", status=66)
        assert "is missing" in daemon.ctl("stream.reset", status=64)
        assert daemon.ctl("drain") == {"draining": True}
        assert "drained" in daemon.wait()
        assert "no answer" in daemon.ctl("mem", "--wait", "1", status=69)


def a_reset_stream_begins_anew_and_loses_no_sample():
    with tempfile.TemporaryDirectory() as folder, Daemon(folder) as daemon:
        while daemon.ctl("stream.list")["streams"][0]["samples"] < RATE // 2:
            pass
        at = daemon.ctl("stream.reset", "p")["samples"] // HOP
        while daemon.ctl("stream.list")["streams"][0]["samples"] < (at + 40) * HOP:
            pass
        assert " 0 samples lost" in daemon.end()
        hops = read_sound(f"{folder}/out.wav")
        assert hops[0] != hops[1] and hops[0] != hops[at - 10]
        # The model's delay is one hop; the reset was before the hop that `samples` told of, or the next ones.
        assert any(hops[i:i + 20] == hops[:20] for i in range(at - 3, at + 4)), at


def feed(daemon, samples, n=None):
    """Samples into a daemon's socket; with n until it has taken so many."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(daemon.input)
        one.sendall(struct.pack(f"<{len(samples)}h", *samples))
        while n is not None and daemon.ctl("stream.list")["streams"][0]["samples"] < n:
            pass


def open_pcm(folder, name):
    os.mkdir(f"{folder}/{name}")
    daemon = Daemon(f"{folder}/{name}", source=f"type: pcm, path: 'unix:{folder}/{name}/in', rate: {RATE}, format: s16le, buffer: 10s")
    daemon.input = f"{folder}/{name}/in"
    return daemon


def a_stream_moves_with_no_sample_lost_or_twice():
    samples = [random.Random(5).randrange(-9000, 9000) for _ in range(3 * RATE + 57)]
    for at in (0, 57, HOP, HOP + 1, RATE + 77):
        with tempfile.TemporaryDirectory() as folder, open_pcm(folder, "whole") as whole, open_pcm(folder, "one") as one, \
                open_pcm(folder, "two") as two:
            feed(whole, samples, len(samples) // HOP * HOP)
            whole.end()
            if at:
                feed(one, samples[:at], at // HOP * HOP)
            left = one.ctl("stream.export", "p", "--state", f"{folder}/stream")
            one.wait()  # it had no other stream
            assert left["taken"] == at, left
            assert two.ctl("stream.import", "p/0", "--state", f"{folder}/stream") == left
            assert not at or "begun already" in two.ctl("stream.import", "p", "--state", f"{folder}/stream", status=75)
            feed(two, samples[at:], (len(samples) - left["out"]) // HOP * HOP - HOP)
            two.end()
            parts = [b"".join(read_sound(f"{folder}/{name}/out.wav", 1)) for name in ("whole", "one", "two")]
            assert len(parts[0]) > 4 * RATE and parts[0] == parts[1] + parts[2], (at, left, [len(part) for part in parts])


def an_export_that_fails_leaves_the_file_as_it_was():
    with tempfile.TemporaryDirectory() as folder, open_pcm(folder, "one") as one:
        path = f"{folder}/stream"
        with open(path, "wb") as file:
            file.write(b"the only copy")
        one.ctl("stream.export", "nobody", "--state", path, status=66)
        for address in (f"ipc://{folder}/nobody", "nonsense"):
            done = subprocess.run([SSM, "ctl", "stream.export", "p", "--state", path, "--wait", "1", "--connect", address], capture_output=True)
            assert done.returncode != 0, done
        assert open(path, "rb").read() == b"the only copy"
        os.chmod(path, 0o644)
        os.symlink("stream", f"{folder}/link")
        one.ctl("stream.export", "p", "--state", f"{folder}/link")
        one.wait()
        assert os.path.islink(f"{folder}/link") and open(path, "rb").read().startswith(b"SSMSTRM"), os.listdir(folder)
        assert os.stat(path).st_mode & 0o777 == 0o600 and not [name for name in os.listdir(folder) if "part" in name]


def streams_that_cannot_move_are_refused():
    with tempfile.TemporaryDirectory() as folder, open_pcm(folder, "one") as one, open_pcm(folder, "two") as two, \
            Daemon(folder) as loop:
        for text in (b"x", bytes(100), b"SSMSTRM1" + bytes(1000)):
            with open(f"{folder}/bad", "wb") as file:
                file.write(text)
            assert "state" in two.ctl("stream.import", "p", "--state", f"{folder}/bad", status=65)
        one.ctl("stream.export", "p", "--state", f"{folder}/stream")
        assert "pcm" in loop.ctl("stream.import", "p", "--state", f"{folder}/stream", status=65)
        assert "--state" in two.ctl("stream.import", "p", status=64)
        for i in range(0, os.path.getsize(f"{folder}/stream"), 97):
            text = bytearray(open(f"{folder}/stream", "rb").read())
            text[i] ^= 4
            one = caller(two, zmq.DEALER)
            one.send_multipart([b'{"op": "stream.import", "args": {"stream": "p"}}', bytes(text)])
            assert not json.loads(one.recv())["ok"]
            one.close()
        two.ctl("stream.import", "p", "--state", f"{folder}/stream")


def json_and_messagepack_from_both_kinds_of_sockets():
    with tempfile.TemporaryDirectory() as folder, Daemon(folder) as daemon:
        for kind in (zmq.REQ, zmq.DEALER):
            one = caller(daemon, kind)
            one.send(msgpack.packb({"op": "mem", "id": 7}))
            answer = msgpack.unpackb(one.recv())
            assert answer["ok"] and answer["id"] == 7, answer
            one.send_string('{"op": "stream.reset", "args": {"stream": "p/0"}, "id": "seven"}')
            answer = json.loads(one.recv())
            assert answer["ok"] and answer["id"] == "seven", answer
            one.close()


def strangers_are_answered_and_harm_nothing():
    bodies = [b"", b"{", b"{}", b"[]", b"\xc1", b"\x80", b"\xdf\xff\xff\xff\xff", b'{"op": 5}', b'{"op": "mem", "op": "drain"}',
              b'{"op": "mem", "id": -1}', b'{"op": "mem", "id": {}}', b'{"op": "mem", "args": []}', b"[" * 60000, b"{\"a\":" * 10000,
              b'{"op": "stream.reset", "args": {"stream": 1}}', b'{"op": "stream.reset", "args": {"stream": "p/0/0"}}',
              b'{"op": "' + b"x" * 60000 + b'"}', msgpack.packb({"op": "mem", "id": 2**64 - 1}), bytes(range(256))]
    with tempfile.TemporaryDirectory() as folder, Daemon(folder) as daemon:
        one = caller(daemon, zmq.DEALER)
        for body in bodies:
            one.send(body)
            answer = one.recv()
            answer = json.loads(answer) if answer[:1] == b"{" else msgpack.unpackb(answer)
            assert not answer["ok"] and answer["err"]["code"] in ("bad_request", "unknown_op", "not_found"), (body[:40], answer)
        one.send_multipart([b"1", b"2", b"3", b"4"])  # dropped
        rush = caller(daemon, zmq.DEALER)
        for i in range(2000):  # nobody reads these answers
            rush.send(msgpack.packb({"op": "snapshot", "id": i}))
        big = caller(daemon, zmq.DEALER)
        big.send(b"{" + b" " * (9 << 20))  # cut off
        assert daemon.ctl("snapshot")["state"] == "running"
        for each in (one, rush, big):
            each.close()
        assert " 0 samples lost" in daemon.end()


def sound_in_messages_too_long_is_cut_off():
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(folder, source=f"type: pcm, path: 'pull:ipc://{folder}/in', rate: {RATE}, format: s16le")
        with daemon:
            before = daemon.ctl("mem")["resident_bytes"]
            push = zmq.Context.instance().socket(zmq.PUSH)
            push.linger = 0
            push.connect(f"ipc://{folder}/in")
            for n in (8 << 20, 2 * HOP * 10):  # the first is cut off, and the connection with it
                push.send(bytes(n))
                time.sleep(.5)
            deadline = time.monotonic() + 10
            while (n := daemon.ctl("stream.list")["streams"][0]["samples"]) == 0:
                assert time.monotonic() < deadline
                push.send(bytes(2 * HOP * 10), zmq.DONTWAIT)
                time.sleep(.2)
            assert n % (10 * HOP) == 0, n
            push.close()
            assert daemon.ctl("mem")["resident_bytes"] - before < (256 if SANITIZED else 16) << 20


def beyond_this_machine_only_when_told_so():
    with tempfile.TemporaryDirectory() as folder:
        for more, status in (("control: tcp://0.0.0.0:5570\n", 78), ("control: tcp://0.0.0.0:5570\ninsecure: true\n", 0),
                             ("control: \"\"\n", 0), ("control: inproc://x\n", 78)):
            with open(f"{folder}/c.yaml", "w") as file:
                file.write(f"version: 1\n{more}publish: tcp://127.0.0.1:5571\npipelines:\n  p:\n    source: {{type: audio}}\n"
                           f"    model: {MODEL}\n    sinks: [{{type: publish}}]\n")
            done = subprocess.run([SSM, "check", f"{folder}/c.yaml"], capture_output=True, text=True)
            assert done.returncode == status and (status == 0 or "c.yaml:2:10: control:" in done.stderr), (more, done)


def a_stream_is_bypassed_and_comes_back():
    with tempfile.TemporaryDirectory() as folder, Daemon(folder) as daemon:
        for op, on in (("stream.bypass", True), ("stream.unbypass", False)):
            time.sleep(0.5)
            assert daemon.ctl(op, "p") == {"bypass": on}
        time.sleep(0.5)
        daemon.end()
        (sound,), hops = read_sound(f"{folder}/in.wav"), read_sound(f"{folder}/out.wav")
        same = [hop == sound for hop in hops]
        first, last = same.index(True), len(same) - same[::-1].index(True)
        assert last - first > 30 and all(same[first:last]) and first > 20 and len(same) - last > 20, (first, last, len(same))


def a_bypass_that_is_refused_switches_nothing():
    with tempfile.TemporaryDirectory() as folder, Daemon(folder, model=TAGS, sinks="{type: publish}") as daemon:
        assert "there is no sound to bypass" in daemon.ctl("stream.bypass", "p", status=65)
        daemon.ctl("stream.export", "p", "--state", f"{folder}/stream")     # in bypass it couldn't move


if __name__ == "__main__":
    sys.exit(script.run(the_tool_asks_and_drains, a_stream_moves_with_no_sample_lost_or_twice,
                        an_export_that_fails_leaves_the_file_as_it_was,
                        streams_that_cannot_move_are_refused, a_reset_stream_begins_anew_and_loses_no_sample,
                        a_bypass_that_is_refused_switches_nothing, a_stream_is_bypassed_and_comes_back,
                        json_and_messagepack_from_both_kinds_of_sockets,
                        strangers_are_answered_and_harm_nothing, sound_in_messages_too_long_is_cut_off,
                        beyond_this_machine_only_when_told_so))
