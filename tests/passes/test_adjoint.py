"""The adjoint against torch.autograd through the oracle, against finite differences, and twice over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.ir import POINTWISE, STRUCTURAL, Builder, Graph, Node, Output, Type
from scanc.passes.adjoint import RULES, adjoint
from scanc.reference import evaluate
from scanc.verify import verify
from tests.graphs import SIZES, graphs, random_graph, random_inputs

NO_GRADIENT = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"}
SEVERAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def relative(out: Tensor, ref: Tensor) -> float:
    """‖out − ref‖ / ‖ref‖; NaN counts as infinitely wrong.

    A reference that cancels to nothing is rounding of terms of order 1, so ‖ref‖ counts as 0.01 at least.
    """
    assert out.shape == ref.shape and out.dtype == ref.dtype
    error = float((out - ref).norm() / max(float(ref.norm()), 0.01))
    return error if error == error else float("inf")


def cotangents_of(outputs: Mapping[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(seed)
    return {f"d_{name}": torch.randn(x.shape, generator=make, dtype=x.dtype) for name, x in outputs.items()}


def by_autograd(graph: Graph, inputs: Mapping[str, Tensor], cotangents: Mapping[str, Tensor], wrt: list[str]) -> dict[str, Tensor]:
    """The gradients torch.autograd finds through ``evaluate``; zeros where nothing depends on the input."""
    leaves = {name: inputs[name].clone().requires_grad_(name in wrt) for name in (str(n.name) for n in graph.inputs)}
    out = evaluate(graph, leaves)
    roots = {name: x for name, x in out.items() if x.requires_grad and f"d_{name}" in cotangents}
    if not roots:
        return {f"d_{name}": torch.zeros_like(inputs[name]) for name in wrt}
    found = torch.autograd.grad(list(roots.values()), [leaves[n] for n in wrt], [cotangents[f"d_{n}"] for n in roots], allow_unused=True)
    return {f"d_{n}": torch.zeros_like(inputs[n]) if x is None else x for n, x in zip(wrt, found, strict=True)}


def differentiable(graph: Graph) -> list[str]:
    return [str(n.name) for n in graph.inputs if n.kind in ("real", "complex")]


def assert_adjoint(graph: Graph, inputs: Mapping[str, Tensor], tolerance: float = 1e-10) -> Graph:
    """adjoint(graph) is right about every input; returns it."""
    wrt = differentiable(graph)
    backward = adjoint(graph, wrt)
    verify(backward, "adjoint")
    out = evaluate(graph, inputs)
    cotangents = cotangents_of({o.name: out[o.name] for o in graph.outputs if o.node.kind in ("real", "complex")})
    found = evaluate(backward, {**inputs, **cotangents})
    for name, reference in by_autograd(graph, inputs, cotangents, wrt).items():
        error = relative(found[name], reference)
        assert error < tolerance, f"{name} is wrong by {error:.1e}"
    return backward


# -- every op -----------------------------------------------------------------------------------------------------------------------

X = Type(("b", "l"), "real")
Z = Type(("b", "l"), "complex")
N = Type(("n",), "real")


def build(make: Callable[..., Node], types: Mapping[str, Type], groups: Mapping[str, str] | None = None) -> Graph:
    """The graph of one expression over the given inputs."""
    order = tuple(dict.fromkeys(a for t in types.values() for a in t.axes))
    b = Builder(order, groups or {}, "l")
    inputs = {name: b.input(name, t) for name, t in types.items()}
    node = make(b, *inputs.values())
    return Graph("op", tuple(inputs.values()), (Output("y", node, node.axes),), "l", order, groups or {})


def pointwise(op: str, *types: Type, **attrs: Any) -> Graph:
    return build(lambda b, *x: b.pointwise(op, *x, **attrs), dict(zip("pqr", types)))


def _cases() -> dict[str, Graph]:
    """One graph or more per op that has a derivative, real and complex."""
    real_only = ("maximum", "minimum", "relu", "erf")
    cases = {}
    for op, (arity, _) in POINTWISE.items():
        if op in NO_GRADIENT or op in ("where", "complex", "cast"):
            continue
        cases[op] = pointwise(op, *(X, N)[:arity])
        if op not in real_only:
            cases[f"{op}-complex"] = pointwise(op, *(Z, N)[:arity])
    cases["mul-complex-right"] = pointwise("mul", N, Z)
    cases["div-complex-right"] = pointwise("div", N, Z)
    cases["complex"] = pointwise("complex", X, N)
    cases["cast"] = pointwise("cast", X, kind="complex")
    cases["cast-complex"] = pointwise("cast", Z, kind="real")
    cases["where"] = build(lambda b, p, q: b.pointwise("where", b.pointwise("lt", p, b.const(1.0)), p, q), {"p": X, "q": N})
    cases["where-complex"] = build(lambda b, p, q: b.pointwise("where", b.pointwise("lt", q, b.const(1.0)), p, q), {"p": Z, "q": N})
    cases["broadcast"] = build(lambda b, p, q: b.broadcast(p, ("n",)), {"p": X, "q": N})
    cases["sum"] = build(lambda b, p: b.sum(p, ("b",)), {"p": X})
    cases["shift"] = build(lambda b, p: b.shift(p, "l", 2, 0.5), {"p": X})
    cases["shift-ahead"] = build(lambda b, p: b.shift(p, "l", -1), {"p": Z})
    d, g = Type(("l", "d"), "real"), Type(("g",), "real")
    cases["grouped-mul"] = build(lambda b, p, q: b.pointwise("mul", p, q), {"p": d, "q": g}, {"g": "d"})
    cases["grouped-sum"] = build(lambda b, p, q: b.pointwise("square", b.sum_to(p, ("l", "g"))), {"p": d, "q": g}, {"g": "d"})
    k = Type(("n", "w"), "real")
    for reverse in (False, True):
        way = "-reverse" if reverse else ""
        cases[f"conv{way}"] = build(lambda b, p, q, reverse=reverse: b.conv(p, q, "l", "w", reverse=reverse), {"p": Z, "q": k})
        cases[f"conv-long{way}"] = build(lambda b, p, q, reverse=reverse: b.conv(p, q, "l", "l", reverse=reverse), {"p": X, "q": Z})
        cases[f"conv_kernel_grad{way}"] = build(
            lambda b, p, q, r, reverse=reverse: b.conv_kernel_grad(p, q, "l", "w", reverse=reverse), {"p": X, "q": Z, "r": k})
        cases[f"conv_kernel_grad-long{way}"] = build(
            lambda b, p, q, reverse=reverse: b.conv_kernel_grad(p, q, "l", "l", reverse=reverse), {"p": X, "q": Z})
    h = Type(("b", "n"), "complex")
    reads: dict[str, Callable[[Builder, Node], Node]] = {
        "value": lambda b, s: s,
        "prior": lambda b, s: b.prior(s),
        "final": lambda b, s: b.final(s),
        # three readers of one recurrence, two of them of its prior: they share one adjoint scan
        "all": lambda b, s: b.pointwise("mul", b.pointwise("add", s, b.final(s)),
                                        b.pointwise("mul", b.prior(s), b.pointwise("sin", b.prior(s)))),
    }
    for shifted in (False, True):
        for reverse in (False, True):
            for read, take in reads.items():
                def make(b: Builder, p: Node, q: Node, r: Node, reverse: bool = reverse, shifted: bool = shifted,
                         take: Callable[[Builder, Node], Node] = take) -> Node:
                    return take(b, b.scan(p, q, r, axis="l", reverse=reverse, shifted=shifted))

                cases["-".join(["scan", read] + ["reverse"] * reverse + ["shifted"] * shifted)] = build(make, {"p": X, "q": Z, "r": h})
    cases["scan-no-initial"] = build(lambda b, p, q: b.scan(p, q, axis="l"), {"p": N, "q": X})
    return cases


CASES = _cases()


class _Compiled(torch.autograd.Function):
    """A graph as autograd sees a kernel: evaluated forwards, its adjoint backwards."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, *tensors: Tensor) -> Tensor:
        ctx.graph, ctx.tensors = graph, tensors
        return evaluate(graph, dict(zip((str(n.name) for n in graph.inputs), tensors)))["y"]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        names = [str(n.name) for n in ctx.graph.inputs]
        out = evaluate(adjoint(ctx.graph, names), {**dict(zip(names, ctx.tensors)), "d_y": grads[0]})
        return (None, *(out[f"d_{n}"] for n in names))


def positive(graph: Graph) -> dict[str, Tensor]:
    """Inputs in (0.5, 1.5): inside every op's domain, away from kinks and ties."""
    make = torch.Generator().manual_seed(3)
    sizes = {**SIZES, "l": 4}
    out = {}
    for node in graph.inputs:
        shape = [sizes[a] for a in node.axes]
        x = torch.rand(shape, generator=make, dtype=torch.float64) + 0.5
        imaginary = torch.rand(shape, generator=make, dtype=torch.float64) - 0.3
        out[str(node.name)] = torch.complex(x, imaginary) if node.kind == "complex" else x
    return out


@pytest.mark.parametrize("name", CASES)
def test_op_against_finite_differences(name: str) -> None:
    graph = CASES[name]
    tensors = [x.requires_grad_() for x in positive(graph).values()]
    assert torch.autograd.gradcheck(lambda *x: _Compiled.apply(graph, *x), tensors, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_op_against_autograd_twice(name: str) -> None:
    graph = CASES[name]
    inputs = positive(graph)
    backward = assert_adjoint(graph, inputs)
    assert_adjoint(backward, {**inputs, **cotangents_of(evaluate(graph, inputs), 5)})


@pytest.mark.parametrize("op", ["abs", "sign", "relu", "maximum", "minimum", "softplus", "where", "tanh"])
def test_op_of_negative_values(op: str) -> None:
    """Ops that take another branch below zero."""
    graph = CASES[op]
    assert_adjoint(graph, random_inputs(graph, 7, {**SIZES, "l": 8}))


def test_every_op_has_a_rule_or_no_gradient() -> None:
    recurrence = {"scan", "prior", "final"}
    assert set(RULES) | NO_GRADIENT | recurrence == set(POINTWISE) | set(STRUCTURAL)
    assert {name.split("-")[0] for name in CASES} >= (set(RULES) | {"scan"})


# -- any graph -------------------------------------------------------------------------------------------------------------------------


@SEVERAL
@given(graphs(), st.integers(0, 3))
def test_any_graph(graph: Graph, seed: int) -> None:
    verify(graph, "trace")
    assert_adjoint(graph, random_inputs(graph, seed))


@settings(SEVERAL, max_examples=25)
@given(graphs(max_steps=5), st.integers(0, 3))
def test_any_graph_twice(graph: Graph, seed: int) -> None:
    """Second derivatives: the adjoint of the adjoint against autograd of autograd's own backward."""
    inputs = random_inputs(graph, seed)
    wrt = differentiable(graph)
    backward = adjoint(graph, wrt)
    out = evaluate(graph, inputs)
    first = cotangents_of(out)
    given_ = {str(n.name): {**inputs, **first}[str(n.name)] for n in backward.inputs}
    second = adjoint(backward, differentiable(backward))
    verify(second, "adjoint")
    pull = cotangents_of(evaluate(backward, given_), 9)
    found = evaluate(second, {**given_, **pull})

    leaves = {n: x.clone().requires_grad_(x.is_floating_point() or x.is_complex()) for n, x in {**inputs, **first}.items()}
    values = {n: x for n, x in evaluate(graph, {n: leaves[n] for n in inputs}).items() if x.requires_grad}
    if not values:
        return
    gradients = torch.autograd.grad(list(values.values()), [leaves[n] for n in wrt], [leaves[f"d_{n}"] for n in values],
                                    create_graph=True, allow_unused=True)
    roots = {f"d_d_{n}": x for n, x in zip(wrt, gradients) if x is not None and x.requires_grad}
    names = differentiable(backward)
    twice: Any = [None] * len(names)
    if roots:
        twice = torch.autograd.grad(list(roots.values()), [leaves[n] for n in names], [pull[n] for n in roots], allow_unused=True)
    for name, reference in zip(names, twice, strict=True):
        error = relative(found[f"d_{name}"], torch.zeros_like(leaves[name]) if reference is None else reference.detach())
        assert error < 1e-9, f"second derivative by {name} is wrong by {error:.1e}"


@pytest.mark.parametrize("length", [0, 1])
def test_short_sequences(length: int) -> None:
    """No step, or one: the initial state's gradient passes straight through a scan of length 0."""
    for seed in range(8):
        graph = random_graph(seed, steps=3, convolutions=length > 0)
        assert_adjoint(graph, random_inputs(graph, seed, {**SIZES, "l": length}))


# -- what the graph looks like -------------------------------------------------------------------------------------------------------------


def selective() -> Graph:
    """y = sum(C * scan(exp(delta * A), delta * B * u, h0), n) and its last state, with grouped B and C."""
    types = {"u": Type(("b", "d", "l"), "real"), "delta": Type(("b", "d", "l"), "real"), "A": Type(("d", "n"), "real"),
             "B": Type(("b", "g", "n", "l"), "real"), "C": Type(("b", "g", "n", "l"), "real"), "h0": Type(("b", "d", "n"), "real")}
    order = ("b", "d", "l", "n", "g")
    b = Builder(order, {"g": "d"}, "l")
    x = {name: b.input(name, t) for name, t in types.items()}
    a = b.pointwise("exp", b.pointwise("mul", x["delta"], x["A"]))
    h = b.scan(a, b.pointwise("mul", b.pointwise("mul", x["delta"], x["B"]), x["u"]), x["h0"], axis="l")
    object.__setattr__(h, "name", "h")
    y = b.sum(b.pointwise("mul", x["C"], h), ("n",))
    outputs = (Output("y", y, ("b", "d", "l"), "u"), Output("last_state", b.final(h), ("b", "d", "n")))
    return Graph("selective", tuple(x.values()), outputs, "l", order, {"g": "d"}, ("n",))


def test_one_adjoint_scan_and_shared_forward_nodes() -> None:
    graph = selective()
    backward = assert_adjoint(graph, random_inputs(graph))
    assert backward.name == "selective_backward"
    assert (backward.time, backward.order, backward.groups, backward.state) == (graph.time, graph.order, graph.groups, graph.state)
    scans = [n for n in backward.nodes() if n.op == "scan"]
    assert len(scans) == 2
    forward = next(n for n in scans if not n.attrs["reverse"])
    assert forward is next(n for n in graph.nodes() if n.op == "scan"), "the forward scan is the very node of the forward graph"
    other = next(n for n in scans if n.attrs["reverse"])
    assert other.attrs["shifted"] and other.args[0] is forward.args[0] and other.name == "d_h"
    assert other.args[2] is backward.input("d_last_state")


def test_names_axes_and_dtypes_of_results() -> None:
    graph = selective()
    backward = adjoint(graph, ("B", "u"))
    assert [str(n.name) for n in backward.inputs] == ["u", "delta", "A", "B", "C", "d_y", "d_last_state"]
    assert [(o.name, o.axes, o.like, o.node.name) for o in backward.outputs] == [("d_B", ("b", "g", "n", "l"), "B", "d_B"),
                                                                                 ("d_u", ("b", "d", "l"), "u", "d_u")]


def test_only_the_cotangents_asked_for() -> None:
    graph = selective()
    inputs = random_inputs(graph)
    backward = adjoint(graph, ("A", "C"), ["y"])
    assert not backward.has_input("d_last_state")
    cotangents = {"d_y": cotangents_of(evaluate(graph, inputs))["d_y"]}
    reference = by_autograd(graph, inputs, cotangents, ["A", "C"])
    for name, x in evaluate(backward, {**inputs, **cotangents}).items():
        assert relative(x, reference[name]) < 1e-12


def test_only_what_is_needed_is_computed() -> None:
    """u enters through b alone: its gradient needs the adjoint scan, not the forward one."""
    backward = adjoint(selective(), ("u",))
    assert sum(n.op == "scan" for n in backward.nodes()) == 1
    assert not any(n.op == "prior" for n in backward.nodes())


def test_an_input_nothing_depends_on_gets_zeros() -> None:
    graph = build(lambda b, p, q: b.pointwise("square", p), {"p": X, "q": Z})
    backward = adjoint(graph, ("p", "q"))
    inputs = random_inputs(graph)
    out = evaluate(backward, {**inputs, "d_y": torch.ones(2, 5, dtype=torch.float64)})
    assert out["d_q"].dtype == torch.complex128 and out["d_q"].shape == (2, 5) and not out["d_q"].any()
    assert relative(out["d_p"], 2 * inputs["p"]) < 1e-15


def test_a_size_only_the_forward_knows_is_kept() -> None:
    """d_p = broadcast(d_y) needs l, which no cotangent has: p stays an input for its shape."""
    graph = build(lambda b, p: b.sum(p, ("l",)), {"p": X})
    backward = adjoint(graph, ("p",))
    assert [str(n.name) for n in backward.inputs] == ["p", "d_y"]
    out = evaluate(backward, {"p": torch.zeros(2, 5), "d_y": torch.tensor([1.0, 2.0])})["d_p"]
    assert relative(out, torch.tensor([[1.0] * 5, [2.0] * 5], dtype=torch.float64)) == 0


def test_masked_infinity_does_not_reach_the_gradient() -> None:
    """where in the adjoint selects; it does not multiply by 0."""
    def masked(b: Builder, p: Node, q: Node) -> Node:
        return b.pointwise("where", b.pointwise("gt", p, b.const(0.0)), b.pointwise("mul", p, q), b.const(0.0))

    graph = build(masked, {"p": X, "q": N})
    inputs = {"p": torch.tensor([[1.0, -1.0]]), "q": torch.tensor([2.0])}
    out = evaluate(adjoint(graph, ("p", "q")), {**inputs, "d_y": torch.tensor([[[1.0], [float("nan")]]])})
    assert torch.equal(out["d_p"], torch.tensor([[2.0, 0.0]], dtype=torch.float64))
    assert torch.equal(out["d_q"], torch.tensor([1.0], dtype=torch.float64))


@pytest.mark.parametrize(("wrt", "cotangents", "words"), [
    (("nope",), None, "argument 'nope' is not an input"),
    (("p",), ["nope"], "argument 'nope' is not an output"),
    (("m",), None, "only real and complex inputs have a gradient"),
    (("p",), ["flag"], "only real and complex outputs have a gradient"),
])
def test_bad_names(wrt: tuple[str, ...], cotangents: list[str] | None, words: str) -> None:
    graph = build(lambda b, p, m: b.pointwise("where", m, p, b.const(0.0)), {"p": X, "m": Type(("b",), "bool")})
    graph = Graph("op", graph.inputs, (*graph.outputs, Output("flag", graph.input("m"), ("b",))), "l", graph.order)
    with pytest.raises(ArgumentError, match=words):
        adjoint(graph, wrt, cotangents)


def test_a_name_that_is_taken() -> None:
    graph = build(lambda b, p, q: b.pointwise("mul", p, q), {"p": X, "d_y": X})
    with pytest.raises(ArgumentError, match="argument 'd_y' is an input's name"):
        adjoint(graph, ("p",))
