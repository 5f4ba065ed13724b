# SPDX-License-Identifier: MIT
"""Pack speech, noise and room impulse responses for training a denoiser.

A recipe (packs.csv beside this file) has a row a source:

    part     output folder the row goes to: part1, part2, ...
    kind     speech, noise or rir
    source   name of the collection, first field of the packed files' names
    files    glob below --root
    name     speaker or class: `manifest` (column speaker_or_class of the
             manifest.csv found above the file), `parent` (its folder's name),
             `stem` (its own name), anything else as it stands
    from,to  seconds of each speaker or recording to take; a later part goes on
             where an earlier one stopped
    weight   how often training draws it, beside the others (1)
    rate     of what is written: 16000 or 48000

Speech becomes one file a speaker (utterances in a fixed shuffled order, each
at -26 dB active level, 0.2 s of silence between; a new file after 5 minutes),
noise one file a recording, both mono Ogg Opus that `soundfile` reads back at
the row's rate; impulse responses are FLAC. index.csv lists them.

Left out: rows whose manifest says other than `train`, what --withheld names,
the recordings reserved for outside evaluation, clipped and nearly silent
clips, the parts of speech clips in which nobody speaks, speech less than
15 dB above its own background, which would teach a model to keep noise, and
speech recorded at a lower rate than the row's.
rejected.csv says which and why.
"""
import argparse
import csv
import glob
import hashlib
import io
import os
import re
import subprocess

import numpy as np
import soundfile

from clips import (active_level_db, clipped_fraction, db, flatness_db,
                   frame_levels_db, read_clip, snr_estimate_db, speaking)

SPEECH_BITS, NOISE_BITS = {16000: 24000, 48000: 40000}, {16000: 36000, 48000: 56000}    # a second
LONGEST, GAP = 300, 0.2     # seconds
MIN_SNR_DB, MIN_LEVEL_DB, MAX_CLIPPED = 15.0, -55.0, 2e-3
MAX_FLATNESS_DB = -10.0     # above: noise, whatever the manifest says
INDEX = ["path", "kind", "source", "name", "split", "seconds", "est_snr_db", "music", "weight"]

# Never to be trained on, whatever copy turns up. Matched against the path.
RESERVED = re.compile("|".join((
    r"(dev|test)-(clean|other)", r"p232", r"p257", r"(^|[_/])s5[_/]", r"ptdb",
    r"blanket/.*(city|coffee-shop|train)\.", r"noisekun/.*playground",
    r"exercise_bike", r"noise/kitchen", r"tests/samples/(?!RIR)",
    r"tuxpaint.*_desc_(fr|nl)\.")), re.IGNORECASE)


class Packer:
    """Writes one part: its files, its index and what it turned away."""

    def __init__(self, root, out, part, withheld):
        self.root, self.folder = root, os.path.join(out, part)
        self.first = 100 * (int(re.sub(r"\D", "", part) or 1) - 1)
        self.withheld = withheld
        self.index, self.rejected = [], []

    def reject(self, path, why):
        self.rejected.append((path, why))

    def add(self, row):
        """Pack everything one recipe row names."""
        groups, root = {}, self.root
        for path in sorted(glob.glob(os.path.join(root, row["files"]), recursive=True)):
            shown = os.path.relpath(path, root)
            name, split = name_and_split(path, root, row["name"])
            if RESERVED.search(shown):
                self.reject(shown, "reserved")
            elif split != "train":
                self.reject(shown, "split " + split)
            elif (row["source"], name) in self.withheld:
                self.reject(shown, "withheld")
            else:
                groups.setdefault(name, []).append((path, shown))
        pack = {"speech": self.pack_speaker, "noise": self.pack_noise, "rir": self.pack_rir}
        for name, files in groups.items():
            pack[row["kind"]](row, name, files)

    def pack_speaker(self, row, name, files):
        """Join a speaker's good utterances and write those between from and to."""
        rate = row["rate"]
        files.sort(key=lambda f: hashlib.sha1(f[1].encode()).digest())
        end, pieces, total, words = row["to"] * rate, [], 0, []
        for path, shown in files:
            if total >= end:
                break
            x = self.read_speech(path, shown, rate, source_rate(path, self.root))
            if x is None:
                continue
            x = to_level(x, -26.0, rate)
            words.append(x)
            pieces.append(np.concatenate([x, np.zeros(int(GAP * rate), np.float32)]))
            total += len(pieces[-1])
        if not pieces:
            return
        pooled = snr_estimate_db(np.concatenate(words), rate)
        if pooled < MIN_SNR_DB:
            self.reject(f"{row['source']}/{name}", f"speaker's SNR {pooled:.1f}")
            return
        start, run, at, n = row["from"] * rate, [], 0, 0
        for piece in pieces:
            at += len(piece)
            if at <= start:
                continue
            if sum(map(len, run)) + len(piece) > LONGEST * rate and run:
                self.write(row, name, n, np.concatenate(run), SPEECH_BITS[rate])
                run, n = [], n + 1
            run.append(piece[:LONGEST * rate])
        if run:
            self.write(row, name, n, np.concatenate(run), SPEECH_BITS[rate])

    def pack_noise(self, row, name, files):
        """Write each recording's samples between from and to."""
        rate = row["rate"]
        for n, (path, shown) in enumerate(files):
            x = self.read(path, shown, rate)
            if x is None:
                continue
            x = x[int(row["from"] * rate):int(row["to"] * rate)]
            if len(x) >= rate:
                self.write(row, name, n, x, NOISE_BITS[rate])

    def pack_rir(self, row, name, files):
        """Impulse responses: peak 0.9, start kept as it is."""
        for n, (path, shown) in enumerate(files):
            x = read_clip(path, row["rate"])
            self.write(row, name, n, 0.9 * x / max(np.abs(x).max(), 1e-9), None)

    def read_speech(self, path, shown, rate, own):
        """The clip's speaking parts, or None with the reason noted."""
        x = self.read(path, shown, rate)
        if x is None:
            return None
        if own < 0.9 * rate:
            self.reject(shown, f"recorded at {own}")
            return None
        snr, x = snr_estimate_db(x, rate), speaking(x, rate)
        if len(x) >= 2 * rate and snr < MIN_SNR_DB:
            self.reject(shown, f"SNR {snr:.1f}")
        elif len(x) >= rate and flatness_db(x, rate) > MAX_FLATNESS_DB:
            self.reject(shown, f"flatness {flatness_db(x, rate):.1f}")
        elif len(x) >= 0.25 * rate:
            return x
        return None

    def read(self, path, shown, rate):
        """The clip, or None with the reason noted."""
        try:
            x = read_clip(path, rate)
        except soundfile.LibsndfileError as err:
            self.reject(shown, f"unreadable: {err}")
            return None
        if len(x) < 0.25 * rate:
            why = "shorter than 0.25 s"
        elif db(np.mean(x ** 2)) < MIN_LEVEL_DB and np.percentile(frame_levels_db(x, rate), 95) < -45:
            why = "nearly silent"
        elif clipped_fraction(x) > MAX_CLIPPED:
            why = f"clipped {clipped_fraction(x):.4f}"
        else:
            return x
        self.reject(shown, why)
        return None

    def write(self, row, name, n, x, bits):
        """One file and its index row; peaks over 0.95 are scaled down."""
        rate = row["rate"]
        x = x * min(1.0, 0.95 / max(np.abs(x).max(), 1e-9))
        clean = re.sub(r"[^\w.-]+", "-", name).replace("__", "_")
        ending = "opus" if bits else "flac"
        shown = f"{row['kind']}/{row['source']}__{clean}__{self.first + n}.{ending}"
        path = os.path.join(self.folder, shown)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if bits:
            write_opus(path, x, rate, bits)
        else:
            soundfile.write(path, x, rate, subtype="PCM_16")
        music = int("music" in f"{row['source']}/{name}".lower())
        self.index.append([shown, row["kind"], row["source"], name, "train",
                           f"{len(x) / rate:.2f}", f"{snr_estimate_db(x, rate):.1f}", music,
                           row.get("weight") or "1"])

    def finish(self):
        """Write index.csv, rejected.csv and READY; print hours, voices and MiB."""
        os.makedirs(self.folder, exist_ok=True)
        write_csv(os.path.join(self.folder, "index.csv"), INDEX, self.index)
        write_csv(os.path.join(self.folder, "rejected.csv"), ["path", "why"], self.rejected)
        for kind in ("speech", "noise", "rir"):
            rows = [r for r in self.index if r[1] == kind]
            seconds = sum(float(r[5]) for r in rows)
            size = sum(os.path.getsize(os.path.join(self.folder, r[0])) for r in rows)
            print(f"{self.folder} {kind:6} {len(rows):5} files {seconds / 3600:6.2f} h "
                  f"{len({(r[2], r[3]) for r in rows}):4} names {size / 2**20:6.1f} MiB")
        open(os.path.join(self.folder, "READY"), "w").close()


def to_level(x, level_db, rate):
    """x with its active level at level_db, or lower where it would clip."""
    gain = 10 ** ((level_db - active_level_db(x, rate)) / 20)
    return x * min(gain, 0.95 / max(np.abs(x).max(), 1e-9))


def write_opus(path, x, rate, bits):
    """x (N,) through opusenc at `bits` a second, five times faster than
    libsndfile's own encoder; the header keeps the rate."""
    wave = io.BytesIO()
    soundfile.write(wave, x, rate, format="WAV", subtype="PCM_16")
    subprocess.run(["opusenc", "--quiet", "--bitrate", str(bits / 1000), "-", path],
                   input=wave.getvalue(), check=True)


_manifests = {}


def name_and_split(path, root, rule):
    """(speaker or class, split) of a file by the recipe's naming rule."""
    if rule == "parent":
        return os.path.basename(os.path.dirname(path)), "train"
    if rule == "stem":
        return os.path.splitext(os.path.basename(path))[0], "train"
    row = manifest_row(path, root)
    if row is None:
        return rule, "not in the manifest" if rule == "manifest" else "train"
    return (row["speaker_or_class"] if rule == "manifest" else rule), row["split"]


def source_rate(path, root):
    """Hz at which a file was recorded: what its manifest says, else its own."""
    row = manifest_row(path, root)
    return int(row["sample_rate"]) if row else soundfile.info(path).samplerate


def manifest_row(path, root):
    """The file's row in the nearest manifest.csv above it, or None."""
    folder = os.path.dirname(path)
    while len(folder) > len(root):
        manifest = os.path.join(folder, "manifest.csv")
        if os.path.exists(manifest):
            if manifest not in _manifests:
                with open(manifest, newline="") as f:
                    _manifests[manifest] = {r["path"]: r for r in csv.DictReader(f)}
            return _manifests[manifest].get(os.path.relpath(path, folder))
        folder = os.path.dirname(folder)
    return None


def read_recipe(path):
    """The recipe's rows, numbers as numbers."""
    rows = read_csv(path)
    for row in rows:
        row.update({"from": float(row["from"]), "to": float(row["to"]), "rate": int(row["rate"])})
    return rows


def write_csv(path, header, rows):
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([header, *rows])


def read_csv(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("--root", required=True, help="folder the recipe's globs are below")
    parser.add_argument("--out", required=True, help="folder to write the parts into")
    parser.add_argument("--recipe", default=os.path.join(here, "packs.csv"))
    parser.add_argument("--withheld", default=os.path.join(here, "../../tests/eval/withheld.csv"),
                        help="csv (source, name) of noises kept for evaluation")
    parser.add_argument("--part", action="append", help="only these parts")
    args = parser.parse_args()
    withheld = {(r["source"], r["name"]) for r in read_csv(args.withheld)}
    recipe = read_recipe(args.recipe)
    for part in args.part or sorted({row["part"] for row in recipe}):
        packer = Packer(args.root, args.out, part, withheld)
        for row in recipe:
            if row["part"] == part:
                packer.add(row)
        packer.finish()


if __name__ == "__main__":
    main()
