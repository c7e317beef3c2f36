"""``scanc report``: the page of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(out: Annotated[Path | None, typer.Option(help="The file to write; report.html in the cache folder when left out.",
                                                   show_default=False)] = None) -> None:
    """Write a self-contained HTML page of all results: speed-ups, roofline, tuning curves, schedules.

    Examples:

        scanc report

        scanc report --out results.html
    """
    from scanc.perf.report import write_report
    from scanc.runtime import cache_dir

    print(write_report(out or cache_dir() / "report.html"))
