#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make_demo.py HELDOUT: write demo-noisy.flac and demo-clean.flac beside this script from two pairs of the held-out set
(tests/eval/make_heldout.py): two readers of LibriSpeech beside a running tap (Speech Commands), both CC BY 4.0, at 5 dB."""
import os
import sys

import numpy as np
import soundfile

PAIRS = ("06_running_tap_10dB.wav", "08_running_tap_0dB.wav")
SNR_DB = 5.0


def main(folder):
    clean, noise = [], []
    for name in PAIRS:
        c, n = (soundfile.read(os.path.join(folder, kind, name))[0] for kind in ("clean", "noisy"))
        n = n - c
        gain = np.sqrt(np.mean(c ** 2) / np.mean(n ** 2) / 10 ** (SNR_DB / 10))
        scale = 0.05 / np.sqrt(np.mean(c ** 2))
        clean.append(c * scale)
        noise.append(n * gain * scale)
    c, n = np.concatenate(clean), np.concatenate(noise)
    here = os.path.dirname(os.path.abspath(__file__))
    soundfile.write(os.path.join(here, "demo-clean.flac"), c, 16000, subtype="PCM_16")
    soundfile.write(os.path.join(here, "demo-noisy.flac"), c + n, 16000, subtype="PCM_16")


if __name__ == "__main__":
    main(sys.argv[1])
