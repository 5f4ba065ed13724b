# SPDX-License-Identifier: MIT
"""The selective scan in plain PyTorch, chunk by chunk: slow, and needs nothing. Twin: scan.selective_scan_reference."""
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from scan import selective_scan_reference

CHUNK = 16


def _chunked(u, dt, A, B, C, D, z, dt_bias):
    """All chunks at once from zero, then the carries from chunk to chunk, then both together."""
    batch, L, E = u.shape
    N, pad = A.shape[1], -L % CHUNK
    out, u32 = u.dtype, u.float()
    dt = F.softplus(dt.float() + dt_bias)
    fold = lambda v: F.pad(v, (0, 0, 0, pad)).reshape(batch, -1, CHUNK, v.shape[-1])
    dtf, xf, Bf, Cf = fold(dt), fold(dt * u32), fold(B.float()), fold(C.float())
    h, inside = torch.zeros(batch, dtf.shape[1], E, N, device=u.device), []
    for i in range(CHUNK):
        h = torch.exp(dtf[:, :, i, :, None] * A) * h + xf[:, :, i, :, None] * Bf[:, :, i, None]
        inside.append((h * Cf[:, :, i, None]).sum(-1))
    since = dtf.cumsum(2)
    decay = torch.exp(since[:, :, -1, :, None] * A)
    carry, starts = torch.zeros(batch, E, N, device=u.device), []
    for j in range(h.shape[1]):
        starts.append(carry)
        carry = decay[:, j] * carry + h[:, j]
    start = torch.stack(starts, 1)
    carried = [(torch.exp(since[:, :, i, :, None] * A) * start * Cf[:, :, i, None]).sum(-1) for i in range(CHUNK)]
    y = (torch.stack(inside, 2) + torch.stack(carried, 2)).reshape(batch, -1, E)[:, :L]
    y = (y + D * u32) * F.silu(z.float())
    return y.to(out)


def selective_scan(u, dt, A, B, C, D=None, z=None, dt_bias=None, **other):
    if D is None or z is None or dt_bias is None or other:
        return selective_scan_reference(u, dt, A, B, C, D, z, dt_bias, **other)
    if u.is_cuda and torch.is_grad_enabled():
        return checkpoint(_chunked, u, dt, A, B, C, D, z, dt_bias, use_reentrant=False)
    return _chunked(u, dt, A, B, C, D, z, dt_bias)
