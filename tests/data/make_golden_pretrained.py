#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write golden_NAME_io.safetensors for shipped models of sensors and sounds to labels: rows in, and what they must answer
on time and with times between the rows, by make_golden_layers.py's definitions in float64.

    python3 make_golden_pretrained.py NAME..."""

import os
import sys

import torch

from make_golden_layers import run
from make_model import write_safetensors

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../model/train"))
from reference import read_safetensors  # noqa: E402

T, SEED = 60, 20231201


def sound(g, n):
    """A gliding buzz that comes and goes in noise."""
    t = torch.arange(n).double() / n
    buzz = torch.sign(torch.sin(400 * t + 300 * t * t)) * (torch.sin(25 * t) > 0)
    return 0.2 * buzz + 0.02 * torch.randn(n, generator=g).double()


def main():
    for name in sys.argv[1:]:
        config, tensors = read_safetensors(os.path.join(HERE, "../../model/pretrained", name + ".safetensors"))
        g = torch.Generator().manual_seed(SEED)
        width = config["hop"] * config.get("channels", 1)
        first = config["layers"][0]
        if first["type"] == "scale":
            mean, std = torch.tensor(first["mean"]), torch.tensor(first["std"])
            rows = (mean + std * torch.randn(T, len(mean), generator=g)).reshape(T, width)
        else:
            rows = sound(g, T * width).reshape(T, width)
        rows = rows.float()
        times = torch.rand(T, generator=g)
        elapsed = torch.where(times < 0.2, 1 + (9 * times / 0.2).round(), torch.ones(T))
        w = {k: torch.from_numpy(v.copy()).double() for k, v in tensors.items()}
        answers = {"in": rows, "out": run(config["layers"], w, rows.double(), torch.ones(T).double()), "elapsed": elapsed,
                   "out_elapsed": run(config["layers"], w, rows.double(), elapsed.double())}
        write_safetensors(os.path.join(HERE, "golden_%s_io.safetensors" % name),
                          {k: ("F32", v.float().numpy()) for k, v in answers.items()}, {})


if __name__ == "__main__":
    main()
