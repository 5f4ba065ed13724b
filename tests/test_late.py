#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The real daemon with too much to do: stopped for a second it catches up, and nothing is lost."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import script

SSMD = os.environ.get("SSMD", "build/release/ssmd")
RATE, SECONDS, STREAMS = 16000, 6, 4
MODEL = "tests/data/tiny-denoise.safetensors"


def be_first():
    """Other work on the machine is not what is tried here."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))
    except PermissionError:
        print("skipped: no priority over other work on this machine")


def configure(path, text):
    with open(path, "w") as file:
        file.write("version: 1\nnode: t\ndevice: cpu\n" + text)
    return path


def pipelines(folder, paced):
    return "pipelines:\n" + "".join(
        f"  p{i}:\n    source: {{type: file, path: {folder}/in.wav, paced: {paced}}}\n    model: {MODEL}\n"
        f"    sinks: [{{type: file, path: {folder}/{paced}{i}.wav}}, {{type: publish}}]\n" for i in range(STREAMS))


def metric(port, name):
    """Its values, one a series."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    return [float(line.split()[-1]) for line in page.splitlines() if line.startswith(name)]


def end(process):
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, (process.returncode, err)
    return err.splitlines()[-1]


def a_stopped_daemon_catches_up_and_loses_nothing():
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", random.Random(3).randbytes(2 * RATE * SECONDS))
        port = script.free_port()
        text = f"publish: ipc://{folder}/pub\nhttp: 127.0.0.1:{port}\n"
        path = configure(f"{folder}/c.yaml", text + pipelines(folder, "true"))
        process = subprocess.Popen([SSMD, "--config", path], stderr=subprocess.PIPE, text=True)
        script.wait_ready(process)
        time.sleep(1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        began, behind = time.monotonic(), 1
        while behind:
            behind = sum(fill > 0.05 for fill in metric(port, "ssmd_ring_fill_ratio{"))
            took = time.monotonic() - began
            assert took < 5, took
        rungs, last = metric(port, "ssmd_stream_rung{"), end(process)
        assert rungs == [0] * STREAMS and " 0 samples lost" in last, (rungs, last)
        path = configure(f"{folder}/d.yaml", f"publish: ipc://{folder}/pub\n" + pipelines(folder, "false"))
        assert " 0 samples lost" in end(subprocess.Popen([SSMD, "--config", path], stderr=subprocess.PIPE, text=True))
        for i in range(STREAMS):
            with open(f"{folder}/true{i}.wav", "rb") as live, open(f"{folder}/false{i}.wav", "rb") as whole:
                assert live.read() == whole.read(), i
        print(f"stopped for 1 s, {STREAMS} streams: within 0.1 s of the present {1e3 * took:.0f} ms later")


if __name__ == "__main__":
    be_first()
    sys.exit(script.run(a_stopped_daemon_catches_up_and_loses_nothing))
