# SPDX-License-Identifier: MIT
"""The selective scan in Triton: a program carries BE channels of one item through all of time, states in registers.

With a hundred items in a batch there are programs enough to fill the machine, so time need not be split. The forward
pass keeps the state at the start of every CK hops; the backward pass recomputes a chunk's states from it into a
scratch strip that stays in L2, then walks the chunk backwards. Twin: scan.selective_scan_reference.
"""
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

CK = 16          # hops between kept states


@triton.jit
def _forward(u, dt, z, B, C, A, D, bias, y, kept, L, E, N: tl.constexpr, BE: tl.constexpr, CK: tl.constexpr):
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    n = tl.arange(0, N)
    b = tl.program_id(1).to(tl.int64)
    en = e[:, None] * N + n[None, :]
    a = tl.load(A + en)
    d = tl.load(D + e)
    off = tl.load(bias + e)
    h = tl.zeros([BE, N], dtype=tl.float32)
    for c in range(0, L // CK):
        tl.store(kept + (b * (L // CK) + c) * E * N + en, h)
        for i in range(0, CK):
            t = b * L + c * CK + i
            ut = tl.load(u + t * E + e).to(tl.float32)
            zt = tl.load(z + t * E + e).to(tl.float32)
            raw = tl.load(dt + t * E + e).to(tl.float32) + off
            Bt = tl.load(B + t * N + n)
            Ct = tl.load(C + t * N + n)
            st = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
            h = tl.exp(st[:, None] * a) * h + (st * ut)[:, None] * Bt[None, :]
            yt = tl.sum(h * Ct[None, :], 1) + d * ut
            yt = yt * zt / (1.0 + tl.exp(-zt))
            tl.store(y + t * E + e, yt.to(y.dtype.element_ty))


@triton.jit
def _backward(u, dt, z, B, C, A, D, bias, dy, kept, strip, du, ddt, dz, dB, dC, dA, dD, dbias, L, E, batch,
              N: tl.constexpr, BE: tl.constexpr, CK: tl.constexpr):
    pe = tl.program_id(0).to(tl.int64)
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    n = tl.arange(0, N)
    b = tl.program_id(1).to(tl.int64)
    en = e[:, None] * N + n[None, :]
    local = tl.arange(0, BE)[:, None] * N + n[None, :]
    mine = strip + (b * (E // BE) + pe) * CK * BE * N + local
    a = tl.load(A + en)
    d = tl.load(D + e)
    off = tl.load(bias + e)
    dh = tl.zeros([BE, N], dtype=tl.float32)
    ga = tl.zeros([BE, N], dtype=tl.float32)
    gd = tl.zeros([BE], dtype=tl.float32)
    gb = tl.zeros([BE], dtype=tl.float32)
    for back in range(0, L // CK):
        c = L // CK - 1 - back
        h = tl.load(kept + (b * (L // CK) + c) * E * N + en)
        for i in range(0, CK):
            t = b * L + c * CK + i
            tl.store(mine + i * BE * N, h)
            ut = tl.load(u + t * E + e).to(tl.float32)
            raw = tl.load(dt + t * E + e).to(tl.float32) + off
            Bt = tl.load(B + t * N + n)
            st = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
            h = tl.exp(st[:, None] * a) * h + (st * ut)[:, None] * Bt[None, :]
        tl.debug_barrier()
        for j in range(0, CK):
            i = CK - 1 - j
            t = b * L + c * CK + i
            before = tl.load(mine + i * BE * N)
            ut = tl.load(u + t * E + e).to(tl.float32)
            zt = tl.load(z + t * E + e).to(tl.float32)
            gy = tl.load(dy + t * E + e).to(tl.float32)
            raw = tl.load(dt + t * E + e).to(tl.float32) + off
            Bt = tl.load(B + t * N + n)
            Ct = tl.load(C + t * N + n)
            grow = 1.0 / (1.0 + tl.exp(-raw))
            st = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
            decay = tl.exp(st[:, None] * a)
            kept_part = decay * before
            h = kept_part + (st * ut)[:, None] * Bt[None, :]
            sig = 1.0 / (1.0 + tl.exp(-zt))
            yt = tl.sum(h * Ct[None, :], 1) + d * ut
            tl.store(dz + t * E + e, (gy * yt * sig * (1.0 + zt * (1.0 - sig))).to(dz.dtype.element_ty))
            g = gy * zt * sig
            gd += g * ut
            row = (pe * batch * L + t) * N + n
            tl.store(dC + row, tl.sum(g[:, None] * h, 0))
            dh += g[:, None] * Ct[None, :]
            tl.store(dB + row, tl.sum(dh * (st * ut)[:, None], 0))
            db = tl.sum(dh * Bt[None, :], 1)
            tl.store(du + t * E + e, (g * d + db * st).to(du.dtype.element_ty))
            through = dh * kept_part
            ga += through * st[:, None]
            gs = (tl.sum(through * a, 1) + db * ut) * grow
            gb += gs
            tl.store(ddt + t * E + e, gs.to(ddt.dtype.element_ty))
            dh = dh * decay
        tl.debug_barrier()
    tl.store(dA + b * E * N + en, ga)
    tl.store(dD + b * E + e, gd)
    tl.store(dbias + b * E + e, gb)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, dt, A, B, C, D, z, dt_bias, channels):
        u, dt, z = u.contiguous(), dt.contiguous(), z.contiguous()
        A, B, C, D, dt_bias = (v.float().contiguous() for v in (A, B, C, D, dt_bias))
        batch, L, E = u.shape
        N = A.shape[1]
        be = ctx.channels = min(channels, E)
        assert L % CK == 0 and E % be == 0
        y = torch.empty_like(u)
        kept = torch.empty(batch, L // CK, E, N, device=u.device, dtype=torch.float32)
        _forward[(E // be, batch)](u, dt, z, B, C, A, D, dt_bias, y, kept, L, E, N=N, BE=be, CK=CK, num_warps=1)
        ctx.save_for_backward(u, dt, z, B, C, A, D, dt_bias, kept)
        return y

    @staticmethod
    def backward(ctx, dy):
        u, dt, z, B, C, A, D, dt_bias, kept = ctx.saved_tensors
        batch, L, E = u.shape
        N = A.shape[1]
        be = ctx.channels
        new = lambda *shape: torch.empty(*shape, device=u.device, dtype=torch.float32)
        du, ddt, dz = torch.empty_like(u), torch.empty_like(dt), torch.empty_like(z)
        dB, dC = new(E // be, batch, L, N), new(E // be, batch, L, N)
        dA, dD, dbias = new(batch, E, N), new(batch, E), new(batch, E)
        strip = new(batch, E // be, CK, be, N)
        _backward[(E // be, batch)](u, dt, z, B, C, A, D, dt_bias, dy.contiguous(), kept, strip, du, ddt, dz, dB, dC,
                                    dA, dD, dbias, L, E, batch, N=N, BE=be, CK=CK, num_warps=1)
        return du, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dz, dbias.sum(0), None


def selective_scan(u, dt, A, B, C, D=None, z=None, dt_bias=None, channels=32, **other):
    """As scan.selective_scan, for the case the trainer has: D, z and dt_bias given, softplus on."""
    assert D is not None and z is not None and dt_bias is not None and not other
    L = u.shape[1]
    pad = -L % CK
    if pad:
        u, dt, z, B, C = (F.pad(v, (0, 0, 0, pad)) for v in (u, dt, z, B, C))
    return _Scan.apply(u, dt, A, B, C, D, z, dt_bias, channels)[:, :L]


def with_channels(channels):
    """selective_scan with this many channels a program: 16 or 32, whichever the machine likes."""
    return lambda *args, **kwargs: selective_scan(*args, channels=channels, **kwargs)
