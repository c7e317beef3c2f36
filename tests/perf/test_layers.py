"""Whole layers are measured once they are right, and what is written is what README and the report read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scanc import runtime
from scanc.perf import layers, report, tables
from scanc.perf.layers import Sized, bench, error_of, read_layers
from scanc.perf.results import Results

CPU = torch.device("cpu")


class Running(nn.Module):
    """y_t = w x_t + the sum of what came before: a layer with a state, and no kernel to compile."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + x.cumsum(1) - x

    def allocate_inference_cache(self, batch: int, _: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 1, len(self.weight), dtype=self.weight.dtype), torch.zeros(0)

    def step(self, x: Tensor, state: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.weight * x + state
        state += x
        return y, state, other


@pytest.fixture(autouse=True)
def plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of the layers themselves are in tests/dropin."""
    monkeypatch.setattr(layers, "LAYERS", dict.fromkeys(layers.LAYERS, (Running, {})))


SMALL = {"b": 1, "d": 64}
SIZES = [Sized(layer, case, pass_) for layer in ("Mamba", "Mamba-2")
         for pass_, case in (("forward", {**SMALL, "l": 16}), ("forward+backward", {**SMALL, "l": 16}), ("step", SMALL))]


def test_rows_say_how_fast_how_right_and_beside_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {"op": "mamba block", "case": SMALL, "dtype": "float32", "pass": "step", "peer": "elsewhere", "peer_ms": 5e4, "goal_ms": 1.0}
    monkeypatch.setattr(layers, "anchors", lambda _: [recorded])
    path = bench(CPU, torch.float32, SIZES, tmp_path, budget=1.0)
    rows = read_layers(runtime.device_name("cpu"), tmp_path)
    assert [(r["layer"], r["pass"]) for r in rows] == [(s.layer, s.pass_) for s in SIZES]
    assert all(0 < r["ms_p10"] <= r["ms"] <= r["ms_p90"] and 0 <= r["error"] < 1e-5 for r in rows)
    assert [r["peer"] for r in rows] == [None, None, "elsewhere", None, None, None]
    monkeypatch.setattr(tables, "read_layers", lambda _: rows)
    text = tables.filled("<!-- layers: here -->\nold\n<!-- end of layers -->\n", [])
    assert "old" not in text and text.count("\n") == 10 and "| elsewhere | 50,000 |" in text
    monkeypatch.setattr(report, "read_layers", lambda _: rows)
    assert "Whole layers" in report.render([Results("here")], {}) and path.exists()


def test_a_wrong_layer_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_layer = layers._results
    monkeypatch.setattr(layers, "_results", lambda m, x: [y if x.dtype == torch.float32 else -y for y in by_layer(m, x)])
    assert error_of("Mamba", 64, CPU, torch.bfloat16) == pytest.approx(2.0, rel=0.1)
    with pytest.raises(ValueError, match="Mamba of width 64 is 2 from the float32 layer"):
        bench(CPU, torch.bfloat16, SIZES[:1], tmp_path, budget=1.0)
    assert not list(tmp_path.iterdir())


def test_a_row_without_a_time_is_refused(tmp_path: Path) -> None:
    assert read_layers("nowhere", tmp_path) == []
    (tmp_path / "here.json").write_text(json.dumps({"rows": [dict.fromkeys(layers.FIELDS, 0)]}))
    with pytest.raises(ValueError, match=r"here\.json"):
        read_layers("here", tmp_path)


def test_a_device_without_layers_has_no_table() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        tables.filled("<!-- layers: nowhere -->\n<!-- end of layers -->\n", [])
