"""RMSNorm and LayerNorm, with a residual added before or a gate: what stands before Mamba's layers, and after Mamba-2's scan.

    norm_before_gate      y = norm(x) silu(z)
    otherwise             y = norm(x silu(z))            without z: norm(x)

    norm(v) = v / sqrt(mean(v²) + eps) weight + bias, over the last axis; LayerNorm (``rms`` False) takes v's mean from it first

    where there is a residual, x + residual stands in x's place

    x, residual, z, y (l g c): l rows of g groups, each of whose c channels are normed on their own; weight, bias (g c)

Computed in float32 whatever is stored. Rows are the time axis: nothing is carried from one to the next, so its form is a stencil, with
a row's channels in one tile and the gradients of the weights summed as rows go by.

Source: Zhang & Sennrich, Root Mean Square Layer Normalization (2019); Dao & Gu, Transformers are SSMs (2024), §7.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.problem import Make


@sc.op(groups={})
def gated_norm(
    x: Float[Tensor, "l g c"],
    weight: Float[Tensor, "g c"],
    bias: Float[Tensor, "g c"] | None = None,
    z: Float[Tensor, "l g c"] | None = None,
    residual: Float[Tensor, "l g c"] | None = None,
    *,
    eps: float = 1e-6,
    rms: bool = True,
    norm_before_gate: bool = True,
) -> Float[Tensor, "l g c"]:
    v = x if residual is None else x + residual
    if z is not None and not norm_before_gate:
        v = v * sc.silu(z)
    if not rms:
        v = v - sc.mean(v, "c")
    y = v * sc.rsqrt(sc.mean(sc.square(v), "c") + eps) * weight
    if bias is not None:
        y = y + bias
    if z is not None and norm_before_gate:
        y = y * sc.silu(z)
    return y


@gated_norm.example
def _example(make: Make) -> dict[str, Any]:
    return {
        "x": make.normal("l g c"),
        "weight": make.normal("g c", parameter=True),
        "bias": None,
        "z": make.normal("l g c"),
        "residual": None,
        "norm_before_gate": False,
    }


gated_norm.cases = [
    {"l": 16384, "g": 1, "c": 4096},
]
