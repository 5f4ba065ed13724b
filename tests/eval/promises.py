# SPDX-License-Identifier: MIT
"""What users of denoisers complain of, measured on one model.

    promises.py --pairs DIR [--model M] [--ssm build/release/ssm] [--hours 1]

DIR as score.py has it; above 16 kHz beginnings and PESQ are heard at 16. Prints a line a
promise, kept or not, with the figures: word beginnings, quiet speech, clean
speech, clipping, a constant in the input, telephone speech at 8 kHz, noise
alone, and speech after hours of silence and of faint noise (--hours 0: not), and
after half a minute's pause. Exit status 0: all kept.
"""
import argparse
import collections
import csv
import os
import sys

import numpy as np

import score
from compare import Model, level_db
from onsets import RATE, beginnings, kept_db, onsets, voiced
from score_arrays import at_rate, mean_and_ci, pesq_nb, pesq_wb, si_sdr

QUIET_DBFS = -50.0
PAUSE = 30                      # s


def narrow(pair, x):
    """x (N,) at the pair's rate -> at 16 kHz, where beginnings and PESQ-WB are measured."""
    return at_rate(x, pair["rate"], RATE)


def pesqs(pairs, outputs):
    return np.array([pesq_wb(narrow(p, p["clean"]), narrow(p, y)) for p, y in zip(pairs, outputs)])


def mean_pesq(pairs, outputs):
    return np.nanmean(pesqs(pairs, outputs))


def word_beginnings(model, pairs, plain):
    left = lambda some, outputs: np.concatenate([beginnings(narrow(p, p["clean"]), narrow(p, y)) for p, y in zip(some, outputs)])
    clean = left(pairs, [model(p["clean"]) for p in pairs])
    some = [i for i, p in enumerate(pairs) if p["snr"] is None or p["snr"] >= 10]
    noisy = left([pairs[i] for i in some], [plain[i] for i in some])
    yield (f"word beginnings, clean: {len(clean)} words, first 50 ms {clean.mean():+.2f} dB, 5 % under "
           f"{np.percentile(clean, 5):+.1f}", np.percentile(clean, 5) > -3)
    yield (f"word beginnings at 10 dB and more: {len(noisy)} words, {noisy.mean():+.2f} dB, 5 % under "
           f"{np.percentile(noisy, 5):+.1f}", np.percentile(noisy, 5) > -10)


def quiet_speech(model, pairs, plain):
    gains = [10 ** ((QUIET_DBFS - level_db(p["clean"])) / 20) for p in pairs]
    noisy = [model(g * p["noisy"]) / g for g, p in zip(gains, pairs)]
    clean = [model(g * p["clean"]) / g for g, p in zip(gains, pairs)]
    lost = np.array([level_db(y) - level_db(p["clean"]) for p, y in zip(pairs, clean)])
    gap = mean_pesq(pairs, noisy) - mean_pesq(pairs, plain)
    yield f"quiet: at {QUIET_DBFS:g} dBFS PESQ-WB {gap:+.3f} against the usual level", gap > -0.05
    yield f"quiet and clean: level {lost.mean():+.2f} dB, worst {lost.min():+.2f}", lost.min() > -3


def clean_speech(model, pairs, plain):
    scores = pesqs(pairs, [model(p["clean"]) for p in pairs])
    yield f"clean: PESQ-WB {np.nanmean(scores):.2f} against itself, worst {np.nanmin(scores):.2f}", np.nanmean(scores) >= 4.2


def clipped(model, pairs, plain):
    """Peaks 9 dB over full scale."""
    loud = [np.clip(p["noisy"] * 2.82 / np.abs(p["noisy"]).max(), -1, 1) for p in pairs]
    before, after = mean_pesq(pairs, loud), mean_pesq(pairs, [model(x) for x in loud])
    yield f"clipped by 9 dB: PESQ-WB {before:.2f} -> {after:.2f}", after > before + 0.3


def constant(model, pairs, plain):
    gap = mean_pesq(pairs, [model(p["noisy"] + 0.25) for p in pairs]) - mean_pesq(pairs, plain)
    yield f"0.25 of full scale added: PESQ-WB {gap:+.3f}", gap > -0.1


def telephone(model, pairs, plain):
    calls = [{k: at_rate(p[k], model.rate, 8000) for k in ("noisy", "clean")} for p in pairs]
    line = Model(model.ssm, model.path, 8000)
    outputs = [line(p["noisy"]) for p in calls]
    nb = lambda which: np.nanmean([pesq_nb(p["clean"], x) for p, x in zip(calls, which)])
    before, after = nb([p["noisy"] for p in calls]), nb(outputs)
    gain, _ = mean_and_ci([si_sdr(p["clean"], y) - si_sdr(p["clean"], p["noisy"]) for p, y in zip(calls, outputs)])
    yield f"8 kHz: narrow-band PESQ {before:.2f} -> {after:.2f}, SI-SDR {gain:+.1f} dB", after > before + 0.4 and gain > 5


def noise_alone(model, pairs, plain, names):
    down = collections.defaultdict(list)
    for p in pairs:
        noise = p["noisy"] - p["clean"]
        down[names.get(p["file"], "noise")].append(level_db(noise) - level_db(model(noise)))
    music = [v for name, some in down.items() if "music" in name for v in some]
    other = [v for name, some in down.items() if "music" not in name for v in some]
    yield f"noise alone: {np.mean(other):.1f} dB down, least {min(other):.1f}", np.mean(other) >= 25
    if music:
        yield f"music alone: {np.mean(music):.1f} dB down (kept or removed as the card says)", True
    least = sorted((np.mean(v), name) for name, v in down.items())[:5]
    yield "  least: " + ", ".join(f"{name} {v:.1f}" for v, name in least), True


def kept_after(model, pairs, lead):
    """Mean dB kept of each mixture's first second of speech after lead(pair), less what is kept of it with nothing before."""
    gaps = []
    for p in pairs:
        before = lead(p)
        quiet = np.zeros(RATE // 4)
        at = next((i for i in onsets(voiced(np.append(quiet, narrow(p, p["clean"]))))), len(quiet)) - len(quiet)
        at = at * model.rate // RATE
        stop = max(at, 0) + model.rate
        after = model(np.append(before, p["noisy"]))[len(before):]
        gaps.append(kept_db(p["clean"], after, max(at, 0), stop) - kept_db(p["clean"], model(p["noisy"]), max(at, 0), stop))
    return np.array(gaps)


def pauses(model, pairs, plain):
    rng, n = np.random.default_rng(2), PAUSE * model.rate
    noise = lambda p: np.resize(p["noisy"] - p["clean"], n)
    some = pairs[2::4]          # at 10 dB, as make_heldout.py orders them
    for what, lead in (("the same noise", noise), ("the same noise 40 dB down", lambda p: 0.01 * noise(p)),
                       ("noise at -90 dBFS", lambda p: 10 ** (-90 / 20) * rng.standard_normal(n)),
                       ("digital silence", lambda p: np.zeros(n))):
        gaps = kept_after(model, some, lead)
        yield (f"{PAUSE} s of {what} before: the first second of speech {gaps.mean():+.2f} dB, worst {gaps.min():+.1f}",
               gaps.mean() > -1)


def after_hours(model, pairs, plain, hours):
    rng, few = np.random.default_rng(1), pairs[:8]
    speech = np.concatenate([p["noisy"] for p in few])
    clean = np.concatenate([p["clean"] for p in few])
    fresh = si_sdr(clean, model(speech))
    for what, level in (("silence", 0.0), ("noise at -70 dBFS", 10 ** (-70 / 20))):
        x = np.concatenate([level * rng.standard_normal(int(hours * 3600 * model.rate)), speech])
        gap = si_sdr(clean, model(x)[-len(clean):]) - fresh
        yield f"after {hours:g} h of {what}: SI-SDR {gap:+.2f} dB", gap > -0.3


def noise_names(folder):
    path = os.path.join(folder, "list.csv")
    if not os.path.exists(path):
        return {}
    with open(path, newline="") as f:
        return {r["file"]: r["noise"] for r in csv.DictReader(f)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", required=True)
    p.add_argument("--model", default="denoise-16k", help="a name or a file")
    p.add_argument("--ssm", default="build/release/ssm")
    p.add_argument("--hours", type=float, default=1.0)
    a = p.parse_args()
    pairs = score.read_pairs(a.pairs)
    model = Model(a.ssm, a.model, pairs[0]["rate"])
    plain = [model(p["noisy"]) for p in pairs]
    promises = [word_beginnings, quiet_speech, clean_speech, clipped, constant, telephone, pauses,
                lambda *v: noise_alone(*v, noise_names(a.pairs))]
    if a.hours:
        promises.append(lambda *v: after_hours(*v, a.hours))
    broken = 0
    for promise in promises:
        for sentence, kept in promise(model, pairs, plain):
            print("yes " if kept else "NO  ", sentence, flush=True)
            broken += not kept
    return broken > 0


if __name__ == "__main__":
    sys.exit(main())
