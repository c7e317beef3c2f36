"""What is worked out once for tensors of one layout, and used by every later call on such tensors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from scanc import compiler
from scanc.compiler import compile_graph
from scanc.launch import Launches
from scanc.ops import linear_recurrence
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from scanc.target import Target
from tests.checks import relative

CPU = Target.parse("cpu:native:cpp")
CASE = {"b": 2, "d": 6, "l": 40, "n": 3, "g": 2}
WHOLE = RecurrentSchedule(lanes=4, tile=8, history=8)
SEGMENTS = RecurrentSchedule(lanes=4, tile=8, history=8, segment=16)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launches]]:
    """Launches that were worked out, in order."""
    found: list[Launches] = []

    class Watched(Launches):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            found.append(self)

    monkeypatch.setattr(compiler, "Launches", Watched)
    yield found


@pytest.mark.parametrize(("pass_", "schedule", "kernels"), [
    ("forward", WHOLE, 1), ("forward", SEGMENTS, 3), ("backward", WHOLE, 1), ("backward", SEGMENTS, 5)])  # fmt: skip
def test_later_calls_work_out_nothing(pass_: str, schedule: RecurrentSchedule, kernels: int, planned: list[Launches]) -> None:
    problem = Problem.of("selective_scan", CASE, pass_=pass_)
    program = compile_graph(problem.graph(), CPU, schedule)
    for seed in range(3):  # other values, one layout
        inputs = problem.inputs("cpu", seed=seed)
        assert max(problem.errors(program(inputs), problem.oracle(inputs)).values()) < 2e-5
        assert len(planned) == kernels


def test_results_of_earlier_calls_stay_as_they_are() -> None:
    problem = Problem.of("selective_scan", CASE)
    bound = compile_graph(problem.graph(), CPU, SEGMENTS).bind()
    first = bound(problem.inputs("cpu", seed=1), {})
    kept = {k: v.clone() for k, v in first.items()}
    second = bound(problem.inputs("cpu", seed=2), {})
    assert all(torch.equal(first[k], kept[k]) and relative(second[k], kept[k]) > 0.1 for k in kept)


def test_every_layout_of_one_shape_is_read_rightly(planned: list[Launches]) -> None:
    a, x = torch.rand(2, 5, 9) * 0.9, torch.randn(2, 5, 9)
    truth = linear_recurrence.reference(a.double(), x.double())[0]

    def layouts(t: Tensor) -> list[Tensor]:
        wide = torch.zeros(2, 5, 18)
        wide[..., ::2] = t
        return [t, t.transpose(1, 2).contiguous().transpose(1, 2), wide[..., ::2], t.clone()]

    for left, right in zip(layouts(a), reversed(layouts(x)), strict=True):
        assert relative(linear_recurrence(left, right)[0], truth) < 1e-6
    assert len(planned) == 3  # the first and the last are laid out alike
    for left, right in zip(layouts(a), reversed(layouts(x)), strict=True):
        assert relative(linear_recurrence(left, right)[0], truth) < 1e-6
    assert len(planned) == 3  # the first and the last are laid out alike


def test_threads_that_share_a_program() -> None:
    problem = Problem.of("selective_scan", CASE)
    bound = compile_graph(problem.graph(), CPU, SEGMENTS).bind()
    inputs = [problem.inputs("cpu", seed=s) for s in range(4)]
    oracles = [problem.oracle(i) for i in inputs]

    def worst(seed: int) -> float:
        return max(max(problem.errors(bound(inputs[seed], {}), oracles[seed]).values()) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(worst, range(4))) < 5e-6
