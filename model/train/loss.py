# SPDX-License-Identifier: MIT
"""What training minimises: how far the spectra are apart, as the ear weighs them, and the samples.

Every item is brought to one level first (its target's, or a tenth of the mixture's where that is more: noise-only
items have no target level), so quiet items count as much as loud ones.
"""
import torch
import torch.nn.functional as F

from layers import RealFFT

RESOLUTIONS = (256, 512, 1024)          # windows; the hop is half of each
POWER = 0.3
FLOOR = 1e-6                            # of |X|^2 at unit RMS: -60 dB


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


def spectral(P, S):
    """Compressed spectra P (estimate), S (target), (B, T, F, 2): squared error of magnitude, of the complex value, and
    of magnitude where the estimate has less than the target (speech removed)."""
    p = P.square().sum(-1) + FLOOR
    s = S.square().sum(-1) + FLOOR
    pm, sm = p ** (POWER / 2), s ** (POWER / 2)
    magnitude = (pm - sm).square().mean()
    removed = F.relu(sm - pm).square().mean()
    complex_ = (P * (pm / p.sqrt())[..., None] - S * (sm / s.sqrt())[..., None]).square().sum(-1).mean()
    return magnitude, complex_, removed


def snr_db(estimate, clean, reference):
    """Mean SNR in dB, softly limited at 30 dB; silent targets are measured against a tenth of the mixture's RMS."""
    power = clean.square().mean(1) + 0.01 * reference.square().mean(1) * (clean.square().mean(1) < 1e-12)
    error = (estimate - clean).square().mean(1)
    return (10 * torch.log10((power + 1e-12) / (error + 1e-3 * power + 1e-12))).mean()


PIECES = dict(half_frames=half_frames, spectral=spectral, snr_db=snr_db)


class Loss:
    def __init__(self, config, device, pieces=PIECES):
        self.weights = dict(magnitude=0.7, complex=0.4, removed=0.5, snr=0.01)
        self.weights.update({k: v for k, v in config.items() if k in self.weights})
        self.windows = [(n, hann(n, device)) for n in RESOLUTIONS]
        self.pieces = pieces

    def __call__(self, estimate, clean, noisy):
        """-> loss, parts: a tensor (magnitude, complex, removed, snr)."""
        p = self.pieces
        g = level(noisy, clean)
        e, c, r = estimate * g, clean * g, noisy * g
        total = [0.0, 0.0, 0.0]
        for n, win in self.windows:
            P = RealFFT.apply(p["half_frames"](e, win, n // 2))
            with torch.no_grad():
                S = RealFFT.apply(p["half_frames"](c, win, n // 2))
            total = [t + v / len(self.windows) for t, v in zip(total, p["spectral"](P, S))]
        snr = p["snr_db"](e, c, r)
        w = self.weights
        loss = w["magnitude"] * total[0] + w["complex"] * total[1] + w["removed"] * total[2] - w["snr"] * snr
        return loss, torch.stack([*total, snr]).detach()
