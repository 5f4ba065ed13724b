#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a state remembers: HiPPO-LegS (arXiv 2008.07669), and the diagonal initialisation made of it (arXiv 2206.11893).

    python3 hippo.py                 the tables of the page; a few seconds, NumPy only

HiPPO-LegS keeps, in N numbers, the first N Legendre coefficients of all of a signal's past, stretched to [0, 1]. Its time-
invariant form keeps the past on a scale that shrinks as exp(-t); S4D-LegS is that one's normal part, diagonalised.
"""
import numpy as np
from numpy.polynomial import legendre


def legs(N):
    """A (N, N) and B (N) of c' = A c + B u."""
    n = np.arange(N)
    root = np.sqrt(2.0 * n + 1)
    return -(np.tril(np.outer(root, root), -1) + np.diag(n + 1.0)), root


def legs_diagonal(N):
    """N / 2 poles of S4D-LegS with positive imaginary parts, ascending; and B and the map back (N, N / 2), so that the
    states of the normal form are 2 Re(back @ h)."""
    A, B = legs(N)
    p = np.sqrt(np.arange(N) + 0.5)
    skew = A + np.outer(p, p) + 0.5 * np.eye(N)                 # antisymmetric, but for rounding
    imag, V = np.linalg.eigh(-0.5j * (skew - skew.T))           # i times it is Hermitian: eigenvalues are exact reals
    keep = imag > 0
    return -0.5 + 1j * imag[keep], V.conj().T[keep] @ B, V[:, keep]


def legendre_basis(N, x):
    """(N, len(x)): Legendre polynomials on [0, 1], orthonormal."""
    return np.stack([np.sqrt(2 * n + 1) * legendre.legval(2 * x - 1, np.eye(N)[n]) for n in range(N)])


def _exp(A):
    """exp(A) for a small real matrix, by scaling and squaring."""
    k = max(0, int(np.ceil(np.log2(max(np.abs(A).sum(1).max(), 1e-300)))) + 4)
    X, term = np.eye(len(A)), np.eye(len(A))
    for i in range(1, 14):
        term = term @ A / (i * 2.0 ** k)
        X = X + term
    for _ in range(k):
        X = X @ X
    return X


def remember(u, N):
    """The Legendre coefficients of a signal's whole past after its last sample, hop by hop: c' = (A c + B u) / t.

    Each sample is held for one step; in log t the system does not change, so a step is an exponential of A."""
    A, B = legs(N)
    c = np.zeros(N)
    c[0] = u[0]                                                 # a constant has its mean and nothing else
    for k in range(1, len(u)):
        decay = _exp(A * np.log((k + 1) / k))
        c = decay @ c + np.linalg.solve(A, (decay - np.eye(N)) @ B) * u[k]
    return c


def signal(steps, seed=1, tones=6):
    """Band-limited noise: at most `tones` periods over its length."""
    rng, t = np.random.default_rng(seed), np.arange(steps) / steps
    return sum(rng.standard_normal() * np.cos(2 * np.pi * (f * t + rng.random())) for f in range(1, tones + 1))


def reconstruction_error(N, steps=512):
    """|past - what its N coefficients say it was| / |past|"""
    u = signal(steps)
    said = remember(u, N) @ legendre_basis(N, (np.arange(steps) + 0.5) / steps)
    return np.linalg.norm(said - u) / np.linalg.norm(u)


def diagonal_limit_error(N, first=8):
    """How far the first step responses of S4D-LegS, from B / 2, are from LegS's own; it tends to zero as N grows.

    (The impulse responses do so only on average: the diagonal ones ring at the highest pole.)"""
    t = np.linspace(0.02, 6, 600)
    poles, B, back = legs_diagonal(N)
    ours = 2 * np.real(back[:first] @ (np.expm1(np.outer(poles, t)) * (B / 2 / poles)[:, None]))
    A, B = legs(first)                                          # lower triangular: the first states are a system alone
    theirs = np.stack([np.linalg.solve(A, (_exp(A * at) - np.eye(first)) @ B) for at in t], 1)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def what_is_left(poles, bandwidth, lags, noise=1e-5):
    """Share of a signal's power since each of `lags` ago that the best linear reader of the states of `poles` gets wrong.

    The signal is noise up to `bandwidth` (periods a time unit); states carry `noise`, relative to their size."""
    t = np.arange(0.01, 8, 0.02)
    covariance = np.sinc(2 * bandwidth * (t[:, None] - t))
    kernels = np.exp(np.outer(poles, t))
    M = np.concatenate((kernels.real, kernels.imag[np.abs(poles.imag) > 0]))
    M = M / np.sqrt(np.einsum("it,ts,is->i", M, covariance, M))[:, None]
    gram, cross = M @ covariance @ M.T + noise ** 2 * np.eye(len(M)), M @ covariance
    wrong = 1 - np.einsum("it,it->t", cross, np.linalg.solve(gram, cross))
    return [float(np.clip(wrong, 0, 1)[t < lag].mean()) for lag in lags]


def families(N):
    """{name: poles} of N real states each, time in units of S4D's real part 1 / 2."""
    return {"S4D-LegS": legs_diagonal(N)[0], "S4D-Lin": -0.5 + 1j * np.pi * (np.arange(N // 2) + 0.5),
            "real, -(1 .. N)": -np.arange(1.0, N + 1) + 0j}


def main():
    print("HiPPO-LegS: error of the whole past of 512 steps, read from N coefficients")
    print("  " + "   ".join("N %d: %.1e" % (N, reconstruction_error(N)) for N in (4, 8, 16, 24, 32)))
    print("S4D-LegS: distance of the first 8 step responses from those of LegS")
    print("  " + "   ".join("N %d: %.3f" % (N, diagonal_limit_error(N)) for N in (16, 64, 256, 1024)))
    lags = (0.5, 1, 2, 4)
    print("Share of the power lost of a signal of 2 periods a time unit, 64 states, since " + " ".join("%g" % l for l in lags))
    for name, poles in families(64).items():
        print("  %-16s" % name + " ".join("%.4f" % x for x in what_is_left(poles, 2.0, lags)))


if __name__ == "__main__":
    main()
