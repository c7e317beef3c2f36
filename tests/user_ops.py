"""Ops as a user writes them, outside the package: one for every shape of recurrence, with inputs to run them on."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

import scanc.dsl as sc
from scanc.op import Op
from tests.checks import normal


@sc.op
def min_gru(
    f: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], initial_state: Float[Tensor, "b d"] | None = None
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d"]]:
    """minGRU (Feng et al. 2024): the gate f decides how much of the state x replaces."""
    gate = sc.sigmoid(f)
    h = sc.scan(1.0 - gate, gate * x, axis="l", initial=initial_state)
    return h, sc.last(h, "l")


@sc.op
def gated_attention(
    q: Float[Tensor, "b h l k"],
    k: Float[Tensor, "b h l k"],
    v: Float[Tensor, "b h l v"],
    decay: Float[Tensor, "b h l k"],
    initial_state: Float[Tensor, "b h k v"] | None = None,
) -> tuple[Float[Tensor, "b h l v"], Float[Tensor, "b h k v"]]:
    """Gated linear attention (Yang et al. 2024): a state of keys by values, every key with its own decay."""
    S = sc.scan(sc.exp(decay), k * v, axis="l", initial=initial_state)
    return sc.sum(q * S, "k"), sc.last(S, "l")


@sc.op
def diagonal(
    u: Float[Tensor, "b d l"],
    dt: Float[Tensor, "d"],
    A: Complex[Tensor, "d n"],
    C: Complex[Tensor, "d n"],
    initial_state: Complex[Tensor, "b d n"] | None = None,
) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d n"]]:
    """S4D (Gu et al. 2022): complex, and the same at every step."""
    a, b = sc.discretize(dt, A, 1.0, method="zoh")
    h = sc.scan(a, b * u, axis="l", initial=initial_state)
    return 2.0 * sc.real(sc.sum(C * h, "n")), sc.last(h, "l")


@sc.op
def exclusive(
    a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], initial_state: Float[Tensor, "b d"] | None = None
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d"]]:
    """Reads the state that a step finds, before it changes it."""
    h = sc.scan(sc.sigmoid(a), x, axis="l", initial=initial_state, exclusive=True)
    return h * x, sc.last(h, "l")


@sc.op
def stacked(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
    """One recurrence's result is the next one's input."""
    gate = sc.sigmoid(a)
    h = sc.scan(gate, x, axis="l")
    return sc.scan(gate, sc.tanh(h), axis="l")


@sc.op
def both_ways(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], w: Float[Tensor, "d"]) -> Float[Tensor, "b d l"]:
    """A bidirectional layer."""
    gate = sc.sigmoid(a)
    return sc.scan(gate, x, axis="l") + w * sc.scan(gate, x, axis="l", reverse=True)


@sc.op
def normed(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], w: Float[Tensor, "d"]) -> Float[Tensor, "b d l"]:
    """A norm over channels before the recurrence and one after it."""
    h = sc.scan(sc.sigmoid(a), sc.rms_norm(x, "d", w), axis="l")
    return sc.rms_norm(h, "d", w)


@sc.op
def normalised_attention(q: Float[Tensor, "b l n"], k: Float[Tensor, "b l n"], v: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
    """Linear attention with its normaliser: the second recurrence has no values' axis."""
    weight = sc.exp(k)
    above = sc.sum(q * sc.scan(1.0, weight * v, axis="l"), "n")
    below = sc.sum(q * sc.scan(1.0, weight, axis="l"), "n")
    return above / (below * below + 1.0)


@sc.op
def means(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"]) -> tuple[Float[Tensor, "b l"], Float[Tensor, "b d"], Float[Tensor, "b"]]:
    """Results without the lanes' axis, without time, and without both."""
    h = sc.scan(sc.sigmoid(a), x, axis="l")
    return sc.mean(h, "d"), sc.mean(h, "l"), sc.sum(h * h, "d l")


@sc.op
def looking_back(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], k: Float[Tensor, "d w"]) -> Float[Tensor, "b d l"]:
    """A short convolution, a look further back at the inputs, and one at the recurrence itself."""
    v = sc.silu(sc.conv(x, k, axis="l", tap="w")) - sc.shift(x * x, "l", 5)
    h = sc.scan(sc.sigmoid(a), v, axis="l")
    return h * sc.shift(h, "l")


@sc.op
def whole_state(a: Float[Tensor, "b d l"], B: Float[Tensor, "b n l"], x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d n l"]:
    """Returns the state at every step."""
    return sc.scan(sc.sigmoid(a), x * B, axis="l")


@sc.op
def every_function(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
    """Every pointwise function of the language, before the recurrence and after it."""
    p = 1.0 + x * x
    y = sc.log(p) + sc.log1p(x * x) + sc.sqrt(p) + sc.rsqrt(p) + sc.reciprocal(p) + sc.sin(x) * sc.cos(x) + sc.erf(x) + sc.relu(x)
    y = y + abs(x) + sc.expm1(-p) + sc.exp2(-p) + sc.tanh(x) + sc.maximum(x, 0.3) + sc.minimum(x, 0.1) + x**3 + sc.gelu(x)
    y = sc.where((x > 0.2) & ~(x >= 1.0) | (x <= -2.0), y, -y) * (1.0 + sc.index("l")) / sc.size("l")
    h = sc.scan(sc.sigmoid(a), y, axis="l")
    return sc.softplus(h) + sc.silu(h)


@sc.op
def awkward(
    u: Float[Tensor, "b d l"], u_b: Float[Tensor, "b d l"], size_l: Float[Tensor, "d"], float: Float[Tensor, "d"]
) -> Float[Tensor, "b d l"]:
    """Names that generated code has other uses for."""
    lanes = sc.sigmoid(u_b)
    u_re, u_im = u * size_l, u * float
    vf = sc.complex(u_re, u_im)
    h_carry = sc.scan(lanes, u_re * u_im, axis="l")
    h = sc.scan(lanes, sc.real(vf * vf) * h_carry, axis="l")
    exp2 = h * h_carry
    return exp2 + lanes


@sc.op
def rotating(
    theta: Float[Tensor, "d"], u: Float[Tensor, "b d l"], drive: Float[Tensor, "b l"]
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d l"]]:
    """Complex numbers made and taken apart inside."""
    turn = sc.complex(sc.cos(theta), sc.sin(theta))
    h = sc.scan(0.9 * turn, u + sc.complex(0.0, drive), axis="l")
    return sc.real(h), sc.imag(sc.conj(h) * turn)


@sc.op
def repeated(
    x: Float[Tensor, "b d l"], drive: Float[Tensor, "b l"]
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d l"], Float[Tensor, "b d"]]:
    """Results that are the same for every channel."""
    h = sc.scan(0.5, drive, axis="l")
    return h, sc.where(True, h, x), sc.last(h, "l")


B, D, L, N = 2, 19, 70, 3


def _n(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(*shape, seed=seed, dtype=dtype)


SEQUENCES = {"a": _n(B, D, L, seed=0), "x": _n(B, D, L, seed=1)}

INPUTS: dict[Op, dict[str, Any]] = {
    min_gru: {"f": _n(B, D, L, seed=0), "x": _n(B, D, L, seed=1), "initial_state": _n(B, D, seed=2)},
    gated_attention: {
        "q": _n(B, 2, L, N, seed=0),
        "k": _n(B, 2, L, N, seed=1),
        "v": _n(B, 2, L, D, seed=2),
        "decay": -_n(B, 2, L, N, seed=3).abs(),
        "initial_state": _n(B, 2, N, D, seed=4),
    },
    diagonal: {
        "u": _n(B, D, L, seed=0),
        "dt": _n(D, seed=1).abs() * 0.1 + 0.01,
        "A": torch.complex(-_n(D, N, seed=2).abs(), 3.0 * _n(D, N, seed=3)),
        "C": _n(D, N, seed=4, dtype=torch.complex64),
        "initial_state": _n(B, D, N, seed=5, dtype=torch.complex64),
    },
    exclusive: SEQUENCES | {"initial_state": _n(B, D, seed=2)},
    stacked: SEQUENCES,
    both_ways: SEQUENCES | {"w": _n(D, seed=2)},
    normed: SEQUENCES | {"w": _n(D, seed=2)},
    normalised_attention: {"q": _n(B, L, N, seed=0).abs(), "k": 0.3 * _n(B, L, N, seed=1), "v": _n(B, L, D, seed=2)},
    means: SEQUENCES,
    looking_back: SEQUENCES | {"k": _n(D, 4, seed=2)},
    whole_state: SEQUENCES | {"B": _n(B, N, L, seed=2)},
    every_function: SEQUENCES,
    awkward: {"u": _n(B, D, L, seed=0), "u_b": _n(B, D, L, seed=1), "size_l": _n(D, seed=2), "float": _n(D, seed=3)},
    repeated: {"x": _n(B, D, L, seed=0), "drive": _n(B, L, seed=1)},
    rotating: {"theta": _n(D, seed=0), "u": _n(B, D, L, seed=1), "drive": _n(B, L, seed=2)},
}
