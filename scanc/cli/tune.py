"""``scanc tune``: the fastest right schedule for this machine, found by measuring and recorded."""

from __future__ import annotations

import dataclasses
import json as json_text
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scanc.cli.common import DTYPES, Json, TargetName, find_op, parse_case, parse_passes, print_json, print_table
from scanc.errors import ArgumentError, BackendUnavailable
from scanc.target import Target

if TYPE_CHECKING:
    from scanc.autotune import Record
    from scanc.problem import Problem

Cases = Annotated[list[str] | None, typer.Option("--case", help="Sizes, as b=1,d=1536,l=2048,n=16; repeat for several. "
                                                 "Default: the op's own.", show_default=False)]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: bfloat16 on a GPU, float32 on a CPU.",
                                           show_default=False)]
Options = Annotated[list[str] | None, typer.Option("--option", help="An op's option or optional input: delta_softplus=false, z=none, "
                                                   "seq_idx=given.", show_default=False)]
Screen = Annotated[bool, typer.Option("--screen", help="Only compile, for a GPU that need not be here: registers, spills, shared memory.")]


def tune(op: Annotated[str, typer.Argument(help="An op's name, or file.py:name for one of your own.")],
         case: Cases = None,
         dtype: Dtype = None,
         pass_: Annotated[str, typer.Option("--pass", help="Some of forward, backward, step, joined by commas.")] = "forward,backward",
         option: Options = None,
         target: TargetName = None,
         effort: Annotated[str, typer.Option(help="quick (32 candidates, 2 minutes a problem) or full (300, 30 minutes).")] = "quick",
         budget: Annotated[float | None, typer.Option(help="Seconds for everything, in place of the effort's.", show_default=False)] = None,
         fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is on record.")] = False,
         screen: Screen = False,
         json: Json = False) -> None:
    """Find the fastest schedule of an op for a shape on this machine, and record it: calls use it from then on.

    Every candidate is checked against the float64 oracle before it is timed, in a process that may crash. Stop it when you like: what
    was measured is kept, and the same command goes on from there. Exits with 1 where some problem has no schedule that works.

    Examples:

        scanc tune selective_scan --case b=1,d=1536,l=2048,n=16

        scanc tune ssd --pass forward --effort full --dtype bfloat16

        scanc tune my_ops.py:my_scan --case b=4,d=64,l=1000 --budget 60

        scanc tune selective_scan --case b=8,d=2048,l=4096,n=16 --target cuda:sm_90:cuda --screen
    """
    name = find_op(op).name
    targets = _targets(target)
    problems = _problems(name, case, dtype, parse_passes(pass_), dict(_option(o) for o in option or ()), targets)
    if screen:
        _screen(problems, targets, json)
        return
    from scanc.autotune import tune as search

    finals = search(problems, target=targets, effort=effort, budget_s=budget, resume=not fresh)
    if json:
        print_json([r.to_json() for r in finals])
    else:
        _show(finals)
    if len(finals) < len(problems):
        print(f"scanc: {len(problems) - len(finals)} of {len(problems)} problems have no schedule that works; "
              "their records say why each candidate failed", file=sys.stderr)
        raise typer.Exit(1)


def _targets(name: str | None) -> list[Target]:
    """The one target named, or every backend of this machine's best device."""
    import torch

    from scanc.dispatch import targets_of

    if name is not None:
        return [Target.parse(name)]
    found = [t for t in targets_of(torch.device("cuda" if torch.cuda.is_available() else "cpu")) if t.backend != "reference"]
    if not found:
        raise BackendUnavailable("no compiler was found", backend="every backend", remedy="`scanc doctor` says what is missing.")
    return found


def _option(text: str) -> tuple[str, Any]:
    """``name=value`` for Problem.options: true, false, a number, none, or a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentError(op="tune", argument="--option", value=text, limit="it must be name=value",
                            remedy="For example delta_softplus=false.")
    if value.lower() == "none":
        return name, None
    try:
        return name, json_text.loads(value.lower())
    except ValueError:
        return name, value


def _problems(name: str, cases: Sequence[str] | None, dtype: str | None, passes: Sequence[str], options: dict[str, Any],
              targets: Sequence[Target]) -> list[Problem]:
    """The cases given, else the op's own at sizes that suit the device, in every pass."""
    import torch

    from scanc.op import REGISTRY
    from scanc.perf.suite import problems
    from scanc.problem import Problem

    if cases:
        own = dtype or ("float32" if targets[0].kind == "cpu" else "bfloat16")
        found = [Problem.of(name, parse_case(c), own, p, **options) for c in cases for p in passes]
    else:
        usual = problems(REGISTRY[name], torch.device(targets[0].device_type), False, passes)
        found = [dataclasses.replace(p, dtype=dtype or p.dtype, options=tuple(sorted(options.items()))) for p in usual]
    if not found:
        raise ArgumentError(op=name, argument="--case", value="missing", limit="the op declares no cases of its own for these passes",
                            remedy="Give one, as --case b=1,d=64,l=1000.")
    for problem in found:
        if problem.dtype not in DTYPES:
            raise ArgumentError(op=name, argument="--dtype", value=problem.dtype, limit="it must be float32, bfloat16 or float16",
                                remedy="Correct it.")
    return found


def _show(finals: Sequence[Record]) -> None:
    print_table("Fastest schedules", ("op", "pass", "case", "dtype", "target", "form", "ms", "error"),
                [(r.op, r.pass_, " ".join(f"{a}={s}" for a, s in r.case), r.dtype, r.target, r.form, f"{r.ms:.4g}",
                  f"{max(r.error.values(), default=0.0):.1e}") for r in finals])
    for r in finals:
        print(f"{r.op} {r.pass_}: {r.line}")


def _screen(problems: Sequence[Problem], targets: Sequence[Target], json: bool) -> None:
    """Compiles a sample of candidates for each problem and prints what they would use."""
    from scanc.autotune.records import graph_case
    from scanc.autotune.screen import survey
    from scanc.autotune.space import space

    rows = []
    for problem in problems:
        graph = problem.graph()
        spaces = [s for t in targets for s in space(graph, t, graph_case(graph, problem.sizes))]
        for form, schedule, found in survey(problem, spaces, limit=16 * max(1, len(spaces))):
            rows.append({"pass": problem.pass_, "case": problem.sizes, "target": form.target.name, "schedule": schedule.to_json(),
                         **dataclasses.asdict(found), "line": repr(schedule)})
    if json:
        print_json(rows)
        return
    print_table("Screened candidates", ("pass", "schedule", "registers", "spills", "shared", "seconds", ""),
                [(str(r["pass"]), str(r["line"]), str(r["registers"]), str(r["spills"]), str(r["shared"]), f"{r['seconds']:.2f}",
                  "" if r["ok"] else str(r["reason"])) for r in rows])
    print(f"{sum(bool(r['ok']) for r in rows)} of {len(rows)} candidates could run")
