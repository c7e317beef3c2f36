"""Routes are measured side by side, and what is written is what the report reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scanc import runtime
from scanc.perf import sweep_routes
from scanc.perf.routes import crossovers, read_routes
from scanc.perf.sweep_routes import cases, points, sweep


def test_sizes_keep_the_number_of_elements() -> None:
    sizes = list(cases((64, 1 << 20)))
    assert [s["b"] * s["d"] * s["l"] for s in sizes[:2]] == [1 << 25] * 2
    assert [s["b"] for s in sizes[2:]] == [1, 1]


def test_a_cpu_has_sums_and_transforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sweep_routes.ELEMENTS, "many", 1 << 14)
    monkeypatch.setattr(sweep_routes, "CHANNELS", 4)
    device = torch.device("cpu")
    chosen = points(device, (64, 512), ("float32",))
    path = sweep(device, chosen, tmp_path, budget=1.0)
    rows = read_routes(runtime.device_name(device), tmp_path)
    assert path.exists() and len(rows) == len(chosen)
    assert {(r["route"], r["case"]["l"]) for r in rows} == {("direct", 64), ("fft", 64), ("fft", 512)}
    assert all(r["ms"] > 0 and 0 < r["error"] < 1e-6 for r in rows)
    assert len(crossovers(rows)) == 4
