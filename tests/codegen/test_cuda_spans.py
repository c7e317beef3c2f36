"""CUDA blocks whose threads share a lane's time: each a span of its steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from scanc.codegen import build_cuda
from scanc.compiler import Executable
from scanc.errors import ScheduleError
from scanc.forms.spans import why_not_spans
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from tests.codegen import emulate
from tests.codegen.kernels import OWN, registered
from tests.codegen.test_cuda import HOPPER, check

WHOLE = dict(b=1, d=8, l=64, n=4, g=1)
RAGGED = dict(b=2, d=11, l=77, n=4, g=1)
GROUPS = dict(b=2, d=10, l=45, n=6, g=2)

own_ops = registered(*OWN)


def spanned(**fields: int) -> RecurrentSchedule:
    return RecurrentSchedule(**{"lanes": 8, "tile": 32, "span": 8, **fields})


@pytest.mark.parametrize("dtype, fields", [
    ("bfloat16", {}), ("float32", {"split": 2}), ("bfloat16", {"split": 2, "stages": 1}), ("bfloat16", {"lanes": 16}),
    ("float32", {"lanes": 4, "tile": 64}), ("bfloat16", {"lanes": 2, "tile": 256}), ("bfloat16", {"span": 16, "lanes": 16, "split": 4}),
    ("float32", {"lanes": 6, "span": 4, "tile": 64})], ids=str)
@pytest.mark.parametrize("case", [WHOLE, RAGGED], ids=["whole", "ragged"])
def test_both_orders_agree_with_the_oracle(case: dict[str, int], fields: dict[str, int], dtype: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier or a wait for copies that is missing shows as a difference between the orders."""
    check(Problem.of("selective_scan", case, dtype, initial_state="given"), spanned(**fields), monkeypatch)


def test_a_start_groups_and_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"z": None}, {"D": None, "delta_bias": None}):
        check(Problem.of("selective_scan", GROUPS, **options), spanned(lanes=4, tile=64, split=2), monkeypatch)


def test_steps_that_are_no_neighbours_are_taken_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span of steps apart in memory would be read one by one."""
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    problem = Problem.of("selective_scan", RAGGED, "bfloat16")
    inputs = problem.inputs()
    program = Executable(problem.graph(), HOPPER, spanned())
    near = program(inputs)
    assert [s.schedule.span for s in program.sources] == [8]
    apart = {n: x.transpose(1, 2).contiguous().transpose(1, 2) if n in ("u", "delta", "z") else x for n, x in inputs.items()}
    made = program(apart)
    assert [s.schedule.span for s in program.sources] == [8, 0]
    for name, x in made.items():
        assert torch.linalg.vector_norm((x - near[name]).float()) <= 1e-2 * torch.linalg.vector_norm(near[name].float())


def test_rows_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """B and C with neighbouring states, and rows of odd lengths."""
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    problem = Problem.of("selective_scan", RAGGED, "bfloat16")
    inputs = problem.inputs()
    wanted = Executable(problem.graph(), HOPPER, spanned())(inputs)
    across = {n: x.transpose(-1, -2).contiguous().transpose(-1, -2) if n in ("B", "C") else x for n, x in inputs.items()}
    for name, x in Executable(problem.graph(), HOPPER, spanned())(across).items():
        assert torch.equal(x, wanted[name])


@pytest.mark.parametrize("op, case, options, words", [
    ("selective_scan", WHOLE, {"reverse": True}, "backwards in time"), ("selective_scan", WHOLE, {"seq_idx": "given"}, "kind"),
    ("linear_recurrence", dict(b=1, d=8, l=64), {}, "without a state axis"), ("spin", dict(b=1, d=8, l=64, n=4), {}, "complex"),
    ("ssd", dict(b=1, l=64, h=2, p=8, n=4, g=1), {}, "over steps alone")], ids=lambda x: x if isinstance(x, str) else "")
def test_what_has_none(op: str, case: dict[str, int], options: dict[str, object], words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        Executable(Problem.of(op, case, **options).graph(), HOPPER, spanned()).source(4)
    assert not why_not_spans(Executable(Problem.of("selective_scan", WHOLE).graph(), HOPPER, spanned()).plan)


@pytest.mark.parametrize("fields, words", [({"lanes": 2}, "whole warps"), ({"tile": 8, "lanes": 32}, "2 to 32 threads"),
                                           ({"split": 4}, "four is the least"), ({"lanes": 1022}, "may have 1024")], ids=str)
def test_limits(fields: dict[str, int], words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        Executable(Problem.of("selective_scan", WHOLE).graph(), HOPPER, spanned(**fields)).source(4)
    with pytest.raises(ScheduleError, match="take it whole"):
        spanned(segment=64)


def test_golden(golden: Callable[[str, str], None]) -> None:
    """What a thread does with its steps of a tile: their values, state after state before and behind others' steps, their results."""
    program = Executable(Problem.of("selective_scan", WHOLE, "bfloat16", D=None, z=None).graph(), HOPPER, spanned(split=2))
    start, end = "                stage_rows_of(is_whole, tile + 2", "            if (LIKELY(sure))"
    golden("cuda_spans.cu", start + program.source(4).text.split(start, 1)[1].split(end, 1)[0])
