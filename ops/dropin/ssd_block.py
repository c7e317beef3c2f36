"""Mamba-2's block between its two projections as one autograd function: what a part of zxbcdt has for a gradient is written where the
whole has it.

    z, xBC, dt = zxbcdt;  x, B, C = conv(xBC);  y = ssd(x, dt, A, B, C, D);  norm(y, z), or y silu(z)

    zxbcdt (b, l, 2 d + 2 g n + h), d = h p      conv_weight (d + 2 g n, w), conv_bias (d + 2 g n)      dt_bias, A (h)     D (h) or (h p)
    norm_weight (d) or None                      initial_states, final states (b h p n) float32          seq_idx (b l) integers

``composed`` is a chain of functions, which torch differentiates link by link; each gives a tensor of its own, and putting the gradients
of x, B, C and of z, xBC, dt together then costs a pass over the largest tensors of a layer, twice. ``SplitBlock`` is the same without it.

Source: Dao & Gu, Transformers are SSMs (2024), §7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scanc.ops import ssd
from scanc.ops.dropin._common import dtypes_as_given
from scanc.ops.dropin.causal_conv1d import causal_conv1d_fn, convolution_gradients
from scanc.ops.dropin.layernorm_gated import rmsnorm_fn
from scanc.ops.gated_norm import gated_norm


@dataclass(frozen=True)
class Shape:
    """What the block's tensors alone do not say: heads, their width, groups, and its options.

    ``inner``  whether y goes into a product and nowhere else: the gradient that comes for it is then nobody's but the block's
    """

    h: int
    p: int
    groups: int
    silu: bool
    eps: float
    norm_before_gate: bool
    limits: tuple[tuple[str, float], ...]
    inner: bool = False

    @property
    def scan(self) -> dict[str, Any]:
        """ssd's options."""
        return {"dt_softplus": True, **dict(self.limits)}

    @property
    def norm(self) -> dict[str, Any]:
        """gated_norm's."""
        return {"eps": self.eps, "rms": True, "norm_before_gate": self.norm_before_gate}

    def parts(self, zxbcdt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, xBC, dt."""
        z, xBC, dt = zxbcdt.split([self.h * self.p, zxbcdt.shape[-1] - self.h * self.p - self.h, self.h], dim=-1)
        return z, xBC, dt

    def heads(self, t: Tensor) -> Tensor:
        """(b l d) as (b l h p)."""
        return t.unflatten(-1, (self.h, self.p))

    def read(
        self,
        u: Tensor,
        z: Tensor,
        dt: Tensor,
        A: Tensor | None,
        D: Tensor | None,
        dt_bias: Tensor | None,
        initial_states: Tensor | None,
        seq_idx: Tensor | None,
        *,
        gated: bool,
    ) -> dict[str, Tensor | None]:
        """What ssd reads, by name: u (b l d+2gn) is what the convolution gives, z gates in the scan where no norm comes after it."""
        x, B, C = by_head(u, self.h, self.p, self.groups)
        gate = self.heads(z) if gated else None
        return {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": gate, "dt_bias": dt_bias, "initial_states": initial_states,
                "seq_idx": seq_idx}  # fmt: skip

    def rows(self, t: Tensor) -> Tensor:
        """(... d) as (l g c): every group of a row is normed on its own."""
        return t.reshape(-1, self.groups, self.h * self.p // self.groups)


def by_head(xBC: Tensor, h: int, p: int, ngroups: int) -> tuple[Tensor, Tensor, Tensor]:
    """(b l d+2gn) -> x (b l h p), B and C (b l g n)."""
    gn = (xBC.shape[-1] - h * p) // 2
    x, B, C = xBC.split([h * p, gn, gn], dim=-1)
    return x.unflatten(-1, (h, p)), B.unflatten(-1, (ngroups, -1)), C.unflatten(-1, (ngroups, -1))


def composed(
    shape: Shape,
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(y (b l d), final states), by functions in a row."""
    z, xBC, dt = shape.parts(zxbcdt)
    x, B, C = by_head(_conv(shape, xBC, conv_weight, conv_bias, seq_idx), shape.h, shape.p, shape.groups)
    gate = shape.heads(z) if norm_weight is None else None
    with dtypes_as_given(x):
        y, final = ssd(x, dt, A, B, C, D, gate, dt_bias, initial_states, seq_idx, **shape.scan)
    y = y.flatten(-2)
    if norm_weight is not None:
        y = rmsnorm_fn(y, norm_weight, None, z, shape.eps, shape.h * shape.p // shape.groups, shape.norm_before_gate)
    return y, final


def _conv(shape: Shape, xBC: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    u = causal_conv1d_fn(xBC.transpose(1, 2), weight, bias, seq_idx, activation="silu" if shape.silu else None)
    assert isinstance(u, Tensor)  # a pair only where final states are asked for
    return u.transpose(1, 2)


class SplitBlock(torch.autograd.Function):
    """``composed`` for ordinary tensors. Gradients of gradients go through ``composed``."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, training: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, initial_states, seq_idx = tensors
        assert zxbcdt is not None and conv_weight is not None
        z, xBC, dt = shape.parts(zxbcdt)
        with dtypes_as_given(zxbcdt):
            u = _conv(shape, xBC, conv_weight, conv_bias, seq_idx)
            read = shape.read(u, z, dt, A, D, dt_bias, initial_states, seq_idx, gated=norm_weight is None)
            wanted = _wanted(norm_weight is None, ctx.needs_input_grad[2:]) if training else ()
            (scanned, final), checkpoints, ctx.every = ssd.training(read, shape.scan, wanted)
            y = scanned.flatten(-2)
            if norm_weight is not None:
                y = gated_norm(shape.rows(y), shape.rows(norm_weight)[0], None, shape.rows(z), **shape.norm).view(y.shape)
        ctx.shape, ctx.wanted, ctx.present, ctx.left = shape, wanted, [t is not None for t in tensors], tuple(checkpoints)
        ctx.set_materialize_grads(False)
        kept = (u, scanned) if norm_weight is not None else (u,)
        ctx.save_for_backward(*(t for t in tensors if t is not None), *checkpoints.values(), *(kept if training else ()))
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Any, ...]:
        shape: Shape = ctx.shape
        saved = iter(ctx.saved_tensors)
        tensors = [next(saved) if there else None for there in ctx.present]
        need = ctx.needs_input_grad[2:]
        if dy is None and dfinal is None:
            return (None,) * (2 + len(tensors))
        if torch.is_grad_enabled():
            leaves = [t for t, wanted in zip(tensors, need) if t is not None and wanted]
            results = [(r, d) for r, d in zip(composed(shape, *tensors), (dy, dfinal), strict=True) if d is not None]  # type: ignore[arg-type]
            found = torch.autograd.grad([r for r, _ in results], leaves, [d for _, d in results], create_graph=True, allow_unused=True)
            own = {id(t): g for t, g in zip(leaves, found, strict=True)}
            return (None, None, *(own[id(t)] if wanted else None for t, wanted in zip(tensors, need)))
        checkpoints = {name: next(saved) for name in ctx.left}
        zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, initial_states, seq_idx = tensors
        assert zxbcdt is not None and conv_weight is not None
        u = next(saved)
        z, xBC, dt = shape.parts(zxbcdt)
        dwhole = torch.empty(zxbcdt.shape, dtype=zxbcdt.dtype, device=zxbcdt.device)  # contiguous, so that its parts can be seen as rows
        dz, dxBC, ddt = shape.parts(dwhole)
        dnorm = None
        with dtypes_as_given(zxbcdt):
            if norm_weight is not None:
                dy, dnorm = _norm_gradients(shape, dy, next(saved), norm_weight, z, dz)
            dgate = {"z": shape.heads(dz)} if norm_weight is None else {}
            read = shape.read(u, z, dt, A, D, dt_bias, initial_states, seq_idx, gated=norm_weight is None)
            du = torch.empty_like(u)
            places = dict(zip("xBC", by_head(du, shape.h, shape.p, shape.groups), strict=True)) | {"dt": ddt} | dgate
            come = None if dy is None else shape.heads(dy)
            found_of_scan = ssd.gradients(
                (come, dfinal), read, shape.scan, ctx.wanted, checkpoints, ctx.every, {k: v for k, v in places.items() if k in ctx.wanted}
            )
            if dy is None and norm_weight is None and need[0]:
                dz.zero_()
            taps, bias = convolution_gradients(
                du.transpose(1, 2), xBC.transpose(1, 2), conv_weight, conv_bias, need[1:3], dxBC.transpose(1, 2), seq_idx, silu=shape.silu
            )
        of = found_of_scan.get
        return (None, None, dwhole if need[0] else None, taps, bias, of("dt_bias"), of("A"), of("D"), dnorm, of("initial_states"), None)


def _wanted(gated: bool, need: tuple[bool, ...]) -> tuple[str, ...]:
    """Of which of ssd's inputs gradients are asked: of all that come from zxbcdt where anything before them has one."""
    zxbcdt, taps, taps_bias, dt_bias, A, D, _, initial_states, _ = need
    before = zxbcdt or taps or taps_bias
    asked = {"x": before, "dt": zxbcdt, "A": A, "B": before, "C": before, "D": D, "z": gated and zxbcdt, "dt_bias": dt_bias,
             "initial_states": initial_states}  # fmt: skip
    return tuple(name for name, wanted in asked.items() if wanted)


def _norm_gradients(
    shape: Shape, dy: Tensor | None, y: Tensor, weight: Tensor, z: Tensor, dz: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the norm's input (b l d) and weight; that of z is written to ``dz``, the first in place of ``dy`` if it may be."""
    if dy is None:
        dz.zero_()
        return None, None
    read = {"x": shape.rows(y.flatten(-2)), "weight": shape.rows(weight)[0], "z": shape.rows(z)}
    places = {"z": shape.rows(dz)}
    if shape.inner and dy.is_contiguous() and dy.dtype == y.dtype:
        places["x"] = shape.rows(dy)  # a row is read before it is written, by one and the same program
    found = gated_norm.gradients((shape.rows(dy),), read, shape.norm, ("x", "weight", "z"), into=places)
    return found["x"].view(dy.shape), found["weight"].view(weight.shape)


__all__ = ["Shape", "SplitBlock", "by_head", "composed"]
