#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sound devices that go and come back: PulseAudio's sources that are unloaded, its server killed, a helper killed.

PLUGS and KILLS say how often (3 and 2; `make soak-devices`: 200 and 50, each within its time)."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import msgpack
import zmq

import script
from script import SANITIZED, SSM, SSMD

MODEL = os.path.realpath("tests/data/tiny-denoise.safetensors")
PLUGS = int(os.environ.get("PLUGS", 3))
KILLS = int(os.environ.get("KILLS", 2))
STRICT = bool(os.environ.get("STRICT"))  # each time in time, not only the median: for a machine with nothing else to do
NOTICED_S, BACK_S = (2, 4) if SANITIZED else (0.5, 1.0)
STARTS_S = 5 if SANITIZED else 1  # until the daemon is ready, at most
BESIDE_S = 10 + 2 * (PLUGS + 2 * KILLS)  # how long the file beside it runs

CONFIG = """
version: 1
node: t
publish: ipc://{dir}/publish
http: 127.0.0.1:{http}
pipelines:
  mic:
    source: {{type: audio, device: "ALSA:room", silence: 1s}}
    model: {model}
    sinks: [{{type: publish}}, {{type: file, path: mic.wav}}]
  beside:
    source: {{type: file, path: beside.wav}}
    model: {model}
    sinks: [{{type: file, path: clean.wav}}]
"""


RUNNING = []  # processes, for who ends the test


class Pulse:
    """A sound server with one source, into which a thread of ours puts sound as time goes by. (A null sink's monitor gives nothing
    for its first 2 s, then all of them at once.)"""

    def __init__(self):
        self.fifo = tempfile.mktemp(dir=os.environ["HOME"])
        self.sound = b"\x00\x20" * 220 + b"\x00\xe0" * 221  # 10 ms at 44.1 kHz
        self.server = self.module = None
        self.feeder = threading.Thread(target=self.feed, daemon=True)

    def feed(self):
        while True:
            try:
                with open(os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK), "wb", buffering=0) as fifo:
                    due = time.monotonic()
                    while True:
                        fifo.write(self.sound)
                        due += 0.01
                        time.sleep(max(0, due - time.monotonic()))
            except OSError:
                time.sleep(0.01)

    def start(self):
        self.server = subprocess.Popen(
            ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disable-shm=yes", "-L",
             "module-native-protocol-unix"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        RUNNING.append(self.server)
        wait_for(lambda: subprocess.run(["pactl", "info"], capture_output=True).returncode == 0, 10)
        self.plug()
        if not self.feeder.is_alive():
            self.feeder.start()

    def plug(self):
        command = ["pactl", "load-module", "module-pipe-source", "source_name=room", f"file={self.fifo}", "format=s16le",
                   "rate=44100", "channels=1"]
        self.module = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def unplug(self):
        subprocess.run(["pactl", "unload-module", self.module], check=True)

    def kill(self):
        self.server.kill()
        self.server.wait()
        if os.path.exists(self.fifo):
            os.unlink(self.fifo)


class Daemon:
    """ssmd, and what it says in state/."""

    def __init__(self, folder):
        self.folder, self.port = folder, script.free_port()
        with open(os.path.join(folder, "ssmd.yaml"), "w") as file:
            file.write(CONFIG.format(dir=folder, http=self.port, model=MODEL))
        command = [SSMD, "--config", "ssmd.yaml"]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        RUNNING.append(self.process)
        script.wait_ready(self.process)
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.connect(f"ipc://{folder}/publish")
        for topic in "state/", "gap/t/mic/", "audio/t/mic/":
            self.socket.subscribe(topic)
        self.condition = self.samples = None
        self.holes = []

    def listen(self, seconds):
        """Take messages until one came, or for so long."""
        if not self.socket.poll(max(1, int(seconds * 1000))):
            return
        topic, header, payload = self.socket.recv_multipart()
        header = msgpack.unpackb(header)
        if topic.startswith(b"state/"):
            stream = [s for s in msgpack.unpackb(payload)["streams"] if s["pipeline"] == "mic"][0]
            self.condition, self.samples = stream["source"], stream["samples"]
        elif "lost" in header and header["lost"].get("to", 0) > header["lost"].get("from", 0):
            self.holes.append((header["lost"]["from"], header["lost"]["to"], header["lost"]["why"]))

    def wait(self, condition, seconds):
        """How long it takes."""
        begin = time.monotonic()
        while self.condition != condition:
            left = begin + seconds - time.monotonic()
            assert left > 0, (f"{self.condition}, not {condition} in {seconds} s", self.helpers())
            self.listen(left)
        return time.monotonic() - begin

    def drain(self, seconds):
        """Let so long go by."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.listen(until - time.monotonic())

    def helpers(self):
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=120)[1]
        self.socket.close(0)
        return self.process.returncode, said


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "that took too long"
        time.sleep(0.02)


def get(port, page):
    return subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}{page}"], capture_output=True, text=True).stdout


def is_untouched(folder, seconds):
    """The file beside it lost nothing: all of it came out."""
    command = ["soxi", "-s", os.path.join(folder, "clean.wav")]
    samples = int(subprocess.run(command, capture_output=True, text=True).stdout)
    assert samples == int(seconds * 16000), samples


def middle(times):
    return sorted(times)[(len(times) - 1) // 2]


def worst(times):
    return f"{1000 * max(times):.0f} ms at most, {1000 * middle(times):.0f} at the median"


def devices_come_back_and_others_lose_nothing():
    folder, pulse = os.environ["HOME"], Pulse()
    pulse.start()
    script.write_sound(os.path.join(folder, "beside.wav"), b"\x10\x20" * 16000 * BESIDE_S)
    daemon = Daemon(folder)
    noticed, back, revived = [], [], []
    daemon.wait("ok", 10)
    for _ in range(PLUGS):
        pulse.unplug()
        noticed.append(daemon.wait("lost", 5))
        assert "source_device" in [reason["what"] for reason in json.loads(get(daemon.port, "/health"))["reasons"]]
        daemon.drain(0.3)
        pulse.plug()
        back.append(daemon.wait("ok", 10))
        daemon.drain(0.2)
    assert daemon.holes and all(why == "device_lost" for _, _, why in daemon.holes), daemon.holes
    for _ in range(KILLS):
        pulse.kill()
        noticed.append(daemon.wait("lost", 5))
        pulse.start()
        back.append(daemon.wait("ok", 10))
        daemon.drain(0.2)
    for _ in range(KILLS):
        os.kill(daemon.helpers()[0], signal.SIGKILL)
        noticed.append(daemon.wait("lost", 5))
        revived.append(daemon.wait("ok", 10))
    print(f"{PLUGS} unplugged, {KILLS} servers and {KILLS} helpers killed: noticed in {worst(noticed)}; back in {worst(back)}; "
          f"a helper's device in {worst(revived)}")
    states = re.findall(r'source_state\{pipeline="mic",type="audio",state="(\w+)"\} 1', get(daemon.port, "/metrics"))
    assert states == ["running"], states
    health = json.loads(get(daemon.port, "/health"))
    assert health["status"] == "degraded" and any(r["what"] == "device_lost" for r in health["reasons"]), health
    daemon.drain(max(0, BESIDE_S + STARTS_S - daemon_age(daemon)))
    code, said = daemon.stop()
    pulse.kill()
    assert code == 0 and "device_lost" in said, (code, said)
    is_untouched(folder, BESIDE_S)
    judge = max if STRICT else middle
    assert judge(noticed) < NOTICED_S, noticed
    assert judge(back) < BACK_S and judge(revived) < BACK_S, (back, revived)


def daemon_age(daemon):
    return time.time() - os.stat(f"/proc/{daemon.process.pid}").st_ctime


def silence_is_told_and_ends():
    pulse = Pulse()
    pulse.start()
    script.write_sound(os.path.join(os.environ["HOME"], "beside.wav"), b"\x10\x20" * 16000)
    daemon = Daemon(os.environ["HOME"])
    daemon.wait("ok", 10)
    tone, pulse.sound = pulse.sound, bytes(882)
    daemon.wait("silent", 10)
    health = json.loads(get(daemon.port, "/health"))
    whats = [reason["what"] for reason in health["reasons"]]
    assert "silent" in whats and "device_lost" not in whats, health
    assert 'source_silence_seconds{pipeline="mic",channel="0"}' in get(daemon.port, "/metrics")
    pulse.sound = tone
    daemon.wait("ok", 10)
    code, said = daemon.stop()
    pulse.kill()
    assert code == 0 and "nothing but silence" in said and "heard again" in said, said


def helpers_do_not_outlive_the_daemon():
    pulse = Pulse()
    pulse.start()
    script.write_sound(os.path.join(os.environ["HOME"], "beside.wav"), b"\x10\x20" * 16000)
    daemon = Daemon(os.environ["HOME"])
    helper = daemon.helpers()[0]
    daemon.process.kill()
    daemon.process.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{helper}/exe"), 1)
    daemon.socket.close(0)
    pulse.kill()


def a_name_to_paste_is_listed():
    pulse = Pulse()
    pulse.start()
    devices = json.loads(subprocess.run([SSM, "devices", "--json"], capture_output=True, text=True).stdout)
    pulse.kill()
    assert "ALSA:room" in [d["device"] for d in devices["audio"] if d["inputs"] > 0], devices


def alone(case):
    """What a case that failed has left running is in nobody's way."""
    @functools.wraps(case)
    def run():
        try:
            case()
        finally:
            for process in RUNNING:
                process.kill()
                process.wait()
            RUNNING.clear()
    return run


def main():
    if not all(shutil.which(tool) for tool in ("pulseaudio", "pactl", "soxi", "curl")):
        print("skipped: no PulseAudio\n0 passed, 0 failed")
        return 0
    folder = tempfile.mkdtemp(prefix="ssmd-devices-")
    os.environ.update(HOME=folder, XDG_RUNTIME_DIR=folder)
    with open(os.path.join(folder, ".asoundrc"), "w") as file:
        file.write('pcm.room { type pulse device "room" hint { show on description "room" } }\n')
    try:
        return script.run(*map(alone, (a_name_to_paste_is_listed, silence_is_told_and_ends, helpers_do_not_outlive_the_daemon,
                                       devices_come_back_and_others_lose_nothing)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
