#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a model file means, in NumPy: run hop by hop, as the engine does live, and whole; print how far they are apart.

    python3 reference.py MODEL.safetensors IN.wav [OUT.wav] [--seconds S]

Reads the layer table from the file and knows nothing of the training code: the independent check of the C engine.
Hop k in gives hop k out, which is one hop (window - hop samples) late.
"""
import argparse
import json
import struct
import wave

import numpy as np


def read_safetensors(path):
    """-> config, {name: float array}; int8 weights come back as scale * q."""
    with open(path, "rb") as f:
        raw = f.read()
    n, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    config = json.loads(header.pop("__metadata__")["ssm.config"])
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


class Stream:
    """One stream's state; step(hop) -> hop. precision: the float type everything is computed in."""

    def __init__(self, config, tensors, precision=np.float64):
        self.layers, self.p = config["layers"], precision
        self.t = {k: np.asarray(v, precision) for k, v in tensors.items()}
        self.W, self.H = config["window"], config["hop"]
        self.win = np.sin(np.pi * np.arange(self.W) / self.W).astype(precision)
        self.heard = np.zeros(self.W - self.H, precision)
        self.tail = np.zeros(self.W - self.H, precision)
        self.state, self.past = {}, []
        for row in self.layers:
            if row["type"] == "mamba":
                E = row["expand"] * row["d_model"]
                self.state[row["name"]] = (np.zeros((E, row["d_conv"]), precision), np.zeros((E, row["d_state"]), precision))
            if row["type"] == "filter":
                self.past = [np.zeros(self.W // 2 + 1, complex)] * row["taps"]

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean() + 1e-5) * self.t[name + ".weight"]

    def mamba(self, x, row):
        n, t = row["name"] + ".mixer.", self.t
        E, N, R = row["expand"] * row["d_model"], row["d_state"], row["dt_rank"]
        conv, h = self.state[row["name"]]
        xz = t[n + "in_proj.weight"] @ self.norm(x, row["name"] + ".norm")
        u, z = xz[:E], xz[E:]
        conv = np.concatenate((conv[:, 1:], u[:, None]), 1)
        u = silu((conv * t[n + "conv1d.weight"][:, 0]).sum(1) + t[n + "conv1d.bias"])
        dbc = t[n + "x_proj.weight"] @ u
        dt = softplus(t[n + "dt_proj.weight"] @ dbc[:R] + t[n + "dt_proj.bias"])
        B, C = dbc[R:R + N], dbc[R + N:]
        h = np.exp(dt[:, None] * -np.exp(t[n + "A_log"])) * h + (dt * u)[:, None] * B
        self.state[row["name"]] = conv, h
        y = (h @ C + t[n + "D"] * u) * silu(z)
        return x + t[n + "out_proj.weight"] @ y

    def step(self, hop):
        window = np.concatenate((self.heard, hop.astype(self.p)))
        self.heard = window[self.H:]
        x = X = None
        for row in self.layers:
            kind = row["type"]
            if kind == "stft":
                X = np.fft.rfft(window * self.win)
                a = np.sqrt(X.real ** 2 + X.imag ** 2 + 1e-12)
                c = row["compress"]
                x = np.concatenate((a ** c, X.real * a ** (c - 1), X.imag * a ** (c - 1))).astype(self.p)
            elif kind == "linear":
                x = self.t[row["name"] + ".weight"] @ x + self.t[row["name"] + ".bias"]
            elif kind == "mamba":
                x = self.mamba(x, row)
            elif kind == "norm":
                x = self.norm(x, row["name"])
            elif kind == "filter":
                self.past = [X] + self.past[:-1]
                w = x.reshape(row["taps"], 2, -1)
                X = sum((w[k, 0] + 1j * w[k, 1]) * self.past[k] for k in range(row["taps"]))
            elif kind == "istft":
                y = np.fft.irfft(X, self.W).astype(self.p) * self.win
                out = self.tail + y[:self.H]
                self.tail = y[self.H:]
            else:
                raise ValueError("no layer of type %s" % kind)
        return out


def whole(config, t, x):
    """The same samples from the whole recording at once, layer by layer over all hops (a scan over time inside)."""
    W, H = config["window"], config["hop"]
    win = np.sin(np.pi * np.arange(W) / W)
    t = {k: np.asarray(v, np.float64) for k, v in t.items()}
    T = len(x) // H
    padded = np.concatenate((np.zeros(W - H), x[:T * H]))
    X = np.fft.rfft(np.stack([padded[k * H:k * H + W] for k in range(T)]) * win)
    h = None
    norm = lambda v, name: v / np.sqrt((v * v).mean(-1, keepdims=True) + 1e-5) * t[name + ".weight"]
    for row in config["layers"]:
        kind = row["type"]
        if kind == "stft":
            a, c = np.sqrt(np.abs(X) ** 2 + 1e-12), row["compress"]
            h = np.concatenate((a ** c, X.real * a ** (c - 1), X.imag * a ** (c - 1)), 1)
        elif kind == "linear":
            h = h @ t[row["name"] + ".weight"].T + t[row["name"] + ".bias"]
        elif kind == "norm":
            h = norm(h, row["name"])
        elif kind == "mamba":
            n = row["name"] + ".mixer."
            E, N, R, K = row["expand"] * row["d_model"], row["d_state"], row["dt_rank"], row["d_conv"]
            u, z = np.split(norm(h, row["name"] + ".norm") @ t[n + "in_proj.weight"].T, 2, 1)
            before = np.concatenate((np.zeros((K - 1, E)), u))
            u = silu(sum(before[k:k + T] * t[n + "conv1d.weight"][:, 0, k] for k in range(K)) + t[n + "conv1d.bias"])
            dt, B, C = np.split(u @ t[n + "x_proj.weight"].T, (R, R + N), 1)
            dt = softplus(dt @ t[n + "dt_proj.weight"].T + t[n + "dt_proj.bias"])
            A, s, y = -np.exp(t[n + "A_log"]), np.zeros((E, N)), np.empty_like(u)
            for k in range(T):
                s = np.exp(dt[k, :, None] * A) * s + (dt[k] * u[k])[:, None] * B[k]
                y[k] = s @ C[k]
            h = h + ((y + t[n + "D"] * u) * silu(z)) @ t[n + "out_proj.weight"].T
        elif kind == "filter":
            w = h.reshape(T, row["taps"], 2, -1)
            past = np.concatenate((np.zeros((row["taps"] - 1, X.shape[1])), X))
            X = sum((w[:, k, 0] + 1j * w[:, k, 1]) * past[row["taps"] - 1 - k:row["taps"] - 1 - k + T]
                    for k in range(row["taps"]))
    frames = np.fft.irfft(X, W) * win
    out = np.zeros(T * H + W - H)
    for k in range(T):
        out[k * H:k * H + W] += frames[k]
    return out[:T * H]                      # hop k: what left the overlap-add when hop k came in


def run(config, tensors, x, precision=np.float64):
    s = Stream(config, tensors, precision)
    H = config["hop"]
    return np.concatenate([s.step(x[k:k + H]) for k in range(0, len(x) // H * H, H)])


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
