#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write golden_mamba.safetensors, a random checkpoint under mamba_ssm's names and nothing else (no ssm.config), and
golden_mamba_io.safetensors, what it must answer.

The answers are computed in float64 PyTorch from the Mamba paper's equations (arXiv 2312.00752, algorithm 2; mixer as in
figure 3), one time step after the other. Layer 1 has the projections' optional biases, layer 0 has none. `elapsed` is
time since the previous row in hops; it multiplies dt.

    python3 make_golden_mamba.py [FOLDER]"""

import os
import sys

import torch
import torch.nn.functional as F

from make_model import write_safetensors

D, E, N, K, R, LAYERS, T, SEED = 24, 48, 8, 4, 2, 2, 150, 20231201


def random_checkpoint():
    g = torch.Generator().manual_seed(SEED)
    uniform = lambda bound, *shape: (torch.rand(*shape, generator=g) * 2 - 1) * bound
    weights = {"backbone.embeddings.weight": uniform(1, 5, D)}
    for i in range(LAYERS):
        p = f"backbone.layers.{i}."
        dt = torch.exp(torch.rand(E, generator=g) * 4.6 - 6.9)
        weights[p + "norm.weight"] = 1 + uniform(0.3, D)
        weights[p + "mixer.in_proj.weight"] = uniform(2 * D**-0.5, 2 * E, D)
        weights[p + "mixer.conv1d.weight"] = uniform(0.5, E, 1, K)
        weights[p + "mixer.conv1d.bias"] = uniform(0.5, E)
        weights[p + "mixer.x_proj.weight"] = uniform(2 * E**-0.5, R + 2 * N, E)
        weights[p + "mixer.dt_proj.weight"] = uniform(R**-0.5, E, R)
        weights[p + "mixer.dt_proj.bias"] = dt + torch.log(-torch.expm1(-dt))
        weights[p + "mixer.A_log"] = torch.log(torch.arange(1.0, N + 1)).repeat(E, 1) + uniform(0.1, E, N)
        weights[p + "mixer.D"] = 1 + uniform(0.3, E)
        weights[p + "mixer.out_proj.weight"] = uniform(2 * E**-0.5, D, E)
        if i == 1:
            weights[p + "mixer.in_proj.bias"] = uniform(0.2, 2 * E)
            weights[p + "mixer.out_proj.bias"] = uniform(0.2, D)
    weights["backbone.norm_f.weight"] = 1 + uniform(0.3, D)
    return weights, uniform(1, T, D), torch.where(torch.rand(T, generator=g) < 0.15, 1 + 7 * torch.rand(T, generator=g), 1)


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean() + 1e-5) * weight


class Mixer:
    def __init__(self, weights, prefix):
        self.w = {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix)}
        self.past = torch.zeros(E, K, dtype=torch.float64)
        self.h = torch.zeros(E, N, dtype=torch.float64)

    def step(self, x, elapsed):
        w = self.w
        x, z = F.linear(x, w["in_proj.weight"], w.get("in_proj.bias")).chunk(2)
        self.past = torch.cat([self.past[:, 1:], x[:, None]], dim=1)
        u = F.silu((self.past * w["conv1d.weight"][:, 0]).sum(1) + w["conv1d.bias"])
        dt, B, C = F.linear(u, w["x_proj.weight"]).split([R, N, N])
        delta = elapsed * F.softplus(F.linear(dt, w["dt_proj.weight"], w["dt_proj.bias"]))
        A = -torch.exp(w["A_log"])
        self.h = torch.exp(delta[:, None] * A) * self.h + delta[:, None] * B[None, :] * u[:, None]
        y = self.h @ C + w["D"] * u
        return F.linear(y * F.silu(z), w["out_proj.weight"], w.get("out_proj.bias"))


def run(weights, rows, elapsed):
    mixers = [Mixer(weights, f"backbone.layers.{i}.mixer.") for i in range(LAYERS)]
    out = []
    for x, time in zip(rows, elapsed):
        for i, mixer in enumerate(mixers):
            x = x + mixer.step(rms_norm(x, weights[f"backbone.layers.{i}.norm.weight"]), time)
        out.append(rms_norm(x, weights["backbone.norm_f.weight"]))
    return torch.stack(out)


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    weights, rows, elapsed = random_checkpoint()
    exact = {k: v.double() for k, v in weights.items()}
    files = {
        "golden_mamba": weights,
        "golden_mamba_io": {
            "in": rows, "out": run(exact, rows.double(), torch.ones(T).double()),
            "elapsed": elapsed, "out_elapsed": run(exact, rows.double(), elapsed.double()),
        },
    }
    for name, tensors in files.items():
        path = os.path.join(folder, name + ".safetensors")
        write_safetensors(path, {k: ("F32", v.float().numpy()) for k, v in tensors.items()}, {"format": "pt"})


if __name__ == "__main__":
    main()
