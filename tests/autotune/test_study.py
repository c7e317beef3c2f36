"""The search: finds the fastest, repeats nothing, outlives a kill and Ctrl-C, finishes with the plainest of equals."""

from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import scanc.ops  # noqa: F401 - fills the registry
from scanc import runtime
from scanc.autotune import Record, RecordStore, tune
from scanc.autotune.measure import Measurement, Measurer
from scanc.autotune.progress import Progress
from scanc.autotune.space import space
from scanc.autotune.study import EFFORTS, need_device
from scanc.errors import ArgumentError, BackendUnavailable
from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule
from scanc.target import Target

CPU = Target.parse("cpu:native:cpp")
PROBLEM = Problem.of("selective_scan", {"b": 1, "d": 512, "l": 1024, "n": 16}, "float32", "backward")
STARTS: dict[str, Schedule] = {"recurrent": RecurrentSchedule(lanes=16), "associative": AssociativeSchedule(lanes=1)}


def cost(schedule: Schedule) -> float:
    """Milliseconds of a made-up machine: best at 64 lanes, tile 32, history 128; ``walk`` does not matter."""
    if isinstance(schedule, AssociativeSchedule):
        return 9.0
    assert isinstance(schedule, RecurrentSchedule)
    off = [abs(math.log2(value / best)) for value, best in ((schedule.lanes, 64), (schedule.tile, 32), (schedule.history, 128))]
    return 1.0 + 0.3 * off[0] + 0.2 * off[1] + 0.1 * off[2]


class FakeMeasurer(Measurer):
    """Answers from ``cost``; ``fails`` says which schedules do not work and how."""

    def __init__(self, *, fails: dict[str, set[int]] | None = None, interrupt_after: int = 10**9, seconds: float = 0.0,
                 jobs: int = 1) -> None:
        super().__init__(jobs=jobs)
        self.fails, self.interrupt_after, self.seconds = fails or {}, interrupt_after, seconds
        self.measured: list[Schedule] = []
        self.problems: list[Problem] = []
        self.bars: list[float | None] = []
        self.batches: list[int] = []

    def prepare(self, problem: Problem, target: Target) -> None:
        pass

    def measure_all(self, problem: Problem, candidates: Sequence[tuple[Target, Schedule]], *, budget_ms: float = 50.0,
                    give_up_ms: float | None = None) -> Iterator[tuple[int, Measurement]]:
        self.batches.append(len(candidates))
        for number, (_, schedule) in enumerate(candidates):
            self.problems.append(problem)
            self.bars.append(give_up_ms)
            yield number, self._answer(schedule)

    def _answer(self, schedule: Schedule) -> Measurement:
        if len(self.measured) >= self.interrupt_after:
            raise KeyboardInterrupt
        time.sleep(self.seconds)
        self.measured.append(schedule)
        for status, lanes in self.fails.items():
            if getattr(schedule, "lanes", 0) in lanes:
                return Measurement(status, detail="on purpose", date="2026-01-01")
        ms = cost(schedule)
        return Measurement("ok", ms, ms, ms, {"runs": 5.0}, {"d_u": 1e-7}, {}, date="2026-01-01")

    def compare(self, problem: Problem, candidates: Sequence[tuple[Target, Schedule]], *, budget_ms: float = 40.0,
                rounds: int = 5) -> list[Measurement]:
        return [Measurement("ok", cost(s), cost(s), cost(s), {"rounds": 5.0}, date="2026-01-02") for _, s in candidates]


def run(store: RecordStore, measurer: Measurer, **more: object) -> list[Record]:
    spaces = space(PROBLEM.graph(), CPU, PROBLEM.sizes, starts=STARTS)
    arguments = {"target": CPU, "store": store, "measurer": measurer, "spaces": spaces, "progress": False, **more}
    return tune([PROBLEM], **arguments)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "tuning", tmp_path / "bundled")


def device() -> str:
    return runtime.device_name("cpu")


def test_a_quick_study_comes_close(store: RecordStore) -> None:
    measurer = FakeMeasurer()
    best, = run(store, measurer)
    assert measurer.measured[:2] == list(STARTS.values())  # the defaults first
    assert len(set(measurer.measured)) == len(measurer.measured)  # nothing twice
    assert 32 <= len(measurer.measured) <= 32 + 7
    assert best.ms is not None and best.ms < 1.35 < cost(STARTS["recurrent"])
    assert best.best and best.device == device() and best.exact == ("g", "n")
    assert dict(best.case) == {"b": 1, "d": 512, "g": 1, "l": 1024, "n": 16}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full effort of fewer candidates: enough for this space, and quick to test."""
    monkeypatch.setitem(EFFORTS, "full", dataclasses.replace(EFFORTS["full"], candidates=90))


@pytest.mark.usefixtures("patient")
def test_a_full_study_finds_the_best_and_puts_idle_fields_back(store: RecordStore) -> None:
    best, = run(store, FakeMeasurer(), effort="full")
    schedule = best.parsed()
    assert isinstance(schedule, RecurrentSchedule)
    assert (schedule.lanes, schedule.tile, schedule.history) == (64, 32, 128)
    assert schedule.walk == 1  # it does not matter, so it is the default's


def test_several_workers_get_batches_and_nothing_twice(store: RecordStore) -> None:
    measurer = FakeMeasurer(jobs=4)
    best, = run(store, measurer)
    assert len(set(measurer.measured)) == len(measurer.measured)
    assert max(measurer.batches) == 4 and 32 <= len(measurer.measured) <= 32 + 7
    assert best.ms is not None and best.ms < 1.6


def test_the_winner_is_what_a_call_gets(store: RecordStore) -> None:
    best, = run(store, FakeMeasurer())
    found = store.lookup(device=device(), op="selective_scan", pass_="backward", key=best.key, dtype="float32",
                         case={"b": 1, "d": 512, "l": 1000, "n": 16, "g": 1}, exact=best.exact, target=CPU)
    assert found == best.parsed()


@pytest.mark.usefixtures("patient")
def test_failures_are_kept_and_avoided(store: RecordStore) -> None:
    measurer = FakeMeasurer(fails={"crashed": {1, 2, 4}, "wrong": {64}, "timeout": {256}})
    best, = run(store, measurer, effort="full")
    schedule = best.parsed()
    assert isinstance(schedule, RecurrentSchedule) and schedule.lanes in (32, 128)
    statuses = {r.status for r in store.records(device(), "selective_scan")}
    assert statuses >= {"ok", "wrong", "crashed"}


def test_nothing_right_gives_no_record(store: RecordStore) -> None:
    everything = {1 << i for i in range(12)}
    assert run(store, FakeMeasurer(fails={"crashed": everything})) == []
    assert store.records(device(), "selective_scan")
    assert not any(r.ok for r in store.records(device(), "selective_scan"))


def test_a_second_study_goes_on_from_the_first(store: RecordStore) -> None:
    first, second = FakeMeasurer(), FakeMeasurer()
    run(store, first)
    best, = run(store, second)
    assert not set(first.measured) & set(second.measured)
    assert len(second.measured) <= 7  # only the finish could ask for more
    third = FakeMeasurer()
    run(store, third, resume=False)
    assert len(third.measured) >= 32
    assert best.ok


def test_other_versions_are_measured_again(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run(store, FakeMeasurer())
    monkeypatch.setattr("scanc.autotune.study.versions", lambda: {"scanc": "later"})
    again = FakeMeasurer()
    run(store, again)
    assert len(again.measured) >= 32


def test_a_killed_study_resumes(store: RecordStore) -> None:
    code = f"""
import sys
from tests.autotune import test_study
from scanc.autotune import RecordStore
test_study.run(RecordStore({str(store.folder)!r}, {str(store.bundled)!r}), test_study.FakeMeasurer(seconds=0.05))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(runtime.__file__).parents[1])
    deadline = time.monotonic() + 60
    while len(store.records(device(), "selective_scan")) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {r.parsed() for r in store.records(device(), "selective_scan")}
    assert 8 <= len(kept) < 32
    measurer = FakeMeasurer()
    best, = run(store, measurer)
    assert not kept & set(measurer.measured)
    assert len(kept) + len(measurer.measured) <= 32 + 7
    assert best.best


def test_ctrl_c_keeps_the_best_so_far(store: RecordStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(store, FakeMeasurer(interrupt_after=10))
    records = store.records(device(), "selective_scan")
    assert len(records) == 11 and records[-1].best
    assert records[-1].ms == min(r.ms for r in records if r.ms is not None)


def test_a_budget_is_kept(store: RecordStore) -> None:
    measurer = FakeMeasurer(seconds=0.1)
    start = time.monotonic()
    run(store, measurer, effort="full", budget_s=2.0)
    assert time.monotonic() - start < 6.0
    assert 2 <= len(measurer.measured) < 30


def longer(l: int) -> Problem:
    return dataclasses.replace(PROBLEM, case=tuple(sorted({**PROBLEM.sizes, "l": l}.items())))


def run_many(store: RecordStore, measurer: Measurer, lengths: Sequence[int], **more: object) -> list[Record]:
    spaces = space(PROBLEM.graph(), CPU, PROBLEM.sizes, starts=STARTS)
    arguments = {"target": CPU, "store": store, "measurer": measurer, "spaces": spaces, "progress": False, **more}
    return tune([longer(l) for l in lengths], **arguments)  # type: ignore[arg-type]


LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)


def test_a_budget_is_shared_by_the_problems(store: RecordStore) -> None:
    measurer = FakeMeasurer(seconds=0.05)
    finals = run_many(store, measurer, LENGTHS, effort="full", budget_s=6.0)
    counts = [measurer.problems.count(longer(l)) for l in LENGTHS]
    assert len(finals) == 6 and min(counts) >= 8 and max(counts) <= 3 * min(counts), counts
    assert max(r.ms or 9.0 for r in finals) < cost(STARTS["recurrent"])


def test_what_is_known_is_measured_for_all_problems_before_any_is_searched(store: RecordStore) -> None:
    measurer = FakeMeasurer()
    run_many(store, measurer, LENGTHS)
    first = [measurer.problems.index(longer(l)) for l in LENGTHS]
    assert first == sorted(first) and first[-1] < 6 * 4
    assert measurer.problems[first[-1] + 4] == longer(LENGTHS[0])


def test_a_budget_too_short_for_a_search_leaves_no_problem_with_nothing(store: RecordStore) -> None:
    before, = run(store, FakeMeasurer())
    measurer = FakeMeasurer(seconds=0.01)
    finals = run_many(store, measurer, LENGTHS[1:], budget_s=0.0)
    assert len(finals) == 5 and all(r.ms == before.ms and r.parsed() == before.parsed() for r in finals)
    assert {STARTS["recurrent"], before.parsed()} == set(measurer.measured)


def test_what_a_problem_does_not_use_goes_to_the_next(store: RecordStore) -> None:
    run_many(store, FakeMeasurer(), LENGTHS[:3])  # 32 candidates each: nothing is left to measure
    measurer = FakeMeasurer(seconds=0.05)
    run_many(store, measurer, (*LENGTHS[:3], 65536), budget_s=2.5)
    assert measurer.problems.count(longer(65536)) > 2.5 / 4 / 0.05 + 5


def test_a_short_study_does_not_replace_a_faster_schedule(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    good, = run(store, FakeMeasurer())
    monkeypatch.setattr("scanc.autotune.study.versions", lambda: {"scanc": "later"})
    short, = run(store, FakeMeasurer(), budget_s=0.0)
    assert short.parsed() == good.parsed() and short.ms == good.ms
    with pytest.raises(KeyboardInterrupt):  # not even one that ends with its first candidate
        run(store, FakeMeasurer(interrupt_after=1), resume=False)
    question = {"device": device(), "op": "selective_scan", "pass_": "backward", "key": good.key, "dtype": "float32"}
    assert store.lookup(**question, case=dict(good.case), exact=good.exact, target=CPU) == good.parsed()  # type: ignore[arg-type]


def test_the_best_so_far_sets_the_time_to_give_up_at(store: RecordStore) -> None:
    measurer = FakeMeasurer()
    run(store, measurer)
    best = math.inf
    for schedule, bar in zip(measurer.measured, measurer.bars, strict=True):
        assert bar == (None if best == math.inf else pytest.approx(1.3 * best))
        best = min(best, cost(schedule))


def test_progress_is_told_at_the_start_and_after_each_candidate(store: RecordStore) -> None:
    told: list[Progress] = []
    run(store, FakeMeasurer(), progress=told.append)
    assert [p.done for p in told] == list(range(33))
    assert told[-1].total == 32 and told[-1].best is not None and all(p.seconds_left >= 0 for p in told)


def test_progress_counts_problems_and_estimates_the_rest(store: RecordStore) -> None:
    told: list[Progress] = []
    run_many(store, FakeMeasurer(seconds=0.002), LENGTHS[:3], progress=told.append)
    assert {p.number for p in told} == {1, 2, 3} and {p.problems for p in told} == {3}
    assert all(p.seconds_left_in_all >= p.seconds_left >= 0 for p in told)
    assert told[9].seconds_left_in_all > 0 and told[-1].seconds_left_in_all == 0
    assert max(p.done for p in told if p.number == 2) == 32


def test_a_bar_is_drawn_when_asked_and_silence_kept_off_a_terminal(store: RecordStore, capfd: pytest.CaptureFixture[str]) -> None:
    run(store, FakeMeasurer(), progress=None)
    assert capfd.readouterr() == ("", "")
    run(store, FakeMeasurer(), progress=True, resume=False)
    out, err = capfd.readouterr()
    assert out == "" and "selective_scan" in err


def test_the_winner_before_is_tried_first(store: RecordStore) -> None:
    longer = dataclasses.replace(PROBLEM, case=tuple(sorted({**PROBLEM.sizes, "l": 2048}.items())))
    spaces = space(PROBLEM.graph(), CPU, PROBLEM.sizes, starts=STARTS)
    measurer = FakeMeasurer()
    first, second = tune([PROBLEM, longer], target=CPU, store=store, measurer=measurer, spaces=spaces, progress=False)
    again = measurer.measured.index(first.parsed(), 32)  # type: ignore[arg-type]
    assert again <= 32 + 7 + len(STARTS) + 1
    assert (second.ms or 9) <= (first.ms or 0)


def test_bad_usage_is_named(store: RecordStore) -> None:
    with pytest.raises(ArgumentError, match="effort"):
        run(store, FakeMeasurer(), effort="heroic")
    with pytest.raises(ArgumentError, match="one device"):
        need_device([CPU, Target.parse("cuda:sm_90:cuda")])
    with pytest.raises(BackendUnavailable, match="no sm_61.*--screen"):
        need_device([Target.parse("cuda:sm_61:cuda")])
