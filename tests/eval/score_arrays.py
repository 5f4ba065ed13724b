# SPDX-License-Identifier: MIT
"""Scores of denoised speech, for arrays: import this from a training loop.

Every metric takes (clean, other), both (N,) at 16 kHz, time-aligned, of the
same length, and gives a float; higher is better. score() takes any rate: what
is defined at 16 kHz is measured there, SI-SDR and the treble at the rate.
"""
import functools
import warnings

import numpy as np
from pesq import PesqError
from pesq import pesq as _pesq
from pystoi import stoi as _stoi
from scipy.signal import butter, resample_poly, sosfiltfilt
from scipy.stats import t as student

from onsets import onset_db

RATE = 16000
TREBLE = 8000.0         # Hz: what wide-band telephony lacks


def si_sdr(clean, other):
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    clean = np.asarray(clean, np.float64) - np.mean(clean)
    other = np.asarray(other, np.float64) - np.mean(other)
    target = clean * (clean @ other) / max(clean @ clean, 1e-12)
    wrong = other - target
    return float(10 * np.log10((target @ target + 1e-12) / (wrong @ wrong + 1e-12)))


def si_sdr_80(clean, other, rate=RATE):
    """si_sdr with everything below 80 Hz taken from both: no rumble, no DC."""
    high = butter(2, 80.0, "high", fs=rate, output="sos")
    return si_sdr(sosfiltfilt(high, clean), sosfiltfilt(high, other))


def treble_lsd(clean, other, rate, most_db=40.0):
    """Log-spectral distance in dB above 8 kHz: over 32 ms windows in which the
    clean one speaks, the root mean square over bins, levels more than most_db
    below the clean one's loudest treble counted as that. Lower is better; NaN
    where there is no treble."""
    n = int(0.032 * rate)
    shape = lambda x: np.lib.stride_tricks.sliding_window_view(x, n)[::n // 2] * np.hanning(n)
    a, b = (np.abs(np.fft.rfft(shape(np.asarray(x, np.float64)), axis=1)) ** 2 for x in (clean, other))
    loud = a.sum(1) > a.sum(1).max() * 1e-4
    above = slice(int(TREBLE * n / rate) + 1, int(0.45 * n))
    a, b = a[loud][:, above], b[loud][:, above]
    if not a.size or not a.max() > 0:
        return float("nan")
    floor = a.mean(0).max() * 10 ** (-most_db / 10)
    gap = 10 * np.log10(np.maximum(a, floor) / np.maximum(b, floor))
    return float(np.sqrt((gap ** 2).mean(1)).mean())


def _pesq_of(rate, band, clean, other):
    try:
        return float(_pesq(rate, np.asarray(clean, np.float32), np.asarray(other, np.float32), band))
    except PesqError:
        return float("nan")


def pesq_wb(clean, other):
    """ITU-T P.862.2 wide-band PESQ, 1.04 to 4.64; NaN where it finds no speech."""
    return _pesq_of(RATE, "wb", clean, other)


def pesq_nb(clean, other):
    """ITU-T P.862 narrow-band PESQ (MOS-LQO) of (N,) at 8 kHz; NaN where it finds no speech."""
    return _pesq_of(8000, "nb", clean, other)


def stoi(clean, other):
    """Short-time objective intelligibility, about 0 to 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # too short: 1e-5
        return float(_stoi(clean, other, RATE, extended=False))


def estoi(clean, other):
    """Extended STOI, which also hears modulated noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(_stoi(clean, other, RATE, extended=True))


@functools.cache
def _dnsmos():
    from dnsmos import Dnsmos
    from peers import folder_of
    folder = folder_of("speechmos")
    return Dnsmos(folder) if folder else None


def ovrl(clean, other):
    """DNSMOS P.835 overall quality; NaN without PyPI's speechmos."""
    return _dnsmos()(other)[2] if _dnsmos() else float("nan")


AT_16K = {"pesq": pesq_wb, "estoi": estoi, "stoi": stoi, "ovrl": ovrl, "onset": onset_db}
AT_ANY = {"si_sdr": lambda a, b, rate: si_sdr(a, b), "si_sdr_80": si_sdr_80, "lsd": treble_lsd}
METRICS = ("pesq", "estoi", "stoi", "si_sdr", "si_sdr_80", "ovrl", "onset")


def at_rate(x, rate, to):
    """x (N,) at another rate."""
    return x if rate == to else resample_poly(x, to // np.gcd(rate, to), rate // np.gcd(rate, to))


def score(clean, other, metrics=METRICS, rate=RATE):
    """{metric: value} of one pair; above 16 kHz with the distance in the treble."""
    narrow = [at_rate(x, rate, RATE) for x in (clean, other)]
    wide = (*metrics, "lsd") if rate > 2 * TREBLE else metrics
    return {m: AT_16K[m](*narrow) if m in AT_16K else AT_ANY[m](clean, other, rate) for m in wide}


def lag(reference, other, longest=RATE // 5):
    """Samples by which `other` comes after `reference`, within +-longest."""
    n = len(reference) + len(other)
    product = np.fft.rfft(other, n) * np.conj(np.fft.rfft(reference, n))
    correlation = np.fft.irfft(product, n)
    near = np.concatenate([correlation[-longest:], correlation[:longest + 1]])
    return int(np.argmax(near)) - longest


def shifted(x, samples, length):
    """x moved earlier by `samples`, cut or zero-padded to `length`."""
    x = x[samples:] if samples >= 0 else np.concatenate([np.zeros(-samples, x.dtype), x])
    return np.pad(x[:length], (0, max(0, length - len(x))))


def spread(gaps, labels):
    """(variance of a mean that values differ from by gaps (N,), groups), where those of one group hang together."""
    groups, member = np.unique(labels, return_inverse=True, axis=0)
    count = len(groups)
    variance = np.sum(np.bincount(member.ravel(), gaps) ** 2) / len(gaps) ** 2
    return (variance * count / (count - 1), count) if count > 1 else (float("nan"), count)


def mean_and_ci(values, groups=()):
    """(mean, half width of its 95 % confidence interval) without NaNs.

    groups: one grouping or two, such as by noise and by speaker, each a label a
    value. Values of one group aren't independent: then the interval is over
    groups (Cameron, Gelbach and Miller 2011, no less than over either grouping
    alone), by Student's t of the grouping with fewer of them."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    values, groups = values[known], [np.asarray(g)[known] for g in groups]
    mean = float(values.mean()) if len(values) else float("nan")
    if len(values) < 2:
        return mean, float("nan")
    if not groups:
        return mean, float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
    alone = [spread(values - mean, g) for g in groups]
    both, _ = spread(values - mean, np.stack(groups, 1))
    variance = np.max([sum(v for v, _ in alone) - both * (len(groups) - 1), *(v for v, _ in alone)])
    return mean, float(student.ppf(0.975, min(n for _, n in alone) - 1) * np.sqrt(variance))
