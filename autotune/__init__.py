"""Tuning: the fastest right schedule for each shape on each device, found by measuring, never in a user's call.

    tune(problems, target=…)          search, and record what was found           study.py
    default_store().lookup(…)         the best schedule known for a call          records.py
    space(graph, target, sizes)       what there is to search                     space.py
    screen(sources, target)           what a kernel would use of a GPU            screen.py
    Measurer().measure(…)             one candidate, in a process of its own      measure.py, worker.py, check.py

Importing this package, and looking a schedule up, does not import Optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scanc.autotune.records import Record, RecordStore, default_store, exact_axes, graph_key, shape_bucket

if TYPE_CHECKING:
    from scanc.autotune.study import Progress, tune

__all__ = ["Progress", "Record", "RecordStore", "default_store", "exact_axes", "graph_key", "shape_bucket", "tune"]


def __getattr__(name: str) -> Any:
    if name in ("tune", "Progress"):
        from scanc.autotune import study

        return getattr(study, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
