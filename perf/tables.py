"""Tables of results in Markdown, as README has them: ``python -m scanc.perf.tables README.md`` brings a file up to date.

A table stands between two comments and names what it shows:

    <!-- results: nvidia-h100-80gb-hbm3 selective_scan forward -->
    ...
    <!-- end of results -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from scanc import runtime
from scanc.perf.report import best_rows, table_row
from scanc.perf.results import PACKAGED, Results, Row, all_results

PLACE = re.compile(r"(<!-- results: (?P<device>\S+) (?P<op>\S+) (?P<pass>\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def markdown_table(rows: Iterable[Row]) -> str:
    """The fastest kernel of each case and rival: its time, the floor and how near it is, and the rival's time."""
    lines = ["| case | dtype | form, backend | ms | floor ms | of floor | rival | rival ms | times faster | error |",
             "|---|---|---|---:|---:|---:|---|---:|---:|---:|"]
    for row in best_rows(rows):
        words = table_row(row)
        faster = f"{row['peer_ms'] / row['ms']:.2f}" if row["peer_ms"] else ""
        cells = (words["case"], words["dtype"], f"{words['form']}, {words['backend']}", words["ms"], words["floor"], words["share"],
                 words["peer"], words["peer_ms"], faster, words["error"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def filled(text: str, results: Sequence[Results]) -> str:
    """``text`` with every table in it made anew. Raises ValueError where one has no rows to show."""
    by_name = {runtime.kebab(r.device): r for r in results}

    def table(place: re.Match[str]) -> str:
        device, op, pass_ = place["device"], place["op"], place["pass"]
        rows = [r for r in by_name[device].rows if (r["op"], r["pass"]) == (op, pass_)] if device in by_name else []
        if not rows:
            raise ValueError(f"there are no results of {op} {pass_} for {device}; devices with results: {', '.join(by_name) or 'none'}")
        return place[1] + markdown_table(rows) + place[5]

    return PLACE.sub(table, text)


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        runtime.atomic_write(path, filled(path.read_text(), all_results([PACKAGED])))


if __name__ == "__main__":
    main(sys.argv[1:])
