#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Our fused scan beside a standard parallel scan and attention, by length: figure 8 of the Mamba paper, on this GPU.

    python3 scan_figure.py [--json FILE]          one sequence, 1024 channels, 16 states, bf16; about 20 s

The standard scan is PyTorch's operations on states that lie in memory, (L, E, N), joined pairwise in 2 log2 L rounds; the
attention is PyTorch's own for causal heads of 64. Milliseconds, medians of replayed CUDA graphs; a length that does not
fit in memory is left out.
"""
import argparse
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import check_scan  # noqa: E402
import scan as ssm  # noqa: E402

CHANNELS, STATES, HEAD = 1024, 16, 64


def join(a, b):
    """h_t = a_t h_{t-1} + b_t along dimension 1, from zero, for any length: pairs first, then what is between them."""
    if b.shape[1] == 1:
        return b
    odd_a, odd_b = a[:, 1::2] * a[:, :-1:2], a[:, 1::2] * b[:, :-1:2] + b[:, 1::2]
    odd = join(odd_a, odd_b)
    h = torch.empty_like(b)
    h[:, 1::2] = odd
    h[:, :1] = b[:, :1]
    h[:, 2::2] = a[:, 2::2] * odd[:, :b.shape[1] // 2 + b.shape[1] % 2 - 1] + b[:, 2::2]
    return h


def standard_scan(u, dt, A, B, C, D, z, dt_bias):
    """scan.selective_scan's result, with every state in memory."""
    delta = F.softplus(dt.float() + dt_bias)
    h = join(torch.exp(delta.unsqueeze(-1) * A), (delta * u.float()).unsqueeze(-1) * B.float().unsqueeze(2))
    y = (h @ C.float().unsqueeze(-1)).squeeze(-1) + D * u.float()
    return (y * F.silu(z.float())).to(u.dtype)


def calls(length):
    """{name: a call to time}"""
    x = check_scan.make_inputs(1, length, CHANNELS, STATES, torch.bfloat16, "cuda", ("h0", "elapsed"), sliced=False)
    inputs = [x[name] for name in check_scan.INPUTS[:8]]
    q, k, v = (torch.randn(1, CHANNELS // HEAD, length, HEAD, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    return {"ours": lambda: ssm.selective_scan(*inputs), "standard": lambda: standard_scan(*inputs),
            "attention": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)}


@torch.no_grad()
def row(length):
    """{name: ms} at this length, or None where it can't be had; checks the standard scan against ours first."""
    result, made = dict(length=length), calls(length)
    for name, call in made.items():
        try:
            if name == "standard":
                ours, theirs = made["ours"]().float(), call().float()
                assert float((ours - theirs).norm() / theirs.norm()) < 1e-2
                del ours, theirs
            result[name] = check_scan.times_ms(call, length <= 1 << 12, 0.4)[0]
        except torch.cuda.OutOfMemoryError:
            result[name] = None
        torch.cuda.empty_cache()
    return result


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--json", metavar="FILE")
    a = p.parse_args()
    if not ssm.available("cuda"):
        sys.exit("scan_figure: no GPU, or no libssm_cuda.so: build it, or name it in SSM_CUDA_LIBRARY")
    print("%s, torch %s, (1, %d, %d) bf16, ms" % (torch.cuda.get_device_name(), torch.__version__, CHANNELS, STATES))
    rows = []
    for k in range(9, 19):
        r = row(1 << k)
        rows.append(r)
        ratio = lambda name: "%9.4f (%5.1fx)" % (r[name], r[name] / r["ours"]) if r[name] else "%18s" % "-"
        print("2^%-2d ours %9.4f   standard %s   attention %s" % (k, r["ours"], ratio("standard"), ratio("attention")), flush=True)
    if a.json:
        with open(a.json, "w") as file:
            file.writelines(json.dumps(r) + "\n" for r in rows)


if __name__ == "__main__":
    main()
