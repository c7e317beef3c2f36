"""What is said of a value's range from the graph alone holds for the values themselves, and so does what is built on it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanc.codegen.cuda_dialect import HEADER
from scanc.codegen.ranges import never_negative, never_positive, within_unit
from scanc.ir import Builder, Graph, Node, Output, Type
from scanc.op import REGISTRY
from scanc.problem import Problem
from scanc.reference import evaluate
from scanc.schedule import RecurrentSchedule
from tests.codegen.kernels import OWN, source_of

BUILD = Builder(("l",), {}, "l")
X = BUILD.input("x", Type(("l",), "real"))
W = BUILD.input("w", Type(("l",), "complex"))
SAMPLES = (-1e30, -90.0, -2.5, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0, 3.0, 90.0, 1e30)


def const(value: float) -> Node:
    return BUILD.const(value)


def do(op: str, *args: Node) -> Node:
    return BUILD.pointwise(op, *args)


@pytest.mark.parametrize(("node", "negative", "positive"), [
    (X, False, False),
    (const(2.0), True, False),
    (const(-2.0), False, True),
    (const(0.0), True, True),
    (const(float("nan")), False, False),
    (BUILD.const(1j), False, False),
    (do("abs", X), True, False),
    (do("abs", W), True, False),
    (do("square", X), True, False),
    (do("square", W), False, False),
    (do("exp2", X), True, False),
    (do("exp", W), False, False),
    (do("sqrt", X), True, False),
    (do("neg", do("abs", X)), False, True),
    (do("neg", X), False, False),
    (do("maximum", X, const(0.0)), True, False),
    (do("minimum", X, const(0.0)), False, False),
    (do("add", do("square", X), const(1.0)), True, False),
    (do("add", do("square", X), X), False, False),
    (do("mul", do("abs", X), const(-1.5)), False, True),
    (do("mul", const(-1.5), do("abs", X)), False, True),
    (do("mul", X, X), False, False),
])
def test_signs(node: Node, negative: bool, positive: bool) -> None:
    """Whether never negative, never positive; what is not known counts as no."""
    assert (never_negative(node), never_positive(node)) == (negative, positive)


def test_an_exponential_of_what_is_never_positive_is_within_one() -> None:
    softplus = do("exp2", do("mul", do("abs", X), const(-1.442695)))
    assert within_unit(softplus) and within_unit(do("exp", do("neg", do("square", X))))
    others = (do("exp", X), do("exp", do("abs", X)), do("abs", X), const(0.5), do("exp", do("neg", W)), do("expm1", do("neg", X)))
    for node in others:
        assert not within_unit(node)


LEAVES = st.sampled_from([X, const(-2.0), const(-0.5), const(0.0), const(1.0), const(3.0)])
TREES = st.recursive(LEAVES, lambda inner: st.one_of(
    st.builds(do, st.sampled_from(["abs", "neg", "square", "exp", "exp2", "sqrt"]), inner),
    st.builds(do, st.sampled_from(["add", "mul", "maximum", "minimum", "sub"]), inner, inner)), max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_what_is_said_holds(node: Node) -> None:
    """NaN, which the root of a negative number is, is on neither side."""
    full = BUILD.broadcast(node, ("l",))
    graph = Graph("ranges", (X,), (Output("y", full, ("l",)),), "l", ("l",))
    y = evaluate(graph, {"x": torch.tensor(SAMPLES, dtype=torch.float64)})["y"]
    assert not (never_negative(node) and bool((y < 0).any()))
    assert not (never_positive(node) and bool((y > 0).any()))
    assert not (within_unit(node) and bool(((y < 0) | (y > 1)).any()))


# -- what is built on it ---------------------------------------------------------------------------------------------------------------


def coefficients(name: str) -> list[np.float32]:
    """Of the polynomial in a function of cuda.h, the highest power's first."""
    body = HEADER.read_text().split(f"float {name}(float x) {{")[1].split("return")[0]
    first, *rest = re.findall(r"p = (?:p \* x )?([-+]?) ?([\d.]+(?:e-?\d+)?)f;", body)
    return [np.float32(float(sign + digits)) for sign, digits in (first, *rest)]


@pytest.mark.parametrize(("name", "low", "high", "fused", "limit"), [
    ("log1p_unit", 0.0, 1.0, True, 2e-7),
    ("log1p_unit", 0.0, 1.0, False, 2.5e-7),
    ("log1p_", -0.25, 0.25, True, 2e-7),
    ("log1p_", -0.25, 0.25, False, 2e-7),
])
def test_polynomials_of_log1p(name: str, low: float, high: float, fused: bool, limit: float) -> None:
    """In float32, a product and the sum after it rounded once, as a GPU does, or each by itself, as the emulator does."""
    terms = coefficients(name)
    assert len(terms) >= 8
    tiny = np.logspace(-37, -1, 5000)
    x = np.concatenate([np.linspace(low, high, 200_001), tiny, -tiny]).astype(np.float32)
    x = x[(x >= low) & (x < high) & (x != 0) if low < 0 else (x > low) & (x <= high)]
    p = np.full_like(x, terms[0])
    for c in terms[1:]:
        p = (p.astype(np.float64) * x + c).astype(np.float32) if fused else p * x + c
    error = np.abs((p * x).astype(np.float64) / np.log1p(x.astype(np.float64)) - 1.0)
    assert x.size > 100_000 and float(error.max()) <= limit, (x[error.argmax()], error.max())


def test_softplus_takes_the_polynomial_and_what_may_be_larger_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in OWN:
        monkeypatch.setitem(REGISTRY, op.name, op)
    schedule = RecurrentSchedule(lanes=4, tile=4, history=4)
    scan, _ = source_of(Problem.of("selective_scan", dict(b=1, d=2, l=3, n=2)), "cuda:sm_90:cuda", schedule)
    ahead, _ = source_of(Problem.of("ahead", dict(b=1, d=2, l=3)), "cuda:sm_90:cuda", schedule)   # log1p of a square
    assert "log1p_unit(" in scan.text and "log1p_(" not in scan.text
    assert "log1p_(" in ahead.text and "log1p_unit(" not in ahead.text
