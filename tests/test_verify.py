"""Each rule of the verifier: what passes at a stage, and what is said where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings

from scanc.errors import VerifyError
from scanc.ir import Builder, Graph, Node, Output, Type
from scanc.parser import parse_graph
from scanc.passes.adjoint import adjoint
from scanc.passes.canonicalize import canonicalize
from scanc.passes.specialize import specialize
from scanc.passes.step import step
from scanc.verify import STAGES, verify
from tests.graphs import graphs

SCAN = """\
graph f(time=l, state=n, groups={g: d}, order=b d l n g) {
  x: real[b d l] = input
  a: real[d n] = input
  B: real[b g n l] = input
  s: real[b d n] = input
  %0: real[b d l n] = mul(x, B)
  h: real[b d l n] = scan(a, %0, s) {axis=l}
  y: real[b d l] = sum(h)
  %1: real[b d n] = final(h)
  return y[b l d] = y like x, last[b d n] = %1
}
"""


def base() -> Graph:
    return parse_graph(SCAN)


def named(graph: Graph, name: str) -> Node:
    return next(n for n in graph.nodes() if n.name == name)


def plus(graph: Graph, node: Node) -> Graph:
    """``graph`` with one more result ``z``, made unchecked."""
    return replace(graph, outputs=(*graph.outputs, Output("z", node, node.axes)))


def raw(op: str, *args: Node, type: Type, **attrs: object) -> Node:
    return Node(op, args, type, MappingProxyType(attrs))


def test_a_good_graph_passes_every_stage_it_reaches() -> None:
    graph = base()
    verify(graph, "trace")
    backward = adjoint(graph, ["x", "a", "B", "s"])
    verify(backward, "adjoint")
    for g in (graph, backward):
        canonical = canonicalize(g)
        verify(canonical, "canonical")
        verify(specialize(canonical, {str(n.name): "bfloat16" for n in g.inputs}), "specialized")
    verify(step(graph), "step")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graphs())
def test_random_graphs_pass(graph: Graph) -> None:
    verify(graph, "trace")
    verify(canonicalize(graph), "canonical")


Break = Callable[[Graph, Builder], Graph]
BREAKS: list[tuple[str, Break]] = [
    (r"axes: the order \(b d d\) names an axis twice", lambda g, b: replace(g, order=("b", "d", "d"))),
    (r"axes: time axis 't' is not in the order", lambda g, b: replace(g, time="t")),
    (r"axes: state axis 'p' is not in the order", lambda g, b: replace(g, state=("p",))),
    (r"axes: 'l' is both time and state", lambda g, b: replace(g, state=("l",))),
    (r"axes: group 'g' divides 'h', which is not in the order", lambda g, b: replace(g, groups={"g": "h"})),
    (r"axes: group 'n' divides 'g', itself a group", lambda g, b: replace(g, groups={"g": "d", "n": "g"})),
    (r"inputs: two inputs are called 'x'", lambda g, b: replace(g, inputs=(*g.inputs, g.input("x")))),
    (r"inputs: 'x' = input\(\): real\[b d l\] is read but not listed", lambda g, b: replace(g, inputs=g.inputs[1:])),
    (r"inputs: 'y' = sum\(.*\): real\[b d l\] is listed as an input", lambda g, b: replace(g, inputs=(*g.inputs, named(g, "y")))),
    (r"outputs: the graph has no output", lambda g, b: replace(g, outputs=())),
    (r"outputs: two outputs are called 'y'", lambda g, b: replace(g, outputs=(g.outputs[0], *g.outputs))),
    (r"outputs: output 'z' has axes \(b l\), but its value .* has 'd'",
     lambda g, b: replace(g, outputs=(Output("z", named(g, "y"), ("b", "l")),))),
    (r"outputs: output 'z' has axes \(b l l d\), not distinct",
     lambda g, b: replace(g, outputs=(Output("z", named(g, "y"), ("b", "l", "l", "d")),))),
    (r"outputs: output 'y' has the dtype of 'u', which is no input", lambda g, b: replace(g, outputs=(replace(g.outputs[0], like="u"),))),
    (r"outputs: inplace says 'last' overwrites 'state', but one of them does not exist",
     lambda g, b: replace(g, inplace={"last": "state"})),
    (r"outputs: output 'y' cannot overwrite input 'x': their axes differ", lambda g, b: replace(g, inplace={"y": "x"})),
    (r"ops: frobnicate\(real\[d n\]\): real\[d n\] is no known op",
     lambda g, b: plus(g, raw("frobnicate", g.input("a"), type=g.input("a").type))),
    (r"ops: exp\(\): real\[\] has 0 arguments, not 1", lambda g, b: plus(g, raw("exp", type=Type((), "real")))),
    (r"ops: exp\(.*\): real\[d n\] has attributes \['axis'\], not \[\]",
     lambda g, b: plus(g, raw("exp", g.input("a"), type=g.input("a").type, axis="d"))),
    (r"ops: scan\(.* has attributes \['axis'\], not \['axis', 'reverse', 'shifted'\]",
     lambda g, b: plus(g, raw("scan", g.input("a"), g.input("x"), type=named(g, "h").type, axis="l"))),
    (r"types: exp\(real\[d n\]\): complex\[d n\] should have type real\[d n\]",
     lambda g, b: plus(g, raw("exp", g.input("a"), type=Type(("d", "n"), "complex")))),
    (r"types: add\(real\[b d l\], real\[d n\]\): real\[b d l\] should have type real\[b d l n\]",
     lambda g, b: plus(g, raw("add", g.input("x"), g.input("a"), type=g.input("x").type))),
    (r"types: .*maximum has no meaning for complex values",
     lambda g, b: plus(g, raw("maximum", b.const(1j), b.const(0.0), type=Type((), "complex")))),
    (r"types: shift\(real\[b d l\]\): real\[b d l\] does nothing",
     lambda g, b: plus(g, raw("shift", g.input("x"), type=g.input("x").type, axis="l", by=0, fill=0))),
    (r"types: .* has a group and the axis it divides",
     lambda g, b: plus(g, raw("broadcast", g.input("a"), type=Type(("d", "n", "g"), "real")))),
    (r"types: index\(\): int\[d\] should have type int\[l\]", lambda g, b: plus(g, raw("index", type=Type(("d",), "int"), axis="l"))),
    (r"types: .*prior reads the carry of a scan", lambda g, b: plus(g, raw("prior", g.input("x"), type=g.input("x").type))),
    (r"types: .*the initial state has the time axis 'l'",
     lambda g, b: plus(g, replace(named(g, "h"), args=(g.input("a"), g.input("x"), g.input("x"))))),
    (r"scans: scan\(.* runs along 'n', but the graph's time is 'l'", lambda g, b: plus(g, b.scan(g.input("a"), g.input("a"), axis="n"))),
    (r"types: conv\(.*conv's tap axis 'n' is the kernel's alone",
     lambda g, b: plus(g, raw("conv", named(g, "h"), g.input("a"), type=named(g, "h").type, axis="l", tap="n", reverse=False))),
    (r"types: conv\(.*and 'l' the value's",
     lambda g, b: plus(g, raw("conv", g.input("x"), g.input("B"), type=g.input("x").type, axis="l", tap="n", reverse=False))),
    (r"convolutions: conv_kernel_grad\(.* is taken of a value that has the tap axis",
     lambda g, b: plus(g, b.conv_kernel_grad(g.input("x"), named(g, "h"), "l", "n"))),
]


@pytest.mark.parametrize(("reason", "broken"), BREAKS, ids=range(len(BREAKS)))
@pytest.mark.parametrize("stage", ["trace", "canonical"])
def test_a_broken_rule_is_named_with_its_node(reason: str, broken: Break, stage: str) -> None:
    graph = base()
    with pytest.raises(VerifyError, match=f"graph 'f' is not valid after stage '{stage}': {reason}"):
        verify(broken(graph, Builder.of(graph)), stage)


def text(*lines: str) -> Graph:
    body = "\n".join(("x: real[b l] = input", "z: complex[b l] = input", *lines))
    return parse_graph(f"graph f(time=l, order=b l n) {{\n{body}\nreturn y[b l] = y\n}}\n")


@pytest.mark.parametrize(("stage", "reason", "lines"), [
    ("canonical", r"primitives: 'y' = sigmoid\(real\[b l\]\)", ["y: real[b l] = sigmoid(x)"]),
    ("canonical", r"primitives: 'y' = exp\(real\[b l\]\)", ["y: real[b l] = exp(x)"]),
    ("canonical", r"primitives: 'y' = log\(complex\[b l\]\)", ["y: complex[b l] = log(z)"]),
    ("canonical", r"primitives: 'y' = expm1\(complex\[b l\]\)", ["y: complex[b l] = expm1(z)"]),
    ("canonical", r"constants: 'y' = mul\(real\[\], real\[b l\]\)", ["y: real[b l] = mul(2.0, x)"]),
    ("canonical", r"broadcasts: sub\(real\[b l n\], real\[b l\]\).* reads a broadcast",
     ["%0: real[b l n] = broadcast(x)", "%1: real[b l n] = sub(%0, x)", "y: real[b l] = sum(%1)"]),
    ("canonical", r"shared: .*abs\(real\[b l\]\): real\[b l\] is computed twice",
     ["%0: real[b l] = abs(x)", "%1: real[b l] = abs(x)", "%2: real[b l] = tanh(%1)", "y: real[b l] = add(%0, %2)"]),
    ("adjoint", "gradients: output 'y' is not named d_<input>", ["y: real[b l] = abs(x)"]),
    ("specialized", r"concrete: 'x' = input\(\): real\[b l\] has no concrete dtype", ["y: real[b l] = abs(x)"]),
    ("step", r"unrolled: 'y' = scan\(.* is left in a single step", ["y: real[b l] = scan(x, x) {axis=l}"]),
    ("step", r"unrolled: 'y' = shift\(.* is left in a single step", ["y: real[b l] = shift(x) {axis=l, by=1}"]),
])
def test_a_stage_has_rules_of_its_own(stage: str, reason: str, lines: list[str]) -> None:
    graph = text(*lines)
    verify(graph, "trace")
    with pytest.raises(VerifyError, match=reason):
        verify(graph, stage)


def test_complex_exp_is_canonical() -> None:
    verify(text("y: complex[b l] = exp(z)"), "canonical")


def test_the_users_line_is_in_the_error() -> None:
    graph = base()
    wrong = raw("exp", graph.input("a"), type=Type(("d",), "real"))
    with pytest.raises(VerifyError, match=r"'decay' = exp\(real\[d n\]\): real\[d\] at f\.py:7 should have type real\[d n\]"):
        verify(plus(graph, replace(wrong, name="decay", where="f.py:7")), "trace")


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(VerifyError, match=f"there is no such stage; stages are {', '.join(STAGES)}"):
        verify(base(), "loops")
