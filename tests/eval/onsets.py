# SPDX-License-Identifier: MIT
"""What a denoiser leaves of the beginnings of words: (N,) arrays at 16 kHz, time-aligned.

A word begins where speech comes out of a pause: at the first 10 ms within 20 dB of the active level, which come 100 ms at
most after 150 ms that all lie more than 30 dB below it, and before 200 ms within 10 dB of it. All of this above 100 Hz: a
recording's rumble and the click of its switch begin no word, and what becomes of them is nobody's loss.
"""
import os
import sys

import numpy as np
from scipy.signal import butter, sosfiltfilt

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../model/train"))
from clips import active_level_db, db  # noqa: E402

RATE = 16000
BLOCK = RATE // 100
FIRST, AFTER = RATE // 20, RATE // 5        # 50 ms that are a beginning, 200 ms that follow
STILL, RISE = 15, 10                        # blocks
LOWEST = 100.0                              # Hz
LEAST_DB = -40.0


def voiced(x):
    """x without what lies below the voice."""
    return sosfiltfilt(butter(4, LOWEST, "high", fs=RATE, output="sos"), np.asarray(x, np.float64))


def onsets(clean):
    """Samples at which a word begins in clean speech that went through voiced()."""
    blocks = clean[:len(clean) // BLOCK * BLOCK].reshape(-1, BLOCK)
    levels, active = db(np.mean(blocks ** 2, axis=1)), active_level_db(clean, RATE)
    still = np.convolve(levels < active - 30, np.ones(STILL))[:len(levels)] == STILL
    loud = levels > active - 20
    ends = [i for i in range(STILL, len(levels) - RISE - 25) if still[i - 1] and not still[i] and loud[i:i + RISE].any()]
    begins = [BLOCK * (i + int(np.argmax(loud[i:i + RISE]))) for i in ends]
    return [at for at in begins if db(np.mean(clean[at + FIRST:at + FIRST + AFTER] ** 2)) > active - 10]


def kept_db(clean, other, start, stop):
    """What is left of a stretch of clean speech in the other, by projection, in dB; LEAST_DB at least."""
    c, y = clean[start:stop], other[start:stop]
    return 20 * np.log10(max(10 ** (LEAST_DB / 20), (c @ y) / (c @ c)))


def beginnings(clean, other):
    """(words,) dB that are left of each word's first 50 ms."""
    clean, other = voiced(clean), voiced(other)
    return np.array([kept_db(clean, other, at, at + FIRST) for at in onsets(clean)])


def onset_db(clean, other):
    """The mean of a file's words; NaN where none begins."""
    kept = beginnings(clean, other)
    return float(kept.mean()) if len(kept) else float("nan")
