"""Launches of a few heads at a time, where partial results would take too much memory: the same results as in one."""

from __future__ import annotations

import pytest
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc import launch, launch_memory
from scanc.op import REGISTRY, Op
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from scanc.target import Target
from tests.codegen import test_rare_values as rare
from tests.codegen.kernels import agrees


@sc.op
def beside_heads(
    a: Float[Tensor, "b l"], x: Float[Tensor, "b l h p"], r: Float[Tensor, "h"]
) -> tuple[Float[Tensor, "b l"], Float[Tensor, "b l p"], Float[Tensor, "b l h p"]]:
    """A recurrence without heads, a sum over them, and a result of each."""
    e = sc.scan(sc.sigmoid(a), a, axis="l")
    y = sc.scan(sc.sigmoid(a) * sc.sigmoid(r), x, axis="l")
    return e, sc.sum(y, "h"), y


del REGISTRY[beside_heads.name]
SCHEDULE = RecurrentSchedule(lanes=4, tile=4, history=4)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_memory, "PARTIAL_SHARE", 0.0)
    monkeypatch.setattr(launch_memory, "PARTIAL_FLOOR", 1)


@pytest.mark.usefixtures("little_memory")
def test_heads_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """dB and dC of SSD are summed over heads: one launch for each head, and every gradient right."""
    made: list[int] = []
    whole = launch.Launches.__init__

    def counted(self: launch.Launches, *args: object) -> None:
        whole(self, *args)  # type: ignore[arg-type]
        made.append(len(self._shots))

    monkeypatch.setattr(launch.Launches, "__init__", counted)
    problem = Problem.of("ssd", dict(b=2, l=11, h=4, p=3, n=3, g=2), pass_="backward", initial_states="given", cotangents="all")
    for schedule in (SCHEDULE, RecurrentSchedule(lanes=4, tile=4, history=4, segment=4)):
        agrees(problem, Target.parse("cpu:native:cpp"), schedule)
    assert made[0] == 4 and max(made) == 4


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("op", [rare.group_of_heads, rare.shared_heads, beside_heads], ids=lambda op: op.name)
def test_heads_that_count_or_share_are_taken_at_once(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions among heads, and results that heads share, are the whole's and not a piece's."""
    monkeypatch.setitem(rare.SIZES, "g", 2)
    rare.agrees(op, "cpp")
