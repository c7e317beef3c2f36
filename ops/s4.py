"""The convolution kernels of linear time-invariant state spaces: Vandermonde and Cauchy products without their matrices.

    log_vandermonde(v, x, L)[…, l]           2 Re Σ_n v_n e^{x_n l}          the kernel of a diagonal state space (S4D, DSS)
    log_vandermonde_transpose(u, v, x, L)    Σ_l u_l v_n e^{x_n l}           what a sequence leaves in its state
    cauchy_mult(v, z, w)[…, l]               Σ_n v_n/(z_l - w_n) + v̄_n/(z_l - w̄_n)      the kernel's transform of S4

A state space of real numbers has its modes in conjugate pairs, of which one is kept: hence 2 Re.

Powers are split, l = m i + j, so that e^{xl} = e^{xmi} e^{xj}: a sum over n of such products is one matrix product, and no tensor has both
n and l. Phases are formed in double precision: x l in float32 is a quarter of a radian off at l = 2^20. Differentiable throughout.

Sources: Gu et al., Efficiently Modeling Long Sequences with Structured State Spaces (2021), §3; Gu et al., On the Parameterization and
Initialization of Diagonal State Space Models (2022), §3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scanc.errors import ArgumentError

# Elements of a Cauchy matrix held at a time.
CAUCHY_BLOCK = 1 << 24


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """2 Re Σ_n v_n e^{x_n l} for l < L.  v (… h n), x (h n), complex -> (… h L), real."""
    _need_complex("log_vandermonde", v=v, x=x)
    return _products(2.0 * v, x, L)


def real_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """Σ_n v_n e^{x_n l} for l < L, of real modes.  v (… h n), x (h n) -> (… h L)."""
    return _products(v, x, L)


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """Σ_l u_l v_n e^{x_n l}.  u (… h L), real or complex; v, x (h n), complex -> (… h n).

    Of a sequence backwards, with v = B̄ and x = log Ā, the state that it ends in: Σ_j Ā^{L-1-j} B̄ u_j.
    """
    _need_complex("log_vandermonde_transpose", v=v, x=x)
    if u.shape[-1] != L:
        raise ArgumentError(op="log_vandermonde_transpose", argument="u", value=f"of {u.shape[-1]} steps", limit=f"L is {L}",
                            remedy="Give as many steps as L says.")
    return v * weighted_sum(u, x)


def weighted_sum(u: Tensor, x: Tensor) -> Tensor:
    """Σ_l u_l e^{x_n l}, a block of steps after another (Horner's rule).  u (… h l), x (h n) -> (… h n)."""
    length, m = u.shape[-1], _block(u.shape[-1])
    powers = _powers(x, torch.arange(m, device=x.device)).to(torch.promote_types(x.dtype, u.dtype))
    whole = _powers(x, torch.tensor([m], device=x.device))[..., 0]
    total = torch.zeros((), dtype=powers.dtype, device=u.device)
    for start in reversed(range(0, max(length, 1), m)):
        part = u[..., start:start + m]
        total = total * whole + torch.einsum("...hl,hnl->...hn", part.to(powers.dtype), powers[..., :part.shape[-1]])
    return total


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Σ_n v_n/(z_l - w_n) and the conjugate modes' terms.  v, w (… n), z (L), complex -> (… L)."""
    _need_complex("cauchy_mult", v=v, z=z, w=w)
    v, w = torch.broadcast_tensors(v, w)
    # Both terms over one denominator: (2 z Re v - 2 Re(v̄ w)) / (z² - 2 z Re w + |w|²), of which two sums over n are real.
    above, below = v.real, (v.conj() * w).real
    centre, radius = w.real, w.real.square() + w.imag.square()
    step = max(1, CAUCHY_BLOCK // max(1, v.numel()))
    parts = []
    for some in z.split(step):
        at = some.reshape(*[1] * v.dim(), -1)
        parts.append((2.0 * (at * above[..., None] - below[..., None]) / (at * (at - 2.0 * centre[..., None]) + radius[..., None])).sum(-2))
    return torch.cat(parts, -1) if parts else v.new_empty(*v.shape[:-1], 0)


def powers_sum(v: Tensor, x: Tensor, L: int, first: int = 0) -> Tensor:
    """Re Σ_n v_n e^{x_n (first + l)} for l < L; of real modes the sum itself."""
    return _products(v * _powers(x, torch.tensor([first], device=x.device))[..., 0], x, L)


def _products(v: Tensor, x: Tensor, length: int) -> Tensor:
    """Re Σ_n v_n e^{x_n l}, as a product of matrices [i, n] and [n, j], l = m i + j."""
    if length < 0:
        raise ArgumentError(op="log_vandermonde", argument="L", value=length, limit="it must be 0 or more", remedy="Give a length.")
    m = _block(length)
    blocks = -(-length // m)
    outer = _powers(x, m * torch.arange(blocks, device=x.device))  # (h n i)
    inner = _powers(x, torch.arange(m, device=x.device))           # (h n j)
    weighted = (v[..., None] * outer).transpose(-1, -2)            # (… h i n)
    if weighted.is_complex():
        weighted = torch.cat([weighted.real, -weighted.imag], -1)
        inner = torch.cat([inner.real, inner.imag], -2)
    return (weighted @ inner).flatten(-2)[..., :length]


def _block(length: int) -> int:
    """A power of two near the square root."""
    return 1 << (max(length, 1).bit_length() + 1) // 2


def _powers(x: Tensor, steps: Tensor) -> Tensor:
    """e^{x l} for every l of ``steps``, in x's precision, from phases of double precision.  x (… n) -> (… n steps)."""
    wide = torch.complex128 if x.is_complex() else torch.float64
    return torch.exp(x.to(wide)[..., None] * steps).to(x.dtype)


def _need_complex(op: str, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not x.is_complex():
            raise ArgumentError(op=op, argument=name, value=f"of dtype {x.dtype}", limit="it must be complex",
                                remedy="Give modes as complex numbers, one of each conjugate pair.")


__all__ = ["cauchy_mult", "log_vandermonde", "log_vandermonde_transpose", "powers_sum", "real_vandermonde", "weighted_sum"]
