"""``scanc check``: is every kernel of this machine right?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from scanc.cli.common import Json, OptionalOp, TargetName, console, find_op, load_ops, print_json, print_table
from scanc.target import Target

DTYPES = ("float32", "bfloat16")


def check(op: OptionalOp = None, target: TargetName = None, json: Json = False) -> None:
    """Hold every kernel this machine can run against the float64 oracle: each op, pass, form, backend and dtype, on hard inputs.

    Hard inputs are ragged lengths, extreme decay, states kept over the whole length; each kernel runs twice and must give the same bits.
    Exits with 1 where one is wrong or does not compile.

    Examples:

        scanc check

        scanc check selective_scan --json
    """
    names = [find_op(op).name] if op is not None else sorted(load_ops())
    aim = Target.parse(target) if target is not None else None
    with console.status("checking", spinner="dots") if sys.stdout.isatty() else _quiet():
        rows = [row for name in names for row in checked(name, aim)]
    if json:
        print_json(rows)
    else:
        print_table("Kernels against the oracle", ("op", "pass", "form", "backend", "dtype", "error", "status", ""),
                    [(r["op"], r["pass"], r["form"], r["backend"], r["dtype"], "" if r["error"] is None else f"{r['error']:.1e}",
                      r["status"], r["reason"].splitlines()[0] if r["reason"] else "") for r in rows])
        wrong = sum(r["status"] != "ok" for r in rows)
        print(f"{len(rows) - wrong} of {len(rows)} kernels are right")
    if any(r["status"] != "ok" for r in rows):
        raise typer.Exit(1)


def checked(name: str, target: Target | None) -> Iterator[dict[str, Any]]:
    """A row for each kernel of an op."""
    import torch

    from scanc.autotune.check import prepare, trials
    from scanc.op import REGISTRY
    from scanc.perf.suite import judged, problems, shrunk, usable_targets

    device = torch.device(target.device_type if target is not None else "cuda" if torch.cuda.is_available() else "cpu")
    targets = [target] if target is not None else usable_targets(device)
    for found in problems(REGISTRY[name], device, quick=True):
        for dtype in DTYPES:
            problem = shrunk(found.of(name, found.sizes, dtype, found.pass_), 0.5)
            graph = problem.graph()
            prepared = [prepare(trial, graph, device) for trial in trials(problem, graph)]
            for kernel in judged(graph, problem, targets, prepared):
                yield {"op": name, "pass": problem.pass_, "form": kernel.form, "backend": kernel.target.backend, "dtype": dtype,
                       "error": kernel.error, "status": kernel.status, "reason": kernel.reason, "tuned": kernel.tuned}


def _quiet() -> Any:
    import contextlib

    return contextlib.nullcontext()
