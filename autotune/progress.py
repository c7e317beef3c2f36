"""What a study says while it runs: a bar with an estimate on a terminal, a caller's function, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scanc.autotune.records import Record
from scanc.problem import Problem


@dataclass(frozen=True)
class Progress:
    """What a caller is told after each candidate, of problem ``number`` of ``problems``; the seconds are estimates."""

    problem: Problem
    done: int
    total: int
    best: Record | None
    seconds_left: float
    number: int = 1
    problems: int = 1
    seconds_left_in_all: float = 0.0


@contextmanager
def showing(progress: Callable[[Progress], None] | bool | None) -> Iterator[Callable[[Progress], None]]:
    """The caller's function; a bar on stderr, where that is a terminal or when ``progress`` is True; or silence."""
    if callable(progress):
        yield progress
        return
    if progress is False or not (progress or sys.stderr.isatty()):
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn
    from rich.progress import Progress as Bar

    state = TextColumn("{task.completed}/{task.total}  {task.fields[best]}  {task.fields[left]}")
    tasks: dict[Problem, TaskID] = {}
    console = Console(stderr=True, force_terminal=True)
    with Bar(TextColumn("{task.description}"), BarColumn(), state, console=console, transient=True) as bar:
        def tell(step: Progress) -> None:
            if step.problem not in tasks:
                sizes = ",".join(f"{a}={s}" for a, s in step.problem.case)
                tasks[step.problem] = bar.add_task(f"{step.problem.op} {step.problem.pass_} {sizes} ({step.number}/{step.problems})",
                                                   total=step.total, best="", left="")
            best = f"best {step.best.ms:.4g} ms" if step.best is not None else "none right yet"
            left = f"about {step.seconds_left:.0f} s left" + (f", {step.seconds_left_in_all:.0f} s in all" if step.problems > 1 else "")
            bar.update(tasks[step.problem], completed=step.done, total=step.total, best=best, left=left)

        yield tell
