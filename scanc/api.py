"""The three verbs of ``import scanc``: compile, tune, show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scanc.compiler import Executable, ReferenceExecutable, compile_graph, default_schedule
from scanc.dispatch import targets_of
from scanc.op import REGISTRY, Op
from scanc.problem import Problem
from scanc.schedule import Schedule
from scanc.target import Target


def _op(op: Op | str) -> Op:
    import scanc.ops  # noqa: F401 - fills the registry

    return REGISTRY[op] if isinstance(op, str) else op


def _target(target: Target | str | None) -> Target:
    if target is None:
        return targets_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))[0]
    return Target.parse(target) if isinstance(target, str) else target


def compile(
    op: Op | str,
    *tensors: Tensor | None,
    target: Target | str | None = None,
    schedule: Schedule | None = None,
    form: str | None = None,  # noqa: A001
    **options: Any,
) -> Executable | ReferenceExecutable:
    """One op's forward compiled for one target, schedule and form, for the variant that ``tensors`` and ``options`` call for.

    tensors   the op's arguments in order (None for an absent one); sizes refine the default schedule, dtypes are fixed
    target    ``Target`` or its name, "cuda:sm_90:triton"; default: the best backend of this machine
    schedule  how the form is evaluated; default: the form's own choice
    form      "recurrent", "associative"; default: the schedule's, else recurrent

    Returns a callable from {argument: tensor} to {result: tensor} with ``.sources``.
    Raises ArgumentError, UnsupportedForm, ScheduleError, BackendUnavailable, CompileError.
    """
    from scanc.passes.specialize import specialize
    from scanc.torch_ops import check_sizes

    made, aim = _op(op), _target(target)
    given = dict(zip((a.name for a in made.arguments), tensors, strict=False))
    given |= {k: options.pop(k) for k in list(options) if k not in made.options}
    graph = made.graph_of(made.bind(given, options))
    present = {k: v for k, v in given.items() if v is not None}
    sizes = check_sizes(made.name, graph, present)
    special = specialize(graph, {k: str(v.dtype).removeprefix("torch.") for k, v in present.items()})
    if schedule is None and aim.backend != "reference":
        schedule = default_schedule(special, aim, sizes, form)
    return compile_graph(special, aim, schedule, sizes=sizes)


def tune(
    op: Op | str,
    case: Mapping[str, int] | None = None,
    *,
    dtype: str = "float32",
    passes: Sequence[str] = ("forward", "backward"),
    target: Target | str | None = None,
    effort: str = "quick",
    budget_s: float | None = None,
) -> list[Any]:
    """Finds the fastest right schedule of an op for one case (default: its first) and keeps it for later calls.

    Returns the tuner's records, the best of each pass marked so. See docs/tuning.md.
    """
    from scanc.autotune.study import tune as run

    made = _op(op)
    problems = [Problem.of(made, case or made.cases[0], dtype, p) for p in passes]
    return run(problems, target=_target(target), effort=effort, budget_s=budget_s)


def show(
    op: Op | str,
    stage: str = "all",
    *,
    target: Target | str | None = None,
    case: Mapping[str, int] | None = None,
    dtype: str = "float32",
    pass_: str = "forward",
    schedule: Schedule | None = None,
) -> str:
    """Any stage of an op on its way to a kernel, as text; ``target`` may be a device that is not here."""
    from scanc.stages import stages

    made = _op(op)
    problem = Problem.of(made, case or made.cases[0], dtype, pass_)
    found = stages(problem.graph(), _target(target), schedule, sizes=problem.sizes)
    if stage == "all":
        return "\n\n".join(f"== {name}\n{text}" for name, text in found.items())
    if stage not in found:
        from scanc.errors import ArgumentError

        raise ArgumentError(
            op=made.name, argument="stage", value=repr(stage), limit=f"stages are {', '.join(found)}, or all", remedy="Correct it."
        )
    return found[stage]
