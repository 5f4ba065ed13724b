# SPDX-License-Identifier: MIT
"""Sound with labels, mixed on the device a batch at a time: what the taggers train on.

Each maker gives samples (B, n), targets (B, T, labels) in 0..1 and weights of the same shape (0: not asked there).
"""
import csv
import math
import multiprocessing
import os

import numpy as np
import torch
import torch.nn.functional as F

import data
import layers
import mix as mixing

RATE, HOP = 16000, 160
WORDS = ("alexa", "computer", "jarvis", "smart mirror", "snowboy", "view glass")

# below the active level, in dB: each is a stricter or looser meaning of "speech"; a target is how many agree
DEPTHS = (20.0, 27.0, 35.0, 42.0)
HANGOVER = 10                               # hops that count as speech after it


def levels(x, hop):
    """(B, n) -> mean power of each hop (B, n / hop)."""
    return x.reshape(x.shape[0], -1, hop).square().mean(-1)


def active_power(e):
    """(B, T) powers -> (B, 1): mean over the hops less than 15.9 dB below it, as ITU-T P.56 counts."""
    level = e.mean(1, keepdim=True)
    on = e > 0.01 * level
    for _ in range(4):
        level = (e * on).sum(1, keepdim=True) / on.sum(1, keepdim=True).clamp_min(1)
        on = e > level * 10 ** -1.59
    return level


def held(on, hops):
    """1 where `on` was 1 within the last `hops` hops."""
    return F.max_pool1d(F.pad(on[:, None], (hops, 0)), hops + 1, 1)[:, 0]


def speech_activity(clean, hop=HOP, depths=DEPTHS, hangover=HANGOVER):
    """(B, n) clean speech -> (B, T): the share of `depths` for which a hop is speech."""
    e = levels(clean, hop)
    level = active_power(e)
    return sum(held((e > level * 10 ** (-d / 10)).float(), hangover) for d in depths) / len(depths)


# ---- recordings on the device ---------------------------------------------------------------------------------------

class Named(data.Bank):
    """A bank whose files carry a number, a label's: named(n) gives start, length and number of n files."""

    def fill(self, sounds, numbers, weights):
        self.add(np.concatenate(sounds), [len(x) for x in sounds], weights)
        self.number = torch.tensor(numbers, device=self.device)

    def named(self, n):
        i = torch.multinomial(self.weight, n, replacement=True)
        return self.start[i], self.length[i], self.number[i]


def read_packs(folders):
    """[(kind, label, source, fold, samples int16)] of tag_pack.py's folders."""
    rows = []
    for folder in folders:
        with open(os.path.join(folder, "index.csv"), newline="") as f:
            rows += [dict(r, path=os.path.join(folder, r["path"])) for r in csv.DictReader(f)]
    with multiprocessing.Pool(max(1, min(16, os.cpu_count() - 1))) as pool:
        sounds = pool.map(_decode, [r["path"] for r in rows], chunksize=4)
    return [(r["kind"], r["label"], r["source"], r.get("fold", ""), x) for r, x in zip(rows, sounds) if len(x) > 1600]


def _decode(path):
    return np.clip(np.round(data.decode(path) * 32767), -32768, 32767).astype(np.int16)


def bank(clips, numbers, weights, device):
    out = Named(sum(len(x) for *_, x in clips) + RATE, device)
    out.fill([x for *_, x in clips], numbers, weights)
    return out


def spoken(x):
    """(first, last) sample of a key word's clip that is within 30 dB of its loudest 20 ms."""
    e = np.convolve(x.astype(np.float64) ** 2, np.ones(320), "same")
    on = np.flatnonzero(e > e.max() * 1e-3)
    return int(on[0]), int(on[-1])


class Pool:
    """Speech, noise and key words of packs on the device; `noise_labels` are what noise is called, in order. What is of the fold
    left out is only in `test`: [(label, samples)]."""

    def __init__(self, folders, device, left_out=None):
        clips = read_packs(folders)
        self.test = [(c[1], c[-1]) for c in clips if c[3] and c[3] == left_out]
        clips = [c for c in clips if not c[3] or c[3] != left_out]
        kind = lambda k: [c for c in clips if c[0] == k]
        speech, noise, words = kind("speech"), kind("noise"), kind("word")
        self.noise_labels = sorted({c[1] for c in noise} - {""})
        length = lambda c: len(c[-1]) / RATE
        of_label = {name: sum(length(c) for c in noise if c[1] == name) for name in self.noise_labels + [""]}
        # a label as often as the square root of its length says, the nameless noises as often as four labels
        share = {name: (4.0 if name == "" else 1.0) * math.sqrt(min(s, 900.0)) / s for name, s in of_label.items()}
        number = {name: i for i, name in enumerate(self.noise_labels)}
        self.speech = bank(speech, [0] * len(speech), [min(length(c), 30.0) ** 0.5 for c in speech], device)
        self.noise = bank(noise, [number.get(c[1], -1) for c in noise],
                          [share[c[1]] * min(length(c), 60.0) for c in noise], device)
        self.words = None
        if words:
            self.words = bank(words, [WORDS.index(c[1]) for c in words], [1.0] * len(words), device)
            self.words.spoken = torch.tensor([spoken(c[-1]) for c in words], device=device)
        self.rirs, self.version = [], 1
        self.told = "%.1f min speech, %.1f min noise of %d labels, %d key words" % (
            self.speech.used / RATE / 60, self.noise.used / RATE / 60, len(self.noise_labels), len(words))


# ---- voice activity -------------------------------------------------------------------------------------------------

def bands(n, bins, device):
    """(bins, n): n neighbouring bands, as wide as the ear's from 100 Hz to the top, of a spectrum's bins."""
    edges = torch.expm1(torch.linspace(math.log1p(100 / 700), math.log1p(RATE / 2 / 700), n + 1)) * 700
    hz = torch.linspace(0, RATE / 2, bins)[:, None]
    return ((hz >= edges[:-1]) & (hz < edges[1:])).float().to(device)


class Voice:
    """Mixtures as the denoiser's, with more pauses; the one label is speech. Trained beside it, and never told (that is what
    a ~ says): the share of speech in the power of each of sixteen bands."""

    BANDS = 16
    labels = ("speech",) + tuple("~band %d" % i for i in range(BANDS))

    def __init__(self, config, pool, device, wrap=None):
        self.window, self.bands = layers.sqrt_hann(2 * HOP, device), bands(self.BANDS, HOP + 1, device)
        self.mix, self.pool = mixing.Mix(dict(dict(paused=0.5, noise_only=0.1, silent=0.06, snr_high=30.0), **config), RATE, device, wrap), pool

    @torch.no_grad()
    def __call__(self):
        noisy, clean = self.mix(self.pool)
        target = torch.cat((speech_activity(clean)[..., None], self.share(clean, noisy - clean)), -1)
        return noisy, target, torch.ones_like(target)

    def share(self, clean, rest):
        """(B, n) each -> (B, T, BANDS)"""
        power = lambda x: layers.RealFFT.apply(layers.hop_frames(x, self.window, HOP)).square().sum(-1) @ self.bands
        speech = power(clean)
        return speech / (speech + power(rest) + 1e-9)


# ---- scenes ---------------------------------------------------------------------------------------------------------

class Scenes(mixing.Mix):
    """Speech and up to two labelled noises, each somewhere in the item or not at all."""

    SPEECH, WORD, FIRST, SECOND, SILENT, CUT, HOLES = 0.35, 0.0, 0.90, 0.40, 0.04, 0.0, 0.5
    BEND = 0.4              # octaves, up or down, by which a noise is played faster or slower

    def __init__(self, config, pool, device, wrap=None):
        super().__init__(dict(dict(seconds=9.6, batch=48, paused=0.4, speed=0.2), **config), RATE, device, wrap)
        self.pool = pool
        self.labels = ("speech", "silence") + tuple(pool.noise_labels)

    def place(self, bank, n):
        """n key words, each at a random time of its own item: samples (n, self.n), number, first and last spoken sample."""
        i = torch.multinomial(bank.weight, n, replacement=True)
        rate = self._rate(n)
        length = (bank.length[i] << 10) // rate
        at = (self._u(n) * (self.n - length - 1).clamp_min(1)).long()
        k = torch.arange(self.n, device=self.device)[None] - at[:, None]
        inside = (k >= 0) & (k < length[:, None] - 1)
        where = k.clamp_min(0) * rate[:, None]
        base, part = where >> 10, (where & 1023).float() / 1024
        base = torch.minimum(base, bank.length[i][:, None] - 2)
        a, b = (bank.audio[bank.start[i][:, None] + base + j].float() for j in (0, 1))
        x = (a + (b - a) * part) * inside / 32768.0
        spoken = at[:, None] + (bank.spoken[i] << 10) // rate[:, None]
        return x, bank.number[i], spoken[:, 0], spoken[:, 1]

    def speak(self):
        """Speech and key words of all items: samples (B, n) at unit level, and the key words' (item, number, first, last)."""
        x = self._voices(self.pool)
        silent = self._u(self.batch) > self.SPEECH
        x[silent] = 0.0
        i = self._some(self.WORD)
        if not len(i):
            return x, (i, i, i, i)
        w, number, first, last = self.place(self.pool.words, len(i))
        w = w / self.active_rms(w)[:, None].clamp_min(3e-4) * 10 ** (self._u(len(i), -6.0, 6.0) / 20)[:, None]
        t = torch.arange(self.n, device=self.device)[None]
        # some are cut in the middle: half a key word is none
        middle = first + ((last - first) * self._u(len(i), 0.35, 0.65)).long()
        cut = self._u(len(i)) < self.CUT
        half = torch.where((self._u(len(i)) < 0.5)[:, None], t < middle[:, None], t > middle[:, None])
        w = torch.where(cut[:, None] & ~half, torch.zeros_like(w), w)
        margin = (self._u((2, len(i))) ** 2 * 0.4 * self.rate).long()
        apart = (t < (first - margin[0])[:, None]) | (t > (last + margin[1])[:, None])
        x[i] = x[i] * apart + w
        keep = ~cut
        return x, (i[keep], number[keep], first[keep], last[keep])

    def noises(self, share):
        """One labelled noise for a share of the items at unit RMS, from somewhere on in some; its number or -1."""
        start, length, number = self.pool.noise.named(self.batch)
        begin = (torch.rand(self.batch, device=self.device, dtype=torch.float64) * length).long()
        rate = (1024 * 2 ** self._u(self.batch, -self.BEND, self.BEND)).long()
        x = self.crop_plain(self.pool.noise.audio, start, length, begin, rate, self.n)
        x = x / mixing.rms(x)[:, None].clamp_min(1e-4)
        j = self._some(0.3)
        x[j] = x[j] * self._starts(len(j))
        none = self._u(self.batch) > share
        x[none] = 0.0
        return x, torch.where(none, torch.full_like(number, -1), number)

    def heard(self, e, total, depth, hops):
        """Target and weight (B, T) of a part with powers e in a mixture of powers total: active and not drowned."""
        smooth = lambda v: F.avg_pool1d(F.pad(v[:, None], (24, 0)), 25, 1)[:, 0]
        active = held((e > active_power(e) * 10 ** (-depth / 10)).float(), hops) * (e.amax(1, keepdim=True) > 0)
        ratio = smooth(e) / smooth(total).clamp_min(1e-12)
        return active * (ratio > 0.001), 1.0 - active * (ratio < 0.03) * (ratio > 0.001)

    def holes(self):
        """Gains (B, bins): in a share of the items a band of an eighth of an octave to one and a half is missing, somewhere."""
        middle = torch.exp(self._u(self.batch, math.log(80.0), math.log(8000.0)))[:, None]
        wide = 2 ** self._u(self.batch, 0.06, 0.75)[:, None]
        missing = (self.hz > middle / wide) & (self.hz < middle * wide) & (self._u(self.batch) < self.HOLES)[:, None]
        return 1.0 - missing.float()

    @torch.no_grad()
    def __call__(self):
        B, device = self.batch, self.device
        holes = self.holes()
        curve, noise_curve = (gains * holes for gains in self._filters())
        dry, (item, number, _, last) = self.speak()
        spectrum = torch.fft.rfft(dry, self.fft) * curve
        i = self._some(self.config["reverb"])
        spectrum[i] = spectrum[i] * torch.fft.rfft(self._impulses(len(i)), self.fft)
        speech = torch.fft.irfft(spectrum, self.fft)[:, :self.n]
        parts, first = [], None
        level = torch.where(speech.abs().amax(1) > 0, -self._u(B, -5.0, 25.0), self._u(B, -12.0, 0.0))
        for share in (self.FIRST, self.SECOND):
            x, label = self.noises(share)
            x = torch.fft.irfft(torch.fft.rfft(x, self.fft) * noise_curve, self.fft)[:, :self.n]
            x = x / mixing.rms(x)[:, None].clamp_min(1e-3) * (x.abs().amax(1, keepdim=True) > 0)
            gain = level if first is None else level + self._u(B, -12.0, 6.0)
            first = x * 10 ** (gain / 20)[:, None]
            parts.append((first, label))
        j = self._some(0.08)                                            # something synthetic that has no name
        extra = torch.zeros(B, self.n, device=device)
        extra[j] = self._synthetic(len(j)) * 10 ** (self._u(len(j), -25.0, 0.0) / 20)[:, None]
        mixture = speech + sum(x for x, _ in parts) + extra
        peak = 10 ** (torch.where(self._u(B) < 0.7, self._u(B, -18.0, -1.0), self._u(B, -50.0, -18.0)) / 20)
        peak[self._some(self.SILENT)] = 1e-4
        gain = (peak / mixture.abs().amax(1).clamp_min(1e-3))[:, None]
        sound = (mixture * gain).clamp(-1, 1) + (torch.rand(B, self.n, device=device) - 0.5) / 32768.0
        return (sound, *self.targets(levels(speech, HOP), [(levels(x, HOP), k) for x, k in parts], levels(mixture, HOP),
                                     levels(sound, HOP), item, number, last))

    def targets(self, speech, parts, total, sound, item, number, last):
        target = torch.zeros(*sound.shape, len(self.labels), device=self.device)
        weight = torch.ones_like(target)
        target[..., 0], weight[..., 0] = self.heard(speech, total, 30.0, HANGOVER)
        for e, label in parts:
            on, asked = self.heard(e, total, 30.0, 30)
            i = torch.nonzero(label >= 0)[:, 0]
            k = 2 + label[i]
            target[i, :, k] = torch.maximum(target[i, :, k], on[i])
            weight[i, :, k] = torch.minimum(weight[i, :, k], asked[i])
        quiet = 1.0 - held((sound > 10 ** -6.0).float(), 20)            # -60 dBFS
        # what nobody can hear in a silent stretch isn't asked for
        weight = weight * (1.0 - quiet[..., None] * target.gt(0))
        target[..., 1], weight[..., 1] = quiet, 1.0
        return target, weight


# ---- key words ------------------------------------------------------------------------------------------------------

class Words(Scenes):
    """Key words among speech and noises, and little else asked: label 0 is none, 1 + w word w. exclusive."""

    SPEECH, WORD, FIRST, SECOND, SILENT, CUT, HOLES, SAID = 0.7, 0.75, 0.80, 0.35, 0.02, 0.3, 0.0, 6.0

    def __init__(self, config, pool, device, wrap=None):
        super().__init__(dict(dict(seconds=6.4, batch=96, speed=0.2, reverb=0.5), **config), pool, device, wrap)
        self.labels = ("none",) + WORDS

    def targets(self, speech, parts, total, sound, item, number, last):
        """A word is named from 50 ms before its end until 0.3 s after; either answer will do for 0.2 s before and 0.1 s after
        that, and until then it might still become another."""
        since = torch.arange(sound.shape[1], device=self.device)[None] - (last // HOP)[:, None]
        said = ((since >= -5) & (since < 30)).float()
        either = ((since >= -25) & (since < 40)).float() - said
        target = torch.zeros(*sound.shape, len(self.labels), device=self.device)
        weight = torch.ones_like(sound)
        target[item, :, 1 + number] = said
        target[..., 0] = 1.0 - target.sum(-1)
        weight[item] = 1.0 - either + (self.SAID - 1.0) * said
        return target, weight[..., None].expand_as(target)


# ---- digits ---------------------------------------------------------------------------------------------------------

class Digits:
    """Spoken digits at 8 kHz in silence, noise or speech; label 0 is none, 1 + d digit d. exclusive."""

    labels = ("none",) + tuple("zero one two three four five six seven eight nine".split())
    rate, hop = 8000, 80

    def __init__(self, config, pool, device, folder, left_out=None):
        """left_out: a speaker to train without; None: the official training split."""
        self.batch, self.n, self.device, self.pool = config.get("batch", 128), 11200, device, pool
        sound = data_of_digits(folder)
        mine = [c for c in sound if (c[1] != left_out if left_out else c[2] == "train")]
        self.test = [c for c in sound if (c[1] == left_out if left_out else c[2] == "test")]
        self.clips = Named(sum(len(c[3]) for c in mine) + RATE, device)
        self.clips.fill([c[3] for c in mine], [c[0] for c in mine], [1.0] * len(mine))
        self.mix = mixing.Mix(dict(batch=self.batch, seconds=self.n / 8000, rooms=200, room_seconds=0.4), self.rate, device)

    def other(self, bank, n):
        """n crops of a 16 kHz bank at 8 kHz, unit RMS."""
        start, length = bank.draw(n)
        begin = (torch.rand(n, device=self.device, dtype=torch.float64) * length).long()
        at = (begin[:, None] + torch.arange(2 * self.n, device=self.device)[None]) % length[:, None]
        X = torch.fft.rfft(bank.audio[start[:, None] + at].float() / 32768.0)
        x = torch.fft.irfft(X[:, :self.n // 2 + 1], self.n)
        return x / mixing.rms(x)[:, None].clamp_min(1e-4)

    @torch.no_grad()
    def __call__(self):
        B, m, n, device = self.batch, self.mix, self.n, self.device
        start, length, digit = self.clips.named(B)
        rate = (1024 * 2 ** m._u(B, -0.35, 0.35)).long()
        long = (length << 10) // rate
        at = (m._u(B) * (n - long - 1).clamp_min(1)).long()
        k = torch.arange(n, device=device)[None] - at[:, None]
        inside = (k >= 0) & (k < long[:, None] - 1)
        where = k.clamp_min(0) * rate[:, None]
        base = torch.minimum(where >> 10, length[:, None] - 2).clamp_min(0)
        a, b = (self.clips.audio[start[:, None] + base + j].float() / 32768.0 for j in (0, 1))
        x = (a + (b - a) * ((where & 1023).float() / 1024)) * inside
        x = x / self.mix.active_rms(x)[:, None].clamp_min(1e-4)
        nobody = m._u(B) < 0.15
        x[nobody] = 0.0
        j = m._some(0.12)                                               # someone else talks instead
        x[j], nobody[j] = self.other(self.pool.speech, len(j)), True
        edge, order = m._edges(B, 0.3)
        spectrum = torch.fft.rfft(x, m.fft) * m._curve(edge, order, m._u(B, 30.0, 250.0))
        i = m._some(0.4)
        spectrum[i] = spectrum[i] * torch.fft.rfft(m._impulses(len(i)), m.fft)
        x = torch.fft.irfft(spectrum, m.fft)[:, :n]
        noise = self.other(self.pool.noise, B) * 10 ** (-m._u(B, 0.0, 45.0) / 20)[:, None]
        i = m._some(0.4)
        noise[i] = torch.randn(len(i), n, device=device) * 10 ** (-m._u(len(i), 15.0, 60.0) / 20)[:, None]
        x = x + noise
        peak = 10 ** (m._u(B, -35.0, -1.0) / 20)
        x = x * (peak / x.abs().amax(1).clamp_min(1e-4))[:, None] + (torch.rand(B, n, device=device) - 0.5) / 32768.0
        return (x, *self.targets(digit, nobody, at // self.hop, (at + long) // self.hop))

    def targets(self, digit, nobody, begin, end):
        t = torch.arange(self.n // self.hop, device=self.device)[None]
        begin, end = begin[:, None], end[:, None]
        named = begin + ((end - begin) * 0.65).long()
        said = ((t >= named) & (t < end + 8)).float()
        either = (((t >= begin) & (t < named)) | ((t >= end + 8) & (t < end + 25))).float()
        said, either = said * ~nobody[:, None], either * ~nobody[:, None]
        target = torch.zeros(*said.shape, len(self.labels), device=self.device)
        target[torch.arange(len(digit), device=self.device), :, 1 + digit] = said
        target[..., 0] = 1.0 - said
        weight = (1.0 - either) * (1.0 + 3.0 * said)                    # a digit is asked for in a sixth of the hops
        return target, weight[..., None].expand_as(target)


def data_of_digits(folder):
    """[(digit, speaker, split, samples)] of tag_pack.py's digits.flac."""
    x = np.clip(np.round(data.decode(os.path.join(folder, "digits.flac"), 8000) * 32767), -32768, 32767).astype(np.int16)
    out, at = [], 0
    with open(os.path.join(folder, "digits.csv"), newline="") as f:
        for r in csv.DictReader(f):
            n = int(r["samples"])
            out.append((int(r["digit"]), r["speaker"], r["split"], x[at:at + n]))
            at += n
    return out
