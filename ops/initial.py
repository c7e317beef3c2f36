"""Where parameters start: what modules and models of Mamba and Mamba-2 share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def step_bias(count: int, low: float, high: float, floor: float, device: torch.device | str | None = None) -> Tensor:
    """A bias (count) float32 whose softplus, the step size, is log-uniform on [low, high], and not below ``floor``.

    Source: Gu & Dao, Mamba (2023), §3.6.
    """
    span = math.log(high) - math.log(low)
    dt = torch.exp(torch.rand(count, device=device) * span + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # softplus's inverse, exact for small dt


__all__ = ["step_bias"]
