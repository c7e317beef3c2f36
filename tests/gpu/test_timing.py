"""Timing on a device: against the device's own bandwidth, with and without CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from scanc.perf import timing
from scanc.perf.roofline import ceilings
from scanc.perf.timing import calls_in_a_row, measure, measure_in_a_row


def test_a_copy_takes_what_the_bandwidth_says() -> None:
    source, target = torch.ones(2, 1 << 27, device="cuda")
    found = measure(lambda: target.copy_(source), "cuda", budget_ms=100)
    seconds = 2 * source.numel() * 4 / ceilings("cuda").bytes
    assert 0.8 * seconds < found.ms / 1e3 < 1.5 * seconds


def test_a_small_kernel_is_timed_in_a_graph_and_without_its_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1 << 12, device="cuda")
    captured = []
    by_graph = timing._by_graph

    def spy(fn: Callable[[], object], cache: torch.Tensor, runs: int) -> list[float]:
        captured.append(1)
        return by_graph(fn, cache, runs)

    monkeypatch.setattr(timing, "_by_graph", spy)
    found = measure(lambda: x.mul_(1.0), "cuda", budget_ms=20)
    assert captured and 5e-4 < found.ms < 0.02 and found.runs >= timing.GRAPH_RUNS


def test_what_no_graph_can_hold_is_timed_by_events() -> None:
    x = torch.ones(1 << 12, device="cuda")
    found = measure(lambda: float(x.sum()), "cuda", budget_ms=20)
    assert 1e-3 < found.ms < 5
    y = torch.ones(1 << 20, device="cuda")
    assert float((y + 1).sum()) == 2 << 20  # the allocator and the stream are as they were


def test_the_cache_is_cold_unless_asked_for() -> None:
    source, target = torch.ones(2, 1 << 21, device="cuda")  # 16 MiB in all: fits in the second-level cache
    cold = measure(lambda: target.copy_(source), "cuda", budget_ms=50)
    warm = measure(lambda: target.copy_(source), "cuda", budget_ms=50, flush=False)
    assert warm.ms < cold.ms


def test_calls_in_a_row_have_no_events_between_them() -> None:
    x = torch.ones(1 << 12, device="cuda")
    alone, in_a_row = measure(lambda: x.mul_(1.0), "cuda", budget_ms=20), measure_in_a_row([lambda: x.mul_(1.0)] * 50, "cuda", budget_ms=20)
    assert 5e-4 < in_a_row.ms < alone.ms


def test_calls_in_a_row_find_a_cold_cache() -> None:
    """Each on 16 MiB of its own, so many that none is left in the cache when its turn comes again."""
    calls = calls_in_a_row(1 << 24, torch.device("cuda"))
    pairs = torch.ones(calls, 2, 1 << 21, device="cuda")
    cold = measure_in_a_row([lambda p=p: p[0].copy_(p[1]) for p in pairs], "cuda", budget_ms=50)
    seconds = 2 * (1 << 21) * 4 / ceilings("cuda").bytes
    assert calls >= 20 and 0.8 * seconds < cold.ms / 1e3 < 2 * seconds


def test_a_row_refuses_what_no_graph_can_hold() -> None:
    x = torch.ones(1 << 12, device="cuda")
    with pytest.raises(RuntimeError, match="waits for the device"):
        measure_in_a_row([lambda: float(x.sum())], "cuda", budget_ms=20)
    assert float(x.sum()) == 1 << 12
