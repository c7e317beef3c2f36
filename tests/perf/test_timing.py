"""Quantiles, and that a measured time is the time."""

from __future__ import annotations

import time

import pytest

from scanc.perf.timing import FEWEST_RUNS, Timing, measure, quantile


def test_quantiles_are_linear_between_neighbours() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.1) == pytest.approx(1.1)
    assert Timing.of([3.0, 1.0, 2.0]) == Timing(2.0, pytest.approx(1.2), pytest.approx(2.8), 3)


def test_a_sleep_takes_its_time() -> None:
    found = measure(lambda: time.sleep(0.01), "cpu", budget_ms=80)
    assert 10 <= found.ms_p10 <= found.ms <= found.ms_p90 and found.ms < 30
    assert FEWEST_RUNS <= found.runs <= 9


def test_warm_up_is_not_timed() -> None:
    calls = []

    def slow_at_first() -> None:
        calls.append(1)
        if len(calls) <= 2:
            time.sleep(0.05)

    assert measure(slow_at_first, "cpu", warmup=2, budget_ms=5).ms_p90 < 40


def test_a_slow_call_is_not_repeated_for_long() -> None:
    start = time.perf_counter()
    found = measure(lambda: time.sleep(0.05), "cpu", warmup=0, budget_ms=1)
    assert found.runs == 3 and time.perf_counter() - start < 1
