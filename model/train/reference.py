#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a model file means, in NumPy: run hop by hop, as the engine does live, and whole; print how far they are apart.

    python3 reference.py MODEL.safetensors IN.wav [OUT.wav] [--seconds S]

Reads the layer table from the file and knows nothing of the training code: the independent check of the C engine.
Hop k in gives hop k out, which is one hop (window - hop samples) late. Other than in WAV files, models of sensors and
tokens run by run() and whole().
"""
import argparse
import json
import math
import struct
import wave

import numpy as np


def read_safetensors(path):
    """-> config ({} where there is none), {name: float array}; int8 weights come back as scale * q."""
    with open(path, "rb") as f:
        raw = f.read()
    n, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    config = json.loads(header.pop("__metadata__", {}).get("ssm.config", "{}"))
    kinds = dict(F32=np.float32, I8=np.int8)
    t = {k: np.frombuffer(raw, kinds[h["dtype"]], int(np.prod(h["shape"])), 8 + n + h["data_offsets"][0]).reshape(h["shape"])
         for k, h in header.items()}
    for k in [k for k in t if k.endswith("_scale")]:
        t[k[:-6]] = t[k[:-6]].astype(np.float32) * t.pop(k)[:, None]
    return config, t


def read_wav(path, rate):
    with wave.open(path) as w:
        assert w.getframerate() == rate and w.getsampwidth() == 2, "want 16-bit wav at %d Hz" % rate
        x = np.frombuffer(w.readframes(w.getnframes()), "<i2").reshape(-1, w.getnchannels())
    return x.mean(1) / 32768.0


def write_wav(path, x, rate):
    with wave.open(path, "wb") as w:
        w.setparams((1, 2, rate, 0, "NONE", ""))
        w.writeframes(np.clip(np.round(x * 32768), -32768, 32767).astype("<i2").tobytes())


sigmoid = lambda v: 0.5 * (1 + np.tanh(0.5 * v))
silu = lambda v: v * sigmoid(v)
softplus = lambda v: np.where(v > 20, v, np.log1p(np.exp(np.minimum(v, 20))))


def rms_norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def alone(row, x, t):
    """The layers that look at a row of values alone, over x (width) or (hops, width); None for any other."""
    kind, name = row["type"], row.get("name")
    if kind == "linear":
        return x @ t[name + ".weight"].T + t.get(name + ".bias", 0)
    if kind == "norm":
        return rms_norm(x, t[name + ".weight"])
    if kind == "scale":
        times = x.shape[-1] // len(row["mean"])
        return (x - np.tile(row["mean"], times)) / np.tile(row["std"], times)
    if kind == "embedding":
        tokens = x[..., 0]
        return t[name + ".weight"][np.where((tokens >= 0) & (tokens < row["vocabulary"]), tokens, 0).astype(int)]
    if kind == "sigmoid":
        return sigmoid(x)
    if kind == "softmax":
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)


def s4d_bars(row, t, elapsed):
    """A-bar and B-bar (d_model, pairs) of a step over so much time."""
    k = row["name"] + ".kernel."
    A, dt = -np.exp(t[k + "log_A_real"]) + 1j * t[k + "A_imag"], elapsed * np.exp(t[k + "log_dt"])[:, None]
    if row.get("discretisation") == "bilinear":
        return (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
    return np.exp(dt * A), (np.exp(dt * A) - 1) / A


def s4d_around(row, t, x, scan):
    """Norm, scan, activation, mix and residual, as the row asks for them. scan(u) is without the skip."""
    name = row["name"]
    u = rms_norm(x, t[name + ".norm.weight"]) if row.get("norm") else x
    y = scan(u) + t[name + ".D"] * u
    if row.get("activation", "none") == "silu":
        y = silu(y)
    elif row.get("activation", "none") == "gelu":
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    if row.get("mix", "none") != "none":
        y = alone(dict(type="linear", name=name + ".output_linear"), y, t)
        if row["mix"] == "glu":
            first, second = np.split(y, 2, -1)
            y = first * sigmoid(second)
    return x + y if row.get("residual") else y


class Stream:
    """One stream's state; step(hop, elapsed) -> hop or scores. precision: the float type everything is computed in."""

    def __init__(self, config, tensors, precision=np.float64):
        self.layers, self.p = config["layers"], precision
        self.t = {k: np.asarray(v, precision) for k, v in tensors.items()}
        self.W, self.H = config.get("window", config["hop"]), config["hop"]
        self.win = np.sin(np.pi * np.arange(self.W) / self.W).astype(precision)
        self.heard = np.zeros(self.W - self.H, precision)
        self.tail = np.zeros(self.W - self.H, precision)
        self.state, self.past = {}, []
        for i, row in enumerate(self.layers):
            if row["type"] == "mamba":
                E = row["expand"] * row["d_model"]
                self.state[i] = (np.zeros((E, row["d_conv"]), precision), np.zeros((E, row["d_state"]), precision))
            if row["type"] in ("s4d", "pool"):
                self.state[i] = 0, 0
            if row["type"] == "filter":
                self.past = [np.zeros(self.W // 2 + 1, complex)] * row["taps"]

    def pool(self, x, i, elapsed):
        row, (mean, total) = self.layers[i], self.state[i]
        if row.get("kind", "mean") == "mean":
            total = min(total + elapsed, row.get("hops", math.inf))
            weight = min(elapsed / total, 1)
        else:
            weight = -math.expm1(-elapsed / row["hops"])
        mean = mean + weight * (x - mean)
        self.state[i] = mean, total
        return mean

    def s4d(self, u, i, elapsed):
        A_bar, B_bar = s4d_bars(self.layers[i], self.t, elapsed)
        h = A_bar * self.state[i][0] + B_bar * u[:, None]
        self.state[i] = h, 0
        return 2 * (self.t[self.layers[i]["name"] + ".kernel.C"] @ [1, 1j] * h).real.sum(-1)

    def mamba(self, x, i, elapsed):
        row = self.layers[i]
        n, t = row["name"] + ".mixer.", self.t
        E, N, R = row["expand"] * row["d_model"], row["d_state"], row["dt_rank"]
        conv, h = self.state[i]
        xz = t[n + "in_proj.weight"] @ rms_norm(x, t[row["name"] + ".norm.weight"])
        u, z = xz[:E], xz[E:]
        conv = np.concatenate((conv[:, 1:], u[:, None]), 1)
        u = silu((conv * t[n + "conv1d.weight"][:, 0]).sum(1) + t[n + "conv1d.bias"])
        dbc = t[n + "x_proj.weight"] @ u
        dt = elapsed * softplus(t[n + "dt_proj.weight"] @ dbc[:R] + t[n + "dt_proj.bias"])[:, None]
        A, B, C = -np.exp(t[n + "A_log"]), dbc[R:R + N], dbc[R + N:]
        gain = np.expm1(dt * A) / A if row["discretisation"] == "zoh" else dt
        h = np.exp(dt * A) * h + gain * u[:, None] * B
        self.state[i] = conv, h
        y = (h @ C + t[n + "D"] * u) * silu(z)
        return x + t[n + "out_proj.weight"] @ y

    def step(self, hop, elapsed=1.0):
        x = hop.astype(self.p)
        window, X = np.concatenate((self.heard, x)), None
        self.heard = window[len(x):]
        for i, row in enumerate(self.layers):
            kind = row["type"]
            if kind == "stft":
                X = np.fft.rfft(window * self.win)
                a = np.sqrt(X.real ** 2 + X.imag ** 2 + 1e-12)
                c = row["compress"]
                x = np.concatenate((a ** c, X.real * a ** (c - 1), X.imag * a ** (c - 1))).astype(self.p)
            elif kind == "mamba":
                x = self.mamba(x, i, elapsed)
            elif kind == "s4d":
                x = s4d_around(row, self.t, x, lambda u: self.s4d(u, i, elapsed))
            elif kind == "pool":
                x = self.pool(x, i, elapsed)
            elif kind == "filter":
                self.past = [X] + self.past[:-1]
                w = x.reshape(row["taps"], 2, -1)
                X = sum((w[k, 0] + 1j * w[k, 1]) * self.past[k] for k in range(row["taps"]))
            elif kind == "istft":
                y = np.fft.irfft(X, self.W).astype(self.p) * self.win * (2 * self.H / self.W)
                x = (y[:self.H] + self.tail[:self.H]).astype(self.p)
                self.tail = y[self.H:] + np.concatenate((self.tail[self.H:], np.zeros(self.H, self.p)))
            else:
                x = alone(row, x, self.t)
                if x is None:
                    raise ValueError("no layer of type %s" % kind)
        return x


def convolve(row, t, u):
    """S4D's scan of (hops, d_model) as the convolution with its kernel, by FFT."""
    A_bar, B_bar = s4d_bars(row, t, 1.0)
    w = t[row["name"] + ".kernel.C"] @ [1, 1j] * B_bar
    kernel = np.stack([2 * (w * A_bar ** k).real.sum(-1) for k in range(len(u))])
    n = 2 * len(u)
    return np.fft.irfft(np.fft.rfft(u, n, axis=0) * np.fft.rfft(kernel, n, axis=0), n, axis=0)[:len(u)]


def mamba_whole(row, t, h):
    n = row["name"] + ".mixer."
    T, E, N, R, K = len(h), row["expand"] * row["d_model"], row["d_state"], row["dt_rank"], row["d_conv"]
    u, z = np.split(rms_norm(h, t[row["name"] + ".norm.weight"]) @ t[n + "in_proj.weight"].T, 2, 1)
    before = np.concatenate((np.zeros((K - 1, E)), u))
    u = silu(sum(before[k:k + T] * t[n + "conv1d.weight"][:, 0, k] for k in range(K)) + t[n + "conv1d.bias"])
    dt, B, C = np.split(u @ t[n + "x_proj.weight"].T, (R, R + N), 1)
    dt = softplus(dt @ t[n + "dt_proj.weight"].T + t[n + "dt_proj.bias"])[..., None]
    A, s, y = -np.exp(t[n + "A_log"]), np.zeros((E, N)), np.empty_like(u)
    for k in range(T):
        gain = np.expm1(dt[k] * A) / A if row["discretisation"] == "zoh" else dt[k]
        s = np.exp(dt[k] * A) * s + gain * u[k][:, None] * B[k]
        y[k] = s @ C[k]
    return h + ((y + t[n + "D"] * u) * silu(z)) @ t[n + "out_proj.weight"].T


def whole(config, t, x):
    """The same from the whole recording at once, no time missing, layer by layer over all hops; S4D as a convolution."""
    W, H = config.get("window", config["hop"]), config["hop"]
    win = np.sin(np.pi * np.arange(W) / W)
    t = {k: np.asarray(v, np.float64) for k, v in t.items()}
    n = H * config.get("channels", 1)
    T = len(x) // n
    h = np.asarray(x[:T * n], np.float64).reshape(T, n)
    for row in config["layers"]:
        kind = row["type"]
        if kind == "stft":
            padded = np.concatenate((np.zeros(W - H), h.reshape(-1)))
            X = np.fft.rfft(np.stack([padded[k * H:k * H + W] for k in range(T)]) * win)
            a, c = np.sqrt(np.abs(X) ** 2 + 1e-12), row["compress"]
            h = np.concatenate((a ** c, X.real * a ** (c - 1), X.imag * a ** (c - 1)), 1)
        elif kind == "mamba":
            h = mamba_whole(row, t, h)
        elif kind == "s4d":
            h = s4d_around(row, t, h, lambda u: convolve(row, t, u))
        elif kind == "pool":
            stream = Stream(dict(layers=[row], hop=1), {})
            h = np.stack([stream.pool(v, 0, 1.0) for v in h])
        elif kind == "filter":
            w = h.reshape(T, row["taps"], 2, -1)
            past = np.concatenate((np.zeros((row["taps"] - 1, X.shape[1])), X))
            X = sum((w[:, k, 0] + 1j * w[:, k, 1]) * past[row["taps"] - 1 - k:row["taps"] - 1 - k + T]
                    for k in range(row["taps"]))
        elif kind == "istft":               # hop k: what left the overlap-add when hop k came in
            frames, h = np.fft.irfft(X, W) * (win * (2 * H / W)), np.zeros(T * H + W - H)
            for k in range(T):
                h[k * H:k * H + W] += frames[k]
            h = h[:T * H].reshape(T, H)
        else:
            h = alone(row, h, t)
    return h.reshape(-1)


def run(config, tensors, x, precision=np.float64, elapsed=None):
    """Hop by hop; elapsed: the time before each, in hops."""
    s = Stream(config, tensors, precision)
    n = config["hop"] * config.get("channels", 1)
    hops = [x[k:k + n] for k in range(0, len(x) // n * n, n)]
    return np.concatenate([s.step(hop, 1.0 if elapsed is None else float(elapsed[k])) for k, hop in enumerate(hops)])


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("model")
    p.add_argument("input")
    p.add_argument("output", nargs="?")
    p.add_argument("--seconds", type=float, default=1e9)
    p.add_argument("--precision", choices=("float32", "float64"), default="float64")
    a = p.parse_args()
    cfg, weights = read_safetensors(a.model)
    sound = read_wav(a.input, cfg["rate"])[:int(a.seconds * cfg["rate"])]
    live = run(cfg, weights, sound, getattr(np, a.precision))
    print("hop by hop against whole: largest difference %.3g of full scale" % np.abs(live - whole(cfg, weights, sound)).max())
    if a.output:
        write_wav(a.output, live, cfg["rate"])
