"""CUDA blocks with helpers: warps that make what the next tile's walk reads while others walk."""

from __future__ import annotations

import pytest
import torch

from scanc.codegen import build_cuda
from scanc.codegen.cuda import CudaSource
from scanc.compiler import Executable
from scanc.errors import ScheduleError
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from scanc.target import Target
from tests.codegen import emulate
from tests.codegen.kernels import OWN, registered
from tests.codegen.test_cuda import HOPPER, check

RAGGED = dict(b=2, d=21, l=45, n=3, g=1)
WHOLE = dict(b=1, d=32, l=64, n=4, g=1)

own_ops = registered(*OWN)


def helped(**fields: int) -> RecurrentSchedule:
    return RecurrentSchedule(**{"lanes": 16, "split": 2, "tile": 16, "history": 8, "helpers": 1, **fields})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("fields", [{}, {"stages": 1}, {"segment": 16}, {"helpers": 3, "lanes": 8, "split": 4, "tile": 8},
                                    {"tile": 64, "walk": 2}, {"lanes": 24, "split": 4, "tile": 8}], ids=str)
@pytest.mark.parametrize("case", [RAGGED, WHOLE], ids=["ragged", "whole"])
def test_both_orders_agree_with_the_oracle(case: dict[str, int], fields: dict[str, int], dtype: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier or a wait for copies that is missing shows as a difference between the orders."""
    check(Problem.of("selective_scan", case, dtype, initial_state="given"), helped(**fields), monkeypatch)


@pytest.mark.parametrize("fields", [{"split": 4, "tile": 32}, {"split": 2, "blocks": 2}, {"split": 8, "stages": 1},
                                    {"split": 4, "lanes": 24}, {"split": 2, "tile": 64}, {"split": 4, "walk": 2, "helpers": 2}], ids=str)
@pytest.mark.parametrize("l", [64, 45])
def test_sums_through_shared_memory(l: int, fields: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of four states and more leave their sums where the others of their lane find them; who needs what others have made waits for
    it, or the whole block does."""
    problem = Problem.of("selective_scan", dict(b=1, d=40, l=l, n=32 if fields["split"] == 8 else 16, g=1))
    schedule = helped(**{"blocks": 1, **fields})
    text = made(problem, schedule).text
    assert "exchange.take" in text and ("wait_for(" in text) == (schedule.blocks == 1) and ("meet<ALL>" in text) == (schedule.blocks > 1)
    check(problem, schedule, monkeypatch)


def test_sums_through_shared_memory_backwards_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of("selective_scan", dict(b=1, d=16, l=85, n=16, g=1), "bfloat16", reverse=True)
    schedule = helped(split=4, tile=32, blocks=1)
    assert "exchange.take" in made(problem, schedule).text
    check(problem, schedule, monkeypatch)


@pytest.mark.parametrize("op, case", [("chain", dict(b=2, d=32, l=45)), ("ahead", dict(b=2, d=40, l=37)),
                                      ("spin", dict(b=2, d=20, l=33, n=3))])
def test_ops_of_every_kind(op: str, case: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Time backwards, complex states, none at all."""
    check(Problem.of(op, case), helped(lanes=32, split=1), monkeypatch)


def test_they_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    problem = Problem.of("selective_scan", RAGGED, "bfloat16")
    inputs, graph = problem.inputs(), problem.graph()
    with_, without = (Executable(graph, HOPPER, helped(helpers=n))(inputs) for n in (1, 0))
    assert helped(helpers=1).order == helped(helpers=0).order
    for name, x in without.items():
        assert torch.equal(x, with_[name]), name


def test_blocks_of_any_eights_of_lanes() -> None:
    """With helpers, of time whole; a backward has none."""
    for fields in ({"helpers": 0}, {"segment": 16}, {"lanes": 20}):
        with pytest.raises(ScheduleError, match="lanes"):
            helped(**{"lanes": 24, "split": 4, **fields})
    with pytest.raises(ScheduleError, match="helpers"):
        made(Problem.of("selective_scan", WHOLE, pass_="backward"), helped(lanes=24, split=4))


def made(problem: Problem, schedule: RecurrentSchedule) -> CudaSource:
    source = Executable(problem.graph(), HOPPER, schedule).source(problem.sizes["n"])
    assert isinstance(source, CudaSource)
    return source


def test_who_has_them() -> None:
    """A forward whose phases work on single lanes and steps; warps that are whole."""
    forward = Problem.of("selective_scan", WHOLE)
    source = made(forward, helped())
    assert source.threads == 64 and "meet<ALL>" in source.text
    assert source.text.count("meet<ALL>") == 3  # of helpers, before the first walk and behind each
    for problem, schedule in ((forward, helped(lanes=8)), (Problem.of("selective_scan", WHOLE, pass_="backward"), helped())):
        alone = made(problem, schedule)
        assert alone.threads == schedule.lanes * schedule.split and "meet" not in alone.text


@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
@pytest.mark.parametrize("schedule", [helped(split=4, tile=32, blocks=1), helped(lanes=8, tile=64, history=16, span=16, helpers=0)],
                         ids=["helpers", "spans"])
def test_waits_compile_for_older_machines(schedule: RecurrentSchedule, arch: str) -> None:
    """Which wait for signals by other instructions, or by reading a count."""
    target = Target.parse(f"cuda:{arch}:cuda")
    source = Executable(Problem.of("selective_scan", dict(b=1, d=64, l=64, n=16, g=1), "bfloat16").graph(), target, schedule).source(16)
    assert "wait_for(" in source.text or "wait_in_line(" in source.text
    assert build_cuda.resources(source, target)["registers"]
