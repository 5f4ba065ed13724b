#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A tag model in the real daemon: scores and events to a subscriber, lines into a file, and the same as `ssm tag` says."""

import fcntl
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import wave

import msgpack
import numpy as np
import zmq

import script
from script import SSM, SSMD

MODEL = "tests/data/tiny-tag.safetensors"
RATE, HOP = 16000, 160
DENOISER = "tests/data/tiny-denoise.safetensors"


def write_tones(path):
    """low 0.5-1.0 and high 0.8-1.4 in the first channel, low from 1.5 to the end, 1.8, in the second."""
    t = np.arange(int(1.8 * RATE)) / RATE

    def tone(hz, begin, end):
        return 0.3 * np.sin(2 * np.pi * hz * t) * np.clip(np.minimum(t - begin, end - t) / 0.005, 0, 1)

    both = np.stack([tone(500, 0.5, 1.0) + tone(6000, 0.8, 1.4), tone(500, 1.5, 1.9)], axis=1)
    script.write_sound(path, (both * 32767).astype("<i2").tobytes(), channels=2)


def configuration(folder, source, sinks, model=MODEL, more=""):
    path = f"{folder}/c.yaml"
    with open(path, "w") as file:
        file.write(f"version: 1\nnode: here\ndevice: cpu\npublish: ipc://{folder}/pub\npipelines:\n  ears:\n    source: {source}\n"
                   f"    model: {model}\n{more}    sinks: {sinks}\n")
    return path


def run(folder, *config, **keys):
    command = [SSMD, "--config", configuration(folder, *config, **keys)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def told_by_tool(path):
    text = subprocess.run([SSM, "tag", path, "--model", MODEL, "--step"], capture_output=True, text=True, check=True).stdout
    return [{**json.loads(line), "source": "ears"} for line in text.splitlines()]


def in_order(events):
    return sorted(events, key=lambda event: (event["t0"], event["label"]))


def the_lines_are_what_the_tool_says():
    with tempfile.TemporaryDirectory() as folder:
        write_tones(f"{folder}/in.wav")
        sinks = f"[{{type: jsonl, path: {folder}/e.jsonl}}, {{type: jsonl, path: '-'}}]"
        for times in (1, 2):  # the file is added to, not replaced
            done = run(folder, f"{{type: file, path: {folder}/in.wav, paced: false}}", sinks)
            assert done.returncode == 0, done
            lines = [json.loads(line) for line in open(f"{folder}/e.jsonl")]
            wanted = told_by_tool(f"{folder}/in.wav")
            assert len(wanted) == 3 and in_order(lines) == in_order(wanted * times), (lines, wanted)
            assert in_order(map(json.loads, done.stdout.splitlines())) == in_order(wanted), done.stdout


def subscribers_get_scores_events_and_labels():
    with tempfile.TemporaryDirectory() as folder:
        write_tones(f"{folder}/in.wav")
        socket = zmq.Context.instance().socket(zmq.SUB)
        socket.connect(f"ipc://{folder}/pub")
        socket.subscribe("")
        source = f"{{type: file, path: {folder}/in.wav, paced: true, loop: true}}"
        daemon = subprocess.Popen([SSMD, "--config", configuration(folder, source, "[{type: publish}]")],
                                  stderr=subprocess.PIPE, text=True)
        heard = {}
        while len(heard.get("event/here/ears/0/tiny-tag/", [])) < 4:
            assert socket.poll(10000), "nothing comes"
            topic, header, payload = socket.recv_multipart()
            heard.setdefault(topic.decode(), []).append((msgpack.unpackb(header), payload))
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0, daemon.stderr.read()
        daemon.stderr.close()
        socket.close(0)

        meta = msgpack.unpackb(heard["meta/here/ears/1/tiny-tag/"][0][1])
        assert meta["task"] == "tag" and meta["hop"] == HOP and not meta["exclusive"], meta
        assert [(label["name"], label["mid"]) for label in meta["labels"]] == [("low", "/t/low"), ("high", "")], meta
        rows = heard["tags/here/ears/0/tiny-tag/"]
        header, payload = rows[0]
        assert header["dt"] == "f32le" and header["shp"] == [2] and header["n"] == HOP and header["sr"] == RATE, header
        high = {header["s0"] // HOP for header, payload in rows if struct.unpack("<2f", payload)[1] > 0.5}
        first = {hop for hop in high if hop < 180}
        assert set(range(81, 140)) <= first <= set(range(80, 142)), sorted(first)

        events = heard["event/here/ears/0/tiny-tag/"]
        told = [(e["event"], e["label"]) for e in (msgpack.unpackb(payload) for _, payload in events[:4])]
        assert told == [("begin", "high"), ("begin", "low"), ("end", "low"), ("end", "high")] or \
            told == [("begin", "low"), ("begin", "high"), ("end", "low"), ("end", "high")], told
        times = {header["s0"]: header["tm"] for header, _ in rows}
        for header, payload in events[:4]:
            event = msgpack.unpackb(payload)
            assert abs(header["s0"] / RATE - event["t0"]) < 1e-6, (header, event)
            assert header["n"] == round((event["t1"] - event["t0"]) * RATE), (header, event)
            if header["s0"] in times:  # captured when that sample was
                assert abs(times[header["s0"]] - header["tm"]) < 20e6, (header, times[header["s0"]])


def sinks_and_models_that_do_not_fit_are_refused():
    with tempfile.TemporaryDirectory() as folder:
        write_tones(f"{folder}/in.wav")
        os.mkfifo(f"{folder}/pipe")  # was waited for
        source = f"{{type: file, path: {folder}/in.wav, paced: false}}"
        for sinks, model, more, words in [
                (f"[{{type: file, path: {folder}/o.wav}}]", MODEL, "", "type file takes sound"),
                (f"[{{type: jsonl, path: {folder}/o}}]", DENOISER, "", "type jsonl takes tags"),
                ("[{type: publish}]", MODEL, "    strength: 6\n", "strength and bypass are for denoisers"),
                (f"[{{type: jsonl, path: {folder}/pipe}}]", MODEL, "", "pipe: a pipe that nobody reads"),
                (f"[{{type: jsonl, path: {folder}/no/such}}]", MODEL, "", "No such file")]:
            done = run(folder, source, sinks, model=model, more=more)
            assert done.returncode in (73, 78) and words in done.stderr, (words, done)


def pcm_comes_over_zeromq():
    context = zmq.Context.instance()
    for way, kind in (("pull", zmq.PUSH), ("sub", zmq.PUB)):
        with tempfile.TemporaryDirectory() as folder:
            write_tones(f"{folder}/in.wav")
            out, end = context.socket(kind), f"ipc://{folder}/in"
            out.setsockopt(zmq.LINGER, 0)
            if way == "sub":
                out.bind(end)
            source = f"{{type: pcm, path: '{way}:{end}', rate: 16000, pcm_channels: 2}}"
            path = configuration(folder, source, f"[{{type: jsonl, path: {folder}/e.jsonl}}]")
            daemon = script.start(path)
            if way == "pull":
                out.connect(end)
            time.sleep(0.3)  # PUB leaves out who isn't there yet
            with wave.open(f"{folder}/in.wav") as file:
                while frames := file.readframes(1000):
                    out.send(frames + b"\0")  # a byte too many is left out of each message
            until = time.monotonic() + 20
            while sum(1 for _ in open(f"{folder}/e.jsonl")) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.3)
            daemon.send_signal(signal.SIGTERM)
            err = daemon.communicate(timeout=20)[1]
            out.close()
            assert daemon.returncode == 0, err
            lines = [json.loads(line) for line in open(f"{folder}/e.jsonl")]
            assert in_order(lines) == in_order(told_by_tool(f"{folder}/in.wav")), (way, lines, err)


def a_full_disk_is_told():
    with tempfile.TemporaryDirectory() as folder:
        write_tones(f"{folder}/in.wav")
        done = run(folder, f"{{type: file, path: {folder}/in.wav, paced: false}}", "[{type: jsonl, path: /dev/full}]")
        assert done.returncode == 74 and "/dev/full: No space left on device; events are lost" in done.stderr, done


def start_endless(folder):
    """A daemon that adds to e.jsonl for ever."""
    write_tones(f"{folder}/in.wav")
    return script.start(configuration(folder, f"{{type: file, path: {folder}/in.wav, loop: true}}", f"[{{type: jsonl, path: {folder}/e.jsonl}}]"))


def lines_are_whole_where_room_was_short():
    with tempfile.TemporaryDirectory() as folder:
        process = start_endless(folder)

        def grow(by):
            size, until = os.path.getsize(f"{folder}/e.jsonl"), time.monotonic() + 20
            while os.path.getsize(f"{folder}/e.jsonl") < size + by and time.monotonic() < until:
                time.sleep(0.02)

        grow(1)
        limit = os.path.getsize(f"{folder}/e.jsonl") + 50  # a third of a line
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        said = process.stderr.readline()
        assert "e.jsonl: File too large; events are lost" in said, said
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        grow(300)
        process.terminate()
        _, said = process.communicate(timeout=20)
        lost = int(re.search(r"(\d+) samples file_error", said)[1])
        lines = [json.loads(line) for line in open(f"{folder}/e.jsonl")]
        assert process.returncode == 74 and len(lines) >= 3 and lost < 3, (process.returncode, len(lines), said)


def a_reader_that_stops_stops_nothing_else():
    """Of lines on standard output: recordings stood still with it, and ssmd could not be ended."""
    with tempfile.TemporaryDirectory() as folder:
        write_tones(f"{folder}/in.wav")
        path = configuration(folder, f"{{type: file, path: {folder}/in.wav, paced: false, loop: true}}", "[{type: jsonl, path: '-'}]")
        with open(path, "a") as file:
            file.write(f"  room:\n    source: {{type: file, path: {folder}/in.wav, loop: true}}\n    model: {DENOISER}\n"
                       f"    sinks: [{{type: file, path: {folder}/out.wav}}]\n")
        take, give = os.pipe()
        fcntl.fcntl(give, 1031, 4096)  # F_SETPIPE_SZ
        process = subprocess.Popen([SSMD, "--config", path, "--set", "drain=1s"], stdout=give, stderr=subprocess.PIPE, text=True)
        os.close(give)
        script.wait_ready(process)
        time.sleep(2)  # full by now: it takes some twenty events
        before = os.path.getsize(f"{folder}/out.wav")
        time.sleep(2)
        assert os.path.getsize(f"{folder}/out.wav") > before + RATE, before
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        # 75: the source still waited for room when the drain was over
        assert process.returncode in (74, 75) and "-: nobody reads it; " in said, (process.returncode, said)
        first = os.read(take, 4096).splitlines()[0]
        assert json.loads(first)["label"] in ("low", "high"), first
        os.close(take)


def lines_go_on_in_a_new_file_when_theirs_was_moved():
    with tempfile.TemporaryDirectory() as folder:
        process = start_endless(folder)
        for name in ("e.jsonl", "e.jsonl"):
            until = time.monotonic() + 20
            while not (os.path.exists(f"{folder}/{name}") and os.path.getsize(f"{folder}/{name}")) and time.monotonic() < until:
                time.sleep(0.05)
            if not os.path.exists(f"{folder}/e.jsonl.1"):
                os.rename(f"{folder}/e.jsonl", f"{folder}/e.jsonl.1")  # as logrotate does; the lines followed it
        process.terminate()
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0, said
        first, second = ([json.loads(line) for line in open(f"{folder}/{name}")] for name in ("e.jsonl.1", "e.jsonl"))
        assert first and second and first[-1]["t1"] <= second[0]["t1"], (first, second)


def bypass_gives_the_file_back():
    with tempfile.TemporaryDirectory() as folder:
        write_tones(f"{folder}/in.wav")
        source = f"{{type: file, path: {folder}/in.wav, paced: false}}"
        for more, same in (("    bypass: true\n", True), ("    strength: 0\n", True), ("", False)):
            done = run(folder, source, f"[{{type: file, path: {folder}/out.wav}}]", model=DENOISER, more=more)
            assert done.returncode == 0, done
            with wave.open(f"{folder}/in.wav") as file, open(f"{folder}/out.wav", "rb") as out:
                assert (file.readframes(10**6) in out.read()) == same, more


if __name__ == "__main__":
    sys.exit(script.run(the_lines_are_what_the_tool_says, subscribers_get_scores_events_and_labels,
                        sinks_and_models_that_do_not_fit_are_refused, pcm_comes_over_zeromq, a_full_disk_is_told, lines_are_whole_where_room_was_short,
                        a_reader_that_stops_stops_nothing_else, lines_go_on_in_a_new_file_when_theirs_was_moved, bypass_gives_the_file_back))
