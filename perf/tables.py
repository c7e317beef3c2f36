"""Tables of results in Markdown, as README has them: ``python -m scanc.perf.tables README.md`` brings a file up to date.

A table stands between two comments and names what it shows, one pass or several joined by commas:

    <!-- results: nvidia-h100-80gb-hbm3 selective_scan forward,backward -->
    ...
    <!-- end of results -->

It has the op's own cases, not the many sizes of a sweep, and beside each the fastest rival. Whole layers stand between

    <!-- layers: nvidia-h100-80gb-hbm3 -->
    ...
    <!-- end of layers -->
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import scanc.ops  # noqa: F401 - fills the registry
from scanc import runtime
from scanc.op import REGISTRY
from scanc.perf.layers import HEADINGS, read_layers, table_of
from scanc.perf.report import best_rows, table_row
from scanc.perf.results import PACKAGED, PASSES, Results, Row, all_results, case_text

LAYERS_PLACE = re.compile(r"(<!-- layers: (?P<device>\S+) -->\n).*?(<!-- end of layers -->)", re.DOTALL)
PLACE = re.compile(r"(<!-- results: (?P<device>\S+) (?P<op>\S+) (?P<passes>\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def markdown_table(rows: Iterable[Row]) -> str:
    """The fastest kernel of each pass and case: its time, the floor and how near it is, and the fastest rival's time."""
    lines = ["| pass | case | dtype | form, backend | ms | floor ms | of floor | rival | rival ms | times faster | error |",
             "|---|---|---|---|---:|---:|---:|---|---:|---:|---:|"]
    for row in _beside_the_fastest(best_rows(rows)):
        words = table_row(row)
        faster = f"{row['peer_ms'] / row['ms']:.2f}" if row["peer_ms"] else ""
        cells = (words["pass"], words["case"], words["dtype"], f"{words['form']}, {words['backend']}", words["ms"], words["floor"],
                 words["share"], words["peer"], words["peer_ms"], faster, words["error"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _beside_the_fastest(rows: Iterable[Row]) -> list[Row]:
    """One row for each pass, case and dtype: that of the fastest rival."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row["pass"], case_text(row["case"]), row["dtype"])
        if key not in found or (row["peer_ms"] or math.inf) < (found[key]["peer_ms"] or math.inf):
            found[key] = row
    return sorted(found.values(), key=lambda r: PASSES.index(r["pass"]))


def _own_cases(rows: Sequence[Row], op: str) -> list[Row]:
    """Of the rows of one pass those of the op's cases; all where they are others, as a step's are, or a case cut down to suit a CPU."""
    cases = REGISTRY[op].cases if op in REGISTRY else []
    return [r for r in rows if r["case"] in cases] or list(rows)


def filled(text: str, results: Sequence[Results]) -> str:
    """``text`` with every table in it made anew. Raises ValueError where one has no rows to show."""
    by_name = {runtime.kebab(r.device): r for r in results}

    def table(place: re.Match[str]) -> str:
        device, op, shown = place["device"], place["op"], []
        for pass_ in place["passes"].split(","):
            rows = [r for r in by_name[device].rows if (r["op"], r["pass"]) == (op, pass_)] if device in by_name else []
            if not rows:
                raise ValueError(f"there are no results of {op} {pass_} for {device}; devices with results: {', '.join(by_name) or 'none'}")
            shown += _own_cases(rows, op)
        return place[1] + markdown_table(shown) + place[5]

    return LAYERS_PLACE.sub(lambda place: place[1] + layers_table(place["device"]) + place[3], PLACE.sub(table, text))


def layers_table(device: str) -> str:
    """The whole layers measured on the device of that file's name. Raises ValueError where there are none."""
    rows = table_of(read_layers(device))
    if not rows:
        raise ValueError(f"there are no results of whole layers for {device}: python -m scanc.perf.layers measures them")
    rule = ["---:" if "ms" in h or "GiB" in h or h == "times faster" else "---" for h in HEADINGS]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [HEADINGS, rule, *rows])


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        runtime.atomic_write(path, filled(path.read_text(), all_results([PACKAGED])))


if __name__ == "__main__":
    main(sys.argv[1:])
