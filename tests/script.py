# SPDX-License-Identifier: MIT
"""What the tests in Python share: they are run case by case, talk to a daemon, and give it sound."""

import fnmatch
import os
import signal
import socket
import subprocess
import time
import traceback
import wave

SSM = os.path.realpath(os.environ.get("SSM", "build/release/ssm"))
SSMD = os.path.realpath(os.environ.get("SSMD", "build/release/ssmd"))
SANITIZED = os.path.basename(os.path.dirname(SSMD)) in ("asan", "tsan")  # several times as slow, and remembers what was freed


def run(*cases):
    """Each case (those that the filter of `make test F=` takes, as cmocka's), a line for each that failed, and how many did;
    gives the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and who they start, ignore it
    failed, wanted = 0, os.environ.get("CMOCKA_TEST_FILTER") or "*"
    cases = [case for case in cases if fnmatch.fnmatch(case.__name__, wanted)]
    for case in cases:
        try:
            case()
        except Exception as error:  # noqa: BLE001: one line a case, whatever went wrong
            failed += 1
            at = traceback.extract_tb(error.__traceback__)[-1]
            print(f"FAILED {case.__name__}: {type(error).__name__}: {error} ({os.path.basename(at.filename)}:{at.lineno}: {at.line})")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return failed > 0


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_port(port, seconds=10):
    """Until somebody listens there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens on {port}")


def wait_ready(process):
    """Until a daemon with its stderr in a pipe says so."""
    said = []
    for line in process.stderr:
        said.append(line)
        if "ready:" in line:
            return
    raise AssertionError(said)


def start(path, *arguments):
    """A daemon of the configuration at `path`, once it is ready; its stderr in a pipe."""
    process = subprocess.Popen([SSMD, "--config", path, *arguments], stderr=subprocess.PIPE, text=True)
    wait_ready(process)
    return process


def write_sound(path, data, channels=1, rate=16000):
    """A WAV of 16-bit samples, given as bytes."""
    with wave.open(path, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", None))
        file.writeframes(data)
