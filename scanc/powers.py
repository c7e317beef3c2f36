"""Sums of powers, Σ_n v_n e^{x_n l} over n or over l, as products of small matrices.

Powers are split, l = m i + j, so that e^{xl} = e^{xmi} e^{xj}: a sum over n of such products is one matrix product, and no tensor has both
n and l. Phases are formed in double precision: x l in float32 is a quarter of a radian off at l = 2^20.

Differentiable any number of times, at the same cost in memory: the two sums are each other's derivatives, and powers are made again.
On a GPU, in single precision, a sum over n is one kernel (scanc/codegen/triton_powers.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

# Numbers that a part of a sum over l may leave at a time.
HELD = 1 << 24


def powers_sum(v: Tensor, x: Tensor, L: int, first: int = 0) -> Tensor:
    """Re Σ_n v_n e^{x_n (first + l)} for l < L; of real modes the sum itself.  v (… h n), x (h n) or with v's axes -> (… h L).

    In v's precision; x may have a higher one, as logarithms of given transitions need.
    """
    made: Tensor = _OverModes.apply(v, x, L, first)
    return made


def weighted_sum(u: Tensor, x: Tensor) -> Tensor:
    """Σ_l u_l e^{x_n l}, real or complex, in u's precision.  u (… h l), x (h n) or with u's axes -> (… h n)."""
    made: Tensor = _OverTime.apply(u, x)
    return made


def powers_gradients(g: Tensor, v: Tensor, x: Tensor, first: int, needs: Sequence[bool] = (True, True)) -> tuple[Tensor | None, ...]:
    """Gradients of v and x from that of their powers_sum, those that are needed."""
    start = _power(x, first)
    by_v = (start * weighted_sum(g, x)).conj() if needs[0] else None
    by_x = None
    if needs[1]:
        steps = torch.arange(first, first + g.shape[-1], device=g.device, dtype=g.dtype)
        by_x = (v * start * weighted_sum(g * steps, x)).conj()
    return _like(by_v, v), _like(by_x, x)


class _OverModes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, x: Tensor, length: int, first: int) -> Tensor:
        ctx.save_for_backward(v, x)
        ctx.first = first
        if on_gpu(v, x):
            from scanc.codegen.triton_powers import powers_sum as in_one_kernel

            return in_one_kernel(v, x, length, first)
        return _products(v * _power(x, first), x, length).to(v.real.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (v, x), first = ctx.saved_tensors, ctx.first
        return *powers_gradients(g, v, x, first, ctx.needs_input_grad), None, None


class _OverTime(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(u, x)
        return _sums(u, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        u, x = ctx.saved_tensors
        by_u = by_x = None
        if ctx.needs_input_grad[0]:
            by_u = powers_sum(g.conj(), x, u.shape[-1])
            if u.is_complex():  # the conjugate's imaginary part is that of -i times the sum
                by_u = torch.complex(by_u, -powers_sum(-1j * g.conj(), x, u.shape[-1]))
            by_u = by_u.sum_to_size(u.shape)
        if ctx.needs_input_grad[1]:
            steps = torch.arange(u.shape[-1], device=u.device, dtype=u.real.dtype)
            by_x = g * weighted_sum(u * steps, x).conj()
        return by_u, _like(by_x, x)


def on_gpu(v: Tensor, x: Tensor) -> bool:
    """Whether a GPU's kernels make the sum."""
    if not v.is_cuda or not _has_triton():
        return False
    from scanc.codegen.triton_powers import serves

    return serves(v, x)


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _like(gradient: Tensor | None, x: Tensor) -> Tensor | None:
    """A gradient summed over what x was repeated along, of x's dtype; real where x is."""
    if gradient is None:
        return None
    return (gradient.real if gradient.is_complex() and not x.is_complex() else gradient).sum_to_size(x.shape).to(x.dtype)


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


def _sums(u: Tensor, x: Tensor) -> Tensor:
    """Σ_l u_l e^{x_n l}: products of [i, j] and [j, n], l = m i + j, then a sum over i; some blocks i after another (Horner's rule)."""
    length, kind = u.shape[-1], u.dtype.to_complex() if x.is_complex() and not u.is_complex() else u.dtype
    while x.dim() > 2 and x.shape[0] == 1:
        x = x[0]
    m, lead = step_block(length), max(0, u.dim() - x.dim())
    few = max(1, min(-(-length // m), HELD // max(1, u[..., :1].numel() * x.shape[-1])))
    inner = powers_of(x, torch.arange(m, device=x.device)).transpose(-1, -2)    # (h j n)
    n = x.shape[-1]
    parts = x.is_complex() and not u.is_complex()
    inner = torch.cat([inner.real, inner.imag], -1).to(u.dtype) if parts else inner.to(kind)
    outer = powers_of(x, m * torch.arange(few, device=x.device)).transpose(-1, -2)  # (h i n)
    whole = _power(x, m * few)
    total = torch.zeros((), dtype=kind, device=u.device)
    for start in reversed(range(0, max(length, 1), m * few)):
        part = u[..., start:start + m * few]
        part = torch.nn.functional.pad(part, (0, -part.shape[-1] % m)).unflatten(-1, (-1, m))
        blocks, shared = part.shape[-2], part.shape[:lead]
        # What shares x lies along a matrix's rows.
        rows = part.flatten(0, lead - 1).movedim(0, -3).flatten(-3, -2) if lead else part
        made = rows @ inner
        made = torch.complex(made[..., :n], made[..., n:]) if parts else made
        if lead:
            made = made.unflatten(-2, (-1, blocks)).movedim(-3, 0).unflatten(0, shared)
        total = total * whole.to(kind) + (made * outer[..., :blocks, :].to(kind)).sum(-2)
    return total


def step_block(length: int) -> int:
    """Steps taken at once: a power of two near the square root."""
    return 1 << (max(length, 1).bit_length() + 1) // 2


def powers_of(x: Tensor, steps: Tensor) -> Tensor:
    """e^{x l} for every l of ``steps``, in x's precision, from phases of double precision.  x (… n) -> (… n steps)."""
    wide = torch.complex128 if x.is_complex() else torch.float64
    return torch.exp(x.to(wide)[..., None] * steps).to(x.dtype)


def _power(x: Tensor, step: int) -> Tensor:
    return powers_of(x, torch.tensor([step], device=x.device))[..., 0]


__all__ = ["on_gpu", "powers_gradients", "powers_of", "powers_sum", "step_block", "weighted_sum"]
