#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write two small models with random weights, golden_tag.safetensors (sensors to labels) and golden_tokens.safetensors
(tokens to the next one), each with golden_*_io.safetensors, what it must answer.

The answers are computed in float64 PyTorch from the definitions: S4D as the convolution with its kernel, by FFT, as its
paper's code does it (arXiv 2206.11893), and where time is irregular step by step; Mamba from its paper's equations
(arXiv 2312.00752), by zero-order hold or Euler's rule; the means from their sums. `elapsed` is time since the previous row in hops.

    python3 make_golden_layers.py [FOLDER]"""

import json
import math
import os
import sys

import torch
import torch.nn.functional as F

from make_model import write_safetensors

T, SEED = 150, 20220623


class Weights:
    def __init__(self):
        self.g = torch.Generator().manual_seed(SEED)
        self.all = {}

    def uniform(self, bound, *shape):
        return (torch.rand(*shape, generator=self.g) * 2 - 1) * bound

    def add(self, name, value):
        self.all[name] = value.float()

    def linear(self, name, out, width, bias=True):
        self.add(name + ".weight", self.uniform(2 * width**-0.5, out, width))
        if bias:
            self.add(name + ".bias", self.uniform(0.3, out))

    def mamba(self, name, D, N, K, R, E):
        self.add(name + ".norm.weight", 1 + self.uniform(0.3, D))
        self.linear(name + ".mixer.in_proj", 2 * E, D, False)
        self.add(name + ".mixer.conv1d.weight", self.uniform(0.5, E, 1, K))
        self.add(name + ".mixer.conv1d.bias", self.uniform(0.5, E))
        self.linear(name + ".mixer.x_proj", R + 2 * N, E, False)
        self.linear(name + ".mixer.dt_proj", E, R)
        self.add(name + ".mixer.A_log", torch.log(torch.arange(1.0, N + 1)).repeat(E, 1) + self.uniform(0.1, E, N))
        self.add(name + ".mixer.D", 1 + self.uniform(0.3, E))
        self.linear(name + ".mixer.out_proj", D, E, False)

    def s4d(self, name, D, pairs):
        self.add(name + ".norm.weight", 1 + self.uniform(0.3, D))
        self.add(name + ".D", self.uniform(1, D))
        self.add(name + ".kernel.log_dt", self.uniform(2.3, D) - 4.6)
        self.add(name + ".kernel.log_A_real", math.log(0.5) + self.uniform(0.3, D, pairs))
        self.add(name + ".kernel.A_imag", math.pi * torch.arange(pairs).repeat(D, 1) + self.uniform(0.3, D, pairs))
        self.add(name + ".kernel.C", self.uniform(1, D, pairs, 2))


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def mamba(x, w, row, elapsed):
    m, N, K, R = row["name"] + ".mixer.", row["d_state"], row["d_conv"], row["dt_rank"]
    v, z = F.linear(rms_norm(x, w[row["name"] + ".norm.weight"]), w[m + "in_proj.weight"]).chunk(2, -1)
    past = F.pad(v, (0, 0, K - 1, 0))
    u = F.silu(sum(past[k:k + len(v)] * w[m + "conv1d.weight"][:, 0, k] for k in range(K)) + w[m + "conv1d.bias"])
    dt, B, C = F.linear(u, w[m + "x_proj.weight"]).split([R, N, N], -1)
    delta = elapsed[:, None] * F.softplus(F.linear(dt, w[m + "dt_proj.weight"], w[m + "dt_proj.bias"]))
    A, h, y = -torch.exp(w[m + "A_log"]), 0, []
    for t in range(len(u)):
        dA = delta[t][:, None] * A
        gain = torch.expm1(dA) / A if row["discretisation"] == "zoh" else delta[t][:, None]
        h = torch.exp(dA) * h + gain * B[t] * u[t][:, None]
        y.append(h @ C[t] + w[m + "D"] * u[t])
    return x + F.linear(torch.stack(y) * F.silu(z), w[m + "out_proj.weight"])


def s4d_bars(w, name, how, elapsed):
    """A-bar and B-bar (D, pairs) for one elapsed time."""
    A = torch.complex(-torch.exp(w[name + ".kernel.log_A_real"]), w[name + ".kernel.A_imag"])
    dt = elapsed * torch.exp(w[name + ".kernel.log_dt"])[:, None]
    if how == "zoh":
        return torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
    return (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)


def s4d(x, w, row, elapsed):
    name = row["name"]
    u, C = rms_norm(x, w[name + ".norm.weight"]), torch.view_as_complex(w[name + ".kernel.C"].contiguous())
    if bool((elapsed == 1).all()):
        A_bar, B_bar = s4d_bars(w, name, row["discretisation"], 1.0)
        powers = torch.exp(torch.log(A_bar)[..., None] * torch.arange(len(u)))
        kernel = 2 * torch.einsum("dn,dnt->td", C * B_bar, powers).real
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * len(u), dim=0) * torch.fft.rfft(kernel, 2 * len(u), dim=0), dim=0)[:len(u)]
    else:
        h, y = 0, []
        for t in range(len(u)):
            A_bar, B_bar = s4d_bars(w, name, row["discretisation"], elapsed[t])
            h = A_bar * h + B_bar * u[t][:, None]
            y.append(2 * (C * h).real.sum(-1))
        y = torch.stack(y)
    y = y + w[name + ".D"] * u
    y = {"none": lambda v: v, "silu": F.silu, "gelu": F.gelu}[row["activation"]](y)
    if row["mix"] != "none":
        y = F.linear(y, w[name + ".output_linear.weight"], w[name + ".output_linear.bias"])
    return x + (F.glu(y, -1) if row["mix"] == "glu" else y)


def pool(x, row, elapsed):
    if row["kind"] == "mean":
        return torch.cumsum(elapsed[:, None] * x, 0) / torch.cumsum(elapsed, 0)[:, None]
    mean, out = 0, []
    for value, time in zip(x, elapsed):
        mean = mean + (1 - torch.exp(-time / row["hops"])) * (value - mean)
        out.append(mean)
    return torch.stack(out)


def stft(x, row):
    """Hops (T, hop) -> |X|^c, then Re and Im of X |X|^(c-1), of windows that begin where the hop before does."""
    window = torch.sqrt(0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(row["window"]).double() / row["window"]))
    X = torch.fft.rfft(window * torch.cat((torch.cat((torch.zeros_like(x[:1]), x[:-1])), x), 1))
    size = torch.sqrt(X.real**2 + X.imag**2 + 1e-12)
    shrink = size**(row["compress"] - 1)
    return torch.cat((size * shrink, X.real * shrink, X.imag * shrink), 1)


def run(layers, w, x, elapsed):
    for row in layers:
        kind = row["type"]
        if kind == "stft":
            x = stft(x, row)
        elif kind == "scale":
            mean, std = torch.tensor(row["mean"]).double(), torch.tensor(row["std"]).double()
            x = ((x.reshape(len(x), -1, len(mean)) - mean) / std).reshape(len(x), -1)
        elif kind == "embedding":
            x = F.embedding(x[:, 0].long(), w[row["name"] + ".weight"])
        elif kind == "linear":
            x = F.linear(x, w[row["name"] + ".weight"], w.get(row["name"] + ".bias"))
        elif kind == "norm":
            x = rms_norm(x, w[row["name"] + ".weight"])
        elif kind in ("mamba", "s4d"):
            x = {"mamba": mamba, "s4d": s4d}[kind](x, w, row, elapsed)
        elif kind == "pool":
            x = pool(x, row, elapsed)
        else:
            x = {"sigmoid": torch.sigmoid, "softmax": lambda v: torch.softmax(v, -1)}[kind](x)
    return x


def make_tag(w):
    """Six channels, two samples a hop."""
    sizes = dict(d_state=5, d_conv=3, dt_rank=2, expand=3, discretisation="zoh")
    w.linear("encoder", 7, 12)
    w.mamba("backbone.layers.0", 7, 5, 3, 2, 21)
    w.add("backbone.norm_f.weight", 1 + w.uniform(0.3, 7))
    w.linear("head", 4, 7)
    mean, std = w.uniform(5, 6), 1 + w.uniform(0.9, 6)
    layers = [dict(type="scale", mean=mean.tolist(), std=std.tolist()), {"type": "linear", "name": "encoder", "in": 12, "out": 7},
              dict(type="mamba", name="backbone.layers.0", d_model=7, **sizes), dict(type="norm", name="backbone.norm_f", width=7),
              dict(type="pool", kind="ema", hops=12.5), {"type": "linear", "name": "head", "in": 7, "out": 4},
              dict(type="pool", kind="mean"), dict(type="softmax")]
    facts = dict(task="tag", rate=100, hop=2, channels=6, exclusive=True, fields=["ax", "ay", "az", "gx", "gy", "gz"],
                 units=["g"] * 3 + ["deg/s"] * 3,
                 labels=["rest", dict(name="walk", on=0.6, off=0.3, min_s=0.1, hold_s=0.2), "run", "fall"])
    return facts, layers, mean.repeat(2) + std.repeat(2) * w.uniform(2, T, 12)


def make_tokens(w):
    V, D = 11, 10
    w.add("backbone.embedding.weight", w.uniform(1, V, D))
    w.s4d("backbone.layers.0", D, 4)
    w.linear("backbone.layers.0.output_linear", 2 * D, D)
    w.s4d("backbone.layers.1", D, 3)
    w.linear("backbone.layers.1.output_linear", D, D)
    w.mamba("backbone.layers.2", D, 4, 4, 1, 20)
    w.add("backbone.norm_f.weight", 1 + w.uniform(0.3, D))
    around = dict(d_model=D, norm=True, residual=True)
    layers = [dict(type="embedding", name="backbone.embedding", vocabulary=V, width=D),
              dict(type="s4d", name="backbone.layers.0", d_state=8, discretisation="zoh", activation="gelu", mix="glu", **around),
              dict(type="s4d", name="backbone.layers.1", d_state=6, discretisation="bilinear", activation="silu", mix="linear", **around),
              dict(type="mamba", name="backbone.layers.2", d_model=D, d_state=4, d_conv=4, dt_rank=1, expand=2, discretisation="zoh"),
              dict(type="norm", name="backbone.norm_f", width=D),
              {"type": "linear", "name": "backbone.embedding", "in": D, "out": V}]
    tokens = torch.randint(V, (T, 1), generator=w.g).float()
    return dict(task="tokens", rate=1, hop=1, vocabulary=V), layers, tokens


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    for name, make in {"golden_tag": make_tag, "golden_tokens": make_tokens}.items():
        w = Weights()
        facts, layers, rows = make(w)
        rows = rows.float()
        times = torch.rand(T, generator=w.g)
        elapsed = torch.where(times < 0.2, 0.25 + 9 * torch.rand(T, generator=w.g), torch.where(times < 0.4, 0.5, 1.0))
        exact = {k: v.double() for k, v in w.all.items()}
        answers = {"in": rows, "out": run(layers, exact, rows.double(), torch.ones(T).double()),
                   "elapsed": elapsed, "out_elapsed": run(layers, exact, rows.double(), elapsed.double())}
        config = dict(format=1, name=name, version="1", licence="MIT", **facts, layers=layers)
        for path, tensors, metadata in ((name, w.all, {"ssm.config": json.dumps(config, separators=(",", ":"))}),
                                        (name + "_io", answers, {})):
            write_safetensors(os.path.join(folder, path + ".safetensors"),
                              {k: ("F32", v.float().numpy()) for k, v in tensors.items()}, metadata)


if __name__ == "__main__":
    main()
