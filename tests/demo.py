#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The demo's subscriber and its arithmetic; tests/demo.sh runs both.

    demo.py listen ADDRESS LATENCIES    print a line a second until the stream ends; write each hop's latency in ms
    demo.py score CLEAN NOISY OUT LATENCIES
"""
import os
import subprocess
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients", "python"))
import ssm_subscribe  # noqa: E402


def bar(db, width=24, floor=-60.0):
    """A level in dB as a bar of characters, full at 0 dB."""
    return "#" * int(round(width * min(max(1 - db / floor, 0.0), 1.0)))


def listen(address, path):
    levels, latencies, lost, joined, due = [], [], 0, None, None
    print("  time   level before               level after                in ssmd")
    for topic, header, payload in ssm_subscribe.messages("", address):
        if topic.startswith("meter/"):
            levels.append(payload)
        if topic.startswith("audio/"):
            latencies.append((header["pub"] - header["cap"]) / 1e6)
            joined = header["seq"] if joined is None else joined
            lost += header["seq"] - (joined if due is None else due)
            due = header["seq"] + 1
            if due % 100 == 0 and levels:
                before, after = np.mean([m[0] for m in levels]), np.mean([m[2] for m in levels])
                levels = []
                print("  %3d s  %6.1f dB %-24s %6.1f dB %-24s %.2f ms" % (
                    due // 100, before, bar(before), after, bar(after), latencies[-1]), flush=True)
            if "end" in header["flags"]:
                break
    np.savetxt(path, latencies, fmt="%.4f")
    print("  the stream ended: joined at hop %d, %d heard, %d lost" % (joined, len(latencies), lost))


def samples(path):
    """A recording's first channel at its own rate, (N,) float."""
    raw = subprocess.run(["sox", path, "-t", "f32", "-r", "16000", "-", "remix", "1"], check=True, capture_output=True)
    return np.frombuffer(raw.stdout, np.float32).astype(np.float64)


def si_sdr(estimate, clean):
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., arXiv 1811.02508)."""
    estimate, clean = estimate - estimate.mean(), clean - clean.mean()
    target = clean * (estimate @ clean) / (clean @ clean)
    return 10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target)))


def score(clean, noisy, out, latencies):
    c, x, y = samples(clean), samples(noisy), samples(out)
    print("  length                   %d samples in, %d out" % (len(x), len(y)))
    n = min(len(c), len(x), len(y))
    before, after = si_sdr(x[:n], c[:n]), si_sdr(y[:n], c[:n])
    print("  SI-SDR                   %.1f dB before, %.1f dB after: %+.1f dB" % (before, after, after - before))
    try:
        from pesq import pesq
        print("  PESQ-WB                  %.2f before, %.2f after" % (pesq(16000, c[:n], x[:n], "wb"), pesq(16000, c[:n], y[:n], "wb")))
    except ImportError:
        pass
    ms = np.loadtxt(latencies)
    print("  capture to publish       p50 %.2f ms, p99 %.2f ms over %d hops" % (*np.percentile(ms, (50, 99)), len(ms)))


if __name__ == "__main__":
    {"listen": listen, "score": score}[sys.argv[1]](*sys.argv[2:])
