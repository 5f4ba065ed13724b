# SPDX-License-Identifier: MIT
"""The weights of one denoiser as another's start: other rate, window, hop or taps, shorter memory, more layers, wider ones.

adapt() keeps what the first has learned as far as the shapes let it:

- a bin of the new transform takes the weights of the bins that lie nearest to it in Hz; bins above the old one's top hear
  nothing at first, and are filtered as the old one's top octave is on average;
- the transform isn't normalised, so a longer window in samples has larger spectra: what compressed features are scaled
  by on average is taken back out of the encoder;
- phases are compared at the window's middle, filters as what they do to a steady tone of the bin;
- with another hop in seconds, the steps dt and the taps of the convolutions are spread over the same time;
- with the same window at a half or a quarter of the hop, finer() keeps every weight: two or four of the first, each on hops
  of its own, which share their states.

grown() starts a larger model as the smaller one: what it has more of hears what there is and says nothing yet.
"""
import math

import torch
import torch.nn.functional as F

from layers import complete


def _hz(c):
    return torch.arange(c["window"] // 2 + 1, dtype=torch.float64) * (c["rate"] / c["window"])


def _gather(old, new):
    """(new bins, old bins): each new bin the mean of the old bins nearest to it; zeros above the old top."""
    a, b = _hz(old), _hz(new)
    wide = max(float(b[1]), float(a[1]))
    share = (1.0 - (a[None] - b[:, None]).abs() / wide).clamp_min(0.0)
    share = share * (b[:, None] <= a[-1] + 0.5 * wide)
    return share / share.sum(1, keepdim=True).clamp_min(1e-9)


def _parity(c):
    """(bins,) -1 for odd bins: the phase of a bin at its window's middle, which is also its turn from hop to hop."""
    return 1.0 - 2.0 * (torch.arange(c["window"] // 2 + 1, dtype=torch.float64) % 2)


def encoder(weight, old, new):
    """(d, 3 old bins) -> (d, 3 new bins). Fewer bins speak up for those they stand for."""
    share = _gather(old, new)
    per_bin = share / share.sum(0, keepdim=True).clamp_min(1e-9)        # an old bin's weight is shared out whole
    # of a spectrum's magnitude: between a tone's (as the window) and noise's (as its root)
    louder = (new["window"] / old["window"]) ** (1.0 if new["hop"] * old["rate"] == old["hop"] * new["rate"] else 0.75)
    parts = weight.double().reshape(len(weight), 3, -1).clone()
    parts[:, 1:] *= _parity(old)
    parts = parts @ per_bin.T
    parts[:, 1:] *= _parity(new)
    return (parts * louder ** -new["compress"]).reshape(len(weight), -1).float()


def head(weight, old, new):
    """(2 taps bins, ...) rows of the head, or its bias; taps that the old one lacks start at zero."""
    share, bins = _gather(old, new), old["window"] // 2 + 1
    w = weight.double().reshape(old["taps"], 2, bins, -1).clone()
    w[1::2] *= _parity(old)[:, None]
    top = w[:, :, bins // 2:bins - 1].mean(2, keepdim=True)
    within = (share.sum(1) > 0)[None, None, :, None]
    out = torch.where(within, torch.einsum("fg,ktgd->ktfd", share, w), top)
    kept = min(old["taps"], new["taps"])
    out = F.pad(out[:kept], (0, 0, 0, 0, 0, 0, 0, new["taps"] - kept))
    out[1::2] *= _parity(new)[:, None]
    return out.reshape(-1, *weight.shape[1:]).float()


def convolution(weight, slower):
    """(E, 1, K) taps, the newest last, for hops `slower` times as long as before: the same weight at the same time."""
    K = weight.shape[-1]
    out = torch.zeros_like(weight)
    for k in range(K):                                      # k hops ago
        begin, end = k / slower, (k + 1) / slower           # in hops of the new kind
        for j in range(K):
            last = math.inf if j == K - 1 else j + 1        # the oldest tap takes what lies beyond it
            out[..., K - 1 - j] += weight[..., K - 1 - k] * max(0.0, min(end, last) - max(begin, j)) / (end - begin)
    return out


def least_decay(dt_bias, config, seconds):
    """(E,) logarithms: the least A that forgets within this many seconds, at the step dt that its bias gives."""
    c = complete(config)
    return -torch.log(F.softplus(dt_bias) * (seconds * c["rate"] / c["hop"]))


def forget(tensors, config, seconds):
    """The same weights with states that remember this long at most: what a state of 10 s gathers in a long pause is what no
    training crop ever had it hold."""
    out = dict(tensors)
    for name in tensors:
        if name.endswith("A_log"):
            least = least_decay(tensors[name.replace("A_log", "dt_proj.bias")], config, seconds)
            out[name] = torch.maximum(tensors[name], least[:, None])
    return out


def finer(tensors, old, new):
    """The same window more often: the taps of convolutions and filter at the times they had, with zeros between, and in a
    hop of half the time half the decay and half of what goes in."""
    times = old["hop"] // new["hop"]

    def between(t):
        out = torch.zeros(t.shape[0] * times - times + 1, *t.shape[1:])
        out[::times] = t
        return out

    out = dict(tensors)
    for name, t in tensors.items():
        if name.startswith("head."):
            out[name] = between(t.reshape(old["taps"], -1, *t.shape[1:])).reshape(-1, *t.shape[1:])
        if name.endswith("conv1d.weight"):
            out[name] = between(t.movedim(-1, 0)).movedim(0, -1).contiguous()
        if name.endswith("x_proj.weight"):                  # its rows: dt, B, C
            states = tensors[name.replace("x_proj.weight", "A_log")].shape[1]
            out[name] = t.clone()
            out[name][-2 * states:-states] /= times
        if name.endswith("A_log"):
            out[name] = t - math.log(times)
    return out


def adapt(tensors, old, new):
    """{name: tensor} of a denoiser of config old, for one of config new with the same blocks."""
    old, new = complete(old), complete(new)
    if (old["rate"], old["window"]) == (new["rate"], new["window"]) and old["hop"] % new["hop"] == 0 and old["hop"] > new["hop"]:
        return finer(tensors, old, new)
    slower = (new["hop"] / new["rate"]) / (old["hop"] / old["rate"])
    out = dict(tensors)
    out["encoder.weight"] = encoder(tensors["encoder.weight"], old, new)
    for name in ("head.weight", "head.bias"):
        out[name] = head(tensors[name], old, new)
    for name, t in tensors.items():
        if slower != 1 and name.endswith("conv1d.weight"):
            out[name] = convolution(t, slower)
        if slower != 1 and name.endswith("dt_proj.bias"):   # softplus(b) is nearly exp(b) where dt is small
            out[name] = t + math.log(slower)
    return out


def grown(tensors, model):
    """{name: tensor} for model, which has more layers than tensors' or wider ones, or both: it does what they do.

    What is new is as model has it, and nothing of it is heard at first: new layers and channels write nothing to the
    residual stream, whose new numbers nobody writes either; a channel already there reads no new one, in x_proj or
    dt_proj. So all that is new reads and has a gradient, but what it is read by is zero and learns first."""
    c, old = model.config, len(tensors["encoder.bias"])
    sections = lambda rank, states: {"in_proj.weight": 2, "x_proj.weight": (rank, states, states)}
    mixer = "backbone.layers.0.mixer."
    rank, states = tensors[mixer + "dt_proj.weight"].shape[1], tensors[mixer + "A_log"].shape[1]
    before, after = sections(rank, states), sections(c["dt_rank"], c["d_state"])

    def split(t, sizes):
        return t.chunk(sizes) if isinstance(sizes, int) else t.split(sizes)

    out = dict(tensors)
    for name, p in model.named_parameters():
        out[name] = new = p.detach().cpu().clone()
        kind = ".".join(name.split(".")[-2:])
        if kind in ("encoder.weight", "encoder.bias", "out_proj.weight"):
            new.zero_()
        if name in tensors:
            t = tensors[name]
            if kind in ("x_proj.weight", "dt_proj.weight"):
                new[:, t.shape[1]:] = 0.0
            for a, b in zip(split(new, after.get(kind, 1)), split(t, before.get(kind, 1))):
                a[tuple(map(slice, b.shape))] = b
            if kind == "x_proj.weight":
                new[c["dt_rank"] + c["d_state"] + states:] = 0.0
        if kind in ("norm.weight", "norm_f.weight"):
            new *= math.sqrt(old / c["d_model"])            # the mean of squares is over the zeros, too
    return out
