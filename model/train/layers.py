# SPDX-License-Identifier: MIT
"""The layers of a denoiser, and S4D, once: what is trained here is what the C engine runs.

Batch first, time counted in hops. The model is

    stft -> linear encoder -> n_layer Mamba blocks -> norm -> linear head -> 3-tap complex filter -> istft

Parameter names inside a block are mamba_ssm's. Everything with arithmetic in it is a free function of tensors, so
that train.py can hand each one to torch.compile; the scan stands between them and is called as it is.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

EPS_MAGNITUDE = 1e-12          # inside the square root of |X|, as the engine has it
EPS_NORM = 1e-5

DEFAULTS = dict(rate=16000, window=320, hop=160, compress=0.3, d_model=256, n_layer=4, d_state=16, d_conv=4, expand=2,
                dt_rank=0, taps=3)


def complete(config):
    """DEFAULTS overlaid with config; dt_rank 0 becomes ceil(d_model / 16)."""
    c = dict(DEFAULTS, **{k: v for k, v in config.items() if k in DEFAULTS})
    c["dt_rank"] = c["dt_rank"] or -(-c["d_model"] // 16)
    return c


def layer_rows(config):
    """The layer table that goes into the model file."""
    c = complete(config)
    bins = c["window"] // 2 + 1
    rows = [dict(type="stft", window=c["window"], hop=c["hop"], compress=c["compress"]),
            dict(type="linear", name="encoder", **{"in": 3 * bins, "out": c["d_model"]})]
    rows += [dict(type="mamba", name="backbone.layers.%d" % i, d_model=c["d_model"], d_state=c["d_state"],
                  d_conv=c["d_conv"], expand=c["expand"], dt_rank=c["dt_rank"], discretisation="euler")
             for i in range(c["n_layer"])]
    rows += [dict(type="norm", name="backbone.norm_f", width=c["d_model"]),
             dict(type="linear", name="head", **{"in": c["d_model"], "out": 2 * c["taps"] * bins}),
             dict(type="filter", taps=c["taps"]),
             dict(type="istft", window=c["window"], hop=c["hop"])]
    return rows


# ---- transforms -----------------------------------------------------------------------------------------------------

class RealFFT(torch.autograd.Function):
    """rfft as (..., bins, 2) reals, whose backward is one irfft (autograd's own goes through a full complex FFT)."""

    @staticmethod
    def forward(ctx, x):
        ctx.n = x.shape[-1]
        return torch.view_as_real(torch.fft.rfft(x))

    @staticmethod
    def backward(ctx, g):
        w = torch.full((ctx.n // 2 + 1, 1), 0.5, device=g.device)
        w[0] = 1.0
        w[-1] = 1.0
        return torch.fft.irfft(torch.view_as_complex((g * w).contiguous()), n=ctx.n, norm="forward")


def sqrt_hann(window, device=None):
    n = torch.arange(window, device=device, dtype=torch.float64)
    return torch.sin(math.pi * n / window).float()          # sqrt of the periodic Hann window


def hop_frames(x, win, hop):
    """(B, T*hop) samples -> (B, T, window) windowed; hop k's window ends with it, zeros before 0."""
    blocks = x.reshape(x.shape[0], -1, hop)
    past = len(win) // hop - 1
    T = blocks.shape[1]
    blocks = F.pad(blocks, (0, 0, past, 0))
    return torch.cat([blocks[:, k:k + T] for k in range(past + 1)], -1) * win


def overlap_add(frames, win, hop):
    """(B, T, window) -> (B, (T - window/hop + 1)*hop): the samples that all their windows cover, at their own place in time."""
    y = frames * (win * (2 * hop / len(win)))
    n = len(win) // hop
    T = y.shape[1] - n + 1
    return sum(y[:, k:k + T, len(win) - (k + 1) * hop:len(win) - k * hop] for k in range(n)).reshape(y.shape[0], -1)


# ---- the pieces around the scan -------------------------------------------------------------------------------------

def product(x, w, dtype):
    return F.linear(x.to(dtype), w.to(dtype))


def rms_norm(x, weight):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS_NORM) * weight


def encode(X, weight, bias, compress, dtype):
    """Spectrum (B, T, F, 2) -> (B, T, d_model): |X|^c, then Re and Im of X |X|^(c-1), through the encoder."""
    re, im = X[..., 0], X[..., 1]
    power = re.square() + im.square() + EPS_MAGNITUDE
    scale = power ** (0.5 * (compress - 1.0))
    features = torch.cat((power ** (0.5 * compress), re * scale, im * scale), -1)
    pad = -features.shape[-1] % 32                          # tensor cores want even rows
    return product(F.pad(features, (0, pad)), F.pad(weight, (0, pad)), dtype).float() + bias


def block_in(x, norm, in_proj, conv_weight, conv_bias, x_proj, dt_proj, d_state, dtype):
    """From the residual stream to what the scan reads: u, z, dt (before bias and softplus), B, C."""
    E, K, R = conv_weight.shape[0], conv_weight.shape[-1], dt_proj.shape[1]
    L = x.shape[1]
    xn = rms_norm(x, norm).to(dtype)
    u = F.linear(xn, in_proj[:E].to(dtype))
    z = F.linear(xn, in_proj[E:].to(dtype))
    padded = F.pad(u, (0, 0, K - 1, 0))
    acc = conv_bias
    for k in range(K):
        acc = acc + conv_weight[:, 0, k] * padded[:, k:k + L].float()
    u = F.silu(acc).to(dtype)
    dbc = F.linear(u, x_proj.to(dtype))
    dt = F.linear(dbc[..., :R], dt_proj.to(dtype))
    return u, z, dt, dbc[..., R:R + d_state].float().contiguous(), dbc[..., R + d_state:].float().contiguous()


def block_out(x, y, out_proj, dtype):
    return x + product(y, out_proj, dtype).float()


def decode(x, norm, weight, bias, X, taps, dtype):
    """Residual stream and spectrum -> filtered spectrum: sum over k of W_k(t, f) X(t-k, f)."""
    bins, T = X.shape[2], X.shape[1]
    pad = -weight.shape[0] % 8
    W = product(rms_norm(x, norm), F.pad(weight, (0, 0, 0, pad)), dtype)[..., :weight.shape[0]].float() + bias
    W = W.reshape(W.shape[0], T, taps, 2, bins)
    past = F.pad(X, (0, 0, 0, 0, taps - 1, 0))
    re = im = 0.0
    for k in range(taps):
        a, b = past[:, taps - 1 - k:taps - 1 - k + T, :, 0], past[:, taps - 1 - k:taps - 1 - k + T, :, 1]
        wr, wi = W[:, :, k, 0], W[:, :, k, 1]
        re = re + wr * a - wi * b
        im = im + wr * b + wi * a
    return torch.stack((re, im), -1)


# ---- S4D ------------------------------------------------------------------------------------------------------------

def s4d_kernel(log_dt, log_A_real, A_imag, C, L):
    """(E, L): 2 Re sum_n C_n B-bar_n exp(dt A_n l), by zero-order hold with B = 1."""
    real, imag, dt = -torch.exp(log_A_real), A_imag, torch.exp(log_dt)[:, None]
    size = real * real + imag * imag
    grown = torch.exp(real * dt)
    re, im = grown * torch.cos(imag * dt) - 1, grown * torch.sin(imag * dt)
    held_re, held_im = (re * real + im * imag) / size, (im * real - re * imag) / size       # (exp(dt A) - 1) / A
    w_re, w_im = C[..., 0] * held_re - C[..., 1] * held_im, C[..., 0] * held_im + C[..., 1] * held_re
    l = torch.arange(L, device=C.device, dtype=real.dtype)
    decay, turn = torch.exp((real * dt)[..., None] * l), (imag * dt)[..., None] * l
    return 2 * (decay * (w_re[..., None] * torch.cos(turn) - w_im[..., None] * torch.sin(turn))).sum(1)


def smooth_length(n):
    """The least even number >= n with no prime factor above 5: others cost an FFT several times as much."""
    while True:
        m = n
        for p in (2, 3, 5):
            while m % p == 0:
                m //= p
        if m == 1 and n % 2 == 0:
            return n
        n += 1


def convolve(u, kernel, D):
    """Causal convolution of (batch, L, E) with (E, L) by FFT, plus D u."""
    L = u.shape[1]
    n = smooth_length(2 * L)
    spectrum = torch.fft.rfft(u, n=n, dim=1) * torch.fft.rfft(kernel.t(), n=n, dim=0)
    return torch.fft.irfft(spectrum, n=n, dim=1)[:, :L] + D * u


def legs_poles(pairs):
    """Imaginary parts of S4D-LegS's poles with positive ones, ascending: eigenvalues of the antisymmetric part of
    HiPPO-LegS's normal form (arXiv 2206.11893, section 4). Their real parts are -1/2."""
    root = torch.sqrt(2 * torch.arange(2 * pairs, dtype=torch.float64) + 1)
    skew = -0.5 * torch.outer(root, root).tril(-1)
    return torch.linalg.eigvalsh(-1j * (skew - skew.T))[pairs:]


class S4DKernel(nn.Module):
    """Parameters of d_state / 2 conjugate pairs a channel; init: "lin" (imaginary parts pi n) or "legs"."""

    def __init__(self, d_model, d_state, init):
        super().__init__()
        pairs = d_state // 2
        imag = legs_poles(pairs) if init == "legs" else math.pi * torch.arange(pairs)
        self.log_dt = nn.Parameter(torch.rand(d_model) * math.log(0.1 / 0.001) + math.log(0.001))
        self.log_A_real = nn.Parameter(torch.full((d_model, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(imag.float().repeat(d_model, 1))
        self.C = nn.Parameter(torch.randn(d_model, pairs, 2) * 0.5 ** 0.5)


class S4D(nn.Module):
    """The engine's layer `s4d` as the paper's code has it: x + GLU(W gelu(s4d(norm(x))) + b), by zero-order hold; trained as
    a convolution. x (batch, hops, d_model)."""

    def __init__(self, d_model, d_state=64, init="legs"):
        super().__init__()
        self.d_state = d_state
        self.norm = Norm(d_model)
        self.kernel = S4DKernel(d_model, d_state, init)
        self.D = nn.Parameter(torch.randn(d_model))
        self.output_linear = nn.Linear(d_model, 2 * d_model)

    def forward(self, x):
        k = self.kernel
        u = rms_norm(x, self.norm.weight)
        y = convolve(u, s4d_kernel(k.log_dt, k.log_A_real, k.A_imag, k.C, x.shape[1]), self.D)
        return x + F.glu(self.output_linear(F.gelu(y)), -1)

    def row(self, name):
        """Its row of the layer table."""
        return dict(type="s4d", name=name, d_model=len(self.D), d_state=self.d_state, discretisation="zoh", norm=True,
                    activation="gelu", mix="glu", residual=True)


# ---- eight-bit weights ----------------------------------------------------------------------------------------------

SCALE_CANDIDATES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.75)


def row_scales(w):
    """Symmetric int8: a scale for each output row, the candidate clip of the row's maximum with the least error."""
    top = w.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127.0
    best, best_error = top, None
    for c in SCALE_CANDIDATES:
        s = top * c
        error = ((w / s).round().clamp(-127, 127) * s - w).square().sum(1, keepdim=True)
        if best_error is None:
            best_error = error
        else:
            best = torch.where(error < best_error, s, best)
            best_error = torch.minimum(error, best_error)
    return best


def fake_int8(w, amount):
    """w as its int8 rounding would be (amount 1) or as it is (0); gradients pass straight through."""
    with torch.no_grad():
        s = row_scales(w)
        change = ((w / s).round().clamp(-127, 127) * s - w) * amount
    return w + change


PIECES = dict(encode=encode, block_in=block_in, block_out=block_out, decode=decode, hop_frames=hop_frames,
              overlap_add=overlap_add, fake_int8=fake_int8)


# ---- the model ------------------------------------------------------------------------------------------------------

class Mixer(nn.Module):
    """Parameters of one Mamba mixer, initialised as the paper does."""

    def __init__(self, c):
        super().__init__()
        D, N, K, R = c["d_model"], c["d_state"], c["d_conv"], c["dt_rank"]
        E = c["expand"] * D
        self.in_proj = nn.Linear(D, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, K, groups=E, padding=K - 1, bias=True)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E, bias=True)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, N + 1, dtype=torch.float32)).repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, D, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -R ** -0.5, R ** -0.5)
        dt = torch.exp(torch.rand(E) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp_min(1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))      # softplus^-1(dt)
            self.out_proj.weight.div_(math.sqrt(c["n_layer"]))


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = Norm(c["d_model"])
        self.mixer = Mixer(c)


class Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layers = nn.ModuleList(Block(c) for _ in range(c["n_layer"]))
        self.norm_f = Norm(c["d_model"])


LINEAR = ("encoder", "head", "in_proj", "x_proj", "dt_proj", "out_proj", "output_linear")    # whose weights int8 files quantise


def is_linear_weight(name):
    return name.endswith(".weight") and name.split(".")[-2] in LINEAR


class Denoiser(nn.Module):
    """forward: (B, T*hop) noisy samples -> (B, (T - window/hop + 1)*hop) clean ones, in place in time.

    scan    the selective scan to use: scan(u, dt, A, B, C, D=, z=, dt_bias=)
    pieces  PIECES or compiled stand-ins
    dtype   of the matrix products' operands
    qat     None, or a scalar tensor 0..1: how much of the int8 rounding the linear weights feel"""

    def __init__(self, config):
        super().__init__()
        c = self.config = complete(config)
        assert c["window"] % (2 * c["hop"]) == 0
        bins = c["window"] // 2 + 1
        self.encoder = nn.Linear(3 * bins, c["d_model"])
        self.backbone = Backbone(c)
        self.head = nn.Linear(c["d_model"], 2 * c["taps"] * bins)
        with torch.no_grad():
            self.head.weight.mul_(0.05)
            self.head.bias.zero_()
            self.head.bias[:bins] = 1.0                     # tap 0, real part: the identity
        self.register_buffer("win", sqrt_hann(c["window"]), persistent=False)

    def forward(self, x, scan, pieces=PIECES, dtype=torch.float32, qat=None):
        c = self.config
        q = (lambda w: w) if qat is None else (lambda w: pieces["fake_int8"](w, qat))
        X = RealFFT.apply(pieces["hop_frames"](x, self.win, c["hop"]))
        h = pieces["encode"](X, q(self.encoder.weight), self.encoder.bias, c["compress"], dtype)
        for block in self.backbone.layers:
            m = block.mixer
            u, z, dt, B, C = pieces["block_in"](h, block.norm.weight, q(m.in_proj.weight), m.conv1d.weight,
                                                m.conv1d.bias, q(m.x_proj.weight), q(m.dt_proj.weight),
                                                c["d_state"], dtype)
            y = scan(u, dt, -torch.exp(m.A_log), B, C, D=m.D, z=z, dt_bias=m.dt_proj.bias)
            h = pieces["block_out"](h, y, q(m.out_proj.weight), dtype)
        Y = pieces["decode"](h, self.backbone.norm_f.weight, q(self.head.weight), self.head.bias, X, c["taps"], dtype)
        frames = torch.fft.irfft(torch.view_as_complex(Y.contiguous()), n=c["window"])
        return pieces["overlap_add"](frames, self.win, c["hop"])


def make_scan(kind):
    """'cuda' (scan.py's library), 'triton' (or 'triton16': channels a program) or 'torch' -> the function; raises when it can't be had."""
    if kind == "cuda":
        import scan
        if not scan.available("cuda"):
            raise RuntimeError("libssm_cuda.so not found: build it, or name it in SSM_CUDA_LIBRARY")
        return scan.selective_scan
    if kind.startswith("triton"):
        import scan_triton
        return scan_triton.with_channels(int(kind[6:] or 32))
    from scan_torch import selective_scan
    return selective_scan
