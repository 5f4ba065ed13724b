#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`ssm top` against a publisher that says what it likes."""

import json
import signal
import struct
import subprocess
import sys
import time

import msgpack

import script
from script import SSM
from test_watch import Publisher

METER = "meter/here/mic/3/tiny/"


def state(hops, lost=None, **keys):
    times = {"n": hops, "p50_ms": 0.5, "p99_ms": 1.25, "p999_ms": 2}
    streams = [{"pipeline": "mic", "channel": 3, "model": "tiny", "ended": False, "hops": hops, "samples": 160 * hops,
                "lost": lost or {}},
               {"pipeline": "file", "channel": 0, "model": "tiny", "ended": True, "hops": 7, "samples": 1120, "lost": {}}]
    return {"node": "here", "version": "9.9", "state": "running", "uptime_s": 3723.5, "batches": hops, "published": 3 * hops,
            "device_faults": 0, "capture_to_publish": times, "step": times, "streams": streams, **keys}


def send_state(publisher, seconds, value, **keys):
    payload = value if isinstance(value, bytes) else msgpack.packb(value)
    publisher.send("state/here/", payload, dt="msgpack", tm=int(seconds * 1e9), **keys)


def start(publisher, *arguments):
    command = [SSM, "top", "--connect", publisher.address, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    publisher.wait(3)  # state/, meter/ and hugz/
    return process


def end(process, status=0):
    out, err = process.communicate(timeout=20)
    assert process.returncode == status, (process.returncode, out, err)
    return out.splitlines(), err


def rates_are_of_the_time_between_two_states():
    with Publisher() as publisher:
        process = start(publisher)
        publisher.send(METER, struct.pack("<4f", -20.5, -10, -30.25, -15), dt="f32le", n=4)
        send_state(publisher, 10, state(100, {"ring_full": 5, "blown": 1}))
        send_state(publisher, 10.1, state(100))  # somebody joined
        for i in range(1, 200):
            send_state(publisher, 10 + 2 * i, state(100 + 200 * i, {"ring_full": 5 + i, "blown": 1}))
            lines = [process.stdout.readline() for _ in range(6)]
            if "-20.5" in lines[4]:  # the level comes by another connection, sooner or later
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = end(process)
        assert not err and "9.9 on here  running  up 1:02:03  2 streams, 1 live  100 hops/s  300 messages/s" in lines[0], lines
        assert "publish p50 0.50 p99 1.25 p99.9 2.00 ms   step p50 0.50" in lines[1], lines
        assert lines[4].split() == ["mic", "3", "tiny", "100.0", "-20.5", "-30.2", "ring_full", f"{5 + i}+,", "blown", "1"], lines
        assert lines[5].split() == ["file", "0", "tiny", "ended", "-", "-"], lines


def a_machine_that_started_anew_is_watched_on():
    """Its clock counts from zero, and its counters do."""
    with Publisher() as publisher:
        process = start(publisher, "--once")
        send_state(publisher, 1e6, state(100_000))
        send_state(publisher, 5, state(100), boot=bytes(16))
        send_state(publisher, 6, state(200), boot=bytes(16))
        lines, err = end(process)
        assert not err and lines[4].split()[3] == "100.0", (lines, err)


def a_stream_that_moved_in_the_list_keeps_its_rate():
    with Publisher() as publisher:
        process = start(publisher, "--once")
        send_state(publisher, 10, state(100))
        moved = state(200)
        moved["streams"] = [dict(moved["streams"][0], pipeline="new", hops=5000), *moved["streams"]]
        send_state(publisher, 11, moved)
        lines, err = end(process)
        assert not err and [line.split()[3] for line in lines[4:]] == ["0.0", "100.0", "ended"], (lines, err)


def json_is_the_state_with_rates_and_levels():
    with Publisher() as publisher:
        process = start(publisher, "--json")
        send_state(publisher, 1, state(100))
        send_state(publisher, 2, state(200, {"blown": 2}))
        publisher.send(METER, struct.pack("<4f", -20, -10, -30, -15), dt="f32le", n=4)
        first = json.loads(process.stdout.readline())
        for seconds in range(3, 200):  # a restart: no rate below zero; the level comes by another connection, sooner or later
            send_state(publisher, seconds, state(50))
            second = json.loads(process.stdout.readline())
            if second["streams"][0]["out_db"] is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        end(process)
        assert first["hops_per_s"] == 100 and first["published_per_s"] == 300 and first["node"] == "here", first
        assert first["streams"][0]["lost"] == {"blown": 2} and first["streams"][1]["in_db"] is None, first
        assert second["hops_per_s"] == 0 and second["streams"][0]["out_db"] == -30, second


def a_sound_device_that_is_not_well_is_shown():
    with Publisher() as publisher:
        process = start(publisher, "--once")
        for hops in 100, 200:
            value = state(hops, {"blown": 1})
            value["streams"][0].update(source="lost", player="stalled")
            value["streams"][1].update(ended=False, source="ok", player="ok")
            send_state(publisher, hops, value)
        lines, _ = end(process)
        assert lines[4].split() == ["mic", "3", "tiny", "lost", "-", "-", "player", "stalled,", "blown", "1"], lines
        assert lines[5].split() == ["file", "0", "tiny", "0.0", "-", "-"], lines


def silence_ends_once_with_69():
    with Publisher() as publisher:
        lines, err = end(start(publisher, "--once"), 69)
        assert not lines and "nothing came for 3 s" in err, err


def strange_states_are_passed_over():
    with Publisher() as publisher:
        process = start(publisher, "--once")
        for strange in (b"", b"\xc1", b"\x81\xa1", msgpack.packb([1, 2]), msgpack.packb("state")):
            send_state(publisher, 1, strange)
        publisher.send("meter/", struct.pack("<4f", 1, 2, 3, 4), dt="f32le")
        publisher.send("meter/" + "x" * 200 + "/y/z/a/b/", struct.pack("<4f", 1, 2, 3, 4), dt="f32le")
        publisher.send(METER, b"123", dt="f32le")
        send_state(publisher, 1, {"streams": 3, "node": 4})
        send_state(publisher, -2**63 / 1e9, state(10))  # as far off as can be
        send_state(publisher, 2, state(10, {"\x1b[2J": 1}, node="\x1b]0;title\x07", streams=[1, {}, None, {"lost": 3}]))
        lines, _ = end(process)
        assert "\x1b" not in "".join(lines) and "on ?  running" in lines[0] and "4 streams" in lines[0], lines


if __name__ == "__main__":
    sys.exit(script.run(rates_are_of_the_time_between_two_states, a_machine_that_started_anew_is_watched_on,
                        a_stream_that_moved_in_the_list_keeps_its_rate, json_is_the_state_with_rates_and_levels,
                        a_sound_device_that_is_not_well_is_shown, silence_ends_once_with_69, strange_states_are_passed_over))
