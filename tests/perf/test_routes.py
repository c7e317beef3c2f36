"""Routes over length: rows read, lines drawn in proportion, and on the page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from scanc.perf.results import PACKAGED
from scanc.perf.routes import crossovers, read_routes

SVG = "{http://www.w3.org/2000/svg}"


def row(route: str, l: int, ms: float, b: int = 4) -> dict[str, Any]:
    case = {"b": b, "d": 8, "l": l}
    return {"op": "fft_conv", "case": case, "dtype": "float16", "pass": "forward", "route": route, "ms": ms, "error": 1e-4}


def test_a_line_for_each_route_and_a_plot_for_each_sweep() -> None:
    rows = [row("monarch", 128, 2.0), row("toeplitz", 128, 1.0), row("toeplitz", 1024, 8.0), row("monarch", 1024, 4.0),
            row("monarch", 64, 1.0, b=1)]
    plots = crossovers(rows)
    assert [title for title, _, _ in plots] == ["fft_conv, forward, float16, many rows", "fft_conv, forward, float16, one row"]
    _, plot, legend = plots[0]
    assert [route for _, route in legend] == ["monarch", "toeplitz"]
    drawn = ET.fromstring(plot)
    heights = {}
    for circle in drawn.iter(f"{SVG}circle"):
        words = next(iter(circle.iter(f"{SVG}title"))).text or ""
        heights[words.split(":")[0], words.split()[-1]] = float(circle.get("cy", "0"))
    assert heights["toeplitz", "128"] > heights["monarch", "128"]  # less is further down
    assert heights["toeplitz", "1024"] < heights["monarch", "1024"]
    # Half as long is as far down wherever it is.
    gap = heights["toeplitz", "128"] - heights["monarch", "128"]
    assert gap == pytest.approx(heights["monarch", "1024"] - heights["toeplitz", "1024"], abs=0.3)


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-device.json").write_text(json.dumps({"device": "A Device", "rows": [row("fft", 64, 1.0) | {"extra": 1}]}))
    with pytest.raises(ValueError, match="has not the fields"):
        read_routes("A Device", tmp_path)
    assert read_routes("Another", tmp_path) == []


def test_what_is_kept_can_be_drawn() -> None:
    for path in sorted((PACKAGED / "routes").glob("*.json")):
        plots = crossovers(read_routes(json.loads(path.read_text())["device"]))
        assert plots and all(len(legend) > 1 for _, _, legend in plots)
