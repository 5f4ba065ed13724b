#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write two small models whose answers are known, beside this script. numpy is all it needs.

tiny-tag.safetensors      16 kHz sound: "low" is on where there is sound from 200 to 1500 Hz, "high" from 4 to 7 kHz
tiny-sensor.safetensors   100 rows a second of ax, ay, az: one Mamba layer of random weights with zero-order hold, so that
                          what it says depends on the time between rows; "still" and "moving" exclude each other"""

import json
import os

import numpy as np

from make_model import put_mamba, write_safetensors

HOP, WINDOW = 160, 320
BINS = WINDOW // 2 + 1


def write(name, tensors, **config):
    config = {"format": 1, "name": name, "version": "1", "task": "tag", "licence": "MIT", **config}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".safetensors")
    write_safetensors(path, tensors, {"ssm.config": json.dumps(config, separators=(",", ":"))})


def make_tag():
    """A tone of -10 dB gives its band a sum of |X|^0.9 of 35 or so, silence next to nothing."""
    weight = np.zeros((2, 3 * BINS), np.float32)
    hz = np.arange(BINS) * 16000 / WINDOW
    weight[0, :BINS][(hz >= 200) & (hz <= 1500)] = 0.5
    weight[1, :BINS][(hz >= 4000) & (hz <= 7000)] = 0.5
    tensors = {"head.weight": ("F32", weight), "head.bias": ("F32", np.full(2, -5, np.float32))}
    labels = [{"name": "low", "mid": "/t/low", "on": 0.6, "off": 0.4, "min_s": 0.1, "hold_s": 0.05}, "high"]
    write("tiny-tag", tensors, rate=16000, hop=HOP, channels=1, labels=labels, trained="not at all: a filter bank",
          layers=[{"type": "stft", "window": WINDOW, "hop": HOP, "compress": 0.9},
                  {"type": "linear", "name": "head", "in": 3 * BINS, "out": 2}, {"type": "sigmoid"}])


def make_sensor():
    rng = np.random.default_rng(4)
    d = 8
    tensors = {"encoder.weight": ("F32", rng.uniform(-1, 1, (d, 3)).astype(np.float32)),
               "encoder.bias": ("F32", np.zeros(d, np.float32)),
               "head.weight": ("F32", rng.uniform(-1, 1, (2, d)).astype(np.float32)),
               "head.bias": ("F32", np.zeros(2, np.float32))}
    mamba = {**put_mamba(tensors, "backbone.layers.0", d, rng, "f32"), "discretisation": "zoh"}
    write("tiny-sensor", tensors, rate=100, hop=1, channels=3, fields=["ax", "ay", "az"], units=["g", "g", "g"],
          labels=["still", "moving"], exclusive=True, trained="not at all: random weights",
          layers=[{"type": "linear", "name": "encoder", "in": 3, "out": d}, mamba,
                  {"type": "linear", "name": "head", "in": d, "out": 2}, {"type": "softmax"}])


make_tag()
make_sensor()
