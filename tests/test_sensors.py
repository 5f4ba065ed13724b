#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A sensor's lines into the real daemon, by every transport; the same events as `ssm tag` finds in them."""

import json
import math
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import msgpack
import zmq

import script
from script import SSM, SSMD

MODEL = "tests/data/tiny-sensor.safetensors"
START = 1_700_000_000.0  # a date


def rows(n=300):
    """(time, ax, ay, az), irregular, with a second's pause and a few lost."""
    for i in range(n):
        t = START + 0.01 * i + (0.003 if i % 5 == 0 else 0) + (2.0 if i >= 200 else 0)
        if i % 17 != 3:
            yield round(t, 4), *(round(math.sin(i * k / 30), 3) for k in (1, 2, 3))


def json_lines():
    return [json.dumps({"t": t, "ax": x, "ay": y, "az": z}) for t, x, y, z in rows()]


def csv_lines():
    return ["time,ax,ay,az"] + [f"{t},{x},{y},{z}" for t, x, y, z in rows()]


def told_by_tool(folder, ending, lines):
    with open(f"{folder}/in.{ending}", "w") as file:
        file.write("\n".join(lines) + "\n")
    text = subprocess.run([SSM, "tag", f"{folder}/in.{ending}", "--model", MODEL, "--step"], capture_output=True, text=True,
                          check=True).stdout
    events = [{**json.loads(line), "source": "pump", "channel": 0} for line in text.splitlines()]
    assert len(events) > 5 and any("cut" in event for event in events), events
    return events


class Daemon:
    def __init__(self, folder, source, sinks=None, more=""):
        self.lines = f"{folder}/out.jsonl"
        sinks = sinks or f"[{{type: publish}}, {{type: jsonl, path: {self.lines}}}]"
        with open(f"{folder}/c.yaml", "w") as file:
            file.write(f"version: 1\nnode: here\ndevice: cpu\npublish: ipc://{folder}/pub\n{more}pipelines:\n  pump:\n"
                       f"    source: {{type: sensor, {source}}}\n    model: {MODEL}\n    sinks: {sinks}\n")
        self.process = subprocess.Popen([SSMD, "--config", f"{folder}/c.yaml"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, wanted=()):
        """Let what was sent arrive: all events but those that end with it; then drain. Gives stderr."""
        until = time.monotonic() + 20
        while wanted and len(self.events()) < len(wanted) - 1 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, status=0, text=None):
        _, err = self.process.communicate(text, timeout=30)
        assert self.process.returncode == status, (self.process.returncode, err)
        return err

    def events(self):
        return [json.loads(line) for line in open(self.lines)]


def stdin_gives_what_the_tool_finds():
    for ending, lines in (("jsonl", json_lines()), ("csv", csv_lines())):
        with tempfile.TemporaryDirectory() as folder:
            wanted = told_by_tool(folder, ending, lines)
            daemon = Daemon(folder, f"transport: stdin, format: {ending}")
            err = daemon.wait(text="\n".join(lines))  # the last line without its end
            assert daemon.events() == wanted, (daemon.events()[:2], wanted[:2], err)
            assert f"drained: {len(lines) - (ending == 'csv')} hops in" in err, err


def the_demo_stands_and_walks():
    text = subprocess.run([SSM, "tag", "tests/data/demo-motion.csv", "--model", "motion"], capture_output=True, text=True, check=True).stdout
    told = [(event["label"], event["t0"], event["t1"]) for event in map(json.loads, text.splitlines())]
    assert told == [("standing", 0, 4.5), ("walking", 5.1, 10)], told  # as README says


def udp_takes_datagrams():
    with tempfile.TemporaryDirectory() as folder:
        port, lines = script.free_port(socket.SOCK_DGRAM), json_lines()
        wanted = told_by_tool(folder, "jsonl", lines)
        daemon = Daemon(folder, f"transport: udp, listen: 127.0.0.1:{port}, reorder: 40ms")
        script.wait_ready(daemon.process)
        order = list(range(len(lines)))
        order[50], order[51] = order[51], order[50]  # out of order, within the window
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for i in order:
                out.sendto(lines[i].encode(), ("127.0.0.1", port))
                time.sleep(0.0005)
        err = daemon.end(wanted)
        assert daemon.events() == wanted and "late_reading" not in err, err


def dropped_datagrams_are_counted():
    with tempfile.TemporaryDirectory() as folder:
        port, sent = script.free_port(socket.SOCK_DGRAM), 5000
        daemon = Daemon(folder, f"transport: udp, listen: 127.0.0.1:{port}, buffer: 60s")
        script.wait_ready(daemon.process)
        daemon.process.send_signal(signal.SIGSTOP)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for i in range(sent):
                out.sendto(b'{"t": %d.%03d, "ax": 0, "ay": 0, "az": 1}' % (i // 100, i % 100 * 10), ("127.0.0.1", port))
            daemon.process.send_signal(signal.SIGCONT)
            time.sleep(1)
            out.sendto(b'{"t": 60, "ax": 0, "ay": 0, "az": 1}', ("127.0.0.1", port))  # tells of those before it
        err = daemon.end()
        dropped, hops = int(err.split(" datagrams socket_full")[0].split()[-1]), int(err.split(" hops in")[0].split()[-1])
        assert dropped > 100 and dropped + hops == sent + 1, (dropped, hops, err)


def tcp_takes_one_after_the_other():
    with tempfile.TemporaryDirectory() as folder:
        port, lines = script.free_port(socket.SOCK_STREAM), csv_lines()
        wanted = told_by_tool(folder, "csv", lines)
        daemon = Daemon(folder, f"transport: tcp, listen: 127.0.0.1:{port}, format: csv")
        script.wait_ready(daemon.process)
        for part in (lines[:100], lines[:1] + lines[100:]):  # each begins with the header
            with socket.create_connection(("127.0.0.1", port)) as out:
                out.sendall("\n".join(part).encode())
            time.sleep(0.2)
        daemon.end(wanted)
        assert daemon.events() == wanted


def who_vanishes_keeps_nobody_out():
    """A machine that is switched off says nothing; its connection was kept for ever, and the one it came back with waited."""
    with tempfile.TemporaryDirectory() as folder:
        port, lines = script.free_port(), json_lines()
        wanted = told_by_tool(folder, "jsonl", lines)
        daemon = Daemon(folder, f"transport: tcp, listen: 127.0.0.1:{port}")
        script.wait_ready(daemon.process)
        with socket.create_connection(("127.0.0.1", port)) as first:
            first.sendall(("\n".join(lines[:100]) + "\n").encode())
            time.sleep(0.5)
            try:
                first.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: closed without a word
            except PermissionError:
                print("skipped: vanishing takes CAP_NET_ADMIN")
        with socket.create_connection(("127.0.0.1", port)) as second:
            second.sendall(("\n".join(lines[100:]) + "\n").encode())
            daemon.end(wanted)
        assert daemon.events() == wanted, daemon.events()


def zeromq_pull_and_sub():
    context, lines = zmq.Context.instance(), json_lines()
    for transport, kind in (("pull", zmq.PUSH), ("sub", zmq.PUB)):
        with tempfile.TemporaryDirectory() as folder:
            wanted, end = told_by_tool(folder, "jsonl", lines), f"ipc://{folder}/in"
            out = context.socket(kind)
            if transport == "sub":
                out.bind(end)
            source = f"transport: pull, listen: '{end}'" if transport == "pull" else \
                f"transport: sub, connect: '{end}', topic: vibration/"
            daemon = Daemon(folder, source)
            script.wait_ready(daemon.process)
            if transport == "pull":
                out.connect(end)
            time.sleep(0.3)  # PUB leaves out who isn't there yet
            for line in lines:
                if transport == "pull":
                    out.send(line.encode())
                else:
                    out.send_multipart([b"other/", b"no line"])
                    out.send_multipart([b"vibration/1", line.encode()])
                    time.sleep(0.0005)  # SUB doesn't slow PUB down
            err = daemon.end(wanted)
            out.close(0)
            assert daemon.events() == wanted and "bad_line" not in err, err


class Broker:
    """A real one, on a port of its own."""

    def __init__(self, folder, more=""):
        self.folder, self.port = folder, script.free_port()
        with open(f"{folder}/broker.conf", "w") as file:
            file.write(f"listener {self.port} 127.0.0.1\n{more or 'allow_anonymous true'}\n")
        self.start()

    def start(self):
        self.process = subprocess.Popen(["/usr/sbin/mosquitto", "-c", f"{self.folder}/broker.conf"], stderr=subprocess.DEVNULL)
        script.wait_port(self.port)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)

    def publish(self, topic, lines, *more):
        """A message a line."""
        subprocess.run(["mosquitto_pub", "-p", str(self.port), "-t", topic, "-q", "1", "-l", *more], check=True, text=True,
                       input="\n".join(lines) + "\n")


def wait_said(process, words):
    """The lines of stderr up to one with these words."""
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return said
    raise AssertionError(said)


def mqtt_gives_messages_and_comes_again():
    with tempfile.TemporaryDirectory() as folder:
        broker, lines = Broker(folder), json_lines()
        wanted = told_by_tool(folder, "jsonl", lines)
        broker.publish("plant/old/vibration", [lines[-1]], "-r")  # retained: of unknown age, so never taken
        http = f"127.0.0.1:{script.free_port()}"
        daemon = Daemon(folder, f"transport: mqtt, connect: 'mqtt://127.0.0.1:{broker.port}', topic: plant/+/vibration, qos: 1",
                        more=f"http: {http}\n")
        wait_said(daemon.process, "gives plant/+/vibration, qos 1")
        broker.publish("plant/1/other", ["no line"])
        broker.publish("plant/1/vibration", lines[:150])
        time.sleep(0.5)
        broker.stop()
        wait_said(daemon.process, "gives nothing")
        page = urllib.request.urlopen(f"http://{http}/metrics").read().decode()
        assert 'ssmd_source_state{pipeline="pump",type="sensor",state="lost"} 1' in page, page
        health = json.load(urllib.request.urlopen(f"http://{http}/health"))
        assert any("is not connected" in json.dumps(reason) for reason in health["reasons"]), health
        broker.start()
        wait_said(daemon.process, "gives plant/+/vibration, qos 1")
        broker.publish("plant/2/vibration", lines[150:])
        err = daemon.end(wanted)
        broker.stop()
        assert daemon.events() == wanted and "bad_line" not in err and "late_reading" not in err, (daemon.events()[:2], err)


def a_broker_that_hangs_up_each_time_is_asked_less_often():
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        met = []

        def hang_up():
            while True:
                client, _ = listener.accept()
                met.append(time.monotonic())
                with client:
                    client.recv(1000)
                    client.sendall(b"\x20\2\0\0")  # connected
                    client.recv(1000)
                    client.sendall(b"\x90\3\0\1\0")  # subscribed

        threading.Thread(target=hang_up, daemon=True).start()
        daemon = Daemon(folder, f"transport: mqtt, connect: 'mqtt://127.0.0.1:{listener.getsockname()[1]}', topic: plant")
        time.sleep(6)
        daemon.process.terminate()
        said = daemon.process.communicate(timeout=20)[1]
        assert 2 <= len(met) <= 5 and "Success" not in said, (len(met), said)  # after .5, 1, 2, 4 s; each .5 s it would be 11


def mqtt_with_a_password_and_tls():
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("ok", "right\n"), ("bad", "wrong\n")):
            with open(f"{folder}/{name}", "w") as file:
                file.write(text)
        with open(f"{folder}/users", "w"):
            pass
        subprocess.run(["mosquitto_passwd", "-b", f"{folder}/users", "pump", "right"], check=True, capture_output=True)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=DNS:localhost", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"],
                       check=True, capture_output=True)
        broker = Broker(folder, f"user root\npassword_file {folder}/users\ncertfile {folder}/cert.pem\nkeyfile {folder}/key.pem")
        for ca, password, words in (("cert", "ok", "gives vibration, qos 0"), ("cert", "bad", "not authorised"),
                                    (None, "ok", "gives nothing")):
            source = (f"transport: mqtt, connect: 'mqtts://localhost:{broker.port}', topic: vibration, user: pump, "
                      f"password_file: {folder}/{password}" + (f", ca: {folder}/{ca}.pem" if ca else ""))
            daemon = Daemon(folder, source)
            said = wait_said(daemon.process, words)
            if "qos" in words:
                for i in range(0, len(json_lines()), 100):  # all at once are more than its queue holds while the engine is late
                    broker.publish("vibration", json_lines()[i : i + 100], "--cafile", f"{folder}/cert.pem", "-h", "localhost",
                                   "-u", "pump", "-P", "right")
                    time.sleep(0.2)
                time.sleep(0.5)
            err = daemon.end()
            assert ("qos" in words) == (f"{len(json_lines())} hops in" in err), (words, said, err)
        broker.stop()


def subscribers_get_the_sources_time():
    with tempfile.TemporaryDirectory() as folder:
        sub = zmq.Context.instance().socket(zmq.SUB)
        sub.connect(f"ipc://{folder}/pub")
        sub.subscribe("")
        daemon = Daemon(folder, "transport: stdin", "[{type: publish}]")
        script.wait_ready(daemon.process)
        while not sub.recv_multipart()[0].startswith(b"meta/"):
            pass
        lines = json_lines()
        arrived = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        daemon.process.stdin.write("\n".join(lines[:250]) + "\n")
        daemon.process.stdin.flush()
        heard = {}
        while len(heard.get("tags", [])) < 250:
            assert sub.poll(10000), "nothing comes"
            topic, header, payload = sub.recv_multipart()
            heard.setdefault(topic.decode().split("/")[0], []).append((msgpack.unpackb(header), payload))
        daemon.end()
        sub.close(0)
        times = [t for t, *_ in rows()]
        for i, (header, payload) in enumerate(heard["tags"][:250]):
            assert header["clk"] == "src" and header["sr"] == 1_000_000 and header["shp"] == [2], header
            begin = max(times[i], times[i - 1] + 0.01 if i > 0 else 0)
            assert abs(header["tw"] / 1e9 - begin) < 1e-5, (i, header["tw"], begin)
            assert abs(header["n"] / 1e6 - (times[i] + 0.01 - begin)) < 2e-6, (i, header)
            assert 0 <= header["tm"] + header["cap"] - arrived < 10e9, header  # when it came, by our clock
        gaps = heard["gap"]
        assert len(gaps) == 1 and 1.9e6 < gaps[0][0]["n"] < 2.1e6, gaps
        assert gaps[0][0]["lost"]["why"] == "missing_reading", gaps
        first = msgpack.unpackb(heard["event"][0][1])
        assert START - 1e-4 <= first["t0"] < START + 1 and first["event"] == "begin", first


def bad_lines_are_counted_and_one_is_quoted():
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(folder, "transport: stdin, least: -2, most: 2, time: t")
        lines = json_lines()[:20]
        lines[3:3] = ['{"t.": \x01', '{"t": 1, "ax": 5, "ay": 0, "az": 0}', '{"ax": 0, "ay": null, "az": 1}', "x" * 20000, ""]
        err = daemon.wait(text="\n".join(lines) + "\n")
        assert '"{"t.": ."; more of them' in err and err.count("can't be taken") == 1, err
        assert "3 lines bad_line" in err and "1 readings missing_reading" in err and "20 hops in, 20 out" in err, err


def checked(folder):
    done = subprocess.run([SSM, "check", f"{folder}/c.yaml"], capture_output=True, text=True)
    return done.returncode, done.stderr


def sensors_and_models_that_do_not_fit_are_refused():
    with tempfile.TemporaryDirectory() as folder:
        for source, words in [("transport: stdin, fields: [ax, az, ay]", "takes az as its channel 2, not 1"),
                              ("transport: stdin, fields: [a, b, a]", "name a twice, as channels 0 and 2"),
                              ("transport: stdin, fields: [ax, ay]", "are not 3, as many as"),
                              ("transport: stdin, fields: [a, b, c], units: [g, g, m]", 'channel 2 in g, and the source gives "m"'),
                              ("transport: tcp, listen: 256.1.1.1:9000", "256.1.1.1:9000")]:
            err = Daemon(folder, source).wait(status=78)
            assert words in err, (words, err)
            code, said = checked(folder)  # check and start agree, but for addresses
            assert "256" in source or (code == 78 and words in said), (code, said)
        port = script.free_port(socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", port))
            err = Daemon(folder, f"transport: udp, listen: 127.0.0.1:{port}").wait(status=69)
            assert "Address already in use" in err, err


if __name__ == "__main__":
    sys.exit(script.run(the_demo_stands_and_walks, stdin_gives_what_the_tool_finds, udp_takes_datagrams, dropped_datagrams_are_counted,
                        tcp_takes_one_after_the_other, who_vanishes_keeps_nobody_out, zeromq_pull_and_sub, mqtt_gives_messages_and_comes_again,
                        a_broker_that_hangs_up_each_time_is_asked_less_often,
                        mqtt_with_a_password_and_tls, subscribers_get_the_sources_time,
                        bad_lines_are_counted_and_one_is_quoted, sensors_and_models_that_do_not_fit_are_refused))
