"""Norms with a residual: mamba_ssm.ops.triton.layer_norm's functions and module.

    total = x + residual            out = norm(total)            total is also returned with ``prenorm``

    x, residual, out (... d)        weight, bias (d)

The norm is the op scanc.ops.gated_norm, in float32 or wider, and adds the residual itself; the total, where it is wanted, is torch's.
The call is that of mamba_ssm 2.3; its second branch (x1, weight1, bias1), row scales and dropout masks, which its models do not use,
are refused by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.ops.dropin._common import need, normed


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The norm of x + residual: out in x's dtype, or (out, total) with ``prenorm``.

    ``dropout_p`` drops out x before the sum. The total is in the residual's dtype; without a residual it is float32 where
    ``residual_in_fp32``, else x's. Differentiable. Raises ArgumentError where an argument is given that is not served.
    """
    unserved = {"x1": x1, "weight1": weight1, "bias1": bias1, "rowscale": rowscale, "return_dropout_mask": return_dropout_mask or None}
    for name, value in unserved.items():
        need(value is None, "layer_norm_fn", name, "given", "it is not served", "Norm each branch with a call of its own.")
    x = F.dropout(x, dropout_p) if dropout_p > 0 else x
    out = normed(x, weight, bias, residual=residual, size=x.shape[-1], eps=eps, rms=is_rms_norm)
    if not prenorm:
        return out
    kept = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
    return out, (x if residual is None else x + residual).to(kept)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """layer_norm_fn without subtracting the mean (Zhang & Sennrich 2019)."""
    return layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32, True, return_dropout_mask
    )


class RMSNorm(nn.Module):
    """rms_norm_fn with its weight."""

    bias: None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.dropout_p = eps, dropout_p
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x, residual (... d) -> out (... d), or (out, total) with ``prenorm``."""
        dropout = self.dropout_p if self.training else 0.0
        return rms_norm_fn(
            x, self.weight, self.bias, residual, eps=self.eps, dropout_p=dropout, prenorm=prenorm, residual_in_fp32=residual_in_fp32
        )


__all__ = ["RMSNorm", "layer_norm_fn", "rms_norm_fn"]
