# SPDX-License-Identifier: MIT
"""A model of tokens: embedding -> blocks over time -> norm -> linear head; and the blocks the proofs compare.

    mamba   the Mamba block of layers.py
    s6      the same without its gate
    s4d     the same without its gate, and with a scan that does not depend on the input: S4D (arXiv 2206.11893)

    python3 tokens.py RUN.pt OUT.safetensors --name N       the model file of a checkpoint of fit.py

Parameter names are those of the model file. Every piece with arithmetic in it is a function of tensors from layers.PIECES
or PIECES below, so that fit.py can hand each to torch.compile; the scan stands between them.
"""
import argparse
import json
import math
import os
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import export as model_file  # noqa: E402
import layers  # noqa: E402
from layers import convolve, s4d_kernel  # noqa: E402

KINDS = ("mamba", "s6", "s4d")
DEFAULTS = dict(kind="mamba", vocabulary=16, d_model=64, n_layer=2, d_state=16, d_conv=4, expand=2, dt_rank=0, embedding_std=1.0)


def complete(config):
    """DEFAULTS overlaid with config; dt_rank 0 becomes ceil(d_model / 16)."""
    c = dict(DEFAULTS, **config)
    c["dt_rank"] = c["dt_rank"] or -(-c["d_model"] // 16)
    return c


def layer_rows(c):
    """The layer table that goes into the model file."""
    rows = [dict(type="embedding", name="embedding", vocabulary=c["vocabulary"], width=c["d_model"])]
    rows += [dict(type="mamba", name="backbone.layers.%d" % i, d_model=c["d_model"], d_state=c["d_state"],
                  d_conv=c["d_conv"], expand=c["expand"], dt_rank=c["dt_rank"], discretisation="euler")
             for i in range(c["n_layer"])]
    return rows + [dict(type="norm", name="backbone.norm_f", width=c["d_model"]),
                   dict(type="linear", name="head", **{"in": c["d_model"], "out": c["vocabulary"]})]


# ---- the pieces -----------------------------------------------------------------------------------------------------

def embed(tokens, weight):
    """weight[tokens], as a product: the gradient of a table look-up sorts the tokens first."""
    return (tokens.unsqueeze(-1) == torch.arange(weight.shape[0], device=tokens.device)).to(weight.dtype) @ weight


def s4d_in(x, norm, in_proj, conv_weight, conv_bias):
    """From the residual stream to what the convolution reads: the first half of layers.block_in."""
    u = F.linear(layers.rms_norm(x, norm), in_proj)
    K, L = conv_weight.shape[-1], x.shape[1]
    padded, acc = F.pad(u, (0, 0, K - 1, 0)), conv_bias
    for k in range(K):
        acc = acc + conv_weight[:, 0, k] * padded[:, k:k + L]
    return F.silu(acc)


def loss_and_right(x, norm, weight, bias, target):
    """Residual stream at the places that answer, (batch, k, d_model) -> cross entropy and the share of right answers."""
    logits = F.linear(layers.rms_norm(x, norm), weight, bias).flatten(0, 1)
    target = target.flatten()
    return F.cross_entropy(logits, target), (logits.detach().argmax(-1) == target).float().mean()


PIECES = dict({k: layers.PIECES[k] for k in ("block_in", "block_out")}, embed=embed, s4d_in=s4d_in, s4d_kernel=s4d_kernel,
              loss_and_right=loss_and_right)


# ---- the model ------------------------------------------------------------------------------------------------------

class S4D(nn.Module):
    """Parameters of a block whose scan is S4D-Lin, (E, d_state / 2) conjugate pairs, named as in the paper's code."""

    def __init__(self, c):
        super().__init__()
        E, pairs = c["expand"] * c["d_model"], c["d_state"] // 2
        self.in_proj = nn.Linear(c["d_model"], E, bias=False)
        self.conv1d = nn.Conv1d(E, E, c["d_conv"], groups=E, padding=c["d_conv"] - 1, bias=True)
        self.log_dt = nn.Parameter(torch.rand(E) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        self.log_A_real = nn.Parameter(torch.full((E, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(pairs, dtype=torch.float32).repeat(E, 1))
        self.C = nn.Parameter(torch.randn(E, pairs, 2) * 0.5 ** 0.5)
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, c["d_model"], bias=False)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = layers.Norm(c["d_model"])
        self.mixer = S4D(c) if c["kind"] == "s4d" else layers.Mixer(c)


class Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layers = nn.ModuleList(Block(c) for _ in range(c["n_layer"]))
        self.norm_f = layers.Norm(c["d_model"])


class TokenModel(nn.Module):
    """hidden: (batch, L) tokens -> (batch, L, d_model), before the last norm; logits: the same through norm and head.

    scan and pieces as in layers.Denoiser."""

    def __init__(self, config):
        super().__init__()
        c = self.config = complete(config)
        self.embedding = nn.Embedding(c["vocabulary"], c["d_model"])
        nn.init.normal_(self.embedding.weight, std=c["embedding_std"])
        self.backbone = Backbone(c)
        self.head = nn.Linear(c["d_model"], c["vocabulary"])

    def hidden(self, tokens, scan, pieces=PIECES):
        h = pieces["embed"](tokens, self.embedding.weight)
        for block in self.backbone.layers:
            y = self._s4d(h, block, pieces) if self.config["kind"] == "s4d" else self._s6(h, block, scan, pieces)
            h = pieces["block_out"](h, y, block.mixer.out_proj.weight, torch.float32)
        return h

    def _s6(self, h, block, scan, pieces):
        m = block.mixer
        u, z, dt, B, C = pieces["block_in"](h, block.norm.weight, m.in_proj.weight, m.conv1d.weight, m.conv1d.bias,
                                            m.x_proj.weight, m.dt_proj.weight, self.config["d_state"], torch.float32)
        gate = z if self.config["kind"] == "mamba" else None
        return scan(u, dt, -torch.exp(m.A_log), B, C, D=m.D, z=gate, dt_bias=m.dt_proj.bias)

    def _s4d(self, h, block, pieces):
        m = block.mixer
        u = pieces["s4d_in"](h, block.norm.weight, m.in_proj.weight, m.conv1d.weight, m.conv1d.bias)
        return convolve(u, pieces["s4d_kernel"](m.log_dt, m.log_A_real, m.A_imag, m.C, u.shape[1]), m.D)

    def loss(self, tokens, target, scan, pieces=PIECES):
        """Cross entropy and share of right answers of the last target.shape[1] places."""
        x = self.hidden(tokens, scan, pieces)[:, -target.shape[1]:]
        return pieces["loss_and_right"](x, self.backbone.norm_f.weight, self.head.weight, self.head.bias, target)

    def logits(self, tokens, scan, last=None):
        """(batch, last or L, vocabulary)"""
        x = self.hidden(tokens, scan)
        x = x if last is None else x[:, -last:]
        return F.linear(layers.rms_norm(x, self.backbone.norm_f.weight), self.head.weight, self.head.bias)


# ---- the model file -------------------------------------------------------------------------------------------------

def export(state, config, path, name, version="1", licence="MIT", trained=""):
    """Write {name: tensor} as a model of tokens; its outputs are logits."""
    c = complete(config)
    assert c["kind"] == "mamba", "only Mamba blocks have a place in a model file"
    description = dict(format=1, name=name, version=version, task="tokens", rate=1, hop=1, channels=1,
                       vocabulary=c["vocabulary"], labels=[], licence=licence, trained=trained, layers=layer_rows(c))
    tensors = {k: t.detach().float().cpu().numpy() for k, t in state.items()}
    model_file.write_safetensors(path, tensors, {"ssm.config": json.dumps(description, separators=(",", ":"))})


def export_checkpoint(run, path, name, version="1"):
    """The same of a checkpoint of fit.py: its best weights where it kept some, else its last."""
    chosen = run["best"] or run
    export(chosen["model"], run["config"], path, name, version, trained="%d steps of %d sequences, %s" % (
        chosen["count"], run["recipe"]["batch"], run["task"]))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description="A checkpoint of fit.py -> a model file.")
    p.add_argument("checkpoint")
    p.add_argument("out")
    p.add_argument("--name", required=True)
    p.add_argument("--version", default="1")
    a = p.parse_args()
    export_checkpoint(torch.load(a.checkpoint, map_location="cpu"), a.out, a.name, a.version)
