#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Memory, a descriptor, the disk, a thread that isn't to be had, once at each place where our code asks for it (tests/faults.c):
the programs end with a message and a documented exit code, or go on and do all they should; nothing is half there, nothing is
silently lost. FAULTS_SITES=N: so many places of each program (0: all); FAULTS_NTH=N: not the first time but the Nth; FAULTS_JOBS=N at a
time; FAULTS_LOG=FILE: each run's verdict."""

import collections
import concurrent.futures
import functools
import glob
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import zmq
import zmq.auth

import script

BUILD = os.environ.get("SSM_BUILD", "build/release")
SITES = int(os.environ.get("FAULTS_SITES", 25))
JOBS = int(os.environ.get("FAULTS_JOBS", 4))
ONLY = os.environ.get("FAULTS_ONLY", "")
RATE = 16000
PATIENCE = 20 if "release" in BUILD else 60
Result = collections.namedtuple("Result", "code said outputs fired")


def sound(seconds, seed=3, channels=1):
    noise = random.Random(seed)
    return struct.pack(f"<{int(seconds * RATE) * channels}h", *(noise.randrange(-8000, 8000) for _ in range(int(seconds * RATE) * channels)))


# ---- Running a program with a site that fails. ----

def environment(folder, site):
    """Without a site all that are reached are listed."""
    more = {"FAULTS_FAIL": site, "FAULTS_FIRED": f"{folder}/fired"} if site else {"FAULTS_LIST": f"{folder}/sites"}
    return dict(os.environ, **more)


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def finish(process, patience):
    """Its exit code, and for one that doesn't end a word."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "hangs"


def tool(folder, site, words, outputs):
    with open(f"{folder}/stdout", "wb") as out, open(f"{folder}/stderr", "wb") as err:
        process = subprocess.Popen([f"{BUILD}/tests/faulty_ssm", *words], env=environment(folder, site), stdout=out, stderr=err)
        code = finish(process, PATIENCE)
    said = {name: read(f"{folder}/{name}").decode(errors="replace").replace(folder, "") for name in ("stdout", "stderr")}
    return Result(code, said["stderr"].splitlines(), dict({name: read(f"{folder}/{name}") for name in outputs}, stdout=said["stdout"]),
                  os.path.exists(f"{folder}/fired"))


def denoise(folder, site, place):
    return tool(folder, site, ["denoise", f"{place}/stereo.wav", f"{folder}/out.flac", "--model", "tests/data/tiny-denoise.safetensors",
                               "--threads", "2", "--quiet"], ["out.flac"])


def check(folder, site, place):
    write_config(folder, place, [0, 0, 0, 0])
    return tool(folder, site, ["check", f"{folder}/c.yaml"], [])


def tag(folder, site, place):
    return tool(folder, site, ["tag", f"{place}/other.wav", "--model", "tests/data/tiny-tag.safetensors", "--threads", "1"], [])


# ---- The daemon and those who talk to it. ----

def write_config(folder, place, ports, changed=False):
    publish, udp, http, mqtt = ports
    with open(f"{folder}/c.yaml", "w") as file:
        file.write(f"""version: 1
node: here
device: cpu
threads: 2
publish: tcp://127.0.0.1:{publish or 5571}
control: ipc://{folder}/control
http: 127.0.0.1:{http or 9464}
state_dir: {folder}/state
curve: {{secret: {place}/server_secret, clients: {place}/clients, admins: {place}/admins}}
pipelines:
  whole:
    source: {{type: file, path: {place}/stereo.wav, paced: false}}
    model: tests/data/tiny-denoise.safetensors
    sinks: [{{type: publish}}, {{type: file, path: {folder}/whole.wav}}]
  live:
    source: {{type: file, path: {place}/in.wav, loop: true}}
    model: tests/data/tiny-denoise.safetensors
    strength: {20 if changed else 30}
    sinks: [{{type: publish}}]
  tags:
    source: {{type: file, path: {place}/other.wav, paced: false}}
    model: tests/data/tiny-tag.safetensors
    sinks: [{{type: publish}}, {{type: jsonl, path: {folder}/tags.jsonl}}]
  pipe:
    source: {{type: pcm, path: 'unix:{folder}/pipe', rate: 16000, format: s16le}}
    model: tests/data/tiny-denoise.safetensors
    sinks: [{{type: file, path: {folder}/pipe.flac}}]
  pull:
    source: {{type: pcm, path: 'pull:ipc://{folder}/pull', rate: 16000, format: s16le}}
    model: tests/data/tiny-denoise.safetensors
    sinks: [{{type: file, path: {folder}/pull.wav}}]
  pump:
    source: {{type: sensor, transport: udp, listen: '127.0.0.1:{udp or 9000}'}}
    model: tests/data/tiny-sensor.safetensors
    sinks: [{{type: publish}}]
  turbine:
    source: {{type: sensor, transport: mqtt, connect: 'mqtt://127.0.0.1:{mqtt or 1883}', topic: 'turbine/#'}}
    model: tests/data/tiny-sensor.safetensors
    sinks: [{{type: publish}}]
""" + (f"""  more:
    source: {{type: file, path: {place}/in.wav, paced: false}}
    model: tests/data/tiny-denoise.safetensors
    sinks: [{{type: file, path: {folder}/more.wav}}]
""" if changed else ""))


class Ear(threading.Thread):
    """Hears a program's stderr."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream, self.lines, self.news = stream, [], threading.Condition()
        self.ended = False
        self.start()

    def run(self):
        for line in self.stream:
            with self.news:
                self.lines.append(line.rstrip("\n"))
                self.news.notify()
        with self.news:
            self.ended = True
            self.news.notify()

    def wait(self, words, patience):
        with self.news:
            found = lambda: any(word in line for line in self.lines for word in words)
            self.news.wait_for(lambda: found() or self.ended, patience)
            return found()


class Clients:
    """Who subscribes, asks, and sends samples and readings. None of them minds what the daemon does."""

    def __init__(self, folder, place, ports):
        self.folder, self.place, self.ports, self.context = folder, place, ports, zmq.Context()

    def connect(self, kind, address):
        one = self.context.socket(kind)
        one.setsockopt(zmq.LINGER, 2000)
        one.setsockopt(zmq.RCVTIMEO, 3000)
        one.setsockopt(zmq.SNDTIMEO, 3000)
        if address.startswith("tcp"):
            public, secret = zmq.auth.load_certificate(f"{self.place}/alice_secret")
            one.curve_publickey, one.curve_secretkey = public, secret
            one.curve_serverkey = zmq.auth.load_certificate(f"{self.place}/server")[0]
        one.connect(address)
        return one

    def ask(self, op, **args):
        one = self.connect(zmq.REQ, f"ipc://{self.folder}/control")
        try:
            one.send(json.dumps({"op": op, "id": 1, "args": args}).encode())
            return json.loads(one.recv_multipart()[0])
        except zmq.ZMQError:
            return None
        finally:
            one.close()

    def get(self, page):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[2]}{page}", timeout=2) as answer:
                return len(answer.read()) > 0
        except OSError as error:
            return not isinstance(error, TimeoutError)  # another status, or a connection that is closed, is told

    def send_pipe(self):
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(f"{self.folder}/pipe")
                one.sendall(sound(.3))
        except OSError:
            return False
        return True

    def send_pull(self):
        one = self.connect(zmq.PUSH, f"ipc://{self.folder}/pull")
        try:
            one.send(sound(.3), copy=True)
        except zmq.ZMQError:
            return False
        finally:
            one.close()
        return True

    def send_readings(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            for i in range(30):
                try:
                    one.sendto(json.dumps({"t": i / 100, "ax": 1, "ay": 2, "az": i, "x": 1, "y": 2, "z": 3}).encode() + b"\n", ("127.0.0.1", self.ports[1]))
                except OSError:
                    pass

    def wait_arrived(self):
        """Until what was sent has gone through, or a while."""
        until = time.monotonic() + 3
        while time.monotonic() < until:
            streams = ((self.ask("stream.list") or {}).get("result") or {}).get("streams") or []
            if all(one["samples"] >= .29 * RATE for one in streams if one["pipeline"] in ("pipe", "pull")):
                return
            time.sleep(.05)

    def visit(self):
        """What was answered, and what was sent whole."""
        ear = self.connect(zmq.SUB, f"tcp://127.0.0.1:{self.ports[0]}")
        ear.subscribe(b"")
        told = {"pipe": self.send_pipe(), "pull": self.send_pull()}
        self.send_readings()
        for op in ("describe", "snapshot", "stream.list", "mem"):
            told[op] = bool(self.ask(op))
        told["bypass"] = bool(self.ask("stream.bypass", stream="live"))
        told["open"] = bool(self.ask("stream.open", pipeline={"guest": {"source": {"type": "file", "path": f"{self.place}/in.wav"},
                                                                   "model": "tests/data/tiny-denoise.safetensors", "sinks": [{"type": "publish"}]}}))
        told["close"] = bool(self.ask("stream.close", pipeline="guest", generation=1))
        told["reset"] = bool(self.ask("stream.reset", stream="live"))
        for page in ("/metrics", "/health", "/ready"):
            told[page] = self.get(page)
        try:
            told["heard"] = bool(ear.recv_multipart())
        except zmq.ZMQError:
            told["heard"] = False
        self.wait_arrived()
        return told


def daemon(folder, site, place):
    ports = [script.free_port(), script.free_port(socket.SOCK_DGRAM), script.free_port(), int(read(f"{place}/broker"))]
    write_config(folder, place, ports)
    shutil.copytree(f"{place}/state", f"{folder}/state")
    process = subprocess.Popen([f"{BUILD}/tests/faulty_ssmd", "--config", f"{folder}/c.yaml", "--stay"], env=environment(folder, site),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    ear, told, began = Ear(process.stderr), {}, time.monotonic()
    if ear.wait(["ready:"], PATIENCE):
        clients = Clients(folder, place, ports)
        told = clients.visit()
        write_config(folder, place, ports, changed=True)
        process.send_signal(signal.SIGHUP)
        told["reload"] = ear.wait(["reloaded"], 10)
        time.sleep(max(0, began + 1.5 - time.monotonic()))  # states are kept each second
        process.send_signal(signal.SIGTERM)
        clients.context.destroy()
    code = finish(process, PATIENCE)
    ear.join(5)
    outputs = {name: read(f"{folder}/{name}") for name in ("whole.wav", "tags.jsonl", "pipe.flac", "pull.wav", "more.wav")}
    outputs.update({f"answer to {name}": b"yes" if well else b"no" for name, well in told.items()})
    return Result(code, ear.lines, outputs, os.path.exists(f"{folder}/fired"))


# ---- Judging. ----

def words(line):
    return re.sub(r"[0-9.]+|/tmp/\S+", "#", line)


@functools.cache
def documented(program):
    """The exit codes that --help tells of."""
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    return {0} | {int(code) for code in re.findall(r"\b[67]\d\b", told[told.lower().index("0 done"):])}


def judge(result, usual, program):
    """What is wrong with it, or ""."""
    new = [line for line in result.said if words(line) not in {words(line) for line in usual.said}]
    differ = [name for name in usual.outputs if result.outputs.get(name) != usual.outputs[name]]
    half = [name for name in differ if name == "out.flac" and result.outputs[name] is not None and not any("holds the" in line for line in result.said)]
    if result.code == "hangs":
        return "hangs"
    if any("LeakSanitizer" in line for line in result.said) and all("libzmq" in line for line in result.said if re.match(r" +#1 ", line)):
        return ""  # libzmq's, of an answer to its question about a key that had too few frames
    if any("Sanitizer" in line or "runtime error" in line for line in result.said):
        return "sanitizer: " + "; ".join(line.strip() for line in result.said if re.search("Sanitizer|runtime error|^ +#[0-5] ", line))
    if result.code < 0:
        return f"ends by signal {-result.code}"
    if result.code not in documented(program):
        return f"exit code {result.code}"
    if result.code != usual.code and not new:
        return f"exit code {result.code} without a word"
    if half:
        return f"half of {half}"
    if differ and not new:
        return f"silent: {differ}"
    return ""


def run_one(scenario, site, place):
    with tempfile.TemporaryDirectory() as folder:
        result = scenario(folder, site, place)
        left = [name for name in os.listdir(folder) if ".part" in name]
        return result, left, (read(f"{folder}/sites") or b"").decode().splitlines()


def try_one(scenario, site, place, usual):
    """What came of it, and the verdict. Who is silent is asked again: beside other work it may be that a client gave up too early."""
    for _ in range(3):
        result, left, _ = run_one(scenario, site, place)
        verdict = judge(result, usual, PROGRAM[scenario]) or (f"left {left}" if left else "")
        if not verdict.startswith("silent"):
            break
    return result, verdict


def start_broker(place):
    port = script.free_port()
    with open(f"{place}/broker", "w") as file:
        file.write(str(port))
    broker = subprocess.Popen(["mosquitto", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    script.wait_port(port)
    return broker


def prepare(place):
    """What all runs read."""
    script.write_sound(f"{place}/in.wav", sound(.5))
    script.write_sound(f"{place}/other.wav", sound(.7), rate=22050)
    script.write_sound(f"{place}/stereo.wav", sound(.5, channels=2), channels=2)
    for name in ("clients", "admins", "state"):
        os.mkdir(f"{place}/{name}")
    for name in ("server", "clients/alice", "admins/root"):
        subprocess.run([f"{BUILD}/tests/faulty_ssm", "keys", f"{place}/{name}"], check=True, stdout=subprocess.DEVNULL)
    os.rename(f"{place}/clients/alice_secret", f"{place}/alice_secret")
    os.rename(f"{place}/admins/root_secret", f"{place}/root_secret")
    with tempfile.TemporaryDirectory() as folder:  # a state to go on from
        daemon(folder, None, place)
        shutil.rmtree(f"{place}/state")
        shutil.copytree(f"{folder}/state", f"{place}/state")


def name_callers(program, line):
    """The site's function and its callers as file:line."""
    site, function, *offsets = line.split()
    found = subprocess.run(["addr2line", "-s", "-e", program, *(f"{int(at, 16) - 1:x}" for at in offsets)], capture_output=True, text=True).stdout
    found = re.sub(r" \(discriminator \d+\)", "", found)
    return f"{site} {function} at {' < '.join(found.split())}"


def fail_everywhere(scenario, place):
    """Fails a site at a time; gives what is wrong."""
    usual, sites = None, {}
    for _ in range(3):  # threads meet in different orders
        usual, _, lines = run_one(scenario, None, place)
        sites.update((line.split()[0], line) for line in lines)
    assert sites and usual.code == 0, usual
    wanted = sorted(sites)
    if SITES and SITES < len(wanted):
        wanted = random.Random(int(os.environ.get("FAULTS_SEED", 1))).sample(wanted, SITES)
    wrong, fired = [], 0
    log = open(os.environ.get("FAULTS_LOG", os.devnull), "a")
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for site, (result, verdict) in zip(wanted, pool.map(lambda site: try_one(scenario, site, place, usual), wanted)):
            fired += result.fired
            log.write(json.dumps([scenario.__name__, sites[site], result.fired, result.code, verdict,
                                  [line for line in result.said if words(line) not in {words(one) for one in usual.said}]]) + "\n")
            if verdict:
                wrong.append(f"{name_callers(PROGRAM[scenario], sites[site])}: {verdict}; {result.code}; {result.said[-4:]}")
    print(f"{scenario.__name__}: {len(sites)} sites, {len(wanted)} tried, {fired} failed, {len(wrong)} of them wrongly")
    return wrong


PROGRAM = {check: f"{BUILD}/tests/faulty_ssm", denoise: f"{BUILD}/tests/faulty_ssm", tag: f"{BUILD}/tests/faulty_ssm",
           daemon: f"{BUILD}/tests/faulty_ssmd"}


def case(scenario):
    def one():
        with tempfile.TemporaryDirectory() as place, start_broker(place) as broker:
            try:
                prepare(place)
                wrong = fail_everywhere(scenario, place)
            finally:
                broker.terminate()
            assert not wrong, "\n".join(wrong)
    one.__name__ = f"{scenario.__name__}_fails_cleanly"
    return one


# Asks for nothing, or only what our other calls ask for; what printf couldn't write shows in fflush and fclose. PortAudio, posix_spawn's
# lists and libudev are a sound device's helper's, which ends and is started again (tests/test_card.c, tests/test_devices.py).
HARMLESS = re.compile(r"""
    _.*|mem.*|str.*|explicit_bzero|pthread_(?!create).*|(nano|clock_nano)sleep|clock_gettime|gmtime_r|timegm|sig.*|sem_.*|get(env|eu|gr|opt|p|r[lu]|sock(opt|name)|u).*|inet_ntop|
    (set)?(env|priority|vbuf).*|adjtimex|umask|kill|waitpid|_?exit|opt.*|std.*|environ|isatty|sysconf|prctl|munmap|madvise|sync_file_range|syscall|free.*|gai_strerror|
    (f|v|s|vs|vf)?n?printf|f?put.*|fwrite|f(error|eof)|clearerr|fgetc|fileno|closedir|alphasort|qsort|t(find|destroy)|dl(sym|addr|error)|
    a?(erf|exp|log|pow|sqrt|sin|cos|f(loor|max|min|mod)|l?lr(ound|int)|ldexp|round|abs)[a-z0-9]*|
    json_(delete|equal|null|number_value|integer_value|dumpf|string_.*|object_(get|size|iter|key).*|array_(get|size))|
    zmq_(close|ctx_(set|shutdown|term)|curve_.*|z85_.*|errno|strerror|getsockopt|msg_(?!recv).*)|uv_(async_send|close|loop_close|run|stop|strerror)|
    MHD_(destroy_response|get_connection_info|stop_daemon)|yaml_(event_delete|parser_(delete|set_.*))|kiss_fft|
    sf_(command|error.*|format_check|strerror|write_sync)|speex_echo_.*|XXH.*|Pa_.*|posix_spawn.*|udev_.*|
    mosquitto_(connack_string|.*_set|destroy|disconnect|int_option|lib_init|socket|strerror|want_write)|""", re.X)


def every_call_that_can_fail_is_tried():
    objects = [path for room in ("config", "dsp", "kernels", "model", "daemon", "clients") for path in glob.glob(f"{BUILD}/{room}/*.o")]
    said = subprocess.run(["nm", *objects], capture_output=True, text=True, check=True).stdout
    called, ours = (set(re.findall(pattern, said, re.M)) for pattern in (r"^ +U (\w+)", r"^\w+ [A-Za-z] (\w+)"))
    tried = set(re.findall(r"^FAULT\w*\([^,]*, (\w+)", open("tests/faults.c").read(), re.M))
    left = [name for name in called - ours - tried if not HARMLESS.fullmatch(name)]
    assert not left, f"a row of tests/faults.c, or of HARMLESS, for {sorted(left)}"


if __name__ == "__main__":
    sys.exit(script.run(every_call_that_can_fail_is_tried, *(case(s) for s in PROGRAM if ONLY in s.__name__)))
