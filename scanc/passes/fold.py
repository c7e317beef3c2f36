"""Constants computed now, and algebra that holds for every value, NaN and infinity included.

    mul(mul(x, 2), 3)  ->  mul(x, 6)          add(x, 0), mul(x, 1), div(x, 1)  ->  x
    add(x, neg(y))     ->  sub(x, y)          neg(neg(x))                      ->  x
    neg(sub(x, y))     ->  sub(y, x)          real(complex(x, y))              ->  x

Never ``x * 0 -> 0`` nor ``x - x -> 0``: they would hide a NaN. The sign of a zero may change.
"""

from __future__ import annotations

import cmath
import math
import operator
from collections.abc import Callable
from typing import Any

from scanc.ir import ABSTRACT, Builder, Graph, Node
from scanc.passes.rules import apply, constant, over

FLOATS = ("real", "complex")


def fold_constants(graph: Graph) -> Graph:
    """``graph`` with constants folded and identities removed."""
    return apply(graph, _fold)


def _fold(b: Builder, node: Node) -> Node | None:
    value = _value(node) if node.args and all(a.op == "const" for a in node.args) else None
    if value is not None:
        return b.const(value, node.kind)
    rule = RULES.get(node.op)
    new = rule(b, *node.args) if rule else None
    if node.op == "cast" and node.attrs["kind"] in ABSTRACT:
        new = node.args[0]
    return None if new is None else over(b, new, node)


# ---------------------------------------------------------------------------------------------------- evaluation


def _widest(pick: Callable[[float, float], float]) -> Callable[[float, float], float]:
    def either(x: float, y: float) -> float:
        return math.nan if math.isnan(x) or math.isnan(y) else pick(x, y)

    return either


_ANY: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "neg": operator.neg,
    "reciprocal": lambda x: 1.0 / x, "abs": abs, "eq": operator.eq, "ne": operator.ne,
    "real": lambda x: complex(x).real, "imag": lambda x: complex(x).imag, "conj": lambda x: x.conjugate(),
    "complex": lambda x, y: complex(x, y),
}
_REAL: dict[str, Callable[..., Any]] = {
    "maximum": _widest(max), "minimum": _widest(min),
    "exp2": math.exp2, "expm1": math.expm1, "log2": math.log2, "log1p": math.log1p, "sqrt": math.sqrt,
    "rsqrt": lambda x: 1.0 / math.sqrt(x), "sign": lambda x: (x > 0) - (x < 0) if x == x else x,
    "tanh": math.tanh, "sin": math.sin, "cos": math.cos, "erf": math.erf,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "and": lambda x, y: bool(x) and bool(y), "or": lambda x, y: bool(x) or bool(y), "not": lambda x: not x,
}
_COMPLEX: dict[str, Callable[..., Any]] = {"exp": cmath.exp}
_KINDS: dict[str, Callable[[Any], Any]] = {"bool": bool, "int": int, "real": float, "complex": complex}


def _value(node: Node) -> Any:
    """The value of an op on constants; None where Python has none (log of 0), which is left to the backends' rules."""
    if node.op == "cast":
        return _KINDS[node.attrs["kind"]](constant(node.args[0])) if node.attrs["kind"] in ABSTRACT else None
    tables = _ANY | (_COMPLEX if any(a.kind == "complex" for a in node.args) else _REAL)
    if node.op not in tables:
        return None
    try:
        return _KINDS[node.kind](tables[node.op](*(_KINDS[a.kind](constant(a)) for a in node.args)))
    except (ArithmeticError, ValueError):
        return None


# ---------------------------------------------------------------------------------------------------- identities
# Each takes the arguments and gives the simpler value, or None. ``over`` refuses it where the kind would change.


def _is(node: Node, value: float) -> bool:
    return node.op == "const" and constant(node) == value


def _scaled(node: Node) -> tuple[Node, Any] | None:
    """x and c of mul(x, c)."""
    return (node.args[0], constant(node.args[1])) if node.op == "mul" and node.args[1].op == "const" else None


def _finite(value: Any) -> bool:
    return math.isfinite(abs(value))


def _add(b: Builder, x: Node, y: Node) -> Node | None:
    if x.op == "const":
        return b.pointwise("add", y, x)
    if _is(y, 0):
        return x
    if y.op == "neg":
        return b.pointwise("sub", x, y.args[0])
    return b.pointwise("sub", y, x.args[0]) if x.op == "neg" else None


def _sub(b: Builder, x: Node, y: Node) -> Node | None:
    if _is(y, 0):
        return x
    if _is(x, 0):
        return b.pointwise("neg", y)
    return b.pointwise("add", x, y.args[0]) if y.op == "neg" else None


def _mul(b: Builder, x: Node, y: Node) -> Node | None:
    if x.op == "const":
        return b.pointwise("mul", y, x)
    if x.op == "neg" and y.op == "neg":
        return b.pointwise("mul", x.args[0], y.args[0])
    if y.op != "const" or y.kind not in FLOATS:
        return None
    if _is(y, 1):
        return x
    if _is(y, -1) and y.kind == "real":
        return b.pointwise("neg", x)
    c = constant(y)
    if x.op == "neg":
        return b.pointwise("mul", x.args[0], b.const(-c, y.kind))
    inner = _scaled(x)
    if inner is None or not _finite(inner[1] * c):
        return None
    return b.pointwise("mul", inner[0], b.const(inner[1] * c, "complex" if isinstance(inner[1] * c, complex) else "real"))


def _div(b: Builder, x: Node, y: Node) -> Node | None:
    c = constant(y)
    if c is not None and y.kind in FLOATS and c != 0 and _finite(c) and _finite(1.0 / c):
        return b.pointwise("mul", x, b.const(1.0 / c, y.kind))
    if _is(x, 1) and y.kind in FLOATS:
        return b.pointwise("reciprocal", y)
    if x.op == "neg":
        return b.pointwise("neg", b.pointwise("div", x.args[0], y))
    inner = _scaled(x)
    return None if inner is None else b.pointwise("mul", b.pointwise("div", inner[0], y), x.args[1])


def _neg(b: Builder, x: Node) -> Node | None:
    if x.op == "neg":
        return x.args[0]
    if x.op == "sub":
        return b.pointwise("sub", x.args[1], x.args[0])
    inner = _scaled(x)
    return None if inner is None else b.pointwise("mul", inner[0], b.const(-inner[1], x.args[1].kind))


def _where(b: Builder, condition: Node, x: Node, y: Node) -> Node | None:
    if condition.op == "const":
        return x if constant(condition) else y
    if x is y:
        return x
    return b.pointwise("where", condition.args[0], y, x) if condition.op == "not" else None


def _and(b: Builder, x: Node, y: Node) -> Node | None:
    for value, other in ((x, y), (y, x)):
        if value.op == "const":
            return other if constant(value) else b.const(False)
    return x if x is y else None


def _or(b: Builder, x: Node, y: Node) -> Node | None:
    for value, other in ((x, y), (y, x)):
        if value.op == "const":
            return b.const(True) if constant(value) else other
    return x if x is y else None


def _not(b: Builder, x: Node) -> Node | None:
    return x.args[0] if x.op == "not" else None


def _same(b: Builder, x: Node, y: Node) -> Node | None:
    return x if x is y else None


def _real(b: Builder, x: Node) -> Node | None:
    if x.op == "complex":
        return x.args[0]
    if x.op == "conj":
        return b.pointwise("real", x.args[0])
    return x if x.kind != "complex" else None


def _imag(b: Builder, x: Node) -> Node | None:
    if x.op == "complex":
        return x.args[1]
    if x.op == "conj":
        return b.pointwise("neg", b.pointwise("imag", x.args[0]))
    return b.const(0.0) if x.kind == "real" else None


def _conj(b: Builder, x: Node) -> Node | None:
    if x.op == "conj":
        return x.args[0]
    return None if x.kind == "complex" else x


def _abs(b: Builder, x: Node) -> Node | None:
    return b.pointwise("abs", x.args[0]) if x.op in ("neg", "abs") else None


RULES: dict[str, Callable[..., Node | None]] = {
    "add": _add, "sub": _sub, "mul": _mul, "div": _div, "neg": _neg, "where": _where, "and": _and, "or": _or, "not": _not,
    "maximum": _same, "minimum": _same, "real": _real, "imag": _imag, "conj": _conj, "abs": _abs,
}
