# SPDX-License-Identifier: MIT
"""Score denoisers on pairs of noisy and clean recordings.

    score.py --pairs DIR... --cmd 'ssm denoise {in} {out}' [--name NAME] [--peers] [--worst 10]
             [--groups noise,speaker]

DIR/noisy and DIR/clean hold WAV files of the same names, at one rate; DIR/list.csv
(file, snr_db), where there is one, gives the rows by SNR. Prints for the noisy
input and each denoiser PESQ-WB, ESTOI, STOI, SI-SDR, its gain over the noisy
input, SI-SDR above 80 Hz, DNSMOS OVRL where speechmos is installed, what is left of
words' first 50 ms after a pause (onsets.py), and at more than 16 kHz the
log-spectral distance above 8 kHz (less is better), as mean +- half a 95 %
confidence interval. RTF is CPU seconds a second of audio (a command's start-up
and a peer's conversion of the rate included).

Every denoiser's constant delay, the median over the files of the lag where its
output resembles its input most, is taken out before scoring and shown; the
gaps between two rows of the same files are surer than the intervals, so use
--against NAME for paired differences. Where a noise or a speaker is in several
files, as when several DIRs are mixed from the same ones, intervals over files
are too narrow: --groups names a column or two of list.csv, over whose groups
the intervals are then.
"""
import argparse
import csv
import glob
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile

import numpy as np
import soundfile

from score_arrays import at_rate, lag, mean_and_ci, score, shifted

COLUMNS = [("pesq", "PESQ-WB", 2), ("estoi", "ESTOI", 3), ("stoi", "STOI", 3),
           ("si_sdr", "SI-SDR", 1), ("gain", "gain dB", 1), ("si_sdr_80", "SI-SDR>80", 1),
           ("ovrl", "OVRL", 2), ("onset", "onset dB", 1), ("lsd", "LSD>8k", 1)]


def read_pairs(folder):
    """[{file, snr, listed, rate, noisy (N,), clean (N,)}] of the folder, all at one rate."""
    listed = {}
    listing = os.path.join(folder, "list.csv")
    if os.path.exists(listing):
        with open(listing, newline="") as f:
            listed = {r["file"]: r for r in csv.DictReader(f)}
    pairs = []
    for path in sorted(glob.glob(os.path.join(folder, "noisy", "*.wav"))):
        name = os.path.basename(path)
        rate = soundfile.info(path).samplerate
        if pairs and rate != pairs[0]["rate"]:
            sys.exit(f"{path}: rate {rate}, the others have {pairs[0]['rate']}")
        row = listed.get(name, {})
        snr = int(float(row["snr_db"])) if row else None
        pairs.append({"file": name, "snr": snr, "listed": row, "path": path, "rate": rate,
                      "noisy": read_wav(path, rate),
                      "clean": read_wav(os.path.join(folder, "clean", name), rate)})
    if not pairs:
        sys.exit(f"{folder}/noisy: no WAV files")
    return pairs


def read_all_pairs(folders):
    """The pairs of one folder or more, all at one rate; of several, files are named with their folder."""
    pairs = [pair for folder in folders for pair in read_pairs(folder)]
    if len({pair["rate"] for pair in pairs}) > 1:
        sys.exit("--pairs: folders of different rates")
    if len(folders) > 1:
        for pair in pairs:
            folder = os.path.dirname(os.path.dirname(os.path.abspath(pair["path"])))
            pair["file"] = os.path.join(os.path.basename(folder), pair["file"])
    return pairs


def groups_of(pairs, columns):
    """Of each of list.csv's columns the pairs' labels."""
    if len(columns) > 2:
        sys.exit("--groups: two columns at most")
    for column in columns:
        for pair in pairs:
            if column not in pair["listed"]:
                sys.exit(f"--groups: {pair['path']} has no {column} in list.csv")
    return [np.array([pair["listed"][column] for pair in pairs]) for column in columns]


def read_wav(path, rate):
    """The file as (N,) float at rate; any other rate is an error."""
    x, own = soundfile.read(path, always_2d=True)
    if own != rate:
        sys.exit(f"{path}: rate {own}, must be {rate}")
    return x.mean(axis=1)


def cpu_seconds():
    """CPU time of this process and its ended children."""
    return sum(u.ru_utime + u.ru_stime for u in
               (resource.getrusage(who) for who in
                (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def command_denoiser(template):
    """A denoiser (pair -> (N,)) that runs a shell command on WAV files."""
    def denoise(pair):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "out.wav")
            line = template.replace("{in}", shlex.quote(pair["path"]))
            line = line.replace("{out}", shlex.quote(out))
            ran = subprocess.run(line, shell=True, capture_output=True, text=True)
            if ran.returncode or not os.path.exists(out):
                sys.exit(f"{line}: status {ran.returncode}\n{ran.stderr[-2000:]}")
            return read_wav(out, pair["rate"])
    return denoise


def evaluate(pairs, denoise):
    """(rows of scores, delay in samples, RTF) of one denoiser."""
    outputs, start = [], cpu_seconds()
    for pair in pairs:
        outputs.append(denoise(pair))
    rate = pairs[0]["rate"]
    rtf = (cpu_seconds() - start) / sum(len(p["noisy"]) / rate for p in pairs)
    delay = int(np.median([lag(p["noisy"], y, rate // 5) for p, y in zip(pairs, outputs)]))
    rows = []
    for pair, y in zip(pairs, outputs):
        y = shifted(y, delay, len(pair["clean"]))
        row = score(pair["clean"], y, rate=rate)
        rows.append({"file": pair["file"], "snr": pair["snr"], **row})
    return rows, delay, rtf


def evaluate_all(pairs, denoisers):
    """{name: {rows, delay, rtf}} of {name: denoiser}, the first of which the gain is over."""
    results = {}
    for name, denoise in denoisers.items():
        rows, delay, rtf = evaluate(pairs, denoise)
        base = next(iter(results.values()))["rows"] if results else rows
        for row, noisy in zip(rows, base):
            row["gain"] = row["si_sdr"] - noisy["si_sdr"]
        results[name] = {"rows": rows, "delay_ms": 1000 * delay / pairs[0]["rate"], "rtf": rtf}
        print(f"{name} scored", file=sys.stderr)
    return results


def columns_of(results):
    """The columns that these results fill."""
    rows = next(iter(results.values()))["rows"]
    return [c for c in COLUMNS if np.isfinite([row.get(c[0], np.nan) for row in rows]).any()]


def print_table(results, pairs, groups=()):
    """One block for all files, then one for each SNR; groups as groups_of has them."""
    columns = columns_of(results)
    snrs = sorted({p["snr"] for p in pairs if p["snr"] is not None})
    for snr in [None, *snrs]:
        some = [i for i, p in enumerate(pairs) if snr is None or p["snr"] == snr]
        title = "all" if snr is None else f"{snr} dB"
        print(f"\n{title}, {len(some)} files")
        print(f"{'':24}" + "".join(f"{head:>15}" for _, head, _ in columns)
              + ("   delay ms      RTF" if snr is None else ""))
        for name, r in results.items():
            line = f"{name[:24]:24}"
            for key, _, digits in columns:
                values = [r["rows"][i][key] for i in some]
                mean, ci = mean_and_ci(values, [g[some] for g in groups])
                line += f"{mean:9.{digits}f}+-{ci:<4.{digits}f}"
            if snr is None:
                line += f"{r['delay_ms']:11.1f}{r['rtf']:9.4f}"
            print(line)


def peer_denoiser(peer):
    """A denoiser (pair -> (N,)) of one of peers.py, at its own rate."""
    def denoise(pair):
        y = at_rate(peer.run(at_rate(pair["noisy"], pair["rate"], peer.rate)), peer.rate, pair["rate"])
        return y[:len(pair["noisy"])]
    return denoise


def print_peers(found, results):
    """What is known of the peers beside what was measured."""
    print(f"\n{'':24}{'latency ms':>12}{'parameters M':>14}{'MMAC/s':>8}{'RTF':>9}")
    for name, peer in found.items():
        known = ["-" if v is None else f"{v:g}" for v in (peer.latency_ms, peer.parameters, peer.mmacs)]
        print(f"{name[:24]:24}{known[0]:>12}{known[1]:>14}{known[2]:>8}{results[name]['rtf']:9.4f}")


def print_worst(results, count):
    """Each denoiser's files with the least PESQ-WB gain over the noisy input."""
    base = results["noisy"]["rows"]
    for name, r in results.items():
        if name == "noisy":
            continue
        gaps = sorted(((a["pesq"] - b["pesq"], a["si_sdr"] - b["si_sdr"], a["pesq"], a["file"])
                       for a, b in zip(r["rows"], base)), key=lambda g: g[:1])
        print(f"\n{name}: least gain of PESQ-WB, dB of SI-SDR gained, PESQ-WB")
        for gap in gaps[:count]:
            print("  %+.2f  %+5.1f  %.2f  %s" % gap)


def print_differences(results, against, groups=()):
    """Mean paired difference of each denoiser from one of them."""
    print(f"\npaired differences from {against}")
    for name, r in results.items():
        if name == against:
            continue
        line = f"{name[:24]:24}"
        for key, _, digits in columns_of(results):
            gaps = [a[key] - b[key] for a, b in zip(r["rows"], results[against]["rows"])]
            mean, ci = mean_and_ci(gaps, groups)
            line += f"{mean:+9.{digits}f}+-{ci:<4.{digits}f}"
        print(line)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, nargs="+", help="folders with noisy/ and clean/")
    parser.add_argument("--cmd", action="append", default=[],
                        help="command with {in} and {out}; may be repeated")
    parser.add_argument("--name", action="append", default=[], help="a command's name, in order")
    parser.add_argument("--peers", nargs="?", const="all", choices=("all", "debian", "pypi"),
                        help="also those of peers.py that this machine has")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="also each denoiser's N worst files")
    parser.add_argument("--against", help="print paired differences from this row")
    parser.add_argument("--groups", default="", metavar="COLUMNS",
                        help="of list.csv: intervals over their groups, not over files")
    parser.add_argument("--json", help="write every file's scores here")
    args = parser.parse_args()

    denoisers = {"noisy": lambda pair: pair["noisy"]}
    for i, cmd in enumerate(args.cmd):
        denoisers[args.name[i] if i < len(args.name) else f"cmd{i + 1}"] = command_denoiser(cmd)
    found = {}
    if args.peers:
        import peers
        found = {**(peers.debian_peers() if args.peers != "pypi" else {}),
                 **(peers.pypi_peers() if args.peers != "debian" else {})}
        denoisers.update({name: peer_denoiser(peer) for name, peer in found.items()})

    pairs = read_all_pairs(args.pairs)
    groups = groups_of(pairs, [column for column in args.groups.split(",") if column])
    results = evaluate_all(pairs, denoisers)
    print_table(results, pairs, groups)
    if found:
        print_peers(found, results)
    if args.worst:
        print_worst(results, args.worst)
    if args.against:
        print_differences(results, args.against, groups)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(results, f, indent=1)


if __name__ == "__main__":
    main()
