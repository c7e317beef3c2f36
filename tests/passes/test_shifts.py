"""Shifts moved to the inputs: what becomes of each kind of value, that it computes the same, and what is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from scanc.ir import Graph, Node
from scanc.parser import parse_graph
from scanc.passes.canonicalize import canonicalize
from scanc.passes.shifts import push_shifts
from scanc.printer import print_graph
from scanc.reference import evaluate
from scanc.verify import verify
from tests.graphs import SIZES, graphs, random_inputs

INPUTS = ("x: real[b d l] = input", "z: complex[b l] = input", "w: real[d] = input", "A: real[d n] = input", "B: real[l b g n] = input",
          "s: real[b d n] = input", "i: int[b l] = input", "m: bool[b l] = input", "k: real[d w] = input", "t: real[b t] = input")


def graph_of(body: str) -> Graph:
    """A graph from its lines, ``;`` between them; the last line's value is the output."""
    lines = [line.strip() for line in body.split(";")]
    type_ = lines[-1].split(": ")[1].split(" =")[0]
    head = "graph f(time=l, state=n, groups={g: d}, order=b d l n g w t) {"
    return parse_graph("\n".join((head, *INPUTS, *lines, f"return r{type_[type_.index('['):]} = {lines[-1].split(':')[0]}", "}")))


def body_of(graph: Graph) -> list[str]:
    return [line.strip() for line in print_graph(graph).splitlines()[1:-2] if not line.endswith("= input")]


def left(graph: Graph) -> list[Node]:
    """Shifts along time of anything but an input."""
    return [n for n in graph.nodes() if n.op == "shift" and n.attrs["axis"] == graph.time and n.args[0].op != "input"]


def assert_same(graph: Graph, other: Graph, seed: int = 0, within: float = 1e-12) -> None:
    """‖out − ref‖ ≤ within · ‖ref‖ for every output, for sequences longer and shorter than the shifts."""
    for length in (5, 1):
        inputs = random_inputs(graph, seed, {**SIZES, "l": length, "t": 3})
        ref, out = evaluate(graph, inputs), evaluate(other, inputs)
        for name in ref:
            x, y = out[name].to(torch.complex128), ref[name].to(torch.complex128)
            assert x.shape == y.shape
            error, size = float((x - y).norm()), float(y.norm())
            assert math.isfinite(error) and error <= within * (size or 1.0), f"{name} of\n{print_graph(graph)}became\n{print_graph(other)}"


CASES: dict[str, tuple[str, list[str]]] = {
    "an input": ("r: real[b d l] = shift(x) {axis=l, by=2, fill=0.5}", ["r: real[b d l] = shift(x) {axis=l, by=2, fill=0.5}"]),
    "a product": ("%0: real[b d l] = mul(x, w); r: real[b d l] = shift(%0) {axis=l, by=1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "%2: real[b d l] = shift(x) {axis=l, by=1}",
        "%3: real[b d l] = mul(%2, w)", "r: real[b d l] = where(%1, %3, 0.0)"]),
    "ahead": ("%0: real[b d l] = exp2(x); r: real[b d l] = shift(%0) {axis=l, by=-1, fill=7}", [
        "%0: int[l] = index {axis=l}", "%1: int[] = size {axis=l}", "%2: int[] = sub(%1, 1)", "%3: bool[l] = lt(%0, %2)",
        "%4: real[b d l] = shift(x) {axis=l, by=-1}", "%5: real[b d l] = exp2(%4)", "r: real[b d l] = where(%3, %5, 7.0)"]),
    "a value constant in time": ("%0: real[d l] = broadcast(w); r: real[d l] = shift(%0) {axis=l, by=1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "r: real[d l] = where(%1, w, 0.0)"]),
    "a broadcast over other axes": ("%0: real[b d l n] = broadcast(x); r: real[b d l n] = shift(%0) {axis=l, by=1, fill=2}", [
        "%0: real[b d l] = shift(x) {axis=l, by=1, fill=2}", "r: real[b d l n] = broadcast(%0)"]),
    "positions": ("%0: int[l] = index {axis=l}; r: int[l] = shift(%0) {axis=l, by=2, fill=-1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 2)", "%2: int[l] = sub(%0, 2)", "r: int[l] = where(%1, %2, -1)"]),
    "a bool": ("%0: bool[b l] = not(m); r: bool[b l] = shift(%0) {axis=l, by=1, fill=true}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "%2: bool[b l] = shift(m) {axis=l, by=1}", "%3: bool[b l] = not(%2)",
        "r: bool[b l] = where(%1, %3, true)"]),
    "a complex value": ("%0: complex[b l] = conj(z); r: complex[b l] = shift(%0) {axis=l, by=1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "%2: complex[b l] = shift(z) {axis=l, by=1}",
        "%3: complex[b l] = conj(%2)", "r: complex[b l] = where(%1, %3, (0j))"]),
    "a scan": ("h: real[b d l] = scan(w, x) {axis=l}; r: real[b d l] = shift(h) {axis=l, by=1}", [
        "h: real[b d l] = scan(w, x) {axis=l}", "r: real[b d l] = prior(h)"]),
    "a reverse scan": ("h: real[b d l] = scan(w, x) {axis=l, reverse=true}; r: real[b d l] = shift(h) {axis=l, by=-1}", [
        "h: real[b d l] = scan(w, x) {axis=l, reverse=true}", "r: real[b d l] = prior(h)"]),
    "a scan with a fill": ("h: real[b d l] = scan(w, x) {axis=l}; r: real[b d l] = shift(h) {axis=l, by=1, fill=1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "h: real[b d l] = scan(w, x) {axis=l}", "%2: real[b d l] = prior(h)",
        "r: real[b d l] = where(%1, %2, 1.0)"]),
    "a scan with a state": ("h: real[b d l n] = scan(A, x, s) {axis=l}; r: real[b d l n] = shift(h) {axis=l, by=1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "h: real[b d l n] = scan(A, x, s) {axis=l}",
        "%2: real[b d l n] = prior(h)", "r: real[b d l n] = where(%1, %2, 0.0)"]),
    "a carry": ("h: real[b d l n] = scan(A, x, s) {axis=l}; %0: real[b d l n] = prior(h); r: real[b d l n] = shift(%0) {axis=l, by=-1}", [
        "%0: int[l] = index {axis=l}", "%1: int[] = size {axis=l}", "%2: int[] = sub(%1, 1)", "%3: bool[l] = lt(%0, %2)",
        "h: real[b d l n] = scan(A, x, s) {axis=l}", "r: real[b d l n] = where(%3, h, 0.0)"]),
    "a read-out": ("h: real[b d l n] = scan(A, x) {axis=l}; %0: real[b d l n] = mul(h, B); %1: real[b d l] = sum(%0);"
                   "r: real[b d l] = shift(%1) {axis=l, by=1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "h: real[b d l n] = scan(A, x) {axis=l}", "%2: real[b d l n] = prior(h)",
        "%3: real[l b g n] = shift(B) {axis=l, by=1}", "%4: real[b d l n] = mul(%2, %3)", "%5: real[b d l] = sum(%4)",
        "r: real[b d l] = where(%1, %5, 0.0)"]),
    "a causal convolution": ("%0: real[b d l] = conv(x, k) {axis=l, tap=w}; r: real[b d l] = shift(%0) {axis=l, by=1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "%2: real[b d l] = shift(x) {axis=l, by=1}",
        "%3: real[b d l] = conv(%2, k) {axis=l, tap=w}", "r: real[b d l] = where(%1, %3, 0.0)"]),
    "back and forth": ("%0: real[b d l] = shift(x) {axis=l, by=-1, fill=3}; r: real[b d l] = shift(%0) {axis=l, by=1}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 1)", "r: real[b d l] = where(%1, x, 0.0)"]),
    "twice": ("%0: real[b d l] = shift(x) {axis=l, by=1, fill=3}; r: real[b d l] = shift(%0) {axis=l, by=2}", [
        "%0: int[l] = index {axis=l}", "%1: bool[l] = ge(%0, 2)", "%2: real[b d l] = shift(x) {axis=l, by=3, fill=3}",
        "r: real[b d l] = where(%1, %2, 0.0)"]),
}


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    before, after = CASES[name]
    graph = graph_of(before)
    pushed = push_shifts(graph)
    assert body_of(pushed) == after
    verify(pushed, "trace")
    assert not left(pushed)
    assert_same(graph, pushed)


@pytest.mark.parametrize("body", [
    "h: real[b d l] = scan(w, x) {axis=l}; r: real[b d l] = shift(h) {axis=l, by=2}",
    "h: real[b d l] = scan(w, x) {axis=l}; r: real[b d l] = shift(h) {axis=l, by=-1}",
    "h: real[b d l] = scan(w, x) {axis=l, reverse=true}; r: real[b d l] = shift(h) {axis=l, by=1}",
    "h: real[b d l] = scan(w, x) {axis=l, shifted=true}; r: real[b d l] = shift(h) {axis=l, by=1}",
    "h: real[b d l] = scan(w, x) {axis=l}; %0: real[b d l] = prior(h); r: real[b d l] = shift(%0) {axis=l, by=1}",
    "h: real[b d l] = scan(w, x) {axis=l}; %0: real[b d l] = mul(h, x); r: real[b d l] = shift(%0) {axis=l, by=2}",
    "%0: real[b d l] = conv(x, k) {axis=l, tap=w}; r: real[b d l] = shift(%0) {axis=l, by=-1}",
    "%0: real[b d l] = conv_kernel_grad(x, x) {axis=l, tap=l}; r: real[b d l] = shift(%0) {axis=l, by=1}",
    "%0: real[b t] = exp2(t); r: real[b t] = shift(%0) {axis=t, by=1}",
])
def test_what_cannot_be_had_at_another_step_stays(body: str) -> None:
    graph = graph_of(body)
    assert print_graph(push_shifts(graph)) == print_graph(graph)


def test_a_grouped_time_is_left_alone() -> None:
    graph = parse_graph("graph f(time=l, groups={c: l}, order=b l c) {\nx: real[b l] = input\ng: real[c] = input\n"
                        "%0: real[b l] = mul(x, g)\nr: real[b l] = shift(%0) {axis=l, by=1}\nreturn r[b l] = r\n}")
    assert push_shifts(graph) is graph


def test_nothing_leaks_from_outside() -> None:
    """log2(0) is -inf where the shifted input is outside; the result there is the fill."""
    graph = graph_of("%0: real[b d l] = abs(x); %1: real[b d l] = log2(%0); r: real[b d l] = shift(%1) {axis=l, by=1, fill=0.25}")
    inputs = random_inputs(graph, sizes={**SIZES, "t": 1})
    out = evaluate(push_shifts(graph), inputs)["r"]
    assert torch.equal(out[..., 0], torch.full_like(out[..., 0], 0.25))
    assert torch.equal(out[..., 1:], inputs["x"].abs().log2()[..., :-1])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graphs())
def test_any_graph_computes_the_same_and_stays(graph: Graph) -> None:
    pushed = push_shifts(graph)
    verify(pushed, "trace")
    assert_same(graph, pushed)
    assert print_graph(push_shifts(pushed)) == print_graph(pushed)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graphs())
def test_canonical_graphs_stay_canonical(graph: Graph) -> None:
    canonical = canonicalize(graph)
    pushed = push_shifts(canonical)
    verify(pushed, "canonical")
    assert_same(canonical, pushed)
