"""Norms with a gate: mamba_ssm.ops.triton.layernorm_gated's functions and modules.

    norm_before_gate      y = norm(x) * silu(z)
    otherwise             y = norm(x * silu(z))            without z: norm(x)

    x, z, out (... d)      weight, bias (d)      ``group_size`` normalises each run of that many channels on its own

Computed by the op scanc.ops.gated_norm, in float32 or wider.

Source: Dao & Gu, Transformers are SSMs (2024), §7; the calls are those of mamba_ssm 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.ops.dropin._common import need, normed


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """The norm (LayerNorm, or RMSNorm with ``is_rms_norm``) and its gate; out has x's shape and dtype. Differentiable.

    Raises ArgumentError where the channels do not fall into whole groups.
    """
    width = x.shape[-1]
    size = width if group_size is None else group_size
    need(
        size > 0 and width % size == 0,
        "layernorm_fn",
        "group_size",
        group_size,
        f"it divides the {width} channels",
        "Choose a divisor, or None for one group.",
    )
    return normed(x, weight, bias, z, size=size, eps=eps, rms=is_rms_norm, norm_before_gate=norm_before_gate)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """layernorm_fn without subtracting the mean (Zhang & Sennrich 2019)."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm=True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """rmsnorm_fn by torch's own rms_norm, in float32 if ``upcast``."""
    y, gate = (x.float(), None if z is None else z.float()) if upcast else (x, z)
    if gate is not None and not norm_before_gate:
        y = y * F.silu(gate)
    size = x.shape[-1] if group_size is None else group_size
    y = F.rms_norm(y.unflatten(-1, (-1, size)), (size,), eps=eps).flatten(-2) * weight.to(y.dtype)
    if bias is not None:
        y = y + bias
    if gate is not None and norm_before_gate:
        y = y * F.silu(gate)
    return y.to(x.dtype)


class LayerNorm(nn.Module):
    """layernorm_fn with its weight and bias."""

    is_rms_norm = False
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None if self.is_rms_norm else nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """x, z (... d) -> (... d)."""
        return layernorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate, self.is_rms_norm)


class RMSNorm(LayerNorm):
    """rmsnorm_fn with its weight; mamba_ssm's gated norm."""

    is_rms_norm = True


__all__ = ["LayerNorm", "RMSNorm", "layernorm_fn", "rms_norm_ref", "rmsnorm_fn"]
