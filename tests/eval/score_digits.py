# SPDX-License-Identifier: MIT
"""Spoken digits: how many of the clips a model names right, through libssm.

    score_digits.py MODEL.safetensors --pack PACK [--speaker george]

PACK is tag_pack.py's folder. Without --speaker the clips are those of the official test split, with it all of that speaker's.
A clip is right when its likeliest digit at any hop is; as events (the model's own thresholds) when exactly one is told and it
is the right one. Around each clip are 0.3 s of silence, half a step of 16-bit dither everywhere.
"""
import argparse
import csv
import os
import sys

import numpy as np
import soundfile

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in ("../../model/train", "../../model/train/proofs"):
    sys.path.insert(0, os.path.join(HERE, folder))
import libssm  # noqa: E402
import reference  # noqa: E402

HOP, AROUND = 80, 2400


def clips(pack, speaker):
    """[(digit, samples)]"""
    sound, _ = soundfile.read(os.path.join(pack, "digits.flac"), dtype="float32")
    out, at = [], 0
    with open(os.path.join(pack, "digits.csv"), newline="") as f:
        for row in csv.DictReader(f):
            n = int(row["samples"])
            if row["speaker"] == speaker if speaker else row["split"] == "test":
                out.append((int(row["digit"]), sound[at:at + n]))
            at += n
    return out


def told(p, row, hop_s):
    """What p (hops, digits) tells as events: begun at `on`, ended below `off`, `hold_s` bridged, at least `min_s` long."""
    least, hold = row.get("min_s", 0) / hop_s, row.get("hold_s", 0) / hop_s
    out, now = [], None                         # now: [digit, first hop, last hop + 1]
    for k, scores in enumerate(p):
        best = int(scores.argmax())
        takes_over = scores[best] >= row["on"] and (now is None or best != now[0])
        if now and scores[now[0]] >= row["off"] and not (takes_over and scores[best] > scores[now[0]]):
            now[2] = k + 1
            continue
        if now and (takes_over or k - now[2] >= hold):
            out += [now[0]] if now[2] - now[1] >= least else []
            now = None
        if takes_over:
            now = [best, k, k + 1]
    return out + ([now[0]] if now and now[2] - now[1] >= least else [])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("model")
    p.add_argument("--pack", required=True)
    p.add_argument("--speaker")
    a = p.parse_args()
    labels = reference.read_safetensors(a.model)[0]["labels"]
    engine, rng, right, alone = libssm.Engine(a.model, len(labels)), np.random.default_rng(1), 0, 0
    wanted = clips(a.pack, a.speaker)
    for digit, x in wanted:
        x = np.concatenate((np.zeros(AROUND), x, np.zeros(AROUND)))
        x = x[:len(x) // HOP * HOP]
        engine.reset()
        scores = engine.scan((x + rng.uniform(-0.5, 0.5, len(x)) / 32768).reshape(-1, HOP))[:, 1:]
        right += scores.max(0).argmax() == digit
        alone += told(scores, labels[1], HOP / 8000) == [digit] if "on" in labels[1] else 0
    print("%s: %d clips, %.1f %% right, %.1f %% exactly one event and the right one" % (
        a.speaker or "test split", len(wanted), 100 * right / len(wanted), 100 * alone / len(wanted)))


if __name__ == "__main__":
    main()
