"""HiPPO: state spaces that remember a sequence as coefficients of orthogonal polynomials, and where diagonal ones start from.

    transition(measure, N)        (A, B) of  x' = A x + B u,  (N N) and (N 1)
        legs    Legendre, scaled to all of the past       A_nk = -√((2n+1)(2k+1)) for n > k, -(n+1) for n = k;  B_n = √(2n+1)
        legt    Legendre, over a window of length 1
        lagt    Laguerre: a fading past                   A = ½ I - tril(1);  B = 1
        fourier (fout)  Fourier, over a window
    nplr(measure, N, rank)        w, P, B, V:  A = V (diag(w) - P P*) V*,  with one of each pair of conjugate w
    modes("lin" | "inv" | "real" | "legs", d, N)      A (d n) that S4D starts from

Sources: Gu et al., HiPPO (2020), appendix D; Gu et al., S4 (2021), appendix C; Gu et al., S4D (2022), §4.
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from scanc.errors import ArgumentError

MEASURES = ("legs", "legt", "lagt", "fourier", "fout")


def transition(measure: str, N: int) -> tuple[Tensor, Tensor]:
    """(A, B) in double precision, (N N) and (N 1). Raises ArgumentError."""
    n = torch.arange(N, dtype=torch.float64)
    root = torch.sqrt(2.0 * n + 1.0)
    if measure == "legs":
        A = -torch.tril(root[:, None] * root[None, :], -1) - torch.diag(n + 1.0)
        return A, root[:, None].clone()
    if measure == "legt":
        signs = torch.where(n[:, None] < n[None, :], (-1.0) ** (n[:, None] - n[None, :]), 1.0)
        return -0.5 * root[:, None] * signs * root[None, :], 0.5 * root[:, None]
    if measure == "lagt":
        return 0.5 * torch.eye(N, dtype=torch.float64) - torch.tril(torch.ones(N, N, dtype=torch.float64)), \
            torch.ones(N, 1, dtype=torch.float64)
    if measure in ("fourier", "fout"):
        if N % 2:
            _refuse("N", N, "Fourier modes come in pairs", "Give an even N.")
        # Coefficients of 1, cos, sin, cos, …, of which the sine of frequency 0 is 0.
        turns = torch.zeros(N, dtype=torch.float64)
        turns[1::2] = torch.arange(N // 2, dtype=torch.float64)
        skew = torch.diag(turns[1:], -1) - torch.diag(turns[1:], 1)
        B = torch.zeros(N, dtype=torch.float64)
        B[0::2], B[0] = math.sqrt(2.0), 1.0
        return math.pi * skew - B[:, None] * B[None, :], B[:, None]
    _refuse("measure", measure, f"it must be one of {', '.join(MEASURES)}", "Choose one.")


def rank_correction(measure: str, N: int, rank: int = 1) -> Tensor:
    """P (rank N) such that A + P^T P is normal: a skew-symmetric matrix and a multiple of the identity."""
    n = torch.arange(N, dtype=torch.float64)
    needed = {"legs": 1, "legt": 2, "lagt": 1, "fourier": 1, "fout": 1}
    if measure not in needed:
        _refuse("measure", measure, f"it must be one of {', '.join(MEASURES)}", "Choose one.")
    if rank < needed[measure]:
        _refuse("rank", rank, f"{measure} needs a correction of rank {needed[measure]}", "Give as much.")
    if measure == "legs":
        P = torch.sqrt(n + 0.5)[None, :]
    elif measure == "legt":
        root = torch.sqrt(2.0 * n + 1.0)
        even, odd = root.clone(), root.clone()
        even[1::2], odd[0::2] = 0.0, 0.0
        P = torch.stack([even, odd]) / math.sqrt(2.0)
    elif measure == "lagt":
        P = torch.full((1, N), math.sqrt(0.5), dtype=torch.float64)
    else:
        P = transition(measure, N)[1].T
    return torch.cat([P, torch.zeros(rank - P.shape[0], N, dtype=torch.float64)])


def nplr(measure: str, N: int, rank: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(w, P, B, V), complex128: A = V (diag(w) - P P*) V*, of each conjugate pair the mode of positive frequency.

    w, B (N/2), P (rank N/2), V (N N/2). N must be even.
    """
    if N % 2:
        _refuse("N", N, "modes come in conjugate pairs", "Give an even N.")
    A, B = transition(measure, N)
    P = rank_correction(measure, N, rank)
    normal = A + P.T @ P
    fall = normal.diagonal().mean()
    # What is left is skew-symmetric: i times it is Hermitian, with real eigenvalues in pairs of both signs.
    skew = normal - fall * torch.eye(N, dtype=torch.float64)
    turns, V = torch.linalg.eigh(-1j * skew)
    positive = turns > 1e-9 * turns.abs().max()
    turns, V = turns[positive], V[:, positive]
    still = N // 2 - len(turns)  # pairs that do not turn: any two real directions make one
    if still:
        flat = torch.linalg.svd(skew)[2][N - 2 * still:].T
        V = torch.cat([torch.complex(flat[:, 0::2], flat[:, 1::2]) / math.sqrt(2.0), V], 1)
        turns = torch.cat([turns.new_zeros(still), turns])
    w = torch.complex(fall.expand(N // 2), turns)
    to_modes = V.conj().T
    return w, (to_modes @ P.T.to(V.dtype)).T, (to_modes @ B.to(V.dtype))[:, 0], V


def modes(kind: str, d: int, N: int) -> Tensor:
    """A (d n) that a diagonal state space of N real dimensions starts from: n = N/2 complex modes, or N real ones.

    lin   -1/2 + iπn        inv   -1/2 + i N/π (N/(2n+1) - 1)        real   -(n+1)        legs   the normal part of HiPPO-LegS
    """
    n = torch.arange(N // 2, dtype=torch.float64)
    if kind == "real":
        return -(torch.arange(N, dtype=torch.float64) + 1.0).float().repeat(d, 1)
    if kind == "legs":
        w = nplr("legs", N)[0]
    elif kind in ("lin", "inv"):
        w = torch.complex(torch.full_like(n, -0.5), math.pi * n if kind == "lin" else N / math.pi * (N / (2.0 * n + 1.0) - 1.0))
    else:
        _refuse("kind", kind, "it must be lin, inv, real or legs", "Choose one.")
    return w.to(torch.complex64).repeat(d, 1)


def steps(d: int, least: float = 0.001, most: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """dt (d), log-uniform between ``least`` and ``most``."""
    return torch.exp(torch.rand(d, generator=generator) * (math.log(most) - math.log(least)) + math.log(least))


def _refuse(argument: str, value: object, limit: str, remedy: str) -> NoReturn:
    raise ArgumentError(op="hippo", argument=argument, value=value, limit=limit, remedy=remedy)


__all__ = ["modes", "nplr", "rank_correction", "steps", "transition"]
