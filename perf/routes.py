"""Routes side by side: how long each way of evaluating a form takes at each size, where another file says how long the chosen one does.

``results/routes/<device-name-in-kebab-case>.json`` holds {"device", "date", "rows": [row, ...]}; a row is {"op", "case", "dtype", "pass",
"route", "ms", "error"}. Lengths are swept at a fixed number of elements, or of everything but time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scanc.perf.plots import COLOURS, Line, curves
from scanc.perf.results import rows_of_kind

FIELDS = ("op", "case", "dtype", "pass", "route", "ms", "error")


def read_routes(device: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """The device's rows; none where it has no file. Raises ValueError on a row that breaks the schema."""
    return rows_of_kind("routes", device, FIELDS, folder)


def crossovers(rows: Iterable[Mapping[str, Any]], time: str = "l") -> list[tuple[str, Markup, list[tuple[str, str]]]]:
    """One plot for each op, pass, dtype and sweep: nanoseconds a thousand elements over length, a line for each route; and its legend."""
    sweeps: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for r in rows:
        case = r["case"]
        elements, one = math.prod(case.values()), case.get("b", 2) == 1
        title = f"{r['op']}, {r['pass']}, {r['dtype']}, {'one row' if one else 'many rows'}"
        sweeps.setdefault(title, {}).setdefault(r["route"], []).append((case[time], 1e9 * r["ms"] / elements))
    plots = []
    for title, routes in sorted(sweeps.items()):
        marks = {route: f"c{i % COLOURS}" for i, route in enumerate(sorted(routes))}
        lines = [Line(tuple(sorted(points)), marks[route], route) for route, points in sorted(routes.items())]
        plots.append((title, curves(lines, x_label="steps", y_label="ns a thousand elements"), [(marks[r], r) for r in sorted(routes)]))
    return plots


__all__ = ["crossovers", "read_routes"]
