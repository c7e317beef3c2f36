"""``extensions.kernels.vandermonde`` of the S4 repository on scanc: kernels and last states of diagonal state spaces."""

from __future__ import annotations

import torch
from torch import Tensor

from scanc.powers import powers_sum, weighted_sum


def log_vandermonde(v: Tensor, x: Tensor, L: int, conj: bool = True) -> Tensor:
    """2 Re Σ_n v_n e^{x_n l} for l < L, or without ``conj`` the complex sum itself.  v, x (… n) that broadcast -> (… L)."""
    v, x = _modes(v, x)
    if conj:
        return powers_sum(2.0 * v, x, L)
    return torch.complex(powers_sum(v, x, L), powers_sum(-1j * v, x, L))


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """Σ_l u_l v_n e^{x_n l}.  u (… L), v, x (… n) -> (… n)."""
    v, x = _modes(v, x)
    return v * weighted_sum(u[..., :L], x)


def log_vandermonde_cuda(v: Tensor, x: Tensor, L: int) -> Tensor:
    """The same as log_vandermonde; the name that the model looks for."""
    return log_vandermonde(v, x, L)


log_vandermonde_fast = log_vandermonde_cuda


def _modes(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """v with all the axes of both, x with its own; complex."""
    kind = torch.promote_types(torch.promote_types(v.dtype, x.dtype), torch.complex64)
    axes = torch.broadcast_shapes(v.shape, x.shape)
    return v.to(kind).expand(axes), x.to(kind)


__all__ = ["log_vandermonde", "log_vandermonde_cuda", "log_vandermonde_fast", "log_vandermonde_transpose"]
