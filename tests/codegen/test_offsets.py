"""Elements more than 2^31 apart: views of sparse files, as large as any tensor and hardly there, read and written by every backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scanc.codegen import build_cuda
from scanc.compiler import Executable
from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule
from scanc.target import Target
from tests.checks import GRADIENT, RESULT
from tests.codegen import emulate

FAR = 1 << 31
SIZES = dict(b=2, d=3, l=3, n=3, g=1)   # three: offsets pass 2^31 within a tile, at twice a stride
BACKENDS: dict[str, tuple[str, Schedule]] = {
    "cpp": ("cpu:native:cpp", RecurrentSchedule(lanes=4, tile=4, history=4)),
    "cuda": ("cuda:sm_90:cuda", RecurrentSchedule(lanes=4, tile=4, history=4)),
    "triton": ("cpu:interpret:triton", RecurrentSchedule(lanes=4, tile=1, history=4)),
    "associative": ("cpu:interpret:triton", AssociativeSchedule(lanes=4, tile=4)),
}


@pytest.fixture(params=list(BACKENDS))
def program_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Target, Schedule]]:
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    target, schedule = BACKENDS[request.param]
    yield Target.parse(target), schedule


def far_apart(x: Tensor, axis: int, path: Path) -> Tensor:
    """The values of x with the last and the first position of ``axis`` more than 2^31 elements apart; what lies between is a hole."""
    others = [i for i in range(x.dim()) if i != axis]
    strides, step = [0] * x.dim(), 1
    for i in reversed(others):
        strides[i], step = step, step * x.shape[i]
    strides[axis] = -(-(FAR + 7) // (x.shape[axis] - 1))
    total = (x.shape[axis] - 1) * strides[axis] + step
    with path.open("wb") as file:
        file.truncate(total * x.element_size())
    whole = torch.from_file(str(path), shared=True, size=total, dtype=x.dtype)
    return whole.as_strided(x.shape, strides).copy_(x)


def check(problem: Problem, given: Mapping[str, Tensor], target: Target, schedule: Schedule) -> None:
    program = Executable(problem.graph(), target, schedule)
    found, wanted = program(given), problem.oracle({k: v.contiguous() for k, v in given.items()})
    bars = GRADIENT if problem.pass_ == "backward" else RESULT
    for name, error in problem.errors(found, wanted).items():
        assert error <= bars[found[name].dtype], (name, error)
    assert all(bool(x.any()) for x in wanted.values())


@pytest.mark.parametrize(("pass_", "axis"), [*(("forward", a) for a in "bdln"), *(("backward", a) for a in "bl")])
def test_inputs_far_apart(pass_: str, axis: str, program_of: tuple[Target, Schedule], tmp_path: Path) -> None:
    """Every input that has the axis, at once; along the axis they are large, all offsets pass 2^31."""
    problem = Problem.of("selective_scan", SIZES, "bfloat16", pass_, initial_state="given", cotangents="all")
    axes = {str(n.name): n.axes for n in problem.graph().inputs}
    given = problem.inputs()
    for name in [k for k in given if axis in axes[k] and not (axis in ("d", "n") and len(axes[k]) == 1)]:
        given[name] = far_apart(given[name], axes[name].index(axis), tmp_path / name)
        assert sum(stride * (size - 1) for stride, size in zip(given[name].stride(), given[name].shape, strict=True)) > FAR
    check(problem, given, *program_of)


def test_segments_far_apart(program_of: tuple[Target, Schedule], tmp_path: Path) -> None:
    """Channels beside each other, steps far apart (b l d): a segment's start is far from the first's."""
    target, schedule = program_of
    for pass_ in ("forward", "backward"):
        problem = Problem.of("linear_recurrence", dict(b=1, d=3, l=10), "bfloat16", pass_, initial_state="given")
        given = {k: far_apart(v, 2, tmp_path / f"{pass_}_{k}") if v.dim() == 3 else v for k, v in problem.inputs().items()}
        check(problem, given, target, dataclasses.replace(schedule, segment=4))   # type: ignore[call-arg]


@pytest.mark.parametrize("axis", ["b", "d"])
def test_states_far_apart_are_written(axis: str, program_of: tuple[Target, Schedule], tmp_path: Path) -> None:
    problem = Problem.of("selective_scan", SIZES, initial_state="given")
    program = Executable(problem.graph(), *program_of)
    inputs = problem.inputs()
    place = far_apart(torch.zeros(2, 3, 3), "bdn".index(axis), tmp_path / "state")
    found = program(inputs, into={"last_state": place})["last_state"]
    assert found is place
    wanted = problem.oracle(inputs)["last_state"]
    assert float((found - wanted).norm() / wanted.norm()) < 5e-6
