"""One page of results: self-contained HTML with plots inline, readable without a network, scripts or a light room.

It is made from result files (perf/results.py) and tuning records alone, so that no figure on it can be out of date.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from scanc import runtime
from scanc.autotune.records import Record, default_store
from scanc.perf.layers import HEADINGS, read_layers, table_of
from scanc.perf.plots import COLOURS, Bar, Line, Point, bars, number, scatter, steps
from scanc.perf.results import BOUNDS, SAME_RUN, Results, Row, all_results, case_text
from scanc.perf.routes import crossovers, read_routes

MEANINGS = {"memory": "memory", "matrix": "matrix units", "special": "exponentials", "launch": "one launch"}
SWEEP = 12  # sizes of one op, pass and rival from which on they have a plot of their own


@dataclass(frozen=True)
class _Device:
    """What the template shows of one device."""

    name: str
    anchor: str
    date: str
    rows: list[dict[str, str]]
    speedups: list[tuple[str, Markup]]
    sweeps: list[tuple[str, Markup]]
    layers: list[list[str]]
    routes: list[tuple[str, Markup, list[tuple[str, str]]]]
    roofline: Markup | None
    curves: list[tuple[str, Markup, list[tuple[str, str]]]]
    versions: list[tuple[str, str]] = field(default_factory=list)


def write_report(out: Path, folders: Iterable[Path] | None = None) -> Path:
    """Writes the page to ``out`` and gives its path; ``folders`` with result files in place of the package's and this machine's."""
    results = all_results(folders)
    runtime.atomic_write(out, render(results, {r.device: _tuning_records(r.device) for r in results}))
    return out


def _tuning_records(device: str) -> list[Record]:
    """This user's tuning records of a device, every op's."""
    store = default_store()
    files = sorted(store.path(device, "any").parent.glob("*.jsonl"))
    return [record for path in files for record in store.records(device, path.stem)]


def render(results: Sequence[Results], records: Mapping[str, Sequence[Record]]) -> str:
    """The page for these results; ``records`` are the tuning records of each device."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template("report.html.j2")
    return template.render(devices=[_device(r, records.get(r.device, ())) for r in results], bounds=BOUNDS, meanings=MEANINGS,
                           headings=HEADINGS)


def _device(results: Results, records: Sequence[Record]) -> _Device:
    stands = [r for r in results.rows if r["status"] == "ok"]
    versions = [(name, value or "absent") for name, value in results.versions.items()]
    return _Device(results.device, runtime.kebab(results.device), results.date, [table_row(r) for r in results.rows], _speedups(stands),
                   _sweeps(stands), table_of(read_layers(results.device)), crossovers(read_routes(results.device)), _roofline(stands),
                   _curves(records), versions)


def _number(value: Any) -> str:
    return number(float(value)) if isinstance(value, int | float) else ""


def table_row(row: Row) -> dict[str, str]:
    """A row as words for a table."""
    schedule = row["schedule"]
    if isinstance(schedule, Mapping):
        schedule = " ".join(f"{k}={v}" for k, v in schedule.items() if k != "form")
    whole = row["status"] == "ok" and row["floor_ms"]
    peer = row["peer"] or ""
    return {"op": row["op"], "case": case_text(row["case"]), "dtype": row["dtype"], "pass": row["pass"], "form": row["form"] or "",
            "backend": row["backend"], "ms": _number(row["ms"]), "floor": _number(row["floor_ms"]),
            "share": f"{100 * row['floor_ms'] / row['ms']:.0f} %" if whole else "",
            "peer": f"{peer} ({row['peer_source']})" if peer and row["peer_source"] not in (None, SAME_RUN) else peer,
            "peer_ms": _number(row["peer_ms"]), "error": f"{row['error']:.1e}" if row["error"] is not None else "",
            "schedule": str(schedule or ""), "status": row["status"]}


def best_rows(rows: Iterable[Row]) -> list[Row]:
    """Of the rows that stand, the fastest of each op, case, dtype, pass and rival: what a user gets."""
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        key = (row["op"], case_text(row["case"]), row["dtype"], row["pass"], row["peer"] or "")
        if key not in best or row["ms"] < best[key]["ms"]:
            best[key] = row
    return list(best.values())


def _speedups(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """One plot for each op and pass: the fastest kernel of each case beside each rival."""
    plots = []
    beside = [r for r in best_rows(rows) if r["peer_ms"]]
    for op, pass_ in sorted({(r["op"], r["pass"]) for r in beside}):
        drawn = []
        for r in sorted((r for r in beside if (r["op"], r["pass"]) == (op, pass_)), key=lambda r: r["peer_ms"] / r["ms"], reverse=True):
            words = table_row(r)
            title = f"{words['ms']} ms, {words['peer']} {words['peer_ms']} ms, floor {words['floor']} ms; {r['form']}, {r['backend']}"
            recorded = "" if r["peer_source"] == SAME_RUN else ", recorded"
            drawn.append(Bar(f"{words['case']} {r['dtype']} / {r['peer']}{recorded}", r["peer_ms"] / r["ms"], r["bound"] or "none", title))
        plots.append((f"{op}, {pass_}", bars(drawn, unit="×", reference=1.0, reference_label="as fast as the rival")))
    return plots


def _sweeps(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """One plot for each op, pass and rival of many sizes: the fastest kernel's time over the rival's."""
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for r in best_rows(rows):
        if r["peer_ms"]:
            kinds.setdefault((r["op"], r["pass"], r["peer"]), []).append(r)
    plots = []
    for (op, pass_, peer), found in sorted(kinds.items()):
        if len(found) < SWEEP:
            continue
        faster = [r["peer_ms"] / r["ms"] for r in found]
        title = (f"{op}, {pass_}, beside {peer}: {len(found)} sizes, {number(statistics.geometric_mean(faster))} times as fast "
                 f"in geometric mean, {number(min(faster))} to {number(max(faster))}, slower at {sum(f < 1 for f in faster)}")
        points = [Point(r["peer_ms"], r["ms"], r["bound"] or "none", f"{case_text(r['case'])}: {number(f)} times as fast")
                  for r, f in zip(found, faster, strict=True)]
        plots.append((title, scatter(points, x_label=f"{peer}, ms", y_label="measured, ms",
                                     diagonals=((1.0, "as fast"), (0.4, "2.5 times as fast")))))
    return plots


def _roofline(rows: Sequence[Row]) -> Markup | None:
    points = []
    for r in best_rows({**r, "peer": None} for r in rows):
        if r["floor_ms"]:
            words = table_row(r)
            points.append(Point(r["floor_ms"], r["ms"], r["bound"] or "none",
                                f"{r['op']} {r['pass']} {words['case']} {r['dtype']}: {words['ms']} ms, {words['share']} of its floor"))
    if not points:
        return None
    return scatter(points, x_label="floor, ms", y_label="measured, ms", diagonals=((1.0, "the floor"), (2.0, "twice the floor")))


def _curves(records: Sequence[Record]) -> list[tuple[str, Markup, list[tuple[str, str]]]]:
    """One plot for each op and pass, one line for each case, dtype and target."""
    studies: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for r in records:
        studies.setdefault((r.op, r.pass_), {}).setdefault(f"{case_text(dict(r.case))} {r.dtype} {r.target}", []).append(r)
    plots = []
    for (op, pass_), by_case in sorted(studies.items()):
        lines, legend = [], []
        for number_of_line, (case, tried) in enumerate(sorted(by_case.items())):
            points = best_so_far(tried)
            if len(points) < 2:
                continue
            mark = f"c{number_of_line % COLOURS}"
            words = f"{case}: {number(points[0][1])} to {number(points[-1][1])} ms"
            lines.append(Line(tuple(points), mark, words))
            legend.append((mark, words))
        if lines:
            plots.append((f"{op}, {pass_}", steps(lines, x_label="candidates tried", y_label="ms"), legend))
    return plots


def best_so_far(records: Sequence[Record]) -> list[tuple[float, float]]:
    """(candidates tried, fastest time so far) at each improvement and at the end. A final word repeats a candidate and is none."""
    points: list[tuple[float, float]] = []
    least, tried = math.inf, 0
    seen: set[str] = set()
    for r in records:
        name = repr(sorted(r.schedule.items()))
        if name not in seen:
            seen.add(name)
            tried += 1
        if r.ok and r.ms is not None and r.ms < least:
            least = r.ms
            points.append((tried, least))
    if points and points[-1][0] < tried:
        points.append((tried, least))
    return points
