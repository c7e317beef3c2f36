"""The short causal convolution of every channel with its own taps, which stands before the scan in Mamba and Mamba-2.

    y_t = σ(bias + Σ_j weight_{w-1-j} x_{t-j})          σ is silu or nothing, j = 0 ... w-1

    x, y    (b d l)                  weight  (d w), w up to 16          bias  (d)
    seq_idx (b l) integers: a tap counts where it looks at its own sequence; negative means padding, whose result is 0

Nothing is carried from step to step, so its form is a stencil. y lies in memory as x does: a transposed (b l d) gives a transposed
(b l d). Inside, each tap is an argument of its own, w_j looking back j steps, so that taps live in registers.

Source: Gu & Dao, Mamba (2023), §3.4, Figure 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen.layout import Mode, brought_names
from scanc.eager import Again, Recall
from scanc.errors import ArgumentError
from scanc.ir import Builder, Graph, Output, Type
from scanc.problem import Make

MOST_TAPS = 16


@sc.op
def causal_conv1d(
    x: Float[Tensor, "b d l"],
    w0: Float[Tensor, "d"],
    w1: Float[Tensor, "d"] | None = None,
    w2: Float[Tensor, "d"] | None = None,
    w3: Float[Tensor, "d"] | None = None,
    w4: Float[Tensor, "d"] | None = None,
    w5: Float[Tensor, "d"] | None = None,
    w6: Float[Tensor, "d"] | None = None,
    w7: Float[Tensor, "d"] | None = None,
    w8: Float[Tensor, "d"] | None = None,
    w9: Float[Tensor, "d"] | None = None,
    w10: Float[Tensor, "d"] | None = None,
    w11: Float[Tensor, "d"] | None = None,
    w12: Float[Tensor, "d"] | None = None,
    w13: Float[Tensor, "d"] | None = None,
    w14: Float[Tensor, "d"] | None = None,
    w15: Float[Tensor, "d"] | None = None,
    bias: Float[Tensor, "d"] | None = None,
    seq_idx: Int[Tensor, "b l"] | None = None,
    *,
    silu: bool = False,
) -> Float[Tensor, "b d l"]:
    y = w0 * x
    for lag, w in enumerate((w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15), start=1):
        if w is not None:
            seen = sc.shift(x, "l", lag)
            if seq_idx is not None:
                seen = sc.where(seq_idx == sc.shift(seq_idx, "l", lag, fill=-1), seen, 0.0)
            y = y + w * seen
    if bias is not None:
        y = y + bias
    if silu:
        y = sc.silu(y)
    if seq_idx is not None:
        y = sc.where(seq_idx < 0, 0.0, y)
    return y


def taps_of(weight: Tensor) -> dict[str, Tensor]:
    """weight (d w) as the op names its taps, by how far they look back: the last is w0."""
    return {f"w{lag}": tap for lag, tap in enumerate(reversed(weight.unbind(-1)))}


@causal_conv1d.prepare
def _public(x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Tensor | None = None, *, silu: bool = False) -> dict[str, Any]:
    """``weight`` (d w): the last tap looks at the present, as in torch's and causal_conv1d's."""
    if weight.dim() != 2 or not 1 <= weight.shape[1] <= MOST_TAPS:
        raise ArgumentError(
            op="causal_conv1d",
            argument="weight",
            value=f"of shape {tuple(weight.shape)}",
            limit=f"its axes are (d w), with 1 to {MOST_TAPS} taps",
            remedy="Give a Conv1d's as weight.squeeze(1); for more taps use fft_conv.",
        )
    return {"x": x, **taps_of(weight), "bias": bias, "seq_idx": seq_idx, "silu": silu}


def from_states(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    *,
    silu: bool = False,
    conv: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """causal_conv1d of one piece of a longer sequence: (y, final states).

    initial_states, final states (b d w-1): inputs before the first step (zeros where None), inputs up to the last one. Initial states
    belong to the first sequence of ``seq_idx``, final ones to its last, with zeros before its start. Differentiable, both results.
    ``conv``  what computes it, if not causal_conv1d
    """
    compute = conv or causal_conv1d
    past, l = weight.shape[1] - 1, x.shape[-1]
    y = compute(x, weight, bias, seq_idx, silu=silu)
    start = x.new_zeros(*x.shape[:2], past) if initial_states is None else initial_states.to(x.dtype)
    ids = None if seq_idx is None else torch.cat([seq_idx[:, :1].expand(-1, past), seq_idx], dim=1)
    if initial_states is not None and past and l:
        reached = min(past, l)  # steps that look at what was before
        seen = torch.cat([start, x[..., :reached]], dim=-1)
        again = compute(seen, weight, bias, None if ids is None else ids[:, : past + reached], silu=silu)
        y[..., :reached] = again[..., past:]
    last = torch.cat([start[..., min(l, past) :], x[..., max(l - past, 0) :]], dim=-1)
    if ids is not None:
        last = last * (ids[:, l:] == ids[:, -1:]).unsqueeze(1)
    return y, last


@functools.cache
def _update_graph(width: int, length: int, biased: bool, silu: bool) -> Graph:
    """One step of the convolution with its state in place: no time, one input for each tap and for each step the state remembers.

        y = σ(bias + w0 x + w1 c[s-1] + ...)          c[0] ... c[s-1]  becomes  c[1] ... c[s-1] x
    """
    b = Builder(("b", "d"), {}, "")
    real, lane = Type(("b", "d"), "real"), Type(("d",), "real")
    x = b.input("x", real)
    taps = [b.input(f"w{lag}", lane) for lag in range(width)]
    seen = [*(b.input(f"c{k}", real) for k in range(length)), x]  # oldest first
    inputs = [x, *taps, *seen[:-1]]
    y = b.pointwise("mul", taps[0], x)
    for lag in range(1, width):
        y = b.pointwise("add", y, b.pointwise("mul", taps[lag], seen[-1 - lag]))
    if biased:
        inputs.append(b.input("bias", lane))
        y = b.pointwise("add", y, inputs[-1])
    y = b.pointwise("silu", y) if silu else y
    kept = [Output(f"next{k}", seen[k + 1], ("b", "d"), f"c{k}") for k in range(length)]
    outputs = (Output("y", y, ("b", "d"), "x"), *kept)
    return Graph("causal_conv1d_update", tuple(inputs), outputs, "", ("b", "d"), {}, (), {o.name: o.like for o in kept})


_updates = Recall()


def _apart(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """What the kernel takes, by name: the state's steps and the taps one by one."""
    apart = {"x": x, **{f"c{k}": step for k, step in enumerate(state.unbind(-1))}, **taps_of(weight)}
    return apart if bias is None else {**apart, "bias": bias}


def advanced(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, nearer: tuple[Tensor, ...] = ()
) -> Tensor | None:
    """``advance`` for tensors like those of an earlier one, at the cost of little more than a launch; None where there was none."""
    given = (x, state, weight, bias, *nearer)
    again = _updates.find(given, silu)
    return None if again is None else again(given)


@torch.no_grad()
def advance(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False, nearer: tuple[Tensor, ...] = ()
) -> Tensor:
    """One step: x (b d) or (b d 1), weight (d w), bias (d) -> y as x; ``state`` (b d s), the last s >= w-1 inputs, moves on in place.

    In one kernel, for up to 16 taps and as long a state. On a GPU it brings ``nearer``, tensors that kernels after it read, to the
    second-level cache: a step has little to read itself. Not differentiable; torch sees an ordinary function of tensors, not an op.
    Raises ArgumentError on sizes that disagree.
    """
    given = (x, state, weight, bias, *nearer)
    graph = _update_graph(weight.shape[1], state.shape[2], bias is not None, silu)
    tensors = _apart(x.view(x.shape[:2]), state, weight, bias)
    route = causal_conv1d._registered.dispatch.route(graph, tensors)
    fit = route.nearer(nearer)
    mode, names = Mode(brings=len(fit)) if fit else None, brought_names(len(fit))
    into = {o: tensors[i] for o, i in graph.inplace.items()}
    y = route.run(tensors, into, mode, dict(zip(names, fit.values(), strict=True)))["y"]
    # Where each of them starts in what is given.
    owners = {"x": 0, "c": 1, "w": 2, "b": 3}
    places = {n: (i, t.data_ptr() - given[i].data_ptr()) for n, t in tensors.items() for i in (owners[n[0]],)}  # type: ignore[union-attr]
    places |= {name: (4 + i, 0) for name, i in zip(names, fit, strict=True)}
    direct = route.direct(places, many=False, mode=mode)
    if direct is None:  # a kernel that takes tensors, and not addresses
        direct = _on_parts(route.direct({n: (i, 0) for i, n in enumerate(tensors)}, many=False))
    if direct is not None:
        shape, launch = x.shape, direct
        _updates.keep(launch if x.dim() == 2 else lambda values: launch(values).view(shape), given, silu)
    return y.view(x.shape)


def _on_parts(direct: Again | None) -> Again | None:
    """A launch on tensors one by one as one on what they are parts of."""
    if direct is None:
        return None
    launch = direct
    return lambda values: launch(tuple(_apart(*values[:4]).values()))


@causal_conv1d.example
def _example(make: Make) -> dict[str, Any]:
    taps = {f"w{lag}": make.normal("d", scale=0.5, parameter=True) for lag in range(4)}
    return {"x": make.normal("b d l"), **taps, "bias": make.normal("d", parameter=True), "silu": True}


causal_conv1d.cases = [
    {"b": 1, "d": 1536, "l": 2048},
    {"b": 8, "d": 4096, "l": 2048},
]
