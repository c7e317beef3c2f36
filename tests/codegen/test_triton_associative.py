"""Triton kernels of form associative: interpreted on the CPU against the oracle, compiled for GPUs that are not here."""

from __future__ import annotations

import pytest

from scanc.codegen import build_triton
from scanc.compiler import default_schedule
from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule
from scanc.target import Target
from tests.codegen.kernels import OWN, agrees, registered, source_of

INTERPRET = Target.parse("cpu:interpret:triton")
PASSES = ("forward", "backward")
TARGETS = ("cuda:sm_80:triton", "cuda:sm_90:triton", "cuda:sm_100:triton", "cuda:sm_120:triton", "hip:gfx942:triton")
SMALL = AssociativeSchedule(lanes=2, tile=8)

own_ops = registered(*OWN)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("length", "state", "tile"), [(1, 16, 4), (5, 1, 8), (63, 3, 16)])
def test_lengths_states_and_tiles(pass_: str, length: int, state: int, tile: int) -> None:
    agrees(Problem.of("selective_scan", dict(b=1, d=3, l=length, n=state), pass_=pass_), INTERPRET, AssociativeSchedule(lanes=4, tile=tile))


@pytest.mark.parametrize("pass_", PASSES)
def test_groups_states_and_walks(pass_: str) -> None:
    case = dict(b=2, d=10, l=9, n=3, g=2)
    given = Problem.of("selective_scan", case, pass_=pass_, initial_state="given", seq_idx="given", cotangents="all")
    agrees(given, INTERPRET, AssociativeSchedule(lanes=2, tile=4, walk=2))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("pass_", PASSES)
def test_segments(pass_: str, reverse: bool) -> None:
    given = Problem.of("selective_scan", dict(b=1, d=3, l=11, n=2), pass_=pass_, initial_state="given", cotangents="all", reverse=reverse)
    agrees(given, INTERPRET, AssociativeSchedule(lanes=4, tile=2, segment=4))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("name", ["linear_recurrence", "ssd", "spin", "ahead", "chain"])
def test_ops(name: str, pass_: str) -> None:
    case = dict(b=2, d=5, l=9, n=3, h=4, p=3, g=2)
    problem = Problem.of(name, {a: case[a] for a in Problem.of(name, case).axes}, pass_=pass_)
    agrees(problem, INTERPRET, AssociativeSchedule(lanes=2, tile=4))


@pytest.mark.parametrize("pass_", PASSES)
def test_complex_segments(pass_: str) -> None:
    problem = Problem.of("spin", dict(b=1, d=3, l=7, n=3), pass_=pass_, cotangents="all")
    agrees(problem, INTERPRET, AssociativeSchedule(lanes=4, tile=2, segment=4))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pass_", PASSES)
def test_compiles_without_a_device(pass_: str, target: str) -> None:
    problem = Problem.of("selective_scan", dict(b=1, d=32, l=64, n=4), "bfloat16", pass_, z=None, D=None)
    source, named = source_of(problem, target, AssociativeSchedule(lanes=1, tile=32, warps=1))
    found = build_triton.resources(source, named)
    assert 0 < found["registers"] <= 512 and found["spills"] == 0
    assert ("shfl" if named.kind == "cuda" else "dpp") in build_triton.assembly(source, named)


@pytest.mark.parametrize("pass_", PASSES)
def test_default_schedules_spill_nothing(pass_: str) -> None:
    problem = Problem.of("selective_scan", dict(b=1, d=1536, l=2048, n=16), "bfloat16", pass_)
    target = Target.parse("cuda:sm_90:triton")
    schedule = default_schedule(problem.graph(), target, problem.sizes, "associative")
    assert isinstance(schedule, AssociativeSchedule)
    source, _ = source_of(problem, target.name, schedule)
    assert build_triton.resources(source, target)["spills"] == 0


def test_neighbours_are_evaluated_not_moved() -> None:
    source, _ = source_of(Problem.of("selective_scan", dict(b=1, d=4, l=8, n=4), pass_="backward"), "cuda:sm_90:triton", SMALL)
    assert source.text.count("tl.associative_scan") == 3 and "tl.gather" not in source.text
    source, _ = source_of(Problem.of("chain", dict(b=1, d=4, l=8), pass_="backward"), "cuda:sm_90:triton", SMALL)
    assert "tl.gather" in source.text   # a transition that needs another scan
