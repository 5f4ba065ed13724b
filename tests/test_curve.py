#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Who may come in over ZeroMQ: keys, the real daemon behind CURVE, and strangers of each kind."""

import json
import os
import random
import stat
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

import msgpack
import zmq
import zmq.auth

import script
from script import SSM, SSMD

MODEL = "tests/data/tiny-denoise.safetensors"
HOP = 160


def tool(*words, status=0):
    done = subprocess.run([SSM, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, (words, done)
    return done.stdout if status == 0 else done.stderr


class Guarded:
    """A daemon on TCP ports of its own with a key, the client alice and the admin root."""

    def __init__(self, folder, clients=None, more="", source=None):
        self.folder = folder
        self.port = script.free_port()
        self.publish, self.control = (f"tcp://127.0.0.1:{port}" for port in (self.port, script.free_port()))
        for name in ("clients", "admins"):
            os.mkdir(f"{folder}/{name}")
        self.keys = {name: tool("keys", f"{folder}/{name}").strip() for name in ("server", "mallory")}
        for place, name in (("clients", "alice"), ("admins", "root")):
            self.keys[name] = tool("keys", f"{folder}/{place}/{name}").strip()
            os.rename(f"{folder}/{place}/{name}_secret", f"{folder}/{name}_secret")
        sound = random.Random(3)
        script.write_sound(f"{folder}/in.wav", struct.pack(f"<{HOP}h", *(sound.randrange(-8000, 8000) for _ in range(HOP))))
        with open(f"{folder}/c.yaml", "w") as file:
            file.write(f"version: 1\nnode: here\ndevice: cpu\npublish: {self.publish}\ncontrol: {self.control}\n"
                       f"curve: {{secret: {folder}/server_secret, clients: {clients or folder + '/clients'}, "
                       f"admins: {folder}/admins}}\n{more}pipelines:\n  p:\n"
                       f"    source: {{{source or f'type: file, path: {folder}/in.wav, loop: true'}}}\n    model: {MODEL}\n"
                       "    sinks: [{type: publish}]\n")
        self.process = script.start(f"{folder}/c.yaml")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def as_(self, name):
        return ["--server-key", f"{self.folder}/server", "--key", f"{self.folder}/{name}_secret"]

    def ctl(self, *words, status=0):
        told = tool("ctl", *words, "--json", "--wait", "2", "--connect", self.control, status=status)
        return json.loads(told) if status == 0 else told

    def watch(self, *words):
        """The first message that comes within 3 s, or None."""
        try:
            done = subprocess.run([SSM, "watch", "audio/", "--count", "1", "--json", "--connect", self.publish, *words],
                                  capture_output=True, text=True, timeout=3)
        except subprocess.TimeoutExpired:
            return None
        return json.loads(done.stdout.splitlines()[0])

    def connect(self, kind, address, name):
        """A socket with somebody's key, or without any."""
        one = zmq.Context.instance().socket(kind)
        one.linger, one.rcvtimeo = 0, 3000
        if name:
            one.curve_serverkey = self.keys["server"].encode()
            one.curve_publickey, one.curve_secretkey = zmq.auth.load_certificate(f"{self.folder}/{name}_secret")
        one.connect(address)
        return one

    def dealer(self, name):
        return self.connect(zmq.DEALER, self.control, name)

    def end(self):
        self.process.terminate()
        err = self.process.communicate(timeout=30)[1]
        assert self.process.returncode == 0, err
        return err


def keys_are_czmqs_files_and_never_replaced():
    with tempfile.TemporaryDirectory() as folder:
        public = tool("keys", f"{folder}/a").strip()
        assert stat.S_IMODE(os.stat(f"{folder}/a_secret").st_mode) == 0o600
        read, none = zmq.auth.load_certificate(f"{folder}/a")
        assert read.decode() == public and none is None
        read, secret = zmq.auth.load_certificate(f"{folder}/a_secret")
        assert read.decode() == public and zmq.curve_public(secret) == read
        before = open(f"{folder}/a_secret").read()
        assert "never replaced" in tool("keys", f"{folder}/a", status=73)
        os.unlink(f"{folder}/a_secret")
        assert "never replaced" in tool("keys", f"{folder}/a", status=73)
        assert not os.path.exists(f"{folder}/a_secret") and before
        assert json.loads(tool("keys", f"{folder}/b", "--json"))["public_key"] == zmq.auth.load_certificate(f"{folder}/b")[0].decode()


def allowed_come_in_and_nobody_else_does():
    with tempfile.TemporaryDirectory() as folder, Guarded(folder) as daemon:
        assert daemon.watch(*daemon.as_("alice"))["topic"].startswith("audio/here/p/0/")
        assert daemon.watch("--server-key", daemon.keys["server"], "--key", f"{folder}/root_secret")  # an admin may listen
        assert daemon.watch(*daemon.as_("mallory")) is None            # a key nobody allowed
        assert daemon.watch("--server-key", f"{folder}/server") is None  # one made up for this once
        assert daemon.watch() is None                                  # no CURVE at all
        assert daemon.watch("--server-key", daemon.keys["mallory"], "--key", f"{folder}/alice_secret") is None
        told = daemon.end()
        assert daemon.keys["mallory"] in told and "is not allowed" in told, told
        assert told.count("is not allowed") < 60, told  # it came again and again


def the_python_client_has_a_key():
    with tempfile.TemporaryDirectory() as folder, Guarded(folder) as daemon:
        sys.path.insert(0, "clients/python")
        import ssm_subscribe
        for server in (daemon.keys["server"], f"{folder}/server"):
            topic, header, samples = next(ssm_subscribe.messages("audio/", daemon.publish, server, f"{folder}/alice_secret"))
            assert topic.startswith("audio/here/p/") and len(samples) == header["n"] == HOP


def control_asks_who_and_only_admins_change():
    with tempfile.TemporaryDirectory() as folder, Guarded(folder) as daemon:
        told = daemon.ctl("describe", *daemon.as_("alice"))
        changing = {o["op"] for o in told["operations"] if o["admin"]}
        assert {o["op"] for o in told["operations"]} - changing == {"describe", "snapshot", "stream.list", "mem"}, changing
        assert daemon.ctl("stream.list", *daemon.as_("alice"))["streams"]
        assert daemon.ctl("mem", *daemon.as_("root"))["resident_bytes"]
        alice = daemon.dealer("alice")
        for op in sorted(changing):
            alice.send_string(json.dumps({"op": op, "args": {"stream": "p"}}))
            answer = json.loads(alice.recv())
            assert answer["err"]["code"] == "denied" and "curve.admins" in answer["err"]["msg"], answer
        alice.close()
        assert "curve.admins" in daemon.ctl("stream.reset", "p", *daemon.as_("alice"), status=77)
        assert "samples" in daemon.ctl("stream.reset", "p", *daemon.as_("root"))
        assert "no answer" in daemon.ctl("mem", *daemon.as_("mallory"), status=69)
        assert "--server-key" in daemon.ctl("mem", status=69)
        assert "--server-key" in daemon.ctl("mem", "--key", f"{folder}/alice_secret", status=64)
        assert "chmod" not in daemon.ctl("mem", *daemon.as_("alice"), status=0)
        os.chmod(f"{folder}/alice_secret", 0o644)
        assert "chmod 600" in daemon.ctl("mem", *daemon.as_("alice"), status=77)


def lists_are_read_again_when_they_change():
    with tempfile.TemporaryDirectory() as folder, Guarded(folder) as daemon:
        one = daemon.dealer("mallory")
        one.send(b'{"op": "mem"}')
        try:
            raise AssertionError(one.recv())
        except zmq.Again:
            pass
        with open(f"{folder}/mallory") as public, open(f"{folder}/clients/many", "w") as file:  # any number in a file
            file.write(f"# others\npublic-key = \"{'0' * 40}\"\n" + public.read())
        deadline = time.monotonic() + 15
        while not one.poll(500):
            assert time.monotonic() < deadline
        assert json.loads(one.recv())["ok"]
        os.unlink(f"{folder}/clients/many")  # requests are denied, then the connection ends
        answer = {"ok": True}
        while answer["ok"]:
            assert time.monotonic() < deadline
            one.send(b'{"op": "mem"}')
            answer = json.loads(one.recv()) if one.poll(1000) else {"ok": False, "err": {"code": "denied"}}
            time.sleep(.1)
        assert answer["err"]["code"] == "denied", answer
        one.close()


def a_subscriber_whose_key_goes_is_cut_off_alone():
    with tempfile.TemporaryDirectory() as folder:
        http = f"127.0.0.1:{script.free_port()}"
        with Guarded(folder, more=f"http: {http}\n") as daemon:
            def metric(name):
                text = urllib.request.urlopen(f"http://{http}/metrics").read().decode()
                return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"ssmd_{name} ")))

            def wait_for(name, value):
                deadline = time.monotonic() + 10
                while metric(name) != value:
                    assert time.monotonic() < deadline, (name, metric(name))
                    time.sleep(0.1)

            assert metric("subscribers") == 0
            ends, stays = daemon.connect(zmq.SUB, daemon.publish, "alice"), daemon.connect(zmq.SUB, daemon.publish, "root")
            for one in (ends, stays):
                one.subscribe("audio/")
                one.recv_multipart()
            wait_for("subscribers", 2)
            plain = daemon.connect(zmq.SUB, daemon.publish, None)
            deadline = time.monotonic() + 10
            while metric('clients_denied_total{reason="handshake"}') == 0:
                assert time.monotonic() < deadline
            plain.close()
            assert metric("subscribers") == 2
            denied = metric('clients_denied_total{reason="key"}')
            os.unlink(f"{folder}/clients/alice")
            gone, last = time.monotonic(), time.monotonic()
            due = None
            while time.monotonic() < gone + 4:
                header = msgpack.unpackb(stays.recv_multipart()[1])
                assert due in (None, header["seq"]), (due, header["seq"])  # who stays misses nothing
                due = header["seq"] + 1
                while ends.poll(0):
                    ends.recv_multipart()
                    last = time.monotonic()
            assert last < gone + 2.5, last - gone
            assert metric("subscribers") == 1
            assert metric('clients_denied_total{reason="key"}') > denied  # it comes again and again
            ends.close()
            stays.close()
            wait_for("subscribers", 0)


def any_is_everybody_with_the_servers_key():
    with tempfile.TemporaryDirectory() as folder, Guarded(folder, clients="any") as daemon:
        assert daemon.watch("--server-key", daemon.keys["server"])
        assert daemon.watch() is None
        assert daemon.ctl("mem", "--server-key", daemon.keys["server"])
        assert "curve.admins" in daemon.ctl("drain", "--server-key", daemon.keys["server"], status=77)


def sound_comes_in_from_allowed_clients_alone():
    with tempfile.TemporaryDirectory() as folder:
        port = script.free_port()
        source = f"type: pcm, path: 'pull:tcp://127.0.0.1:{port}', rate: 16000, format: s16le"
        with Guarded(folder, source=source) as daemon:
            def samples():
                return daemon.ctl("stream.list", *daemon.as_("alice"))["streams"][0]["samples"]

            def push(name):
                one = daemon.connect(zmq.PUSH, f"tcp://127.0.0.1:{port}", name)
                one.send(bytes(2 * HOP * 10))
                return one

            strangers = [push(None), push("mallory")]
            time.sleep(1)
            assert samples() == 0
            friend = push("alice")
            deadline = time.monotonic() + 10
            while samples() < 10 * HOP:
                assert time.monotonic() < deadline
            os.rename(f"{folder}/clients/alice", f"{folder}/clients/.alice")
            time.sleep(2.5)  # nothing more comes from her, over that connection or another
            friend.send(bytes(2 * HOP * 10))
            time.sleep(0.5)
            assert daemon.ctl("stream.list", *daemon.as_("root"))["streams"][0]["samples"] == 10 * HOP
            for one in strangers + [friend]:
                one.close()


def a_daemon_listens_to_another_one_by_its_key():
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/a")
        with Guarded(f"{folder}/a") as one:
            for key, hears in ((f"{folder}/a/server", True), (f"{folder}/a/mallory", False)):
                port = script.free_port()
                with open(f"{folder}/b.yaml", "w") as file:
                    file.write(f"version: 1\nnode: there\ndevice: cpu\npublish: tcp://127.0.0.1:{port}\n"
                               f"control: ipc://{folder}/b.control\n"
                               f"curve: {{secret: {folder}/a/alice_secret, clients: any}}\npipelines:\n  q:\n"
                               f"    source: {{type: pcm, path: 'sub:{one.publish}', rate: 16000, format: f32le, server_key: {key}}}\n"
                               f"    model: {MODEL}\n    sinks: [{{type: publish}}]\n")
                two = subprocess.Popen([SSMD, "--config", f"{folder}/b.yaml"], stderr=subprocess.PIPE, text=True)
                try:
                    script.wait_ready(two)
                    deadline, n = time.monotonic() + (10 if hears else 2), 0
                    while n == 0 and time.monotonic() < deadline:  # ipc needs no key
                        n = json.loads(tool("ctl", "stream.list", "--json", "--connect", f"ipc://{folder}/b.control"))["streams"][0]["samples"]
                    assert (n > 0) == hears, (key, n)
                finally:
                    two.kill()
                    two.communicate()


def what_is_wrong_with_keys_is_told_before_it_runs():
    with tempfile.TemporaryDirectory() as folder:
        tool("keys", f"{folder}/k")
        os.mkdir(f"{folder}/clients")
        tail = f"pipelines:\n  p:\n    source: {{type: file, path: x.wav}}\n    model: {MODEL}\n    sinks: [{{type: publish}}]\n"

        def start(curve, status):
            with open(f"{folder}/c.yaml", "w") as file:
                file.write(f"version: 1\npublish: tcp://127.0.0.1:{script.free_port()}\n{curve}\n{tail}")
            said = []
            for words in ([SSMD, "--config"], [SSM, "check"]):  # they answer alike
                done = subprocess.run([*words, f"{folder}/c.yaml"], capture_output=True, text=True, timeout=30)
                assert done.returncode == status, done
                said.append(next(line.removeprefix("ssmd: ") for line in done.stderr.splitlines() if "c.yaml:3:8: curve: " in line))
            assert said[0] == said[1], said
            return said[0]

        assert "can't be read" in start(f"curve: {{secret: {folder}/none, clients: any}}", 66)
        os.chmod(f"{folder}/k", 0o600)
        assert "no pair of keys" in start(f"curve: {{secret: {folder}/k, clients: any}}", 78)
        assert "can't be read" in start(f"curve: {{secret: {folder}/k_secret, clients: {folder}/none}}", 66)
        os.chmod(f"{folder}/k_secret", 0o604)
        assert "chmod 600" in start(f"curve: {{secret: {folder}/k_secret, clients: any}}", 77)
        open_to_all = f"version: 1\npublish: tcp://*:{script.free_port()}\n{tail}"
        for words, text in (([SSMD, "--check", "--config"], open_to_all), ([SSMD, "--config"], open_to_all), ([SSM, "check"], open_to_all)):
            with open(f"{folder}/c.yaml", "w") as file:
                file.write(text)
            done = subprocess.run([*words, f"{folder}/c.yaml"], capture_output=True, text=True, timeout=30)
            assert done.returncode == 78 and "c.yaml:2:10: publish: *:" in done.stderr + done.stdout, done
            assert "set curve:" in done.stderr + done.stdout, done


if __name__ == "__main__":
    sys.exit(script.run(keys_are_czmqs_files_and_never_replaced, allowed_come_in_and_nobody_else_does, the_python_client_has_a_key,
                        control_asks_who_and_only_admins_change, lists_are_read_again_when_they_change,
                        a_subscriber_whose_key_goes_is_cut_off_alone,
                        any_is_everybody_with_the_servers_key, sound_comes_in_from_allowed_clients_alone,
                        a_daemon_listens_to_another_one_by_its_key, what_is_wrong_with_keys_is_told_before_it_runs))
