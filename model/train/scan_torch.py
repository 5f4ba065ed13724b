# SPDX-License-Identifier: MIT
"""The selective scan in plain PyTorch: slow, needs nothing, and says what the fast ones mean."""
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 16


def reference_scan(u, dt, A, B, C, D=None, z=None, dt_bias=None, softplus=True):
    """h <- exp(dt A) h + dt B u; y = C h + D u, gated by silu(z): one step after another, in u's or A's precision."""
    wide = torch.promote_types(u.dtype, A.dtype)
    out, u, dt, B, C = u.dtype, u.to(wide), dt.to(wide), B.to(wide), C.to(wide)
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt) if softplus else dt
    h, ys = torch.zeros(u.shape[0], u.shape[2], A.shape[1], dtype=wide, device=u.device), []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1))
    y = torch.stack(ys, 1)
    y = y if D is None else y + D * u
    y = y if z is None else y * F.silu(z.to(wide))
    return y.to(out)


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
        return reference_scan(u, dt, A, B, C, D, z, dt_bias)
    if u.is_cuda and torch.is_grad_enabled():
        return checkpoint(_chunked, u, dt, A, B, C, D, z, dt_bias, use_reentrant=False)
    return _chunked(u, dt, A, B, C, D, z, dt_bias)
