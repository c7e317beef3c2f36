"""Canonical form: what each rewrite does, that it stays where it is, and that it computes the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from scanc.errors import VerifyError
from scanc.ir import Graph
from scanc.parser import parse_graph
from scanc.passes import canonicalize as module
from scanc.passes.adjoint import adjoint
from scanc.passes.canonicalize import canonicalize, simplify
from scanc.passes.rules import apply
from scanc.passes.shifts import push_shifts
from scanc.passes.specialize import specialize
from scanc.printer import print_graph
from scanc.reference import evaluate
from scanc.verify import verify
from tests.graphs import graphs, random_graph, random_inputs

SEVERAL = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
HEAD = "graph f(time=l, state=n, groups={g: d}, order=b d l n g) {"
INPUTS = {
    "x": "real[b d l]", "y": "real[b d l]", "z": "complex[b d l]", "w": "real[d]", "A": "real[d n]", "B": "real[b g n l]",
    "C": "real[b g n l]", "s": "real[b d n]", "k": "int[b l]", "m": "bool[b l]", "e": "real[g]", "c": "complex[d n]",
}


def relative(out: Tensor, ref: Tensor) -> float:
    """‖out − ref‖ / ‖ref‖; of a zero reference, ‖out‖; NaN counts as infinitely wrong."""
    assert out.shape == ref.shape and out.dtype == ref.dtype
    if not out.is_floating_point() and not out.is_complex():
        return float(not torch.equal(out, ref))
    error = float((out - ref).norm() / (ref.norm() if ref.norm() > 0 else 1.0))
    return error if error == error else math.inf


def assert_same(graph: Graph, other: Graph, seed: int = 0, within: float = 1e-12) -> None:
    inputs = random_inputs(graph, seed)
    ref, out = evaluate(graph, inputs), evaluate(other, inputs)
    assert out.keys() == ref.keys()
    for name in ref:
        assert relative(out[name], ref[name]) <= within, f"{name} of\n{print_graph(graph)}became\n{print_graph(other)}"


def graph_of(body: str) -> Graph:
    """A graph from its lines, ``;`` between them; the last line's value is the output, the inputs are INPUTS."""
    lines = [line.strip() for line in body.split(";")]
    inputs = [f"{name}: {type_} = input" for name, type_ in INPUTS.items()]
    name, type_ = lines[-1].split(": ")[0], lines[-1].split(": ")[1].split(" =")[0]
    result = f"return r{type_[type_.index('['):]} = {name}"
    return parse_graph("\n".join((HEAD, *inputs, *lines, result, "}")))


def body_of(graph: Graph) -> list[str]:
    return [line.strip() for line in print_graph(graph).splitlines()[1:-2] if not line.endswith("= input")]


CASES: dict[str, tuple[str, list[str]]] = {
    # lowering
    "sigmoid": ("r: real[b d l] = sigmoid(x)", [
        "%0: real[b d l] = mul(x, -1.4426950408889634)", "%1: real[b d l] = exp2(%0)", "%2: real[b d l] = add(%1, 1.0)",
        "r: real[b d l] = reciprocal(%2)"]),
    "silu": ("r: real[b d l] = silu(x)", [
        "%0: real[b d l] = mul(x, -1.4426950408889634)", "%1: real[b d l] = exp2(%0)", "%2: real[b d l] = add(%1, 1.0)",
        "%3: real[b d l] = reciprocal(%2)", "r: real[b d l] = mul(x, %3)"]),
    "softplus": ("r: real[b d l] = softplus(x)", [
        "%0: real[b d l] = maximum(x, 0.0)", "%1: real[b d l] = abs(x)", "%2: real[b d l] = mul(%1, -1.4426950408889634)",
        "%3: real[b d l] = exp2(%2)", "%4: real[b d l] = log1p(%3)", "r: real[b d l] = add(%0, %4)"]),
    "relu": ("r: real[b d l] = relu(x)", ["r: real[b d l] = maximum(x, 0.0)"]),
    "relu of int": ("r: int[b l] = relu(k)", ["r: int[b l] = maximum(k, 0)"]),
    "square": ("r: real[b d l] = square(x)", ["r: real[b d l] = mul(x, x)"]),
    "log": ("%0: real[b d l] = abs(x); r: real[b d l] = log(%0)", [
        "%0: real[b d l] = abs(x)", "%1: real[b d l] = log2(%0)", "r: real[b d l] = mul(%1, 0.6931471805599453)"]),
    "complex exp stays": ("r: complex[b d l] = exp(z)", ["r: complex[b d l] = exp(z)"]),
    "complex exp2": ("r: complex[b d l] = exp2(z)", ["%0: complex[b d l] = mul(z, 0.6931471805599453)", "r: complex[b d l] = exp(%0)"]),
    # log2(e) goes to the factor without time
    "exp of dt A": ("%0: real[b d l n] = mul(x, A); a: real[b d l n] = exp(%0)", [
        "%0: real[d n] = mul(A, 1.4426950408889634)", "%1: real[b d l n] = mul(x, %0)", "a: real[b d l n] = exp2(%1)"]),
    "exp of -dt A": ("%0: real[d n] = neg(A); %1: real[b d l n] = mul(x, %0); a: real[b d l n] = exp(%1)", [
        "%0: real[d n] = mul(A, -1.4426950408889634)", "%1: real[b d l n] = mul(x, %0)", "a: real[b d l n] = exp2(%1)"]),
    "exp of a product read twice": ("%0: real[b d l n] = mul(x, A); %1: real[b d l n] = exp(%0); r: real[b d l n] = sub(%0, %1)", [
        "%0: real[b d l n] = mul(x, A)", "%1: real[b d l n] = mul(%0, 1.4426950408889634)", "%2: real[b d l n] = exp2(%1)",
        "r: real[b d l n] = sub(%0, %2)"]),
    # products
    "lanes before state": ("%0: real[b d l n] = mul(x, B); r: real[b d l n] = mul(%0, y)", [
        "%0: real[b d l] = mul(x, y)", "r: real[b d l n] = mul(%0, B)"]),
    "no time before time": ("%0: real[b d l] = mul(x, w); r: real[b d l n] = mul(%0, A)", [
        "%0: real[d n] = mul(w, A)", "r: real[b d l n] = mul(x, %0)"]),
    "constants meet": ("%0: real[b d l] = mul(x, 2.0); %1: real[b d l] = mul(3.0, %0); r: real[b d l] = mul(%1, w)", [
        "%0: real[d] = mul(w, 6.0)", "r: real[b d l] = mul(x, %0)"]),
    "the user's order where nothing is gained": ("%0: real[b d l] = mul(y, x); r: real[b d l] = mul(%0, w)", [
        "%0: real[b d l] = mul(y, x)", "r: real[b d l] = mul(%0, w)"]),
    "real before complex": ("%0: complex[b d l] = mul(x, z); r: complex[b d l] = mul(%0, y)", [
        "%0: real[b d l] = mul(x, y)", "r: complex[b d l] = mul(%0, z)"]),
    # identities
    "x * 1": ("r: real[b d l] = mul(x, 1.0)", []),
    "x + 0": ("r: real[b d l] = add(0.0, x)", []),
    "x * 0 stays": ("r: real[b d l] = mul(x, 0.0)", ["r: real[b d l] = mul(x, 0.0)"]),
    "x - x stays": ("r: real[b d l] = sub(x, x)", ["r: real[b d l] = sub(x, x)"]),
    "k * 1.0 becomes real": ("r: real[b l] = mul(k, 1.0)", ["r: real[b l] = mul(k, 1.0)"]),
    "neg neg": ("%0: real[b d l] = neg(x); %1: real[b d l] = neg(%0); r: real[b d l] = tanh(%1)", ["r: real[b d l] = tanh(x)"]),
    "x - -y": ("%0: real[b d l] = neg(y); r: real[b d l] = sub(x, %0)", ["r: real[b d l] = add(x, y)"]),
    "-x + y": ("%0: real[b d l] = neg(x); r: real[b d l] = add(%0, y)", ["r: real[b d l] = sub(y, x)"]),
    "-(x - y)": ("%0: real[b d l] = sub(x, y); r: real[b d l] = neg(%0)", ["r: real[b d l] = sub(y, x)"]),
    "-(2x)": ("%0: real[b d l] = mul(x, 2.0); r: real[b d l] = neg(%0)", ["r: real[b d l] = mul(x, -2.0)"]),
    "x / 4": ("r: real[b d l] = div(x, 4.0)", ["r: real[b d l] = mul(x, 0.25)"]),
    "1 / x": ("r: real[b d l] = div(1.0, x)", ["r: real[b d l] = reciprocal(x)"]),
    "(2x) / y * 3": ("%0: real[b d l] = mul(x, 2.0); %1: real[b d l] = div(%0, y); r: real[b d l] = mul(%1, 3.0)", [
        "%0: real[b d l] = div(x, y)", "r: real[b d l] = mul(%0, 6.0)"]),
    "constants computed": ("%0: real[] = exp2(3.0); %1: real[] = log1p(0.0); %2: real[] = add(%0, %1); r: real[b d l] = mul(x, %2)", [
        "r: real[b d l] = mul(x, 8.0)"]),
    "log of 0 is left": ("%0: real[] = log2(0.0); r: real[b d l] = add(x, %0)", ["%0: real[] = log2(0.0)", "r: real[b d l] = add(x, %0)"]),
    "where true": ("r: real[b d l] = where(true, x, y)", []),
    "where true, narrower": ("r: real[b d l] = where(true, w, y)", ["r: real[b d l] = broadcast(w)"]),
    "where not": ("%0: bool[b l] = not(m); r: real[b d l] = where(%0, x, y)", ["r: real[b d l] = where(m, y, x)"]),
    "and true": ("%0: bool[b l] = and(true, m); r: real[b d l] = where(%0, x, y)", ["r: real[b d l] = where(m, x, y)"]),
    "or true": ("%0: bool[b l] = or(m, true); r: real[b d l] = where(%0, x, y)", []),
    "real of complex": ("%0: complex[b d l] = complex(x, w); r: real[b d l] = real(%0)", []),
    "imag of complex": ("%0: complex[b d l] = complex(x, w); r: real[b d l] = imag(%0)", ["r: real[b d l] = broadcast(w)"]),
    "conj stays": ("r: complex[b d l] = conj(z)", ["r: complex[b d l] = conj(z)"]),
    "cast to its own kind": ("%0: real[b d l] = cast(x) {kind=real}; r: real[b d l] = tanh(%0)", ["r: real[b d l] = tanh(x)"]),
    # broadcasts
    "broadcast dropped": ("%0: real[b d l n] = broadcast(x); r: real[b d l n] = sub(%0, s)", ["r: real[b d l n] = sub(x, s)"]),
    "broadcast lifted": ("%0: real[b d l n] = broadcast(x); h: real[b d l n] = exp2(%0)", [
        "h: real[b d l] = exp2(x)", "%0: real[b d l n] = broadcast(h)"]),
    "broadcast twice": ("%0: real[d l] = broadcast(w); r: real[b d l] = broadcast(%0)", ["r: real[b d l] = broadcast(w)"]),
    "broadcast under a scan": ("%0: real[b d l] = broadcast(w); h: real[b d l] = scan(%0, x) {axis=l}", [
        "h: real[b d l] = scan(w, x) {axis=l}"]),
    "broadcast a scan needs": ("%0: real[d l n] = broadcast(w); h: real[d l n] = scan(w, %0) {axis=l}", [
        "%0: real[d l n] = broadcast(w)", "h: real[d l n] = scan(w, %0) {axis=l}"]),
    # sums
    "sum of sum": ("%0: real[b d l n] = mul(x, B); %1: real[b d l] = sum(%0); r: real[b l] = sum(%1)", [
        "%0: real[b d l n] = mul(x, B)", "r: real[b l] = sum(%0)"]),
    "sum of broadcast": ("%0: real[b d l n] = broadcast(x); r: real[d l] = sum(%0)", [
        "%0: real[d l] = sum(x)", "%1: int[] = size {axis=n}", "r: real[d l] = mul(%0, %1)"]),
    "sum of a repeated group": ("%0: real[d] = broadcast(e); r: real[g] = sum(%0)", [
        "%0: int[] = size {axis=d}", "%1: int[] = size {axis=g}", "%2: real[] = div(%0, %1)", "r: real[g] = mul(e, %2)"]),
    "factor out of a sum": ("%0: real[b d l n] = mul(x, B); %1: real[b d l n] = mul(%0, s); r: real[b d l] = sum(%1)", [
        "%0: real[b d l n] = mul(B, s)", "%1: real[b d l] = sum(%0)", "r: real[b d l] = mul(%1, x)"]),
    "neg out of a sum": ("%0: real[b d l] = neg(x); r: real[b l] = sum(%0)", ["%0: real[b l] = sum(x)", "r: real[b l] = neg(%0)"]),
    "group factor out of a sum into groups": ("%0: real[b d l] = mul(x, e); r: real[b l g] = sum(%0)", [
        "%0: real[b l g] = sum(x)", "r: real[b l g] = mul(%0, e)"]),
    "group factor under a sum over all": ("%0: real[b d l] = mul(x, e); r: real[b l] = sum(%0)", [
        "%0: real[b d l] = mul(x, e)", "r: real[b l] = sum(%0)"]),
    "what a shifted scan carries on": (
        "g: real[b d l] = scan(x, y) {axis=l, reverse=true, shifted=true}; %0: real[b d l] = mul(g, y); r: real[b d l] = mul(%0, x)", [
            "g: real[b d l] = scan(x, y) {axis=l, reverse=true, shifted=true}", "%0: real[b d l] = mul(g, x)",
            "r: real[b d l] = mul(%0, y)"]),
    "what another scan does not": (
        "g: real[b d l] = scan(x, y) {axis=l}; %0: real[b d l] = mul(g, y); r: real[b d l] = mul(%0, x)", [
            "g: real[b d l] = scan(x, y) {axis=l}", "%0: real[b d l] = mul(g, y)", "r: real[b d l] = mul(%0, x)"]),
    "real of sum": ("%0: complex[b d l n] = mul(x, c); %1: complex[b d l] = sum(%0); r: real[b d l] = real(%1)", [
        "%0: real[d n] = real(c)", "%1: real[d] = sum(%0)", "r: real[b d l] = mul(%1, x)"]),
    # sharing
    "sigmoid of silu and its derivative": ("%0: real[b d l] = silu(x); %1: real[b d l] = sigmoid(x); r: real[b d l] = sub(%0, %1)", [
        "%0: real[b d l] = mul(x, -1.4426950408889634)", "%1: real[b d l] = exp2(%0)", "%2: real[b d l] = add(%1, 1.0)",
        "%3: real[b d l] = reciprocal(%2)", "%4: real[b d l] = mul(x, %3)", "r: real[b d l] = sub(%4, %3)"]),
    "either order": ("%0: real[b d l] = add(x, y); %1: real[b d l] = add(y, x); r: real[b d l] = div(%0, %1)", [
        "%0: real[b d l] = add(x, y)", "r: real[b d l] = div(%0, %0)"]),
    "the name of either": ("%0: real[b d l] = tanh(x); gate: real[b d l] = tanh(x); r: real[b d l] = div(%0, gate)", [
        "gate: real[b d l] = tanh(x)", "r: real[b d l] = div(gate, gate)"]),
}


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    before, after = CASES[name]
    graph = graph_of(before)
    canonical = canonicalize(graph)
    assert body_of(canonical) == after
    verify(canonical, "canonical")
    if name != "log of 0 is left":  # infinity has no relative error
        assert_same(graph, canonical, seed=3, within=1e-14)


# -- any graph -----------------------------------------------------------------------------------------------------------------


@SEVERAL
@given(graphs())
def test_any_graph_computes_the_same_and_stays(graph: Graph) -> None:
    canonical = canonicalize(graph)
    verify(canonical, "canonical")
    assert print_graph(canonicalize(canonical)) == print_graph(canonical)
    assert_same(graph, canonical)
    assert [n.name for n in canonical.inputs] == [n.name for n in graph.inputs]


@SEVERAL
@given(graphs(max_steps=6, shifted=False))
def test_backward_graphs_compute_the_same_and_stay(graph: Graph) -> None:
    forward = simplify(graph)
    verify(forward, "trace")
    assert_same(graph, forward)
    wrt = [str(n.name) for n in graph.inputs if n.kind in ("real", "complex")][:3]
    plain, backward = adjoint(graph, wrt), canonicalize(adjoint(forward, wrt))
    verify(backward, "canonical")
    assert print_graph(canonicalize(backward)) == print_graph(backward)
    inputs = random_inputs(plain, 1)
    ref, out = evaluate(plain, inputs), evaluate(backward, inputs)
    for name in ref:
        assert relative(out[name], ref[name]) <= 1e-10, name


@pytest.mark.parametrize("seed", range(20))
def test_stored_dtypes_change_nothing(seed: int) -> None:
    graph = random_graph(seed)
    dtypes = {"real": "float32", "complex": "complex64", "int": "int64", "bool": "bool"}
    canonical = canonicalize(specialize(graph, {str(n.name): dtypes[n.kind] for n in graph.inputs}))
    verify(canonical, "specialized")
    assert_same(graph, canonical)


# -- numbers ---------------------------------------------------------------------------------------------------------------------


def run(graph: Graph, x: list[float]) -> list[float]:
    inputs = random_inputs(graph, sizes={"b": 1, "d": len(x), "l": 1, "n": 1, "g": 1})
    inputs["x"] = torch.tensor(x, dtype=torch.float64).reshape(1, -1, 1)
    return [float(v) for v in evaluate(graph, inputs)["r"].flatten()]


@pytest.mark.parametrize("body", [
    "r: real[b d l] = mul(x, 0.0)", "r: real[b d l] = sub(x, x)", "r: real[b d l] = relu(x)", "r: real[b d l] = softplus(x)",
    "r: real[b d l] = sigmoid(x)", "r: real[b d l] = maximum(x, x)", "%0: bool[b d l] = eq(x, x); r: real[b d l] = where(%0, 1.0, x)",
])
def test_nan_and_infinity_come_through(body: str) -> None:
    graph = graph_of(body)
    values = [math.nan, math.inf, -math.inf, 0.0, 800.0, -800.0]
    for out, ref in zip(run(canonicalize(graph), values), run(graph, values), strict=True):
        assert (math.isnan(out) and math.isnan(ref)) or out == pytest.approx(ref, rel=1e-12)


def test_softplus_keeps_its_tail() -> None:
    out = run(canonicalize(graph_of("r: real[b d l] = softplus(x)")), [-40.0, -1e-20, 50.0])
    assert out == pytest.approx([math.exp(-40.0), math.log(2.0), 50.0], rel=1e-13)


def test_complex_expm1_is_exact_near_zero() -> None:
    graph = graph_of("r: complex[b d l] = expm1(z)")
    z = torch.tensor([1e-12 + 3e-13j, -2e-9 + 1e-7j, 0.3 - 2.0j, -5.0 + 9.0j], dtype=torch.complex128).reshape(1, -1, 1)
    inputs = random_inputs(graph, sizes={"b": 1, "d": 4, "l": 1, "n": 1, "g": 1})
    out = evaluate(canonicalize(graph), inputs | {"z": z})["r"]
    small = z[:, :2] + z[:, :2] ** 2 / 2 + z[:, :2] ** 3 / 6
    exact = torch.cat([small, torch.exp(z[:, 2:]) - 1], 1)
    assert all(relative(out[:, i], exact[:, i]) < 1e-14 for i in range(4))


# -- whole ops ---------------------------------------------------------------------------------------------------------------------


def test_a_selective_scan_does_four_operations_per_state_and_step() -> None:
    """exp2, dt * A, (dt u) * B and C * h: nothing else of the canonical forward is over b d l n."""
    graph = graph_of("dt: real[b d l] = softplus(x); %0: real[d n] = exp(A); %1: real[d n] = neg(%0); %2: real[b d l n] = mul(dt, %1);"
                     "a: real[b d l n] = exp(%2); %3: real[b d l n] = mul(dt, B); b: real[b d l n] = mul(%3, y);"
                     "h: real[b d l n] = scan(a, b, s) {axis=l}; %4: real[b d l n] = mul(C, h); r: real[b d l] = sum(%4)")
    canonical = canonicalize(graph)
    assert sorted(n.op for n in canonical.nodes() if n.axes == ("b", "d", "l", "n")) == ["exp2", "mul", "mul", "mul", "scan"]
    assert_same(graph, canonical)


def test_the_backward_of_a_simplified_graph_sums_over_the_state_once_per_gradient() -> None:
    """d_x and d_y of (x B) y share the sum over n of d_h B; from the graph as written each has its own."""
    graph = graph_of("%0: real[b d l n] = mul(x, B); %1: real[b d l n] = mul(%0, y);"
                     "h: real[b d l n] = scan(A, %1) {axis=l}; r: real[b d l] = sum(h)")

    def sums(g: Graph) -> int:
        nodes = canonicalize(adjoint(g, ["x", "y", "A"])).nodes()
        return sum(n.op == "sum" and "n" in n.args[0].axes and "n" not in n.axes for n in nodes)

    assert sums(simplify(graph)) == 1 < sums(graph)


# -- the machinery ------------------------------------------------------------------------------------------------------------------


def test_a_rule_may_not_change_a_type() -> None:
    graph = graph_of("%0: real[b d l] = mul(x, w); r: real[b d l] = tanh(%0)")
    with pytest.raises(VerifyError, match="was replaced by .* which has another type"):
        apply(graph, lambda b, node: node.args[1] if node.op == "mul" else None)


def test_passes_that_do_not_settle_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def swing(graph: Graph) -> Graph:
        return apply(graph, lambda b, node: b.pointwise("sub", *reversed(node.args)) if node.op == "sub" else None)

    monkeypatch.setattr(module, "PASSES", (swing,))
    with pytest.raises(VerifyError, match="the passes had not settled after 50 rounds"):
        canonicalize(graph_of("r: real[b d l] = sub(x, y)"))


def test_shifts_may_be_pushed_first() -> None:
    for seed in range(30):
        graph = random_graph(seed, steps=12)
        prepared = canonicalize(push_shifts(graph))
        verify(prepared, "canonical")
        assert_same(graph, prepared, within=1e-11)
