"""Results may be written over inputs that are read for the last time: every tile is read before it is written."""

from __future__ import annotations

import pytest

from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule
from scanc.target import Target
from tests.codegen.kernels import writes_over

SCHEDULES: list[tuple[str, Schedule | None]] = [
    ("cpu:native:cpp", None),
    ("cpu:native:cpp", RecurrentSchedule(lanes=16, tile=16, segment=64)),
    ("cpu:interpret:triton", RecurrentSchedule(lanes=8, tile=1, history=16)),
    ("cpu:interpret:triton", RecurrentSchedule(lanes=8, tile=1, history=16, segment=32)),
    ("cpu:interpret:triton", AssociativeSchedule(lanes=4, tile=16)),
    ("cpu:interpret:triton", AssociativeSchedule(lanes=4, tile=16, segment=32)),
]


@pytest.mark.parametrize(("target", "schedule"), SCHEDULES, ids=str)
def test_gradients_over_inputs(target: str, schedule: Schedule | None) -> None:
    writes_over(Problem.of("selective_scan", dict(b=1, d=5, l=70, n=2, g=1), "float32", "backward"), Target.parse(target), schedule)
