# SPDX-License-Identifier: MIT
"""Audio folders -> int16 samples on the device.

A part is a folder with speech/, noise/ and rir/, index.csv (path, kind, source, speaker or class, split, seconds) and a
file READY. Parts are decoded by a process of their own (python3 data.py PART OUT WORKERS RATE) into
OUT/{speech,noise,rir}.npy and OUT/meta.json, so that training never waits and never forks; Pool.poll() takes in what has
become ready.
Decoding is libsndfile through ctypes: Debian's, or the one inside PyPI's soundfile wheel.
"""
import csv
import ctypes
import ctypes.util
import glob
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

KINDS = ("speech", "noise", "rir")


class _Info(ctypes.Structure):
    _fields_ = [("frames", ctypes.c_int64), ("samplerate", ctypes.c_int), ("channels", ctypes.c_int),
                ("format", ctypes.c_int), ("sections", ctypes.c_int), ("seekable", ctypes.c_int)]


def _library():
    names = [os.path.join(p, "_soundfile_data", f) for p in sys.path
             for f in ("libsndfile_x86_64.so", "libsndfile_arm64.so", "libsndfile.so")]
    names = [n for n in names if os.path.exists(n)] + ["libsndfile.so.1", ctypes.util.find_library("sndfile") or ""]
    for name in names:
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        lib.sf_open.restype = ctypes.c_void_p
        lib.sf_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(_Info)]
        lib.sf_readf_float.restype = ctypes.c_int64
        lib.sf_readf_float.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        lib.sf_close.argtypes = [ctypes.c_void_p]
        return lib
    raise RuntimeError("no libsndfile: install Debian's libsndfile1 or PyPI's soundfile")


def resample(x, rate, to):
    """x (N,) at another rate, by cutting or padding its spectrum."""
    if rate == to or not len(x):
        return x
    n = int(round(len(x) * to / rate))
    spectrum = np.fft.rfft(x)
    keep = min(len(spectrum), n // 2 + 1)
    out = np.zeros(n // 2 + 1, complex)
    out[:keep] = spectrum[:keep]
    return np.fft.irfft(out, n) * (n / len(x))


def decode(path, rate=16000):
    """A file mixed to mono, float32, at rate; empty when it can't be read."""
    x, own = read(path)
    return np.asarray(resample(x, own, rate), np.float32)


def read(path):
    """A file mixed to mono, float32, and its rate; empty when it can't be read."""
    lib, info = _library(), _Info()
    f = lib.sf_open(os.fsencode(path), 0x10, ctypes.byref(info))
    if not f:
        return np.zeros(0, np.float32), 16000
    chunks, block = [], np.empty((1 << 18, max(info.channels, 1)), np.float32)
    while True:
        n = lib.sf_readf_float(f, block.ctypes.data_as(ctypes.c_void_p), len(block))
        if n <= 0:
            break
        chunks.append(block[:n].mean(1))
    lib.sf_close(f)
    x = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    return x, info.samplerate


def trim_rir(x, rate):
    """An impulse response from 1 ms before its direct path, a second at most, its peak 1."""
    if not len(x) or not np.abs(x).max() > 0:
        return x[:0]
    peak = int(np.argmax(np.abs(x) > 0.5 * np.abs(x).max()))
    x = x[max(0, peak - rate // 1000):][:rate]
    return x / np.abs(x).max()


def _decode_row(row):
    path, kind, rate = row
    x, own = read(path)
    x = resample(x, own, rate)
    x = trim_rir(x, rate) if kind == "rir" else x
    return np.clip(np.round(x * 32767), -32768, 32767).astype(np.int16), own / 2 if own < 0.9 * rate else 1e5


def part_rows(part, split="train"):
    """[(path, kind, source, label, trust)] of a part's index.csv, or of its folders where there is none.

    trust scales how often a file is drawn: the index's weight, much less for speech with audible background of its own and
    for music."""
    rows, index = [], os.path.join(part, "index.csv")
    if os.path.exists(index):
        with open(index, newline="") as f:
            for r in csv.DictReader(f):
                if (r.get("split") or split) == split and r.get("kind") in KINDS:
                    label = r.get("name") or r.get("speaker_or_class") or ""
                    trust = 0.6 if (r.get("music") or "0").lower() not in ("0", "", "no", "false") else 1.0
                    if r["kind"] == "speech" and r.get("est_snr_db"):
                        trust = min(max((float(r["est_snr_db"]) - 20) / 15, 0.05), 1.0)
                    trust *= float(r.get("weight") or 1.0)
                    rows.append((os.path.join(part, r["path"]), r["kind"], r.get("source", ""), label, trust))
    else:
        for kind in KINDS:
            rows += [(p, kind, "", "", 1.0) for p in sorted(glob.glob(os.path.join(part, kind, "**", "*.*"), recursive=True))]
    return [r for r in rows if os.path.exists(r[0])]


def decode_part(part, out, workers, rate):
    """Writes OUT/KIND.npy (int16 at rate, all files end to end) and OUT/meta.json: (samples, band, source, label, trust) a
    file, band the highest frequency in Hz it can hold (1e5: all there are); the rename of meta.json says done."""
    import multiprocessing
    rows = part_rows(part)
    os.makedirs(out, exist_ok=True)
    with multiprocessing.Pool(workers) as pool:
        decoded = pool.map(_decode_row, [(*r[:2], rate) for r in rows], chunksize=4)
    meta = {}
    for kind in KINDS:
        least = rate // 250 if kind == "rir" else rate // 10
        mine = [(x, band, r) for (x, band), r in zip(decoded, rows) if r[1] == kind and len(x) >= least]
        np.save(os.path.join(out, kind + ".npy"), np.concatenate([m[0] for m in mine]) if mine else np.zeros(0, np.int16))
        meta[kind] = [[len(x), band, *r[2:]] for x, band, r in mine]
    with open(os.path.join(out, "meta.tmp"), "w") as f:
        json.dump(meta, f)
    os.replace(os.path.join(out, "meta.tmp"), os.path.join(out, "meta.json"))


class Bank:
    """All samples of one kind in one device tensor; files are (offset, length, weight, band) rows."""

    def __init__(self, capacity, device):
        import torch
        self.torch, self.device = torch, device
        self.audio = torch.zeros(capacity, dtype=torch.int16, device=device)
        self.used, self.rows = 0, []
        self.start = self.length = self.band = self.weight = None

    def add(self, samples, lengths, weights, bands=None):
        """bands: the highest frequency in Hz that each file can hold; all there are without it."""
        torch = self.torch
        room = len(self.audio) - self.used
        offset = 0
        for n, w, band in zip(lengths, weights, bands or [1e5] * len(lengths)):
            if offset + n > room:
                break
            self.rows.append((self.used + offset, n, w, band))
            offset += n
        for a in range(0, offset, 1 << 26):
            b = min(offset, a + (1 << 26))
            self.audio[self.used + a:self.used + b] = torch.from_numpy(np.array(samples[a:b])).to(self.device)
        self.used += offset
        if self.rows:
            table = np.array(self.rows, np.float64)
            self.start = torch.from_numpy(table[:, 0].astype(np.int64)).to(self.device)
            self.length = torch.from_numpy(table[:, 1].astype(np.int64)).to(self.device)
            self.weight = torch.from_numpy((table[:, 2] / table[:, 2].sum()).astype(np.float32)).to(self.device)
            self.band = torch.from_numpy(table[:, 3].astype(np.float32)).to(self.device)
        return offset < sum(lengths)

    def choose(self, n):
        """n files' numbers, each file as likely as its weight."""
        return self.torch.multinomial(self.weight, n, replacement=True)

    def draw(self, n):
        """n files' (start, length)."""
        i = self.choose(n)
        return self.start[i], self.length[i]


class Pool:
    """The banks of speech and noise and the list of measured impulse responses, growing as parts arrive."""

    def __init__(self, folders, rate, device, speech_hours=36.0, noise_hours=18.0, narrow=1.0, workers=0, cache=None, log=print):
        """narrow: how often files recorded at a lower rate are drawn, beside the others."""
        self.folders, self.rate, self.device, self.narrow, self.log = folders, rate, device, narrow, log
        self.workers = workers or max(1, (os.cpu_count() or 2) - 2)
        self.cache = cache or os.path.join(tempfile.gettempdir(), "ssm-train-cache")
        # 36 h of 16 kHz samples, or 12 h of 48 kHz, still have 31-bit offsets
        self.speech = Bank(int(speech_hours * 3600 * rate), device)
        self.noise = Bank(int(noise_hours * 3600 * rate), device)
        self.rirs, self.seen, self.running, self.version = [], set(), [], 0
        self.sighted = {}

    def _parts(self):
        for folder in self.folders:
            for part in [folder] + sorted(glob.glob(os.path.join(folder, "*", ""))):
                part = os.path.realpath(part)
                if os.path.exists(os.path.join(part, "READY")) and part not in self.seen:
                    yield part

    def _whole(self, part):
        """True once every file of the index is there and none has grown for 15 s: parts may still be being copied."""
        listed = 0
        if os.path.exists(os.path.join(part, "index.csv")):
            with open(os.path.join(part, "index.csv"), newline="") as f:
                listed = sum(r.get("kind") in KINDS for r in csv.DictReader(f))
        files = [p for p in glob.glob(os.path.join(part, "**", "*.*"), recursive=True) if os.path.isfile(p)]
        size = (len(files), sum(os.path.getsize(p) for p in files))
        since, before = self.sighted.get(part, (time.time(), None))
        self.sighted[part] = (since if size == before else time.time(), size)
        return len(files) >= listed and time.time() - self.sighted[part][0] >= 15

    def _place(self, part):
        tag = "%s %s %d banded" % (part, os.path.getmtime(os.path.join(part, "READY")), self.rate)
        return os.path.join(self.cache, hashlib.sha1(tag.encode()).hexdigest()[:16])

    def poll(self, wait=False):
        """Start decoding parts that have appeared; take in those that are done. True when something was added."""
        for part in self._parts():
            if not wait and not self._whole(part):
                continue
            self.seen.add(part)
            out = self._place(part)
            job = None
            if not os.path.exists(os.path.join(out, "meta.json")):
                job = subprocess.Popen([sys.executable, os.path.abspath(__file__), part, out, str(self.workers),
                                        str(self.rate)])
            self.running.append((part, out, job))
        added = False
        for entry in list(self.running):
            part, out, job = entry
            if job is not None and wait:
                job.wait()
            if job is not None and job.poll() is None:
                continue
            self.running.remove(entry)
            if not os.path.exists(os.path.join(out, "meta.json")):
                self.log("data: %s could not be decoded; going on without it" % part)
                continue
            self._take(part, out)
            added = True
        self.version += added
        return added

    def _take(self, part, out):
        with open(os.path.join(out, "meta.json")) as f:
            meta = json.load(f)
        full = False
        for kind, bank in (("speech", self.speech), ("noise", self.noise)):
            rows = meta[kind]
            if rows:
                samples = np.load(os.path.join(out, kind + ".npy"), mmap_mode="r")
                # speakers and recordings by the square root of their length; a noise no longer than a minute's worth
                top = 600.0 if kind == "speech" else 120.0
                weights = [min(r[0] / self.rate, top) ** 0.5 * r[4] * (self.narrow if r[1] < self.rate / 2 else 1.0) for r in rows]
                full |= bank.add(samples, [r[0] for r in rows], weights, [r[1] for r in rows])
        samples, at = np.load(os.path.join(out, "rir.npy")), 0
        for n, *_ in meta["rir"]:
            self.rirs.append(samples[at:at + n].astype(np.float32) / 32767)
            at += n
        self.log("data: %s: %d speech files, %d noise, %d rir; now %.2f h speech, %.2f h noise%s" % (
            part, len(meta["speech"]), len(meta["noise"]), len(meta["rir"]), *self.hours(), " (FULL: some left out, raise the hours)" if full else ""))

    def hours(self):
        """(speech, noise)"""
        return self.speech.used / self.rate / 3600, self.noise.used / self.rate / 3600

    def add_synthetic(self, seconds=120, voices=4):
        """Buzzing syllables and coloured noise, for trying things out with no audio at hand."""
        rng, rate = np.random.default_rng(0), self.rate
        n, part = seconds * rate // voices, rate * 3 // 20
        t = np.arange(n) / rate
        for v in range(voices):
            pitch = 90 + 50 * v + 15 * np.sin(2 * np.pi * 0.7 * t + v)
            phase = 2 * np.pi * np.cumsum(pitch) / rate
            gate = np.repeat(rng.random(n // part + 1) < 0.7, part)[:n] * np.abs(np.sin(2 * np.pi * 3.3 * t))
            formant = np.repeat(rng.uniform(3, 14, n // part + 1), part)[:n]
            x = sum(np.sin(k * phase) / (1 + (k - formant) ** 2) for k in range(1, 24)) * gate
            self.speech.add(np.int16(8000 * x / np.abs(x).max()), [n], [1.0])
            y = np.convolve(rng.standard_normal(n), np.exp(-np.arange(60) / (2.0 + 8 * v)), "same")
            self.noise.add(np.int16(6000 * y / np.abs(y).max()), [n], [1.0])
        self.version += 1


if __name__ == "__main__":
    decode_part(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
