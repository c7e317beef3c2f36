"""The text of a graph: what it looks like, that it is read back exactly, and what is said where it cannot be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from scanc.errors import ParseError
from scanc.ir import Builder, Graph, Node, Output, Type
from scanc.parser import parse_graph
from scanc.passes.adjoint import adjoint
from scanc.printer import print_graph
from scanc.reference import evaluate
from scanc.verify import verify
from tests.graphs import graphs, random_graph, random_inputs

SELECTIVE_SCAN = """\
graph selective_scan(time=l, state=n, groups={g: d}, order=b d l n g) {
  u: bfloat16[b d l] = input
  delta: bfloat16[b d l] = input
  A: float32[d n] = input
  B: bfloat16[b g n l] = input
  C: bfloat16[b g n l] = input
  initial_state: float32[b d n] = input
  dt: real[b d l] = softplus(delta)
  %0: real[b d l n] = mul(dt, A)
  a: real[b d l n] = exp(%0)
  %1: real[b d l] = mul(dt, u)
  b: real[b d l n] = mul(%1, B)
  h: real[b d l n] = scan(a, b, initial_state) {axis=l}
  %2: real[b d l n] = mul(C, h)
  y: real[b d l] = sum(%2)
  %3: real[b d n] = final(h)
  return y[b d l] = y like u, last_state[b d n] = %3
}
"""
ORDER = ("b", "d", "l", "n", "g")


def selective_scan() -> Graph:
    b = Builder(ORDER, {"g": "d"}, "l")
    u, delta = (b.input(name, Type(("b", "d", "l"), "bfloat16")) for name in ("u", "delta"))
    A, state = b.input("A", Type(("d", "n"), "float32")), b.input("initial_state", Type(("b", "d", "n"), "float32"))
    B, C = (b.input(name, Type(("b", "g", "n", "l"), "bfloat16")) for name in ("B", "C"))
    dt = replace(b.pointwise("softplus", delta), name="dt")
    a = replace(b.pointwise("exp", b.pointwise("mul", dt, A)), name="a")
    x = replace(b.pointwise("mul", b.pointwise("mul", dt, u), B), name="b")
    h = replace(b.scan(a, x, state, axis="l"), name="h")
    y = replace(b.sum(b.pointwise("mul", C, h), ("n",)), name="y")
    outputs = (Output("y", y, ("b", "d", "l"), "u"), Output("last_state", b.final(h), ("b", "d", "n")))
    return Graph("selective_scan", (u, delta, A, B, C, state), outputs, "l", ORDER, {"g": "d"}, ("n",))


def one(node: Node, *inputs: Node, order: tuple[str, ...] = ("b", "l")) -> Graph:
    return Graph("f", inputs, (Output("y", node, node.axes),), "l", order)


def test_a_graph_prints_as_one_node_a_line() -> None:
    assert print_graph(selective_scan()) == SELECTIVE_SCAN


def test_the_text_gives_the_graph_back() -> None:
    graph = parse_graph(SELECTIVE_SCAN)
    verify(graph, "trace")
    assert (graph.name, graph.time, graph.state, graph.order, dict(graph.groups)) == ("selective_scan", "l", ("n",), ORDER, {"g": "d"})
    assert [n.name for n in graph.inputs] == ["u", "delta", "A", "B", "C", "initial_state"]
    assert graph.input("B").type == Type(("b", "g", "n", "l"), "bfloat16")
    h = next(n for n in graph.nodes() if n.name == "h")
    assert dict(h.attrs) == {"axis": "l", "reverse": False, "shifted": False}
    assert graph.output("y").like == "u" and graph.output("last_state").like == ""
    assert print_graph(graph) == SELECTIVE_SCAN


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graphs())
def test_every_text_reads_back_to_itself(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert print_graph(again) == text
    verify(again, "trace")


@pytest.mark.parametrize("seed", range(12))
def test_what_is_read_back_computes_the_same(seed: int) -> None:
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed)
    out, ref = evaluate(parse_graph(print_graph(graph)), inputs), evaluate(graph, inputs)
    assert out.keys() == ref.keys()
    assert all(torch.equal(out[k], ref[k]) for k in ref)


def test_backward_graphs_read_back() -> None:
    text = print_graph(adjoint(selective_scan(), ["u", "A", "B", "initial_state"]))
    assert "shifted=true" in text and "reverse=true" in text
    assert print_graph(parse_graph(text)) == text


# -- the small print ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "kind", "text"), [
    (1, "real", "1.0"), (1, "int", "1"), (-0.0, "real", "-0.0"), (1e-300, "real", "1e-300"), (-2.5e17, "real", "-2.5e+17"),
    (math.inf, "real", "inf"), (-math.inf, "real", "-inf"), (math.nan, "real", "nan"), (True, "bool", "true"), (False, "bool", "false"),
    (1 + 2j, "complex", "(1+2j)"), (-1e-5j, "complex", "(-0-1e-05j)"), (2j, "complex", "(2j)"),
    (complex(1, math.inf), "complex", "(1+infj)"), (complex(0, math.nan), "complex", "(nanj)"),
])
def test_constants_show_their_kind_and_keep_every_bit(value: complex, kind: str, text: str) -> None:
    b = Builder(("b", "l"), {}, "l")
    x = b.input("zj", Type(("b", "l"), "complex"))
    graph = one(b.pointwise("where", b.const(True), b.const(value, kind), b.pointwise("conj", x)), x)
    printed = print_graph(graph)
    assert f"where(true, {text}, %0)" in printed
    node = parse_graph(printed).output("y").node.args[1]
    assert node.type == Type((), kind)
    assert repr(complex(node.attrs["value"])) == repr(complex(value))


def test_a_constant_with_a_name_or_a_dtype_has_its_own_line() -> None:
    b = Builder(("b", "l"), {}, "l")
    x = b.input("x", Type(("b", "l"), "real"))
    eps = replace(b.const(1e-6), name="eps")
    text = print_graph(one(b.pointwise("mul", b.pointwise("add", x, eps), b.const(2, "float32")), x))
    assert "eps: real[] = const {value=1e-06}" in text and "%1: float32[] = const {value=2.0}" in text
    assert print_graph(parse_graph(text)) == text


def test_names_are_made_unique_and_inputs_keep_theirs() -> None:
    b = Builder(("b", "l"), {}, "l")
    x = b.input("x", Type(("b", "l"), "real"))
    names = ("x", "y", "y", "y_1", "2 parts", "nan")
    node = x
    for name in names:
        node = replace(b.pointwise("neg", node), name=name)
    text = print_graph(one(node, x))
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:8]] == ["x", "x_1", "y", "y_1", "y_1_1", "_2_parts", "nan_1"]
    assert print_graph(parse_graph(text)) == text


def test_unused_inputs_defaults_and_odd_names_survive() -> None:
    b = Builder(("l", "b", "d", "inf"), {}, "l")
    state, unused = b.input("state", Type(("d", "b"), "float32")), b.input("unused", Type(("l", "b"), "int64"))
    h = b.scan(state, b.shift(b.broadcast(state, ("l",)), "l", -2, 0.5), axis="l", shifted=True)
    k = b.shift(b.index("inf"), "inf", 1)
    outputs = (Output("out", b.final(h), ("d", "b"), "state"), Output("k", k, ("inf",)))
    graph = Graph("<lambda>", (unused, state), outputs, "l", ("l", "b", "d", "inf"), inplace={"out": "state"})
    text = print_graph(graph)
    assert text.startswith('graph "<lambda>"(time=l, order=l b d inf, inplace={out: state}) {\n')
    assert "{axis=l, shifted=true}" in text and "{axis=l, by=-2, fill=0.5}" in text and '{axis="inf", by=1}' in text
    again = parse_graph(text)
    assert print_graph(again) == text
    assert dict(again.inplace) == {"out": "state"} and [n.name for n in again.inputs] == ["unused", "state"]
    assert again.output("k").node.attrs["fill"] == 0 and type(again.output("k").node.attrs["fill"]) is int


@pytest.mark.parametrize(("line", "reason"), [
    ("y: real[b l] = exp(x, x)", "exp takes 1 values, not 2"),
    ("y: int[b l] = exp(x)", r"exp gives real\[b l\], but int\[b l\] is written"),
    ("y: real[l] = exp(x)", r"exp gives real\[b l\], but real\[l\] is written"),
    ("y: real[b l] = exp(w)", "'w' is not defined above"),
    ("y: real[b l] = exq(x)", "unknown op 'exq'"),
    ("y: real[b q] = exp(x)", r"axis 'q' is not in the graph's order \(b l\)"),
    ("y: half[b l] = exp(x)", "unknown dtype 'half'"),
    ("x: real[b l] = exp(x)", "'x' is defined twice"),
    ("nan: real[b l] = exp(x)", "a value cannot be called 'nan'"),
    ("y: real[b l] = exp(x) x", "'x' is too much on this line"),
    ("y: real[b l] = exp(x", r"expected '\)', found the end of the line"),
    ("y: real[b l] = exp(x; 2)", "unexpected character ';'"),
    ("y real[b l] = exp(x)", "expected ':', found 'real'"),
    ("y: real[b l] =", "the line ends too early"),
    ("y: real[b l] = sum(x)", "sum does nothing here"),
    ("y: real[b l] = scan(x, x)", "scan needs the attribute 'axis'"),
    ("y: real[b l] = scan(x, x) {axes=l}", "scan has no attribute 'axes'"),
    ("y: real[b l] = scan(x, x, x) {axis=l}", "the initial state has the time axis 'l'"),
    ("y: real[b l] = prior(x)", "prior reads the carry of a scan"),
    ("y: bool[b l] = lt(x, (1j))", "lt has no meaning for complex values"),
    ("y: real[b l] = add(x, \"two\")", "expected a value, found '\"two\"'"),
])
def test_mistakes_are_named_with_their_line(line: str, reason: str) -> None:
    text = f"graph f(time=l, order=b l) {{\n  x: real[b l] = input\n\n  {line}\n  return y[b l] = x\n}}\n"
    with pytest.raises(ParseError, match=f"^line 4: .*{reason}"):
        parse_graph(text)


@pytest.mark.parametrize(("text", "reason"), [
    ("", "line 1: the text ends before the graph does"),
    ("grph f(order=l) {", "line 1: expected 'graph', found 'grph'"),
    ("graph f(time=l) {", "line 1: the order of axes is missing"),
    ("graph f(order=l, order=l) {", "line 1: 'order' is given twice"),
    ("graph f(order=l, tile=4) {", "line 1: 'tile' is none of time, state, groups, order, inplace"),
    ("graph f(order=l) {\n  x: real[l] = input\n", "line 3: the text ends before the graph does"),
    ("graph f(order=l) {\n  x: real[l] = input\n  return y[l] = x like\n}", "line 3: the line ends too early"),
    ("graph f(order=l) {\n  x: real[l] = input\n  return y[l] = x\n}\nmore", "line 5: text after the end of the graph"),
])
def test_a_broken_frame_is_named_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(ParseError, match=reason):
        parse_graph(text)
