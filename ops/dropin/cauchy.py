"""``extensions.kernels.cauchy`` of the S4 repository on scanc: the Cauchy product that S4's kernel is made of."""

from __future__ import annotations

from torch import Tensor

from scanc.ops import s4


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Σ_n v_n/(z_l - w_n) + v̄_n/(z_l - w̄_n).  v, w (… n) that broadcast, z (l), complex, any n -> (… l); gradients of all three."""
    return s4.cauchy_mult(v, z.reshape(-1), w)


__all__ = ["cauchy_mult"]
