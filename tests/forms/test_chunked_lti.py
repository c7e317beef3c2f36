"""State spaces whose transition has no time axis, a chunk at once: they are the convolution, the recurrence and the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Complex, Float
from torch import Tensor

import scanc.dsl as sc
from scanc.compiler import compile_graph, prepare, stages
from scanc.errors import UnsupportedForm
from scanc.forms.choose import forms_of
from scanc.forms.chunked_lti import lti_chunk_plan
from scanc.ir import Graph
from scanc.lti_chunked import LtiChunkedBackward, LtiChunkedExecutable, is_lti
from scanc.ops import s4d, selective_scan
from scanc.ops.s4d import s4d_convolution
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.reference import evaluate
from scanc.schedule import ChunkedSchedule
from scanc.target import Target
from tests.checks import normal, relative
from tests.forms.test_lti import complex_normal, concrete, gated_both_ways, read_over_time
from tests.ops.test_s4d import sample

CPU, INTERPRETER = Target("cpu", "native", "cpp"), Target("cpu", "interpret", "triton")


@sc.op
def several_readings(u: Float[Tensor, "b d l"], a: Float[Tensor, "d n"], C: Float[Tensor, "k n"], E: Complex[Tensor, "d n"],
                     s: Float[Tensor, "b d n"]) -> tuple[Float[Tensor, "b d k l"], Float[Tensor, "b d l"]]:
    """A real state read by factors with an axis more than it has, and a complex one beside it."""
    h = sc.scan(a, u, axis="l", initial=s)
    g = sc.scan(sc.exp(E), u * 0.5, axis="l", reverse=True)
    return sc.sum(C * h, "n"), sc.real(sc.sum(g, "n")) + u


def given_both_ways(l: int) -> dict[str, Tensor]:
    b, d, n = 2, 3, 4
    return {"u": normal(b, d, l, seed=0), "z": normal(b, d, l, seed=1), "A": torch.complex(-normal(n, seed=2).abs(), normal(n, seed=3)),
            "B": normal(d, n, seed=4), "C": complex_normal(d, n, seed=5), "s": complex_normal(b, d, n, seed=6)}


def given_several(l: int) -> dict[str, Tensor]:
    b, d, n, k = 2, 3, 4, 5
    return {"u": normal(b, d, l, seed=0), "a": torch.tanh(normal(d, n, seed=1)), "C": normal(k, n, seed=2),
            "E": torch.complex(-normal(d, n, seed=3).abs(), normal(d, n, seed=4)), "s": normal(b, d, n, seed=5)}


BOTH = pytest.mark.parametrize(("op", "given"), [(gated_both_ways, given_both_ways), (several_readings, given_several)],
                               ids=["both_ways", "several"])


def held(found: dict[str, Tensor], wanted: dict[str, Tensor], bar: float) -> None:
    assert set(found) == set(wanted) and any(bool(x.any()) for x in wanted.values())
    for name, truth in wanted.items():
        assert relative(found[name], truth) < bar, name


@pytest.mark.parametrize("target", [CPU, INTERPRETER], ids=str)
@pytest.mark.parametrize("l", [1, 16, 90])
@BOTH
def test_forwards(op: Any, given: Any, target: Target, l: int) -> None:
    inputs = given(l)
    graph = concrete(op, inputs)
    assert "chunked" in forms_of(graph)
    made = compile_graph(graph, target, ChunkedSchedule(chunk=16))
    assert isinstance(made, LtiChunkedExecutable)
    held(made(inputs), evaluate(graph, inputs), 2e-6)


def derived_of(graph: Graph, given: dict[str, Tensor], wrt: tuple[str, ...]) -> tuple[Graph, dict[str, Tensor]]:
    """The backward by ``wrt``, and its inputs: cotangents are drawn."""
    derived = backward(graph, wrt)
    sizes = {a: s for n in graph.inputs for a, s in zip(n.axes, given[str(n.name)].shape, strict=True)}
    full = dict(given)
    for i, n in enumerate(derived.inputs):
        if str(n.name) not in full:
            full[str(n.name)] = (complex_normal if n.kind == "complex" else normal)(*(sizes[a] for a in n.axes), seed=30 + i)
    full = {str(n.name): full[str(n.name)] for n in derived.inputs}
    return specialize(derived, {k: str(v.dtype).removeprefix("torch.") for k, v in full.items()}), full


@pytest.mark.parametrize("target", [CPU, INTERPRETER], ids=str)
@BOTH
def test_backwards(op: Any, given: Any, target: Target) -> None:
    derived, full = derived_of(op.graph(), given(90), tuple(given(90)))
    assert "chunked" in forms_of(derived)
    made = compile_graph(derived, target, ChunkedSchedule(chunk=32))
    assert isinstance(made, LtiChunkedBackward)
    held(made(full), evaluate(derived, full), 3e-6)


@pytest.mark.parametrize("kind", ["lin", "real"])
@pytest.mark.parametrize("l", [1, 70, 257])
def test_chunks_are_the_convolution_the_recurrence_and_the_steps(kind: str, l: int) -> None:
    x = sample(l=l, kind=kind)
    graph = s4d.graph(kinds=dict.fromkeys(("A", "B", "C", "initial_state"), 1)) if kind == "real" else s4d.graph()
    graph = specialize(graph, {k: str(v.dtype).removeprefix("torch.") for k, v in x.items()})
    made = compile_graph(graph, CPU, ChunkedSchedule(chunk=64))(x)
    state = x["initial_state"].clone()
    step = {k: v for k, v in x.items() if k not in ("u", "initial_state")}
    stepped = torch.stack([s4d.step(state, x["u"][..., t], **step) for t in range(l)], -1)
    for y, last in (s4d(**x), s4d_convolution(**x), (stepped, state)):
        assert last is not None and relative(made["y"], y) < 1e-5 and relative(made["last_state"], last) < 1e-5


@pytest.mark.parametrize("wrt", [("u",), ("dt", "A"), ("C",), ("initial_state",), ("B", "D")], ids=str)
def test_gradients_by_some_inputs(wrt: tuple[str, ...]) -> None:
    derived, full = derived_of(s4d.graph(), sample(l=150), wrt)
    held(compile_graph(derived, CPU, ChunkedSchedule())(full), evaluate(derived, full), 1e-5)


def test_decays_that_leave_nothing_and_forget_nothing() -> None:
    """A transition of 0, one that underflows within a chunk, and one of 1."""
    x = given_several(100)
    x["a"] = torch.tensor([0.0, 1e-30, 1.0, -1.0]).expand(3, 4).contiguous()
    graph = concrete(several_readings, x)
    held(compile_graph(graph, CPU, ChunkedSchedule(chunk=16))(x), evaluate(graph, x), 2e-6)


def test_into_given_storage() -> None:
    x = given_both_ways(40)
    graph = concrete(gated_both_ways, x)
    made = compile_graph(graph, CPU, ChunkedSchedule(chunk=16))
    wanted = made(x)
    into = {name: torch.full_like(v, torch.nan) for name, v in wanted.items()}
    found = made(x, into=into)
    assert all(found[k] is into[k] and torch.equal(into[k], wanted[k]) for k in wanted)


def test_what_is_not_of_the_class_says_why() -> None:
    for graph in (read_over_time.graph(), selective_scan.graph(without=("seq_idx",))):  # type: ignore[attr-defined]
        assert not is_lti(graph)
        with pytest.raises(UnsupportedForm, match="no form 'chunked'"):
            lti_chunk_plan(prepare(graph))


def test_stages() -> None:
    graph = concrete(s4d, sample())
    found = stages(graph, Target("cuda", "sm_90", "triton"), ChunkedSchedule())
    assert "one step a chunk" in found["loops"] and "read0: C with h" in found["loops"]
    assert "@triton.jit" in found["source"] and ".target sm_90" in found["asm"]
