#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Gathers what the taggers train on: parts made by pack.py, the key words, ESC-50 and the baby cries.

    python3 tag_pack.py --parts PART... --root SOURCES --out OUT [--speech 75] [--noise 60]

OUT/audio holds Ogg Opus, OUT/index.csv says path, kind (speech, noise, word), label, source, seconds, ESC-50's fold; OUT/digits.flac the
spoken digits end to end at 8 kHz with digits.csv (digit, speaker, split, samples). tag_sources.csv says which label a
recording's source and name give; none means a noise without a label of its own. Only training splits are taken: of ESC-50
folds 1 to 4, of the rest what the manifests call train. --speech and --noise are minutes, of each source alike.
"""
import argparse
import csv
import fnmatch
import glob
import os
import subprocess
import sys
import tempfile

import numpy as np
import soundfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from clips import read_clip  # noqa: E402

NOISE_BITS, ESC50_TEST = 46, "5-"           # kb/s; the prefix of ESC-50's fold five


def read_csv(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


SOURCES = read_csv(os.path.join(HERE, "tag_sources.csv"))


def label_of(kind, source, name):
    """The label, '' for none, or None when the recording is not to be used."""
    for row in SOURCES:
        if (row["kind"], row["source"]) == (kind, source) and fnmatch.fnmatch(name, row["name"]):
            return name if row["label"] == "*" else row["label"]
    return None


def part_clips(parts):
    """[(kind, source, name, path, seconds)] of the parts, ESC-50 and the key words left to the originals."""
    clips = []
    for part in parts:
        for r in read_csv(os.path.join(part, "index.csv")):
            if r["kind"] != "rir" and r["source"] not in ("esc50", "wakewords"):
                clips.append((r["kind"], r["source"], r["name"], os.path.join(part, r["path"]), float(r["seconds"])))
    return clips


def original_clips(root):
    clips = [("noise", "esc50", os.path.basename(os.path.dirname(p)), p, 5.0)
             for p in sorted(glob.glob(os.path.join(root, "esc50/*/*.flac"))) if not os.path.basename(p).startswith(ESC50_TEST)]
    for manifest, start, kind, source in (("manifest.csv", "tagging/wakewords/", "word", "wakewords"),
                                          ("more/manifest.csv", "tagging/babycry/", "noise", "babycry")):
        folder = os.path.join(root, "shared", os.path.dirname(manifest))
        for r in read_csv(os.path.join(root, "shared", manifest)):
            if r["path"].startswith(start) and r["split"] == "train":
                clips.append((kind, source, r["speaker_or_class"], os.path.join(folder, r["path"]), float(r["seconds"])))
    return clips


def take(clips, minutes):
    """At most so many minutes, one clip of each (source, name) after the other; what runs out leaves room to the rest."""
    queues, taken, left = {}, [], 60.0 * minutes
    for c in clips:
        queues.setdefault(c[1:3], []).append(c)
    while queues and left > 0:
        for key in list(queues):
            c = queues[key].pop(0)
            taken.append(c)
            left -= c[4]
            if not queues[key]:
                del queues[key]
            if left <= 0:
                break
    return taken


def encode(path, out, kind):
    """As Opus at 16 kHz; what is Opus already at a rate low enough is copied."""
    if path.endswith(".opus") and (kind != "noise" or os.path.getsize(path) < 6000 * soundfile.info(path).duration):
        with open(path, "rb") as a, open(out, "wb") as b:
            b.write(a.read())
        return
    with tempfile.NamedTemporaryFile(suffix=".wav") as f:
        soundfile.write(f.name, read_clip(path), 16000)
        subprocess.run(["opusenc", "--quiet", "--bitrate", str(NOISE_BITS), "--comp", "8", "--discard-comments", f.name, out],
                       check=True)


def pack_digits(root, out):
    rows, sound = [], []
    for r in read_csv(os.path.join(root, "shared/manifest.csv")):
        if r["path"].startswith("tagging/fsdd/"):
            x, rate = soundfile.read(os.path.join(root, "shared", r["path"]), dtype="int16")
            assert rate == 8000
            digit, speaker = r["speaker_or_class"].split("|")
            rows.append(dict(digit=digit, speaker=speaker, split=r["split"], samples=len(x)))
            sound.append(x)
    soundfile.write(os.path.join(out, "digits.flac"), np.concatenate(sound), 8000)
    write_csv(os.path.join(out, "digits.csv"), rows)


def write_csv(path, rows):
    with open(path, "w", newline="") as f:
        w = csv.DictWriter(f, list(rows[0]))
        w.writeheader()
        w.writerows(rows)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--parts", nargs="+", required=True)
    p.add_argument("--root", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--speech", type=float, default=75)
    p.add_argument("--noise", type=float, default=60, help="without ESC-50 and the baby cries, which come whole")
    a = p.parse_args()
    os.makedirs(os.path.join(a.out, "audio"), exist_ok=True)
    labelled = [(c, label_of(*c[:3])) for c in part_clips(a.parts)]
    labels = {c: label for c, label in labelled if label is not None}
    clips = take([c for c in labels if c[0] == "speech"], a.speech) + take([c for c in labels if c[0] == "noise"], a.noise)
    originals = original_clips(a.root)
    labels.update({c: label_of(*c[:3]) for c in originals})
    rows = []
    for i, c in enumerate(clips + originals):
        kind, source, name, path, seconds = c
        if labels[c] is None:
            continue
        where = "audio/%05d.opus" % i
        encode(path, os.path.join(a.out, where), kind)
        fold = os.path.basename(path)[0] if source == "esc50" else ""
        rows.append(dict(path=where, kind=kind, label=labels[c], source=source, name=name, seconds="%.2f" % seconds, fold=fold))
    write_csv(os.path.join(a.out, "index.csv"), rows)
    pack_digits(a.root, a.out)
    for kind in ("speech", "noise", "word"):
        mine = [r for r in rows if r["kind"] == kind]
        print("%s: %d clips, %.1f minutes" % (kind, len(mine), sum(float(r["seconds"]) for r in mine) / 60))


if __name__ == "__main__":
    main()
