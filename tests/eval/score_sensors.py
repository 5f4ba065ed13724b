# SPDX-License-Identifier: MIT
"""The sensor models on their test data, through libssm.

    score_sensors.py motion|vibration-tags --data SENSORS [--model FILE]

Accuracy of each series' (or each window's) last row; with vibration also whole recordings as one stream: the share of rows
after the first window that name the right class, and the class that most of them name. Both also with rows lost.
"""
import argparse
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in ("../../model/train", "../../model/train/proofs"):
    sys.path.insert(0, os.path.join(HERE, folder))
import libssm  # noqa: E402
import sensor  # noqa: E402


def right(engine, items):
    """Share of (rows, times, label) whose last row is right, each told the time between its rows."""
    count = 0
    for rows, times, label in items:
        engine.reset()
        count += int(engine.scan(rows, elapsed=np.diff(times, prepend=times[0] - 1))[-1].argmax() == label)
    return count / len(items)


def recordings(engine, task, lost, rng):
    """[(class, share of rows right, class most rows name)]"""
    out = []
    for rows, label in task.test:
        keep = np.flatnonzero(sensor.lose(rng, len(rows), lost, 8))
        engine.reset()
        named = engine.scan(rows[keep], elapsed=np.diff(keep, prepend=-1))[task.window:].argmax(1)
        out.append((task.labels[label], (named == label).mean(), task.labels[np.bincount(named).argmax()]))
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("task", choices=sorted(sensor.TASKS))
    p.add_argument("--data", required=True)
    p.add_argument("--model")
    a = p.parse_args()
    task = sensor.TASKS[a.task](a.data, 0)
    engine = libssm.Engine(a.model or os.path.join(HERE, "../../model/pretrained/%s.safetensors" % a.task), len(task.labels))
    rng = np.random.default_rng(1)
    for rate in task.rates:
        print("rate %.2g: %.2f %%" % (rate, 100 * right(engine, task.trial(rng, rate, 0.0, 1))))
    for lost in sensor.LOST:
        both = [right(engine, task.trial(rng, 1.0, lost, burst)) for burst in (1, 8)]
        print("%2.0f %% lost: %.2f %%, in bursts of 8 rows %.2f %%" % (100 * lost, 100 * both[0], 100 * both[1]))
    for lost in (0.0, 0.3) if a.task == "vibration-tags" else ():
        print("whole recordings, %.0f %% lost:" % (100 * lost))
        for label, share, most in recordings(engine, task, lost, rng):
            print("  %-16s %6.2f %% of the rows, most say %s" % (label, 100 * share, most))


if __name__ == "__main__":
    main()
