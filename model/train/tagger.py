# SPDX-License-Identifier: MIT
"""Models that name what they hear or feel: the layers of a tagger, once, as libssm runs them, and their export.

    stft or scale -> linear encoder -> n_layer Mamba blocks -> norm -> linear head -> sigmoid or softmax

The blocks are layers.py's. `elapsed` (batch, hops) is the time since the row before, in hops: 1 without a gap, 3 when two
were lost, 2 at half the rate. It multiplies dt and nothing else.
"""
import json

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import export
import layers

DEFAULTS = dict(rate=16000, window=320, hop=160, channels=1, front="stft", compress=0.3, mean=(), std=(), d_model=48, n_layer=3,
                d_state=16, d_conv=4, expand=2, dt_rank=0, discretisation="euler", exclusive=False, labels=(), look=0, phase=True, dropout=0.0)


def complete(config):
    """DEFAULTS overlaid with config; dt_rank 0 becomes ceil(d_model / 16). look: hops by which answers come late; phase: false if
    the encoder is to read magnitudes only; dropout: of what goes into the blocks and the head, in training."""
    c = dict(DEFAULTS, **{k: v for k, v in config.items() if k in DEFAULTS})
    c["dt_rank"] = c["dt_rank"] or -(-c["d_model"] // 16)
    return c


def front_width(c):
    return 3 * (c["window"] // 2 + 1) if c["front"] == "stft" else c["hop"] * c["channels"]


def layer_rows(config):
    """The layer table that goes into the model file."""
    c = complete(config)
    if c["front"] == "stft":
        rows = [dict(type="stft", window=c["window"], hop=c["hop"], compress=c["compress"])]
    else:
        rows = [dict(type="scale", mean=list(c["mean"]), std=list(c["std"]))]
    rows.append(dict(type="linear", name="encoder", **{"in": front_width(c), "out": c["d_model"]}))
    rows += [dict(type="mamba", name="backbone.layers.%d" % i, d_model=c["d_model"], d_state=c["d_state"], d_conv=c["d_conv"],
                  expand=c["expand"], dt_rank=c["dt_rank"], discretisation=c["discretisation"]) for i in range(c["n_layer"])]
    return rows + [dict(type="norm", name="backbone.norm_f", width=c["d_model"]),
                   dict(type="linear", name="head", **{"in": c["d_model"], "out": len(c["labels"])}),
                   dict(type="softmax" if c["exclusive"] else "sigmoid")]


class _TimedScan(torch.autograd.Function):
    """y (T, B, E) of delta, u (T, B, E), A (E, N), B, C (T, B, N): one row at a time, so that all of it stays in cache."""

    @staticmethod
    def forward(ctx, delta, u, A, B, C, zoh):
        ctx.zoh = zoh
        ctx.save_for_backward(delta, u, A, B, C)
        h, ys, ctx.states = u.new_zeros(*u.shape[1:], A.shape[1]), [], []
        for d, x, b, c in zip(delta.unbind(0), u.unbind(0), B.unbind(0), C.unbind(0)):
            ctx.states.append(h)
            change = torch.expm1(d[..., None] * A)
            gain = change / A if zoh else d[..., None]
            h = torch.addcmul(h, change, h).add_(gain * x[..., None] * b[:, None])
            ys.append(torch.bmm(h, c[..., None])[..., 0])
        ctx.states.append(h)
        return torch.stack(ys)

    @staticmethod
    def backward(ctx, dy):
        delta, u, A, B, C = ctx.saved_tensors
        ddelta, du, dB, dC = (torch.empty_like(x) for x in (delta, u, B, C))
        dA, dh = torch.zeros_like(ctx.states[0]), torch.zeros_like(ctx.states[0])
        for t in range(len(u) - 1, -1, -1):
            d, x, b, g = delta[t][..., None], u[t][..., None], B[t][:, None], dy[t][..., None]
            dC[t] = torch.bmm(ctx.states[t + 1].transpose(1, 2), g)[..., 0]
            dh.addcmul_(g, C[t][:, None])
            decay = torch.exp(d * A)
            gain = torch.expm1(d * A) / A if ctx.zoh else d
            scaled = gain * dh                                          # into B u
            dB[t] = torch.bmm(scaled.transpose(1, 2), x)[..., 0]
            du[t] = torch.bmm(scaled, B[t][..., None])[..., 0]
            kept = decay * dh                                           # into the state before, and with zoh into B u delta
            through = kept * ctx.states[t]
            dA.addcmul_(through, d)
            ddelta[t] = (through * A).sum(-1)
            if ctx.zoh:
                ddelta[t] += (kept * b).sum(-1) * u[t]
                dA.addcmul_((kept * d - scaled) / A, x * b)
            else:
                ddelta[t] += (dh * b).sum(-1) * u[t]
            dh = kept
        return ddelta, du, dA.sum(0), dB, dC, None


def timed_scan(u, dt, A, B, C, D, z, dt_bias, elapsed=None, zoh=True):
    """The selective scan with elapsed time, in plain PyTorch; zoh: zero-order hold, else Euler.

        delta = elapsed softplus(dt + dt_bias);  h <- exp(delta A) h + g B u;  g = expm1(delta A) / A or delta"""
    delta = F.softplus(dt + dt_bias)
    if elapsed is not None:
        delta = delta * elapsed[..., None]
    first = lambda x: x.transpose(0, 1).contiguous()
    y = _TimedScan.apply(first(delta), first(u), A, first(B), first(C), zoh).transpose(0, 1)
    return (y + D * u) * F.silu(z)


class Tagger(nn.Module):
    """forward: samples (B, T * hop), or sensor rows (B, T, hop * channels) -> logits (B, T, labels)."""

    def __init__(self, config):
        super().__init__()
        c = self.config = complete(config)
        self.encoder = nn.Linear(front_width(c), c["d_model"])
        self.backbone = layers.Backbone(c)
        self.head = nn.Linear(c["d_model"], len(c["labels"]))
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.zero_()
        if c["front"] == "stft":
            self.register_buffer("win", layers.sqrt_hann(c["window"]), persistent=False)
            read = torch.arange(front_width(c)) < (front_width(c) if c["phase"] else c["window"] // 2 + 1)
            self.register_buffer("read", read.float(), persistent=False)
            with torch.no_grad():
                self.encoder.weight.mul_(self.read)
        else:
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(c[name]).repeat(c["hop"]), persistent=False)

    def front(self, x, dtype, pieces):
        c = self.config
        if c["front"] == "stft":
            X = layers.RealFFT.apply(pieces["hop_frames"](x, self.win, c["hop"]))
            return pieces["encode"](X, self.encoder.weight * self.read, self.encoder.bias, c["compress"], dtype)
        return self.encoder((x - self.mean) / self.std)

    def forward(self, x, scan=None, elapsed=None, dtype=torch.float32, pieces=layers.PIECES):
        """scan: as layers.make_scan gives, without elapsed time; None: timed_scan. dtype, pieces: as layers.Denoiser's."""
        c = self.config
        drop = lambda h: F.dropout(h, c["dropout"], self.training)
        h = drop(self.front(x, dtype, pieces))
        for block in self.backbone.layers:
            m = block.mixer
            u, z, dt, B, C = pieces["block_in"](h, block.norm.weight, m.in_proj.weight, m.conv1d.weight, m.conv1d.bias,
                                                m.x_proj.weight, m.dt_proj.weight, c["d_state"], dtype)
            A = -torch.exp(m.A_log)
            if scan:
                y = scan(u, dt, A, B, C, D=m.D, z=z, dt_bias=m.dt_proj.bias)
            else:
                y = timed_scan(u, dt, A, B, C, m.D, z, m.dt_proj.bias, elapsed, c["discretisation"] == "zoh")
            h = pieces["block_out"](h, drop(y), m.out_proj.weight, dtype)
        return self.head(layers.rms_norm(h, self.backbone.norm_f.weight))


def parameter_groups(model, weight_decay):
    """Weight decay for the matrices, none for A_log, D, norms, biases and dt_proj."""
    decayed = [p for n, p in model.named_parameters() if layers.is_linear_weight(n) and "dt_proj" not in n]
    rest = [p for n, p in model.named_parameters() if not layers.is_linear_weight(n) or "dt_proj" in n]
    return [dict(params=decayed, weight_decay=weight_decay), dict(params=rest, weight_decay=0.0)]


def describe(config, name, version, licence, trained, labels, **more):
    """What goes into ssm.config; labels: one dict each with name and perhaps mid, on, off, min_s, hold_s."""
    c = complete(config)
    out = dict(format=1, name=name, version=version, task="tag", rate=c["rate"], hop=c["hop"], channels=c["channels"],
               latency=(1 + c["look"]) * c["hop"], exclusive=c["exclusive"], labels=labels, licence=licence, trained=trained)
    if c["front"] == "stft":
        out["window"] = c["window"]
    return dict(out, **more, layers=layer_rows(c))


def write_model(path, tensors, description, int8=False):
    """{name: float tensor} and describe()'s result -> a model file; int8: the linear weights eight-bit."""
    arrays = {}
    for key, t in tensors.items():
        w = np.ascontiguousarray(t.detach().cpu().float().numpy())
        if not np.isfinite(w).all():
            raise SystemExit("%s: %s is not finite" % (path, key))
        if int8 and layers.is_linear_weight(key):
            arrays[key], arrays[key + "_scale"] = export.quantise(w)
        else:
            arrays[key] = w
    export.write_safetensors(path, arrays, {"ssm.config": json.dumps(description, separators=(",", ":"))})
