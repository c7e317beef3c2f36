"""Measuring in a child process: whatever a kernel does becomes its status, and the next one is measured all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import scanc.ops  # noqa: F401 - fills the registry
from scanc import runtime
from scanc.autotune import worker
from scanc.autotune.measure import Measurement, Measurer, WorkerError
from scanc.perf.timing import Timing
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from scanc.target import Target
from tests.autotune import fakes

CPU = Target.parse("cpu:native:cpp")
PROBLEM = Problem.of("linear_recurrence", {"b": 2, "d": 40, "l": 80})


@pytest.fixture(scope="module")
def measurer() -> Iterator[Measurer]:
    with Measurer(compiler="tests.autotune.fakes:compile_graph", limit_s=60.0, jobs=1) as made:
        yield made


def measure(measurer: Measurer, fault: int, walk: int = 1) -> Measurement:
    return measurer.measure(PROBLEM, CPU, RecurrentSchedule(lanes=fault, walk=walk, tile=16), budget_ms=5)


def test_a_right_kernel_is_timed(measurer: Measurer) -> None:
    found = measure(measurer, fakes.FINE)
    assert found.status == "ok", found.detail
    assert found.ms is not None and found.ms_p10 is not None and found.ms_p90 is not None
    assert 0.16 <= found.ms_p10 <= found.ms <= found.ms_p90
    assert found.timings["runs"] >= 5
    assert set(found.error) == {o.name for o in PROBLEM.graph().outputs}
    assert all(0 < e < 5e-6 for e in found.error.values())
    assert found.date and found.conditions["threads"] >= 1


@pytest.mark.parametrize(("fault", "words"), [
    (fakes.WRONG, "relative error 0.001"), (fakes.SIGN, "relative error 2"), (fakes.NOTHING, "relative error 1"), (fakes.NAN, "nan"),
    (fakes.RACES, "differs between two runs"), (fakes.OVERWRITES, "was overwritten"), (fakes.SHORT, "shape")])
def test_a_wrong_kernel_is_never_timed(measurer: Measurer, fault: int, words: str) -> None:
    found = measure(measurer, fault)
    assert found.status == "wrong"
    assert words in found.detail
    assert found.ms is None


def test_what_kernels_print_does_not_garble_replies(measurer: Measurer) -> None:
    found = measure(measurer, fakes.PRINTS)
    assert found.status == "ok" and found.ms is not None and found.ms > 0


def test_a_refused_schedule_is_a_status(measurer: Measurer) -> None:
    before = measurer.restarts
    found = measure(measurer, fakes.FINE, walk=13)
    assert found.status.startswith("screened: CompileError") and "13 is refused" in found.detail
    assert measurer.restarts == before


def test_a_disturbed_timing_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([Timing(30.0, 1.0, 40.0, 9), Timing(1.1, 1.0, 2.0, 9), Timing(0.5, 0.5, 0.5, 9)])
    monkeypatch.setattr(worker, "measure", lambda *a, **k: next(found))
    kept = worker._quietest(lambda: None, torch.device("cpu"), 5.0)
    assert kept["ms"] == 1.1 and kept["timings"]["tries"] == 2


def test_a_hopeless_candidate_is_timed_once(measurer: Measurer) -> None:
    found = measurer.measure(PROBLEM, CPU, RecurrentSchedule(lanes=1, tile=1024), budget_ms=500, give_up_ms=1.0)
    assert found.status == "slow" and found.timings == {"runs": 1.0} and found.ms is not None and found.ms > 5.0


def test_a_slow_candidate_is_left_after_a_few_timings(measurer: Measurer) -> None:
    def timed(give_up_ms: float) -> Measurement:
        return measurer.measure(PROBLEM, CPU, RecurrentSchedule(lanes=1, tile=1024), budget_ms=500, give_up_ms=give_up_ms)

    slow, fine = timed(8.0), timed(100.0)  # it takes 10 ms and a bit
    assert slow.status == "slow" and 2 < slow.timings["runs"] < 10 and slow.ms is not None and slow.ms > 8.0 and slow.error
    assert fine.status == "ok" and fine.timings["runs"] > 20


@pytest.mark.parametrize(("fault", "walk", "words"), [
    (fakes.ABORTS, 1, "SIGABRT"), (fakes.SEGFAULTS, 1, "SIGSEGV"), (fakes.RAISES, 1, "IndexError"), (fakes.FINE, 14, "dying words")])
def test_a_crash_costs_only_its_candidate(measurer: Measurer, fault: int, walk: int, words: str) -> None:
    before = measurer.restarts
    found = measure(measurer, fault, walk)
    assert found.status == "crashed" and words in found.detail
    assert measurer.restarts == before + 1


def test_a_hang_ends_at_the_limit_and_the_next_is_measured(measurer: Measurer) -> None:
    measurer.prepare(PROBLEM, CPU)
    measurer.limit_s, limit = 2.0, measurer.limit_s
    try:
        start = time.monotonic()
        found = measure(measurer, fakes.HANGS)
        assert found.status == "timeout" and time.monotonic() - start < 30
    finally:
        measurer.limit_s = limit
    assert measure(measurer, fakes.FINE).status == "ok"


def test_several_workers_check_side_by_side_and_one_times() -> None:
    faults = (fakes.FINE, fakes.ABORTS, fakes.WRONG, fakes.FINE)
    candidates = [(CPU, RecurrentSchedule(lanes=f, tile=1 << i)) for i, f in enumerate(faults)]
    with Measurer(compiler="tests.autotune.fakes:compile_graph", jobs=2) as measurer:
        found = dict(measurer.measure_all(PROBLEM, candidates, budget_ms=5))
        assert [found[i].status for i in range(4)] == ["ok", "crashed", "wrong", "ok"]
        assert found[0].ms is not None and found[3].error and found[1].ms is None
        assert measurer.restarts == 1


def test_near_ties_are_told_apart_interleaved(measurer: Measurer) -> None:
    slow, fast = RecurrentSchedule(lanes=1, tile=1024, history=1), RecurrentSchedule(lanes=1, tile=128)
    found = measurer.compare(PROBLEM, [(CPU, slow), (CPU, fast)], budget_ms=20, rounds=3)
    assert found is not None
    assert found[0].ms is not None and found[1].ms is not None and found[0].ms > found[1].ms + 5
    assert found[0].timings["rounds"] == 3


def test_a_crash_while_comparing_gives_none(measurer: Measurer) -> None:
    assert measurer.compare(PROBLEM, [(CPU, RecurrentSchedule(lanes=fakes.ABORTS))]) is None


def test_an_in_place_step_leaves_the_problem_as_it_was(measurer: Measurer) -> None:
    step = Problem.of("linear_recurrence", {"b": 2, "d": 40, "l": 80}, "float32", "step")
    assert step.graph().inplace
    for _ in range(2):  # the same inputs again: timing must not have changed them
        found = measurer.measure(step, CPU, RecurrentSchedule(lanes=fakes.FINE, tile=16), budget_ms=5)
        assert found.status == "ok", found.detail
    assert measurer.measure(step, CPU, RecurrentSchedule(lanes=fakes.WRONG, tile=16), budget_ms=5).status == "wrong"


def test_a_worker_that_cannot_start_is_a_named_error() -> None:
    with Measurer(compiler="tests.autotune.nowhere:compile_graph") as broken, pytest.raises(WorkerError, match="while starting.*nowhere"):
        broken.prepare(PROBLEM, CPU)


def test_the_worker_follows_its_parent() -> None:
    code = """
import sys, scanc.ops
from scanc.autotune.measure import Measurer
from scanc.perf.timing import Timing
from scanc.problem import Problem
from scanc.target import Target
m = Measurer(compiler="tests.autotune.fakes:compile_graph", jobs=1)
m.prepare(Problem.of("linear_recurrence", {"b": 1, "d": 4, "l": 8}), Target.parse("cpu:native:cpp"))
print(m.workers[0]._process.pid, flush=True)
sys.stdin.read()
"""
    root = Path(runtime.__file__).parents[1]
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
