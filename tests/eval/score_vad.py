# SPDX-License-Identifier: MIT
"""Voice activity on mixtures: area under the ROC, beside Silero's.

    score_vad.py --pairs DIR... --cmd 'ssm tag {in} --model vad --scores' [--silero silero_vad.onnx] [--worst 5]

DIR/noisy and DIR/clean as for score.py. The command prints JSON lines with "t0" and "scores"; the label is `speech`.
Labels are made from the clean recording: a 10 ms hop is speech when its level is less than D dB below the active level
(as ITU-T P.56), and for 100 ms after; D 24 counts vowels and most consonants, 35 nearly everything a talker does, 42 breath
and tails, too. All hops of all files go into one ROC. Silero (PyPI silero-vad, onnxruntime) gives one probability for 32 ms,
which stands for each hop whose middle is in it; it is shifted by -20 to 40 ms and the best shift counts. Confidence
intervals: 300 draws of the files with replacement.
"""
import argparse
import json
import shlex
import subprocess
import sys

import numpy as np

from score import read_pairs

RATE, HOP, HANGOVER, DEPTHS = 16000, 160, 10, (24, 35, 42)


def activity(clean, depth):
    """(N,) clean speech -> (N // HOP,) booleans."""
    e = np.square(clean[:len(clean) // HOP * HOP].reshape(-1, HOP)).mean(1)
    on = e > 0.01 * e.mean()
    for _ in range(5):
        level = e[on].mean()
        on = e > level * 10 ** -1.59
    return np.convolve(e > level * 10 ** (-depth / 10), np.ones(HANGOVER + 1))[:len(e)] > 0


def area(p, y):
    """Area under the ROC of scores p for labels y; ties count half."""
    _, place, count = np.unique(p, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    n = y.sum()
    return (rank[y].sum() - n * (n + 1) / 2) / (n * (len(y) - n))


def by_command(command, pair, hops):
    words = [w.replace("{in}", pair["path"]) for w in shlex.split(command)]
    lines = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    p = np.zeros(hops)
    for row in map(json.loads, lines):
        if "scores" in row and round(row["t0"] * RATE / HOP) < hops:
            p[round(row["t0"] * RATE / HOP)] = row["scores"]["speech"]
    return p


class Silero:
    def __init__(self, path):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, pair, hops):
        x = pair["noisy"].astype(np.float32)
        state, context, p = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32), []
        for k in range(0, len(x), 512):
            chunk = np.zeros((1, 512), np.float32)
            chunk[0, :len(x[k:k + 512])] = x[k:k + 512]
            y, state = self.session.run(None, {"input": np.concatenate((context, chunk), 1), "state": state,
                                               "sr": np.array(RATE, np.int64)})
            context = chunk[:, -64:]
            p.append(float(y[0, 0]))
        return np.array(p)[(np.arange(hops) * HOP + HOP // 2) // 512]


def shifted(scores, hops):
    return [np.roll(p, hops) for p in scores]


def whole_area(scores, labels, files=None):
    files = range(len(scores)) if files is None else files
    return area(np.concatenate([scores[i] for i in files]), np.concatenate([labels[i] for i in files]))


def report(name, scores, pairs, labels, rng):
    for depth in DEPTHS:
        y = labels[depth]
        draws = [whole_area(scores, y, rng.integers(len(pairs), size=len(pairs))) for _ in range(300)]
        low, high = np.percentile(draws, (2.5, 97.5))
        snrs = sorted({p["snr"] for p in pairs})
        per = [whole_area(scores, y, [i for i, p in enumerate(pairs) if p["snr"] == s]) for s in snrs]
        print("| %s | %d dB, %.0f %% speech | **%.4f** (%.3f to %.3f) | %s |" % (
            name, depth, 100 * np.concatenate(y).mean(), whole_area(scores, y), low, high, " | ".join("%.3f" % v for v in per)))


def best_threshold(scores, labels):
    """The threshold with the largest sum of hops found and hops rightly left out, and that sum's half."""
    p, y = np.concatenate(scores), np.concatenate(labels)
    grid = np.arange(0.05, 0.96, 0.01)
    value = [((p >= t) & y).sum() / y.sum() / 2 + ((p < t) & ~y).sum() / (~y).sum() / 2 for t in grid]
    return grid[int(np.argmax(value))], max(value)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--pairs", required=True, nargs="+")
    p.add_argument("--cmd", action="append", default=[], help="NAME=COMMAND or COMMAND, with {in}")
    p.add_argument("--silero", help="its ONNX model")
    p.add_argument("--worst", type=int, default=0, help="tell so many files with the least area")
    a = p.parse_args()
    pairs = [pair for folder in a.pairs for pair in read_pairs(folder)]
    labels = {d: [activity(pair["clean"], d) for pair in pairs] for d in DEPTHS}
    hops = [len(y) for y in labels[DEPTHS[0]]]
    snrs = sorted({q["snr"] for q in pairs})
    print("| detector | speech is | area, 95 % interval | " + " | ".join("%s dB" % s for s in snrs) + " |")
    print("|---" * (3 + len(snrs)) + "|")
    for command in a.cmd:
        name, _, rest = command.partition("=")
        name, command = (name, rest) if rest and " " not in name else ("ours", command)
        scores = [by_command(command, pair, n) for pair, n in zip(pairs, hops)]
        report(name, scores, pairs, labels, np.random.default_rng(1))
        print("    best threshold at 24 dB %.2f, right there %.3f" % best_threshold(scores, labels[24]), file=sys.stderr)
        each = sorted((area(s, y), pair["file"]) for s, y, pair in zip(scores, labels[35], pairs) if 0 < y.sum() < len(y))
        for value, file in each[:a.worst]:
            print("    %.3f %s" % (value, file), file=sys.stderr)
    if a.silero:
        model = Silero(a.silero)
        scores = [model(pair, n) for pair, n in zip(pairs, hops)]
        best = max(range(-2, 5), key=lambda s: whole_area(shifted(scores, s), labels[35]))
        report("Silero, shifted by %d ms" % (10 * best), shifted(scores, best), pairs, labels, np.random.default_rng(1))


if __name__ == "__main__":
    main()
