# SPDX-License-Identifier: MIT
"""DNSMOS P.835 as something to train against: its network, differentiable, from PyPI's speechmos.

The file is dnsmos_models/sig_bak_ovr.onnx of that package; its weights are read here, its seven convolutions written down
(Reddy et al., arXiv 2110.01763). tests/eval/dnsmos.py is the same judge by onnxruntime, for the scores.
"""
import numpy as np
import torch
import torch.nn.functional as F

RATE, LENGTH, HOP = 16000, 144160, 160  # it looks at 9.01 s
POOLED = (3, 4, 5)                      # the convolutions with a 2 x 2 maximum behind them
QUIET = 1e-12                           # of power, before the logarithm
SOFT = 1e-3                             # of power: 25 dB below speech at -26 dBFS, see spectrum
# quadratics from the network's speech, background and overall to the scale of 1 to 5, highest power first
CURVES = ((-0.08397278, 1.22083953, 0.0052439), (-0.13166888, 1.60915514, -0.39604546),
          (-0.06766283, 1.11546468, 0.04602535))


def fields(data):
    """(number, value) of a protocol-buffer message: an int, or the bytes of what has a length."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                return value

    while at < len(data):
        key = varint()
        kind, size = key & 7, 0
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        yield key >> 3, data[at:at + size]
        at += size


def shape_of(tensor):
    """Its dimensions; a file may hold them one by one or packed."""
    dims = []
    for k, v in tensor:
        if k == 1:
            dims += [v] if isinstance(v, int) else list(v)
    return dims


def read_weights(path):
    """{name: float array} of an ONNX file's constants."""
    with open(path, "rb") as f:
        graph = next(v for k, v in fields(f.read()) if k == 7)
    out = {}
    for tensor in (list(fields(v)) for k, v in fields(graph) if k == 5):
        part = dict(tensor)
        if part[2] == 1:                # floats
            out[part[8].decode()] = np.frombuffer(part.get(9) or part[4], np.float32).reshape(shape_of(tensor))
    return out


class Judge:
    """Call with (B, LENGTH) at 16 kHz -> (B, 3): speech, background and overall quality, 1 to 5."""

    def __init__(self, path, device):
        w = {k: torch.from_numpy(v.copy()).to(device) for k, v in read_weights(path).items()}
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        place = lambda t: t.to(self.dtype).to(memory_format=torch.channels_last)
        self.bases = torch.cat([w["time2freq/stft-%s/kernel:0" % part][:, :, 0] for part in ("real", "imag")])
        names = ["conv2d"] + ["conv2d_%d" % i for i in range(1, 7)]
        self.filters = [(place(w[n + "/kernel:0"]), w[n + "/bias:0"].to(self.dtype)) for n in names]
        dense = "mos_estimator_logpow/%s/%s/ReadVariableOp/resource:0"
        self.dense = [(w[dense % (n, "MatMul")].t(), w[dense % (n, "BiasAdd")]) for n in ("dense", "dense_1", "dense_3")]
        self.curves = torch.tensor(CURVES, device=device).t()

    def spectrum(self, x):
        """(B, 1, 900, 161): logarithm of the power of half-overlapping windows. Its gradient is that of power + SOFT:
        what is hardly there has a steep logarithm, and would be all that a step heeds."""
        hops = x.reshape(len(x), -1, HOP)
        re, im = F.linear(torch.cat((hops[:, :-1], hops[:, 1:]), -1), self.bases).chunk(2, -1)
        power = (re.square() + im.square()).clamp_min(QUIET)
        soft = (power + SOFT).log10()
        return (soft + (power.log10() - soft).detach())[:, None]

    def __call__(self, x):
        h = self.spectrum(x).to(self.dtype).contiguous(memory_format=torch.channels_last)
        for i, (weight, bias) in enumerate(self.filters):
            h = F.relu(F.conv2d(h, weight, bias, padding=1))
            if i in POOLED:
                h = F.max_pool2d(h, 2)
        h = h.float().amax((2, 3))
        for weight, bias in self.dense[:-1]:
            h = F.relu(F.linear(h, weight, bias))
        h = F.linear(h, *self.dense[-1])
        a, b, c = self.curves
        return (a * h + b) * h + c
