"""State spaces whose transition has no time axis, as convolutions: what is recognised, what is not, and that it is the recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import scanc.dsl as sc
from scanc.compiler import compile_graph, prepare
from scanc.errors import UnsupportedForm
from scanc.forms.choose import default_schedule, forms_of
from scanc.forms.lti import lti_plan
from scanc.ir import Graph
from scanc.lti import LtiBackwardExecutable, LtiExecutable
from scanc.ops import s4d, selective_scan
from scanc.ops.hippo import modes as start
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.reference import evaluate
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target
from tests.checks import normal, relative
from tests.ops.test_s4d import sample

CPU, INTERPRETER = Target("cpu", "native", "cpp"), Target("cpu", "interpret", "triton")


@sc.op
def gated_both_ways(u: Float[Tensor, "b d l"], z: Float[Tensor, "b d l"], A: Complex[Tensor, "n"], B: Float[Tensor, "d n"],
                    C: Complex[Tensor, "d n"], s: Complex[Tensor, "b d n"]) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d n"]]:
    x = u * sc.silu(z)
    forwards = sc.scan(sc.exp(A), B * x, axis="l", exclusive=True)
    backwards = sc.scan(sc.exp(2.0 * A), x * B * 0.5, axis="l", initial=s, reverse=True)
    y = sc.imag(sc.sum(C * forwards, "n")) + 3.0 * sc.real(sc.sum(backwards, "n"))
    return sc.silu(y) * z, sc.last(backwards, "l")


@sc.op
def decay_of_one_channel(u: Float[Tensor, "b d l"], a: Float[Tensor, "d"], s: Float[Tensor, "b d"]) -> Float[Tensor, "b d l"]:
    return sc.scan(a, u, axis="l", initial=s) * 2.0


@sc.op
def read_over_time(u: Float[Tensor, "b d l"], a: Float[Tensor, "n"], C: Float[Tensor, "b n l"]) -> Float[Tensor, "b d l"]:
    return sc.sum(C * sc.scan(a, u, axis="l"), "n")


def concrete(op: Any, given: dict[str, Tensor]) -> Graph:
    graph: Graph = op.graph()
    return specialize(graph, {k: str(v.dtype).removeprefix("torch.") for k, v in given.items()})


def complex_normal(*shape: int, seed: int) -> Tensor:
    return torch.complex(normal(*shape, seed=seed), normal(*shape, seed=seed + 100))


@pytest.mark.parametrize("target", [CPU, INTERPRETER], ids=str)
@pytest.mark.parametrize("l", [1, 2, 90])
def test_two_directions_an_exclusive_read_and_both_parts(target: Target, l: int) -> None:
    b, d, n = 2, 3, 4
    given = {"u": normal(b, d, l, seed=0), "z": normal(b, d, l, seed=1), "A": torch.complex(-normal(n, seed=2).abs(), normal(n, seed=3)),
             "B": normal(d, n, seed=4), "C": complex_normal(d, n, seed=5), "s": complex_normal(b, d, n, seed=6)}
    graph = concrete(gated_both_ways, given)
    assert "convolution" in forms_of(graph) and len(lti_plan(prepare(graph)).readings) == 2
    small = ConvolutionSchedule(outer=16, inner=16)
    schedule = small if target == INTERPRETER else default_schedule(graph, target, {"l": l}, "convolution")
    program = compile_graph(graph, target, schedule)
    assert isinstance(program, LtiExecutable)
    found, wanted = program(given), evaluate(graph, given)
    for name, truth in wanted.items():
        assert relative(found[name], truth) < 2e-6, name


Names = tuple[str, ...]


def held_against_oracle(graph: Graph, wrt: Names, given: dict[str, Tensor], target: Target, cotangents: Names | None = None) -> None:
    """The backward by convolutions against the adjoint's own recurrences in double precision."""
    derived = backward(graph, wrt, cotangents)
    sizes = {a: s for n in graph.inputs for a, s in zip(n.axes, given[str(n.name)].shape, strict=True)}
    full = dict(given)
    for i, n in enumerate(derived.inputs):
        if str(n.name) not in full:
            make = complex_normal if n.kind == "complex" else normal
            full[str(n.name)] = make(*(sizes[a] for a in n.axes), seed=30 + i)
    full = {str(n.name): full[str(n.name)] for n in derived.inputs}
    derived = specialize(derived, {k: str(v.dtype).removeprefix("torch.") for k, v in full.items()})
    assert "convolution" in forms_of(derived)
    schedule = ConvolutionSchedule(outer=16, inner=16) if target == INTERPRETER else ConvolutionSchedule(route="fft")
    program = compile_graph(derived, target, schedule)
    assert isinstance(program, LtiBackwardExecutable)
    found = program(full)
    for name, truth in evaluate(derived, full).items():
        assert relative(found[name], truth) < 3e-6, name


@pytest.mark.parametrize("target", [CPU, INTERPRETER], ids=str)
def test_the_backward_is_of_convolutions_and_of_how_kernels_are_made(target: Target) -> None:
    b, d, n, l = 2, 3, 4, 90
    given = {"u": normal(b, d, l, seed=0), "z": normal(b, d, l, seed=1), "A": torch.complex(-normal(n, seed=2).abs(), normal(n, seed=3)),
             "B": normal(d, n, seed=4), "C": complex_normal(d, n, seed=5), "s": complex_normal(b, d, n, seed=6)}
    held_against_oracle(gated_both_ways.graph(), tuple(given), given, target)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["lin", "real"])
@pytest.mark.parametrize(("wrt", "cotangents"), [((), None), (("u", "C"), ("y",)), (("dt", "initial_state"), None)], ids=str)
def test_gradients_of_a_state_space(kind: str, wrt: Names, cotangents: Names | None) -> None:
    given = sample(l=150, kind=kind)
    graph = s4d.graph(kinds=dict.fromkeys(("A", "B", "C", "initial_state"), 1)) if kind == "real" else s4d.graph()
    held_against_oracle(graph, wrt or tuple(given), given, CPU, cotangents)


def test_no_tensor_of_a_backward_has_states_and_time() -> None:
    b, d, n, l = 1, 2, 64, 4096
    given = {"u": normal(b, d, l, seed=0), "dt": torch.full((d,), 0.01), "A": start("lin", d, 2 * n), "B": complex_normal(d, n, seed=1),
             "C": complex_normal(d, n, seed=2), "d_y": normal(b, d, l, seed=3)}
    graph = backward(s4d.graph(without=("D", "initial_state")), ("u", "dt", "A", "B", "C"), ("y",))
    names = [str(i.name) for i in graph.inputs]
    graph = specialize(graph, {k: str(given[k].dtype).removeprefix("torch.") for k in names})
    program = compile_graph(graph, CPU, ConvolutionSchedule(route="fft"))
    with LargestTensor() as seen:
        program({k: given[k] for k in names})
    assert 0 < seen.numel < d * n * l / 4


class LargestTensor(TorchDispatchMode):
    """The most elements that any result of torch's has while it is on."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(made) if isinstance(x, Tensor))])
        return made


def test_a_transition_of_zero_forgets_at_once() -> None:
    b, d, n, l = 1, 2, 3, 20
    u, A = normal(b, d, l, seed=0), torch.zeros(d, n)
    B, C, one = normal(d, n, seed=1), normal(d, n, seed=2), torch.ones(d)
    given = {"u": u, "dt": -one, "A": A + 1.0, "B": B, "C": C}  # euler: a = 1 + dt A = 0
    graph = s4d.graph(without=("D", "initial_state"), kinds={"A": 1, "B": 1, "C": 1}, method="euler")
    graph = specialize(graph, dict.fromkeys(given, "float32"))
    y = compile_graph(graph, CPU, ConvolutionSchedule(route="fft"))(given)["y"]
    assert relative(y, -(B * C).sum(-1)[:, None] * u) < 1e-6


def test_what_is_no_convolution_is_named() -> None:
    with pytest.raises(UnsupportedForm, match="varies over time"):
        lti_plan(prepare(selective_scan.graph()))
    with pytest.raises(UnsupportedForm, match="factor over time|other than in a contraction"):
        lti_plan(prepare(read_over_time.graph()))  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedForm, match="states at every step|other than in a contraction"):
        lti_plan(prepare(decay_of_one_channel.graph()))  # type: ignore[attr-defined]


def test_forms() -> None:
    assert s4d.forms() == ("recurrent", "associative", "chunked", "convolution", "step")
    assert "convolution" not in selective_scan.forms()
