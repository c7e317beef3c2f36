"""The decode step: stepping through a sequence gives what the whole sequence gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scanc.errors import UnsupportedForm
from scanc.ir import Builder, Graph, Node, Output, Type
from scanc.passes.step import step
from scanc.reference import evaluate
from scanc.verify import verify
from tests.graphs import random_inputs

TYPES = {
    "u": Type(("b", "d", "l"), "real"), "A": Type(("d", "n"), "real"), "B": Type(("b", "g", "n", "l"), "real"),
    "C": Type(("b", "g", "n", "l"), "complex"), "keep": Type(("b", "l"), "bool"),
    "state": Type(("b", "d", "n"), "real"), "other": Type(("b", "n", "d"), "complex"),
}
STATES = {"last_state": "state", "last_other": "other"}

Make = Callable[..., tuple[tuple[str, Node, str], ...]]  # (name, node, axes) of every output


def graph_of(make: Make) -> Graph:
    order = ("b", "d", "l", "n", "g")
    b = Builder(order, {"g": "d"}, "l")
    inputs = {name: b.input(name, t) for name, t in TYPES.items()}
    outputs = tuple(Output(name, node, tuple(axes.split())) for name, node, axes in make(b, **inputs))
    return Graph("op", tuple(inputs.values()), outputs, "l", order, {"g": "d"}, ("n",))


def recurrence(b: Builder, u: Node, A: Node, B: Node, keep: Node, state: Node, **_: Node) -> Node:
    """h_t = exp(-A^2) h_{t-1} + B u, forgetting where keep does not hold."""
    a = b.pointwise("exp", b.pointwise("neg", b.pointwise("square", A)))
    return b.scan(b.pointwise("where", keep, a, b.const(0.0)), b.pointwise("mul", B, u), state, axis="l")


def two_recurrences(b: Builder, C: Node, other: Node, u: Node, **x: Node) -> tuple[tuple[str, Node, str], ...]:
    """A complex recurrence driven by a real one and by what that read before the step; a read-out with last of an input."""
    h = recurrence(b, u=u, **x)
    turn = b.pointwise("mul", b.pointwise("exp", b.pointwise("neg", b.pointwise("square", x["A"]))), b.const(0.6 + 0.8j))
    k = b.scan(turn, b.pointwise("add", b.pointwise("mul", C, h), b.prior(h)), other, axis="l")
    y = b.pointwise("real", b.sum(b.pointwise("mul", C, k), ("n",)))
    at_end = b.pointwise("eq", b.index("l"), b.pointwise("sub", b.size("l"), b.const(1)))
    newest = b.sum(b.pointwise("where", at_end, b.pointwise("mul", u, y), b.const(0.0)), ("l",))
    return (("y", y, "b d l"), ("h", h, "b d n l"), ("newest", newest, "d b"),
            ("last_state", b.final(h), "b d n"), ("last_other", b.final(k), "b n d"))


def relative(out: Tensor, ref: Tensor) -> float:
    assert out.shape == ref.shape and out.dtype == ref.dtype
    error = float((out - ref).norm() / ref.norm())
    return error if error == error else float("inf")


def test_steps_make_the_sequence() -> None:
    graph = graph_of(two_recurrences)
    one = step(graph)
    verify(one, "step")
    inputs = random_inputs(graph, 3)
    whole = evaluate(graph, inputs)
    states = {name: inputs[name] for name in STATES.values()}
    for t in range(5):
        now = {n: x.select(TYPES[n].axes.index("l"), t) if "l" in TYPES[n].axes else x for n, x in inputs.items()}
        out = evaluate(one, {**now, **states})
        assert relative(out["y"], whole["y"][..., t]) < 1e-14
        assert relative(out["h"], whole["h"][..., t]) < 1e-14
        states = {source: out[name] for name, source in one.inplace.items()}
    for name in ("last_state", "last_other", "newest"):
        assert relative(out[name], whole[name]) < 1e-14


def test_the_graph_of_a_step() -> None:
    one = step(graph_of(two_recurrences))
    assert (one.name, one.time, one.order, one.groups, one.state) == ("op_step", "", ("b", "d", "n", "g"), {"g": "d"}, ("n",))
    assert one.inplace == STATES
    assert [(n.name, n.axes) for n in one.inputs] == [(name, tuple(a for a in t.axes if a != "l")) for name, t in TYPES.items()]
    assert [(o.name, o.axes) for o in one.outputs] == [("y", ("b", "d")), ("h", ("b", "d", "n")), ("newest", ("d", "b")),
                                                       ("last_state", ("b", "d", "n")), ("last_other", ("b", "n", "d"))]
    assert one.output("h").node is one.output("last_state").node


def test_a_state_in_another_order_is_not_overwritten() -> None:
    def make(b: Builder, **x: Node) -> tuple[tuple[str, Node, str], ...]:
        h = recurrence(b, **x)
        return ("y", b.sum(h, ("n",)), "b d l"), ("last_state", b.final(h), "n b d")

    assert step(graph_of(make)).inplace == {}


def _refused(name: str) -> Make:
    def make(b: Builder, **x: Node) -> tuple[tuple[str, Node, str], ...]:
        a, u, state = x["A"], x["u"], x["state"]
        h = recurrence(b, **x)
        last = ("last_state", b.final(h), "b d n")
        match name:
            case "zero start":
                h = b.scan(a, u, axis="l")
                return ("y", h, "b d n l"), ("last_state", b.final(h), "b d n")
            case "computed start":
                h = b.scan(a, u, b.pointwise("neg", state), axis="l")
                return ("y", h, "b d n l"), ("last_state", b.final(h), "b d n")
            case "shared start":
                k = b.scan(a, h, state, axis="l")
                return ("y", k, "b d n l"), last, ("other", b.final(k), "b d n")
            case "state lost":
                return (("y", h, "b d n l"),)
            case "reverse" | "shifted":
                h = b.scan(a, u, state, axis="l", **{name: True})
                return ("y", h, "b d n l"), ("last_state", b.final(h), "b d n")
            case "shift":
                return ("y", b.shift(h, "l", 1), "b d n l"), last
            case "conv":
                return ("y", b.conv(h, u, "l", "l"), "b d n l"), last
            case "index":
                return ("y", b.pointwise("mul", u, b.index("l")), "b d l"), last
            case "size":
                return ("y", b.pointwise("div", u, b.size("l")), "b d l"), last
        return ("y", b.sum(h, ("l",)), "b d n"), last

    return make


@pytest.mark.parametrize(("name", "reason"), [
    ("zero start", "give the op an argument initial_state"),
    ("computed start", "Pass the input itself as initial"),
    ("shared start", "starts from 'state' as another recurrence does"),
    ("state lost", r"return sc\.last\(h, 'l'\) too"),
    ("reverse", "runs in reverse"),
    ("shifted", "Take the step of the forward graph"),
    ("shift", r"needs more than one position of 'l' \(shift\)"),
    ("conv", r"needs more than one position of 'l' \(conv\)"),
    ("index", r"needs more than one position of 'l' \(index\)"),
    ("size", r"needs more than one position of 'l' \(size\)"),
    ("sum", "sums over 'l'"),
])
def test_what_has_no_step(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedForm, match=f"op 'op' has no form 'step': .*{reason}"):
        step(graph_of(_refused(name)))


def test_no_time_axis() -> None:
    b = Builder(("d",), {}, "")
    x = b.input("x", Type(("d",), "real"))
    with pytest.raises(UnsupportedForm, match="it has no time axis"):
        step(Graph("op", (x,), (Output("y", b.pointwise("neg", x), ("d",)),), "", ("d",)))


def test_a_step_starts_from_the_state_given() -> None:
    """With the transition forgotten the state does not matter; with it kept it does."""
    graph = graph_of(lambda b, **x: (("y", (h := recurrence(b, **x)), "b d n l"), ("last_state", b.final(h), "b d n")))
    one = step(graph)
    inputs = random_inputs(one, 1)
    for keep in (True, False):
        now = {**inputs, "keep": torch.full_like(inputs["keep"], keep)}
        a, b = evaluate(one, now)["y"], evaluate(one, {**now, "state": now["state"] + 1.0})["y"]
        step_of_state = torch.exp(-inputs["A"].square()) if keep else torch.zeros_like(inputs["A"])
        assert torch.allclose(b - a, step_of_state.expand_as(a), rtol=1e-12, atol=1e-15)
