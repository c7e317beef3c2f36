"""The space follows from the graph, the target and the sizes."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import ClassVar

import pytest

from scanc.autotune.space import Facts, FormSpace, powers, seeds, space
from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule
from scanc.target import Target
from tests.autotune.graphs import scan_graph

CPU, CUDA, TRITON = (Target.parse(t) for t in ("cpu:native:cpp", "cuda:sm_90:cuda", "cuda:sm_90:triton"))
SIZES = {"b": 1, "d": 1536, "l": 2048, "n": 16, "g": 1}


def of(target: Target, sizes: dict[str, int] = SIZES, *, default: Schedule | None = None, **graph: bool) -> FormSpace:
    start = default or RecurrentSchedule(lanes=32)
    return space(scan_graph(**graph), target, sizes, starts={start.form: start})[0]


def test_powers() -> None:
    assert powers(3, 20) == (4, 8, 16)
    assert powers(1, 1) == (1,)
    assert powers(8, 4) == ()


def test_facts() -> None:
    f = Facts.of(scan_graph(two_ways=True, sum_lanes=True), CPU, SIZES)
    assert (f.length, f.lane, f.parallel, f.state, f.two_ways, f.sums_lanes) == (2048, 1536, 1536, 16, True, True)
    assert not Facts.of(scan_graph(), CPU, SIZES).two_ways


def test_fields_follow_what_they_are_about() -> None:
    assert of(CUDA).choices["split"] == (1, 2, 4, 8, 16)
    assert of(TRITON).choices["split"] == (1,) and of(CPU).choices["split"] == (1,)
    assert of(TRITON).choices["warps"] == (1, 2, 4, 8) and of(CUDA).choices["warps"] == (4,)
    assert of(CPU).choices["history"] == (64,) and len(of(CPU, two_ways=True).choices["history"]) > 3
    assert of(CPU).choices["walk"] == (1,) and of(CPU, sum_lanes=True).choices["walk"] == (1, 2, 4, 8, 16)
    assert max(of(CPU, {**SIZES, "d": 24}).choices["lanes"]) == 32
    assert max(of(CPU, {**SIZES, "l": 100}).choices["tile"]) == 128


def test_segments_are_for_idle_devices() -> None:
    assert 256 in of(CUDA).choices["segment"]  # 1536 lanes leave a large GPU idle
    assert of(CUDA, {**SIZES, "b": 64}).choices["segment"] == (0,)
    assert of(CUDA, {**SIZES, "b": 64}, default=RecurrentSchedule(lanes=32, segment=1024)).choices["segment"] == (0, 1024)
    assert max(of(CUDA).choices["segment"]) == 1024  # two segments at least


@pytest.mark.parametrize("target", [CPU, CUDA, TRITON], ids=str)
def test_what_is_sampled_can_be_built_and_fits(target: Target) -> None:
    form = of(target, two_ways=True, sum_lanes=True)
    rng = random.Random(0)
    made = [s for _ in range(500) if (s := form.sample(rng)) is not None]
    assert len(set(made)) > 50
    for s in made:
        assert isinstance(s, RecurrentSchedule)
        assert s.segment % max(s.tile, s.history) == 0
        if target is CUDA:
            assert 32 <= s.lanes * s.split <= 1024
        if target is TRITON:
            assert 32 * s.warps <= 2 * s.lanes * 16 <= 128 * 32 * s.warps


def test_neighbours_differ_in_one_field() -> None:
    form = of(CUDA)
    near = list(form.neighbours(form.default))
    assert near
    for schedule in near:
        assert sum(getattr(schedule, f.name) != getattr(form.default, f.name) for f in dataclasses.fields(schedule)) == 1


def test_the_default_is_always_there() -> None:
    odd = AssociativeSchedule(lanes=1, tile=4096, warps=16)
    form = of(TRITON, {**SIZES, "l": 64}, default=odd)
    assert form.schedule(dataclasses.asdict(odd)) == odd
    assert seeds([form]) == [(form, odd)]
    assert form.schedule({"tile": 3}) is None


@dataclass(frozen=True)
class Later(Schedule):
    """A schedule this module has never heard of."""

    form: ClassVar[str] = "later"

    depth: int = 2
    mode: str = dataclasses.field(default="a", metadata={"choices": ("a", "b")})
    pinned: bool = False
    name: str = "x"


def test_unknown_fields_are_searched_around_their_default() -> None:
    choices = of(CPU, default=Later()).choices
    assert choices == {"depth": (1, 2, 4, 8), "mode": ("a", "b"), "pinned": (False, True), "name": ("x",)}


def test_a_convolution_is_tuned_where_kernels_of_ours_run_it() -> None:
    problem = Problem.of("fft_conv", {"b": 8, "d": 16, "l": 4096}, "bfloat16")
    for target, several in (("cuda:sm_90:triton", True), ("cpu:native:cpp", False)):
        (found,) = space(problem.graph(), Target.parse(target), problem.sizes)
        made = {found.sample(random.Random(i)) for i in range(50)} - {None}
        assert (len(made) > 10) == several
        routes = {s.route for s in made}  # type: ignore[union-attr]
        assert routes >= {"monarch", "toeplitz"} if several else routes <= {"fft"}
