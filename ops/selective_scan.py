"""Selective scan, the recurrence of Mamba (S6).

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t            y_t = C_t h_t + D u_t,  gated by silu(z_t)

    u, delta, z   (b d l)                  A  (d n) float32, or complex64
    B, C          (b g n l), or (b n l), or (d n) constant in time;  g divides d
    D, delta_bias (d)                      initial_state, last_state  (b d n) float32
    seq_idx       (b l) integers: where it changes, the state is forgotten

A sequence cut into calls, each starting from the state the one before it returned, gives what one call gives. A call cannot see the
step before its first, so where ``seq_idx`` changes at the cut itself, the state handed on must be zeros.

With a complex A, B and C are complex (constant, or real tensors whose last axis holds 2 l interleaved parts) and
y = 2 Re(C h): half of the conjugate pairs is kept.

Source: Gu & Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces (2023), §3.2 and Algorithm 2.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

import scanc.dsl as sc
from scanc.errors import ArgumentError
from scanc.problem import Make


@sc.op
def selective_scan(
    u: Float[Tensor, "b d l"],
    delta: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"] | Complex[Tensor, "d n"],
    B: Float[Tensor, "b g n l"] | Float[Tensor, "d n"] | Complex[Tensor, "b g n l"] | Complex[Tensor, "d n"],
    C: Float[Tensor, "b g n l"] | Float[Tensor, "d n"] | Complex[Tensor, "b g n l"] | Complex[Tensor, "d n"],
    D: Float[Tensor, "d"] | None = None,
    z: Float[Tensor, "b d l"] | None = None,
    delta_bias: Float[Tensor, "d"] | None = None,
    initial_state: Float[Tensor, "b d n"] | Complex[Tensor, "b d n"] | None = None,
    seq_idx: Int[Tensor, "b l"] | None = None,
    *,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d n"]]:
    dt = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        dt = sc.softplus(dt)
    a, b = sc.discretize(dt, A, B, method="mamba")
    reset = None
    if seq_idx is not None:
        # The first step walked has no neighbour to differ from: it starts from the initial state.
        edge = sc.index("l") == (sc.size("l") - 1 if reverse else 0)
        reset = (seq_idx != sc.shift(seq_idx, "l", -1 if reverse else 1)) & ~edge
    h = sc.scan(a, b * u, axis="l", initial=initial_state, reverse=reverse, reset=reset)
    y = sc.sum(C * h, "n")
    if sc.is_complex(A):
        y = 2.0 * sc.real(y)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * sc.silu(z)
    return y, sc.last(h, "l")


def _per_group(name: str, x: Tensor, complex_: bool) -> Tensor:
    """B or C as the op takes it: (b n l) gains its one group; interleaved real parts of a complex one are joined."""
    if x.dim() == 3:
        x = x.unsqueeze(1)
    if complex_ and x.dim() == 4 and not x.is_complex():
        if x.shape[-1] % 2:
            raise ArgumentError(
                op="selective_scan",
                argument=name,
                value=f"of shape {tuple(x.shape)}",
                limit="with a complex A its last axis holds 2 l interleaved real and imaginary parts",
                remedy="Use torch.view_as_real(x).flatten(-2).",
            )
        x = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return x


def resets_from_lengths(cu_seqlens: Tensor, length: int) -> Tensor:
    """seq_idx (1 l) of sequences packed end to end, from their cumulative lengths (nseq + 1); no host synchronisation."""
    positions = torch.arange(length, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return (torch.bucketize(positions, cu_seqlens, right=True) - 1).to(torch.int32).unsqueeze(0)


@selective_scan.prepare
def _public(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> dict[str, Any]:
    """Also takes B and C as (b n l), and ``cu_seqlens`` (nseq + 1) in place of ``seq_idx`` for a batch of 1."""
    if cu_seqlens is not None:
        if seq_idx is not None:
            raise ArgumentError(
                op="selective_scan",
                argument="cu_seqlens",
                value="given beside seq_idx",
                limit="they say the same thing",
                remedy="Give one of the two.",
            )
        if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.is_complex() or cu_seqlens.dtype == torch.bool:
            raise ArgumentError(
                op="selective_scan",
                argument="cu_seqlens",
                value=f"{str(cu_seqlens.dtype).removeprefix('torch.')} of shape {tuple(cu_seqlens.shape)}",
                limit="cumulative lengths are integers of shape (nseq + 1)",
                remedy="Use torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).",
            )
        if cu_seqlens.device != u.device:
            raise ArgumentError(
                op="selective_scan",
                argument="cu_seqlens",
                value=f"on {cu_seqlens.device}",
                limit=f"'u' is on {u.device}",
                remedy="Move it there once, ahead of the loop over steps: a copy at every call would wait for the device.",
            )
        if u.dim() == 3 and u.shape[0] != 1:
            raise ArgumentError(
                op="selective_scan",
                argument="cu_seqlens",
                value=f"given with a batch of {u.shape[0]}",
                limit="packed sequences have a batch of 1",
                remedy="Pack all sequences along l, or use seq_idx.",
            )
        seq_idx = resets_from_lengths(cu_seqlens, u.shape[-1])
    return {
        "u": u,
        "delta": delta,
        "A": A,
        "B": _per_group("B", B, A.is_complex()),
        "C": _per_group("C", C, A.is_complex()),
        "D": D,
        "z": z,
        "delta_bias": delta_bias,
        "initial_state": initial_state,
        "seq_idx": seq_idx,
        "delta_softplus": delta_softplus,
        "reverse": reverse,
    }


@selective_scan.example
def _example(make: Make) -> dict[str, Any]:
    return {
        "u": make.normal("b d l"),
        "delta": make.normal("b d l", scale=0.5),
        "A": -make.uniform("d n", 0.5, 8.0, parameter=True),
        "B": make.normal("b g n l"),
        "C": make.normal("b g n l"),
        "D": make.normal("d", parameter=True),
        "z": make.normal("b d l"),
        "delta_bias": make.uniform("d", -4.0, -1.0, parameter=True),
        "initial_state": None,
        "seq_idx": None,
        "delta_softplus": True,
    }


selective_scan.cases = [
    {"b": 1, "d": 1536, "l": 2048, "n": 16, "g": 1},
    {"b": 2, "d": 4096, "l": 2048, "n": 16, "g": 1},
    {"b": 8, "d": 4096, "l": 2048, "n": 16, "g": 1},
    {"b": 1, "d": 4096, "l": 16384, "n": 16, "g": 1},
]
