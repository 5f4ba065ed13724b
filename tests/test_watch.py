#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`ssm watch` and clients/python/ssm_subscribe.py against a publisher that loses messages on purpose."""

import json
import signal
import struct
import subprocess
import sys
import tempfile
import time

import msgpack
import zmq

import script
from script import SSM

BOOT = bytes(range(16))
TOPIC = "audio/here/mic/0/tiny/"


class Publisher:
    """The daemon's end of the wire: XPUB, three frames, a number a topic."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.address = f"ipc://{self.folder.name}/pub"
        self.socket = zmq.Context.instance().socket(zmq.XPUB)
        self.socket.bind(self.address)
        self.seq = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close(0)
        self.folder.cleanup()

    def wait(self, subscriptions):
        for _ in range(subscriptions):
            assert self.socket.poll(30000), "nobody subscribed"
            self.socket.recv()

    def lose(self, topic, n=1):
        """Number n messages that are never sent."""
        self.seq[topic] = self.seq.get(topic, 0) + n

    def send(self, topic, payload=b"", boot=BOOT, **keys):
        seq = self.seq.get(topic, 0)
        self.seq[topic] = seq + 1
        header = {"v": 1, "seq": seq, "boot": boot, "s0": 160 * seq, "n": 0, "sr": 16000, "ch": 1, "dt": "", "shp": [],
                  "tm": 10**9, "tw": 1700000000 * 10**9, "te": 0, "clk": "sys", "cap": 0, "enq": 1, "inf": 2,
                  "pub": 12_300_000, "mdl": "tiny@0", "st": "cpu", "lost": {"n": 0, "from": 0, "to": 0, "why": ""},
                  "flags": []}
        header.update(keys)
        self.socket.send_multipart([topic.encode(), msgpack.packb(header), payload])

    def send_audio(self, **keys):
        self.send(TOPIC, struct.pack("<4f", 0.5, -0.5, 0.5, -0.5), dt="f32le", n=4, shp=[4, 1], **keys)

    def send_hugz(self):
        last = {topic: seq - 1 for topic, seq in self.seq.items()}
        self.send("hugz/here/", msgpack.packb(last), dt="msgpack")


def start(publisher, *arguments):
    command = [SSM, "watch", "--connect", publisher.address, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    publisher.wait(2)  # the topic and hugz/
    return process


def end(process, status=0):
    out, err = process.communicate(timeout=20)
    assert process.returncode == status, (process.returncode, out, err)
    return out.splitlines(), err


def a_line_a_message():
    with Publisher() as publisher:
        process = start(publisher, "audio/", "--count", "2")
        publisher.send("meter/here/mic/0/tiny/", b"")  # not asked for
        publisher.send_audio()
        publisher.send_audio(flags=["gap"], lost={"n": 5, "from": 1, "to": 6, "why": "ring_full"})
        lines, err = end(process)
        assert len(lines) == 2 and not err, (lines, err)
        assert lines[0].startswith(TOPIC + "  #0") and "4 samples  -6.0 dB" in lines[0], lines
        assert "12.3 ms after capture" in lines[0] and "22:13:20.000 UTC" in lines[0], lines
        assert "gap  missing samples 1 to 6: ring_full" in lines[1], lines


def scores_and_events_are_shown():
    event = {"event": "begin", "t0": 1.5, "t1": 1.6, "label": "dog", "p": 0.93}
    for more in ([], ["--json"]):
        with Publisher() as publisher:
            process = start(publisher, "--count", "2", *more)
            publisher.send("tags/here/mic/0/tiny/", struct.pack("<2f", 0.25, 0.75), dt="f32le", n=160, shp=[2])
            publisher.send("event/here/mic/0/tiny/", msgpack.packb(event), dt="msgpack", n=1600)
            (scores, told), _ = end(process)
            if more:
                assert json.loads(scores)["scores"] == [0.25, 0.75] and json.loads(told)["payload"] == event, (scores, told)
            else:
                assert "  0.25 0.75  sample 0" in scores and '{"event":"begin","t0":1.5,' in told, (scores, told)


def json_lines_are_json():
    with Publisher() as publisher:
        process = start(publisher, "--count", "3", "--json")
        publisher.send_audio()
        publisher.send("meter/here/mic/0/tiny/", struct.pack("<4f", -20, -10, -30, -15), dt="f32le", n=4)
        publisher.send("state/here/", msgpack.packb({"streams": 3}), dt="msgpack")
        lines, _ = end(process)
        audio, meter, state = map(json.loads, lines)
        assert audio["topic"] == TOPIC and audio["header"]["sr"] == 16000 and abs(audio["rms_db"] + 6.02) < 0.01, audio
        assert meter["meter"] == [-20, -10, -30, -15] and state["payload"] == {"streams": 3}, (meter, state)


def a_jump_in_the_numbers_is_a_loss():
    with Publisher() as publisher:
        process = start(publisher, TOPIC, "--count", "2")
        publisher.send_audio()
        publisher.lose(TOPIC, 3)
        publisher.send_audio()
        lines, err = end(process)
        assert "LOST: messages 1 to 3 never came" in lines[1] and "#4" in lines[2], lines
        assert "3 messages were lost" in err, err


def a_loss_at_the_end_shows_in_hugz():
    with Publisher() as publisher:
        process = start(publisher, "audio/", "--json")
        publisher.send_audio()
        publisher.send_hugz()
        publisher.lose(TOPIC, 2)
        publisher.lose("meter/here/mic/0/tiny/", 9)  # not asked for: no loss
        publisher.send_hugz()
        publisher.send_hugz()  # nothing new: told once
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        lines, err = end(process)
        assert [json.loads(line) for line in lines[1:]] == [{"lost": TOPIC, "from": 1, "to": 3}], lines
        assert "2 messages were lost" in err, err


def a_restart_is_no_loss():
    with Publisher() as publisher:
        process = start(publisher, "audio/", "--count", "2")
        publisher.lose(TOPIC, 100)
        publisher.send_audio()
        publisher.seq[TOPIC] = 0
        publisher.send_audio(boot=bytes(16))
        lines, err = end(process)
        assert len(lines) == 2 and not err, (lines, err)


def bytes_of_another_wire_are_passed_over():
    with Publisher() as publisher:
        process = start(publisher, "--count", "1")
        publisher.socket.send_multipart([b"audio/"])
        publisher.socket.send_multipart([b"audio/", b"\xc1\xff", b""])
        publisher.socket.send_multipart([b"audio/", b"", b"", b""])
        publisher.socket.send_multipart([b"a" * 5000, b"\x80", b""])
        publisher.send("hugz/here/", b"\xdf\xff\xff\xff\xff", dt="msgpack")
        publisher.send("audio/here/\x1b[2J/0/tiny/", dt="f32le")
        publisher.send("audio/here/\x9b2J/0/tiny/", dt="f32le")
        publisher.send(TOPIC, lost={"n": 1, "from": 0, "to": 1, "why": "\x1b]0;x\x07"})
        publisher.send("state/here/", b"\x81\xa1", dt="msgpack")
        lines, err = end(process)
        assert len(lines) == 1 and "not ssmd's wire" in err and "7 messages were not" in err, (lines, err)


def silence_says_whether_anybody_is_there():
    with Publisher() as publisher:
        alone = subprocess.Popen([SSM, "watch", "--connect", "ipc:///nonexistent/pub"], stderr=subprocess.PIPE, text=True)
        process = start(publisher, "audio/other/")
        for _ in range(8):
            publisher.send_hugz()
            time.sleep(0.5)
        for p in (alone, process):
            p.send_signal(signal.SIGTERM)
        _, err = end(process)
        assert 'nothing under "audio/other/" for 3 s, but ssmd is there' in err and err.count("\n") == 1, err
        err = alone.communicate(timeout=20)[1]
        assert "nothing came for 3 s; is ssmd running" in err and err.count("\n") == 1, err


def the_python_subscriber_reads_the_wire():
    with Publisher() as publisher:
        command = [sys.executable, "-u", "clients/python/ssm_subscribe.py", "audio/", publisher.address]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        publisher.wait(1)
        publisher.send_audio()
        publisher.lose(TOPIC)
        publisher.send_audio()
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert not err, err
        assert lines[0].startswith(TOPIC + "  #0") and "-6.0 dB" in lines[0] and "12.3 ms" in lines[0], lines
        assert "LOST: messages 1 to 1" in lines[1] and "#2" in lines[2], lines


def the_python_subscriber_ends_with_its_reader():
    with Publisher() as publisher:
        command = [sys.executable, "clients/python/ssm_subscribe.py", "audio/", publisher.address]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        publisher.wait(1)
        publisher.send_audio()
        process.stdout.readline()
        process.stdout.close()  # as head does
        publisher.send_audio()
        err = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=20) == 0 and not err, err  # a traceback


def the_python_program_says_how_it_is_called():
    for words, code, said in ((["--help"], 0, "[TOPIC [ADDRESS"), (["tcp://127.0.0.1:5571"], 64, "[TOPIC [ADDRESS"),  # waited for that topic
                              (["a", "b", "c", "d", "e"], 64, "[TOPIC [ADDRESS"), (["audio/", "nowhere"], 1, "audio/ nowhere: Invalid argument")):
        done = subprocess.run([sys.executable, "clients/python/ssm_subscribe.py", *words], capture_output=True, text=True, timeout=20)
        assert done.returncode == code and said in done.stdout + done.stderr and "Traceback" not in done.stderr, done


if __name__ == "__main__":
    sys.exit(script.run(a_line_a_message, scores_and_events_are_shown, json_lines_are_json, a_jump_in_the_numbers_is_a_loss,
                        a_loss_at_the_end_shows_in_hugz, a_restart_is_no_loss, bytes_of_another_wire_are_passed_over,
                        silence_says_whether_anybody_is_there, the_python_subscriber_reads_the_wire, the_python_subscriber_ends_with_its_reader,
                        the_python_program_says_how_it_is_called))
