"""How ops are held against the oracle: relative errors of every result and every gradient, with bars by storage dtype.

The oracle is the op's graph evaluated by torch operations in float64 on the same (already rounded) inputs, differentiated by
torch.autograd: it shares neither the adjoint pass nor any kernel with what it checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scanc.op import Op

# The largest ‖found − wanted‖ / ‖wanted‖ of a result and of a gradient, by the dtype it is stored in.
RESULT = {torch.float16: 2e-3, torch.bfloat16: 4e-3, torch.float32: 5e-6, torch.complex64: 5e-6, torch.float64: 1e-12}
GRADIENT = {torch.float16: 5e-3, torch.bfloat16: 1e-2, torch.float32: 2e-5, torch.complex64: 2e-5, torch.float64: 1e-11}


def wide(x: Tensor) -> Tensor:
    """x in double precision, on its own."""
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64) if x.is_complex() or x.is_floating_point() else x


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖; NaN stays NaN, which no bar admits, and what is compared with zeros must be zeros."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    gap, norm = torch.linalg.vector_norm(wide(found) - wide(wanted)), torch.linalg.vector_norm(wide(wanted))
    return float(gap / norm) if norm > 0 or norm.isnan() else float(gap)


def close(found: Tensor, wanted: Tensor, bars: Mapping[torch.dtype, float] = RESULT, what: str = "") -> None:
    error = relative(found, wanted)
    assert error <= bars[found.dtype], f"{what}: relative error {error:.2e}, at most {bars[found.dtype]:.0e}"


def several(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def cotangents(results: tuple[Tensor, ...], seed: int = 1) -> list[Tensor]:
    """What comes in for each result: random, in its dtype."""
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(r.shape, generator=make, dtype=torch.complex64 if r.is_complex() else torch.float32).to(r) for r in results]


def gradients(results: tuple[Tensor, ...], come: list[Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    used = [(r, c.to(r.dtype)) for r, c in zip(results, come, strict=True) if r.requires_grad]
    made = torch.autograd.grad([r for r, _ in used], list(leaves.values()), [c for _, c in used])
    return dict(zip(leaves, made, strict=True))


def leaves_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.requires_grad_() for k, v in tensors.items() if v.is_floating_point() or v.is_complex()}


def holds(op: Op, inputs: Mapping[str, Any], *, backward: bool = True, heard: tuple[int, ...] | None = None) -> tuple[Tensor, ...]:
    """Runs an op and its backward on ``inputs`` (tensors, strides as they are, and options), compares with the oracle, gives the results.

    ``heard``  positions of the results that a gradient comes in for (all of them when None)
    """
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
    options = {k: v for k, v in inputs.items() if not isinstance(v, Tensor)}
    given, truth = {k: v.detach() for k, v in tensors.items()}, {k: wide(v) for k, v in tensors.items()}
    leaves, true_leaves = (leaves_of(given), leaves_of(truth)) if backward else ({}, {})
    results, wanted = several(op(**given, **options)), several(op.reference(**truth, **options))
    for i, (r, w) in enumerate(zip(results, wanted, strict=True)):
        close(r, w, what=f"{op.name} result {i}")
    if backward:
        come = cotangents(results)
        picked = range(len(results)) if heard is None else heard
        found = gradients(tuple(results[i] for i in picked), [come[i] for i in picked], leaves)
        right = gradients(tuple(wanted[i] for i in picked), [come[i] for i in picked], true_leaves)
        for name, gradient in found.items():
            assert gradient.dtype == leaves[name].dtype
            close(gradient, right[name], GRADIENT, f"{op.name} d_{name}")
    return tuple(r.detach() for r in results)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Sample numbers that depend on nothing but the arguments."""
    drawn = torch.complex64 if dtype.is_complex else torch.float32
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=drawn) * scale).to(dtype)
