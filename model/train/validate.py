# SPDX-License-Identifier: MIT
"""Validation on held-out pairs: DIR/noisy/*.wav and DIR/clean/*.wav, and a csv with an snr column if there is one.

SI-SDR improvement at once; PESQ, where the module is there, in a process of its own that writes to the run's folder.
"""
import csv
import glob
import os
import subprocess
import sys

import numpy as np
import torch

import data


def si_sdr(estimate, clean):
    """dB, per item; both (items, samples)."""
    clean = clean - clean.mean(1, keepdim=True)
    estimate = estimate - estimate.mean(1, keepdim=True)
    scale = (estimate * clean).sum(1, keepdim=True) / clean.square().sum(1, keepdim=True).clamp_min(1e-9)
    error = (estimate - scale * clean).square().sum(1)
    return 10 * torch.log10(((scale * clean).square().sum(1) + 1e-9) / (error + 1e-9))


def snr_column(folder):
    """{file name without folders: snr} from the first csv with such a column."""
    for path in sorted(glob.glob(os.path.join(folder, "*.csv"))):
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
        key = next((k for k in (rows[0] if rows else {}) if k and "snr" in k.lower()), None)
        name = next((k for k in (rows[0] if rows else {}) if k and k.lower() in ("file", "path", "name", "noisy", "id")), None)
        if key and name:
            return {os.path.splitext(os.path.basename(r[name]))[0]: float(r[key]) for r in rows if r[key]}
    return {}


class Validator:
    def __init__(self, folder, rate, hop, device, log, out, most=40, seconds=10.0):
        self.rate, self.device, self.log, self.out, self.child = rate, device, log, out, None
        names = [os.path.basename(p) for p in sorted(glob.glob(os.path.join(folder, "noisy", "*.wav")))]
        names = [n for n in names if os.path.exists(os.path.join(folder, "clean", n))][:most]
        snr, n = snr_column(folder), int(seconds * rate) // hop * hop
        self.names, self.n = names, n
        load = lambda kind: [data.decode(os.path.join(folder, kind, name), rate)[:n] for name in names]
        noisy, clean = load("noisy"), load("clean")
        self.lengths = [min(len(a), len(b)) // hop * hop for a, b in zip(noisy, clean)]
        pack = lambda xs: torch.from_numpy(np.stack([np.pad(x[:n], (0, n - len(x[:n]))) for x in xs])).to(device)
        if names:
            self.noisy, self.clean = pack(noisy), pack(clean)
        self.snr = [snr.get(os.path.splitext(name)[0]) for name in names]
        log("validate: %d pairs from %s" % (len(names), folder))

    @torch.no_grad()
    def __call__(self, model, scan, dtype):
        if not self.names:
            return
        estimate = torch.cat([model(x, scan, dtype=dtype) for x in self.noisy.split(8)])
        gain, before = [], []
        for i, n in enumerate(self.lengths):
            n = min(n, estimate.shape[1])
            c = self.clean[i:i + 1, :n]
            before.append(float(si_sdr(self.noisy[i:i + 1, :n], c)))
            gain.append(float(si_sdr(estimate[i:i + 1, :n], c)) - before[-1])
        gain, before = np.array(gain), np.array(before)
        groups = ""
        if any(s is not None for s in self.snr):
            for s in sorted({s for s in self.snr if s is not None}):
                pick = [i for i, t in enumerate(self.snr) if t == s]
                groups += "  %g dB: %+.2f" % (s, gain[pick].mean())
        self.log("validate: SI-SDR %.2f -> %.2f (%+.2f)%s" % (before.mean(), (before + gain).mean(), gain.mean(), groups))
        self.pesq(estimate)

    def pesq(self, estimate):
        """In the background; its line goes to pesq.txt."""
        if self.child is not None and self.child.poll() is None:
            return
        import importlib.util
        if importlib.util.find_spec("pesq") is None:
            return
        path = os.path.join(self.out, "validate.npz")
        np.savez(path, clean=self.clean[:, :estimate.shape[1]].cpu().numpy(), estimate=estimate.cpu().numpy(),
                 lengths=self.lengths, rate=self.rate)
        self.child = subprocess.Popen([sys.executable, os.path.abspath(__file__), path,
                                       os.path.join(self.out, "pesq.txt")])


def _score(pair):
    import pesq
    clean, estimate, rate = pair
    try:
        return pesq.pesq(16000, data.resample(clean, rate, 16000), data.resample(estimate, rate, 16000), "wb")
    except Exception:
        return float("nan")


if __name__ == "__main__":
    import multiprocessing
    z = np.load(sys.argv[1])
    pairs = [(c[:n], e[:n], int(z["rate"])) for c, e, n in zip(z["clean"], z["estimate"], z["lengths"])]
    with multiprocessing.Pool(4) as pool:
        scores = pool.map(_score, pairs)
    with open(sys.argv[2], "a") as f:
        f.write("PESQ-WB %.3f over %d\n" % (np.nanmean(scores), len(scores)))
