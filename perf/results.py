"""Result files: one per device, ``<device-name-in-kebab-case>.json``, rows merged in by key and written whole or not at all.

    {"device", "date", "versions": {...}, "rows": [row, ...]}

A row says what was run (op, case, dtype, pass, form, backend, schedule), how long it took, how long it must take at least and
why (floor_ms, bound), what a rival took, how far from the oracle it was, and whether it stands (status).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scanc import runtime

Row = dict[str, Any]

KEY = ("op", "case", "dtype", "pass", "form", "backend", "peer")
FIELDS = ("op", "case", "dtype", "pass", "form", "backend", "schedule", "ms", "ms_p10", "ms_p90", "floor_ms", "bound", "peer", "peer_ms",
          "peer_source", "error", "status")
# peer_source of a rival timed beside us; any other word says where a recorded figure is from.
SAME_RUN = "same run"
PASSES = ("forward", "backward", "step")
BOUNDS = ("memory", "matrix", "special", "launch")
# A row stands when it is "ok"; the other words say why it does not.
STATUSES = ("ok", "wrong", "failed")

PACKAGED = Path(__file__).parent / "results"


@dataclass
class Results:
    """What one file holds."""

    device: str
    date: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, "date": self.date, "versions": dict(self.versions), "rows": self.rows}


def results_folder() -> Path:
    """Where new rows go: ``perf/results`` in a checkout of the sources, else ``results`` in the cache folder."""
    checkout = (PACKAGED.resolve().parents[1] / "pyproject.toml").exists()
    return PACKAGED.resolve() if checkout else runtime.cache_dir() / "results"


def results_path(device: str, folder: Path | None = None) -> Path:
    """The file of the device called ``device``."""
    return (folder or results_folder()) / f"{runtime.kebab(device)}.json"


def key_of(row: Row) -> tuple[str, ...]:
    """What makes two rows the same measurement: the later one replaces the earlier."""
    return tuple(json.dumps(row.get(name), sort_keys=True) for name in KEY)


def check_row(row: Row) -> None:
    """Raises ValueError, naming the field, on a row that breaks the schema."""
    missing = [name for name in FIELDS if name not in row]
    if missing:
        raise ValueError(f"a result row lacks '{missing[0]}': {row}")
    for name, allowed in (("pass", PASSES), ("status", STATUSES)):
        if row[name] not in allowed:
            raise ValueError(f"'{name}' of a result row is {row[name]!r}; it must be one of {', '.join(allowed)}")
    if row["bound"] is not None and row["bound"] not in BOUNDS:
        raise ValueError(f"'bound' of a result row is {row['bound']!r}; it must be one of {', '.join(BOUNDS)}")
    if row["status"] == "ok" and not (isinstance(row["ms"], float) and row["ms"] > 0):
        raise ValueError(f"'ms' of a result row that stands is {row['ms']!r}; it must be a positive number")


def read_results(path: Path) -> Results:
    """The file's contents. Raises ValueError, KeyError or TypeError where it is damaged."""
    data = json.loads(path.read_text())
    rows = data["rows"]
    for row in rows:
        check_row(row)
    return Results(data["device"], data["date"], data["versions"], rows)


def merge_rows(path: Path, rows: Iterable[Row], device: str) -> Results:
    """Adds ``rows`` to the file, each in place of one with the same key; gives what the file then holds.

    The file is locked meanwhile and replaced whole, so that neither a kill nor a second bench can lose rows.
    """
    new = list(rows)
    for row in new:
        check_row(row)
    with runtime.file_lock(path):
        held = runtime.load_or_set_aside(path, read_results) or Results(device)
        merged = {key_of(row): row for row in [*held.rows, *new]}
        ordered = sorted(merged.values(), key=key_of)
        results = Results(device, datetime.date.today().isoformat(), runtime.versions(), ordered)
        runtime.atomic_write(path, dumps(results.to_json()))
    return results


def dumps(data: Mapping[str, Any]) -> str:
    """JSON with one row a line, so that a change to a file reads as a change to its rows."""
    head = {k: v for k, v in data.items() if k != "rows"}
    lines = ",\n".join("    " + json.dumps(row) for row in data["rows"])
    return json.dumps(head, indent=2)[:-2] + ',\n  "rows": [\n' + lines + "\n  ]\n}\n"


def case_text(case: Mapping[str, int]) -> str:
    """``{b: 8, d: 4096}`` as ``b8 d4096``."""
    return " ".join(f"{axis}{size}" for axis, size in case.items())


def rows_of_kind(kind: str, device: str, fields: Sequence[str], folder: Path | None = None) -> list[Row]:
    """A device's rows of another kind than kernels', which ``results/<kind>`` has, or ``folder``; none where it has no file.

    Raises ValueError on a row that has not just these fields, ``ms`` among them, or no time.
    """
    path = (folder or PACKAGED / kind) / f"{runtime.kebab(device)}.json"
    if not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text())["rows"]
    for row in rows:
        if set(row) != set(fields) or not row["ms"] > 0:
            raise ValueError(f"a row of {path.name} has not the fields {', '.join(fields)}, or no time: {row}")
    return rows


def all_results(folders: Iterable[Path] | None = None) -> list[Results]:
    """Every device's results, in order of device name: those in the package, then this machine's own, whose rows come first on a tie."""
    by_device: dict[str, Results] = {}
    for folder in folders if folders is not None else (PACKAGED, runtime.cache_dir() / "results"):
        for path in sorted(folder.glob("*.json")):
            found = runtime.load_or_set_aside(path, read_results)
            if found is None:
                continue
            held = by_device.get(found.device)
            if held is not None:
                merged = {key_of(row): row for row in [*held.rows, *found.rows]}
                found = Results(found.device, found.date, found.versions, sorted(merged.values(), key=key_of))
            by_device[found.device] = found
    return [by_device[name] for name in sorted(by_device)]
