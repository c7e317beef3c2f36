"""Schedules check themselves, print as a line that can be pasted, and survive JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanc.errors import ScheduleError
from scanc.schedule import SCHEDULES, AssociativeSchedule, RecurrentSchedule, Schedule, StepSchedule, schedule_from_json

POWERS = st.sampled_from([1, 2, 4, 8, 16, 32])
SCHEDULE = st.one_of(
    st.builds(lambda tile, history, k, **f: RecurrentSchedule(tile=tile, history=history, segment=k * max(tile, history), **f),
              tile=POWERS, history=POWERS, k=st.integers(0, 5), lanes=POWERS, split=POWERS, walk=st.integers(1, 9), warps=POWERS),
    st.builds(lambda tile, k, **f: AssociativeSchedule(tile=tile, segment=k * tile, **f),
              tile=POWERS, k=st.integers(0, 5), lanes=POWERS, walk=st.integers(1, 9), warps=POWERS),
    st.builds(StepSchedule, lanes=POWERS, split=POWERS, warps=POWERS),
)  # fmt: skip


@given(SCHEDULE)
def test_printed_and_through_json_a_schedule_is_the_same(schedule: Schedule) -> None:
    assert schedule_from_json(json.loads(json.dumps(schedule.to_json()))) == schedule
    assert eval(str(schedule)) == schedule
    assert schedule.form in SCHEDULES and schedule.to_json()["form"] == schedule.form


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (RecurrentSchedule, {"lanes": 3}, "'lanes' is 3, but it must be a power of two"),
        (RecurrentSchedule, {"tile": 0}, "'tile' is 0"),
        (RecurrentSchedule, {"walk": 0}, "'walk' is 0, but it must be 1 or more"),
        (RecurrentSchedule, {"split": 64}, "'split' is 64.*32 threads at most"),
        (
            RecurrentSchedule,
            {"tile": 16, "history": 64, "segment": 32},
            "'segment' is 32, but it must be 0 or a multiple of tile and history",
        ),
        (RecurrentSchedule, {"segment": -64}, "'segment' is -64"),
        (AssociativeSchedule, {"tile": 48}, "'tile' is 48"),
        (AssociativeSchedule, {"tile": 64, "segment": 32}, "'segment' is 32.*multiple of tile"),
        (StepSchedule, {"split": 64}, "'split' is 64"),
        (StepSchedule, {"warps": -1}, "'warps' is -1"),
    ],
)
def test_fields_out_of_range(kind: type[Schedule], fields: dict[str, int], words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        kind(**fields)


@pytest.mark.parametrize("data", [{}, {"form": "spiral"}, {"form": "step", "tile": 3}, {"form": "recurrent", "lanes": 5}])
def test_json_that_is_no_schedule(data: dict[str, Any]) -> None:
    with pytest.raises(ScheduleError, match="form|tile|lanes"):
        schedule_from_json(data)
