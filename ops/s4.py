"""The convolution kernels of linear time-invariant state spaces: Vandermonde and Cauchy products without their matrices.

    log_vandermonde(v, x, L)[…, l]           2 Re Σ_n v_n e^{x_n l}          the kernel of a diagonal state space (S4D, DSS)
    log_vandermonde_transpose(u, v, x, L)    Σ_l u_l v_n e^{x_n l}           what a sequence leaves in its state
    cauchy_mult(v, z, w)[…, l]               Σ_n v_n/(z_l - w_n) + v̄_n/(z_l - w̄_n)      the kernel's transform of S4

A state space of real numbers has its modes in conjugate pairs, of which one is kept: hence 2 Re.

No tensor has both n and l, and phases hold to any length (scanc/powers.py). Differentiable throughout.

Sources: Gu et al., Efficiently Modeling Long Sequences with Structured State Spaces (2021), §3; Gu et al., On the Parameterization and
Initialization of Diagonal State Space Models (2022), §3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scanc.errors import ArgumentError
from scanc.powers import powers_sum, weighted_sum

# Elements of a Cauchy matrix held at a time.
CAUCHY_BLOCK = 1 << 24


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """2 Re Σ_n v_n e^{x_n l} for l < L.  v (… h n), x (h n), complex -> (… h L), real."""
    _need_complex("log_vandermonde", v=v, x=x)
    return powers_sum(2.0 * v, x, L)


def real_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """Σ_n v_n e^{x_n l} for l < L, of real modes.  v (… h n), x (h n) -> (… h L)."""
    return powers_sum(v, x, L)


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """Σ_l u_l v_n e^{x_n l}.  u (… h L), real or complex; v, x (h n), complex -> (… h n).

    Of a sequence backwards, with v = B̄ and x = log Ā, the state that it ends in: Σ_j Ā^{L-1-j} B̄ u_j.
    """
    _need_complex("log_vandermonde_transpose", v=v, x=x)
    if u.shape[-1] != L:
        raise ArgumentError(op="log_vandermonde_transpose", argument="u", value=f"of {u.shape[-1]} steps", limit=f"L is {L}",
                            remedy="Give as many steps as L says.")
    return v * weighted_sum(u, x)


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Σ_n v_n/(z_l - w_n) and the conjugate modes' terms.  v, w (… n), z (L), complex -> (… L)."""
    _need_complex("cauchy_mult", v=v, z=z, w=w)
    v, w = torch.broadcast_tensors(v, w)
    # Both terms over one denominator: (2 z Re v - 2 Re(v̄ w)) / (z² - 2 z Re w + |w|²), of which two sums over n are real.
    numbers = v.real, (v.conj() * w).real, w.real, w.real.square() + w.imag.square()
    step = max(1, CAUCHY_BLOCK // max(1, v.numel()))
    # A block's matrix is made again for the gradient: none of them is kept.
    parts = [checkpoint(_cauchy_block, some, *numbers, use_reentrant=False) for some in z.split(step)]
    return torch.cat(parts, -1) if parts else v.new_empty(*v.shape[:-1], 0)


def _cauchy_block(z: Tensor, above: Tensor, below: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    at = z.reshape(*[1] * above.dim(), -1)
    return (2.0 * (at * above[..., None] - below[..., None]) / (at * (at - 2.0 * centre[..., None]) + radius[..., None])).sum(-2)


def _need_complex(op: str, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not x.is_complex():
            raise ArgumentError(op=op, argument=name, value=f"of dtype {x.dtype}", limit="it must be complex",
                                remedy="Give modes as complex numbers, one of each conjugate pair.")


__all__ = ["cauchy_mult", "log_vandermonde", "log_vandermonde_transpose", "real_vandermonde"]
