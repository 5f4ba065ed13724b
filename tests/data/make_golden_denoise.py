#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write golden_denoise.safetensors, a small denoiser with random weights, int8 matrices and both discretisations, and
golden_denoise_io.safetensors, samples in and the samples it must give.

The answers are computed in float64 NumPy over the whole signal at once, from what the layers' headers say: an
overlapped, windowed rfft; compressed features; Mamba layers; a filter over the last spectra; overlap-add.

    python3 make_golden_denoise.py [FOLDER]"""

import json
import os
import sys

import numpy as np

from make_model import BINS, CONV, HOP, STATES, TAPS, WINDOW, make_denoiser, write_safetensors

HOPS, D, LAYERS, SEED = 60, 12, 2, 7


def plain(tensors):
    """Tensors as float64, the int8 ones multiplied out."""
    values = {name: array.astype(np.float64) for name, (_, array) in tensors.items()}
    return {name: v * values[name + "_scale"][:, None] if name + "_scale" in values else v for name, v in values.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms_norm(x, weight):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * weight


def mamba(x, w, name, rank, zoh):
    m = name + ".mixer."
    xz = rms_norm(x, w[name + ".norm.weight"]) @ w[m + "in_proj.weight"].T
    inner = xz.shape[1] // 2
    v, z = xz[:, :inner], xz[:, inner:]
    padded = np.vstack([np.zeros((CONV - 1, inner)), v])
    taps = w[m + "conv1d.weight"][:, 0, :]
    c = w[m + "conv1d.bias"] + sum(padded[k:k + len(v)] * taps[:, k] for k in range(CONV))
    u = c * sigmoid(c)
    mixed = u @ w[m + "x_proj.weight"].T
    delta = np.log1p(np.exp(mixed[:, :rank] @ w[m + "dt_proj.weight"].T + w[m + "dt_proj.bias"]))
    B, C = mixed[:, rank:rank + STATES], mixed[:, rank + STATES:]
    A = -np.exp(w[m + "A_log"])
    h, y = np.zeros((inner, STATES)), np.zeros_like(u)
    for t in range(len(u)):
        decay = np.exp(delta[t][:, None] * A)
        gain = (decay - 1) / A if zoh else delta[t][:, None]
        h = decay * h + gain * B[t] * u[t][:, None]
        y[t] = h @ C[t] + w[m + "D"] * u[t]
    return x + (y * z * sigmoid(z)) @ w[m + "out_proj.weight"].T


def denoise(samples, w, chain):
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW))
    heard = np.concatenate([np.zeros(WINDOW - HOP), samples])
    X = np.stack([np.fft.rfft(window * heard[k * HOP:k * HOP + WINDOW]) for k in range(HOPS)])
    size = np.sqrt(np.abs(X) ** 2 + 1e-12)
    shrink = size ** (chain[0]["compress"] - 1)
    x = np.hstack([size * shrink, X.real * shrink, X.imag * shrink])
    x = x @ w["encoder.weight"].T + w["encoder.bias"]
    for layer in chain:
        if layer["type"] == "mamba":
            x = mamba(x, w, layer["name"], layer["dt_rank"], layer["discretisation"] == "zoh")
    x = rms_norm(x, w["backbone.norm_f.weight"])
    W = (x @ w["head.weight"].T + w["head.bias"]).reshape(HOPS, TAPS, 2, BINS)
    past = np.vstack([np.zeros((TAPS - 1, BINS)), X])
    Y = sum((W[:, k, 0] + 1j * W[:, k, 1]) * past[TAPS - 1 - k:TAPS - 1 - k + HOPS] for k in range(TAPS))
    out = np.zeros(WINDOW + HOPS * HOP)
    for k in range(HOPS):
        out[k * HOP:k * HOP + WINDOW] += window * np.fft.irfft(Y[k], WINDOW)
    return out[:HOPS * HOP]


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    tensors, metadata = make_denoiser(D, LAYERS, "i8", SEED, "golden-denoise")
    rng = np.random.default_rng(SEED)
    # Large head weights: the answer must depend on every layer.
    tensors["head.weight_scale"] = ("F32", tensors["head.weight_scale"][1] * 50)
    config = json.loads(metadata["ssm.config"])
    next(row for row in config["layers"] if row.get("name") == "backbone.layers.1")["discretisation"] = "zoh"
    samples = (0.3 * np.sin(0.07 * np.arange(HOPS * HOP)) + 0.1 * rng.standard_normal(HOPS * HOP)).astype(np.float32)
    samples[20 * HOP:24 * HOP] = 0
    out = denoise(samples.astype(np.float64), plain(tensors), config["layers"])
    write_safetensors(os.path.join(folder, "golden_denoise.safetensors"), tensors, {"ssm.config": json.dumps(config)})
    write_safetensors(os.path.join(folder, "golden_denoise_io.safetensors"),
                      {"in": ("F32", samples), "out": ("F32", out.astype(np.float32))}, {})


if __name__ == "__main__":
    main()
