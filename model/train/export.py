#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A checkpoint (ema.pt) -> a model file: safetensors with the layer table in __metadata__["ssm.config"].

    python3 export.py run/ema.pt denoise-16k.safetensors [--int8] [--name N] [--version V] [--licence L] [--trained T]

int8: every linear weight NAME as I8 with NAME_scale, a float32 an output row (w = scale * q); the rest stays F32.
"""
import argparse
import json
import os
import struct
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

KINDS = {"float32": "F32", "int8": "I8"}


def write_safetensors(path, tensors, metadata):
    """tensors {name: array}; the header is padded with spaces so that the data starts on a multiple of 64 bytes."""
    header, at = {"__metadata__": metadata}, 0
    # wide types first, so that every tensor is aligned to its element
    names = sorted(tensors, key=lambda n: (-tensors[n].itemsize, n))
    for name in names:
        a = tensors[name]
        header[name] = dict(dtype=KINDS[a.dtype.name], shape=list(a.shape), data_offsets=[at, at + a.nbytes])
        at += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(path + ".tmp", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            f.write(np.ascontiguousarray(tensors[name]).tobytes())
    os.replace(path + ".tmp", path)


def quantise(w):
    """(out, in) float32 -> int8 rows and their scales, as training's fake_int8 rounds them."""
    import torch
    from layers import row_scales
    t = torch.from_numpy(w)
    s = row_scales(t)
    return (t / s).round().clamp(-127, 127).to(torch.int8).numpy(), s[:, 0].numpy()


def describe(config, name, version, licence, trained):
    from layers import complete, layer_rows
    c = complete(config)
    return dict(format=1, name=name, version=version, task="denoise", rate=c["rate"], hop=c["hop"], window=c["window"],
                channels=1, latency=c["window"], labels=[], licence=licence, trained=trained, layers=layer_rows(c))


def export(checkpoint, path, int8=False, name=None, version="1", licence=None, trained=None):
    import torch
    from layers import is_linear_weight
    s = torch.load(checkpoint, map_location="cpu")
    trained = trained or ("%d steps, %.0f hours of mixtures made on the fly from %.1f h of speech and %.1f h of noise" % (
        s["count"], s["heard"] / 3600, s["speech_hours"], s["noise_hours"]))
    tensors = {}
    for key, t in s["tensors"].items():
        w = np.ascontiguousarray(t.float().numpy())
        if not np.isfinite(w).all():
            raise SystemExit("%s: %s is not finite" % (checkpoint, key))
        if int8 and is_linear_weight(key):
            tensors[key], tensors[key + "_scale"] = quantise(w)
        else:
            tensors[key] = w
    config = describe(s["config"], name or s["recipe"]["name"], version, licence or "MIT", trained)
    write_safetensors(path, tensors, {"ssm.config": json.dumps(config, separators=(",", ":"))})
    return config


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("checkpoint")
    p.add_argument("out")
    p.add_argument("--int8", action="store_true")
    p.add_argument("--dtype", choices=("f32", "int8"), default=None)
    p.add_argument("--name")
    p.add_argument("--version", default="1")
    p.add_argument("--licence")
    p.add_argument("--trained")
    a = p.parse_args()
    export(a.checkpoint, a.out, a.int8 or a.dtype == "int8", a.name, a.version, a.licence, a.trained)
