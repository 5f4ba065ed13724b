#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run the GPU's benchmarks, keep what they say as JSON, and make README's table from it.

    gpu.py run [FOLDER]   runs build/release/tests/cuda/bench_* (and the scan's, with PyTorch), prints the table, and writes
                          FOLDER/<date>-<card>-<commit>.json (tests/bench/results)
    gpu.py collect FILES CARD COMMIT [FOLDER]
                          the same of JSON that the programs wrote elsewhere: FILES is a folder of it or a .tgz
    gpu.py table FILE...  the table of results that are there: one, or one a card

A result is {"name", "sizes", "median_us", "p99_us", "floor_us", "peer_us", "peer"}; what there isn't is null. A file is
{"date", "card", "commit", "results"}. Each program prints JSON of its own; `normal` is where they become one.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import tempfile

PROGRAMS = "build/release/tests/cuda"
SHOWN = ("step", "engine", "disk", "scan", "layers step", "cluster", "selective")  # rows of the table begin with one of these


def result(name, sizes, median, p99=None, floor=None, peer_us=None, peer=None):
    return {"name": name, "sizes": sizes, "median_us": median, "p99_us": p99, "floor_us": floor, "peer_us": peer_us,
            "peer": peer}


def kind(line):
    words = [line["precision"]] + ["int8 weights"] * line["int8"] + ["bf16 states"] * line["state_bf16"]
    return ", ".join(str(word) for word in words)


def engine(line):
    """Results of `ssm bench --json`: a stream, and many; of `--streams auto` the most that it found."""
    name = "engine's step of %s, %s" % (line["model"], line["precision"])
    runs = [line["many"]] if line.get("trials") else [line["one"], line["many"]]
    return [result(name, "%d stream%s" % (one["streams"], "s" * (one["streams"] != 1)), one["p50_us"], one["p99_us"])
            | {"p999_us": one["p99_9_us"], "steps": one["steps"]} for one in runs if one["streams"]]


def normal(line):
    """One result of a program's line, or None."""
    if "median_us" in line:
        return line
    if "times_real_time" in line:
        return result("disk to disk by %s" % line["model"], "%.0f s of audio" % (line["took_s"] * line["times_real_time"]),
                      1e6 * line["took_s"])
    if "halves_us" in line:
        us, p99 = min((line["us"], line["p99_us"]), (line["halves_us"], line["halves_p99_us"]))
        return result("layers step, " + kind(line), "4 layers, %d streams" % line["rows"], us, p99, line["floor_us"])
    if "linear" in line:
        return result("product, %d pieces%s" % (line["precision"], " int8" * line["int8"]),
                      "%d -> %d, %d rows" % (*line["linear"], line["rows"]), line["us"], line["p99_us"])
    if "together" in line:
        return result("cluster step, %s, %d a cluster" % (line["kind"], line["together"]),
                      "%d layers, %d streams" % (line["layers"], line["rows"]), line["us"], line["p99_us"],
                      peer_us=line.get("mamba_cuda_step_us"), peer="mamba_cuda_step")
    if "case" in line and "rows" in line:
        return result(line["case"], "%d rows" % line["rows"], line["us"], line["p99_us"], line["floor_us"])
    return None


def read(path):
    """Results of a file of JSON lines, or of one JSON list."""
    with open(path) as file:
        text = file.read()
    try:
        lines = json.loads(text)
        lines = lines if isinstance(lines, list) else [lines]
    except ValueError:
        lines = [json.loads(line.strip().rstrip(",")) for line in text.splitlines() if line.strip().startswith("{\"")
                 and line.strip().rstrip(",").endswith("}")]
    return [one for line in lines for one in (engine(line) if "many" in line else [normal(line)]) if one]


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commands(folder):
    """What to run, and where its JSON comes out: a file, or None for its standard output."""
    for name in ("step", "cluster"):
        path = os.path.join(folder, name)
        yield [PROGRAMS + "/bench_" + name, "--time", "--json", path], path
    yield [PROGRAMS + "/bench_layers", "--json"], None
    for precision in ("auto", "bf16", "bf16-state"):
        path = os.path.join(folder, precision)
        yield [PROGRAMS + "/bench_backend", "--json", path, "--precision", precision, "--threads", "4"], path
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0:
        path = os.path.join(folder, "scan")
        yield [sys.executable, "model/train/check_scan.py", "build/release/libssm_cuda.so", "--json", path], path


def run(folder):
    os.environ.setdefault("SSM_CUDA_LIBRARY", "build/release/libssm_cuda.so")
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for command, path in commands(scratch):
            print("--", " ".join(command), flush=True)
            done = subprocess.run(command, stdout=None if path else subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(done.returncode)
            if not path:
                path = os.path.join(scratch, "stdout")
                with open(path, "w") as file:
                    file.write(done.stdout)
            results += read(path) if os.path.exists(path) else []
    return keep(folder, results)


def collect(files, card, commit, folder="tests/bench/results"):
    with tempfile.TemporaryDirectory() as scratch:
        if os.path.isfile(files):
            subprocess.run(["tar", "xzf", files, "-C", scratch], check=True)
            files = scratch
        paths = sorted(os.path.join(at, name) for at, _, names in os.walk(files) for name in names if name.endswith(".json"))
        return keep(folder, [one for path in paths for one in read(path)], card, commit)


def keep(folder, results, card=None, commit=None):
    card = card or output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").split("\n")[0] or "unknown card"
    commit = commit or os.environ.get("COMMIT") or output("git", "describe", "--always", "--dirty") or "unknown"
    date = datetime.date.today().isoformat()
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "%s-%s-%s.json" % (date, re.sub(r"\W+", "-", card).lower(), commit))
    with open(path, "w") as file:
        rows = ",\n".join("  " + json.dumps(row) for row in results)
        file.write('{"date": "%s", "card": "%s", "commit": "%s", "results": [\n%s\n]}\n' % (date, card, commit, rows))
    return path


def number(us):
    if us is None:
        return ""
    return "%.1f us" % us if us < 1000 else "%.2f ms" % (us / 1000) if us < 1e6 else "%.2f s" % (us / 1e6)


def best(results):
    """Of rows that differ only in how many streams share a cluster, the fastest."""
    fastest = {}
    for row in results:
        key = (re.sub(r", \d+ a cluster$", "", row["name"]), row["sizes"])
        if key not in fastest or row["median_us"] < fastest[key]["median_us"]:
            fastest[key] = dict(row, name=key[0])
    return fastest.values()


def table(path):
    with open(path) as file:
        kept = json.load(file)
    print("%s, %s, commit %s\n" % (kept["card"], kept["date"], kept["commit"]))
    print("| what | sizes | median | p99 | floor | peer |\n|---|---|---|---|---|---|")
    for row in best(kept["results"]):
        if row["name"].startswith(SHOWN):
            peer = "%s (%s)" % (number(row["peer_us"]), row["peer"]) if row["peer_us"] else ""
            tail = number(row["p99_us"]) + (" (p99.9 %s)" % number(row["p999_us"]) if row.get("p999_us") else "")
            print("| %s | %s | %s | %s | %s | %s |" % (row["name"], row["sizes"], number(row["median_us"]), tail,
                                                      number(row["floor_us"]), peer))


def main():
    words = sys.argv[1:]
    if words[:1] == ["run"] and len(words) <= 2:
        path = run(words[1] if len(words) == 2 else "tests/bench/results")
        table(path)
        print("\n" + path)
    elif words[:1] == ["collect"] and 4 <= len(words) <= 5:
        path = collect(*words[1:])
        table(path)
        print("\n" + path)
    elif words[:1] == ["table"] and len(words) > 1:
        for path in words[1:]:
            table(path)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
