#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The answers of a model of tokens through libssm, a step at a time and through the scan: how many are right, and are they
the same?

    python3 live.py induction-heads RUN.pt [--length 16384] [--sequences 64] [--only-scan]      a checkpoint of fit.py
"""
import argparse
import os
import tempfile
import time

import numpy as np
import torch

import libssm
import tasks
import tokens


def step_by_step(engine, x, answers):
    """(sequences, answers, vocabulary): every sequence a stream, one token of each in a step."""
    engine.reset()
    said = []
    for t in range(x.shape[1]):
        out = engine.step(x[:, t])
        if t >= x.shape[1] - answers:
            said.append(out.copy())
    return np.stack(said, 1)


def scanned(engine, x, answers):
    """The same, a sequence at a time."""
    engine.reset()
    return np.stack([engine.scan(sequence, i)[-answers:] for i, sequence in enumerate(x)])


def compare(path, task, length, sequences, threads, ways):
    inputs, target = tasks.TASKS[task](sequences, length, "cpu", torch.Generator().manual_seed(7))
    x, target = inputs.numpy(), target.numpy()
    engine = libssm.Engine(path, tasks.VOCABULARY, streams=sequences, threads=threads)
    logits = []
    for way in ways:
        begun = time.time()
        said = way(engine, x, target.shape[1])
        print("%-13s %d of %d right, %.1f s" % (way.__name__ + ":", (said.argmax(-1) == target).sum(), target.size, time.time() - begun))
        logits.append(said)
    engine.close()
    if len(ways) < 2:
        return
    same = (logits[0].argmax(-1) == logits[1].argmax(-1)).sum()
    print("the same answer %d times; logits differ by at most %.2g of %.3g" % (
        same, np.abs(logits[0] - logits[1]).max(), np.abs(logits[0]).max()))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("task", choices=sorted(tasks.TASKS))
    p.add_argument("checkpoint")
    p.add_argument("--length", type=int, default=1 << 14)
    p.add_argument("--sequences", type=int, default=64)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--only-scan", action="store_true", help="how many are right, no more")
    a = p.parse_args()
    run = torch.load(a.checkpoint, map_location="cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokens.safetensors")
        tokens.export_checkpoint(run, path, "tokens")
        compare(path, a.task, a.length, a.sequences, a.threads, [scanned] if a.only_scan else [step_by_step, scanned])


if __name__ == "__main__":
    main()
