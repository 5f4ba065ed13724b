# SPDX-License-Identifier: MIT
"""What training minimises: how far the spectra are apart, as the ear weighs them, and the samples.

Every item is brought to one level first (its target's, or a tenth of the mixture's where that is more: noise-only
items have no target level), so quiet items count as much as loud ones.

`audible` is what PESQ hears, made differentiable: loudness a Bark band of estimate and target, the part of their
difference that isn't masked, and once more what was added where there was little. On 264 outputs of eleven kinds of
processing it correlates with PESQ-WB by 0.93, within one denoiser's outputs by 0.88. It hears up to 8 kHz, as PESQ does.
What is above 8 kHz counts in the spectra, `treble` for a bin's 1 below, and by `crisp`: how many dB its levels are off
while somebody speaks. Its phases can't be known, and what is right on average in complex spectra is too soft.

`begun` is the share of speech that is missing where words begin, counted there alone: a hundredth of the time, so that
in a mean over all of it a soft consonant is nothing.

`judged` is what DNSMOS misses in nine seconds of each item: overall quality, and half as much speech quality, below a
goal a little above what it says of the target itself, so that there is an end to pleasing it. It needs a judge.Judge.

`taught` is the share of all of the above but `judged` that is measured against what a teacher makes of the same mixture
instead of the target: what can be known of it. Where the mixture is clean speech already, nobody teaches better than it.
Above what every teacher hears, and below `taught_from` Hz, the lesson is the target.

`faithful` is how many times more `audible` and SNR count in items that are clean speech already, which is to come out as it
is: their errors are small, and next to those of noisy ones nothing.
"""
import numpy as np
import torch
import torch.nn.functional as F

import judge
from layers import RealFFT
from mix import active_blocks

RESOLUTIONS = (256, 512, 1024)          # windows at 16 kHz; the hop is half of each
POWER = 0.3
FLOOR = 1e-6                            # of |X|^2 at unit RMS: -60 dB

BEGUN_AFTER, BEGUN_WITHIN = 0.15, 0.08  # seconds of quiet before, seconds that are a word's beginning
BEGUN_LOUD, BEGUN_QUIET = 1e-3, 1e-2    # of the active power: at least and, before it, at most
BEGUN_RISE = 10.0                       # times what was before
BEGUN_HZ = 100.0                        # below it nothing begins a word

EAR_WINDOW, EAR_BARK = 512, 0.5         # the resolution at 16 kHz whose spectra the ear gets; a band's width
EAR_TOP = 8000.0                        # Hz
EAR_DB = 82.0                           # sound pressure level of unit RMS
EAR_MOST = 45.0                         # a hop's disturbance at most
CRISP_TOP = 0.9                         # of half the rate: above it converters' filters are all there is
CRISP_SPEAKS, CRISP_FLOOR = 1e-4, 1e-4  # of the loudest hop's power, of the loudest treble bin's mean power
CRISP_LEAST = 1e-6                      # of all power, in its loudest bin: less treble is none
# points of PESQ's raw score lost for a unit of disturbance and of added disturbance, fitted to the outputs above
EAR_SYMMETRIC, EAR_ADDED = 0.163, 0.022

JUDGED = (0.5, 0.0, 1.0)                # what a point of speech, background and overall quality counts
JUDGED_ABOVE = 0.2                      # points above the target's own that are enough
JUDGED_SPEECH = 0.4                     # share of a stretch that must be speech to be judged
JUDGED_DB = (-34.0, -20.0)              # levels at which it is heard: the verdict depends on that

TAUGHT_TOP = 0.9, 0.975                 # of a slower teacher's half rate: up to the first it is heard alone, above the second not
TAUGHT_RISE = 1.5                       # times taught_from: from there on a teacher is heard alone
FAITHFUL_DB = -30.0                     # a mixture that differs this little from its target is clean speech

WEIGHTS = dict(magnitude=0.7, complex=0.4, removed=0.5, snr=0.01, audible=0.03, begun=0.05, treble=0.3, crisp=0.0, judged=0.0,
               faithful=0.0, taught=0.0, taught_from=0.0)


def hann(n, device):
    w = torch.hann_window(n, device=device)
    return w / w.square().sum().sqrt()


def half_frames(x, win, hop):
    """(B, samples) -> (B, T, 2*hop), windowed, hop by hop."""
    blocks = x[:, :x.shape[1] // hop * hop].reshape(x.shape[0], -1, hop)
    return torch.cat((blocks[:, :-1], blocks[:, 1:]), -1) * win


def level(noisy, clean):
    """The gain (B, 1) that brings an item to unit level."""
    return (clean.square().mean(1, keepdim=True) + 0.01 * noisy.square().mean(1, keepdim=True) + 1e-12).rsqrt()


def beginnings(power, hop):
    """Mean squares (B, T) every hop seconds -> 1 where sound has just begun after quiet, else 0: much more than there was
    within BEGUN_AFTER until BEGUN_WITHIN ago. Quiet is relative, recordings having noise of their own."""
    before, within = max(1, round(BEGUN_AFTER / hop)), max(1, round(BEGUN_WITHIN / hop))
    on = (power > 1e-3 * power.amax(1, keepdim=True)).to(power.dtype)
    active = (power * on).sum(1, keepdim=True) / on.sum(1, keepdim=True).clamp_min(1.0)
    past = F.max_pool1d(F.pad(power, (before + within - 1, 0), value=1e9), before, 1)[:, :power.shape[1]]
    return ((power > BEGUN_LOUD * active) & (past < BEGUN_QUIET * active) & (power > BEGUN_RISE * past)).to(power.dtype)


def spectral(P, S, weight, hop):
    """Compressed spectra P (estimate), S (target), (B, T, F, 2) every hop seconds, and what a bin counts (F): squared error
    of magnitude, of the complex value, and of magnitude where the estimate has less than the target (speech removed); the
    last once more where words begin, as a share of what is there."""
    p = P.square().sum(-1) + FLOOR
    s = S.square().sum(-1) + FLOOR
    pm, sm = p ** (POWER / 2), s ** (POWER / 2)
    magnitude = ((pm - sm).square() * weight).mean()
    less = F.relu(sm - pm).square() * weight
    low = int(BEGUN_HZ * 2 * hop) + 1
    begun = beginnings(s[..., low:].sum(-1), hop)[..., None]
    missing = (less * begun).sum() / ((sm.square() * weight * begun).sum() + 1.0)
    complex_ = ((P * (pm / p.sqrt())[..., None] - S * (sm / s.sqrt())[..., None]).square().sum(-1) * weight).mean()
    return magnitude, complex_, less.mean(), missing


def already_clean(noisy, clean):
    """(B,) whether the mixture is clean speech."""
    return (noisy - clean).square().mean(1) < 10 ** (FAITHFUL_DB / 10) * clean.square().mean(1)


def shares(noisy, clean, times):
    """(B,), 1 on average: what an item counts, where the mixture is clean speech already `times` as much again."""
    counts = 1.0 + times * already_clean(noisy, clean).to(clean.dtype)
    return counts / counts.mean()


def snr_db(estimate, clean, reference, counts):
    """Mean over the items, counts (B,) being their shares, of the SNR in dB, softly limited at 30 dB; a target below a fifth
    of the mixture's RMS counts as that much: measured against next to nothing, one item would be most of a step."""
    power = torch.maximum(clean.square().mean(1), 0.04 * reference.square().mean(1))
    error = (estimate - clean).square().mean(1)
    return (10 * torch.log10((power + 1e-12) / (error + 1e-3 * power + 1e-12)) * counts).mean()


def bark(hz):
    """Traunmueller's scale."""
    return 26.81 * hz / (1960.0 + hz) - 0.53


def bin_weights(window, rate, treble, device):
    """(bins,) what a bin counts in a mean over all bins, so that those up to 8 kHz count as much as at 16 kHz."""
    hz = torch.arange(window // 2 + 1, device=device) * (rate / window)
    return torch.where(hz <= EAR_TOP, torch.ones_like(hz), torch.full_like(hz, treble)) * (rate / (2 * EAR_TOP))


def ear(window, rate, device):
    """-> (bins, bands): a bin's power shared among the bands it touches, times the power that unit RMS has;
    (bands,): the threshold in quiet (Terhardt's formula). Powers are 10^(sound pressure level / 10)."""
    k = np.arange(window // 2 + 1)
    low, high = bark(np.maximum((k - 0.5) * rate / window, 0.0)), bark(np.minimum((k + 0.5) * rate / window, rate / 2))
    edge = np.arange(bark(0.0), bark(EAR_TOP) + EAR_BARK, EAR_BARK)
    share = np.minimum(high[:, None], edge[None, 1:]) - np.maximum(low[:, None], edge[None, :-1])
    share = np.maximum(share, 0.0) / (high - low)[:, None] * (10 ** (EAR_DB / 10) / (window / 2))
    middle = np.minimum(edge[:-1] + EAR_BARK / 2, bark(EAR_TOP) - EAR_BARK / 4)
    khz = 1.96 * (middle + 0.53) / (26.28 - middle)
    quiet = 3.64 * khz ** -0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz ** 4
    put = lambda x: torch.from_numpy(x.astype(np.float32)).to(device)
    return put(share), put(10 ** (quiet / 10))


def loudness(power, quiet):
    """Zwicker's, sones a Bark."""
    return 0.1866 * (2.0 * quiet) ** 0.23 * F.relu((0.5 + 0.5 * power / quiet) ** 0.23 - 1.0)


def audible(P, S, share, quiet, counts):
    """Spectra of estimate and target -> mean over the items, counts (B,) being their shares, of the points of PESQ's raw
    score the difference costs.

    As PESQ does: the target takes on the estimate's average spectrum and the estimate the target's loudness hop by
    hop, both within limits; a quarter of the quieter one's loudness masks; what was added counts more the more it
    exceeds the target; quiet hops count a little more; root mean square over time."""
    p, s = P.square().sum(-1) @ share, S.square().sum(-1) @ share
    active = (s.sum(-1, keepdim=True) > 1e6).to(s.dtype)
    tilt = ((p * active).sum(1, keepdim=True) + 1e3) / ((s * active).sum(1, keepdim=True) + 1e3)
    s = s * tilt.clamp(0.01, 100.0)
    total = s.sum(-1, keepdim=True)
    p = p * ((total + 5e3) / (p.sum(-1, keepdim=True) + 5e3)).clamp(3e-4, 5.0)
    a, b = loudness(p, quiet), loudness(s, quiet)
    difference = (a - b).sign() * F.relu((a - b).abs() - 0.25 * torch.minimum(a, b))
    excess = ((p + 50.0) / (s + 50.0)) ** 1.2
    excess = torch.where(excess < 3.0, torch.zeros_like(excess), excess.clamp(max=12.0))
    width = EAR_BARK * quiet.shape[0]
    symmetric = EAR_BARK * width * (difference.square().sum(-1) / width + 1e-9).sqrt()
    added = EAR_BARK * (F.relu(difference) * excess).sum(-1)
    weight = ((total[..., 0] + 1e5) / 1e7) ** -0.04
    heard = [(((d * weight).clamp(max=EAR_MOST).square().mean(1) + 1e-6).sqrt() * counts).mean() for d in (symmetric, added)]
    return EAR_SYMMETRIC * heard[0] + EAR_ADDED * heard[1]


def crisp(P, S, low, high):
    """Spectra of estimate and target -> how far the estimate's levels in bins [low, high) are off, in dB: the root mean
    square over those bins, its mean over the hops in which the target speaks and the items that have treble."""
    p, s = P.square().sum(-1), S.square().sum(-1)
    total, p, s = s.sum(-1), p[..., low:high], s[..., low:high]
    speaks = (total > CRISP_SPEAKS * total.amax(1, keepdim=True)).to(s.dtype)
    mean = (s * speaks[..., None]).sum(1) / speaks.sum(1, keepdim=True).clamp_min(1.0)
    loudest = mean.amax(1)
    has = (loudest > CRISP_LEAST * total.mean(1)).to(s.dtype)
    floor = (CRISP_FLOOR * loudest + 1e-12)[:, None, None]
    off = 10.0 * torch.log10((p + floor) / (s + floor))
    hops = speaks * has[:, None]
    return ((off.square().mean(-1) + 1e-3).sqrt() * hops).sum() / hops.sum().clamp_min(1.0)


def narrow_band(x, step):
    """(B, n * step) samples -> (B, n) at a step'th of the rate, by cutting the spectrum."""
    if step == 1:
        return x
    n = x.shape[1] // step
    return torch.fft.irfft(torch.fft.rfft(x)[:, :n // 2 + 1], n) / step


def taught_within(heard, target, rate, low):
    """(B, n) at a step'th of target's rate in Hz, target (B, n * step) -> target with heard's spectrum between low Hz and,
    where step isn't 1, where TAUGHT_TOP begins; shared between the two up to low times TAUGHT_RISE and where it ends."""
    n = heard.shape[1]
    step = target.shape[1] // n
    spectrum, heard = torch.fft.rfft(target), torch.fft.rfft(heard) * step
    k = torch.arange(heard.shape[1], device=heard.device, dtype=torch.float32)
    share = torch.ones_like(k)
    if step > 1:
        begin, end = (x * n / 2 for x in TAUGHT_TOP)
        share = ((end - k) / (end - begin)).clamp(0.0, 1.0)
    if low:
        share = share * ((k * (rate / (n * step)) / low - 1.0) / (TAUGHT_RISE - 1.0)).clamp(0.0, 1.0)
    return torch.fft.irfft(spectrum + F.pad(share * (heard - spectrum[:, :heard.shape[1]]), (0, spectrum.shape[1] - heard.shape[1])),
                           n * step)


def judged_level(clean, db):
    """Stretches of target (B, n) -> the gain (B, 1) that brings speech to db (B,), and whether it is speech (B,)."""
    energy, on = active_blocks(clean, judge.HOP)
    on = on * (energy > 1e-10)
    rms = ((energy * on).sum(1) / on.sum(1).clamp_min(1.0)).clamp_min(1e-10).sqrt()
    return (10 ** (db / 20) / rms)[:, None], (on.mean(1) > JUDGED_SPEECH).to(rms.dtype)


PIECES = dict(half_frames=half_frames, spectral=spectral, snr_db=snr_db, audible=audible, crisp=crisp)


class Loss:
    def __init__(self, config, device, pieces=PIECES, judged_by=None):
        """judged_by: a judge.Judge, or None where its weight is 0."""
        self.judge, self.counts = judged_by, torch.tensor(JUDGED, device=device)
        self.weights = dict(WEIGHTS, **{k: v for k, v in config.items() if k in WEIGHTS})
        rate = config.get("rate", 16000)
        scaled = lambda n: n * rate // 16000
        self.rate = rate
        self.windows = [(n, hann(n, device), bin_weights(n, rate, self.weights["treble"], device))
                        for n in map(scaled, RESOLUTIONS)]
        self.ear_window = scaled(EAR_WINDOW)
        self.ear = ear(self.ear_window, rate, device)
        self.above = int(EAR_TOP * self.ear_window / rate) + 1, int(CRISP_TOP * self.ear_window / 2)
        self.step = round(rate / judge.RATE)
        self.pieces = pieces

    def judged(self, estimate, clean):
        """Points missing, mean over the items; mean overall quality. Which stretch of an item is judged goes by its place
        in the batch, items being drawn at random."""
        B, n = estimate.shape
        length = judge.LENGTH * self.step
        place = torch.arange(B, device=estimate.device) / max(B - 1, 1)
        index = (place * (n - length)).long()[:, None] + torch.arange(length, device=estimate.device)
        e, c = estimate.gather(1, index), clean.gather(1, index)
        e, c = narrow_band(e, self.step), narrow_band(c, self.step)
        low, high = JUDGED_DB
        with torch.no_grad():
            gain, speech = judged_level(c, low + (high - low) * (place * 7.0 % 1.0))
            goal = self.judge(c * gain) + JUDGED_ABOVE
        verdict = self.judge(e * gain)
        missing = (F.relu(goal - verdict) * self.counts).sum(1)
        return (missing * speech).mean(), (verdict[:, 2] * speech).sum() / speech.sum().clamp_min(1.0)

    def spectra(self, x):
        return [RealFFT.apply(self.pieces["half_frames"](x, win, n // 2)) for n, win, _ in self.windows]

    def apart(self, e, heard, c, r, counts):
        """Estimate, its spectra, a target and the mixture at unit level, the items' shares -> loss but for `judged`, parts: as
        __call__'s but for overall quality."""
        p, w, total = self.pieces, self.weights, [0.0] * 4
        with torch.no_grad():
            wanted = self.spectra(c)
        for (n, _, weight), P, S in zip(self.windows, heard, wanted):
            total = [t + v / len(self.windows) for t, v in zip(total, p["spectral"](P, S, weight, n / (2 * self.rate)))]
            if n == self.ear_window:
                lost = p["audible"](P, S, *self.ear, counts)
                off = p["crisp"](P, S, *self.above) if w["crisp"] else torch.zeros_like(lost)
        snr = p["snr_db"](e, c, r, counts)
        loss = (w["magnitude"] * total[0] + w["complex"] * total[1] + w["removed"] * total[2] + w["begun"] * total[3] -
                w["snr"] * snr + w["audible"] * lost + w["crisp"] * off)
        return loss, [*total, snr, lost, off]

    def __call__(self, estimate, clean, noisy, lesson=None):
        """lesson: a teacher's estimate, or None. -> loss, parts: a tensor (magnitude, complex, removed, begun, snr, audible, dB
        that treble is off, overall quality, all against clean; the last two 0 where they have no weight)."""
        g, w = level(noisy, clean), self.weights
        e, c, r = estimate * g, clean * g, noisy * g
        with torch.no_grad():
            counts = shares(r, c, w["faithful"])
        heard = self.spectra(e)
        loss, parts = self.apart(e, heard, c, r, counts)
        if lesson is not None:
            lesson = torch.where(already_clean(noisy, clean)[:, None], c, lesson * g)
            loss = (1 - w["taught"]) * loss + w["taught"] * self.apart(e, heard, lesson, r, counts)[0]
        quality = torch.zeros_like(loss)
        if w["judged"]:
            missing, quality = self.judged(estimate, clean)
            loss = loss + w["judged"] * missing
        return loss, torch.stack([*parts, quality]).detach()
