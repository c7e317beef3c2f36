"""Sums of powers, Σ_n v_n e^{x_n l} over n or over l, as products of small matrices.

Powers are split, l = m i + j, so that e^{xl} = e^{xmi} e^{xj}: a sum over n of such products is one matrix product, and no tensor has both
n and l. Phases are formed in double precision: x l in float32 is a quarter of a radian off at l = 2^20. Differentiable throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor


def powers_sum(v: Tensor, x: Tensor, L: int, first: int = 0) -> Tensor:
    """Re Σ_n v_n e^{x_n (first + l)} for l < L; of real modes the sum itself."""
    return _products(v * powers_of(x, torch.tensor([first], device=x.device))[..., 0], x, L)


def _products(v: Tensor, x: Tensor, length: int) -> Tensor:
    """Re Σ_n v_n e^{x_n l}, as a product of matrices [i, n] and [n, j], l = m i + j."""
    m = step_block(length)
    blocks = -(-length // m)
    outer = powers_of(x, m * torch.arange(blocks, device=x.device))  # (h n i)
    inner = powers_of(x, torch.arange(m, device=x.device))           # (h n j)
    weighted = (v[..., None] * outer).transpose(-1, -2)            # (… h i n)
    if weighted.is_complex():
        weighted = torch.cat([weighted.real, -weighted.imag], -1)
        inner = torch.cat([inner.real, inner.imag], -2)
    return (weighted @ inner).flatten(-2)[..., :length]


def step_block(length: int) -> int:
    """Steps taken at once: a power of two near the square root."""
    return 1 << (max(length, 1).bit_length() + 1) // 2


def powers_of(x: Tensor, steps: Tensor) -> Tensor:
    """e^{x l} for every l of ``steps``, in x's precision, from phases of double precision.  x (… n) -> (… n steps)."""
    wide = torch.complex128 if x.is_complex() else torch.float64
    return torch.exp(x.to(wide)[..., None] * steps).to(x.dtype)


def weighted_sum(u: Tensor, x: Tensor) -> Tensor:
    """Σ_l u_l e^{x_n l}, a block of steps after another (Horner's rule).  u (… h l), x (h n) -> (… h n)."""
    length, m = u.shape[-1], step_block(u.shape[-1])
    powers = powers_of(x, torch.arange(m, device=x.device)).to(torch.promote_types(x.dtype, u.dtype))
    whole = powers_of(x, torch.tensor([m], device=x.device))[..., 0]
    total = torch.zeros((), dtype=powers.dtype, device=u.device)
    for start in reversed(range(0, max(length, 1), m)):
        part = u[..., start:start + m]
        total = total * whole + torch.einsum("...hl,hnl->...hn", part.to(powers.dtype), powers[..., :part.shape[-1]])
    return total


__all__ = ["powers_of", "powers_sum", "step_block", "weighted_sum"]
