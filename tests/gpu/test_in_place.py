"""On the GPU that is here: results over inputs that are read for the last time."""

from __future__ import annotations

import pytest

from scanc.compiler import default_schedule
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule, Schedule
from tests.codegen.kernels import writes_over
from tests.gpu.test_cuda import here as cuda
from tests.gpu.test_triton import here as triton

CASES = [dict(b=2, d=70, l=1000, n=16, g=1), dict(b=1, d=64, l=2049, n=16, g=1), dict(b=3, d=200, l=63, n=5, g=2)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("schedule", [None, RecurrentSchedule(lanes=16, split=4, tile=32, history=4, segment=256)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuda(case: dict[str, int], schedule: Schedule | None, dtype: str) -> None:
    problem = Problem.of("selective_scan", case, dtype, "backward")
    writes_over(problem, cuda(), schedule or default_schedule(problem.graph(), cuda(), problem.sizes))


@pytest.mark.parametrize("form", ["recurrent", "associative"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton(case: dict[str, int], form: str) -> None:
    problem = Problem.of("selective_scan", case, "bfloat16", "backward")
    writes_over(problem, triton(), default_schedule(problem.graph(), triton(), problem.sizes, form))
