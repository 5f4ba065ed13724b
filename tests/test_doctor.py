#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""ssm doctor says what is in the way, as ssmd's start would."""

import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile

import script
from script import SSM

MODEL = "tests/data/tiny-denoise.safetensors"


def ask(*words):
    """The exit status, and what was found: part, verdict, text."""
    done = subprocess.run([SSM, "doctor", "--json", *words], capture_output=True, text=True, timeout=60)
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0), done
    return done.returncode, [(one["part"], one["verdict"], one["text"]) for one in told["found"]]


def configure(folder, source="{type: file, path: tests/data/demo-noisy.flac}", more="", port=None, sink="{type: publish}"):
    path = f"{folder}/c.yaml"
    with open(path, "w") as file:
        file.write(f"version: 1\ndevice: cpu\npublish: tcp://127.0.0.1:{port or script.free_port()}\n{more}pipelines:\n  p:\n"
                   f"    source: {source}\n    model: {MODEL}\n    sinks: [{sink}]\n")
    return path


def wrong(found, part):
    return [text for its, verdict, text in found if its == part and verdict == "wrong"]


def a_machine_alone_has_no_wrongs():
    status, found = ask()
    assert status == 0 and {part for part, _, _ in found} == {"sound", "gpu", "processor", "limits", "clock"}, found
    text = subprocess.run([SSM, "doctor"], capture_output=True, text=True, check=True).stdout
    assert len(text.splitlines()) == len(found) and "kernels" in text, text
    few = subprocess.run(["bash", "-c", f"ulimit -n 100; exec {SSM} doctor"], capture_output=True, text=True, check=True).stdout
    assert "(nofile): the limit is 100;" in few, few  # root's too


def a_file_that_can_run_is_fine():
    with tempfile.TemporaryDirectory() as folder:
        status, found = ask(configure(folder, more=f"state_dir: {folder}/state\n"))
        assert status == 0 and {part for part, verdict, _ in found if verdict == "fine"} >= {"file", "folders", "ports"}, found


def what_is_in_the_way_is_told_with_ssmds_code():
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            status, found = ask(configure(folder, port=port))
            assert status == 69 and f"127.0.0.1:{port}" in wrong(found, "ports")[0], found
            status, found = ask(configure(folder, port=port + 1))  # control is the one below
            assert status == 69 and "control" in wrong(found, "ports")[0], found
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            path = configure(folder, f"{{type: sensor, transport: udp, listen: {address}}}")
            status, found = ask(path)
            assert wrong(found, "ports") and address in wrong(found, "ports")[0] and status != 0, found
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(f"{folder}/taken")
            taken.listen()
            open(f"{folder}/file", "w").close()
            for name in ("taken", "file"):
                path = configure(folder)
                text = open(path).read()
                with open(path, "w") as file:
                    file.write(re.sub("publish: tcp.*", f"publish: ipc://{folder}/{name}", text))
                status, found = ask(path)
                assert status == 69 and f"publish: ipc://{folder}/{name} is a file, or" in wrong(found, "ports")[0], found
        for more, sink, words in (("state_dir: /none/of/these\n", "{type: publish}", "/none/of"),
                                  ("", "{type: file, path: /none/x.wav}", "/none")):
            status, found = ask(configure(folder, more=more, sink=sink))
            assert status == 73 and words in wrong(found, "folders")[0], found
        status, found = ask(configure(folder, "{type: audio, device: no such card}"))
        assert status == 69 and "no such card" in wrong(found, "sound")[0], found
        status, found = ask(configure(folder, f"{{type: file, path: {folder}/x.wav}}"))
        assert status == 66 and "x.wav: No such file" in wrong(found, "files")[0], found
        script.write_sound(f"{folder}/x.wav", bytes(88200), rate=44100)
        status, found = ask(configure(folder, f"{{type: file, path: {folder}/x.wav}}", sink=f"{{type: file, path: {folder}/x.opus}}"))
        assert status == 73 and "c.yaml:8:13: pipelines.p.sinks.0: " in wrong(found, "file")[0] and "Opus takes" in wrong(found, "file")[0], found
        with open(f"{folder}/y.wav", "w") as taken:
            fcntl.fcntl(taken, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            status, found = ask(configure(folder, sink=f"{{type: file, path: {folder}/y.wav}}"))
            assert status == 73 and "y.wav: is being written by another ssmd" in wrong(found, "files")[0], found
        status, found = ask(configure(folder, "{type: file, path: x.wav, lop: true}"))
        assert status == 78 and "c.yaml:6:39" in wrong(found, "file")[0], found
        status, found = ask(f"{folder}/none.yaml")
        assert status == 78 and wrong(found, "file"), found


if __name__ == "__main__":
    sys.exit(script.run(a_machine_alone_has_no_wrongs, a_file_that_can_run_is_fine, what_is_in_the_way_is_told_with_ssmds_code))
