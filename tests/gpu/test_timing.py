"""Timing on a device: against the device's own bandwidth, with and without CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from scanc.perf import timing
from scanc.perf.roofline import ceilings
from scanc.perf.timing import measure


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
