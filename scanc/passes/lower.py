"""Compound functions written in the primitives that every backend has.

    sigmoid(x)  ->  reciprocal(1 + exp2(x * -log2 e))
    silu(x)     ->  x * sigmoid(x)
    softplus(x) ->  maximum(x, 0) + log1p(exp2(abs(x) * -log2 e))
    exp(x)      ->  exp2(x * log2 e)                 real x; a complex exp stays, backends make it of exp2, sin and cos
    log(x)      ->  log2(x) * ln 2
    square(x)   ->  x * x
    relu(x)     ->  maximum(x, 0)

softplus in this form neither overflows nor loses the small tail. ``maximum`` and ``minimum`` must propagate NaN in every
backend (torch's maximum does, C's fmax and PTX's max.f32 without .NaN do not): relu, softplus and clamps rely on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scanc.ir import Builder, Graph, Node
from scanc.passes.rules import apply

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


def lower_compounds(graph: Graph) -> Graph:
    """``graph`` without the ops in ``LOWERINGS``."""
    return apply(graph, _lower)


def _lower(b: Builder, node: Node) -> Node | None:
    lowering = LOWERINGS.get(node.op)
    return lowering(b, node.args[0]) if lowering else None


def exponential(b: Builder, x: Node) -> Node:
    """e^x: by exp2 where x is real, a complex exp otherwise."""
    if x.kind == "complex":
        return b.pointwise("exp", x)
    return b.pointwise("exp2", b.pointwise("mul", x, b.const(LOG2_E)))


def _exp(b: Builder, x: Node) -> Node | None:
    return None if x.kind == "complex" else exponential(b, x)


def _exp2(b: Builder, x: Node) -> Node | None:
    return b.pointwise("exp", b.pointwise("mul", x, b.const(LN_2))) if x.kind == "complex" else None


def _expm1(b: Builder, z: Node) -> Node | None:
    """Complex e^z - 1 without cancellation near 0: with z = x + iy its real part is expm1(x) cos y - 2 sin²(y/2)."""
    if z.kind != "complex":
        return None
    x, y = b.pointwise("real", z), b.pointwise("imag", z)
    less = b.pointwise("expm1", x)
    half = b.pointwise("sin", b.pointwise("mul", y, b.const(0.5)))
    versine = b.pointwise("mul", b.pointwise("mul", half, half), b.const(2.0))
    real = b.pointwise("sub", b.pointwise("mul", less, b.pointwise("cos", y)), versine)
    return b.pointwise("complex", real, b.pointwise("mul", exponential(b, x), b.pointwise("sin", y)))


def _log(b: Builder, x: Node) -> Node | None:
    return None if x.kind == "complex" else b.pointwise("mul", b.pointwise("log2", x), b.const(LN_2))


def _sigmoid(b: Builder, x: Node) -> Node:
    decay = exponential(b, b.pointwise("neg", x))
    return b.pointwise("reciprocal", b.pointwise("add", decay, b.const(1.0)))


def _silu(b: Builder, x: Node) -> Node:
    return b.pointwise("mul", x, _sigmoid(b, x))


def _softplus(b: Builder, x: Node) -> Node | None:
    if x.kind == "complex":
        return None
    tail = exponential(b, b.pointwise("neg", b.pointwise("abs", x)))
    return b.pointwise("add", _positive(b, x), b.pointwise("log1p", tail))


def _relu(b: Builder, x: Node) -> Node | None:
    if x.kind == "bool":
        return x
    return None if x.kind == "complex" else _positive(b, x)


def _positive(b: Builder, x: Node) -> Node:
    return b.pointwise("maximum", x, b.const(0, "int") if x.kind == "int" else b.const(0.0))


def _square(b: Builder, x: Node) -> Node:
    return b.pointwise("mul", x, x)


LOWERINGS: dict[str, Callable[[Builder, Node], Node | None]] = {
    "exp": _exp, "exp2": _exp2, "expm1": _expm1, "log": _log, "sigmoid": _sigmoid, "silu": _silu,
    "softplus": _softplus, "relu": _relu, "square": _square,
}
