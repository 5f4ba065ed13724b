# SPDX-License-Identifier: MIT
"""Mix the held-out (or the dev) set: noisy and clean pairs at known SNR.

    make_heldout.py --root DATA --out DIR [--set heldout|dev|heldout-48k|dev-48k]

Speech comes from speakers whose manifest says `val`, noise from the rows of
withheld.csv, both kept out of the training packs by model/train/pack.py. Tune
on dev; the held-out set is for reporting only. The mixtures depend on the
sources and --seed alone, whatever the machine.

SNR is the speech's active level (as ITU-T P.56) over the noise's mean level in
the same stretch. 16 or 48 kHz, 16 bits, 4 to 8 s, as many files at each of 0,
5, 10 and 15 dB; DIR/clean and DIR/noisy have the same names, list.csv tells
speaker, noise and SNR. At 48 kHz only what was recorded at 44.1 kHz or more.
"""
import argparse
import collections
import glob
import itertools
import os
import re
import sys

import numpy as np
import soundfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../model/train"))
from clips import active_level_db, db, flatness_db, frame_levels_db, read_clip, snr_estimate_db  # noqa: E402
from pack import manifest_row, read_csv, source_rate, write_csv  # noqa: E402

SNRS_DB = (0, 5, 10, 15)
SHORTEST, LONGEST = 4, 8        # seconds
# times: how often withheld.csv's own are taken; voices: the speakers it is limited to
Recipe = collections.namedtuple("Recipe", "rate noise times speech voices")
SETS = {
    "heldout": Recipe(16000, "heldout", 1, ["shared/speech/librispeech/*.opus", "shared/speech/pico_intent/*.opus"], ""),
    "dev": Recipe(16000, "dev", 1, ["shared/more/speech/gcompris/*.opus"], ""),
    "heldout-48k": Recipe(48000, "heldout", 2, ["shared/more/speech/gcompris/*.opus"],
                          "Wycherley|Nicoletto|Bati|gc_tr"),
    "dev-48k": Recipe(48000, "dev-48k", 1, ["shared/more/speech/gcompris/*.opus"], "Lewman|Agrusti"),
}
# Where each noise source's files lie below --root, by {name}.
NOISE = ["shared/noise/{source}/{name}.opus", "shared/more/noise/{source}/{name}_*.opus",
         "{source}/*/{name}.mp3"]
MIN_SNR_DB = 25.0
MAX_FLATNESS_DB = -10.0  # above: a piece of a long clip in which nobody speaks


def speakers(root, recipe):
    """{speaker: [clips]} of the set's clean validation speech."""
    found, rate = {}, recipe.rate
    for path in sorted(sum((glob.glob(os.path.join(root, p)) for p in recipe.speech), [])):
        row = manifest_row(path, root)
        if row and row["split"] == "val" and re.search(recipe.voices, row["speaker_or_class"]) and \
                source_rate(path, root) >= 0.9 * rate:
            x = read_clip(path, rate)
            if len(x) < 2 * rate or snr_estimate_db(x, rate) >= MIN_SNR_DB:
                name = row["speaker_or_class"]
                if name.startswith("unknown"):
                    name = "pico_" + os.path.basename(path)[:8]
                found.setdefault(name, []).append(x)
    return found


def stretches(clips, rate):
    """Cut a speaker's clips, joined by 0.25 s of silence, into 4 to 8 s each;
    pieces with nobody speaking are left out.

    Cuts fall in the quietest 100 ms that the limits allow.
    """
    gap = np.zeros(rate // 4, np.float32)
    x = np.concatenate([part for clip in clips for part in (clip, gap)])
    out = []
    while len(x) >= SHORTEST * rate:
        end = len(x)
        if end > LONGEST * rate:
            levels = np.convolve(frame_levels_db(x[SHORTEST * rate:LONGEST * rate], rate), np.ones(5), "same")
            end = SHORTEST * rate + int(np.argmin(levels)) * rate // 50 + rate // 100
        if flatness_db(x[:end], rate) <= MAX_FLATNESS_DB:
            out.append(x[:end])
        x = x[end:]
    return out


def noise_recordings(root, row, rate):
    """All recordings of one withheld noise that hold what the rate can carry, each (N,)."""
    paths = sum((sorted(glob.glob(os.path.join(root, p.format(**row)))) for p in NOISE), [])
    if not paths:
        sys.exit(f"no recording of {row['source']} {row['name']} below {root}")
    return [read_clip(p, rate) for p in paths if source_rate(p, root) >= 0.9 * rate]


def cut_noise(x, n, rng):
    """n samples of x from a place that is not one of its silences."""
    if len(x) < n:
        x = np.tile(x, -(-n // len(x)))
    starts = rng.integers(0, len(x) - n + 1, 16)
    levels = [db(np.mean(x[s:s + n] ** 2)) for s in starts]
    good = [s for s, level in zip(starts, levels) if level > max(levels) - 6]
    return x[good[0]:good[0] + n]


def mix(speech, noise, snr_db, level_db, rate):
    """(noisy, clean), the speech's active level at level_db; neither clips."""
    clean = speech * 10 ** ((level_db - active_level_db(speech, rate)) / 20)
    gain_db = level_db - snr_db - db(np.mean(noise ** 2))
    noisy = clean + noise * 10 ** (gain_db / 20)
    scale = min(1.0, 0.95 / np.abs(noisy).max(), 0.95 / np.abs(clean).max())
    return noisy * scale, clean * scale


def pair_up(root, recipe, rng):
    """[(speaker, speech, noise row)] in random order, one for each noise use."""
    per_speaker = speakers(root, recipe)
    # Round robin, so that each speaker is heard before any is heard twice.
    queues = {name: stretches(clips, recipe.rate) for name, clips in per_speaker.items()}
    order, turn = [], 0
    while any(len(q) > turn for q in queues.values()):
        names = [name for name in queues if len(queues[name]) > turn]
        order += [(name, queues[name][turn]) for name in rng.permutation(names)]
        turn += 1
    uses = [row for row in read_csv(os.path.join(HERE, "withheld.csv"))
            if row["set"] == recipe.noise for _ in range(recipe.times * int(row["times"]))]
    if not order:
        sys.exit(f"no speech below {root}")
    # A few stretches come again, with another noise, where there are more noises than stretches.
    return [(name, x, row) for (name, x), row in zip(itertools.cycle(order), uses)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder the sources are below")
    parser.add_argument("--out", required=True)
    parser.add_argument("--set", choices=sorted(SETS), default="heldout", dest="which")
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    recipe, rng = SETS[args.which], np.random.default_rng(args.seed)
    for folder in ("noisy", "clean"):
        os.makedirs(os.path.join(args.out, folder), exist_ok=True)
    rows, recordings = [], {}
    for speaker, speech, noise in pair_up(args.root, recipe, rng):
        key = noise["source"], noise["name"]
        if key not in recordings:
            recordings[key] = noise_recordings(args.root, noise, recipe.rate)
        if not recordings[key]:
            continue
        i = len(rows)
        recording = recordings[key][rng.integers(len(recordings[key]))]
        snr = SNRS_DB[i % len(SNRS_DB)]
        noisy, clean = mix(speech, cut_noise(recording, len(speech), rng), snr,
                           rng.uniform(-32, -20), recipe.rate)
        name = f"{i:02d}_{noise['name']}_{snr}dB.wav"
        soundfile.write(os.path.join(args.out, "noisy", name), noisy, recipe.rate, "PCM_16")
        soundfile.write(os.path.join(args.out, "clean", name), clean, recipe.rate, "PCM_16")
        rows.append([name, speaker, "/".join(key), snr, f"{len(clean) / recipe.rate:.2f}"])
    write_csv(os.path.join(args.out, "list.csv"),
              ["file", "speaker", "noise", "snr_db", "seconds"], rows)
    print(f"{args.out}: {len(rows)} pairs, {len({r[1] for r in rows})} speakers, "
          f"{len({r[2] for r in rows})} noises")


if __name__ == "__main__":
    main()
