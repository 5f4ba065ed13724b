# SPDX-License-Identifier: MIT
"""Read recordings as mono arrays and measure them.

A clip is a (N,) float32 array, full scale = +-1. Levels are dB relative to
full scale of the mean square, so a full-scale sine has -3 dB.
"""
import numpy as np
import soundfile

RATE = 16000


def resample(x, rate_in, rate_out):
    """Change the rate of x (N,) by cutting or padding its spectrum.

    The whole clip is one transform: exact in band, no delay, and a brick wall
    at the lower of the two Nyquist frequencies.
    """
    if rate_in == rate_out or len(x) == 0:
        return x.astype(np.float32)
    step = rate_in // np.gcd(rate_in, rate_out)
    padded = _smooth(-(-(len(x) + 512) // step)) * step
    spectrum = np.fft.rfft(x, padded)
    n_out = padded * rate_out // rate_in
    out = np.fft.irfft(spectrum[:n_out // 2 + 1], n_out) * (n_out / padded)
    return out[:round(len(x) * rate_out / rate_in)].astype(np.float32)


def _smooth(n):
    """The least m >= n without prime factors over 5: fast to transform."""
    while True:
        m = n
        for p in (2, 3, 5):
            while m % p == 0:
                m //= p
        if m == 1:
            return n
        n += 1


def read_clip(path, rate=RATE):
    """The file at path as mono (N,) float32 at `rate`; any soundfile format."""
    x, source_rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(x.mean(axis=1), source_rate, rate)


def db(power):
    """10 log10 with a floor at -120 dB."""
    return 10 * np.log10(np.maximum(power, 1e-12))


def frame_levels_db(x, rate=RATE, seconds=0.02):
    """Levels of successive windows of x, (N / window,) in dB."""
    n = int(rate * seconds)
    x = x[:len(x) // n * n].reshape(-1, n)
    return db(np.mean(x.astype(np.float64) ** 2, axis=1))


def active_level_db(x, rate=RATE):
    """Level of x over its active parts, in the manner of ITU-T P.56.

    Active: less than 15.9 dB below the active level itself, plus 200 ms of
    hangover; iterated until the set stands still.
    """
    levels = frame_levels_db(x, rate)
    active = levels > -100
    for _ in range(20):
        if not active.any():
            return -120.0
        level = db(np.mean(10 ** (levels[active] / 10)))
        loud = levels > level - 15.9
        again = np.convolve(loud, np.ones(10))[:len(loud)] > 0
        if np.array_equal(again, active):
            break
        active = again
    return float(level)


def snr_estimate_db(x, rate=RATE):
    """Loud minus quiet: the 95th percentile of 20 ms levels minus the 5th.

    Windows of digital silence (below -90 dB) don't count as quiet. An
    estimate from above: pauses filled with breath or reverberation lower it,
    a noise gate raises it.
    """
    levels = frame_levels_db(x, rate)
    levels = levels[levels > -90]
    if len(levels) < 10:
        return 0.0
    return float(np.percentile(levels, 95) - np.percentile(levels, 5))


def flatness_db(x, rate=RATE):
    """Spectral flatness of the loud windows (within 30 dB of the loudest), their median in dB: noise without pitch or
    formants has -2 to -5, speech -15 to -30."""
    n = int(rate * 0.032)
    windows = x[:len(x) // n * n].reshape(-1, n) * np.hanning(n)
    power = np.abs(np.fft.rfft(windows, axis=1)[:, 4:200]) ** 2 + 1e-12
    levels = db(power.mean(axis=1))
    power = power[levels > levels.max(initial=-120.0) - 30]
    if len(power) == 0:
        return 0.0
    return float(np.median(db(np.exp(np.log(power).mean(axis=1))) - db(power.mean(axis=1))))


def speaking(x, rate=RATE):
    """x without the stretches in which nobody speaks: what lies more than 0.3 s from any 20 ms within 25 dB of the
    active level is cut out, head and tail included."""
    n = int(rate * 0.02)
    levels = frame_levels_db(x, rate)
    loud = levels > active_level_db(x, rate) - 25
    near = np.convolve(loud, np.ones(31))[15:15 + len(loud)] > 0.5
    return x[:len(levels) * n][np.repeat(near, n)]


def clipped_fraction(x):
    """Share of samples in runs of three or more equal ones at the peak."""
    peak = np.max(np.abs(x), initial=0.0)
    if peak < 0.5:
        return 0.0
    top = np.abs(x) >= 0.995 * peak
    runs = top[:-2] & top[1:-1] & top[2:]
    return float(np.mean(runs)) if len(runs) else 0.0


def same_recording(x, y, rate=RATE, seconds=8.0):
    """Highest normalised correlation of any `seconds` of x found within y.

    Three excerpts of x are searched for in y at 4 kHz, whitened a little so
    that rumble doesn't decide. The same recording in another encoding gives
    0.7 to 1.0, unrelated noise under 0.2.
    """
    x, y = (np.diff(resample(v, rate, 4000)) for v in (x, y))
    n = min(int(4000 * seconds), len(x), len(y))
    best = 0.0
    for start in np.linspace(0, len(x) - n, 3).astype(int):
        best = max(best, _best_match(x[start:start + n], y))
    return best


def _best_match(piece, y):
    """max over lags of |<piece, y shifted>| / (|piece| |y under it|)."""
    n, size = len(piece), _smooth(len(piece) + len(y))
    product = np.fft.rfft(y, size) * np.conj(np.fft.rfft(piece, size))
    valid = np.fft.irfft(product, size)[:len(y) - n + 1]
    energy = np.concatenate([[0.0], np.cumsum(y.astype(np.float64) ** 2)])
    under = np.sqrt(np.maximum(energy[n:] - energy[:-n], 1e-9))
    return float(np.max(np.abs(valid) / under) / max(np.linalg.norm(piece), 1e-9))
