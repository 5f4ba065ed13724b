#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Subscribers that stop, crawl or die beside others that read: the daemon's memory is bounded, the others hardly notice, and
each one knows exactly what it lost.

`make soak-subscribers` is SUBSCRIBERS=100 SECONDS=30."""

import json
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time

import msgpack
import zmq

import script
from script import SANITIZED, SSM

MODEL = "tests/data/tiny-denoise.safetensors"
HOP = 160
STREAMS = int(os.environ.get("STREAMS", 4))
ALL = int(os.environ.get("SUBSCRIBERS", 20))
SECONDS = float(os.environ.get("SECONDS", 4))
STOPPED, SLOW, KILLED, MEASURED = ALL // 10, max(1, ALL // 20), max(1, ALL // 20), 4
RSS_MOST = (512 << 20) if SANITIZED else 16 << 20
P99_MOST, P99_MORE = (1.05, 0) if ALL >= 100 else (3, 20)  # ms; a few seconds on a busy machine tell no better


def resident(pid):
    return int(open(f"/proc/{pid}/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")


def subscribe(address, topic, waiting=1000, bytes_waiting=-1):
    one = zmq.Context.instance().socket(zmq.SUB)
    one.rcvhwm, one.rcvbuf = waiting, bytes_waiting
    one.connect(address)
    one.subscribe(topic)
    return one


class Ledger:
    """What one subscriber has and has lost, by topic."""

    def __init__(self):
        self.first, self.next, self.got, self.lost = {}, {}, {}, {}

    def note(self, topic, seq):
        due = self.next.get(topic, seq)
        assert seq >= due, (topic, seq, due)  # nothing twice, nothing late
        self.first.setdefault(topic, seq)
        self.got[topic] = self.got.get(topic, 0) + 1
        self.lost[topic] = self.lost.get(topic, 0) + seq - due
        self.next[topic] = seq + 1

    def is_exact(self):
        return all(self.got[t] + self.lost[t] == self.next[t] - self.first[t] for t in self.got)


def report(out, name, ledgers, ages):
    out.put((name, sum(sum(x.lost.values()) for x in ledgers), all(x.is_exact() and x.got for x in ledgers), ages))


def read(sockets, ledgers, at, quick):
    """Read what there is of one socket; of the quick ones the ages in ns."""
    ages = []
    while sockets[at].poll(0):
        topic, header, payload = sockets[at].recv_multipart()
        header = msgpack.unpackb(header)
        if quick:
            ages.append(time.monotonic_ns() - header["tm"] - header["cap"])
        ledgers[at].note(topic, header["seq"])
    return ages


def reader(address, n, measured, phase, out):
    """n subscribers to one stream that read all there is; of `measured` the 99th percentile of (now - arrived here) by phase."""
    sockets = [subscribe(address, "audio/here/p0/") for _ in range(n)]
    ledgers = [Ledger() for _ in sockets]
    poller = zmq.Poller()
    for one in sockets:
        poller.register(one, zmq.POLLIN)
    index = {one: i for i, one in enumerate(sockets)}
    ages = {}
    while phase.value >= 0:
        for one, _ in poller.poll(200):
            ages.setdefault(phase.value, []).extend(read(sockets, ledgers, index[one], measured))
    report(out, "measured" if measured else "quiet", ledgers, ages if measured else {})


def crawler(address, n, phase, out):
    """n subscribers to all streams that take one message in a hundred, and at the end what is left."""
    sockets = [subscribe(address, "audio/", 10, 1 << 14) for _ in range(n)]
    ledgers = [Ledger() for _ in sockets]
    while phase.value >= 0:
        for one, ledger in zip(sockets, ledgers):
            if one.poll(0):
                topic, header, payload = one.recv_multipart()
                ledger.note(topic, msgpack.unpackb(header)["seq"])
        time.sleep(1 / STREAMS if phase.value > 0 else 0)
    final = time.monotonic() + 60
    while time.monotonic() < final and any(one.poll(1000) for one in sockets):
        for i in range(n):
            read(sockets, ledgers, i, False)
    report(out, "slow", ledgers, {})


def start_watchers(address, folder, name, n):
    files = [open(f"{folder}/{name}{i}", "w") for i in range(n)]
    return [subprocess.Popen([SSM, "watch", "audio/", "--json", "--connect", address], stdout=file, stderr=subprocess.DEVNULL)
            for file in files]


def watched(path):
    """What the tool told: messages that came and numbers it said were lost, by topic."""
    ledger, told = Ledger(), {}
    for line in open(path):
        entry = json.loads(line)
        if "lost" in entry:
            told[entry["lost"]] = told.get(entry["lost"], 0) + entry["to"] - entry["from"]
        else:
            ledger.note(entry["topic"], entry["header"]["seq"])
    return ledger, told


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def start_daemon(folder, address):
    sound = random.Random(3)
    script.write_sound(f"{folder}/in.wav", struct.pack(f"<{HOP}h", *(sound.randrange(-8000, 8000) for _ in range(HOP))))
    with open(f"{folder}/c.yaml", "w") as file:
        file.write(f"version: 1\nnode: here\ndevice: cpu\nthreads: 1\npublish: {address}\ncontrol: ''\npipelines:\n")
        for i in range(STREAMS):
            file.write(f"  p{i}:\n    source: {{type: file, path: {folder}/in.wav, loop: true}}\n    model: {MODEL}\n"
                       "    sinks: [{type: publish}]\n")
    process = script.start(f"{folder}/c.yaml")
    return process


def those_who_stop_crawl_or_die_cost_little():
    """Four phases, all well and not, twice; 0 and 2 are well. Who is stopped for longer than the heartbeat's 3 s is cut off, and who
    doesn't read can't answer it: both come back by themselves."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"tcp://127.0.0.1:{script.free_port()}"
        daemon = start_daemon(folder, address)
        phase, out = multiprocessing.Value("i", 0), multiprocessing.Queue()
        quiet = ALL - STOPPED - SLOW - KILLED - MEASURED
        processes = [multiprocessing.Process(target=reader, args=(address, n, measured, phase, out))
                     for n, measured in ((MEASURED, True), (quiet, False))]
        processes.append(multiprocessing.Process(target=crawler, args=(address, SLOW, phase, out)))
        for process in processes:
            process.start()
        stopped = start_watchers(address, folder, "stopped", STOPPED)
        victims = start_watchers(address, folder, "killed", KILLED)
        try:
            time.sleep(2)
            before = most = resident(daemon.pid)
            for number in range(4):
                ill = number % 2 == 1
                for process in stopped:
                    process.send_signal(signal.SIGSTOP if ill else signal.SIGCONT)
                if ill:
                    for process in victims:
                        process.kill()
                time.sleep(1)
                phase.value = number
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    time.sleep(.1)
                    most = max(most, resident(daemon.pid))
                phase.value = 0 if number == 3 else phase.value
            for process in stopped:
                process.send_signal(signal.SIGCONT)
            time.sleep(SECONDS / 2 + 2)  # they catch up
            daemon.terminate()
            daemon.communicate(timeout=60)
            time.sleep(1)
            phase.value = -1
            results = {name: rest for name, *rest in (out.get(timeout=120) for _ in processes)}
            for process in stopped:
                process.send_signal(signal.SIGINT)
                process.wait()
        finally:
            for process in processes + stopped + victims + [daemon]:
                process.kill()
        ages = results["measured"][2]
        well, ill = (percentile(sum((ages.get(k, []) for k in keys), []), .99) / 1e6 for keys in ((0, 2), (1, 3)))
        lost = 0
        for i in range(STOPPED):
            ledger, told = watched(f"{folder}/stopped{i}")
            topics = set(ledger.got)
            assert len(topics) == STREAMS and ledger.is_exact(), (i, len(topics))
            assert all(told.get(t, 0) == ledger.lost[t] for t in topics), (told, ledger.lost)
            lost += sum(told.values())
        print(f"{ALL} subscribers, {STOPPED} stopped, {SLOW} at 1 %, {KILLED} killed, {STREAMS} streams, {SECONDS:.0f} s a phase: "
              f"memory {before >> 20} MiB + {(most - before) / (1 << 20):.1f} MiB; the others' p99 {well:.2f} ms, "
              f"{ill:.2f} ms beside them; the stopped lost {lost}, the slow {results['slow'][0]}, the others "
              f"{results['quiet'][0] + results['measured'][0]}, all told")
        assert all(exact for _, exact, _ in results.values()), {name: rest[:2] for name, rest in results.items()}
        assert SANITIZED or results["quiet"][0] == results["measured"][0] == 0
        assert lost > 0, "nobody's queue ran full: the phases are too short to show a thing"
        assert most - before <= RSS_MOST
        assert ill <= P99_MOST * well + P99_MORE, (well, ill)


if __name__ == "__main__":
    sys.exit(script.run(those_who_stop_crawl_or_die_cost_little))
