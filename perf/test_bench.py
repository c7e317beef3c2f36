"""The bench as pytest-benchmark sees it: ``pytest perf/test_bench.py --benchmark-only``; its comparisons and histories, our kernels.

Each case is one of the quick ones of perf/suite.py, checked before it is timed. ``scanc bench`` is the same over all cases, with
floors and rivals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import scanc.ops  # noqa: F401 - fills the registry
from scanc.autotune.check import prepare, run, trials
from scanc.op import REGISTRY
from scanc.perf.suite import Judged, judged, problems, usable_targets
from scanc.problem import Problem

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cases() -> list[Problem]:
    return [p for name in sorted(REGISTRY) for p in problems(REGISTRY[name], DEVICE, quick=True)]


def kernels(problem: Problem) -> list[Judged]:
    graph = problem.graph()
    return list(judged(graph, problem, usable_targets(DEVICE), [prepare(t, graph, DEVICE) for t in trials(problem, graph)]))


@pytest.mark.parametrize("problem", cases(), ids=lambda p: f"{p.op}-{p.pass_}")
def test_speed(problem: Problem, benchmark: Callable[..., Any]) -> None:
    found = kernels(problem)
    assert found and all(k.status == "ok" for k in found), [k.reason for k in found]
    graph, inputs, kernel = problem.graph(), problem.inputs(DEVICE), found[0].executable
    assert kernel is not None

    def call() -> None:
        run(kernel, inputs, graph)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark(call)
