"""Ops defined outside the package have everything: forward, backward, step, forms, schedules; and what an op says of itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

import scanc.dsl as sc
from scanc.compiler import Executable, compile_graph, default_schedule
from scanc.errors import ArgumentError, UnsupportedForm
from scanc.ir import Type
from scanc.op import REGISTRY, Op
from scanc.ops import selective_scan
from scanc.passes.adjoint import adjoint
from scanc.passes.specialize import specialize
from scanc.printer import print_graph
from scanc.reference import evaluate
from scanc.target import Target
from tests.checks import close, holds, relative, several, wide
from tests.user_ops import INPUTS, awkward, both_ways, diagonal, exclusive, gated_attention, means, min_gru, normed, stacked, whole_state

CPU = Target.parse("cpu:native:cpp")
by_name = pytest.mark.parametrize("op", list(INPUTS), ids=lambda op: op.name)


@by_name
def test_forward_and_backward_run_in_kernels_and_are_right(op: Op, heard: list[str]) -> None:
    holds(op, INPUTS[op])
    assert not [s for s in heard if s.startswith("warning")]  # a fall back to the reference would be said


@pytest.mark.parametrize("op", [min_gru, gated_attention, diagonal, exclusive], ids=lambda op: op.name)
def test_steps_are_the_scan(op: Op) -> None:
    x = INPUTS[op]
    timed = {a.name: a.alternatives[0].axes.index("l") for a in op.arguments if "l" in a.alternatives[0].axes}
    results = several(op(**x))
    state = x["initial_state"].clone()
    steps = []
    for t in range(20):
        now = {k: v.select(timed[k], t) if k in timed else v for k, v in x.items() if k != "initial_state"}
        steps.append(op.step(state, **now))
    y = results[0].narrow(op.results[0].index("l"), 0, 20)
    close(torch.stack(steps, op.results[0].index("l")), y, {torch.float32: 1e-6})
    left, _ = list(several(op(**{k: v.narrow(timed[k], 0, 20) if k in timed else v for k, v in x.items()}))[1:]), None
    close(state, left[0], {torch.float32: 1e-6, torch.complex64: 1e-6})


@pytest.mark.parametrize(
    ("op", "backward"), [(both_ways, False), (both_ways, True), (diagonal, True)], ids=["both ways", "and back", "diagonal and back"]
)
def test_time_in_segments(op: Op, backward: bool) -> None:
    """Complex transitions, both directions and several scans at once, segment by segment."""
    x = INPUTS[op]
    graph = op.graph()
    inputs: dict[str, Tensor] = dict(x)
    if backward:
        graph = adjoint(graph, tuple(x))
        seeds = torch.Generator().manual_seed(5)
        for node in graph.inputs:
            if node.name not in inputs:
                result = several(op(**x))[[f"d_{o.name}" for o in op.graph().outputs].index(str(node.name))]
                inputs[str(node.name)] = torch.randn(result.shape, generator=seeds, dtype=result.dtype)
    special = specialize(graph, {k: str(v.dtype).removeprefix("torch.") for k, v in inputs.items()})
    sizes = {a: s for n in graph.inputs for a, s in zip(n.axes, inputs[str(n.name)].shape, strict=True)}
    schedule = dataclasses.replace(default_schedule(special, CPU, sizes), lanes=8, tile=16, history=16, segment=32, walk=2)  # type: ignore[call-arg]
    made = compile_graph(special, CPU, schedule, sizes=sizes)
    assert isinstance(made, Executable)
    wanted = evaluate(graph, inputs)
    for name, found in made(inputs).items():
        assert relative(found, wanted[name]) < 5e-6, name


@pytest.mark.parametrize("op", [stacked, normed], ids=lambda op: op.name)
def test_recurrences_that_feed_one_another(op: Op) -> None:
    """Stacked recurrences cannot be summarised segment by segment, which is said; layers of kernels keep time whole by themselves."""
    graph = specialize(op.graph(), dict.fromkeys(INPUTS[op], "float32"))
    schedule = dataclasses.replace(default_schedule(graph, CPU, {}), segment=64)  # type: ignore[call-arg]
    if op is stacked:
        with pytest.raises(UnsupportedForm, match="its scans feed one another"):
            compile_graph(graph, CPU, schedule)
        return
    back = specialize(adjoint(op.graph(), tuple(INPUTS[op])), dict.fromkeys([*INPUTS[op], "d_y"], "float32"))
    inputs = INPUTS[op] | {"d_y": torch.randn(INPUTS[op]["x"].shape, generator=torch.Generator().manual_seed(1))}
    wanted = evaluate(back, inputs)
    for name, found in compile_graph(back, CPU, schedule)(inputs).items():
        assert relative(found, wanted[name]) < 5e-6, name


# -- what an op says of itself --------------------------------------------------------------------------------------------------------


def test_the_signature_is_read_from_the_annotations() -> None:
    given = {a.name: a for a in selective_scan.arguments}
    assert given["u"].alternatives == (Type(("b", "d", "l"), "real"),) and not given["u"].optional
    assert given["A"].alternatives == (Type(("d", "n"), "real"), Type(("d", "n"), "complex"))
    assert [t.dtype for t in given["B"].alternatives] == ["real", "real", "complex", "complex"]
    assert given["seq_idx"].alternatives[0].dtype == "int" and given["seq_idx"].optional
    assert selective_scan.options == {"delta_softplus": False, "reverse": False}
    assert selective_scan.results == (("b", "d", "l"), ("b", "d", "n"))
    assert repr(min_gru) == "<scanc op min_gru(f, x, initial_state)>" and REGISTRY["min_gru"] is min_gru
    assert min_gru.__doc__ is not None and "minGRU" in min_gru.__doc__


def test_graphs_of_variants() -> None:
    whole, bare = selective_scan.graph(), selective_scan.graph(without=("z", "D", "initial_state"))
    assert {str(n.name) for n in whole.inputs} - {str(n.name) for n in bare.inputs} == {"z", "D", "initial_state"}
    assert "softplus" not in print_graph(whole) and "softplus" in print_graph(selective_scan.graph(delta_softplus=True))
    assert selective_scan.graph(kinds={"A": 1}).input("A").kind == "complex"
    assert selective_scan.graph() is selective_scan.graph(delta_softplus=False)  # traced once
    assert whole.time == "l" and whole.state == ("n",) and whole.groups == {"g": "d"}
    assert [(o.name, o.axes, o.like) for o in whole.outputs] == [("y", ("b", "d", "l"), "u"), ("last_state", ("b", "d", "n"), "")]


def test_the_users_words_are_the_graphs_words() -> None:
    names = {n.name for n in min_gru.graph().nodes()}
    assert {"f", "x", "gate", "h", "initial_state"} <= names


def test_forms_follow_from_the_graph() -> None:
    assert selective_scan.forms() == ("recurrent", "associative")  # seq_idx looks back
    assert selective_scan.forms(without=("seq_idx",)) == ("recurrent", "associative", "step")
    assert both_ways.forms() == ("recurrent", "associative")
    assert diagonal.forms() == ("recurrent", "associative", "chunked", "convolution", "step")


def test_no_state_no_step() -> None:
    assert not hasattr(torch.ops.scanc, "whole_state_step")
    with pytest.raises(UnsupportedForm, match="whole_state.*step.*initial_state"):
        whole_state.step(torch.zeros(2, 19, 3))


def test_the_reference_of_an_op_is_differentiable_and_wide() -> None:
    x = {k: wide(v).requires_grad_() for k, v in INPUTS[min_gru].items()}
    h, last = min_gru.reference(**x)
    assert h.dtype == last.dtype == torch.float64
    torch.autograd.grad(h.sum() + last.sum(), list(x.values()))


def test_a_double_precision_call_is_computed_in_double_precision() -> None:
    x = {k: wide(v) for k, v in INPUTS[min_gru].items()}
    for found, wanted in zip(min_gru(**x), min_gru.reference(**x), strict=True):
        assert found.dtype == torch.float64 and relative(found, wanted) < 1e-13


def test_defined_again_an_op_is_the_new_one() -> None:
    """As in a notebook: the torch op, its gradients and compiled callers follow."""

    def define(factor: float) -> Op:
        @sc.op
        def again(x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
            return sc.scan(factor, x, axis="l")

        return again

    x = torch.ones(1, 2, 3, requires_grad=True)
    for factor, sums in ((0.5, [1.0, 1.5, 1.75]), (2.0, [1.0, 3.0, 7.0])):
        op = define(factor)
        assert op(x)[0, 0].tolist() == sums and REGISTRY["again"] is op
        assert torch.compile(op, fullgraph=True)(x)[0, 0].tolist() == sums
        (gradient,) = torch.autograd.grad(op(x).sum(), x)
        assert gradient[0, 0].tolist() == sums[::-1]


def test_alternatives_are_chosen_by_rank_and_kind() -> None:
    @sc.op
    def either(
        x: Float[Tensor, "b d l"],
        a: Float[Tensor, "d"] | Float[Tensor, "b d l"] | Complex[Tensor, "d"],
        cut: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b d l"]:
        h = sc.scan(a, x, axis="l", reset=None if cut is None else cut > 0)
        return sc.real(h)

    x = INPUTS[min_gru]["x"]
    gate = torch.sigmoid(INPUTS[min_gru]["f"])
    cut = (torch.rand(2, 70, generator=torch.Generator().manual_seed(3)) < 0.2).to(torch.int64)
    for a in (gate[0, :, 0], gate, torch.polar(gate[0, :, 0], gate[0, :, 1])):
        holds(either, {"x": x, "a": a})
    holds(either, {"x": x, "a": gate, "cut": cut})
    with pytest.raises(ArgumentError, match=r"either: argument 'a'.*real \(d\) or real \(b d l\) or complex \(d\)"):
        either(x, gate[0])


def test_options_choose_the_graph() -> None:
    @sc.op
    def mixed(
        x: Float[Tensor, "b d l"], *, kind: str = "sum", times: int = 1, scale: float = 1.0, flip: bool = False
    ) -> Float[Tensor, "b d l"]:
        y = sc.scan(0.5, x, axis="l", reverse=flip) if kind == "scan" else x
        for _ in range(times):
            y = y * scale
        return y

    x = torch.ones(1, 2, 3)
    assert mixed(x).tolist() == x.tolist()
    assert mixed(x, kind="scan", times=2, scale=2.0, flip=True)[0, 0].tolist() == [7.0, 6.0, 4.0]


def test_names_in_generated_code_do_not_meet() -> None:
    made = compile_graph(specialize(awkward.graph(), dict.fromkeys(INPUTS[awkward], "float32")), CPU)
    text = made.sources[0].text
    assert "lanes_" in text and "vf_" in text and "u_re_" in text


def test_a_result_may_be_called_what_an_argument_is_called() -> None:
    """A rebound name, a default that is taken, a cotangent's name: each result still has a name of its own."""

    @sc.op
    def rebound(x: Float[Tensor, "b d l"], y: Float[Tensor, "b d l"], d_h: Float[Tensor, "d"]) -> tuple[
        Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"]
    ]:  # fmt: skip
        h = sc.scan(sc.sigmoid(d_h), x, axis="l")
        x = sc.tanh(h)
        return x, y * 1.0, h

    outputs, arguments = {o.name for o in rebound.graph().outputs}, {"x", "y", "d_h"}
    assert len(outputs) == 3 and not outputs & arguments and not {f"d_{o}" for o in outputs} & arguments
    holds(rebound, {"x": INPUTS[min_gru]["x"], "y": INPUTS[min_gru]["f"], "d_h": INPUTS[both_ways]["w"]})


def test_results_of_every_rank() -> None:
    over_d, over_l, over_both = means(**INPUTS[means])
    assert (over_d.shape, over_l.shape, over_both.shape) == ((2, 70), (2, 19), (2,))


def test_what_no_kernel_can_do_the_reference_does_and_says_so(heard: list[str]) -> None:
    """The second recurrence's input is the first one's whole state looked up three steps back: no kernel keeps that."""

    @sc.op
    def deep(x: Float[Tensor, "b d l"], B: Float[Tensor, "b n l"]) -> Float[Tensor, "b d l"]:
        h = sc.scan(0.5, x * B, axis="l")
        return sc.sum(sc.scan(0.5, sc.shift(h, "l", 3), axis="l"), "n")

    for _ in range(2):
        holds(deep, {"x": INPUTS[whole_state]["x"], "B": INPUTS[whole_state]["B"]})
    said = [s for s in heard if s.startswith("warning")]
    assert len(said) == 2 and "deep (forward) does not run on cpu:native:cpp" in said[0] and "state" in said[0]
    assert deep.forms() == ()
