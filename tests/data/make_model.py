#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write a denoiser with random weights, for tests and benchmarks: no training, the right shapes.

    make_model.py OUT [--d-model 16] [--layers 1] [--weights f16|f32|bf16|i8] [--seed 1]

The head's bias is the identity filter and its weights are small, so sound passes nearly unchanged.
tiny-denoise.safetensors is `make_model.py tiny-denoise.safetensors`; the benchmark's model is
`make_model.py OUT --d-model 256 --layers 4 --weights i8`. numpy is all it needs."""

import argparse
import json
import struct

import numpy as np

HOP, WINDOW, TAPS, STATES, CONV = 160, 320, 3, 16, 4
BINS = WINDOW // 2 + 1


def bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, tensors, metadata):
    """tensors: name -> (dtype name, array). The data starts at a multiple of 64."""
    header, offset = {"__metadata__": metadata}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def put_linear(tensors, name, weight, kind):
    """One matrix in the asked precision; i8 has a scale a row beside it."""
    if kind == "i8":
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-8) / 127
        tensors[name] = ("I8", np.clip(np.round(weight / scale[:, None]), -127, 127).astype(np.int8))
        tensors[name + "_scale"] = ("F32", scale.astype(np.float32))
    elif kind == "f16":
        tensors[name] = ("F16", weight.astype(np.float16))
    elif kind == "bf16":
        tensors[name] = ("BF16", bf16(weight))
    else:
        tensors[name] = ("F32", weight.astype(np.float32))


def put_mamba(tensors, name, d, rng, kind):
    """mamba_ssm's own initialisation (Mamba paper, section 3.6)."""
    e, r = 2 * d, -(-d // 16)
    uniform = lambda bound, *shape: rng.uniform(-bound, bound, shape)
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), e))
    mixer = name + ".mixer."
    tensors[name + ".norm.weight"] = ("F32", np.ones(d, np.float32))
    put_linear(tensors, mixer + "in_proj.weight", uniform(d**-0.5, 2 * e, d), kind)
    tensors[mixer + "conv1d.weight"] = ("F32", uniform(CONV**-0.5, e, 1, CONV).astype(np.float32))
    tensors[mixer + "conv1d.bias"] = ("F32", uniform(CONV**-0.5, e).astype(np.float32))
    put_linear(tensors, mixer + "x_proj.weight", uniform(e**-0.5, r + 2 * STATES, e), kind)
    put_linear(tensors, mixer + "dt_proj.weight", uniform(r**-0.5, e, r), kind)
    tensors[mixer + "dt_proj.bias"] = ("F32", (dt + np.log(-np.expm1(-dt))).astype(np.float32))
    tensors[mixer + "A_log"] = ("F32", np.log(np.tile(np.arange(1.0, STATES + 1), (e, 1))).astype(np.float32))
    tensors[mixer + "D"] = ("F32", np.ones(e, np.float32))
    put_linear(tensors, mixer + "out_proj.weight", uniform(e**-0.5, d, e), kind)
    return {"type": "mamba", "name": name, "d_model": d, "d_state": STATES, "d_conv": CONV, "expand": 2, "dt_rank": r,
            "discretisation": "euler"}


def make_denoiser(d, layers, kind, seed, name):
    rng = np.random.default_rng(seed)
    tensors, chain = {}, [{"type": "stft", "window": WINDOW, "hop": HOP, "compress": 0.3}]
    put_linear(tensors, "encoder.weight", rng.uniform(-1, 1, (d, 3 * BINS)) * (3 * BINS) ** -0.5, kind)
    tensors["encoder.bias"] = ("F32", np.zeros(d, np.float32))
    chain.append({"type": "linear", "name": "encoder", "in": 3 * BINS, "out": d})
    chain += [put_mamba(tensors, f"backbone.layers.{i}", d, rng, kind) for i in range(layers)]
    tensors["backbone.norm_f.weight"] = ("F32", np.ones(d, np.float32))
    chain.append({"type": "norm", "name": "backbone.norm_f", "width": d})
    put_linear(tensors, "head.weight", rng.uniform(-1, 1, (2 * TAPS * BINS, d)) * 0.02 * d**-0.5, kind)
    identity = np.zeros((TAPS, 2, BINS), np.float32)
    identity[0, 0] = 1
    tensors["head.bias"] = ("F32", identity.reshape(-1))
    chain += [{"type": "linear", "name": "head", "in": d, "out": 2 * TAPS * BINS}, {"type": "filter", "taps": TAPS},
              {"type": "istft", "window": WINDOW, "hop": HOP}]
    config = {"format": 1, "name": name, "version": "1", "task": "denoise", "rate": 16000, "hop": HOP, "window": WINDOW,
              "channels": 1, "latency": WINDOW, "labels": [], "licence": "MIT", "trained": "not at all: random weights",
              "layers": chain}
    return tensors, {"ssm.config": json.dumps(config, separators=(",", ":"))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--d-model", type=int, default=16)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--weights", choices=["f16", "f32", "bf16", "i8"], default="f16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="tiny-denoise")
    args = parser.parse_args()
    write_safetensors(args.out, *make_denoiser(args.d_model, args.layers, args.weights, args.seed, args.name))


if __name__ == "__main__":
    main()
