"""Transition classes, forms, and the schedules that untuned shapes get on every kind of device."""

from __future__ import annotations

import pytest
from jaxtyping import Complex, Float
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen.cuda import CudaSource
from scanc.codegen.layout import Mode
from scanc.compiler import Executable
from scanc.forms.choose import classify, default_schedule, forms_of
from scanc.forms.plan import make_plan
from scanc.op import REGISTRY, Op
from scanc.ops import linear_recurrence, selective_scan, ssd
from scanc.passes.adjoint import adjoint
from scanc.passes.step import step
from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule, ChunkedSchedule, RecurrentSchedule, StepSchedule
from scanc.target import Target
from tests.user_ops import both_ways, diagonal, gated_attention, min_gru, rotating

TARGETS = [Target.parse(t) for t in ("cpu:native:cpp", "cuda:sm_90:cuda", "cuda:sm_75:cuda", "cuda:sm_90:triton", "hip:gfx942:triton")]


@sc.op
def retention(q: Float[Tensor, "b h l k"], k: Float[Tensor, "b h l k"], v: Float[Tensor, "b h l v"], decay: Float[Tensor, "h"]) -> Float[
    Tensor, "b h l v"
]:  # fmt: skip
    """A decay for each head, the same at every step (Sun et al. 2023)."""
    return sc.sum(q * sc.scan(decay, k * v, axis="l"), "k")


@sc.op
def modal(u: Float[Tensor, "b d l"], A: Complex[Tensor, "d n"]) -> Float[Tensor, "b d l"]:
    return sc.real(sc.sum(sc.scan(sc.exp(A), u, axis="l"), "n"))


for _op in (retention, modal):
    del REGISTRY[_op.name]


@pytest.mark.parametrize(
    ("op", "name", "is_complex"),
    [
        (retention, "constant", False), (modal, "constant", True), (diagonal, "constant", True), (rotating, "constant", True),
        (ssd, "head", False), (gated_attention, "key", False), (selective_scan, "diagonal", False),
        (linear_recurrence, "channel", False), (min_gru, "channel", False), (both_ways, "channel", False),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)  # fmt: skip
def test_the_transition_decides_the_class(op: Op, name: str, is_complex: bool) -> None:
    graph = op.graph(without=("seq_idx",)) if op in (selective_scan, ssd) else op.graph()
    for scan in (n for n in graph.nodes() if n.op == "scan"):
        found = classify(graph, scan)
        assert (found.name, found.complex) == (name, is_complex) and found.meaning


def test_forms() -> None:
    bare = selective_scan.graph(without=("seq_idx",))
    assert forms_of(bare) == ("recurrent", "associative", "step")
    assert forms_of(adjoint(bare, ("u",), ("y",))) == ("recurrent", "associative")
    assert forms_of(step(bare)) == ("step",)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("op", [selective_scan, ssd, linear_recurrence, diagonal], ids=lambda op: op.name)
def test_there_is_a_default_for_any_size(op: Op, target: Target) -> None:
    """Schedules check themselves when they are made; a plan must take them, and the blocks must fit the device."""
    graph = op.graph()
    back = adjoint(graph, ("u",) if op.name in ("selective_scan", "diagonal") else (graph.inputs[0].name or "",))
    small = {"b": 1, "d": 1, "h": 1, "p": 1, "l": 1, "n": 1, "g": 1}
    large = {"b": 64, "d": 8192, "h": 128, "p": 128, "l": 1 << 20, "n": 256, "g": 8}
    for sizes in ({}, small, large, {**large, "n": 3}, {**small, "l": 1 << 20}):
        for made in (graph, back):
            chosen, schedule = default_schedule(made, target, sizes), default_schedule(made, target, sizes, form="recurrent")
            products = op is ssd and target.backend == "triton"
            assert isinstance(chosen, ChunkedSchedule | RecurrentSchedule if products else RecurrentSchedule)
            assert isinstance(schedule, RecurrentSchedule)
            if target.backend == "cuda":
                assert schedule.lanes * schedule.split <= 1024
        assert isinstance(default_schedule(graph, target, sizes, form="associative"), AssociativeSchedule)
        assert isinstance(default_schedule(graph, target, sizes, form="step"), StepSchedule)


def test_little_work_side_by_side_splits_time_on_a_gpu() -> None:
    graph, cuda = linear_recurrence.graph(), Target.parse("cuda:sm_90:cuda")
    few, many = {"b": 1, "d": 64, "l": 1 << 16}, {"b": 64, "d": 8192, "l": 1 << 16}
    short, long = default_schedule(graph, cuda, few), default_schedule(graph, cuda, many)
    assert isinstance(short, RecurrentSchedule) and isinstance(long, RecurrentSchedule)
    assert 0 < short.segment < 1 << 16 and long.segment == 0


def test_forms_are_those_the_plan_can_be_made_for() -> None:
    make_plan(retention.graph())
    assert forms_of(retention.graph()) == ("recurrent", "associative")


@pytest.mark.parametrize("state", [1, 2, 3, 5, 8, 24, 64, 100, 128, 256])
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_cuda_blocks_fit_the_shared_memory_of_their_target(arch: str, state: int) -> None:
    target = Target("cuda", arch, "cuda")
    for sizes in ({"b": 2, "d": 1536, "l": 2048}, {"b": 1, "d": 33, "l": 1000}, {"b": 1, "d": 3, "l": 4096}):
        for pass_ in ("forward", "backward"):
            problem = Problem.of("selective_scan", sizes | {"n": state}, "bfloat16", pass_)
            graph = problem.graph()
            program = Executable(graph, target, default_schedule(graph, target, problem.sizes))
            for mode in (Mode(), *([] if getattr(program.schedule, "span", 0) else [Mode(entries=True)])):  # spans have no segments
                source = program.source(state, mode)
                assert isinstance(source, CudaSource) and source.shared <= target.shared_bytes, (program.schedule, source.shared)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("sizes", [
    {}, {"b": 2, "d": 64, "l": 100, "n": 1}, {"b": 1, "d": 1, "l": 1, "n": 4096}, {"b": 1, "d": 5120, "l": 1 << 17, "n": 16},
    {"b": 64, "d": 8192, "l": 3, "n": 7},
], ids=str)
def test_cuda_has_a_default_for_whatever_sizes(pass_: str, sizes: dict[str, int]) -> None:
    graph = selective_scan.graph() if pass_ == "forward" else adjoint(selective_scan.graph(), ("u", "A", "B"))
    schedule = default_schedule(graph, Target.parse("cuda:sm_90:cuda"), sizes | ({"g": 1} if sizes else {}), "recurrent")
    assert isinstance(schedule, RecurrentSchedule) and schedule.lanes * schedule.split <= 1024


def test_few_lanes_get_more_threads_a_lane_and_then_segments() -> None:
    def choice(lanes: int, steps: int) -> RecurrentSchedule:
        sizes = {"b": 1, "d": lanes, "l": steps, "n": 16, "g": 1}
        found = default_schedule(selective_scan.graph(), Target.parse("cuda:sm_90:cuda"), sizes, "recurrent")
        assert isinstance(found, RecurrentSchedule)
        return found

    assert [choice(d, 2048).split for d in (32768, 8192)] == [1, 4]
    assert choice(32768, 2048).segment == 0 and choice(768, 512).segment == 0 < choice(768, 8192).segment
