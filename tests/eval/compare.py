# SPDX-License-Identifier: MIT
"""Is a new model better than the old one, and good for nothing worse?

    compare.py --old A.safetensors --new B.safetensors --pairs DIR [--ssm build/release/ssm] [--minutes 40]

Runs both over DIR (noisy/, clean/, list.csv as score.py has them) and prints the scores by SNR with paired differences,
what clean speech loses, how far noise alone goes down, what silence becomes, and the SI-SDR gain in each round of one
long stream of all mixtures. Ends with a line a requirement; exit status 0 says that the new one meets them all.
Choose on the development set; the held-out set only tells how good the choice was.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
import soundfile

import score
from score_arrays import mean_and_ci, si_sdr
from score_arrays import score as score_pair

LOST_SI_SDR_DB = 0.3        # what the new one may lose on average and in a round of the long stream
CLEAN_PESQ = 4.2            # clean speech against itself, mean; or what the old one has
CLEAN_WORSE_DB = 1.0        # and how much farther from it than the old one's
NOISE_DOWN_DB = 25.0        # noise alone, mean


class Model:
    """A model file as a function (N,) -> (N,) at rate, through the command line tool."""

    def __init__(self, ssm, path, rate):
        self.ssm, self.path, self.rate = ssm, path, rate

    def command(self):
        return f"{self.ssm} denoise {{in}} {{out}} --model {self.path} --quiet"

    def __call__(self, x):
        with tempfile.TemporaryDirectory() as folder:
            names = [os.path.join(folder, n) for n in ("in.wav", "out.wav")]
            soundfile.write(names[0], x, self.rate, subtype="FLOAT")
            subprocess.run([self.ssm, "denoise", *names, "--model", self.path, "--quiet"], check=True)
            return soundfile.read(names[1])[0][:len(x)]


def level_db(x):
    return 10 * np.log10(np.mean(np.square(x)) + 1e-12)


def without_speech(model, pairs):
    """How far each mixture's noise alone goes down, in dB."""
    noises = [p["noisy"] - p["clean"] for p in pairs]
    return np.array([level_db(n) - level_db(model(n)) for n in noises])


def without_noise(model, pairs):
    """(SI-SDR in dB, PESQ-WB) of each clean reference against itself."""
    outputs = [model(p["clean"]) for p in pairs]
    return (np.array([si_sdr(p["clean"], y) for p, y in zip(pairs, outputs)]),
            np.array([score_pair(p["clean"], y, ("pesq",), p["rate"])["pesq"] for p, y in zip(pairs, outputs)]))


def rounds(model, pairs, minutes):
    """Mean SI-SDR gain of the mixtures in each round of one stream that repeats them."""
    whole = np.concatenate([p["noisy"] for p in pairs])
    count = max(1, round(minutes * 60 * model.rate / len(whole)))
    y, at, out = model(np.tile(whole, count)), 0, []
    for _ in range(count):
        gains = []
        for p in pairs:
            n = len(p["noisy"])
            gains.append(si_sdr(p["clean"], y[at:at + n]) - si_sdr(p["clean"], p["noisy"]))
            at += n
        out.append(np.mean(gains))
    return np.array(out)


def measure(model, pairs, minutes):
    """Everything but the scores of the pairs, of one model."""
    clean, clean_pesq = without_noise(model, pairs)
    m = {"clean": clean, "clean_pesq": clean_pesq, "noise": without_speech(model, pairs),
         "silence": float(np.abs(model(np.zeros(10 * model.rate))).max()), "rounds": rounds(model, pairs, minutes)}
    print(f"{model.path}\n"
          f"  clean in: SI-SDR {clean.mean():.1f} dB, worst {clean.min():.1f}; PESQ {np.nanmean(clean_pesq):.2f}, worst "
          f"{np.nanmin(clean_pesq):.2f}\n"
          f"  noise alone: {m['noise'].mean():.1f} dB down, least {m['noise'].min():.1f}\n"
          f"  silence: {m['silence']:.3g} at most\n"
          f"  {len(m['rounds'])} rounds of one stream: gain {m['rounds'][0]:.2f} dB in the first, {m['rounds'].min():.2f} to "
          f"{m['rounds'].max():.2f}")
    return m


def requirements(results, old, new):
    """[(sentence, met)]"""
    gap = {k: mean_and_ci([b[k] - a[k] for a, b in zip(results["old"]["rows"], results["new"]["rows"])])
           for k in ("pesq", "estoi", "si_sdr")}
    return [
        (f"PESQ-WB {gap['pesq'][0]:+.3f} +- {gap['pesq'][1]:.3f}: surely more", gap["pesq"][0] - gap["pesq"][1] > 0),
        (f"ESTOI {gap['estoi'][0]:+.4f}: not less", gap["estoi"][0] >= -0.002),
        (f"SI-SDR {gap['si_sdr'][0]:+.2f} dB: at most {LOST_SI_SDR_DB} lost", gap["si_sdr"][0] >= -LOST_SI_SDR_DB),
        (f"clean speech's PESQ {np.nanmean(new['clean_pesq']):.2f}",
         np.nanmean(new["clean_pesq"]) >= min(CLEAN_PESQ, np.nanmean(old["clean_pesq"]))),
        (f"clean speech's SI-SDR {new['clean'].mean() - old['clean'].mean():+.1f} dB",
         new["clean"].mean() >= old["clean"].mean() - CLEAN_WORSE_DB),
        (f"noise alone {new['noise'].mean():.1f} dB down", new["noise"].mean() >= NOISE_DOWN_DB),
        ("silence stays silence", new["silence"] <= max(1e-4, old["silence"])),
        (f"hours: the worst round {new['rounds'].min() - new['rounds'][0]:+.2f} dB",
         new["rounds"].min() >= new["rounds"][0] - LOST_SI_SDR_DB)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--old", required=True)
    p.add_argument("--new", required=True)
    p.add_argument("--pairs", required=True)
    p.add_argument("--ssm", default="build/release/ssm")
    p.add_argument("--minutes", type=float, default=40.0, help="length of the long stream")
    a = p.parse_args()
    pairs = score.read_pairs(a.pairs)
    models = {k: Model(a.ssm, os.path.abspath(path), pairs[0]["rate"]) for k, path in (("old", a.old), ("new", a.new))}
    denoisers = {"noisy": lambda pair: pair["noisy"]}
    denoisers.update({k: score.command_denoiser(m.command()) for k, m in models.items()})
    results = score.evaluate_all(pairs, denoisers)
    score.print_table(results, pairs)
    score.print_differences(results, "old")
    measured = {k: measure(m, pairs, a.minutes) for k, m in models.items()}
    lines = requirements(results, measured["old"], measured["new"])
    print()
    for sentence, met in lines:
        print("yes " if met else "NO  ", sentence)
    return 0 if all(met for _, met in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
