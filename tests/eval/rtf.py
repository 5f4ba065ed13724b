# SPDX-License-Identifier: MIT
"""CPU seconds a second of audio of denoisers, all hop by hop as they run live, on one core.

    rtf.py NOISY.wav --cmd 'ssm denoise {in} {out} --step --quiet' --name denoise-16k [--core N] [--repeats 7]

Beside the commands stand those of peers.py's PyPI peers that this machine has. They take turns, each with a long stretch
of the file and a short one; the difference of the two is the audio between them, without start-up, a model's loading or a
conversion of the rate. Prints the median of the repeats, the least and the most, and what share of the dearest that is,
repeat by repeat. The core should be idle: on a busy one only the shares tell, and they less.
"""
import argparse
import os
import statistics
import tempfile

import numpy as np
import soundfile

from peers import pypi_peers
from score import command_denoiser, cpu_seconds, read_wav
from score_arrays import at_rate

SHORT = 1.0     # seconds


def timed(run):
    """CPU seconds that run() takes."""
    start = cpu_seconds()
    run()
    return cpu_seconds() - start


def command(template, x, seconds, folder):
    """(run the long stretch, run the short one, seconds between them) of a command on 16 kHz files."""
    runs, denoise = [], command_denoiser(template)
    for length in (seconds, SHORT):
        path = os.path.join(folder, f"{length}.wav")
        soundfile.write(path, x[:int(length * 16000)], 16000)
        runs.append(lambda pair={"path": path, "rate": 16000}: denoise(pair))
    return *runs, seconds - SHORT


def in_process(peer, x, seconds):
    """The same of a peer."""
    parts = [np.float32(at_rate(x[:int(length * 16000)], 16000, peer.rate)) for length in (seconds, SHORT)]
    return *(lambda part=part: peer.run(part) for part in parts), seconds - SHORT


def measure(rows, repeats):
    """{name: [RTF a repeat]} of {name: (long, short, seconds)}; a first turn isn't counted."""
    rtf = {name: [] for name in rows}
    for turn in range(repeats + 1):
        for name, (long, short, seconds) in rows.items():
            took = (timed(long) - timed(short)) / seconds
            if turn:
                rtf[name].append(took)
    return rtf


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("noisy", help="a recording at 16 kHz; a short one is repeated")
    parser.add_argument("--cmd", action="append", default=[], help="command with {in} and {out}; may be repeated")
    parser.add_argument("--name", action="append", default=[], help="a command's name, in order")
    parser.add_argument("--core", type=int, help="the core to run on (the last)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=9.0, help="the long stretch; a command's is three times that")
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if args.core is None else args.core})
    x = read_wav(args.noisy, 16000)
    if len(x) < 3 * args.seconds * 16000:
        x = np.tile(x, 1 + int(3 * args.seconds * 16000 / len(x)))
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: command(cmd, x, 3 * args.seconds, folder) for name, cmd in zip(args.name, args.cmd, strict=True)}
        rows.update({name: in_process(peer, x, args.seconds) for name, peer in pypi_peers().items()})
        rtf = measure(rows, args.repeats)
    dearest = max(rtf, key=lambda name: statistics.median(rtf[name]))
    print(f"{'':24}{'RTF':>9}{'least':>9}{'most':>9}   of {dearest}")
    for name, r in rtf.items():
        share = [a / b for a, b in zip(r, rtf[dearest])]
        print(f"{name[:24]:24}{statistics.median(r):9.5f}{min(r):9.5f}{max(r):9.5f}   "
              f"{statistics.median(share):.3f} ({min(share):.3f} to {max(share):.3f})")


if __name__ == "__main__":
    main()
