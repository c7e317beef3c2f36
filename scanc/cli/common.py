"""What several commands share: printing, and reading ops, cases and targets from words."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from scanc.errors import ArgumentError
from scanc.schedule import SCHEDULES, Schedule, schedule_from_json

if TYPE_CHECKING:
    from scanc.op import Op

Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]
OptionalOp = Annotated[str | None, typer.Argument(help="One op's name; all ops when left out.", show_default=False)]
TargetName = Annotated[str | None, typer.Option("--target", help="As in cuda:sm_90:triton or cpu:native:cpp.", show_default=False)]

PASSES = ("forward", "backward", "step")
DTYPES = ("float32", "float16", "bfloat16")
console = Console()
# Columns of numbers: aligned on the right.
NUMBERS = ("ms", "floor ms", "of floor", "rival ms", "error")


def print_json(data: Any) -> None:
    """Plain JSON, never wrapped or coloured."""
    print(json.dumps(data, indent=2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as its words where nobody looks on: what is piped must not lose any."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left")
    for row in rows:
        table.add_row(*row)
    if console.is_terminal:
        console.print(table)
    else:
        Console(width=10_000).print(table)


def load_ops() -> dict[str, Op]:
    """Every op scanc ships, by name."""
    from scanc.op import REGISTRY  # not above: torch takes seconds to import, and --help needs none of it

    importlib.import_module("scanc.ops")
    return REGISTRY


def find_op(name: str) -> Op:
    """An op by name, or ``module:name`` / ``file.py:name`` for one of your own. Raises ArgumentError."""
    ops = load_ops()
    place, _, own = name.rpartition(":")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ArgumentError(op=own, argument="op", value=f"in '{place}'", limit="there is no such file", remedy="Correct the path.")
        runpy.run_path(place, run_name="__scanc_ops__")
    elif place:
        if importlib.util.find_spec(place.partition(".")[0]) is None:
            raise ArgumentError(op=own, argument="op", value=f"in '{place}'", limit="there is no such module", remedy="Correct its name.")
        importlib.import_module(place)
    if own not in ops:
        raise ArgumentError(op=own, argument="op", value="unknown", limit=f"ops are {', '.join(sorted(ops))}",
                            remedy="Your own: file.py:name.")
    return ops[own]


def parse_passes(text: str) -> list[str]:
    """Some of forward, backward and step, joined by commas. Raises ArgumentError."""
    return _some_of("pass", text, PASSES)


def parse_forms(text: str) -> list[str]:
    """Some forms, joined by commas. Raises ArgumentError."""
    return _some_of("form", text, tuple(SCHEDULES))


def parse_dtypes(text: str) -> list[str]:
    """Some dtypes of tensors over time, joined by commas. Raises ArgumentError."""
    return _some_of("dtype", text, DTYPES)


def _some_of(what: str, text: str, known: Sequence[str]) -> list[str]:
    found = [word.strip() for word in text.split(",")]
    for word in found:
        if word not in known:
            raise ArgumentError(op="scanc", argument=f"--{what}", value=word, limit=f"a {what} is one of {', '.join(known)}",
                                remedy="Join several by commas.")
    return found


def parse_case(text: str) -> dict[str, int]:
    """``b=1,d=64,l=128`` as {axis: size}. Raises ArgumentError."""
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.strip().isdigit() or int(size) < 1:
            raise ArgumentError(op="case", argument=part.strip() or "''", value="not understood",
                                limit="a case is axis=size,…, sizes 1 or more", remedy="Write it as b=1,d=64,l=128.")
        sizes[axis.strip()] = int(size)
    return sizes


def parse_schedule(text: str, default: Schedule) -> Schedule:
    """A schedule from words: ``lanes=64, tile=32`` changes fields of ``default``; ``RecurrentSchedule(lanes=64, …)`` is one whole.

    Raises ArgumentError where the words are no schedule, ScheduleError on an unknown field or a value out of range.
    """
    inner = text.strip()
    name, bracket, _ = inner.partition("(")
    fields = {} if bracket else default.to_json()
    try:
        call = ast.parse(inner if bracket else f"schedule({inner})", mode="eval").body
        given = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords} if isinstance(call, ast.Call) and not call.args else None
    except (SyntaxError, ValueError):
        given = None
    form = name.strip().removesuffix("Schedule").lower() if bracket else default.form
    if given is None:
        raise ArgumentError(op="schedule", argument="--schedule", value=repr(text), limit="it is field=value, … or a schedule as it prints",
                            remedy=f"This form's default: {default!r}.")
    return schedule_from_json({**fields, **given, "form": form})

